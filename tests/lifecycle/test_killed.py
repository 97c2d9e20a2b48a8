"""``kill -9`` after every single request of summon, despawn and recall, to homeserver and Letta: afterwards there
is exactly one of everything.

The servers do what they were asked and never answer: the process that asked is dead by then.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_homeserver.faults import Fault as MatrixFault
from letta_bridge.testing.fake_letta.faults import Fault as LettaFault

from ..crash.harness import CrashWorld, crash_world
from ..crash.nursery import Nursery
from ..crash.test_jobs import ended, one_of_each, reports_of, start
from ..integration.life_kit import children, content, live_portals, named, portals
from ..integration.world import DOMAIN, until

pytestmark = pytest.mark.timeout(180)


class Death:
    """Kills the bridge at the n-th request that it makes from now on, whichever server it asks.

    Pings and reads of Letta's health do not count: they come by themselves.
    """

    def __init__(self, world: CrashWorld, after: bool) -> None:
        self.world = world
        self.after = after
        """Whether the request is worked on."""
        self.left = 0
        self.struck = ""

    def arm(self, step: int) -> None:
        self.left, self.struck = step, ""

    def disarm(self) -> None:
        self.left = 0

    def comes(self, method: str, path: str) -> bool:
        """A request comes in; whether it was the last one of this process."""
        if self.left == 0 or re.search(r"/ping$|/versions$|/capabilities$|/health", path):
            return False
        self.left -= 1
        if self.left:
            return False
        self.struck = f"{method} {path}"
        self.world.kill()
        return True


class AtHomeserver(MatrixFault):
    """As a fault of the imitation: it sees every request."""

    death: Death

    def strikes(self, method: str, path: str) -> bool:
        return self.death.comes(method, path)


class AtLetta(LettaFault):
    """Likewise. What changes agents counts; who only reads them can die without a trace."""

    death: Death

    def claims(self, request: Any) -> bool:
        changes = request.method != "GET" and request.path.startswith("/v1/agents")
        return changes and self.death.comes(request.method, request.path)


def deadly(world: CrashWorld, after: bool) -> Death:
    """Have both servers count."""
    death = Death(world, after)
    matrix = AtHomeserver(re.compile(""), None, status=502, after_processing="disconnect" if after else False)
    letta = AtLetta(re.compile(""), "disconnect", 1, None, after, None)
    matrix.death = letta.death = death
    world.hs.faults.failing.append(matrix)
    world.letta._core.faults.append(letta)
    return death


@pytest_asyncio.fixture
async def world(tmp_path: Path, processes: Nursery) -> AsyncIterator[CrashWorld]:
    async with crash_world(tmp_path, "sqlite:bridge.db", nursery=processes) as made:
        made.settings = {
            "permissions": {f"@admin:{DOMAIN}": "admin"},
            "management.rooms": False,
            "letta.poll_interval": 3600,
        }
        yield made


LATE = pytest.mark.parametrize(
    "after", [True, pytest.param(False, marks=pytest.mark.full)], ids=["answer lost", "request lost"]
)


@LATE
async def test_summon(world: CrashWorld, after: bool) -> None:
    admin, room = await start(world)
    death = deadly(world, after)
    struck: list[str] = []
    for step in itertools.count(1):
        name = f"Agent {step}"
        await _command(world, death, admin, room, f"summon {name}", "open its room", step)
        await world.hs.wait_until(lambda: len(children(world.hs)) == step, 10, "the space")  # noqa: B023
        one_of_each(world, name)
        assert len(reports_of(admin, room, f"Summoning {name}")) == 1, f"killed at {death.struck}"
        assert len(world.letta.agents) == len(portals(world.hs)) == step, f"killed at {death.struck}"
        if not death.struck:
            break
        struck.append(death.struck)
    assert sum("createRoom" in one for one in struck) == 1
    assert sum("POST /v1/agents/" in one for one in struck) == 1
    assert len(struck) >= 8


@LATE
async def test_despawn_and_recall(world: CrashWorld, after: bool) -> None:
    admin, room = await start(world)
    death = deadly(world, after)
    await admin.send(room, "!letta summon Ada")
    await ended(world, admin, room, "open its room", 1)
    agent_id = one_of_each(world, "Ada")
    (portal,) = portals(world.hs)
    struck: set[str] = set()
    for step in itertools.count(1):
        await _command(world, death, admin, room, "despawn Ada", "In Letta it is untouched", step)
        first = death.struck
        assert named(world.letta, "Ada") == [agent_id]
        assert content(world.hs, portal, "m.room.name") == {"name": "Ada (archived)"}, f"killed at {first}"
        assert children(world.hs) == [] and portals(world.hs) == [portal]
        assert not world.hs.hs.accounts.users[world.puppet(agent_id)].profile.get("displayname")
        await _command(world, death, admin, room, f"recall {agent_id}", "is back", step)
        assert one_of_each(world, "Ada") == agent_id, f"killed at {death.struck}"
        assert live_portals(world.hs) == children(world.hs) == [portal]
        struck |= {first, death.struck}
        if not first and not death.struck:
            break
    assert len(struck) >= 6


async def _command(world: CrashWorld, death: Death, admin: Person, room: str, line: str, words: str, step: int) -> None:
    """A command during which the bridge dies at the step, if it gets that far; its job's end is told once more."""
    before = len(reports_of(admin, room, words))
    death.arm(step)
    await admin.send(room, f"!letta {line}")
    assert world.child is not None
    child = world.child
    await until(lambda: not child.running or len(reports_of(admin, room, words)) > before, 20, why="no end")
    death.disarm()
    if not child.running:
        assert death.struck, child.log_tail(40)
        await world.start()
    await ended(world, admin, room, words, before + 1)
