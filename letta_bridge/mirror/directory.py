"""The directory keeps puppets, portals and space equal to Letta's list of agents, safely.

Its passes run in the lane ``mirror``: one at a time, and on PostgreSQL in one replica. What a pass did stands in the
agents' rows, so that the next one, after whatever end, goes on where it stopped; when nothing changed, a pass asks the
homeserver nothing and writes nothing.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal
from weakref import WeakValueDictionary

from ..db.agents import AgentRow, Agents
from ..db.alarms import Alarms
from ..db.database import Connection, Database
from ..db.memory import Settings, Told
from ..db.past_rooms import PastRooms
from ..db.rooms import Rooms
from ..ids import MXID, AgentID, RoomID
from ..lanes import Fence, FencedError, Lanes
from ..letta.backend import Backend
from ..letta.errors import LettaError
from ..matrix.homeserver import Homeserver, HomeserverError
from .absence import Absences
from .avatar import Avatars
from .bot import Bot, Devices
from .comparison import in_slices
from .fights import Fights
from .listing import Listings
from .maker import RoomMaker
from .names import Names
from .orphans import Orphans
from .people import People
from .portal import Portals
from .portal_repair import PortalMender
from .provision import Provisioner
from .refresh import Refreshes
from .repair import Repairs
from .rests import Rests
from .roster import Changes, Roster
from .settings import MirrorSettings
from .settling import Settling
from .space import Space
from .space_repair import SpaceMender
from .staged import Staged
from .trouble import MirrorError, unreachable
from .writer import Writer

log = logging.getLogger(__name__)

LANE = "mirror"
_TELLS = "alarms"  # the lane in which admins are told
_ORPHAN = "room.orphan:"
_PROGRESS_EVERY = 5.0
_JITTER = 0.1
_CALM = 2.0
"""Seconds between passes that only changes in rooms ask for: whoever may change something could else keep us busy."""

Status = Literal["open", "done", "failed"]
Service = Literal["letta", "homeserver"]


class Directory:
    """The mirror of one Letta on one homeserver.

    Args:
        alarms: where it is noted that a person has to look at something.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        db: Database,
        agents: Agents,
        rooms: Rooms,
        settings: Settings,
        homeserver: Homeserver,
        backend: Backend,
        mirror_settings: MirrorSettings,
        lanes: Lanes,
        alarms: Alarms,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._agents = agents
        self._lanes = lanes
        self._homeserver = homeserver
        self._mirror = mirror_settings
        self._alarms = alarms
        self._rooms = rooms
        self._told = Told(db)
        self._names = Names(homeserver.domain, mirror_settings.puppet_prefix, homeserver.bot_mxid)
        self._listings = Listings(backend, self._names, mirror_settings, clock)
        self._roster = Roster(
            db, agents, settings, alarms, backend, self._listings, self._names, mirror_settings, clock
        )
        self.guard = self._roster.guard
        self.refreshes = Refreshes(db, lanes, LANE)
        self.absences = Absences(db, lanes, self._roster, self.refreshes, clock)
        guests = [mxid for mxid in dict.fromkeys(mirror_settings.invite) if not self._names.is_ours(mxid)]
        past = PastRooms(db)
        people = People(homeserver, rooms, past, self._told, guests, clock, self._names.is_ours)
        devices = Devices()
        self._maker = RoomMaker(homeserver, mirror_settings.room_version, clock)
        self._bot = Bot(homeserver, settings, mirror_settings.bot_displayname, devices)
        self._space = Space(homeserver, self._names, rooms, settings, mirror_settings, self._maker, people, clock)
        portals = Portals(homeserver, self._names, rooms, past, self._maker, people)
        avatars = Avatars(
            mirror_settings.avatar_hosts, mirror_settings.avatar_max_kib * 1024, mirror_settings.avatar_timeout
        )
        self._provisioner = Provisioner(homeserver, devices, avatars, portals, people, clock)
        self._orphans = Orphans(homeserver, agents, rooms, past)
        fights = Fights(clock)
        self._repairs = Repairs(
            agents,
            rooms,
            alarms,
            settings,
            self._space,
            PortalMender(
                homeserver,
                self._names,
                rooms,
                past,
                settings,
                fights,
                lambda: self._space.usable,
                people,
                Settling(clock),
                mirror_settings.history,
            ),
            SpaceMender(homeserver, past, fights, self._space),
            mirror_settings,
            clock,
        )
        self.staged = Staged(
            db=db,
            agents=agents,
            rooms=rooms,
            lanes=lanes,
            homeserver=homeserver,
            names=self._names,
            bot=self._bot,
            provisioner=self._provisioner,
            portals=portals,
            space=self._space,
            lock=self._lock,
        )
        self._rests: Rests[AgentID] = Rests(2.0, 600.0, clock)
        self._service_rests: Rests[Service] = Rests(2.0, 60.0, clock)
        self._troubles: dict[Service, str] = {}
        self._suspects: set[AgentID] = set()
        self._status: dict[AgentID, Status] = {}
        self._locks: WeakValueDictionary[AgentID, asyncio.Lock] = WeakValueDictionary()
        self._changes = Changes()
        self._waits_for = ""
        """What the newest pass did, and why it could not do all."""
        self._clock = clock
        self._ended: float | None = None
        self._listed: float | None = None
        """When the newest pass ended, and when Letta's list was last taken in; None: not by this process."""
        self._epoch: int | None = None
        """Of the newest pass: with another one, another replica may have been at work in between."""

    # -- what others ask

    def mxid_of(self, agent_id: AgentID) -> MXID:
        """The user id that a new agent's puppet gets. The one of an agent with a row stands there."""
        return self._names.mxid(agent_id)

    def is_ours(self, mxid: MXID) -> bool:
        """Whether the user is the bot or in the puppets' namespace."""
        return self._names.is_ours(mxid)

    @property
    def bot_mxid(self) -> MXID:
        """The bridge's own user."""
        return self._homeserver.bot_mxid

    @property
    def space_room(self) -> RoomID | None:
        """The space; None until it is made (or :meth:`start` has read it)."""
        return self._space.room_id

    @property
    def progress(self) -> tuple[int, int, int]:
        """How many agents are provisioned, of how many, and how many failed and wait to be tried again."""
        counts = Counter(self._status.values())
        return counts["done"], len(self._status), counts["failed"]

    def settled(self, row: AgentRow) -> bool:
        """Whether nothing of this agent is left to be made true on the homeserver."""
        return self._provisioner.done(row, self._space.room_id)

    async def our_letta(self) -> bool:
        """Whether the Letta that answers now is the one whose agents are mirrored, as far as that can be told: to be
        asked before anything is concluded from its saying that it does not have an agent.

        Raises:
            LettaError: it cannot be known now.
        """
        return await self._roster.ours()

    def lock(self, agent_id: AgentID) -> asyncio.Lock:
        """Held by whoever, in this process, makes something of this agent true."""
        return self._lock(agent_id)

    async def start(self) -> None:
        """Read from the database what the mirror needs to know at once, on every replica; asks nobody."""
        await self._bot.load()
        await self._space.load()

    async def open_lanes(self) -> list[str]:
        """The mirror's lane always has work; whichever replica is free takes it. Those that do not have it learn here
        what the one that does has made.
        """
        if self._epoch is None and not (self._bot.has_device and self._space.room_id):
            await self.start()
        return [LANE]

    async def resolve(self, mxid: MXID) -> AgentRow | None:
        """The agent behind a puppet's user id, its puppet registered, named and with its device.

        An agent that Letta does not list any more keeps its row, with the state ``missing`` or ``archived``. Letta is
        asked about an unknown id; its answer "no such agent" is believed for half a minute.

        Returns:
            None when there certainly is no such mirrored agent.

        Raises:
            LettaError: it cannot be known now.
            HomeserverError: the puppet cannot be made now.
        """
        if not self._names.is_puppet(mxid):
            return None
        row = await self._agents.by_mxid(mxid)
        if row is None:
            found = await self._listings.find(mxid)
            if found is None:
                return None
            if await self._roster.admit(*found):
                await self._db.write(lambda conn: self._lanes.announce(conn, LANE))
                self._lanes.wake(LANE)
            row = await self._agents.by_mxid(mxid)
            if row is None:  # it has the puppet of the agent whose place it took
                return None
        if row.state in ("missing", "archived"):
            return row if row.registered else None
        if self._provisioner.puppet_ready(row):
            return row
        async with self._lock(row.agent_id):
            fresh = await self._agents.get(row.agent_id)
            return await self._provisioner.puppet(fresh or row, Writer(self._db, self._agents, self._lanes, None))

    # -- one pass

    async def handle(self, fence: Fence) -> float | None:
        """The lane's work: one pass. Returns the seconds until the next."""
        if self._epoch != fence.epoch:
            await self.start()
            self._epoch, self._ended, self._listed = fence.epoch, None, None
        writer = Writer(self._db, self._agents, self._lanes, fence)
        asked = await self.refreshes.open()
        because_of_rooms = not asked and bool(await self._rooms.to_look_at())
        if because_of_rooms and (left := self._left(self._ended, _CALM)) > 0:
            return left
        self._changes, self._waits_for = Changes(), ""
        listed_lately = because_of_rooms and self._left(self._listed, self._mirror.poll_interval / 2) > 0
        pause = await self._pass(writer, ask_letta=not listed_lately)
        self._ended = self._clock()
        if asked:
            await self.refreshes.answer(writer, asked, self._changes, self._waits_for)
        return pause

    def _left(self, since: float | None, seconds: float) -> float:
        """How much of this time since then is left."""
        return 0.0 if since is None else since + seconds - self._clock()

    async def _pass(self, writer: Writer, *, ask_letta: bool) -> float:
        self._maker.ask_again()
        try:
            await self._bot.ready()
            pause = await self._look(writer) if ask_letta else None
            await self._repairs.run(writer)
            await self._space.ensure(writer)
            await self._provision(writer)
            await self._report_orphans(writer)
        except HomeserverError as error:
            if error.unknown_device:
                await self._bot.remake_device()
            elif not error.passing:
                self._bot.doubt()
            return self._trouble("homeserver", str(error))
        self._well("homeserver")
        return self._until_next(pause)

    def _until_next(self, letta_pause: float | None) -> float:
        pauses = [self._mirror.poll_interval * random.uniform(1 - _JITTER, 1 + _JITTER)]
        pauses += [self._rests.left(agent_id) for agent_id, status in self._status.items() if status == "failed"]
        pauses += self._repairs.pauses
        if letta_pause is not None:
            pauses.append(letta_pause)
        return max(min(pauses), 1.0)

    # -- taking in what Letta says

    async def _look(self, writer: Writer) -> float | None:
        """Bring the rows up to date. Returns seconds to wait when Letta did not answer, else None."""
        try:
            self._changes = await self._roster.look(writer)
            if self._roster.settled:
                await self.absences.decided(writer)
            if self._roster.to_tell:
                self._lanes.wake(_TELLS)
        except LettaError as error:
            return self._trouble("letta", error.kind.value)
        self._listed = self._clock()
        self._well("letta")
        return None

    # -- making it true

    async def _provision(self, writer: Writer) -> None:
        """Make every agent what its row says it should be, several at a time.

        Raises:
            FencedError: another replica has the lane.
            HomeserverError: it does nothing for us now.
        """
        rows = await self._agents.all()
        space = self._space.usable
        self._status = {row.agent_id: _status(row) for row in rows if row.state in ("new", "active")}
        due = [
            row.agent_id
            async for row in in_slices(rows)
            if not self._provisioner.done(row, space) and not self._rests.resting(row.agent_id)
        ]
        if not due:
            return
        stopped: list[FencedError | HomeserverError] = []
        queue = iter(due)
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(self._show_progress())
            workers = [
                group.create_task(self._work(queue, writer, stopped))
                for _ in range(min(self._mirror.concurrency, len(due)))
            ]
            await asyncio.wait(workers)
            ticker.cancel()
        if stopped:
            raise stopped[0]

    async def _work(
        self, queue: Iterator[AgentID], writer: Writer, stopped: list[FencedError | HomeserverError]
    ) -> None:
        """One of the concurrent hands: takes agents until none is left or something stops the whole pass."""
        for agent_id in queue:
            if stopped:
                return
            try:
                async with self._lock(agent_id):
                    await self._one(agent_id, writer)
            except (FencedError, HomeserverError) as error:
                stopped.append(error)

    async def _one(self, agent_id: AgentID, writer: Writer) -> None:
        """All of one agent: the boundary at which its failure is reported and kept from the others."""
        row = await self._agents.get(agent_id)
        if row is None:
            return
        troubled = bool(row.error)
        try:
            row = await self._provisioner.everything(row, writer, self._space.usable)
        except FencedError:
            raise
        except HomeserverError as error:
            if unreachable(error):
                raise
            if error.unknown_device:
                await self._provisioner.lost_device(row, writer)
                await self._bot.remake_device()
            await self._failed(row, str(error), writer)
        except MirrorError as error:
            await self._failed(row, str(error), writer)
            if error.conflict:
                await self._conflict(row, str(error), writer)
        except Exception as error:  # an agent whose data breaks something must not stop the others
            log.exception("provisioning broke", extra={"action": "agent_error", "agent": agent_id})
            await self._failed(row, type(error).__name__, writer)
        else:
            self._rests.recovered(agent_id)
            await self._no_conflict(agent_id, troubled, writer)
            self._note_status(agent_id, "done")

    def _note_status(self, agent_id: AgentID, status: Status) -> None:
        if agent_id in self._status:  # those that Letta does not list are not counted
            self._status[agent_id] = status

    async def _failed(self, row: AgentRow, text: str, writer: Writer) -> None:
        pause = self._rests.failed(row.agent_id)
        self._note_status(row.agent_id, "failed")
        if row.error == text:
            return
        log.warning(
            "agent could not be provisioned, will try again",
            extra={
                "action": "agent_failed",
                "agent": row.agent_id,
                "called": row.name,
                "error": text,
                "retry_in": pause,
            },
        )
        await writer.save(row, error=text)

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_EVERY)
            done, total, failed = self.progress
            log.info(
                "provisioning agents",
                extra={"action": "mirror_progress", "done": done, "total": total, "failed": failed},
            )

    # -- telling

    async def _conflict(self, row: AgentRow, text: str, writer: Writer) -> None:
        """Report a room that stands in the portal's place; not at first sight, it may be half made."""
        if row.agent_id in self._suspects:
            told = f"mirror.conflict:{row.agent_id}:{text}"
            await self._tell_once(f"room.conflict:{row.agent_id}", told, text, writer)
        self._suspects.add(row.agent_id)

    async def _no_conflict(self, agent_id: AgentID, troubled: bool, writer: Writer) -> None:
        """The portal is as it should be: whoever was told otherwise learns it."""
        if not troubled and agent_id not in self._suspects:
            return
        self._suspects.discard(agent_id)

        async def work(conn: Connection) -> None:
            await self._told.untell_all(conn, f"mirror.conflict:{agent_id}:")
            await self._alarms.clear(conn, f"room.conflict:{agent_id}")

        await writer.run(work)

    async def _report_orphans(self, writer: Writer) -> None:
        for row, room_id in await self._orphans.look(self._space.room_id):
            text = (
                f"The room {room_id} says it is the portal of {row.mxid}, whose portal is {row.portal_room}. "
                "The bridge does not use it; it can be left and forgotten."
            )
            await self._tell_once(f"{_ORPHAN}{room_id}", f"mirror.orphan:{room_id}", text, writer)
        reported = set(await self._alarms.up(_ORPHAN))
        if not reported:
            return
        left = reported - set(await self._rooms.rooms_of(self.bot_mxid))

        async def over(conn: Connection) -> None:
            for room in left:
                await self._told.untell(conn, f"mirror.orphan:{room}")
                await self._alarms.clear(conn, f"{_ORPHAN}{room}")

        if left:
            await writer.run(over)

    async def _tell_once(self, topic: str, told: str, text: str, writer: Writer) -> None:
        async def work(conn: Connection) -> bool:
            first = await self._told.first_time(conn, told)
            if first:
                await self._alarms.renew(conn, topic, text)
            return first

        if await writer.run(work):
            log.warning("a room needs to be looked at", extra={"action": "room_conflict", "detail": text})

    def _trouble(self, service: Service, text: str) -> float:
        """Log once that a service is in trouble; returns the seconds to wait."""
        pause = self._service_rests.failed(service)
        self._waits_for = f"{service}: {text}"
        if self._troubles.get(service) != text:
            self._troubles[service] = text
            log.warning("the mirror has to wait", extra={"action": "mirror_waits", "service": service, "error": text})
        return pause

    def _well(self, service: Service) -> None:
        self._service_rests.recovered(service)
        if self._troubles.pop(service, None) is not None:
            log.info("the mirror goes on", extra={"action": "mirror_goes_on", "service": service})

    def _lock(self, agent_id: AgentID) -> asyncio.Lock:
        return self._locks.setdefault(agent_id, asyncio.Lock())


def _status(row: AgentRow) -> Status:
    if row.error:
        return "failed"
    return "open" if row.state == "new" else "done"
