"""Pauses: what is written meanwhile waits, people are told once, and everything is answered afterwards."""

from __future__ import annotations

import re

from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person

from .admin_kit import answered, ask, dm_with_bot, own, said, settled, texts_of
from .world import World, a_group, until

KEPT = "paused by .*Your message is kept"


async def an_admin(world: World) -> tuple[Person, str]:
    admin = await world.hs.person("admin")
    return admin, await dm_with_bot(admin)


def read(world: World, agent: str) -> list[str]:
    """Every message that the agent was given, in order."""
    return [envelope.open_(text).body for turn in world.letta.turns(agent) for text in turn.texts if text[:1] == "["]


def told(person: Person, room: str) -> int:
    return len([text for text in texts_of(person, room) if re.search(KEPT, text)])


async def test_a_paused_agent_keeps_its_messages_over_a_restart(world: World) -> None:
    scout, other = world.letta.add_agent("Scout"), world.letta.add_agent("Other")
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob")
    await world.start()
    hers, his, elsewhere = await world.dm(alice, scout), await world.dm(bob, scout), await world.dm(bob, other)
    admin, bot = await an_admin(world)
    reply = await ask(admin, bot, "pause Scout its model is changed")
    assert "Paused: Scout" in reply and "`resume Scout` ends it" in reply
    await alice.send(hers, "one")
    notice = await said(alice, hers, KEPT)
    assert "administrator (its model is changed)" in notice
    await bob.send(his, "two")
    await said(bob, his, KEPT)
    await bob.send(elsewhere, "others work")
    await answered(world, bob, elsewhere, other, "others work")
    await world.restart()
    await alice.send(hers, "three")
    await settled(world)
    assert world.letta.turns(scout) == []
    assert "paused already" in await ask(admin, bot, "pause Scout")
    assert "Resumed: Scout" in await ask(admin, bot, "resume Scout")
    await answered(world, alice, hers, scout, "three")
    await answered(world, bob, his, scout, "two")
    assert sorted(read(world, scout)) == ["one", "three", "two"]
    assert [told(alice, hers), told(bob, his)] == [1, 1]
    assert "was not paused" in await ask(admin, bot, "resume Scout")
    await ask(admin, bot, "pause Scout")
    await alice.send(hers, "four")
    await until(lambda: told(alice, hers) == 2, why="the next pause is told again")


async def test_what_is_being_answered_is_finished_and_who_waits_is_told(sqlite_world: World) -> None:
    world = sqlite_world
    scout = world.letta.add_agent("Scout")
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob")
    await world.start()
    hers, his = await world.dm(alice, scout), await world.dm(bob, scout)
    admin, bot = await an_admin(world)
    hold = world.letta.hold(scout)
    await alice.send(hers, "running")
    await hold.entered()
    await bob.send(his, "waiting")
    await settled(world)
    await ask(admin, bot, "pause Scout")
    hold.release()
    await answered(world, alice, hers, scout, "running")
    await said(bob, his, KEPT)
    assert read(world, scout) == ["running"]
    await ask(admin, bot, "resume Scout")
    await answered(world, bob, his, scout, "waiting")
    assert told(alice, hers) == 0


async def test_a_paused_room_holds_up_nobody_elsewhere(world: World) -> None:
    room, ada, basil, alice, bob = await a_group(world)
    dm = await world.dm(bob, ada)
    admin, bot = await an_admin(world)
    assert "Paused: the room" in await ask(admin, bot, f'pause "{room}"')
    await alice.send(room, "Ada: one")
    await alice.send(room, "Basil: two")
    await until(lambda: told(alice, room) == 2, why="each agent says it")
    assert all(text.startswith("In this room") for text in texts_of(alice, room))
    await bob.send(dm, "meanwhile")
    await answered(world, bob, dm, ada, "meanwhile")
    await ask(admin, bot, f'resume "{room}"')
    await answered(world, alice, room, ada, "one")
    await answered(world, alice, room, basil, "two")
    assert told(bob, dm) == 0


