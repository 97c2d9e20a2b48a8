"""Puts parts together: which handler works on which lane, and what each of them is given."""

from dataclasses import dataclass

from .alarms import LANE as ALARM_LANE
from .alarms import AlarmWatch
from .commands.carry import Carrier
from .commands.desk import Desk
from .commands.groups import TABLE
from .commands.lane import CommandLane
from .commands.socket import CtlServer
from .config import Config
from .db.restored import Restored
from .db.stops import Stops
from .delivery.context import RoomContext, TurnContext, TurnSettings
from .delivery.dispatcher import Dispatcher
from .delivery.entry import RoomEntry
from .delivery.presence import Presence
from .delivery.restored import held_back
from .delivery.runner import Runner
from .delivery.sender import Sender
from .delivery.troubles import Troubles
from .ids import MXID
from .jobs.engine import Engine
from .jobs.kinds import KINDS
from .management import LANE as MANAGEMENT_LANE
from .management import ManagementMaker
from .mirror.directory import LANE as MIRROR_LANE
from .mirror.history import LANE as HISTORY_LANE
from .mirror.history import HistoryLane
from .mirror.settings import MirrorSettings
from .waking import Waking

_SETTLE = 10.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """What of the messages' way has to be ended in order."""

    sender: Sender
    presence: Presence


@dataclass(frozen=True, slots=True)
class Office:
    """Commands, jobs, and what administrators are told."""

    engine: Engine
    carrier: Carrier
    ctl: CtlServer
    alarms: AlarmWatch


def wire_delivery(desk: Desk, stops: Stops, restored: Restored, turns: TurnSettings) -> Delivery:
    """The way of messages: rooms, agents' turns, the outbox; and the net under the mirror."""
    lanes, limits = desk.lanes, desk.config.limits
    presence = Presence(desk.homeserver)
    bot = desk.homeserver.bot_mxid
    sender = Sender(desk.homeserver, desk.outbox, desk.turns, desk.agents, lanes, bot, desk.sight)
    rooms = RoomContext(
        db=desk.db,
        homeserver=desk.homeserver,
        directory=desk.directory,
        permissions=desk.permissions,
        agents=desk.agents,
        inbox=desk.inbox,
        outbox=desk.outbox,
        turns=desk.turns,
        stops=stops,
        rooms=desk.rooms,
        told=desk.told,
        restored=restored,
        commands=desk.commands,
        management=desk.management,
        lanes=lanes,
        sight=desk.sight,
    )
    dispatcher = Dispatcher(rooms, RoomEntry(rooms, limits.catchup_events), limits.messages_per_minute)
    runner = Runner(
        TurnContext(
            db=desk.db,
            backend=desk.backend,
            agents=desk.agents,
            turns=desk.turns,
            stops=stops,
            outbox=desk.outbox,
            conversations=desk.conversations,
            lanes=lanes,
            sender=sender,
            presence=presence,
            troubles=Troubles(desk.turns, desk.outbox, desk.told, desk.agents, lanes),
            notes=desk.settings,
            absences=desk.directory.absences,
            restored=restored,
            settings=turns,
            sight=desk.sight,
        )
    )

    async def gap_lanes() -> list[str]:
        return [f"room:{room_id}" for room_id in await desk.rooms.gaps()]

    lanes.handle("room", dispatcher.handle)
    lanes.handle("agent", runner.handle)
    lanes.handle("send", held_back(restored, sender.handle), last=True)
    for source in (desk.inbox.open_lanes, desk.turns.open_lanes, desk.outbox.open_lanes, gap_lanes):
        lanes.sweep_with(source)
    lanes.sweep_with(desk.directory.open_lanes)
    lanes.sweep_with(runner.look_for_stops)
    return Delivery(sender, presence)


def wire_office(desk: Desk) -> Office:
    """Commands, jobs, management rooms, alarms; the mirror, and what comes behind it."""
    lanes, config = desk.lanes, desk.config
    engine = Engine(desk, KINDS)
    carrier = Carrier(desk, engine, TABLE)
    management = ManagementMaker(desk)
    waking = Waking(desk.db, desk.turns, desk.jobs, lanes, desk.health)
    alarms = AlarmWatch(desk.db, lanes, desk.health, desk.permissions, desk.homeserver.bot_mxid, waking=waking)
    history = HistoryLane(desk)
    desk.health.alarms = lambda: alarms.topics
    lanes.handle("job", engine.handle)
    lanes.handle("command", CommandLane(carrier).handle)
    lanes.handle(MANAGEMENT_LANE, management.handle)
    lanes.handle(ALARM_LANE, alarms.handle)
    lanes.handle(HISTORY_LANE, history.handle)
    lanes.handle(MIRROR_LANE, history.behind(desk.directory.handle))
    for source in (desk.commands.open_lanes, management.open_lanes, alarms.open_lanes, desk.jobs.open_lanes):
        lanes.sweep_with(source)
    lanes.sweep_with(history.open_lanes)
    return Office(engine, carrier, CtlServer(carrier, config.base, config.management.socket), alarms)


def mirror_settings(config: Config) -> MirrorSettings:
    """What the configuration says about the mirror."""
    mirror = config.mirror
    return MirrorSettings(
        puppet_prefix=config.appservice.puppet_prefix,
        bot_displayname=config.appservice.bot_displayname,
        poll_interval=config.letta.poll_interval,
        wants=config.letta.wants,
        filter_id=repr((config.letta.include, config.letta.exclude)),
        grace=mirror.grace_h * 3600.0,
        check_every=mirror.check_h * 3600.0,
        history=mirror.history > 0,
        marker=config.letta.marker,
        space_name=mirror.space_name,
        invite=tuple(MXID(mxid) for mxid in mirror.invite),
        room_version=mirror.room_version,
        concurrency=mirror.concurrency,
        avatar_hosts=mirror.avatar_hosts,
        avatar_max_kib=mirror.avatar_max_kib,
        avatar_timeout=mirror.avatar_timeout,
    )


def turn_settings(config: Config) -> TurnSettings:
    """What the configuration says about turns."""
    return TurnSettings(
        timeout=config.letta.turn_timeout,
        attempts=config.limits.turn_attempts,
        settle=min(_SETTLE, config.letta.request_timeout),
        stream=config.conversation.stream,
        first_event_s=config.conversation.first_event_s,
        max_edits=config.conversation.max_edits,
        part_bytes=config.limits.reply_part_kib * 1024,
    )
