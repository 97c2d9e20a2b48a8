"""Shows an agent's earlier conversation in its portal: when that is new, and when somebody asks for it.

Every line has a transaction id that is computed from the room and Letta's own id of the message. A line that the outbox
or the room's timeline knows by it is not shown again, whatever was interrupted.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.outbox import Outgoing
from ..db.resetting import FROZEN, QUIET, put
from ..delivery.outgoing import ReplyTarget, Voice, notice
from ..errors import ABOUT_LETTA, TROUBLES, Fate
from ..ids import CONTENT_KEY, AgentID, RoomID
from ..lanes import Fence, FencedError
from ..letta.errors import Kind, LettaError
from ..matrix.homeserver import HomeserverError
from . import earlier
from .rests import Rests

if TYPE_CHECKING:
    from ..commands.desk import Desk

log = logging.getLogger(__name__)

LANE = "history"
FAILED = "history_failed|"
"""Setting, with the agent's id behind it: why its earlier conversation could not be read."""
_FROZEN_POLL = 1.0
_STAMPS = "homeserver_keeps_stamps"
_CONTEXT = 100
"""Lines read beyond those asked for: they tell to which room the first ones belong."""
_SLICE = 10
"""Lines put into the outbox at a time: an answer never waits behind more of them."""
_PATIENCE = 30.0
"""Seconds for which the room is waited for until it has sent what it has."""
_POLL = 0.05
_PAGES = 10
_AT_ONCE = 3
_FIRST_REST = 5.0
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Shown:
    """What became of one import: lines that were shown now, and whether that was all there is to show."""

    lines: int
    whole: bool


Finish = Callable[[Connection], Awaitable[None]]


async def show_earlier(
    desk: "Desk", fence: Fence, row: AgentRow, limit: int, source: str, finish: Finish | None = None
) -> Shown:
    """Show the last ``limit`` lines of the agent's main conversation that are not in its portal yet.

    Args:
        source: names this import for ever.
        finish: is written together with the last line.

    Raises:
        LettaError: the conversation cannot be read.
        HomeserverError: the portal cannot be read.
        FencedError: another replica has the lane.
    """
    return await _Import(desk, fence, row, source).run(limit, finish)


