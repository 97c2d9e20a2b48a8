"""The command line as its user meets it: what it writes, says and returns."""

import asyncio
import contextlib
import errno
import json
import os
import shlex
import socket
import sqlite3
import stat
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import unused_port

from letta_bridge import __version__, config, registration
from letta_bridge.cli import main
from letta_bridge.cli.exitcodes import MEANING, Exit
from letta_bridge.config import load

ANSWERS = ["--homeserver-url", "http://127.0.0.1:8008", "--domain", "home.test", "--letta-url", "http://127.0.0.1:8283"]
ALL = [*ANSWERS, "--letta-key", "", "--admin", "@alice:home.test"]


def init(folder: Path, *more: str) -> int:
    return main(["init", "--dir", str(folder), *ALL, *more])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- init


def test_init_writes_two_private_files_that_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    previous = os.umask(0)
    try:
        assert init(folder) == Exit.OK
    finally:
        os.umask(previous)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "registration.yaml"]
    assert mode(folder / "config.yaml") == mode(folder / "registration.yaml") == 0o600
    loaded = load(folder / "config.yaml", {})
    assert loaded.warnings == ()
    assert registration.compare(loaded, folder / "registration.yaml") == []
    assert loaded.permissions == {"@alice:home.test": config.schema.Level.ADMIN}
    assert loaded.mirror.invite == ("@alice:home.test",)
    out = capsys.readouterr().out
    for step in (
        "#admins:home.test",
        "--show admin-room",
        "appservice_dir",
        "app_service_config_files",
        f"letta-bridge check -c {folder / 'config.yaml'}",
    ):
        assert step in out
    assert loaded.appservice.as_token not in out, "output may be kept in a log"


def test_the_steps_can_be_pasted_also_from_a_folder_with_a_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my bridge"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert init(Path("../my bridge")) == Exit.OK
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    copied = [words[-2] for words in commands if words[:1] == ["install"]]
    assert copied == [str(folder / "registration.yaml")] * 2
    last = [words for words in commands if words[:1] == ["letta-bridge"]]
    file = ["-c", "../my bridge/config.yaml"]
    show = [["letta-bridge", "register", *file, "--show", what] for what in ("admin-room", "toml")]
    assert last == [*show, *(["letta-bridge", name, *file] for name in ("check", "smoke", "run"))]


def test_init_on_a_terminal_prints_what_to_paste(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert init(tmp_path) == Exit.OK
    loaded = load(tmp_path / "config.yaml", {})
    out = capsys.readouterr().out
    assert registration.admin_room_message(loaded) in out
    assert registration.tuwunel_toml(loaded) in out


def test_init_never_overwrites_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(tmp_path) == Exit.OK
    before = (tmp_path / "config.yaml").read_text()
    assert init(tmp_path) == Exit.USAGE
    assert (tmp_path / "config.yaml").read_text() == before
    assert "--force" in capsys.readouterr().err
    assert init(tmp_path, "--force") == Exit.OK
    assert (tmp_path / "config.yaml").read_text() != before
    assert registration.compare(load(tmp_path / "config.yaml", {}), tmp_path / "registration.yaml") == []


def test_init_without_a_terminal_asks_for_flags_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert main(["init", "--dir", str(tmp_path), "--domain", "home.test"]) == Exit.USAGE
    err = capsys.readouterr().err
    for flag in ("--homeserver-url", "--letta-url", "--letta-key", "--admin", "--yes"):
        assert flag in err
    assert "--domain" not in err
    assert list(tmp_path.iterdir()) == []


def test_init_yes_takes_defaults_but_guesses_no_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--dir", str(tmp_path), "--yes"]) == Exit.USAGE
    assert "give --domain, --admin" in capsys.readouterr().err
    assert main(["init", "--dir", str(tmp_path), "--yes", "--domain", "h.test", "--admin", "@a:h.test"]) == Exit.OK
    assert load(tmp_path / "config.yaml", {}).homeserver.url == "http://127.0.0.1:8008"


def test_init_asks_on_a_terminal_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["", "", "home.test", "http://letta:8283", "@alice:home.test"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    monkeypatch.setattr("getpass.getpass", lambda _: "the-key")
    assert main(["init", "--dir", str(tmp_path)]) == Exit.OK
    loaded = load(tmp_path / "config.yaml", {})
    assert loaded.homeserver.url == "http://127.0.0.1:8008"
    assert loaded.homeserver.domain == "home.test"
    assert loaded.letta.api_key == "the-key"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--domain", "https://home.test"], ["--domain", "without http://"]),
        (["--admin", "alice"], ["--admin", "a full Matrix id"]),
        (["--admin", "@alice:example.com"], ["--admin", "instead of the example's"]),
        (["--letta-url", "http://x/v1"], ["--letta-url", "without /v1"]),
        (["--listen", "29384"], ["--listen", "HOST:PORT"]),
        (["--listen", "127.0.0.1:99999"], ["--listen", "65535"]),
        (["--listen", "0.0.0.0:29384"], ["--appservice-url"]),
        (["--database", "mysql://x"], ["--database", "sqlite:<file>"]),
    ],
)
def test_init_names_the_flag_that_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    assert init(tmp_path, *flags) == Exit.USAGE
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


