"""The configuration file: what is taken, what is refused, and in which words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from letta_bridge import config
from letta_bridge.config import Config, ConfigError, load, parse
from letta_bridge.config.load import env_name
from letta_bridge.config.schema import leaves
from letta_bridge.routing.permissions import Level

AS_TOKEN = "as-token-of-the-tests-0123456789"
HS_TOKEN = "hs-token-of-the-tests-0123456789"

MINIMAL = f"""\
homeserver:
  url: http://127.0.0.1:8008/
  domain: home.test
appservice:
  as_token: {AS_TOKEN}
  hs_token: {HS_TOKEN}
letta:
  url: http://127.0.0.1:8283
permissions:
  "@alice:home.test": admin
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    return write


def problems(path: Path, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return [str(problem).replace(str(path), "FILE") for problem in caught.value.problems]


def test_a_minimal_file_gets_every_default(write: Write) -> None:
    loaded = load(write(MINIMAL), {})
    assert loaded.homeserver.url == "http://127.0.0.1:8008"
    assert loaded.appservice.port == 29384
    assert loaded.bot_mxid == "@lettabridge:home.test"
    assert loaded.letta.api_key is None
    assert loaded.letta.poll_interval == 60.0
    assert loaded.database.uri == "sqlite:letta_bridge.db"
    assert loaded.database.replica
    assert loaded.mirror.space_name == "Letta Agents"
    assert loaded.permission_table().level("@alice:home.test") is Level.ADMIN
    assert loaded.permission_table().level("@bob:home.test") is Level.NONE
    assert loaded.limits.messages_per_minute == 20
    assert loaded.warnings == ()


def test_relative_paths_start_from_the_folder_of_the_file(write: Write) -> None:
    path = write(MINIMAL)
    assert load(path, {}).base == path.parent
    assert load(path, {}).path == path


def test_the_environment_wins_over_the_file(write: Write) -> None:
    loaded = load(
        write(MINIMAL),
        {
            "LETTA_BRIDGE__APPSERVICE__PORT": "1234",
            "LETTA_BRIDGE__APPSERVICE__ID": "123",
            "LETTA_BRIDGE__CONVERSATION__STREAM": "false",
            "LETTA_BRIDGE__LETTA__INCLUDE__TAGS": "[a, 'b c']",
            "LETTA_BRIDGE__PERMISSIONS": '{"@bob:home.test": "user"}',
            "LETTA_BRIDGE__MIRROR__ROOM_VERSION": "12",
            "LETTA_BRIDGE_OTHER": "not ours",
            "PATH": "/bin",
        },
    )
    assert loaded.appservice.port == 1234
    assert loaded.appservice.id == "123"
    assert loaded.conversation.stream is False
    assert loaded.letta.include.tags == ("a", "b c")
    assert loaded.mirror.room_version == "12"
    assert dict(loaded.permissions) == {"@bob:home.test": Level.USER}


def test_every_key_has_its_variable(write: Write) -> None:
    names = [env_name(path) for path, _ in leaves()]
    assert len(set(names)) == len(names) > 40
    assert "LETTA_BRIDGE__LETTA__API_KEY" in names


def test_a_whole_configuration_can_come_from_the_environment(write: Write) -> None:
    loaded = load(
        write("{}\n"),
        {
            "LETTA_BRIDGE__HOMESERVER__URL": "http://hs:8008",
            "LETTA_BRIDGE__HOMESERVER__DOMAIN": "home.test",
            "LETTA_BRIDGE__APPSERVICE__AS_TOKEN": AS_TOKEN,
            "LETTA_BRIDGE__APPSERVICE__HS_TOKEN": HS_TOKEN,
            "LETTA_BRIDGE__LETTA__URL": "http://letta:8283",
        },
    )
    assert loaded.letta.url == "http://letta:8283"


def test_secrets_are_read_from_files(write: Write, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("s3cret-key\n")
    loaded = load(write(MINIMAL), {"LETTA_BRIDGE__LETTA__API_KEY_FILE": str(secret)})
    assert loaded.letta.api_key == "s3cret-key"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (
            {"LETTA_BRIDGE__LETTA__API_KEY_FILE": "/does/not/exist"},
            ["letta.api_key", "/does/not/exist", "No such file"],
        ),
        ({"LETTA_BRIDGE__LETTA__API_KEY_FILE": "/x", "LETTA_BRIDGE__LETTA__API_KEY": "y"}, ["both set"]),
        ({"LETTA_BRIDGE__APPSERVICE__PROT": "1"}, ["unknown key", "LETTA_BRIDGE__APPSERVICE__PORT?"]),
        ({"LETTA_BRIDGE__APPSERVICE__PORT_FILE": "/x"}, ["secrets only"]),
        ({"LETTA_BRIDGE__APPSERVICE__PORT": "many"}, ["variable LETTA_BRIDGE__APPSERVICE__PORT", "a port", "'many'"]),
        ({"LETTA_BRIDGE__LETTA__INCLUDE__TAGS": "[a"}, ["letta.include.tags", "YAML"]),
        ({"LETTA_BRIDGE__MIRROR__INVITE": "[@a:b.test]"}, ["mirror.invite", "YAML"]),
    ],
)
def test_wrong_variables_are_named(write: Write, environ: dict[str, str], words: list[str]) -> None:
    text = "\n".join(problems(write(MINIMAL), environ))
    assert all(word in text for word in words), text


