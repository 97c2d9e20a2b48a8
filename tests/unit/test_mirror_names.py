"""What an agent is called in Matrix: ids that never change, names that cannot deceive or ring."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letta_bridge.ids import MXID, AgentID
from letta_bridge.mirror.names import LONGEST_NAME, Names, shown_name, shown_topic

AGENT = AgentID("agent-0a1b2c3d-1111-2222-3333-444455556666")
NAMES = Names("example.org", "letta_", MXID("@lettabridge:example.org"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Ada", "Ada"),
        ("  two   words\n", "two words"),
        ("", "Agent 0a1b2c3d"),
        (" \t\u200b\u2800", "Agent 0a1b2c3d"),
        ("\u0301\u200d", "Agent 0a1b2c3d"),
        ("a\x00b\x1bc", "a\ufffdb c"),
        ("evil\u202egnp.exe", "evilgnp.exe"),
        ("half \ud83d", "half ?"),
        ("👩\u200d🔬 لیلا", "👩\u200d🔬 لیلا"),
        ("🦊", "🦊"),
        ("@room", "\uff20room"),
        ("hey @ROOM!", "hey \uff20ROOM!"),
        ("@\u200broom", "\uff20room"),
        ("@roomba@home", "\uff20roomba@home"),
        ("ada@example.org", "ada@example.org"),
        ("x" * 255, "x" * 255),
        ("x" * 300, "x" * 254 + "…"),
    ],
)
def test_shown_name(name: str, shown: str) -> None:
    assert shown_name(name, AGENT) == shown


def test_an_id_that_is_no_uuid_names_a_nameless_agent_too() -> None:
    assert shown_name("", AgentID("agent-of-change-x")) == "Agent agent-of"


@given(st.text(alphabet=st.characters(), max_size=400))
def test_no_name_breaks_the_rules(name: str) -> None:
    shown = shown_name(name, AGENT)
    assert 0 < len(shown) <= LONGEST_NAME
    assert shown == shown.strip()
    assert "@room" not in shown.lower()
    assert not any(unicodedata.category(char) == "Cc" or char in "\u202e\u2066\u200b\ufeff" for char in shown)
    shown.encode()
    assert shown_name(shown, AGENT) == shown


def test_topic_is_one_short_line() -> None:
    assert shown_topic("Helps\nwith \x07 things") == "Helps with things"
    assert shown_topic(" \n ") == ""
    assert len(shown_topic("long " * 1000)) == 1000


def test_ids_of_an_agent() -> None:
    mxid = NAMES.mxid(AGENT)
    assert mxid == "@letta_0a1b2c3d-1111-2222-3333-444455556666:example.org"
    assert NAMES.alias(NAMES.localpart(AGENT)) == "#letta_0a1b2c3d-1111-2222-3333-444455556666:example.org"
    assert NAMES.alias(NAMES.space_localpart) == "#letta_space:example.org"
    assert NAMES.is_puppet(mxid) and NAMES.is_ours(mxid)


@pytest.mark.parametrize("agent_id", ["space", "agent-space", "agent-SPACE"])
def test_no_agent_takes_the_alias_of_the_space(agent_id: str) -> None:
    assert NAMES.localpart(AgentID(agent_id)) != NAMES.space_localpart


def test_who_is_ours() -> None:
    assert NAMES.is_ours(NAMES.bot) and not NAMES.is_puppet(NAMES.bot)
    for other in ("@alice:example.org", "@letta_x:evil.example", "@letta_x:example.org.evil", "@lett:example.org"):
        assert not NAMES.is_ours(other)
