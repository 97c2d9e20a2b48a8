"""Lanes: in order, one owner at a time, and nothing lost on the way to the next owner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.db.database import Database
from letta_bridge.lanes import Fence, FencedError, Lanes

from .lanes_kit import LANE, mark, marks, running
from .world import until


@pytest_asyncio.fixture
async def db(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    made = Database(database_uri, tmp_path)
    await made.open()
    yield made
    await made.close()


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
