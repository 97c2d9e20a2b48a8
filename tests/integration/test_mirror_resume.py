"""The mirror killed at every single step: the next process goes on where it stopped, and makes nothing twice."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from letta_bridge.db.database import Database
from letta_bridge.matrix.homeserver import Intent

from .mirror_world import ALICE, World, agent, new_world

Point = Literal["request lost", "answer lost", "write lost", "after write"]
NUMBERS = (1, 2)


class Killed(BaseException):
    """The process is gone."""


class Killer:
    """Ends the process at the n-th step of one kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: Point, step: int) -> None:
        self.left = step
        self.struck = False
        if point in ("request lost", "answer lost"):
            self._patch(monkeypatch, Intent, "request", after=point == "answer lost")
        else:
            self._patch(monkeypatch, Database, "write", after=point == "after write")

    def _patch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool) -> None:
        real: Callable[..., Awaitable[Any]] = getattr(owner, name)

        async def doomed(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed  # nothing happens any more in a process that is gone
            if self.left == 0:
                self.struck = True
                if after:
                    await real(*args, **kwargs)
                raise Killed
            return await real(*args, **kwargs)

        monkeypatch.setattr(owner, name, doomed)


async def _killed_pass(world: World, point: Point, step: int) -> bool:
    """One pass that ends at the step; whether it got that far."""
    fence = await world.claim()
    with pytest.MonkeyPatch.context() as patch:
        killer = Killer(patch, point, step)
        try:
            await world.directory.handle(fence)
        except BaseExceptionGroup as group:
            assert group.split(Killed)[1] is None
        except Killed:
            pass
        return killer.struck


async def _baseline(path: Path, flavour: Any) -> int:
    """The requests that it takes without any accident."""
    db = Database(f"sqlite:{path}")
    await db.open()
    try:
        async with new_world(db, flavour, invite=(ALICE,), concurrency=1) as world:
            world.letta.set(agent(number, description="d") for number in NUMBERS)
            await world.settle()
            return len(world.fake.requests)
    finally:
        await db.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("flavour", ["synapse", pytest.param("tuwunel", marks=pytest.mark.full)])
@pytest.mark.parametrize("point", ["request lost", "answer lost", "write lost", "after write"])
async def test_killed_at_every_step(tmp_path: Path, point: Point, flavour: Any) -> None:
    quiet = await _baseline(tmp_path / "baseline.db", flavour)
    empty = tmp_path / "empty.db"
    db = Database(f"sqlite:{empty}")
    await db.open()
    await db.close()
    step = 0
    while True:
        step += 1
        copy = tmp_path / f"{step}.db"
        shutil.copy(empty, copy)
        db = Database(f"sqlite:{copy}")
        await db.open()
        try:
            async with new_world(db, flavour, invite=(ALICE,), concurrency=1) as world:
                world.letta.set(agent(number, description="d") for number in NUMBERS)
                if not await _killed_pass(world, point, step):
                    break
                await world.restart()
                await world.settle()
                await _check(world, quiet)
        finally:
            await db.close()
    assert step > 10


async def _check(world: World, quiet: int) -> None:
    world.check_complete(NUMBERS, [ALICE])
    assert len(world.fake.hs.rooms) == len(NUMBERS) + 1
    assert world.directory.progress == (len(NUMBERS), len(NUMBERS), 0)
    assert await world.alarms() == []
    uploads = sum(request.path.endswith("/upload") for request in world.fake.requests)
    assert uploads <= len(NUMBERS) + 1, "at most the one whose answer was lost"
    for room in world.fake.hs.rooms.values():
        events = Counter((event.type, event.state_key) for event in room.timeline)
        assert events[("m.room.member", ALICE)] == 1, "nobody is invited twice"
        assert max(count for (kind, _), count in events.items() if kind != "m.room.member") <= 2
    # at most: the step itself again, the bot's registration, finding a room again, its parent, people looked after
    assert len(world.fake.requests) <= quiet + 8


@pytest.mark.timeout(120)
async def test_killed_again_and_again(tmp_path: Path) -> None:
    """Every process gets three requests further and dies; many agents at a time."""
    db = Database(f"sqlite:{tmp_path / 'bridge.db'}")
    await db.open()
    try:
        async with new_world(db, invite=(ALICE,), concurrency=4) as world:
            world.letta.set(agent(number) for number in range(6))
            for _ in range(60):
                if not await _killed_pass(world, "answer lost", 4):
                    break
                await world.restart()
            await world.settle()
            world.check_complete(range(6), [ALICE])
            assert len(world.fake.hs.rooms) == 7
    finally:
        await db.close()
