"""``letta-bridge smoke`` against the fake homeserver in both flavours: what it says, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from ruamel.yaml import YAML

from letta_bridge.cli import main
from letta_bridge.cli.checkup import Status
from letta_bridge.cli.exitcodes import Exit
from letta_bridge.cli.smoke_account import software
from letta_bridge.cli.smoke_report import Line, Report
from letta_bridge.config import load
from letta_bridge.testing.fake_homeserver import FakeHomeserver
from letta_bridge.testing.fake_homeserver.flavour import FlavourName

from .world import World, free_port, settled, until

DOMAIN = "home.test"
BOT = f"@lettabridge:{DOMAIN}"
ROOT = Path(__file__).parents[2]
FLAVOURS: tuple[FlavourName, ...] = ("synapse", "tuwunel")
both = pytest.mark.parametrize("flavour", FLAVOURS)


@dataclass
class Outcome:
    """What one smoke test said with ``--json``."""

    code: int
    report: dict[str, Any]

    def __getitem__(self, step: str) -> dict[str, Any]:
        return next(line for line in self.report["steps"] if line["step"] == step)

    def with_status(self, status: str) -> list[str]:
        return [line["step"] for line in self.report["steps"] if line["status"] == status]


@dataclass
class Stage:
    """A configuration by ``init``, a fake homeserver that knows it, and nobody on the bridge's port."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    port: int = field(default_factory=free_port)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    registration: dict[str, Any] = field(default_factory=dict)
    hs: FakeHomeserver = field(init=False)

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def init(self) -> None:
        options = {
            "--dir": self.folder, "--homeserver-url": "http://127.0.0.1:9", "--domain": DOMAIN, "--letta-key": "",
            "--letta-url": "http://127.0.0.1:9", "--admin": f"@a:{DOMAIN}", "--listen": f"127.0.0.1:{self.port}",
        }  # fmt: skip
        assert main(["init", *(str(word) for option in options.items() for word in option)]) == Exit.OK
        self.registration = YAML(typ="safe").load((self.folder / "registration.yaml").read_text())

    async def homeserver(self, flavour: FlavourName = "synapse") -> FakeHomeserver:
        self.hs = FakeHomeserver(self.registration, flavour=flavour, domain=DOMAIN, backoff_scale=0.01)
        await self._stack.enter_async_context(self.hs)
        self.monkeypatch.setenv("LETTA_BRIDGE__HOMESERVER__URL", self.hs.url)
        return self.hs

    async def close(self) -> None:
        await self._stack.aclose()

    async def smoke(self, *more: str) -> Outcome:
        return await smoke(self.config, self.capsys, *more)

    def is_clean(self) -> None:
        """No room of the test has anybody in it, no alias, no device, no name is left."""
        assert self.hs.hs.aliases == {}
        for room in self.hs.hs.rooms.values():
            assert room.members() == room.members("invite") == []
            assert {BOT, *(user for user in self.testers() if room.membership(user))} <= room.forgotten
            assert "over, can be deleted" in room.content("m.room.name")["name"]
        for user in self.testers():
            account = self.hs.hs.accounts.users[user]
            assert account.devices == {}
            assert "displayname" not in account.profile

    def testers(self) -> list[str]:
        return [user for user in self.hs.hs.accounts.users if user.startswith("@letta_smoke_")]


async def smoke(config: Path, capsys: pytest.CaptureFixture[str], *more: str) -> Outcome:
    capsys.readouterr()
    code = await asyncio.to_thread(main, ["smoke", "-c", str(config), "--json", *more])
    said = capsys.readouterr()
    assert said.err == ""
    loaded = await asyncio.to_thread(load, config)
    for secret in loaded.secrets():
        assert secret not in said.out
    report = json.loads(said.out)
    assert report["exit_code"] == code
    assert report["ok"] is (code == Exit.OK)
    assert report["seconds"] < 60
    for line in report["steps"]:
        assert line["remedy"] or line["status"] != "fail", line
    return Outcome(code, report)


@pytest.fixture
async def stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, capsys, monkeypatch)
    await asyncio.to_thread(made.init)
    yield made
    await made.close()


# -- all is well


