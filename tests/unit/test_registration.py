"""The registration file: what it claims, and how it is compared with the configuration."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from letta_bridge import registration
from letta_bridge.config import Config, ConfigError, parse
from letta_bridge.ids import AgentID, puppet_suffix

AS_TOKEN = "as-token-of-the-tests-0123456789"
HS_TOKEN = "hs-token-of-the-tests-0123456789"


def make(domain: str = "my.home.test", **appservice: Any) -> Config:
    return parse(
        {
            "homeserver": {"url": "http://h:1", "domain": domain},
            "appservice": {"as_token": AS_TOKEN, "hs_token": HS_TOKEN} | appservice,
            "letta": {"url": "http://l:1"},
            "permissions": {"*": "user"},
        }
    )


def users(config: Config) -> list[str]:
    return [entry["regex"] for entry in registration.build(config)["namespaces"]["users"]]


@pytest.mark.parametrize("agent", ["agent-f79d410f-7c9e-41e1-ad97-3e68648e55ee", "Ünusual/agent", "x" * 400])
def test_every_puppet_and_the_bot_are_claimed(agent: str) -> None:
    puppet = f"@letta_{puppet_suffix(AgentID(agent))}:my.home.test"
    assert any(re.search(regex, puppet) for regex in users(make()))
    assert any(re.search(regex, "@lettabridge:my.home.test") for regex in users(make()))
    aliases = registration.build(make())["namespaces"]["aliases"]
    assert re.search(aliases[0]["regex"], "#letta_space:my.home.test")


@pytest.mark.parametrize(
    "stranger",
    [
        "@alice:my.home.test",
        "@lettabridge2:my.home.test",
        "@xletta_1:my.home.test",
        "@letta_1:my.home.test.evil.test",
        "@letta_1:myxhome.test",
        "@lettabridge:other.test",
    ],
)
def test_nobody_else_is_claimed(stranger: str) -> None:
    # search, not match: Tuwunel's patterns are not anchored by themselves
    assert not any(re.search(regex, stranger) for regex in users(make()))


def test_namespaces_are_exclusive_anchored_and_plain() -> None:
    namespaces = registration.build(make(domain="[::1]:8448", puppet_prefix="a.b+"))["namespaces"]
    assert namespaces["rooms"] == []
    for entry in namespaces["users"] + namespaces["aliases"]:
        assert entry["exclusive"] is True
        assert entry["regex"].startswith("^")
        assert entry["regex"].endswith("$")
        assert not re.search(r"\(\?|\\[0-9a-zA-Z]", entry["regex"]), "beyond what Rust's regex takes"
    assert re.search(namespaces["users"][0]["regex"], "@a.b+1:[::1]:8448")
    assert not re.search(namespaces["users"][0]["regex"], "@aXbb1:[::1]:8448")


def test_what_homeservers_need_is_there() -> None:
    plain = registration.build(make())
    assert plain["sender_localpart"] == "lettabridge"
    assert plain["rate_limited"] is False
    assert plain["url"] == "http://127.0.0.1:29384"
    for key in ("receive_ephemeral", "de.sorunome.msc2409.push_ephemeral", "org.matrix.msc3202", "io.element.msc4190"):
        assert plain[key] is True


def test_the_file_is_commented_and_says_the_same() -> None:
    text = registration.dump(registration.build(make()))
    assert text.startswith("# Registration of letta-bridge")
    assert YAML(typ="safe", pure=True).load(text) == registration.build(make())
    assert "#" not in registration.dump(registration.build(make()), comments=False).replace("^#", "")


def test_toml_and_admin_room_message_say_the_same() -> None:
    config = make()
    plain = registration.build(config)
    section = tomllib.loads(registration.tuwunel_toml(config))["global"]["appservice"]["letta"]
    for key in ("url", "as_token", "hs_token", "sender_localpart", "rate_limited"):
        assert section[key] == plain[key]
    assert section["users"] == plain["namespaces"]["users"]
    assert section["aliases"] == plain["namespaces"]["aliases"]
    assert section["device_management"] and section["msc3202_transaction_extensions"]
    command, fence, *body, end = registration.admin_room_message(config).strip().splitlines()
    assert (command, fence, end) == ("!admin appservices register", "```yaml", "```")
    assert YAML(typ="safe", pure=True).load("\n".join(body)) == plain


def write(path: Path, **changes: Any) -> Path:
    path.write_text(registration.dump(registration.build(make()) | changes))
    return path


def test_a_file_made_from_the_configuration_agrees(tmp_path: Path) -> None:
    assert registration.compare(make(), write(tmp_path / "r.yaml")) == []
    assert registration.compare(make(), write(tmp_path / "r.yaml", **{"more.of.it": 1})) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"as_token": "other"}, "as_token is not the one of the configuration"),
        ({"hs_token": ""}, "hs_token is missing"),
        ({"url": "http://x"}, "url is 'http://x', but the configuration says 'http://127.0.0.1:29384'"),
        ({"rate_limited": True}, "rate_limited is true, but the configuration says false"),
        ({"io.element.msc4190": None}, "io.element.msc4190 is missing; it should be true"),
        ({"namespaces": None}, "namespaces is missing"),
        ({"namespaces": {"users": [], "aliases": []}}, "namespaces.users does not have the exclusive entry ^@letta_"),
    ],
)
def test_differences_are_told_without_secrets(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    (found,) = registration.compare(make(), write(tmp_path / "r.yaml", **changes))
    assert sentence in found
    assert AS_TOKEN not in found


def test_an_unreadable_file_is_a_plain_error(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("id: [")
    with pytest.raises(ConfigError, match="line 1"):
        registration.compare(make(), path)


def test_tokens_are_long_and_different() -> None:
    tokens = {registration.new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{40,}", token) for token in tokens)