def test_init_for_containers(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("from-file\n")
    flags = ["--dir", str(tmp_path / "data"), "--admin", "@a:home.test", "--letta-key-file", str(key)]
    flags += ["--listen", "0.0.0.0:29384", "--appservice-url", "http://172.30.0.20:29384"]
    assert main(["init", *ANSWERS, *flags]) == Exit.OK
    loaded = load(tmp_path / "data" / "config.yaml", {})
    assert (loaded.appservice.host, loaded.appservice.url) == ("0.0.0.0", "http://172.30.0.20:29384")
    assert loaded.letta.api_key == "from-file"


def test_init_says_why_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert init(tmp_path / "file") == Exit.USAGE
    assert "cannot write" in capsys.readouterr().err


# -- register


def test_register_makes_the_same_file_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path)
    before = (tmp_path / "registration.yaml").read_text()
    arguments = ["register", "-c", str(tmp_path / "config.yaml")]
    assert main(arguments) == Exit.USAGE
    assert "--force" in capsys.readouterr().err
    (tmp_path / "registration.yaml").unlink()
    assert main(arguments) == Exit.OK
    assert (tmp_path / "registration.yaml").read_text() == before
    assert mode(tmp_path / "registration.yaml") == 0o600


def test_new_tokens_go_into_both_files_and_comments_stay(tmp_path: Path) -> None:
    init(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("homeserver:", "# my own remark\nhomeserver:", 1))
    before = path.read_text().splitlines()
    assert main(["register", "-c", str(path), "--new-tokens", "--force"]) == Exit.OK
    after = path.read_text().splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert [line.split(":")[0].strip() for line in changed] == ["as_token", "hs_token"]
    assert registration.compare(load(path, {}), tmp_path / "registration.yaml") == []
    assert mode(path) == 0o600


def test_new_tokens_replace_the_placeholders_of_the_example(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = config.example().replace("example.com", "home.test").replace("api_key: CHANGE-ME", "api_key: null")
    path.write_text(text)
    path.chmod(0o600)
    assert main(["register", "-c", str(path), "--new-tokens"]) == Exit.OK
    assert load(path, {}).warnings == ()


def test_new_tokens_are_refused_where_they_would_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    init(tmp_path)
    monkeypatch.setenv("LETTA_BRIDGE__APPSERVICE__AS_TOKEN", "a" * 30)
    assert main(["register", "-c", str(tmp_path / "config.yaml"), "--new-tokens", "--force"]) == Exit.USAGE
    assert "LETTA_BRIDGE__APPSERVICE__AS_TOKEN is set" in capsys.readouterr().err


def test_show_prints_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path)
    (tmp_path / "registration.yaml").unlink()
    capsys.readouterr()
    for form in ("yaml", "admin-room", "toml"):
        assert main(["register", "-c", str(tmp_path / "config.yaml"), "--show", form]) == Exit.OK
        assert load(tmp_path / "config.yaml", {}).appservice.as_token in capsys.readouterr().out
    assert not (tmp_path / "registration.yaml").exists()


