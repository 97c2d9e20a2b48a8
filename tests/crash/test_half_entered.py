"""A puppet is in a room, and the bridge does not know it yet: what is said meanwhile is kept for it."""

from __future__ import annotations

from pathlib import Path

from .harness import crash_world
from .nursery import Nursery


async def test_said_after_a_join_whose_answer_was_lost_while_the_next_try_fails(
    tmp_path: Path, processes: Nursery
) -> None:
    """The homeserver let the puppet in, but its answer was lost, and the next tries fail: what is said then is pushed,
    because the puppet is in.
    """
    async with crash_world(tmp_path, "sqlite:bridge.db", nursery=processes) as world:
        agent = world.letta.add_agent("Scout")
        alice = await world.hs.person("alice")
        await world.start()
        world.hs.fail_next(r"/join", after_processing="disconnect")
        world.hs.fail_next(r"/join", status=502, times=2)
        room = await alice.create_dm(world.puppet(agent), text="first")
        await alice.wait_joined(room, world.puppet(agent), 10)
        await alice.send(room, "second")
        await alice.send(room, "third")
        await world.answered(alice, room, agent, "first", "second", "third")
        assert world.heard(agent) == ["first", "second", "third"]


async def test_killed_right_after_a_join_and_the_next_try_fails(tmp_path: Path, processes: Nursery) -> None:
    async with crash_world(tmp_path, "sqlite:bridge.db", nursery=processes) as world:
        agents = [world.letta.add_agent("Ada"), world.letta.add_agent("Basil")]
        alice = await world.hs.person("alice")
        await world.start()
        ada, basil = (world.puppet(agent) for agent in agents)
        room = await alice.create_room(invite=[ada])
        await alice.wait_joined(room, ada, 10)
        await world.hs.wait_pushed()
        reading = world.hs.delay(r"/state$", 30.0, times=1)
        await alice.invite(room, basil)
        await alice.wait_joined(room, basil, 10)
        await world.hs.wait_until(lambda: reading.hits > 0, 10, "the bridge reading the room that the puppet is in")
        world.kill()
        to_both = {"m.mentions": {"user_ids": [ada, basil]}}
        await alice.send(room, "one", **to_both)
        world.hs.fail_next(r"/join", status=502, times=4)
        await world.start()
        await alice.send(room, "two", **to_both)
        for agent in agents:
            await world.answered(alice, room, agent, "one", "two")
            assert world.heard(agent, room) == ["one", "two"]
