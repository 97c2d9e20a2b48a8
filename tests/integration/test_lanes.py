"""Lanes: in order, one owner at a time, and nothing lost on the way to the next owner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.db.database import Connection, Database, DatabaseInUseError
from letta_bridge.delivery.lanes import Fence, FencedError, Lanes

from .world import until

LANE = "test:1"
NEVER = 1000.0  # seconds between beats of an owner that looks dead after its lease

Handler = Callable[[Fence], Awaitable[float | None]]


@pytest_asyncio.fixture
async def db(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    made = Database(database_uri, tmp_path)
    await made.open()
    yield made
    await made.close()


@asynccontextmanager
async def running(
    db: Database, handler: Handler, owner: str = "one", *, lanes: Lanes | None = None, open_lanes: tuple[str, ...] = ()
) -> AsyncIterator[Lanes]:
    """Lanes ``test:…`` with this handler; ``open_lanes`` always have work."""
    made = lanes or Lanes(db, owner)

    async def source() -> list[str]:
        return list(open_lanes)

    made.handle("test", handler)
    made.sweep_with(source)
    await made.start()
    try:
        yield made
    finally:
        await made.stop(1.0)


async def nothing(_: Fence) -> float | None:
    return None


def mark(name: str) -> Callable[[Connection], Awaitable[object]]:
    return lambda conn: conn.execute("INSERT INTO setting (name, value) VALUES ($1, '')", name)


async def marks(db: Database) -> list[str]:
    return [row["name"] for row in await db.fetch("SELECT name FROM setting ORDER BY name")]


# -- one replica


async def test_a_lane_is_worked_on_once_at_a_time_and_others_meanwhile(db: Database) -> None:
    inside: list[str] = []
    most: dict[str, int] = {}
    both = asyncio.Event()

    async def handler(fence: Fence) -> None:
        inside.append(fence.lane)
        most[fence.lane] = max(most.get(fence.lane, 0), inside.count(fence.lane))
        if set(inside) == {"test:1", "test:2"}:
            both.set()
        await asyncio.wait_for(both.wait(), 5)
        inside.remove(fence.lane)

    async with running(db, handler) as lanes:
        for _ in range(5):
            lanes.wake("test:1")
            lanes.wake("test:2")
            await asyncio.sleep(0)
        await asyncio.wait_for(both.wait(), 5)
        await until(lambda: not inside)
    assert most == {"test:1": 1, "test:2": 1}


async def test_a_wake_during_the_work_runs_it_once_more(db: Database) -> None:
    seen: list[int] = []
    work: list[int] = []

    async def handler(_: Fence) -> None:
        seen.extend(work)
        work.clear()
        if seen == [1]:  # comes in after the handler has looked, before it has ended
            work.append(2)
            lanes.wake(LANE)

    async with running(db, handler) as lanes:
        work.append(1)
        lanes.wake(LANE)
        await until(lambda: seen == [1, 2], why="a wake was lost")


async def test_no_wake_is_lost_at_any_moment(db: Database) -> None:
    queue: list[int] = []
    done: list[int] = []

    async def handler(_: Fence) -> None:
        while queue:
            done.append(queue.pop(0))
            await asyncio.sleep(0)

    async with running(db, handler) as lanes:
        for number in range(300):
            queue.append(number)
            lanes.wake(LANE)
            for _ in range(number % 5):
                await asyncio.sleep(0)
        await until(lambda: len(done) == 300, timeout=5, why="a wake was lost")
    assert done == list(range(300))


async def test_a_failing_round_is_reported_and_tried_again(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    tries: list[float] = []

    async def handler(_: Fence) -> None:
        tries.append(time.monotonic())
        if len(tries) < 2:
            raise ValueError("a bug")

    async with running(db, handler) as lanes:
        lanes.wake(LANE)
        await until(lambda: len(tries) == 2, timeout=5)
    assert [record.message for record in caplog.records if record.exc_info] == ["lane failed, will try again"]


async def test_a_timer_brings_the_lane_back_and_a_wake_does_so_earlier(db: Database) -> None:
    pauses: list[float | None] = [0.05, 60.0, None]
    rounds: list[float | None] = []

    async def handler(_: Fence) -> float | None:
        rounds.append(pauses[len(rounds)])
        return rounds[-1]

    async with running(db, handler) as lanes:
        lanes.wake(LANE)
        await until(lambda: len(rounds) == 2, timeout=3, why="the timer did not fire")
        lanes.wake(LANE)
        await until(lambda: len(rounds) == 3, timeout=3, why="a wake waited for the timer")


async def test_open_work_is_found_at_the_start_without_a_wake(db: Database) -> None:
    found = asyncio.Event()

    async def handler(_: Fence) -> None:
        found.set()

    async with running(db, handler, open_lanes=(LANE,)):
        await asyncio.wait_for(found.wait(), 5)


async def test_stop_waits_for_the_work_then_cancels_it(db: Database) -> None:
    ends: list[str] = []
    entered = asyncio.Event()

    async def handler(fence: Fence) -> None:
        entered.set()
        try:
            await asyncio.sleep(0.05 if fence.lane == LANE else 60)
            ends.append("done")
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    lanes = Lanes(db, "one")
    lanes.handle("test", handler)
    await lanes.start()
    lanes.wake(LANE)
    lanes.wake("test:long")
    await asyncio.wait_for(entered.wait(), 5)
    begun = time.monotonic()
    await lanes.stop(0.5)
    assert time.monotonic() - begun < 5
    assert sorted(ends) == ["cancelled", "done"]
    lanes.wake("test:late")
    await asyncio.sleep(0)
    assert sorted(ends) == ["cancelled", "done"], "work was begun after the stop"
    assert await db.fetch("SELECT * FROM lane WHERE owner IS NOT NULL") == []


# -- the fence


async def test_a_fenced_write_is_refused_and_writes_nothing(db: Database) -> None:
    fences: list[Fence] = []

    async def handler(fence: Fence) -> None:
        fences.append(fence)

    async with running(db, handler) as lanes:
        lanes.wake(LANE)
        await until(lambda: fences)
        await lanes.write(fences[0], mark("mine"))
        await db.write(lambda conn: conn.execute("UPDATE lane SET owner = 'two', epoch = epoch + 1"))
        with pytest.raises(FencedError):
            await lanes.write(fences[0], mark("late"))
        await db.write(lambda conn: conn.execute("UPDATE lane SET owner = NULL"))
        lanes.wake(LANE)
        with pytest.raises(FencedError):  # also when the lane is ours again, of another epoch
            await lanes.write(fences[0], mark("later"))
    assert await marks(db) == ["mine"]


async def test_a_lane_lost_in_the_middle_is_claimed_anew_later(db: Database) -> None:
    epochs: list[int] = []

    async def handler(fence: Fence) -> None:
        epochs.append(fence.epoch)
        if len(epochs) == 1:
            await db.write(lambda conn: conn.execute("UPDATE lane SET owner = NULL, epoch = epoch + 1"))
            await lanes.write(fence, mark("late"))

    async with running(db, handler) as lanes:
        lanes.wake(LANE)
        await until(lambda: epochs)
        await until(lambda: (lanes.wake(LANE), len(epochs) > 1)[1], why="the lane was never worked on again")
    assert epochs[1] > epochs[0]
    assert await marks(db) == []


# -- several replicas (PostgreSQL)


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


@pytest.mark.postgres
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


@pytest.mark.postgres
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

    async with running(two[0], frozen, lanes=Lanes(two[0], "one", lease=1.0, beat=NEVER)) as first:
        last_beat = time.monotonic()
        first.wake(LANE)
        await until(lambda: fences)
        async with running(
            two[1], heir, lanes=Lanes(two[1], "two", lease=1.0, beat=0.2), open_lanes=(LANE,)
        ):
            await until(lambda: took, timeout=5, why="the lane of a dead replica was never taken over")
        assert took[0] - last_beat > 0.9, "taken over from an owner that may live"
        with pytest.raises(FencedError):
            await first.write(fences[0], mark("late"))
        stuck.set()
    assert await marks(two[0]) == []


@pytest.mark.postgres
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


@pytest.mark.postgres
async def test_a_wake_and_a_signal_reach_the_other_replica_at_commit(two: tuple[Database, Database]) -> None:
    log: list[str] = []
    heard: list[str] = []
    slow = {"lease": 60.0, "beat": 20.0}
    sender, receiver = Lanes(two[0], "one", **slow), Lanes(two[1], "two", **slow)
    receiver.on_signal("stop", heard.append)
    async with running(two[0], nothing, lanes=sender), running(two[1], working(log, "two"), lanes=receiver):

        async def work(conn: Connection) -> None:
            await sender.announce(conn, LANE)
            await sender.announce(conn, "!stop 42")

        await two[0].write(work)
        await until(lambda: "two" in log and heard == ["42"], timeout=3)


@pytest.mark.postgres
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
        with pytest.raises(DatabaseInUseError, match="runs as replica 'same'.*database.replica_id"):
            await twin.start()
        await twin.stop(0.1)  # what the bridge does after a failed start
        await first.write(fences[0], mark("still mine"))
    assert await marks(two[0]) == ["still mine"]


@pytest.mark.postgres
async def test_a_restarted_replica_has_its_lanes_back_after_its_own_lease(two: tuple[Database, Database]) -> None:
    log: list[str] = []
    killed = Lanes(two[0], "same", lease=0.8, beat=NEVER)  # beats once, then never again, as after kill -9
    async with running(two[0], working(log, "before"), lanes=killed):
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


@pytest.mark.postgres
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


@pytest.mark.postgres
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