# -- the command as a whole


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in ((["--version"], __version__), (["--help"], "exit codes"), (["init", "--help"], "--admin")):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert word in capsys.readouterr().out


def test_every_exit_code_is_explained() -> None:
    assert set(MEANING) == set(Exit)
    assert {code.name: int(code) for code in Exit} == {
        "OK": 0, "FAILED": 1, "USAGE": 2, "CONFIG": 10, "REGISTRATION": 11, "DATABASE": 12, "HOMESERVER": 13,
        "AS_TOKEN": 14, "NAMESPACES": 15, "PING": 16, "LETTA": 17, "LETTA_AUTH": 18, "LETTA_AGENTS": 19, "PORT": 20,
        "RUNNING": 21, "SMOKE": 22, "NOT_RUNNING": 23,
    }  # fmt: skip


@pytest.mark.parametrize("command", ["run", "check", "smoke", "register"])
def test_a_missing_configuration_says_how_to_make_one(command: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "letta_bridge", command], cwd=tmp_path, capture_output=True, text=True, timeout=30,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert result.returncode == Exit.CONFIG
    said = result.stdout + result.stderr
    assert "letta-bridge init" in said
    assert "Traceback" not in said


# -- run


def run_with(monkeypatch: pytest.MonkeyPatch, outcome: int | Exception) -> None:
    """Put something else in the place of the bridge itself."""

    async def run(_: config.Config) -> int:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    bridge = types.ModuleType("letta_bridge.bridge")
    bridge.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "letta_bridge.bridge", bridge)
    monkeypatch.setattr("letta_bridge.logs.setup", lambda *_: None)


def test_run_ends_with_the_code_of_the_bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(tmp_path)
    for code in (0, 14):
        run_with(monkeypatch, code)
        assert main(["run", "-c", str(tmp_path / "config.yaml")]) == code


def test_run_says_that_the_port_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    init(tmp_path)
    run_with(monkeypatch, OSError(errno.EADDRINUSE, "in use"))
    assert main(["run", "-c", str(tmp_path / "config.yaml")]) == Exit.PORT
    assert "another program listens on 127.0.0.1:29384" in capsys.readouterr().err


def test_run_warns_of_a_registration_that_does_not_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    init(tmp_path)
    path = tmp_path / "registration.yaml"
    path.write_text(path.read_text().replace("id: letta", "id: other"))
    run_with(monkeypatch, 0)
    assert main(["run", "-c", str(tmp_path / "config.yaml")]) == Exit.OK
    (record,) = caplog.records
    assert record.__dict__["difference"] == "id is 'other', but the configuration says 'letta'"


# -- check, against a homeserver and a Letta that answer as scripted


