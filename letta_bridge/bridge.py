"""LettaBridge: builds the parts, and the order in which they start and stop. No logic of its own."""

import asyncio
import logging
import signal
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from aiohttp import web

from .cli.checks_running import examine
from .cli.exitcodes import Exit
from .commands.desk import Desk
from .config import Config
from .db.access import AccessTable
from .db.agents import Agents
from .db.alarms import Alarms
from .db.commands import Commands
from .db.database import DATABASE_ERRORS, Connection, Database, DatabaseError, DatabaseInUseError
from .db.inbox import Inbox
from .db.jobs import Jobs
from .db.management import ManagementRooms
from .db.memory import Conversations, Settings, Told
from .db.outbox import Outbox
from .db.past_rooms import PastRooms
from .db.pauses import Pauses
from .db.pruning import prune
from .db.restored import Restored
from .db.rooms import Rooms, doubt_all
from .db.stops import Stops
from .db.turns import Turns
from .delivery.context import TurnSettings
from .delivery.restored import find_rooms
from .ids import MXID, RoomID
from .lanes import Lanes
from .letta.backend import Backend
from .letta.v1 import V1Backend
from .letta.watched import WatchedBackend
from .matrix.homeserver import Homeserver
from .matrix.intake import Intake
from .matrix.ping import Pinger
from .matrix.server import AppserviceRunner
from .mirror.directory import LANE as MIRROR_LANE
from .mirror.directory import Directory
from .sight import BLIND, Sight
from .web.control import ControlServer
from .web.health import Health
from .wiring import mirror_settings, turn_settings, wire_delivery, wire_office

if TYPE_CHECKING:
    from .web.metrics import MetricsServer

log = logging.getLogger(__name__)

_ALIVE = "alive_at"
_GAP_AFTER = 60.0
_KEEP_BODIES = 30 * 86400.0
_PRUNE_EVERY = 6 * 3600.0
_ASK_SECONDS = 2.0
_STORE_SECONDS = 2.0