@both
@pytest.mark.parametrize("version", ["11", "12"])
async def test_everything_works_and_nothing_is_left(stage: Stage, flavour: FlavourName, version: str) -> None:
    stage.monkeypatch.setenv("LETTA_BRIDGE__MIRROR__ROOM_VERSION", version)
    await stage.homeserver(flavour)
    outcome = await stage.smoke()
    assert outcome.code == Exit.OK, outcome.report
    assert outcome.with_status("skip") == []
    assert outcome.report["mode"] == "in the place of the bridge"
    assert version in outcome["room"]["detail"]
    assert "ms after it was sent" in outcome["receive"]["detail"]
    stage.is_clean()
    assert stage.hs.pusher.idle, "the bridge will not be told of it"
    unlike = [seen for seen in outcome.report["observed"] if seen["like"] not in (flavour, "both", "")]
    assert unlike == []
    decided = {seen["topic"]: seen["seen"] for seen in outcome.report["observed"] if seen["like"] == flavour}
    assert len(decided) >= 15
    tokens = "in the header" if flavour == "synapse" else "in the header and in the address"
    assert decided["the hs_token stands"] == tokens
    (tester,) = stage.testers()
    assert any(tester in left for left in outcome.report["left_behind"])


@both
async def test_text_for_people(stage: Stage, flavour: FlavourName) -> None:
    await stage.homeserver(flavour)
    stage.capsys.readouterr()
    assert await asyncio.to_thread(main, ["smoke", "-c", str(stage.config)]) == Exit.OK
    out = stage.capsys.readouterr().out
    assert "\nok    receive  (" in out
    assert "\nok    clean up  (alias deleted; room renamed;" in out
    assert "What this homeserver does:" in out
    does = {"synapse": "numbers that count up  [as Synapse]", "tuwunel": "hashes  [as Tuwunel]"}
    assert f"transaction ids are: {does[flavour]}" in out
    stays = {"synapse": "deactivated", "tuwunel": "does not let the bridge deactivate it"}
    assert stays[flavour] in out.partition("What stays on the homeserver:")[2]
    assert "Everything that was tried works" in out


async def test_devices_that_are_refused_are_no_failure(stage: Stage) -> None:
    del stage.registration["io.element.msc4190"]
    await stage.homeserver()
    outcome = await stage.smoke()
    assert outcome.code == Exit.OK
    assert outcome.with_status("skip") == ["device"]
    assert "io.element.msc4190: true" in outcome["device"]["remedy"]
    assert outcome["send"]["detail"] == "without a device"


# -- trouble


async def test_a_homeserver_that_is_not_there(stage: Stage) -> None:
    outcome = await stage.smoke()
    assert outcome.code == Exit.HOMESERVER
    assert outcome.with_status("fail") == ["homeserver"]
    assert "curl" in outcome["homeserver"]["remedy"]
    assert outcome["room"]["status"] == outcome["receive"]["status"] == "skip"


@both
async def test_another_as_token(stage: Stage, flavour: FlavourName) -> None:
    stage.registration["as_token"] = "another-token"
    await stage.homeserver(flavour)
    outcome = await stage.smoke()
    assert outcome.code == Exit.AS_TOKEN
    assert outcome.with_status("fail") == ["as_token"]
    assert "register registration.yaml" in outcome["as_token"]["remedy"]
    assert stage.hs.count("/createRoom") == stage.hs.count("/register") == 0


@both
async def test_another_hs_token(stage: Stage, flavour: FlavourName) -> None:
    stage.registration["hs_token"] = "another-token"
    await stage.homeserver(flavour)
    outcome = await stage.smoke()
    assert outcome.code == Exit.REGISTRATION
    assert outcome.with_status("fail") == ["ping"]
    assert "another hs_token" in outcome["ping"]["detail"]
    assert outcome["receive"]["detail"] == "because of: ping"
    assert outcome["redaction"]["status"] == "ok", "the other direction works"
    stage.is_clean()


async def test_a_bridge_that_cannot_be_reached(stage: Stage) -> None:
    stage.registration["url"] = f"http://127.0.0.1:{free_port()}"
    await stage.homeserver()
    outcome = await stage.smoke()
    assert outcome.code == Exit.PING
    assert "fixed IP address" in outcome["ping"]["remedy"]
    stage.is_clean()


@both
async def test_other_namespaces(stage: Stage, flavour: FlavourName) -> None:
    stage.registration["namespaces"]["users"][0]["regex"] = f"^@elsewhere_.*:{DOMAIN}$"
    await stage.homeserver(flavour)
    outcome = await stage.smoke()
    assert outcome.code == Exit.NAMESPACES
    assert outcome["room"]["status"] == "skip"
    assert stage.testers() == []