class Homeserver:
    """The few calls that the check makes, in the words of Synapse or Tuwunel."""

    def __init__(self) -> None:
        self.tuwunel = False
        self.as_token = ""
        self.hs_token = ""
        self.bot = "@lettabridge:home.test"
        self.prefix = "@letta_"
        self.bridge = ""
        self.session = ClientSession()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/_matrix/client/versions", self._versions)
        app.router.add_get("/_matrix/client/v3/account/whoami", self._whoami)
        app.router.add_post("/_matrix/client/v1/appservice/letta/ping", self._ping)
        return app

    async def _versions(self, _: web.Request) -> web.Response:
        return await self._json({"versions": ["v1.11"]})

    async def _json(self, body: dict[str, Any], status: int = 200) -> web.Response:
        return web.json_response(body, status=status)

    async def _whoami(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.as_token}":
            return await self._json({"errcode": "M_UNKNOWN_TOKEN", "error": "Invalid access token passed."}, 401)
        user = request.query.get("user_id", self.bot)
        if user == self.bot or (user.startswith(self.prefix) and self.tuwunel):
            return await self._json({"user_id": user})
        if self.tuwunel:
            return await self._json({"errcode": "M_EXCLUSIVE", "error": "User is not in namespace."}, 400)
        verb = "has not registered" if user.startswith(self.prefix) else "cannot masquerade as"
        return await self._json(
            {"errcode": "M_FORBIDDEN", "error": f"Application service {verb} this user ({user})"}, 403
        )

    async def _ping(self, request: web.Request) -> web.Response:
        if not self.bridge:
            return await self._json({"errcode": "M_URL_NOT_SET", "error": "no url"}, 400)
        headers = {"Authorization": f"Bearer {self.hs_token}"}
        try:
            async with self.session.post(f"{self.bridge}/_matrix/app/v1/ping", headers=headers, json={}) as answer:
                if answer.status == 200:
                    return await self._json({"duration_ms": 7})
                return await self._json({"errcode": "M_BAD_STATUS", "error": f"status {answer.status}"}, 502)
        except OSError as error:
            return await self._json({"errcode": "M_CONNECTION_FAILED", "error": str(error)}, 502)


class Letta:
    """Health and the list of agents."""

    def __init__(self) -> None:
        self.key = ""
        self.version = "0.16.8"
        self.broken = False
        self.names = ["Ada", "Bob"]

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/health/", self._health)
        app.router.add_get("/v1/agents/", self._agents)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.version, "status": "ok"})

    async def _agents(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"detail": "Unauthorized"}, status=401)
        if self.broken:
            return web.json_response({"detail": "boom"}, status=500)
        if request.query.get("after"):
            return web.json_response([])
        ids = [f"agent-00000000-0000-4000-8000-{number:012}" for number in range(len(self.names))]
        return web.json_response(
            [{"id": id, "name": name, "tags": [], "metadata": {}} for id, name in zip(ids, self.names, strict=True)]
        )


class World:
    """A configuration that fits both servers, and the check over it."""

    def __init__(self, folder: Path, homeserver: Homeserver, letta: Letta, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.homeserver, self.letta, self._capsys = folder, homeserver, letta, capsys

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def change(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))

    async def check(self) -> tuple[int, dict[str, dict[str, Any]]]:
        self._capsys.readouterr()
        code = await asyncio.to_thread(main, ["check", "-c", str(self.config), "--json"])
        report = json.loads(self._capsys.readouterr().out)
        assert report["exit_code"] == code
        assert report["ok"] is (code == 0)
        for finding in report["findings"]:
            assert finding["remedy"] or finding["status"] in ("ok", "skip")
        return code, {finding["check"]: finding for finding in report["findings"]}


