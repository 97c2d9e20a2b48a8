"""Several replicas on one PostgreSQL: each lane has one owner at a time, and an heir when that one is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.db.database import Connection, Database, DatabaseInUseError
from letta_bridge.lanes import Fence, FencedError, Lanes

from .lanes_kit import LANE, Handler, mark, marks, nothing, running
from .world import until

pytestmark = pytest.mark.postgres


def die(lanes: Lanes) -> None:
    """From now on it gives no signs of life, as after ``kill -9``; what it has in hand goes on."""
    assert lanes._beats is not None
    lanes._beats.cancel()


@pytest_asyncio.fixture
async def two(tmp_path: Path, postgres_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """One PostgreSQL database, opened by two replicas at the same time."""
    made = Database(postgres_url, tmp_path), Database(postgres_url, tmp_path)
    await asyncio.gather(*(db.open() for db in made))
    yield made
    for db in made:
        await db.close()


def working(log: list[str], name: str) -> Handler:
    async def handler(_: Fence) -> float:
        log.append(name)
        return 0.05

    return handler


async def test_a_live_owner_keeps_its_lane(two: tuple[Database, Database]) -> None:
    log: list[str] = []
    async with running(two[0], working(log, "one"), lanes=Lanes(two[0], "one", lease=1.0, beat=0.2)) as first:
        first.wake(LANE)
        await until(lambda: log)
        async with running(
            two[1], working(log, "two"), lanes=Lanes(two[1], "two", lease=1.0, beat=0.2), open_lanes=(LANE,)
        ) as second:
            begun = time.monotonic()
            await until(lambda: (second.wake(LANE), time.monotonic() - begun > 1.5)[1])  # longer than the lease
    assert set(log) == {"one"}


async def test_a_dead_owners_lane_is_taken_over_after_the_lease_and_its_late_writes_are_fenced(
    two: tuple[Database, Database],
) -> None:
    fences: list[Fence] = []
    took: list[float] = []
    stuck = asyncio.Event()

    async def frozen(fence: Fence) -> None:
        fences.append(fence)
        await stuck.wait()

    async def heir(_: Fence) -> None:
        took.append(time.monotonic())

    async with running(two[0], frozen, lanes=Lanes(two[0], "one", lease=1.0, beat=0.2)) as first:
        die(first)
        last_beat = time.monotonic()
        first.wake(LANE)
        await until(lambda: fences)
        async with running(two[1], heir, lanes=Lanes(two[1], "two", lease=1.0, beat=0.2), open_lanes=(LANE,)):
            await until(lambda: took, timeout=5, why="the lane of a dead replica was never taken over")
        assert took[0] - last_beat > 0.9, "taken over from an owner that may live"
        with pytest.raises(FencedError):
            await first.write(fences[0], mark("late"))
        stuck.set()
    assert await marks(two[0]) == []


async def test_lanes_of_a_stopped_replica_are_taken_over_at_once(two: tuple[Database, Database]) -> None:
    log: list[str] = []
    first = Lanes(two[0], "one", lease=60.0, beat=20.0)
    async with running(two[0], working(log, "one"), lanes=first):
        first.wake(LANE)
        await until(lambda: log)
        async with running(
            two[1], working(log, "two"), lanes=Lanes(two[1], "two", lease=60.0, beat=20.0), open_lanes=(LANE,)
        ):
            await first.stop(1.0)
            await until(lambda: "two" in log, timeout=3, why="waits for a lease that was given back")


async def test_a_wake_and_a_signal_reach_the_other_replica_at_commit(two: tuple[Database, Database]) -> None:
    log: list[str] = []
    heard: list[str] = []
    slow = {"lease": 60.0, "beat": 20.0}
    sender, receiver = Lanes(two[0], "one", **slow), Lanes(two[1], "two", **slow)
    receiver.on_signal("stop", heard.append)

    async def once(_: Fence) -> None:
        log.append("two")

    async with running(two[1], once, lanes=receiver), running(two[0], nothing, lanes=sender):
        receiver.wake(LANE)  # the lane is its own from now on
        await until(lambda: log and LANE not in receiver._entries)
        log.clear()

        async def work(conn: Connection) -> None:
            await sender.announce(conn, LANE)
            await sender.announce(conn, "!stop 42")

        await two[0].write(work)
        await until(lambda: "two" in log and heard == ["42"], timeout=3)


async def test_a_second_process_with_the_same_replica_id_is_refused_and_disturbs_nothing(
    two: tuple[Database, Database],
) -> None:
    fences: list[Fence] = []

    async def handler(fence: Fence) -> None:
        fences.append(fence)

    async with running(two[0], handler, lanes=Lanes(two[0], "same", lease=0.8, beat=0.2)) as first:
        first.wake(LANE)
        await until(lambda: fences)
        twin = Lanes(two[1], "same", lease=0.8, beat=0.2)
        with pytest.raises(DatabaseInUseError, match=r"runs as replica 'same'.*database\.replica_id"):
            await twin.start()
        await twin.stop(0.1)  # what the bridge does after a failed start
        await first.write(fences[0], mark("still mine"))
    assert await marks(two[0]) == ["still mine"]


async def test_a_restarted_replica_has_its_lanes_back_after_its_own_lease(two: tuple[Database, Database]) -> None:
    log: list[str] = []
    killed = Lanes(two[0], "same", lease=0.8, beat=0.2)
    async with running(two[0], working(log, "before"), lanes=killed):
        die(killed)
        killed.wake(LANE)
        await until(lambda: log)
        async with running(
            two[1], working(log, "after"), lanes=Lanes(two[1], "same", lease=0.8, beat=0.2), open_lanes=(LANE,)
        ):
            await until(lambda: "after" in log, timeout=3)
            # the one that came back from the dead finds its id taken: it neither writes nor claims
            killed.wake("test:2")
            with pytest.raises(FencedError):
                await killed.write(Fence(LANE, "same", 1), mark("late"))
            owner = await two[0].fetchval("SELECT COUNT(*) FROM lane WHERE lane = 'test:2'")
            assert owner == 0


async def test_a_replica_that_was_frozen_lets_go_before_it_beats_again(
    two: tuple[Database, Database], caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = asyncio.Event()

    async def handler(_: Fence) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with running(two[0], handler, lanes=Lanes(two[0], "one", lease=0.5, beat=0.1)) as lanes:
        lanes.wake(LANE)
        await until(lambda: lanes._held)
        time.sleep(0.6)  # the whole process stands still, longer than its lease
        await asyncio.wait_for(cancelled.wait(), 3)
    assert "heartbeat late, giving up the lanes" in [record.message for record in caplog.records]


async def test_notifications_are_taken_up_again_after_their_connection_was_lost(
    two: tuple[Database, Database], postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    lanes = Lanes(two[0], "one", lease=60.0, beat=0.1)
    async with running(two[0], working(log, "one"), lanes=lanes):
        await two[1].write(
            lambda conn: conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND query LIKE 'LISTEN%'"
            )
        )
        await until(lambda: "notification connection lost" in [record.message for record in caplog.records])

        async def heard() -> bool:
            await two[1].write(lambda conn: two[1].notify(conn, LANE))
            return bool(log)

        await until(heard, timeout=5, why="the replica stays deaf")
