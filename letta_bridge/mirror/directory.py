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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

from ..db.agents import AgentRow, Agents
from ..db.database import Database, clean
from ..db.memory import Settings, Told
from ..db.rooms import Rooms
from ..ids import MXID, AgentID, RoomID
from ..lanes import Fence, FencedError, Lanes
from ..letta.backend import Agent, AgentListing, Backend
from ..letta.errors import LettaError
from ..matrix.homeserver import Homeserver, HomeserverError
from .avatar import Avatars, avatar_source
from .bot import Bot, Devices, new_device_id
from .listing import Listings
from .maker import RoomMaker
from .names import Names
from .orphans import Orphans
from .people import People
from .portal import Portals
from .provision import Provisioner
from .rests import Rests
from .settings import MirrorSettings
from .space import Space
from .trouble import MirrorError, unreachable
from .writer import Writer

log = logging.getLogger(__name__)

LANE = "mirror"
T = TypeVar("T")
_SLICE = 100
_PROGRESS_EVERY = 5.0
_JITTER = 0.1

Status = Literal["open", "done", "failed"]
Service = Literal["letta", "homeserver"]


class Directory:
    """The mirror of one Letta on one homeserver.

    Args:
        report: tells the admins something that a person has to look at.
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
        report: Callable[[str], Awaitable[None]] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._agents = agents
        self._lanes = lanes
        self._homeserver = homeserver
        self._mirror = mirror_settings
        self._report = report
        self._told = Told(db)
        self._names = Names(homeserver.domain, mirror_settings.puppet_prefix, homeserver.bot_mxid)
        self._listings = Listings(backend, self._names, mirror_settings, clock)
        guests = [mxid for mxid in dict.fromkeys(mirror_settings.invite) if not self._names.is_ours(mxid)]
        people = People(homeserver, rooms, self._told, guests, clock)
        devices = Devices()
        self._maker = RoomMaker(homeserver, mirror_settings.room_version, clock)
        self._bot = Bot(homeserver, settings, mirror_settings.bot_displayname, devices)
        self._space = Space(homeserver, self._names, rooms, settings, mirror_settings, self._maker, people, clock)
        portals = Portals(homeserver, self._names, rooms, self._maker, people)
        avatars = Avatars(
            mirror_settings.avatar_hosts, mirror_settings.avatar_max_kib * 1024, mirror_settings.avatar_timeout
        )
        self._provisioner = Provisioner(homeserver, devices, avatars, portals, people, clock)
        self._orphans = Orphans(homeserver, agents, rooms)
        self._rests: Rests[AgentID] = Rests(2.0, 600.0, clock)
        self._service_rests: Rests[Service] = Rests(2.0, 60.0, clock)
        self._troubles: dict[Service, str] = {}
        self._suspects: set[AgentID] = set()
        self._status: dict[AgentID, Status] = {}
        self._locks: WeakValueDictionary[AgentID, asyncio.Lock] = WeakValueDictionary()
        self._warned_empty = False
        self._epoch: int | None = None
        """Of the newest pass: with another one, another replica may have been at work in between."""

    # -- what others ask

    def mxid_of(self, agent_id: AgentID) -> MXID:
        """The user id of an agent's puppet."""
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

        An agent that Letta does not list any more keeps its row, with the state ``missing``. Letta is asked about an
        unknown id; its answer "no such agent" is believed for half a minute.

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
            agent = await self._listings.find(mxid)
            if agent is None:
                return None
            await self._write_down(agent)
            await self._db.write(lambda conn: self._lanes.announce(conn, LANE))
            self._lanes.wake(LANE)
            row = await self._agents.by_mxid(mxid)
            assert row is not None
        if row.state == "missing":
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
            self._epoch = fence.epoch
        writer = Writer(self._db, self._agents, self._lanes, fence)
        self._maker.ask_again()
        try:
            await self._bot.ready()
            pause = await self._look(writer)
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
        if letta_pause is not None:
            pauses.append(letta_pause)
        return max(min(pauses), 1.0)

    # -- taking in what Letta says

    async def _look(self, writer: Writer) -> float | None:
        """Bring the rows up to date. Returns seconds to wait when Letta did not answer, else None."""
        try:
            listing = await self._listings.get()
        except LettaError as error:
            return self._trouble("letta", error.kind.value)
        self._well("letta")
        rows = {row.agent_id: row for row in await self._agents.all()}
        present: set[AgentID] = set()
        async for agent in _in_slices(listing.agents):
            if not self._listings.wanted(agent):
                continue
            present.add(agent.id)
            row = rows.get(agent.id)
            if row is None:
                await self._write_down(agent)
            elif columns := _changes(row, agent):
                if row.state == "missing":
                    log.info("agent is back", extra={"action": "agent_back", "agent": row.agent_id, "called": row.name})
                await writer.save(row, **columns)
        await self._note_missing([row for row in rows.values() if row.agent_id not in present], listing, writer)
        return None

    async def _note_missing(self, absent: Iterable[AgentRow], listing: AgentListing, writer: Writer) -> None:
        """Note whom a complete listing does not have any more. Nothing else happens to them."""
        gone = [row for row in absent if row.state != "missing"]
        if not gone or not listing.complete:
            return
        if not listing.agents:
            if not self._warned_empty:
                self._warned_empty = True
                log.warning(
                    "Letta lists no agents at all, taking no action on that",
                    extra={"action": "empty_listing", "known": len(gone)},
                )
            return
        self._warned_empty = False
        for row in gone:
            await writer.save(row, state="missing")
            log.warning(
                "agent is not mirrored any more: gone from Letta or left out by the configuration",
                extra={"action": "agent_missing", "agent": row.agent_id, "called": row.name},
            )

    async def _write_down(self, agent: Agent) -> None:
        """Write a new agent's row, with its device id, before anything is made for it."""
        name, description, avatar = clean(agent.name), clean(agent.description), avatar_source(agent.metadata)
        await self._agents.add(agent.id, self._names.mxid(agent.id), new_device_id(), name)
        if description or avatar:
            await self._agents.update(agent.id, description=description, avatar=avatar)
        log.info("new agent", extra={"action": "agent_new", "agent": agent.id, "called": name})

    # -- making it true

    async def _provision(self, writer: Writer) -> None:
        """Make every agent what its row says it should be, several at a time.

        Raises:
            FencedError: another replica has the lane.
            HomeserverError: it does nothing for us now.
        """
        rows = [row for row in await self._agents.all() if row.state != "missing"]
        space = self._space.room_id
        self._status = {row.agent_id: _status(row) for row in rows}
        due = [
            row.agent_id
            async for row in _in_slices(rows)
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
        if row is None or row.state == "missing":
            return
        try:
            row = await self._provisioner.everything(row, writer, self._space.room_id)
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
            self._suspects.discard(agent_id)
            self._status[agent_id] = "done"

    async def _failed(self, row: AgentRow, text: str, writer: Writer) -> None:
        pause = self._rests.failed(row.agent_id)
        self._status[row.agent_id] = "failed"
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
            await self._tell_once(f"mirror.conflict:{row.agent_id}:{text}", text, writer)
        self._suspects.add(row.agent_id)

    async def _report_orphans(self, writer: Writer) -> None:
        for row, room_id in await self._orphans.look(self._space.room_id):
            text = (
                f"The room {room_id} says it is the portal of {row.mxid}, whose portal is {row.portal_room}. "
                "The bridge does not use it; it can be left and forgotten."
            )
            await self._tell_once(f"mirror.orphan:{room_id}", text, writer)

    async def _tell_once(self, topic: str, text: str, writer: Writer) -> None:
        if not await writer.run(lambda conn: self._told.first_time(conn, topic)):
            return
        log.warning("a room needs to be looked at", extra={"action": "room_conflict", "detail": text})
        if self._report is not None:
            await self._report(text)

    def _trouble(self, service: Service, text: str) -> float:
        """Log once that a service is in trouble; returns the seconds to wait."""
        pause = self._service_rests.failed(service)
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


async def _in_slices(items: Sequence[T]) -> AsyncIterator[T]:
    """The items, letting others work now and then: thousands of agents must not hold up a message."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % _SLICE == 0:
            await asyncio.sleep(0)


def _changes(row: AgentRow, agent: Agent) -> dict[str, Any]:
    """What Letta says differently now than the row."""
    columns: dict[str, Any] = {}
    if row.name != (name := clean(agent.name)):
        columns["name"] = name
    if row.description != (description := clean(agent.description)):
        columns["description"] = description
    if row.avatar != (avatar := avatar_source(agent.metadata)):
        columns |= {"avatar": avatar, "avatar_mxc": ""}  # the upload was for the old one
    if row.state == "missing":
        columns["state"] = "active" if row.portal_joined else "new"
    return columns
