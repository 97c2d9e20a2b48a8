"""Who may wake an agent, who is told why not, and that nobody else's message ever reaches Letta."""

from __future__ import annotations

import re
from typing import Any

import pytest

from letta_bridge.testing.fake_homeserver import Person

from .world import BOT, DOMAIN, World, a_group, notices, settled, until

REFUSED = re.compile("not allowed to talk to this agent")


def membership(person: Person, room: str, user: str) -> list[dict[str, Any]]:
    """What happened to a user's membership of the room, in order."""
    events = person.timeline(room)
    return [e["content"] for e in events if e["type"] == "m.room.member" and e.get("state_key") == user]


async def turned_away(world: World, person: Person, user: str) -> str:
    """Open a DM and wait until the invitation was refused; the reason given."""
    room = await person.create_dm(user, text="Let me in")

    def left(timeline: list[dict[str, Any]]) -> bool:
        return any(e.get("state_key") == user and e["content"].get("membership") == "leave" for e in timeline)

    await person.wait_for(room, left)
    await settled(world)
    assert world.letta.turns() == []
    return str(membership(person, room, user)[-1].get("reason"))


@pytest.mark.parametrize(
    ("table", "ignored"),
    [
        ({f"@admin:{DOMAIN}": "admin"}, []),
        ({"elsewhere.example": "user", f"@alice:{DOMAIN}.": "user"}, []),
        ({DOMAIN: "user", f"@alice:{DOMAIN}": "none"}, []),
        ({"*": "user", DOMAIN: "none"}, []),
        ({"*": "admin", DOMAIN: "admin"}, [f"@ali*:{DOMAIN}"]),
    ],
    ids=["nobody named her", "others", "her id before the domain", "domain before all", "ignored"],
)
async def test_who_may_not_invite_is_told_the_reason(
    sqlite_world: World, table: dict[str, str], ignored: list[str]
) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(permissions=table, ignored_senders=ignored)
    reason = await turned_away(world, alice, world.puppet(agent))
    assert "not allowed to talk" in reason and alice.mxid in reason
    assert "not allowed" in await turned_away(world, alice, BOT)


@pytest.mark.parametrize(
    ("table", "ignored"),
    [
        ({DOMAIN: "user"}, []),
        ({"*": "user"}, []),
        ({DOMAIN: "none", f"@alice:{DOMAIN}": "user"}, []),
        ({"*": "none", DOMAIN: "user"}, []),
        ({f"@alice:{DOMAIN}": "admin"}, [f"@ali*:{DOMAIN}"]),
    ],
    ids=["domain", "all", "her id before the domain", "domain before all", "named although ignored"],
)
async def test_who_may_talk_is_answered(sqlite_world: World, table: dict[str, str], ignored: list[str]) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(permissions=table, ignored_senders=ignored)
    room = await world.dm(alice, agent, "Let me in")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("Let me in"))