@both
async def test_deliveries_that_never_come(stage: Stage, flavour: FlavourName) -> None:
    hs = await stage.homeserver(flavour)
    hs.hold_push()
    outcome = await stage.smoke("--wait", "0.5")
    assert outcome.code == Exit.PING
    assert outcome.with_status("fail") == ["receive"]
    assert "did not come back within 0.5 seconds" in outcome["receive"]["detail"]
    assert "its arrival was not waited for" in outcome["edit"]["detail"]
    stage.is_clean()
    hs.release_push()  # what the first test left undelivered does not get into the second one's way
    outcome = await stage.smoke()
    assert outcome.code == Exit.OK, outcome.report
    assert hs.pusher.idle


@pytest.mark.parametrize(("errcode", "code"), [("M_FORBIDDEN", Exit.SMOKE), ("M_EXCLUSIVE", Exit.NAMESPACES)])
async def test_users_that_may_not_be_registered(stage: Stage, errcode: str, code: Exit) -> None:
    hs = await stage.homeserver()
    hs.hs.accounts.register_ghost({"username": "lettabridge", "inhibit_login": True})
    hs.fail_next("/register", status=403, errcode=errcode, times=None)
    outcome = await stage.smoke()
    assert outcome.code == code
    assert outcome.with_status("fail") == ["bot", "test user"]
    assert "clean up" not in [line["step"] for line in outcome.report["steps"]], "there is nothing"


async def test_rooms_that_may_not_be_made(stage: Stage) -> None:
    hs = await stage.homeserver()
    hs.fail_next("/createRoom", status=403, errcode="M_FORBIDDEN")
    outcome = await stage.smoke()
    assert outcome.code == Exit.SMOKE
    assert outcome.with_status("fail") == ["room"]
    assert "refuses this (403 M_FORBIDDEN" in outcome["room"]["detail"]
    assert outcome["upload"]["status"] == "ok"
    assert hs.hs.rooms == {}
    stage.is_clean()


async def test_a_room_whose_creation_was_not_confirmed_is_found_and_left(stage: Stage) -> None:
    hs = await stage.homeserver()
    hs.fail_next("/createRoom", after_processing="disconnect")
    outcome = await stage.smoke()
    assert outcome.code == Exit.HOMESERVER
    assert len(hs.hs.rooms) == 1
    stage.is_clean()


async def test_what_cannot_be_taken_away_is_named(stage: Stage) -> None:
    hs = await stage.homeserver()
    hs.fail_next("/directory/room", method="DELETE", status=500)
    outcome = await stage.smoke()
    assert outcome.code == Exit.SMOKE
    assert "NOT: alias deleted (500 M_UNKNOWN)" in outcome["clean up"]["detail"]
    assert "room left by the bot" in outcome["clean up"]["detail"]
    assert next(iter(hs.hs.aliases)) in outcome["clean up"]["remedy"]


async def test_a_port_that_somebody_else_has(stage: Stage, aiohttp_server: Any) -> None:
    await stage.homeserver()
    await aiohttp_server(web.Application(), port=stage.port)
    outcome = await stage.smoke()
    assert outcome.code == Exit.PORT
    assert outcome.with_status("fail") == ["port"]
    assert outcome.with_status("skip") == ["ping", "receive"]
    stage.is_clean()


@both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_in_the_middle_cleans_up(stage: Stage, flavour: FlavourName, number: signal.Signals) -> None:
    hs = await stage.homeserver(flavour)
    hs.delay("/send/m.room.message/", 20)
    command = [sys.executable, "-m", "letta_bridge", "smoke", "-c", str(stage.config), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )
    await until(lambda: hs.count("/send/m.room.message/"), 30, why="it never came to sending")
    process.send_signal(number)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, err) == (130, b"")
    report = json.loads(out)
    assert report["interrupted"] is True
    assert report["steps"][-1]["step"] == "clean up"
    assert report["steps"][-1]["status"] == "ok"
    stage.is_clean()


# -- beside and before the bridge


def config_of(world: World) -> Path:
    """The configuration of the world's bridge as a file."""
    config = world.config()
    path = world.folder / "config.yaml"
    plain = {
        "homeserver": {"url": config.homeserver.url, "domain": config.homeserver.domain},
        "appservice": {
            "url": config.appservice.url,
            "port": config.appservice.port,
            "as_token": config.appservice.as_token,
            "hs_token": config.appservice.hs_token,
        },
        "letta": {"url": config.letta.url},
        "permissions": {config.homeserver.domain: "user"},
    }
    path.write_text(json.dumps(plain))  # JSON is YAML
    path.chmod(0o600)
    return path