def test_every_problem_is_told_at_once_with_its_line(write: Write) -> None:
    text = MINIMAL.replace("domain: home.test", "domian: home.test").replace(
        "letta:\n", "letta:\n  poll_interval: soon\n"
    )
    found = problems(write(text + "loging: {}\n"))
    assert found == [
        "FILE, line 3: homeserver.domian: unknown key; did you mean domain?",
        "FILE, line 12: loging: unknown key; did you mean logging?",
        "FILE: homeserver.domain: missing; expected the homeserver's domain, the part of a Matrix id behind the colon, "
        "such as matrix.org",
        "FILE, line 8: letta.poll_interval: expected a number of seconds greater than 0, found 'soon'",
    ]


def test_a_key_in_the_wrong_section_is_led_home(write: Write) -> None:
    assert "did you mean letta.api_key?" in problems(write(MINIMAL + "api_key: x\n"))[0]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("homeserver.url", "127.0.0.1:8008", "a web address"),
        ("homeserver.url", "ftp://x", "a web address"),
        ("homeserver.url", "http://", "a web address"),
        ("homeserver.url", "http://h:99999", "a web address"),
        ("homeserver.url", "http://h/_matrix", "without /_matrix"),
        ("homeserver.url", "http://u:p@h", "without a user name"),
        ("letta.url", "http://h/v1/", "without /v1"),
        ("homeserver.domain", "https://home.test", "without http://"),
        ("homeserver.domain", "home test", "the homeserver's domain"),
        ("appservice.port", 0, "a port"),
        ("appservice.port", 65536, "a port"),
        ("appservice.port", True, "a port"),
        ("appservice.port", "29384", "a port"),
        ("appservice.port", 1.5, "a port"),
        ("appservice.host", "http://x", "an IP address"),
        ("appservice.id", "a b", "letters, digits"),
        ("appservice.bot_localpart", "Letta", "small letters"),
        ("appservice.puppet_prefix", "", "small letters"),
        ("appservice.as_token", "two words", "one word"),
        ("appservice.body_limit_mib", 16, "64 or more"),
        ("appservice.ping_interval", 0, "greater than 0"),
        ("letta.turn_timeout", float("nan"), "greater than 0"),
        ("letta.turn_timeout", -1, "greater than 0"),
        ("letta.turn_timeout", None, "found nothing"),
        ("letta.include.tags", "a", "a list of tags"),
        ("letta.include.tags", [1], "letta.include.tags, entry 1"),
        ("letta.include", ["a"], "expected keys below it"),
        ("database.uri", "mysql://x/y", "sqlite:<file>"),
        ("database.uri", "sqlite:///x.db", "without '//'"),
        ("database.uri", "sqlite::memory:", "sqlite:<file>"),
        ("database.uri", "postgresql://host", "postgresql://user"),
        ("mirror.invite", ["@alice"], "a full Matrix id"),
        ("mirror.invite", ["@a:b.test", "bob"], "entry 2"),
        ("mirror.room_version", 9, '"11", "12"'),
        ("mirror.avatar_hosts", ["https://cdn.test"], "an IP address or a host name"),
        ("permissions", ["a"], "who: level"),
        ("permissions", {"home.test": "root"}, 'one of "user", "admin", "none"'),
        ("permissions", {"@alice": "user"}, "a full Matrix id"),
        ("permissions", {"https://a": "user"}, "without http://"),
        ("permissions", {1: "user"}, "in quotes"),
        ("ignored_senders", ["telegram_*"], "a pattern over full Matrix ids"),
        ("conversation.stream", "yes", "true or false"),
        ("limits.messages_per_minute", 0, "1 or more"),
        ("limits.reply_part_kib", 64, "1 to 24"),
        ("logging.level", "LOUD", "DEBUG, INFO"),
    ],
)
def test_wrong_values_are_named_with_what_is_expected(path: str, value: object, expected: str) -> None:
    data = plain()
    *sections, name = path.split(".")
    section = data
    for part in sections:
        section = section.setdefault(part, {})
    section[name] = value
    with pytest.raises(ConfigError) as caught:
        parse(data)
    text = str(caught.value)
    assert path in text
    assert expected in text