@pytest.fixture
async def world(tmp_path: Path, aiohttp_server: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    homeserver, letta = Homeserver(), Letta()
    hs, letta_server = await aiohttp_server(homeserver.app()), await aiohttp_server(letta.app())
    port = unused_port()
    arguments = ["--homeserver-url", str(hs.make_url("")), "--letta-url", str(letta_server.make_url(""))]
    arguments += [
        "--domain",
        "home.test",
        "--letta-key",
        "",
        "--admin",
        "@a:home.test",
        "--listen",
        f"127.0.0.1:{port}",
    ]
    assert main(["init", "--dir", str(tmp_path), *arguments]) == Exit.OK
    loaded = load(tmp_path / "config.yaml", {})
    homeserver.as_token, homeserver.hs_token = loaded.appservice.as_token, loaded.appservice.hs_token
    homeserver.bridge = loaded.appservice.url
    yield World(tmp_path, homeserver, letta, capsys)
    await homeserver.session.close()


@pytest.mark.parametrize("tuwunel", [False, True])
async def test_all_is_well(world: World, tuwunel: bool) -> None:
    world.homeserver.tuwunel = tuwunel
    code, found = await world.check()
    assert code == Exit.OK
    assert {name: finding["status"] for name, finding in found.items()} == dict.fromkeys(
        ["config", "registration", "file modes", "port", "database", "homeserver", "as_token", "namespaces", "ping",
         "Letta", "Letta version", "Letta key", "agents"], "ok",
    )  # fmt: skip
    assert "2 in Letta, 2 of them" in found["agents"]["text"]


async def test_text_output_names_what_failed_and_the_remedy(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.homeserver.as_token = "other"
    assert await asyncio.to_thread(main, ["check", "-c", str(world.config)]) == Exit.AS_TOKEN
    out = capsys.readouterr().out
    assert "FAIL  as_token: the homeserver does not know as_token" in out
    assert "→ register registration.yaml" in out
    assert "skip  ping" in out
    assert "1 failed" in out


async def test_trouble_with_the_homeserver_has_its_class(world: World) -> None:
    homeserver = world.homeserver
    homeserver.bot = "@other:home.test"
    assert (await world.check())[0] == Exit.NAMESPACES
    homeserver.bot, homeserver.prefix = "@lettabridge:home.test", "@elsewhere_"
    for homeserver.tuwunel in (False, True):
        assert (await world.check())[0] == Exit.NAMESPACES
    homeserver.prefix = "@"  # wider than asked for
    for homeserver.tuwunel in (False, True):
        code, found = await world.check()
        assert code == Exit.NAMESPACES
        assert "any user" in found["namespaces"]["text"]


async def test_trouble_on_the_way_back_has_its_class(world: World) -> None:
    right = world.homeserver.bridge
    for world.homeserver.bridge in ("", f"http://127.0.0.1:{unused_port()}"):
        assert (await world.check())[0] == Exit.PING
    world.homeserver.bridge, world.homeserver.hs_token = right, "other"
    code, found = await world.check()
    assert code == Exit.REGISTRATION
    assert "hs_token" in found["ping"]["text"]


async def test_a_ping_that_ends_elsewhere_is_no_success(world: World, aiohttp_server: Any) -> None:
    async def ping(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/_matrix/app/v1/ping", ping)
    world.homeserver.bridge = str((await aiohttp_server(app)).make_url(""))
    code, found = await world.check()
    assert code == Exit.PING
    assert "elsewhere" in found["ping"]["text"]


async def test_servers_that_are_not_there(world: World) -> None:
    nobody = f"http://127.0.0.1:{unused_port()}"
    loaded = load(world.config, {})
    world.change(loaded.letta.url, nobody)
    assert (await world.check())[0] == Exit.LETTA
    world.change(loaded.homeserver.url, nobody)
    code, found = await world.check()
    assert code == Exit.HOMESERVER
    assert [found[name]["status"] for name in ("as_token", "namespaces", "ping", "agents")] == ["skip"] * 4


async def test_trouble_with_letta_has_its_class(world: World) -> None:
    world.letta.key = "secret-key"
    code, found = await world.check()
    assert code == Exit.LETTA_AUTH
    assert "asks for a key" in found["Letta key"]["text"]
    world.letta.key, world.letta.broken = "", True
    assert (await world.check())[0] == Exit.LETTA_AGENTS


async def test_an_unknown_letta_and_no_agents_are_warnings(world: World) -> None:
    world.letta.version, world.letta.names = "0.99.0", []
    code, found = await world.check()
    assert code == Exit.OK
    assert found["Letta version"]["status"] == found["agents"]["status"] == "warn"
    assert "summon" in found["agents"]["remedy"]
    with contextlib.closing(sqlite3.connect(next(world.folder.glob("*.db")))) as database, database:
        database.execute(
            "INSERT INTO agent (agent_id, mxid, device_id, name, state, created_at) "
            "VALUES ('agent-1', '@a:b', 'device', 'Ada', 'active', 0)"
        )
    found = (await world.check())[1]
    assert found["agents"]["text"] == "Letta lists none, and the bridge's database knows 1"
    assert "create" not in found["agents"]["remedy"], "that would be in the wrong Letta"
    world.letta.names = ["Ada", "Bob"]
    world.change("names: []", 'names: ["Z*"]')
    assert "leave none" in (await world.check())[1]["agents"]["remedy"]


async def test_a_registration_that_does_not_belong(world: World) -> None:
    main(["register", "-c", str(world.config), "--force"])
    path = world.folder / "registration.yaml"
    path.write_text(path.read_text().replace("lettabridge", "somebody"))
    code, found = await world.check()
    assert code == Exit.REGISTRATION
    assert "sender_localpart is 'somebody'" in found["registration"]["text"]
    path.unlink()
    code, found = await world.check()
    assert (code, found["registration"]["status"]) == (Exit.OK, "warn")


async def test_files_that_others_may_read(world: World) -> None:
    world.config.chmod(0o644)
    (world.folder / "registration.yaml").chmod(0o644)
    code, found = await world.check()
    assert code == Exit.OK
    assert found["config"]["status"] == found["file modes"]["status"] == "warn"


async def test_a_port_that_is_taken(world: World) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", load(world.config, {}).appservice.port))
        taken.listen(1)
        taken.settimeout(0)
        code, found = await world.check()
    assert code == Exit.PORT
    assert "ss -ltnp" in found["port"]["remedy"]
    assert found["ping"]["status"] == "skip"


async def test_a_running_bridge_is_asked_instead(world: World, aiohttp_server: Any) -> None:
    loaded = load(world.config, {})

    async def ping(request: web.Request) -> web.Response:
        right = request.headers.get("Authorization") == f"Bearer {loaded.appservice.hs_token}"
        return web.json_response({} if right else {"errcode": "M_FORBIDDEN"}, status=200 if right else 403)

    async def is_ready(_: web.Request) -> web.Response:
        return web.json_response(ready, status=200 if ready["ready"] else 503)

    ready = {"ready": True}
    app = web.Application()
    app.router.add_post("/_matrix/app/v1/ping", ping)
    app.router.add_get("/_matrix/mau/ready", is_ready)
    await aiohttp_server(app, port=loaded.appservice.port)
    code, found = await world.check()
    assert code == Exit.OK
    assert "running" in found["port"]["text"]
    assert "running bridge" in found["database"]["text"]
    ready["ready"] = False
    assert (await world.check())[1]["port"]["status"] == "warn"
    world.change(loaded.appservice.hs_token, "another-token-another-token-another")
    code, found = await world.check()
    assert "another appservice" in found["port"]["text"]


async def test_a_database_that_is_held_or_newer_or_unreachable(world: World) -> None:
    from letta_bridge.db.database import Database

    loaded = load(world.config, {})
    database = Database(loaded.database.uri, loaded.base)
    await database.open()
    try:
        assert (await world.check())[0] == Exit.RUNNING
        await database.write(lambda conn: conn.execute("UPDATE letta_bridge_version SET version = 999"))
    finally:
        await database.close()
    code, found = await world.check()
    assert code == Exit.DATABASE
    assert "newer" in found["database"]["text"]
    world.change('uri: "sqlite:letta_bridge.db"', 'uri: "sqlite:no/such/folder/x.db"')
    code, found = await world.check()
    assert code == Exit.DATABASE
    assert "folder" in found["database"]["remedy"]


async def test_the_first_failure_decides(world: World) -> None:
    world.letta.broken = True
    world.homeserver.as_token = "other"
    world.change("level: INFO", "level: LOUD")
    code, found = await world.check()
    assert code == Exit.CONFIG
    assert list(found) == ["config"]
    world.change("level: LOUD", "level: INFO")
    assert (await world.check())[0] == Exit.AS_TOKEN