class LettaBridge:
    """A running bridge.

    Args:
        config: the validated configuration.
        backend: the Letta to use instead of the configured V1 server.
        turns: how turns are run and shown instead of what the configuration says.
    """

    def __init__(self, config: Config, backend: Backend | None = None, turns: TurnSettings | None = None) -> None:
        self._config = config
        self._turn_settings = turns or turn_settings(config)
        self._metrics = _metrics(config)
        self._sight: Sight = BLIND if self._metrics is None else self._metrics.meters
        self.db = Database(config.database.uri, config.base, self._sight)
        self.inbox = Inbox(self.db)
        self.outbox = Outbox(self.db)
        self.turns = Turns(self.db)
        self._stops = Stops(self.db, self.turns)
        self.rooms = Rooms(self.db)
        self.agents = Agents(self.db)
        self._settings = Settings(self.db)
        self._told = Told(self.db)
        self._restored = Restored(self.db)
        self._permissions = config.permission_table()
        self._backend = backend
        self._background: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._started = False
        self._built = False

    def _build(self) -> None:
        """Everything that needs an event loop."""
        config = self._config
        replica, sight = config.database.replica, self._sight
        self.health = Health(self.db, replica)
        self.lanes = Lanes(self.db, replica, lease=config.database.lease_s, beat=config.database.beat_s, sight=sight)
        self.homeserver = Homeserver(
            config.homeserver.url,
            config.homeserver.domain,
            config.appservice.as_token,
            MXID(config.bot_mxid),
            sight=sight,
        )
        if self._backend is None:
            self._backend = V1Backend(
                config.letta.url, config.letta.api_key, request_timeout=config.letta.request_timeout
            )
        backend = WatchedBackend(self._backend, sight, self.health.letta)
        self.directory = Directory(
            self.db,
            self.agents,
            self.rooms,
            self._settings,
            self.homeserver,
            backend,
            mirror_settings(config),
            self.lanes,
            Alarms(self.db),
        )
        control = config.control
        self.control = ControlServer(control.token, control.host, control.port, self.directory.refreshes)
        self.intake = Intake(
            hs_token=config.appservice.hs_token,
            record=self.inbox.record,
            wake=self._wake_room,
            user_exists=self._user_exists,
            is_ours=self.directory.is_ours,
            health=self.health.report,
            serving=lambda: self._started and self.lanes.alive,
            store_seconds=max(config.database.lease_s, _STORE_SECONDS),
            body_limit=config.appservice.body_limit_mib * 1024 * 1024,
            sight=sight,
        )
        self.pinger = Pinger(
            self.homeserver,
            self.intake,
            config.appservice.id,
            config.appservice.ping_interval,
            self._alive,
            self.health.pinged,
        )
        self.desk = self._build_desk(backend)
        delivery = wire_delivery(self.desk, self._stops, self._restored, self._turn_settings)
        self._sender, self.presence = delivery.sender, delivery.presence
        office = wire_office(self.desk)
        self.engine, self.carrier, self.ctl, self.alarms = office.engine, office.carrier, office.ctl, office.alarms
        self._built = True

    def _build_desk(self, backend: Backend) -> Desk:
        """What commands and jobs, and most of the rest, work with."""
        return Desk(
            config=self._config,
            db=self.db,
            lanes=self.lanes,
            homeserver=self.homeserver,
            backend=backend,
            directory=self.directory,
            health=self.health,
            permissions=self._permissions,
            agents=self.agents,
            rooms=self.rooms,
            inbox=self.inbox,
            outbox=self.outbox,
            turns=self.turns,
            conversations=Conversations(self.db),
            jobs=Jobs(self.db),
            commands=Commands(self.db),
            pauses=Pauses(self.db),
            access=AccessTable(self.db),
            alarms=Alarms(self.db),
            management=ManagementRooms(self.db),
            past_rooms=PastRooms(self.db),
            settings=self._settings,
            told=self._told,
            sight=self._sight,
            check_up=lambda known: examine(self._config, known),
        )

    @property
    def ready(self) -> bool:
        """The database is open and the homeserver is reached both ways. Letta being down is no reason."""
        return self._started and self.pinger.ok

    @property
    def port(self) -> int:
        """The port listened on (of use when the configured one is 0)."""
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    # -- start and stop

    async def start(self) -> None:
        """Open the database, recover what was under way, then open the port and reach for the homeserver.

        Raises:
            DatabaseError: the database cannot be used.
            OSError: the port cannot be listened on.
        """
        await self.db.open()
        self._build()
        await self.directory.start()
        await self.turns.tidy()  # what was corrected may be the reason of this start
        await self._restored.load()
        await self._note_gaps()
        await self.lanes.start()
        self._runner = AppserviceRunner(self.intake.app)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._config.appservice.host, self._config.appservice.port).start()
        self._started = True
        self.health.start()
        await self.ctl.start()
        await self.control.start()
        if self._metrics is not None:
            await self._metrics.start(self.db, self.lanes, self.health)
        self.lanes.wake(MIRROR_LANE)
        self._background.append(asyncio.create_task(self.pinger.run(), name="pinger"))
        self._background.append(asyncio.create_task(self._prune(), name="prune"))
        self._background.append(asyncio.create_task(self.alarms.run(), name="alarms"))
        self._background.append(asyncio.create_task(self._find_rooms(), name="restored"))
        where = f"{self._config.appservice.host}:{self.port}"
        log.info("listening", extra={"action": "started", "address": where, "database": self.db.describe()})

    async def stop(self) -> None:
        """Refuse new transactions, let what runs come to its end for a while, give everything back.

        Runs on Letta go on without us; the next start finds them again. Where other replicas go on with the work, what
        comes until their balancer sends nothing more here is stored for them instead of being refused.
        """
        if self._started:
            log.info("stopping", extra={"action": "stopping", "drain_s": self._config.shutdown.drain_s})
        self._started = False
        if self._built:
            await _step(self._refuse_if_alone())
            await _step(self.health.stop())
            await _step(self.ctl.stop())
            await _step(self.control.stop())
            for task in self._background:
                task.cancel()
            await asyncio.gather(*self._background, return_exceptions=True)
            await _step(self.lanes.stop(self._config.shutdown.drain_s))
            self.intake.refuse()
            if self._runner is not None:
                await _step(self._runner.cleanup())
            await _step(self._sender.close())
            await _step(self.presence.close())
            await _step(self._alive())
            await _step(self.homeserver.close())
        if self._backend is not None:
            await _step(self._backend.close())
        if self._metrics is not None:
            await _step(self._metrics.stop())
        await _step(self.db.close())
        log.info("stopped", extra={"action": "stopped"})

    async def _refuse_if_alone(self) -> None:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                alone = await self.lanes.alone()
        except (TimeoutError, *DATABASE_ERRORS):
            alone = True
        if alone:
            self.intake.refuse()

    async def inbox_is_empty(self) -> bool:
        """Whether everything that came in has been decided."""
        return not await self.inbox.open_lanes()

    # -- small duties

    def _wake_room(self, room_id: RoomID) -> None:
        self.lanes.wake(f"room:{room_id}")

    async def _user_exists(self, mxid: MXID) -> bool:
        return mxid == self.homeserver.bot_mxid or await self.directory.resolve(mxid) is not None

    async def _alive(self) -> None:
        now = await self.db.fetchval(f"SELECT {self.db.now}")
        await self._settings.set(_ALIVE, str(now))

    async def _note_gaps(self) -> None:
        """After a time away events may have been dropped by the homeserver: mark the rooms to be read back."""
        alive = await self._settings.get(_ALIVE)
        if alive is None:
            return
        away = float(await self.db.fetchval(f"SELECT {self.db.now}")) - float(alive)
        if 0 <= away < _GAP_AFTER + self._config.appservice.ping_interval:  # less than 0: the clock was set back
            return
        active = await self.inbox.active_rooms()

        async def work(conn: Connection) -> None:
            for room_id in active:
                await self.rooms.mark_gap(conn, room_id, True)
            await doubt_all(conn)

        await self.db.write(work)
        log.info("was away, reading rooms back", extra={"action": "gap", "seconds": round(away), "rooms": len(active)})

    async def _find_rooms(self) -> None:
        poll = self._config.letta.poll_interval
        await find_rooms(self._restored, self.homeserver, self.agents, poll, self._wake_room)

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(_PRUNE_EVERY)
            try:
                await prune(self.db, _KEEP_BODIES)
                await self.desk.commands.prune(_KEEP_BODIES)
                await self.desk.jobs.prune(_KEEP_BODIES)
            except Exception:  # housekeeping is tried again; it must not end silently
                log.exception("pruning failed", extra={"action": "prune_failed"})


def _metrics(config: Config) -> "MetricsServer | None":
    if not config.metrics.enabled:
        return None
    from .web.metrics import MetricsServer  # its library is not needed by who does not want it

    return MetricsServer(config.metrics.host, config.metrics.port, config.database.replica)


async def _step(step: Awaitable[None]) -> None:
    """One step of stopping: a boundary, so that one failing part (a database that is away) does not keep the rest."""
    try:
        await step
    except Exception:
        log.exception("a part could not be stopped in order", extra={"action": "stop_failed"})


async def run(config: Config) -> int:
    """Run the bridge until SIGTERM or SIGINT; returns the exit code.

    Raises:
        OSError: the port cannot be listened on.
    """
    bridge = LettaBridge(config)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        await bridge.start()
    except DatabaseError as error:
        log.critical("the database cannot be used", extra={"action": "database_failed", "why": str(error)})
        await bridge.stop()
        return Exit.RUNNING if isinstance(error, DatabaseInUseError) else Exit.DATABASE
    except BaseException:
        await bridge.stop()
        raise
    await ended.wait()
    await bridge.stop()
    return Exit.OK