def plain() -> dict[str, Any]:
    return {
        "homeserver": {"url": "http://h:1", "domain": "home.test"},
        "appservice": {"as_token": AS_TOKEN, "hs_token": HS_TOKEN},
        "letta": {"url": "http://l:1"},
        "permissions": {"*": "user"},
    }


def test_unusual_and_right_values_are_taken() -> None:
    data = plain()
    data["homeserver"]["domain"] = "[::1]:8448"
    data["letta"]["api_key"] = ""
    data["database"] = {"uri": "postgresql://u:p%40ss@db/letta"}
    data["mirror"] = {"invite": ["@a=2f/b:x.test:8448"], "room_version": 11}
    data["permissions"] = {"*": "none", "@a:b.test": "user"}
    parsed = parse(data)
    assert parsed.letta.api_key is None
    assert parsed.mirror.room_version == "11"
    assert "p@ss" in parsed.secrets()
    assert "p%40ss" in parsed.secrets()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"appservice": {"as_token": AS_TOKEN, "hs_token": AS_TOKEN}}, "another token"),
        ({"appservice": {"as_token": AS_TOKEN, "hs_token": HS_TOKEN, "bot_localpart": "letta_bot"}}, "puppet_prefix"),
        ({"database": {"lease_s": 4, "beat_s": 2}}, "half of database.lease_s"),
        ({"metrics": {"enabled": True, "port": 29384}}, "another port than appservice.port"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse(plain() | change)


def test_the_example_is_refused_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.example())
    text = "\n".join(problems(path))
    for key in ("homeserver.domain", "as_token", "hs_token", "letta.api_key", '"@admin:example.com"'):
        assert key in text
    assert "CHANGE-ME" not in text, "values of secrets are never shown"


def test_secrets_are_never_shown(write: Write) -> None:
    text = "\n".join(problems(write(MINIMAL.replace(AS_TOKEN, '"my secret token"'))))
    assert "appservice.as_token" in text
    assert "my secret" not in text
    assert AS_TOKEN not in repr(load(write(MINIMAL), {}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("homeserver: [\n", ["FILE, line 2, column 1", "not valid YAML"]),
        ("a: 1\na: 2\n", ["line 2", "duplicate key", "Keep only one"]),
        ("permissions:\n  *: user\n", ["line 2", "in quotes"]),
        ("permissions:\n  @a:b.test: user\n", ["line 2", "in quotes"]),
        ("a:\n\tb: 1\n", ["line 2", "not tabs"]),
        ("", ["empty"]),
        ("# only a comment\n", ["empty"]),
        ("just words\n", ["key: value"]),
        ("a: !python/object:os.system x\n", ["line 1", "not valid YAML"]),
        ("a: \x01\n", ["cannot be read as YAML"]),
        ("a: " + "[" * 5000 + "\n", ["cannot be read as YAML"]),
    ],
)
def test_unreadable_yaml_is_told_in_plain_words(write: Write, text: str, words: list[str]) -> None:
    found = problems(write(text))
    assert len(found) == 1
    assert all(word in found[0] for word in words), found


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    found = problems(tmp_path / "nowhere" / "config.yaml")[0]
    assert "no such file" in found
    assert f"letta-bridge init --dir {tmp_path / 'nowhere'}" in found


