"""Replicas come and go under load: nothing is lost, nothing is answered twice, nobody waits long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from letta_bridge.testing.fake_homeserver import Person

from ..integration.world import until
from .harness import ReplicaWorld, Room

pytestmark = pytest.mark.postgres


@asynccontextmanager
async def load(world: ReplicaWorld, person: Person, rooms: list[Room]) -> AsyncIterator[None]:
    """Somebody says something, every few hundredths of a second, until the block ends; then all is answered."""
    going = True

    async def talk() -> None:
        while going:
            await world.burst(person, rooms, 1, 0.05)

    talking = asyncio.create_task(talk())
    try:
        yield
    finally:
        going = False
        await talking
    await world.all_answered(person)


async def test_a_rolling_restart(world: ReplicaWorld) -> None:
    world.nursery = None
    alice = await world.hs.person("alice")
    await world.start("one", "two", shutdown__drain_s=5)
    rooms = await world.chats(alice, agents=5, rooms=2)
    begun = len(world.hs.transactions)
    async with load(world, alice, rooms):
        for name in ("one", "two"):
            assert await world[name].terminate() == 0
            assert world[name].url not in world.balancer.healthy
            assert await world.owner(f"room:{rooms[0].room_id}") != name
            await world[name].start()
            await until(lambda name=name: world[name].url in world.balancer.healthy)
    pushes = [push for push in world.hs.transactions[begun:] if push.status != 200]
    assert not pushes, f"the homeserver was refused {[push.status for push in pushes]}"
    repeated = [turn.texts for turn in world.letta.turns() if turn.outcome not in ("end_turn", "running")]
    assert not repeated, "a turn was broken off"


async def test_while_one_drains_a_long_turn_others_have_its_idle_lanes(world: ReplicaWorld) -> None:
    world.nursery = None
    alice = await world.hs.person("alice")
    await world.start("one", shutdown__drain_s=20)
    long, *rooms = await world.chats(alice, agents=3, rooms=1)
    await world.burst(alice, [long, *rooms], 1)
    await world.all_answered(alice)
    await world.start("two")
    hold = world.letta.hold(long.agent)
    await world.say(alice, long, "a long one")
    await hold.entered()
    leaving = asyncio.create_task(world["one"].terminate(20))
    await until(lambda: world.balancer.healthy == {world["two"].url}, why="the balancer still sends to it")
    assert await world["one"].health("ready") == 503
    assert await world["one"].health("live") == 200
    await world.burst(alice, rooms, 3)
    await until(lambda: all(world.answers(alice, room, room.said[-1]) for room in rooms), 5, why="waits for the drain")
    assert not leaving.done()
    hold.release()
    assert await leaving == 0
    await world.all_answered(alice)
    assert len(world.letta.turns(long.agent)) == 2


@pytest.mark.full
async def test_a_replica_added_under_load_gets_its_share(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one")
    rooms = await world.chats(alice, agents=10, rooms=1)
    async with load(world, alice, rooms):
        await until(lambda: len(rooms[0].said) > 2)
        assert set(await world.owners()) == {"one"}
        await world.start("two")

        async def shared() -> bool:
            lanes = await world.owners()
            return lanes["two"] >= 10

        await until(shared, 15, why="the new replica has nothing to do")
