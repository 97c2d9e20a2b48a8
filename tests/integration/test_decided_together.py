"""Events that come in one transaction and refer to one another are decided together, as if one by one."""

from __future__ import annotations

import re

from letta_bridge.matrix import envelope

from .world import World, a_group, notices, settled, until


def heard(world: World, agent: str) -> list[envelope.Message]:
    """What the agent was told, in its order."""
    return [envelope.open_(text) for turn in world.letta.turns(agent) for text in turn.texts]


async def test_edits_replies_redactions_and_stops_of_one_transaction(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent)
    await settled(world)
    world.hs.hold_push()
    await alice.send(room, "never mind")
    await alice.send(room, "!stop")
    one = await alice.send(room, "one")
    two = await alice.send(room, "two", **{"m.relates_to": {"m.in_reply_to": {"event_id": one}}})
    three = await alice.send(room, "three")
    await alice.edit(room, one, "uno")
    await alice.redact(room, three)
    await alice.send(room, "four", **{"m.relates_to": {"m.in_reply_to": {"event_id": two}}})
    world.hs.release_push()
    await until(lambda: heard(world, agent), 20)
    await settled(world)
    await until(lambda: len(heard(world, agent)) == 3)
    told = heard(world, agent)
    assert [message.body for message in told] == ["uno", "two", "four"]
    assert [message.reply and message.reply.event_id for message in told] == [None, one, two]
    assert told[1].reply is not None and told[1].reply.excerpt == "one"
    assert told[2].reply is not None and told[2].reply.excerpt == "two"
    stopped = await alice.wait_message(room, text=re.compile("^Stopped"))
    assert stopped.body == "Stopped: what waited for me was withdrawn."


async def test_a_name_given_in_the_middle_counts_from_there(sqlite_world: World) -> None:
    room, ada, _, alice, _ = await a_group(sqlite_world)
    sqlite_world.hs.hold_push()
    await alice.send(room, "Ada: before")
    await alice.set_displayname("Alice the Great")
    await alice.wait_for(
        room, lambda timeline: [e for e in timeline if e["content"].get("displayname") == "Alice the Great"], 5
    )
    await alice.send(room, "Ada: after")
    sqlite_world.hs.release_push()
    await until(lambda: len(heard(sqlite_world, ada)) == 2, 20)
    assert [(m.sender.name, m.body) for m in heard(sqlite_world, ada)] == [
        ("alice", "Ada: before"),
        ("Alice the Great", "Ada: after"),
    ]


async def test_the_limit_counts_within_one_transaction(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(limits__messages_per_minute=3)
    room = await world.dm(alice, agent)
    await settled(world)
    world.hs.hold_push()
    for number in range(6):
        await alice.send(room, f"message {number}")
    world.hs.release_push()
    await until(lambda: notices(alice, room), 20)
    await settled(world)
    await until(lambda: len(heard(world, agent)) == 3)
    assert [m.body for m in heard(world, agent)] == ["message 0", "message 1", "message 2"]
    assert len(notices(alice, room)) == 1
