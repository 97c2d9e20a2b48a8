"""PostgreSQL restarts, cuts connections, or keeps locks of a frozen replica: nothing is lost, and wakes work again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.stack.postgres import LocalPostgres

from ..crash.nursery import Nursery
from ..integration.world import until
from .harness import ReplicaWorld, Room, replica_world
from .pg_wire import PgWire

pytestmark = pytest.mark.postgres
SLOW_NET = {"database.lease_s": 30.0, "database.beat_s": 10.0}
"""Sweeps come so seldom that only a wake can explain a quick answer."""
ARMED = "intake.read:1000000:stop"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_postgres(postgres_server: LocalPostgres) -> AsyncIterator[LocalPostgres]:
    """A PostgreSQL that may be restarted: nobody else uses it."""
    async with LocalPostgres() as postgres:
        yield postgres


async def answered_in(world: ReplicaWorld, alice: Person, room: Room, text: str) -> float:
    """Seconds until an answer."""
    begun = time.monotonic()
    await world.say(alice, room, text)
    await until(lambda: world.answers(alice, room, text), 25)
    return time.monotonic() - begun


async def test_postgres_restarted_under_load(tmp_path: Path, own_postgres: LocalPostgres, processes: Nursery) -> None:
    async with replica_world(tmp_path, await own_postgres.create_database("restarted"), processes) as world:
        alice = await world.hs.person("alice")
        await world.start("one", "two")
        rooms = await world.chats(alice, agents=5, rooms=2)
        burst = asyncio.create_task(world.burst(alice, rooms, 8, 0.02))
        await until(lambda: sum(len(room.said) for room in rooms) > 30)
        await own_postgres.shut_down()
        await burst
        await own_postgres.serve()
        await world.all_answered(alice, 40)
        assert all(replica.child and replica.child.running for replica in world.replicas.values())
        await until(lambda: len(world.balancer.healthy) == 2, 10)
        await world.burst(alice, rooms, 2)
        await world.all_answered(alice)


@pytest.mark.full
async def test_connections_cut_in_mid_write(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    rooms = await world.chats(alice, agents=5, rooms=2)
    burst = asyncio.create_task(world.burst(alice, rooms, 10, 0.03))
    cut = 0
    while not burst.done():
        rows = await world.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND (xact_start IS NOT NULL OR random() < 0.1)"
        )
        cut += len(rows)
        await asyncio.sleep(0.2)
    await burst
    assert cut > 5, "nothing was cut"
    await world.all_answered(alice, 40)


async def test_notifications_are_heard_again_after_their_connection_was_cut(world: ReplicaWorld) -> None:
    world.settings = dict(SLOW_NET)
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    (room,) = await world.chats(alice, agents=1, rooms=1)
    await answered_in(world, alice, room, "first")
    for lane in (f"room:{room.room_id}", f"agent:{room.agent}", f"send:{room.room_id}"):
        assert await world.owner(lane) in world.replicas
    assert await answered_in(world, alice, room, "by a wake") < 3
    await world.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND query LIKE 'LISTEN%'"
    )
    await until(lambda: all(one.said("listen_lost") for one in world.replicas.values()))
    await until(lambda: _listening(world, 2))
    for replica in world.replicas.values():  # whoever takes it, whoever has the lane
        world.hs.appservice_url = replica.url
        assert await answered_in(world, alice, room, f"again by {replica.name}") < 3
    await world.all_answered(alice)


@pytest.mark.full
async def test_a_connection_for_notifications_that_went_dead_silently_is_noticed(world: ReplicaWorld) -> None:
    world.settings = dict(SLOW_NET)
    alice = await world.hs.person("alice")
    async with PgWire(world.database) as wire:
        await world.start("one", database__uri=wire.url)
        (room,) = await world.chats(alice, agents=1, rooms=1)
        await answered_in(world, alice, room, "first")
        await world.start("two")
        wire.cut_listeners()
        await until(lambda: world["one"].said("listen_lost"), 45)
        await until(lambda: _listening(world, 1), why="it does not listen again")
        world.hs.appservice_url = world["two"].url
        assert await world.owner(f"room:{room.room_id}") == "one"
        assert await answered_in(world, alice, room, "by a wake") < 3
        await world.all_answered(alice)


async def _listening(world: ReplicaWorld, count: int) -> bool:
    """Whether so many connections listen that are new."""
    rows = await world.sql(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%' "
        "AND backend_start > clock_timestamp() - interval '12 s'"
    )
    return len(rows) == count


@pytest.mark.full
async def test_frozen_within_the_commit_of_a_transaction_it_holds_up_nobody(world: ReplicaWorld) -> None:
    """It holds the lock that keeps the order of the inbox."""
    alice = await world.hs.person("alice")
    world.made("one")
    world.hs.appservice_url = world.balancer.url
    world.balancer.peers.append(world["one"].url)
    await world["one"].start(at=ARMED)
    await world.start("two")
    rooms = await world.chats(alice, agents=2, rooms=2)
    await world.burst(alice, rooms, 1)
    await world.all_answered(alice)
    world["one"].arm("intake.stored:1:stop")
    world.hs.push_settings.timeout = 2.0
    await world.burst(alice, rooms, 2)
    await world["one"].froze()
    await world.all_answered(alice, 20)
    world["one"].thaw()
    await until(lambda: world["one"].url in world.balancer.healthy, 20)
    await world.burst(alice, rooms, 2)
    await world.all_answered(alice)


@pytest.mark.full
@pytest.mark.parametrize("point", ["turn.begun", "edit.before"])
async def test_frozen_before_what_no_transaction_can_fence(world: ReplicaWorld, point: str) -> None:
    """Thawed, it neither calls Letta for a turn that has an heir, nor edits an answer that another one finished."""
    alice = await world.hs.person("alice")
    world.made("one")
    world.hs.appservice_url = world.balancer.url
    world.balancer.peers.append(world["one"].url)
    await world["one"].start(at=ARMED)
    (room,) = await world.chats(alice, agents=1, rooms=1)
    await world.say(alice, room, "hello")
    await world.all_answered(alice)
    await world.start("two")
    usual = world.letta.reply
    assert usual is not None

    async def slowly(text: str) -> AsyncIterator[str]:
        for word in (*text.split(), *["word"] * 25):
            yield f"{word} "
            await asyncio.sleep(0.1)

    if point == "edit.before":
        world.letta.reply = lambda texts: slowly(str(usual(texts)))
    world["one"].arm(f"{point}:1:stop")
    await world.say(alice, room, "freeze")
    await world["one"].froze()
    await world.all_answered(alice, 25)
    shown = alice.messages(room.room_id)[-1].body
    world["one"].thaw()
    await until(lambda: world["one"].said("self_fenced"), 10)
    await until(lambda: world["one"].url in world.balancer.healthy, 10)
    world.letta.reply = usual
    await world.say(alice, room, "and now?")
    await world.all_answered(alice)
    assert [m.body for m in alice.messages(room.room_id)][-3] == shown
    assert len(world.letta.turns(room.agent)) == 3