async def test_pause_all_stops_everything_and_stop_still_works(world: World) -> None:
    room, ada, basil, alice, bob = await a_group(world)
    dm = await world.dm(bob, basil)
    admin, bot = await an_admin(world)
    await ask(admin, bot, "pause Ada")
    assert "Paused: everything" in await ask(admin, bot, "pause all a loop was seen")
    await alice.send(room, "Ada: one")
    await bob.send(dm, "two")
    await said(bob, dm, "All agents are paused by an administrator .a loop was seen.")
    await bob.send(dm, "!stop")
    await said(bob, dm, "Stopped: what waited for me was withdrawn")
    await bob.send(dm, "three")
    await settled(world)
    assert world.letta.turns() == []
    reply = await ask(admin, bot, "resume all")
    assert "Still paused:" in reply and "Ada" in reply
    await answered(world, bob, dm, basil, "three")
    assert read(world, basil) == ["three"] and world.letta.turns(ada) == []
    await ask(admin, bot, "resume Ada")
    await answered(world, alice, room, ada, "one")


async def test_a_bulk_operation_burns_nothing(sqlite_world: World) -> None:
    """A program that writes into every room, other bots' words and notices start no run; and all can be stopped."""
    world = sqlite_world
    agents = [world.letta.add_agent(f"Agent {number}") for number in range(4)]
    alice, ghost = await world.hs.person("alice"), await world.hs.person("relaybot", auto_join=True)
    await world.start()
    rooms = [await world.dm(alice, agent) for agent in agents]
    for room, agent in zip(rooms, agents, strict=True):
        await alice.invite(room, ghost.mxid)
        await ghost.send(room, "set-relay done", **{"m.mentions": {"user_ids": [world.puppet(agent)]}})
        await alice.send(room, "set-relay", msgtype="m.notice")
        await alice.send(room, "!letta help")
    await settled(world)
    assert world.letta.turns() == []
    admin, bot = await an_admin(world)
    await ask(admin, bot, "pause all")
    for room in rooms:
        await alice.send(room, "one")
        await alice.send(room, "two")
    for room in rooms:
        await said(alice, room, KEPT)
    await settled(world)
    assert world.letta.turns() == [] and [told(alice, room) for room in rooms] == [1] * 4
    await ask(admin, bot, "resume all")
    for room, agent in zip(rooms, agents, strict=True):
        await answered(world, alice, room, agent, "two")
        assert read(world, agent) == ["one", "two"]


async def test_who_may_pause_what(sqlite_world: World) -> None:
    world = sqlite_world
    ada, _ = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    alice = await world.hs.person("alice")
    await world.start()
    await own(world, ada, alice.mxid)
    admin, bot = await an_admin(world)
    room, dm = await dm_with_bot(alice), await world.dm(alice, ada)
    assert "Only the owner" in await ask(alice, room, "pause Basil")
    assert "Only administrators" in await ask(alice, room, "pause all")
    assert "Only administrators may use `!letta pause` on a room" in await ask(alice, dm, "!letta pause")
    assert "Say what" in await ask(alice, room, "pause")
    assert "Paused: Ada" in await ask(alice, room, "pause Ada")
    await alice.send(dm, "hello")
    await said(alice, dm, "I am paused by my owner")
    await ask(alice, room, "resume Ada")
    await answered(world, alice, dm, ada, "hello")
    await ask(admin, bot, "pause Ada not now")
    assert f"paused by {admin.mxid}, an administrator" in await ask(alice, room, "resume Ada")
    await ask(admin, bot, "resume Ada")
    await own(world, ada, admin.mxid)
    await ask(admin, bot, f"permissions grant {alice.mxid} admin Ada")
    await ask(admin, bot, "pause Ada")
    answer = await ask(alice, room, "resume Ada")
    assert f"paused by {admin.mxid}, its owner and an administrator" in answer, "rooms are told: by my owner"
    assert "only administrators can resume" in answer
    await ask(admin, bot, "resume Ada")
    await ask(admin, bot, f'permissions grant {alice.mxid} admin "{dm}"')
    assert "Paused: this room" in await ask(alice, dm, "!letta pause")
    assert "Resumed: this room" in await ask(alice, dm, "!letta resume")


async def test_a_turn_that_waits_for_letta_waits_for_the_pause_too(sqlite_world: World) -> None:
    world = sqlite_world
    scout = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, scout, "hello")
    await answered(world, alice, room, scout, "hello")
    admin, bot = await an_admin(world)
    world.letta.kill()
    await alice.send(room, "while away")
    await said(alice, room, "cannot reach Letta")
    await ask(admin, bot, "pause Scout")
    await world.letta.start()
    await said(alice, room, KEPT, timeout=20)
    assert read(world, scout) == ["hello"]
    await ask(admin, bot, "resume Scout")
    await answered(world, alice, room, scout, "while away", timeout=20)
    assert read(world, scout) == ["hello", "while away"]
