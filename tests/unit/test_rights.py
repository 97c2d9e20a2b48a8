"""What is given on agents and rooms, on top of the configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letta_bridge.db.access import Access
from letta_bridge.ids import MXID, AgentID, RoomID
from letta_bridge.routing import rights
from letta_bridge.routing.permissions import Level, Permissions

HOME = "home.test"
AGENT, OTHER, ROOM = AgentID("agent-a"), AgentID("agent-b"), RoomID("!room")
TABLE = Permissions({HOME: Level.USER, f"@boss:{HOME}": Level.ADMIN, f"@mallory:{HOME}": Level.NONE}, ["@*bot:*"])
ALICE, EVE, BOSS, MALLORY = f"@alice:{HOME}", "@eve:evil.test", f"@boss:{HOME}", f"@mallory:{HOME}"
HELPERBOT = f"@helperbot:{HOME}"


def on(subject: str, who: str, level: str) -> Access:
    name = {"agent": rights.of_agent(AGENT), "other": rights.of_agent(OTHER), "room": rights.of_room(ROOM)}[subject]
    return Access(name, who, level, BOSS)


def talk(who: str, *given_: Access, owner: str = "") -> Level:
    return rights.talk(TABLE.grant(who), given_, rights.Owned(AGENT, owner), ROOM).level


@pytest.mark.parametrize(
    ("who", "given_", "owner", "level"),
    [
        (ALICE, [], "", Level.USER),
        (EVE, [], "", Level.NONE),
        (EVE, [on("agent", EVE, "user")], "", Level.USER),
        (EVE, [on("agent", "evil.test", "user")], "", Level.USER),
        (EVE, [on("agent", "*", "user")], "", Level.USER),
        (EVE, [on("room", EVE, "user")], "", Level.USER),
        (EVE, [on("other", EVE, "user")], "", Level.NONE),
        (ALICE, [on("agent", "*", "none")], "", Level.NONE),
        (ALICE, [on("agent", "*", "none"), on("agent", ALICE, "user")], "", Level.USER),
        (ALICE, [on("agent", HOME, "none"), on("agent", "*", "user")], "", Level.NONE),
        (ALICE, [on("room", ALICE, "none")], "", Level.NONE),
        (ALICE, [on("room", ALICE, "none"), on("agent", ALICE, "admin")], "", Level.NONE),
        (ALICE, [on("room", ALICE, "none")], ALICE, Level.ADMIN),
        (EVE, [], EVE, Level.ADMIN),
        (BOSS, [on("agent", BOSS, "none"), on("room", "*", "none")], "", Level.ADMIN),
        (MALLORY, [on("agent", MALLORY, "user"), on("room", MALLORY, "admin")], MALLORY, Level.NONE),
        (HELPERBOT, [on("agent", "*", "user"), on("room", HOME, "user")], "", Level.NONE),
        (HELPERBOT, [on("agent", HELPERBOT, "user")], "", Level.USER),
        ("nobody", [on("agent", "*", "user")], "", Level.NONE),
    ],
)
def test_who_may_talk(who: str, given_: list[Access], owner: str, level: Level) -> None:
    assert talk(who, *given_, owner=owner) is level


def test_what_was_given_in_a_room_does_not_bring_agents_into_it() -> None:
    whole, agent = TABLE.grant(EVE), rights.Owned(AGENT)
    assert rights.bring(whole, [on("room", EVE, "user")], agent, ROOM).level is Level.NONE
    assert rights.bring(whole, [on("room", EVE, "admin")], agent, ROOM).level is Level.ADMIN
    assert rights.bring(whole, [on("agent", EVE, "user")], agent, ROOM).level is Level.USER
    shut_out = rights.bring(TABLE.grant(ALICE), [on("room", ALICE, "none")], agent, ROOM)
    assert shut_out.level is Level.NONE


def test_the_explanation_names_what_decided() -> None:
    grant = rights.talk(TABLE.grant(EVE), [on("agent", "evil.test", "user")], rights.Owned(AGENT), ROOM)
    assert 'level "user"' in str(grant) and '"evil.test" on agent:agent-a' in str(grant)
    assert "its owner" in str(rights.talk(TABLE.grant(EVE), [], rights.Owned(AGENT, EVE), ROOM))


def test_only_what_differs_is_listed() -> None:
    agents = [rights.Owned(AGENT), rights.Owned(OTHER)]
    assert rights.talks(TABLE.grant(ALICE), [], agents, ROOM) == {}
    found = rights.talks(TABLE.grant(ALICE), [on("agent", ALICE, "none")], agents, ROOM)
    assert [*found] == [AGENT]


_WHO = st.sampled_from([ALICE, EVE, BOSS, MALLORY, HELPERBOT, HOME, "evil.test", "*"])
_GIVEN = st.lists(
    st.builds(on, st.sampled_from(["agent", "other", "room"]), _WHO, st.sampled_from(["none", "user", "admin"])),
    max_size=6,
)


@given(st.sampled_from([ALICE, EVE, BOSS, MALLORY, HELPERBOT]), _GIVEN, st.sampled_from(["", ALICE, EVE]))
def test_the_configuration_has_the_last_word_and_nothing_given_elsewhere_counts(
    who: str, given_: list[Access], owner: str
) -> None:
    level = talk(who, *given_, owner=owner)
    if who == BOSS:
        assert level is Level.ADMIN
    elif who == MALLORY:
        assert level is Level.NONE
    elif who == owner:
        assert level is Level.ADMIN
    here = [access for access in given_ if access.subject != rights.of_agent(OTHER)]
    assert talk(who, *here, owner=owner) is level
    if not here and who != owner:
        assert level is TABLE.level(MXID(who))
