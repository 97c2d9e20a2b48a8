"""The mirror of one Letta on one homeserver, pass by pass, with time and deaths under the test's control."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from letta_bridge.db.agents import AgentRow, Agents
from letta_bridge.db.alarms import Alarms
from letta_bridge.db.database import Connection, Database
from letta_bridge.db.memory import Settings
from letta_bridge.db.rooms import Rooms, doubt, doubt_all
from letta_bridge.ids import AgentID, RoomID
from letta_bridge.lanes import Fence
from letta_bridge.letta.backend import AgentListing, Backend
from letta_bridge.letta.v1 import V1Backend
from letta_bridge.mirror.damage import may_damage
from letta_bridge.mirror.directory import LANE, Directory
from letta_bridge.mirror.replace import FULL_CHECK
from letta_bridge.mirror.settings import MirrorSettings
from letta_bridge.sight import Sight
from letta_bridge.testing.fake_letta import FakeLetta

from ..integration.mirror_world import Clock, QuietLanes
from ..integration.test_mirror_resume import Killed, Killer, Point
from .places import Place

DAY = 90_000.0
"""A little more than a day."""


class Counter(Sight):
    """Counts what the bridge asks of the homeserver."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def homeserver(self, call: str, status: int, seconds: float) -> None:
        self.calls.append(f"{call} {status}")


class Witness:
    """Letta as the bridge sees it; notes which lists it was given, and that no complete one lacks an agent."""

    def __init__(self, letta: FakeLetta) -> None:
        self._letta = letta
        self._backend = V1Backend(letta.url, None, request_timeout=1.5)
        self.complete: list[bool] = []
        self.shown: set[str] = set()
        """Whom the newest list had."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def list_agents(self) -> AgentListing:
        listing = await self._backend.list_agents()
        shown = {agent_id for agent_id, agent in self._letta.agents.items() if not agent.hidden}
        got = {str(agent.id) for agent in listing.agents}
        assert got <= set(self._letta.agents)
        assert not listing.complete or got == shown, "a list that lacks agents is called complete"
        self.complete.append(listing.complete)
        self.shown = got
        return listing


@dataclass
class Rig:
    """All parts; ``directory`` is of the process that runs now."""

    place: Place
    letta: FakeLetta
    db: Database
    settings: MirrorSettings
    clock: Clock = field(default_factory=Clock)
    sight: Counter = field(default_factory=Counter)
    epoch: int = 0
    directory: Directory = field(init=False)

    def __post_init__(self) -> None:
        self.agents, self.rooms, self.memory = Agents(self.db), Rooms(self.db), Settings(self.db)
        self.lanes = QuietLanes(self.db)
        self.witness = Witness(self.letta)
        self._build()

    def _build(self) -> None:
        self.homeserver = self.place.connect(self.sight)
        self.directory = Directory(
            self.db,
            self.agents,
            self.rooms,
            self.memory,
            self.homeserver,
            cast(Backend, self.witness),
            self.settings,
            self.lanes,
            Alarms(self.db),
            clock=self.clock,
        )

    async def close(self) -> None:
        await self.homeserver.close()
        await self.witness.close()

    async def restart(self) -> None:
        """A new process over the same database: only what was written down is known."""
        await self.homeserver.close()
        self._build()

    async def claim(self) -> Fence:
        """Own the mirror's lane, as a replica that has just taken it."""
        self.epoch += 1

        async def work(conn: Connection) -> None:
            await conn.execute(
                "INSERT INTO lane (lane, owner, epoch) VALUES ($1, 'test', $2) "
                "ON CONFLICT (lane) DO UPDATE SET owner = 'test', epoch = $2",
                LANE,
                self.epoch,
            )

        await self.db.write(work)
        return Fence(LANE, "test", self.epoch)

    async def run_pass(self) -> None:
        """What was pushed is taken in, then one pass."""
        await self.take_in()
        await self.directory.refreshes.request()
        await self.directory.handle(await self.claim())

    async def killed_pass(self, point: Point, step: int) -> bool:
        """One pass that ends with the process at this step, and the next process; whether it got that far."""
        await self.take_in()
        await self.directory.refreshes.request()
        fence = await self.claim()
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, point, step)
            try:
                await self.directory.handle(fence)
            except BaseExceptionGroup as group:
                assert group.split(Killed)[1] is None
            except Killed:
                pass
        await self.restart()
        return killer.struck

    async def take_in(self) -> None:
        """What the homeserver pushed, as the intake takes in state."""
        events = await self.place.pushed()

        async def work(conn: Connection) -> None:
            for event in events:
                if "state_key" in event:
                    room = RoomID(event["room_id"])
                    await self.rooms.apply(conn, room, event)
                    if may_damage(event, self.directory.is_ours):
                        await doubt(conn, room)

        if events:
            await self.db.write(work)

    async def damaged(self, room: str) -> None:
        await self.db.write(lambda conn: doubt(conn, RoomID(room)))

    async def full_check(self) -> None:
        """What an admin asks for with ``sync --full``."""
        await self.memory.stamp(FULL_CHECK)
        await self.db.write(doubt_all)

    async def rows(self) -> dict[str, AgentRow]:
        return {str(row.agent_id): row for row in await self.agents.all()}

    async def row(self, agent_id: str) -> AgentRow:
        row = await self.agents.get(AgentID(agent_id))
        assert row is not None
        return row

    async def alarms(self) -> list[str]:
        alarms = await Alarms(self.db).all()
        return [alarm.text for alarm in alarms if not alarm.cleared and alarm.topic != "room.news"]

    async def confirm(self) -> tuple[set[str], str | None] | None:
        """An admin says yes to what is frozen: who is gone, and which Letta was meant if it was about that."""
        frozen = (await self.directory.guard.read()).frozen
        if frozen is None:
            return None
        assert await self.db.write(lambda conn: self.directory.guard.confirm(conn, frozen.nonce))
        return {*frozen.gone, *frozen.before}, frozen.fingerprint if frozen.why == "another" else None

    async def days_pass(self, *, watched: bool) -> None:
        """A day goes by. ``watched``: with plausible lists all the time; else nobody looked, or saw nothing."""

        async def work(conn: Connection) -> None:
            await conn.execute("UPDATE agent SET missing_since = missing_since - $1", DAY)
            await conn.execute("UPDATE past_room SET at = at - $1", DAY)
            await conn.execute("UPDATE told SET at = at - $1", DAY)
            if not watched:
                value = await conn.fetchval("SELECT value FROM setting WHERE name = 'roster.looked'")
                if value is not None:
                    text = str(float(value) - DAY)
                    await conn.execute("UPDATE setting SET value = $1 WHERE name = 'roster.looked'", text)

        await self.db.write(work)
        self.clock.now += DAY

    async def quiet(self, passes: int = 14) -> None:
        """Passes, with hours going by, until one asks the homeserver nothing and nothing is left to look at."""
        for _ in range(passes):
            before = len(self.sight.calls)
            await self.run_pass()
            waits = [row for row in await self.agents.all() if row.error] or await self.rooms.to_look_at()
            if len(self.sight.calls) == before and not waits:
                return
            self.clock.now += 4000.0
        raise AssertionError(f"the mirror does not come to rest: {self.sight.calls[before:]}, {await self.alarms()}")