def test_a_folder_and_foreign_bytes_are_told(tmp_path: Path) -> None:
    assert "folder" in problems(tmp_path)[0]
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: \xff\xfe\n")
    assert "UTF-8" in problems(path)[0]


def test_an_open_file_with_secrets_is_warned_about(write: Write) -> None:
    path = write(MINIMAL)
    path.chmod(0o644)
    assert any(f"chmod 600 {path}" in warning for warning in load(path, {}).warnings)
    path.write_text(MINIMAL.replace(f"  as_token: {AS_TOKEN}\n  hs_token: {HS_TOKEN}\n", "  port: 1\n"))
    environ = {"LETTA_BRIDGE__APPSERVICE__AS_TOKEN": AS_TOKEN, "LETTA_BRIDGE__APPSERVICE__HS_TOKEN": HS_TOKEN}
    assert not any("chmod" in warning for warning in load(path, environ).warnings)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"permissions": {}}, "nobody"),
        ({"permissions": {"*": "none"}}, "nobody"),
        ({"ignored_senders": ["@*:*"]}, "full Matrix id"),
        ({"appservice": {"as_token": "short", "hs_token": HS_TOKEN}}, "short"),
        ({"appservice": {"as_token": AS_TOKEN, "hs_token": HS_TOKEN, "port": 1234}}, "port 29384"),
        ({"appservice": {"as_token": AS_TOKEN, "hs_token": HS_TOKEN, "url": "http://10.0.0.2:29384"}}, "loopback"),
        ({"appservice": {"as_token": AS_TOKEN, "hs_token": HS_TOKEN, "ping_interval": 90}}, "60 seconds"),
    ],
)
def test_what_is_probably_not_meant_is_warned_about(change: dict[str, Any], word: str) -> None:
    assert any(word in warning for warning in parse(plain() | change).warnings)


def test_what_is_rendered_is_read_back(write: Write) -> None:
    values = {
        ("homeserver", "url"): "http://h:1",
        ("homeserver", "domain"): "home.test",
        ("appservice", "as_token"): "0123456789012345678901234567890",
        ("appservice", "hs_token"): HS_TOKEN,
        ("letta", "url"): "http://l:1",
        ("letta", "api_key"): "null",
        ("mirror", "space_name"): 'Ä "quoted" #name: yes',
        ("mirror", "invite"): ["@a:b.test"],
        ("permissions",): {"*": Level.USER, "@a:b.test": Level.ADMIN},
    }
    loaded = load(write(config.render(values)), {})
    assert loaded.appservice.as_token == values["appservice", "as_token"]
    assert loaded.letta.api_key == "null"
    assert loaded.mirror.space_name == values["mirror", "space_name"]
    assert dict(loaded.permissions) == values["permissions",]
    assert loaded.ignored_senders == config.IGNORED_SENDERS
    assert loaded.conversation == Config.__dataclass_fields__["conversation"].default_factory()  # type: ignore[misc]


def test_agents_are_chosen_by_tag_name_and_id() -> None:
    data = plain()
    data["letta"] |= {"include": {"tags": ["matrix"], "names": ["support-*"], "ids": ["agent-1"]}}
    data["letta"] |= {"exclude": {"names": ["*-test"]}}
    letta = parse(data).letta
    assert letta.wants("agent-1", "x", ())
    assert letta.wants("agent-2", "support-de", ())
    assert letta.wants("agent-2", "x", ("a", "matrix"))
    assert not letta.wants("agent-2", "x", ("a",))
    assert not letta.wants("agent-1", "x-test", ())
    assert parse(plain()).letta.wants("agent-9", "", ())