class _Import:
    def __init__(self, desk: "Desk", fence: Fence, row: AgentRow, source: str) -> None:
        assert row.portal_room is not None
        self._desk = desk
        self._fence = fence
        self._row = row
        self._room: RoomID = row.portal_room
        self._source = f"import|{source}"
        self._bot = desk.homeserver.bot_mxid

    async def run(self, limit: int, finish: Finish | None) -> Shown:
        items = await self._desk.backend.history(self._row.agent_id, limit + _CONTEXT)
        wanted = {(item.id, item.part) for item in items[-limit:]}
        lines = [line for line in earlier.said_elsewhere(items, self._room) if (line.item.id, line.item.part) in wanted]
        lines = await self._not_shown(await self._not_withdrawn(lines))
        if not lines:
            if finish is not None:
                await self._desk.lanes.write(self._fence, finish)
            return Shown(0, True)
        now = int(time.time() * 1000)
        stamps = earlier.stamps(lines, now)
        dated = await self._head(len(lines), next((stamp for stamp in stamps if stamp is not None), None))
        if dated is None:
            return Shown(0, False)
        events = [
            earlier.events_of(self._row, line, stamp, self._look(dated, now))
            for line, stamp in zip(lines, stamps, strict=True)
        ]
        return await self._pour(events, finish)

    def _look(self, dated: bool, now: int = 0) -> earlier.Look:
        part = self._desk.config.limits.reply_part_kib * 1024
        return earlier.Look(bot=self._bot, part_bytes=part, dated=dated, now=now)

    # -- what is left out

    async def _not_withdrawn(self, lines: Sequence[earlier.Line]) -> list[earlier.Line]:
        """Without what its sender took back: it was said in a room before this one, and is not brought back here."""
        left: list[earlier.Line] = []
        closed: set[RoomID] = set()
        for line in lines:
            event = earlier.event_told(line)
            if event is None or not await self._withdrawn(*event, closed):
                left.append(line)
        return left

    async def _withdrawn(self, room_id: RoomID, event_id: str, closed: set[RoomID]) -> bool:
        taken_back = await self._desk.db.fetchval(
            "SELECT 1 FROM turn_event WHERE event_id = $1 AND agent_id = $2 AND withdrawn <> 0",
            event_id,
            self._row.agent_id,
        )
        if taken_back or room_id in closed:
            return bool(taken_back)
        try:
            found = await self._desk.homeserver.intent(self._row.mxid).event(room_id, event_id)  # type: ignore[arg-type]
        except HomeserverError:  # the room is gone, or closed to us: nothing more can be found out there
            closed.add(room_id)
            return False
        return found.get("type") == "m.room.message" and not found.get("content")

    async def _not_shown(self, lines: Sequence[earlier.Line]) -> list[earlier.Line]:
        if not lines:
            return []
        look = self._look(False)
        txns = [earlier.first_txn(self._row, line, look) for line in lines]
        shown = {txn for txn in txns if await self._desk.outbox.state_of(txn) is not None}
        if len(shown) < len(lines):
            shown |= await self._in_timeline()
        return [line for line, txn in zip(lines, txns, strict=True) if txn not in shown]

    async def _in_timeline(self) -> set[str]:
        """What an import before this one has shown, also one that the database does not remember."""
        shown: set[str] = set()
        start: str | None = None
        for _ in range(_PAGES):
            page = await self._desk.homeserver.bot.messages_back(self._room, start, 100)
            for event in page["chunk"]:
                content = event.get("content") if isinstance(event, Mapping) else None
                marker = content.get(CONTENT_KEY) if isinstance(content, Mapping) else None
                if isinstance(marker, Mapping) and self._desk.directory.is_ours(event.get("sender")):
                    shown.add(str(marker.get("txn")))
            start = page.get("end")
            if not isinstance(start, str) or not page["chunk"]:
                break
        return shown

    # -- into the outbox

    async def _head(self, lines: int, stamp: int | None) -> bool | None:
        """Say that something comes. Returns whether times are to be written into the texts, None if not now."""
        out = earlier.head(self._row, self._bot, self._source, lines, stamp)
        known = await self._desk.settings.get(_STAMPS)
        if stamp is None or known is not None:
            await self._add([out])
            return known == "no"
        if not await self._quiet():
            return None
        await self._add([out])
        if not await self._quiet():
            return None
        event_id = await self._desk.outbox.event_of(out.txn_id)
        if event_id is None:
            return True
        event = await self._desk.homeserver.bot.event(self._room, event_id)
        if event.get("origin_server_ts") == stamp:
            await self._desk.settings.set(_STAMPS, "yes")
            return False
        await self._desk.settings.set(_STAMPS, "no")
        return True

    async def _pour(self, events: Sequence[Sequence[Outgoing]], finish: Finish | None) -> Shown:
        """A few lines at a time, each time after everything that the room has to send."""
        for start in range(0, len(events), _SLICE):
            if not await self._quiet():
                return Shown(start, False)
            outs = [out for line in events[start : start + _SLICE] for out in line]
            last = start + _SLICE >= len(events)
            if last:
                outs.append(earlier.foot(self._row, self._bot, self._source))
            await self._add(outs, finish if last else None)
        return Shown(len(events), True)

    async def _add(self, outs: Sequence[Outgoing], finish: Finish | None = None) -> None:
        lane = f"send:{self._room}"

        async def work(conn: Connection) -> None:
            for out in outs:
                await self._desk.outbox.add(conn, out)
            await self._desk.lanes.announce(conn, lane)
            if finish is not None:
                await finish(conn)

        await self._desk.lanes.write(self._fence, work)
        self._desk.lanes.wake(lane)

    async def _quiet(self) -> bool:
        """Wait until the room has sent what it has; False if that takes too long, or the bridge stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while not self._desk.lanes.closing:
                    if await self._desk.outbox.head(self._room) is None:
                        return True
                    await asyncio.sleep(_POLL)
        return False


class HistoryLane:
    """Handler of the lane ``history``: new portals get their earlier lines, a few at a time, behind the mirror."""

    def __init__(self, desk: "Desk", clock: Callable[[], float] = time.monotonic) -> None:
        self._desk = desk
        self._rests: Rests[AgentID] = Rests(_FIRST_REST, 600.0, clock)
        self._tries: dict[AgentID, int] = {}
        self._was_frozen = False

    @property
    def _limit(self) -> int:
        return self._desk.config.mirror.history

    async def open_lanes(self) -> list[str]:
        """Whether there is anything to do."""
        return [LANE] if self._limit > 0 and await self._desk.agents.history_due(1) else []

    def behind(self, handler: Callable[[Fence], Awaitable[float | None]]) -> Callable[[Fence], Awaitable[float | None]]:
        """The mirror's handler, after which this lane is woken: what it has made gets its lines at once.

        While everything is thrown away it rests, and says so; what it remembers is read anew afterwards.
        """

        async def both(fence: Fence) -> float | None:
            if (job := await self._desk.settings.get(FROZEN)) is not None:
                self._was_frozen = True
                if await self._desk.settings.get(QUIET) != job:
                    await self._desk.lanes.write(fence, lambda conn: put(conn, QUIET, job))
                return _FROZEN_POLL
            if self._was_frozen:
                await self._desk.directory.start()
                self._was_frozen = False
            pause = await handler(fence)
            for lane in await self.open_lanes():
                self._desk.lanes.wake(lane)
            return pause

        return both

    async def handle(self, fence: Fence) -> float | None:
        """Everybody whose lines are due. Returns the seconds after which those that failed are tried again."""
        if self._limit <= 0 or await self._desk.settings.get(FROZEN) is not None:
            return None
        due = await self._desk.agents.history_due(1000)
        queue = iter([row for row in due if not self._rests.resting(row.agent_id)])
        fenced: list[FencedError] = []

        async def work() -> None:
            for row in queue:
                if self._desk.lanes.closing or fenced:
                    return
                try:
                    await self._one(fence, row)
                except FencedError as error:
                    fenced.append(error)

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(work())
        if fenced:
            raise fenced[0]
        left = [self._rests.left(row.agent_id) for row in await self._desk.agents.history_due(1000)]
        return max(min(left), 0.5) if left else None

    async def _one(self, fence: Fence, row: AgentRow) -> None:
        """One agent: what fails is tried again later, what Letta refuses for good is said once."""

        async def finish(conn: Connection) -> None:
            await self._desk.agents.update_in(conn, row.agent_id, history="done")

        try:
            shown = await show_earlier(self._desk, fence, row, self._limit, f"{row.agent_id}|first", finish)
        except LettaError as error:
            if not self._hopeless(row, error):
                self._put_off(row, str(error))
                return
            await self._give_up(fence, row, ABOUT_LETTA[error.kind])
        except HomeserverError as error:
            self._put_off(row, str(error))
            return
        else:
            if not shown.whole:
                self._rests.failed(row.agent_id)
                return
            if shown.lines:
                log.info(
                    "earlier lines were shown",
                    extra={"action": "history_shown", "agent": row.agent_id, "lines": shown.lines},
                )
        self._rests.recovered(row.agent_id)
        self._tries.pop(row.agent_id, None)

    def _hopeless(self, row: AgentRow, error: LettaError) -> bool:
        if error.kind is Kind.AGENT_GONE:  # the mirror will see that too; it is due again when the agent comes back
            return False
        fate = TROUBLES[error.kind].fate
        if fate is Fate.WAIT or error.kind is Kind.TIMEOUT:
            return False
        self._tries[row.agent_id] = self._tries.get(row.agent_id, 0) + 1
        return fate is Fate.GIVE_UP or self._tries[row.agent_id] >= _TRIES

    def _put_off(self, row: AgentRow, why: str) -> None:
        pause = self._rests.failed(row.agent_id)
        extra = {"action": "history_waits", "agent": row.agent_id, "why": why, "retry_in": pause}
        if pause == _FIRST_REST:  # said the first time only
            log.warning("an agent's earlier lines cannot be shown yet", extra=extra)

    async def _give_up(self, fence: Fence, row: AgentRow, why: str) -> None:
        assert row.portal_room is not None
        log.error(
            "an agent's earlier lines cannot be read",
            extra={"action": "history_failed", "agent": row.agent_id, "why": why},
        )
        text = f"My earlier conversation cannot be shown here: {why}. `!letta import` tries it again."
        voice = Voice(row.mxid, row.portal_room, row.agent_id)
        out = notice(voice, text, ReplyTarget(), source=f"import|{row.agent_id}|first", kind="import_failed")

        async def work(conn: Connection) -> None:
            await self._desk.agents.update_in(conn, row.agent_id, history="done")
            await set_failed(conn, row.agent_id, why)
            await self._desk.outbox.add(conn, out)
            await self._desk.lanes.announce(conn, f"send:{row.portal_room}")

        await self._desk.lanes.write(fence, work)
        self._desk.lanes.wake(f"send:{row.portal_room}")


async def set_failed(conn: Connection, agent_id: AgentID, why: str) -> None:
    """Within a transaction: note why the agent's earlier conversation cannot be shown; an empty text: it can."""
    if why:
        await put(conn, FAILED + agent_id, why)
    else:
        await conn.execute("DELETE FROM setting WHERE name = $1", FAILED + agent_id)