async def test_beside_the_running_bridge(sqlite_world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world = sqlite_world
    ada = world.letta.add_agent("Ada")
    alice = await world.hs.person("alice")
    bridge = await world.start()
    await world.mirrored()
    outcome = await smoke(config_of(world), capsys)
    assert outcome.code == Exit.OK, outcome.report
    assert outcome.report["mode"] == "beside the running bridge"
    assert outcome.with_status("skip") == ["receive"]
    assert "stop the bridge" in outcome["receive"]["remedy"]
    assert "running bridge that answered" in outcome["ping"]["detail"]
    await settled(world)
    assert await bridge.db.fetchval("SELECT COUNT(*) FROM inbox WHERE state = 'dead'") == 0
    assert [row.agent_id for row in await bridge.agents.all()] == [ada]
    room = await world.dm(alice, ada, text="Hello")
    await alice.wait_message(room, sender=world.puppet(ada))


async def test_the_bridge_hears_of_a_smoke_test_when_it_is_over(
    sqlite_world: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its own user has joined and left a room by then: nothing to learn there, and nothing to be alarmed about."""
    world = sqlite_world
    bridge = await world.start()
    config = config_of(world)
    await settled(world)
    world.hs.hold_push()
    assert (await smoke(config, capsys)).code == Exit.OK
    world.hs.release_push()
    await settled(world)
    assert await bridge.db.fetchval("SELECT COUNT(*) FROM inbox WHERE state = 'dead'") == 0
    assert [record.message for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


async def test_messages_for_the_bridge_are_left_for_it(sqlite_world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world = sqlite_world
    ada = world.letta.add_agent("Ada")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, ada, text="Hello")
    await alice.wait_message(room, sender=world.puppet(ada))
    await settled(world)
    await world.stop()
    await alice.send(room, "said while nobody was there")
    outcome = await smoke(config_of(world), capsys, "--wait", "1")
    assert outcome.code == Exit.OK, outcome.report
    assert outcome.with_status("skip") == ["receive"]
    assert "left to the bridge" in outcome["receive"]["detail"]
    await world.start()
    await alice.wait_message(room, sender=world.puppet(ada), text=lambda text: "said while nobody" in text)
    await settled(world)


# -- small parts


def test_no_secret_gets_through_the_report() -> None:
    shown: list[str] = []
    report = Report({"the-secret-token"}, shown.append)
    report.add(Line("send", Status.FAIL, "it said the-secret-token", 1, "not the-secret-token", Exit.SMOKE))
    report.observe("topic", "the-secret-token")
    report.left_behind.append("the-secret-token")
    report.conclude(1.0)
    assert len(shown) == 5
    assert "the-secret-token" not in "".join(shown) + report.as_json(1.0, 22)


def test_what_nobody_knows_is_to_be_reported() -> None:
    shown: list[str] = []
    report = Report((), shown.append)
    report.observe("one", "a", synapse="a", tuwunel="a")
    report.observe("two", "c", synapse="a", tuwunel="b")
    report.conclude(1.0)
    assert [observation.like for observation in report.observations] == ["both", "neither"]
    assert "as neither Synapse nor Tuwunel" in "".join(shown)
    assert "please report it" in shown[-1]


@pytest.mark.parametrize(
    ("path", "body", "header", "name"),
    [
        ("/_matrix/federation/v1/version", {"server": {"name": "Other", "version": "2"}}, "", "Other 2"),
        ("/_tuwunel/server_version", {"name": "Tuwunel", "version": "1.9.0"}, "", "Tuwunel 1.9.0"),
        ("/_matrix/client/versions", {}, "Synapse/1.163.2 (b=main)", "Synapse 1.163.2"),
        ("/_matrix/client/versions", {}, "nginx", ""),
    ],
)
async def test_how_a_homeserver_tells_its_name(
    aiohttp_server: Any, aiohttp_client: Any, path: str, body: dict[str, Any], header: str, name: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body, headers={"Server": header} if header else {})

    app = web.Application()
    app.router.add_get(path, answer)
    server = await aiohttp_server(app)
    client = await aiohttp_client(server)
    assert await software(client.session, str(server.make_url("")).rstrip("/")) == name