async def test_refused_invitations_leave_one_notice_for_local_people(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(permissions={f"@admin:{DOMAIN}": "admin"})
    puppet = world.puppet(agent)
    for _ in range(2):
        await turned_away(world, alice, puppet)
    said = [message for room in alice.rooms() for message in notices(alice, room)]
    assert [message.sender for message in said] == [puppet]
    assert alice.mxid in said[0].body
    assert all(puppet not in alice.members(room) for room in alice.rooms())


async def test_a_stranger_of_another_server_is_turned_away_without_a_visit(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    eve = await world.hs.person("@eve:evil.example")
    await world.start()
    puppet = world.puppet(agent)
    assert "not allowed" in await turned_away(world, eve, puppet)
    [room] = eve.rooms()
    assert [content["membership"] for content in membership(eve, room, puppet)] == ["invite", "leave"]
    assert notices(eve, room) == []


async def test_a_stranger_in_a_room_of_others_wakes_nobody_and_is_told_once(world: World) -> None:
    room, ada, _, alice, _ = await a_group(world)
    eve = await world.hs.person("@eve:evil.example", auto_join=True)
    await alice.invite(room, eve.mxid)
    await eve.send(room, "not for an agent")
    for text in ("Ada: hello", "Ada: hello?", "Basil: hello"):
        await eve.send(room, text)
    said = await alice.wait_message(room, text=REFUSED)
    assert said.mentions == {"user_ids": [eve.mxid]} and eve.mxid in said.body
    await alice.send(room, "Ada: and me")
    await alice.wait_message(room, sender=world.puppet(ada), text=re.compile("and me"))
    assert len(notices(alice, room)) == 1
    assert [turn.agent_id for turn in world.letta.turns()] == [ada]


async def test_another_room_tells_it_again(sqlite_world: World) -> None:
    world = sqlite_world
    room, ada, _, alice, _ = await a_group(world)
    eve = await world.hs.person("@eve:evil.example", auto_join=True)
    other = await alice.create_room(invite=[world.puppet(ada)])
    await alice.wait_joined(other, world.puppet(ada))
    for place in (room, other):
        await alice.invite(place, eve.mxid)
        await eve.send(place, "Ada: hello")
        await alice.wait_message(place, text=REFUSED)


async def test_permission_is_decided_for_each_message(world: World) -> None:
    """Who was let in once is refused as soon as the configuration says so, in the same room."""
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "before")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("before"))
    await world.restart(permissions={f"@admin:{DOMAIN}": "admin"})
    await alice.send(room, "after")
    await alice.send(room, "after all")
    await alice.wait_message(room, sender=world.puppet(agent), text=REFUSED)
    await settled(world)
    assert len(world.letta.turns(agent)) == 1
    assert len(notices(alice, room)) == 1
    await world.restart(permissions={alice.mxid: "user"})
    await alice.send(room, "again")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("again"))


async def test_ignored_senders_are_no_company_and_get_no_word(sqlite_world: World) -> None:
    """A ghost of another bridge in the room neither wakes the agent nor makes a group of a DM."""
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice, ghost = await world.hs.person("alice"), await world.hs.person("whatsapp_49170", auto_join=True)
    await world.start(permissions={"*": "user", DOMAIN: "admin"}, ignored_senders=[f"@whatsapp_*:{DOMAIN}"])
    room = await world.dm(alice, agent)
    await alice.invite(room, ghost.mxid)
    await ghost.send(room, f"{world.puppet(agent)} hello", **{"m.mentions": {"user_ids": [world.puppet(agent)]}})
    await ghost.send(room, "!stop")
    await alice.send(room, "just me")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("just me"))
    assert len(world.letta.turns(agent)) == 1
    assert notices(alice, room) == []


async def test_too_many_messages_are_told_once_and_let_in_again_later(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob")
    await world.start(limits__messages_per_minute=3)
    room = await world.dm(alice, agent)
    for number in range(6):
        await alice.send(room, f"message {number}")
    said = await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("more than 3 messages"))
    await settled(world)
    other = await world.dm(bob, agent, "not my fault")
    await bob.wait_message(other, sender=world.puppet(agent), text=re.compile("not my fault"))
    refused = next(m for m in alice.messages(room) if m.event_id == said.reply_to)
    assert refused.body == "message 3"
    assert len(notices(alice, room)) == 1
    await minute_later(world)
    await alice.send(room, "a minute later")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("a minute later"))
    texts = [text for turn in world.letta.turns(agent) for text in turn.texts]
    assert not any(f"message {number}" in text for text in texts for number in (3, 4, 5))


async def minute_later(world: World) -> None:
    """Let everything that is stored be a minute older."""
    bridge = world.bridge
    assert bridge is not None
    await bridge.db.write(lambda conn: conn.execute("UPDATE turn_event SET created_at = created_at - 61"))
    await bridge.db.write(lambda conn: conn.execute("UPDATE told SET at = at - 61"))


async def test_agents_do_not_wake_each_other(sqlite_world: World) -> None:
    world = sqlite_world
    room, ada, basil, alice, _ = await a_group(world)
    pill = f'<a href="https://matrix.to/#/{world.puppet(basil)}">Basil</a>'
    world.letta.reply = lambda texts: f"@Basil {world.puppet(basil)} {pill} what do you say? !stop"
    await alice.send(room, "Ada: ask Basil")
    answer = await alice.wait_message(room, sender=world.puppet(ada))
    assert answer.mentions == {"user_ids": [alice.mxid]}
    await settled(world)
    await alice.send(room, "Ada: and?")
    await until(lambda: len(world.letta.turns(ada)) == 2)
    assert world.letta.turns(basil) == []
    assert notices(alice, room) == []
