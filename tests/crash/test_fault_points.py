"""``kill -9`` and SIGSTOP at every named place of a message's way, on both databases, with and without Redis at Letta.

One bridge after the other works on the same rooms and the same database: what an earlier one left behind is there when
the next is killed. Everything is counted from outside, by the person's client and by Letta.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge import faults
from letta_bridge.testing.stack.postgres import LocalPostgres

from ..integration.world import DOMAIN
from .harness import ROOT, crash_world
from .nursery import Nursery
from .stage import Stage

_LEASE = 0.6
_FREEZE = 1.25 * _LEASE
"""Seconds of a freeze: the lease has run out, and the homeserver has given up and tried again."""


@dataclass(frozen=True)
class Scene:
    """How a place comes to be passed.

    Attributes:
        count: the pass at which the bridge dies.
        style: how the agent answers, see :class:`Stage`.
        stopping: it is passed when the bridge is told to end while a turn runs.
        fresh: it is passed only by a bridge that has just been started.
        summons: it is passed by a job.
        refused: a request that the homeserver refuses, so that the job is taken back.
    """

    count: int = 1
    style: str = "short"
    stopping: bool = False
    fresh: bool = False
    summons: bool = False
    refused: str = ""


SCENES: dict[str, list[Scene]] = {
    "intake.read": [Scene()],
    "intake.stored": [Scene()],
    "intake.committed": [Scene()],
    "intake.woken": [Scene()],
    "lane.claimed": [Scene(count=2, fresh=True)],
    "dispatch.decided": [Scene(count=2)],
    "dispatch.written": [Scene()],
    "turn.begun": [Scene()],
    "turn.named": [Scene(), Scene(style="slow")],
    "turn.accepted": [Scene(style="slow")],
    "turn.chunk": [Scene(), Scene(count=6, style="slow")],
    "turn.ended": [Scene(), Scene(style="slow")],
    "turn.replied": [Scene(count=2)],
    "send.before": [Scene(), Scene(count=2, style="long")],
    "send.after": [Scene(), Scene(count=2, style="long")],
    "send.recorded": [Scene(style="long"), Scene(count=2, style="slow")],
    "edit.before": [Scene(style="slow")],
    "edit.after": [Scene(style="slow")],
    "receipt.before": [Scene()],
    "receipt.after": [Scene(count=2)],
    "job.step": [Scene(count=2, summons=True)],
    "job.stepped": [Scene(summons=True)],
    "job.recorded": [Scene(count=3, summons=True)],
    "job.undo": [Scene(count=2, summons=True, refused=r"m\.space\.child")],
    "drain.begun": [Scene(stopping=True)],
    "drain.ended": [Scene(stopping=True)],
}
FIRST = [pytest.param(point, scenes[0], id=point) for point, scenes in SCENES.items()]
FURTHER = [
    pytest.param(point, scene, id=f"{point}-{scene.style}", marks=pytest.mark.full if scene.count == 1 else ())
    for point, scenes in SCENES.items()
    for scene in scenes[1:]
]
LEASED = ("intake.stored", "lane.", "turn.", "send.", "job.")
"""Places at which a freeze is tried on PostgreSQL in every run: there the lease matters."""
FROZEN = [
    pytest.param(
        setting,
        *case.values,
        id=f"{setting}-{case.id}",
        marks=[
            *([pytest.mark.postgres] if setting.startswith("postgres") else []),
            *([] if str(case.id).startswith(LEASED) == setting.startswith("postgres") else [pytest.mark.full]),
        ],
    )
    for setting in ("sqlite", "postgres-redis")
    for case in FIRST
]


def test_every_place_is_covered_and_passed_once_in_the_code() -> None:
    assert set(SCENES) == set(faults.POINTS)
    code = "\n".join(path.read_text() for path in (ROOT / "letta_bridge").rglob("*.py"))
    reached = re.findall(r'reach\("([a-z.]+)"\)', code)
    assert sorted(reached) == sorted(faults.POINTS)


# -- one world for all places of a database; after a failure the next place gets a new one


class Worlds:
    """The stage of the module, made anew once a test has failed on it."""

    def __init__(self, folder: Path, postgres: LocalPostgres | None, redis: bool, processes: Nursery) -> None:
        self._folder, self._postgres, self._redis, self._processes = folder, postgres, redis, processes
        self._stack = AsyncExitStack()
        self._made = 0
        self.stage: Stage | None = None

    async def ready(self) -> Stage:
        if self.stage is None:
            await self._stack.aclose()
            self._made += 1
            folder, database = self._folder / str(self._made), "sqlite:bridge.db"
            folder.mkdir()
            if self._postgres is not None:
                name = f"points_{self._folder.name}_{self._made}".replace("-", "_")
                database = await self._postgres.create_database(name)
                self._stack.push_async_callback(self._postgres.drop_database, name)
            world = crash_world(folder, database, redis=self._redis, nursery=self._processes)
            stage = Stage(await self._stack.enter_async_context(world))
            admins = {DOMAIN: "user", f"@alice:{DOMAIN}": "admin"}
            stage.world.settings = {"limits.reply_part_kib": 1, "permissions": admins, "management.rooms": False}
            await stage.set()
            self.stage = stage
        return self.stage

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture(
    scope="module",
    params=[
        "sqlite",
        pytest.param("postgres-redis", marks=pytest.mark.postgres),
        pytest.param("sqlite-redis", marks=pytest.mark.full),
        pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.full]),
    ],
)
def setting(request: pytest.FixtureRequest) -> tuple[str, LocalPostgres | None]:
    """A database, and whether Letta has Redis."""
    name = str(request.param)
    return name, request.getfixturevalue("postgres_server") if name.startswith("postgres") else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds(
    setting: tuple[str, LocalPostgres | None], processes: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Worlds]:
    name, postgres = setting
    made = Worlds(tmp_path_factory.mktemp(name), postgres, name.endswith("redis"), processes)
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stage(worlds: Worlds) -> AsyncIterator[Stage]:
    """The stage with everything answered. It is used again only by a test that left it so."""
    made = await worlds.ready()
    worlds.stage = None
    try:
        yield made
    finally:
        made.style = "short"
        made.world.hs.push_settings.timeout = 60.0
        if made.intact:
            made.intact = False
            worlds.stage = made


# -- the tests


async def pass_the_place(stage: Stage, scene: Scene, at: str) -> None:
    """Arm the bridge, and let people talk, or the bridge be stopped or started, so that the place is passed."""
    stage.style = scene.style
    world = stage.world
    if scene.fresh:
        world.kill()
        await stage.say(0, 1, 2, 0)
        world.child = world.spawn(at=at)
        return
    world.arm(at)
    if scene.summons:
        if scene.refused:
            world.hs.fail_next(scene.refused, times=1, status=400, errcode="M_UNKNOWN")
        await stage.summon()
    if not scene.stopping:
        await stage.say(*((0, 1, 2, 0) if scene.style == "short" else (0,)))
        return
    hold = world.letta.hold(stage.ada)
    await stage.say(0, 1, 2)
    await hold.entered()
    assert world.child is not None
    world.child.send_signal(signal.SIGTERM)
    stage.held = hold


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("point", "scene"), FIRST + FURTHER)
async def test_killed(stage: Stage, point: str, scene: Scene) -> None:
    world = stage.world
    at = f"{point}:{scene.count}:kill"
    await pass_the_place(stage, scene, at)
    await world.died()
    assert world.struck == at
    await stage.say(0, 1, 2)  # while nobody listens
    await world.start()
    await stage.settled()  # and the same bridge goes on with the next place


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("setting", "point", "scene"), FROZEN, indirect=["setting"])
async def test_frozen_for_longer_than_the_lease_and_thawed(stage: Stage, point: str, scene: Scene) -> None:
    world = stage.world
    world.hs.push_settings.timeout = 0.5 * _LEASE
    at = f"{point}:{scene.count}:stop"
    await pass_the_place(stage, scene, at)
    await world.froze()
    assert world.struck == at
    await stage.say(0, 1, 2)
    await asyncio.sleep(_FREEZE)
    world.thaw()
    if scene.stopping:
        assert world.child is not None
        await world.child.wait_exit(15)
        await world.start()
    await stage.settled()  # and the same bridge goes on with the next place
