"""Rooms in which something happened are looked at and set right: each once per event, none on uncertain evidence.

What a room's state shows differently than the agent's row says is written into the row; the provisioner then makes it
true as it makes everything true. What no row remembers (power, the room's own mark) is set right here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping

from ..db.agents import AgentRow, Agents
from ..db.alarms import Alarms
from ..db.database import Connection
from ..db.memory import Settings
from ..db.rooms import Rooms, doubt
from ..ids import RoomID
from ..lanes import FencedError
from ..matrix.homeserver import HomeserverError
from .outcome import Outcome
from .portal_repair import PortalMender
from .rests import Rests
from .settings import MirrorSettings
from .space import Space
from .space_repair import SpaceMender
from .trouble import unreachable
from .writer import Writer

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 500
_BATCH = 50
_CHECKED = "mirror_checked"
_TROUBLE = "room.damaged:"
_NEWS = "room.news"


class Repairs:
    """The part of a pass that looks at rooms.

    Args:
        clock: seconds that never go back, for waiting after a look that came to nothing.
    """

    def __init__(
        self,
        agents: Agents,
        rooms: Rooms,
        alarms: Alarms,
        settings: Settings,
        space: Space,
        portals: PortalMender,
        space_mender: SpaceMender,
        mirror: MirrorSettings,
        clock: Callable[[], float],
    ) -> None:
        self._agents = agents
        self._rooms = rooms
        self._alarms = alarms
        self._settings = settings
        self._space = space
        self._portals = portals
        self._space_mender = space_mender
        self._mirror = mirror
        self._rests: Rests[RoomID] = Rests(5.0, 600.0, clock)
        self._logged: dict[RoomID, list[str]] = {}
        self._round: list[RoomID] | None = None
        self._soon: set[RoomID] = set()

    @property
    def pauses(self) -> list[float]:
        """Seconds after which rooms are to be looked at without another reason, sooner than all others."""
        return [self._rests.left(room_id) for room_id in self._soon]

    async def run(self, writer: Writer) -> None:
        """Look at every room that is to be looked at, the space first.

        Raises:
            HomeserverError: the homeserver does nothing for us now.
            FencedError: another replica has the lane.
        """
        await self._go_round(writer)
        waiting = await self._rooms.to_look_at()
        self._soon &= waiting.keys()
        due = {room_id: reasons for room_id, reasons in waiting.items() if not self._rests.resting(room_id)}
        told = await self._told_of(writer)
        if not due and not told:
            return
        rows = await self._agents.all()
        space = self._space.room_id
        if space is not None and (reasons := due.pop(space, 0)):
            await self._one(space, reasons, self._space_mender.look(space, rows), writer)
        portals = {row.portal_room: row for row in rows if row.portal_room is not None}
        others = {room: due.get(room, 0) for room in {*due, *told} if room not in portals and room != space}
        await self._forget(others, writer)
        todo = [(portals[room], reasons) for room, reasons in due.items() if room in portals][:_MOST_AT_ONCE]
        stopped: list[FencedError | HomeserverError] = []
        async with asyncio.TaskGroup() as group:
            queue = iter(todo)
            for _ in range(min(self._mirror.concurrency, len(todo))):
                group.create_task(self._work(queue, writer, stopped))
        if stopped:
            raise stopped[0]

    async def _go_round(self, writer: Writer) -> None:
        """Every now and then every room is to be looked at, a few in each pass."""
        if self._mirror.check_every <= 0:
            return
        if self._round is None:
            age = await self._settings.age(_CHECKED)
            if age is None:  # nothing is older than this
                await self._settings.stamp(_CHECKED)
            if age is None or 0 <= age < self._mirror.check_every:
                return
            space = [self._space.room_id] if self._space.room_id else []
            self._round = space + [row.portal_room for row in await self._agents.all() if row.portal_room]
        batch, self._round = self._round[:_BATCH], self._round[_BATCH:]

        async def work(conn: Connection) -> None:
            for room_id in batch:
                await doubt(conn, room_id)

        await writer.run(work)
        if not self._round:
            self._round = None
            await self._settings.stamp(_CHECKED)

    async def _told_of(self, writer: Writer) -> set[RoomID]:
        """Rooms in trouble, as far as the admins know. News that were told are forgotten."""
        alarms = await self._alarms.all()
        if any(alarm.topic == _NEWS and alarm.told for alarm in alarms):
            await writer.run(lambda conn: self._alarms.drop_told(conn, _NEWS))
        up = [alarm.topic for alarm in alarms if not alarm.cleared]
        return {RoomID(topic.removeprefix(_TROUBLE)) for topic in up if topic.startswith(_TROUBLE)}

    async def _forget(self, rooms: Mapping[RoomID, int], writer: Writer) -> None:
        """Rooms that are none of the mirror's any more."""

        async def work(conn: Connection) -> None:
            for room_id, reasons in rooms.items():
                await self._rooms.looked_at(conn, room_id, reasons)
                await self._alarms.clear(conn, _topic(room_id))

        if rooms:
            await writer.run(work)

    async def _work(
        self, queue: Iterator[tuple[AgentRow, int]], writer: Writer, stopped: list[FencedError | HomeserverError]
    ) -> None:
        for row, reasons in queue:
            if stopped:
                return
            assert row.portal_room is not None
            try:
                await self._one(row.portal_room, reasons, self._portals.look(row), writer)
            except (FencedError, HomeserverError) as error:
                stopped.append(error)

    async def _one(self, room_id: RoomID, reasons: int, looking: Awaitable[Outcome], writer: Writer) -> None:
        """One room: the boundary at which its failure is reported and kept from the others."""
        try:
            outcome = await looking
        except HomeserverError as error:
            if unreachable(error):
                raise
            outcome = Outcome(unclear=str(error))
        except Exception as error:  # a room whose state breaks something must not stop the others
            log.exception("looking at a room broke", extra={"action": "look_error", "room": room_id})
            outcome = Outcome(unclear=type(error).__name__)
        if outcome.soon:
            self._soon.add(room_id)
        else:
            self._soon.discard(room_id)
        if outcome.unclear:
            pause = self._rests.failed(room_id)
            extra = {"action": "look_unclear", "room": room_id, "why": outcome.unclear, "retry_in": pause}
            log.info("a room cannot be judged now, nothing is done to it", extra=extra)
            return
        await self._write(room_id, reasons, outcome, writer)
        if outcome.again:
            self._rests.failed(room_id)
        else:
            self._rests.recovered(room_id)

    async def _write(self, room_id: RoomID, reasons: int, outcome: Outcome, writer: Writer) -> None:
        """What the look came to, in one commit; nothing when the agents' portals are others by now."""
        topic = _topic(room_id)

        async def work(conn: Connection) -> None:
            for row, _ in outcome.changes:
                now = await self._agents.get(row.agent_id, conn)
                if now is None or now.portal_room != row.portal_room:
                    return
            for row, columns in outcome.changes:
                if columns:
                    await self._agents.update_in(conn, row.agent_id, **columns)
            for also in outcome.also:
                await also(conn)
            for text in outcome.news:
                await self._alarms.add_news(conn, _NEWS, text)
            if outcome.troubles and self._logged.get(room_id, outcome.troubles) != outcome.troubles:
                await self._alarms.renew(conn, topic, "\n".join(outcome.troubles))  # it is something else now
            elif outcome.troubles:
                await self._alarms.raise_(conn, topic, "\n".join(outcome.troubles))
            else:
                await self._alarms.clear(conn, topic)
            if not outcome.again:
                await self._rooms.looked_at(conn, room_id, reasons)

        await writer.run(work)
        if outcome.troubles and self._logged.get(room_id) != outcome.troubles:
            extra = {"action": "room_trouble", "room": room_id, "what": "; ".join(outcome.troubles)}
            log.warning("a room is not as it should be", extra=extra)
        self._logged[room_id] = outcome.troubles


def _topic(room_id: RoomID) -> str:
    return _TROUBLE + room_id
