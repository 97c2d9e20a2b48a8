"""Telling admins once what is wrong, and once that it is over.

What is wrong stands in the ``alarm`` table, whoever found it out. Every process adds what its own work meets of Letta
and the homeserver, and takes away what it sees working; one lane, ``alarms``, tells. So a replica that alone is cut off
from Letta raises nothing that lasts. When the database is away nothing can be kept or told here; that is said by the
log and by ``ready``.
"""

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from .commands.show import span
from .db.alarms import Alarm, Alarms
from .db.database import DATABASE_ERRORS, Connection, Database
from .db.management import ManagementRooms
from .db.memory import Told
from .db.outbox import Outbox
from .delivery.outgoing import ReplyTarget, Voice, notice
from .ids import MXID, RoomID
from .lanes import Fence, Lanes
from .letta.errors import Kind
from .routing.permissions import Level, Permissions
from .waking import Waking
from .web.health import Check, Health

log = logging.getLogger(__name__)

LANE = "alarms"
_LATE = 3600.0
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmTimes:
    """Seconds.

    Attributes:
        lasts: how long a neighbour must be away before it is told.
        steady: how long it must work again before that is told.
        quiet: the least time between two notices of the same.
        sample: between two looks at what is known.
        fresh: how old a failure may be to count as one of now.
    """

    lasts: float = 60.0
    steady: float = 20.0
    quiet: float = 600.0
    sample: float = 10.0
    fresh: float = 300.0


@dataclass(frozen=True, slots=True)
class _Neighbour:
    """A condition of a neighbour. ``mute``: while it is so nothing can be said through the homeserver, so it is told
    afterwards in one sentence.
    """

    check: Check
    text: str
    over: str
    mute: bool = False


NEIGHBOURS: dict[str, _Neighbour] = {
    "letta_unreachable": _Neighbour(
        "letta",
        "Letta cannot be reached. Messages are kept and answered when it is back. See whether Letta runs, and whether "
        "`letta.url` in the configuration leads to it; `doctor` looks for you.",
        "Letta can be reached again, after {span}. What waited is being answered.",
    ),
    "letta_key": _Neighbour(
        "letta",
        "Letta refuses the bridge's key. Messages are kept. Put a valid key into the configuration (`letta.api_key`) "
        "and restart the bridge.",
        "Letta takes the bridge's key again, after {span}. What waited is being answered.",
    ),
    "homeserver_unreachable": _Neighbour(
        "homeserver_out",
        "The homeserver does not answer the bridge.",
        "The homeserver did not answer the bridge for {span}; it does now. What was to be said meanwhile is being "
        "sent.",
        mute=True,
    ),
    "homeserver_token": _Neighbour(
        "homeserver_out",
        "The homeserver refuses the bridge's token (`as_token`): the registration that it has loaded is another one.",
        "The homeserver refused the bridge's token (`as_token`) for {span}; it takes it now. What was to be said "
        "meanwhile is being sent.",
        mute=True,
    ),
    "homeserver_pushes": _Neighbour(
        "homeserver_in",
        "The homeserver does not reach the bridge, so nothing that people write arrives. Check the `url` in the "
        "registration and what lies between the two; `letta-bridge check` says more.",
        "The homeserver reaches the bridge again, after {span}. What was written meanwhile is coming in.",
    ),
}
"""What a process finds out by itself, by its topic."""


def topic_of(check: Check, detail: str) -> str:
    """The topic of a check that fails, from its detail in :class:`~letta_bridge.web.health.Health`."""
    if check == "letta":
        return "letta_key" if detail == Kind.BAD_KEY.value else "letta_unreachable"
    if check == "homeserver_out":
        return "homeserver_token" if detail == "as_token refused" else "homeserver_unreachable"
    return "homeserver_pushes"


class AlarmWatch:
    """Samples what this process knows, and tells on behalf of all.

    ``current`` are the alarms as last read, for those who must not wait for the database.
    """

    def __init__(
        self,
        db: Database,
        lanes: Lanes,
        health: Health,
        permissions: Permissions,
        bot: MXID,
        times: AlarmTimes | None = None,
        waking: Waking | None = None,
    ) -> None:
        self._db = db
        self._lanes = lanes
        self._health = health
        self._permissions = permissions
        self._bot = bot
        self.times = times or AlarmTimes()
        self._waking = waking
        self._alarms = Alarms(db)
        self._management = ManagementRooms(db)
        self._told = Told(db)
        self._outbox = Outbox(db)
        self.current: list[Alarm] = []

    @property
    def topics(self) -> list[str]:
        """What is wrong now, by topic."""
        return [alarm.topic for alarm in self.current if not alarm.cleared]

    # -- what this process knows

    async def run(self) -> None:
        """Look at every change, and regularly; until cancelled."""
        trouble = False
        while True:
            try:
                await self.sample()
                trouble = False
            except DATABASE_ERRORS:
                if not trouble:
                    log.warning("alarms cannot be kept", exc_info=True, extra={"action": "alarms_failed"})
                trouble = True
            except Exception:  # the watch must not end silently
                log.exception("alarms failed", extra={"action": "alarms_error"})
            await self._health.changed(self.times.sample)

    async def sample(self) -> None:
        """Raise what this process meets now, clear what it sees working, and have it told."""
        if self._waking is not None:
            await self._waking.look()
        self.current = await self._alarms.all()
        up = {alarm.topic: alarm for alarm in self.current if not alarm.cleared}
        failing = {topic: text for topic, text in self._failing() if topic not in up}
        over = [topic for topic, alarm in up.items() if self._works(topic, alarm.age)]
        if failing or over:

            async def work(conn: Connection) -> None:
                for topic in over:
                    await self._alarms.clear(conn, topic)
                for topic, text in failing.items():
                    await self._alarms.raise_(conn, topic, text)

            await self._db.write(work)
            for topic in failing:
                log.warning("alarm", extra={"action": "alarm", "topic": topic})
            for topic in over:
                log.info("alarm is over", extra={"action": "alarm_over", "topic": topic})
            self.current = await self._alarms.all()
        if self.current:
            self._lanes.wake(LANE)

    def _failing(self) -> Iterable[tuple[str, str]]:
        for check in dict.fromkeys(neighbour.check for neighbour in NEIGHBOURS.values()):
            ok, detail, ago = self._health.known(check)
            if ok is False and ago < self.times.fresh:
                topic = topic_of(check, detail)
                yield topic, NEIGHBOURS[topic].text

    def _works(self, topic: str, age: float) -> bool:
        """Whether this process has seen since the alarm came up that it is so no more."""
        neighbour = NEIGHBOURS.get(topic)
        if neighbour is None:  # whoever raised it clears it
            return False
        ok, detail, ago = self._health.known(neighbour.check)
        if ago >= age:
            return False
        return ok is True or (ok is False and topic_of(neighbour.check, detail) != topic)

    # -- telling

    async def open_lanes(self) -> list[str]:
        """The lane, while there is something to tell."""
        return [LANE] if await self._alarms.all() else []

    async def handle(self, fence: Fence) -> float | None:
        """Tell what is due in every administrator's room; seconds until something else may be."""
        rooms = await self._rooms()
        waits = [await self._one(fence, alarm, rooms) for alarm in await self._alarms.all()]
        self.current = await self._alarms.all()
        due = [wait for wait in waits if wait is not None]
        return max(0.1, min(due)) if due else None

    async def _rooms(self) -> list[RoomID]:
        """The rooms of those who are administrators now."""
        rooms = await self._management.all()
        return list(
            dict.fromkeys(room for user, room in rooms.items() if room and self._permissions.level(user) >= Level.ADMIN)
        )

    async def _one(self, fence: Fence, alarm: Alarm, rooms: list[RoomID]) -> float | None:
        """Tell one alarm, or its end, if that is due; else seconds until it may be."""
        neighbour = NEIGHBOURS.get(alarm.topic)
        if alarm.cleared:
            return await self._tell_end(fence, alarm, neighbour, rooms)
        if alarm.told:
            return None
        if neighbour is None:  # the same words not again and again; others are told at once
            text, quiet = f"⚠️ {alarm.text}", self.times.quiet
            return await self._say(fence, alarm, rooms, text, self._alarms.note_told, quiet, _digest(alarm.text))
        if alarm.age < self.times.lasts:
            return self.times.lasts - alarm.age
        if neighbour.mute:
            await self._lanes.write(fence, lambda conn: self._alarms.note_told(conn, alarm.topic))
            return None
        return await self._say(fence, alarm, rooms, f"⚠️ {alarm.text}", self._alarms.note_told, self.times.quiet)

    async def _tell_end(
        self, fence: Fence, alarm: Alarm, neighbour: _Neighbour | None, rooms: list[RoomID]
    ) -> float | None:
        if neighbour is None:
            text = f"✅ Over, after {span(alarm.lasted)}. It was: “{_first_sentence(alarm.text)}”"
            return await self._say(fence, alarm, rooms, text, self._alarms.forget)
        if alarm.cleared_for < self.times.steady:
            return self.times.steady - alarm.cleared_for
        text = f"✅ {neighbour.over.format(span=span(alarm.lasted))}"
        quiet = self.times.quiet if neighbour.mute else None
        return await self._say(fence, alarm, rooms, text, self._alarms.forget, quiet)

    async def _say(
        self,
        fence: Fence,
        alarm: Alarm,
        rooms: list[RoomID],
        text: str,
        then: Callable[[Connection, str], Awaitable[None]],
        quiet: float | None = None,
        words: str = "",
    ) -> float | None:
        """Tell every room and note that, in one commit. ``quiet``: not if ``words`` were told in these seconds."""
        if not rooms and not alarm.cleared:
            return _LATE  # it is told when there is a room; making one wakes this lane

        async def work(conn: Connection) -> bool:
            if not await self._alarms.stands(conn, alarm):
                return True  # it is met again as it is now
            topic = f"alarm:{alarm.topic}{words}"
            if quiet is not None and not await self._told.first_time(conn, topic, quiet):
                return False
            if words and quiet is not None:
                await self._told.forget_old(conn, f"alarm:{alarm.topic}:", quiet)
            for room_id in rooms:
                voice = Voice(self._bot, room_id)
                kind = "alarm-over" if alarm.cleared else "alarm"
                source = f"alarm|{alarm.topic}|{alarm.since:.3f}"
                await self._outbox.add(conn, notice(voice, text, ReplyTarget(), source=source, kind=kind))
                await self._lanes.announce(conn, f"send:{room_id}")
            await then(conn, alarm.topic)
            return True

        if not await self._lanes.write(fence, work):
            return self.times.quiet / 10
        for room_id in rooms:
            self._lanes.wake(f"send:{room_id}")
        return None


def _first_sentence(text: str) -> str:
    """What was wrong, without what follows from it or was to be done: that is not so any more."""
    return _SENTENCE_END.split(text.partition("\n")[0], maxsplit=1)[0]


def _digest(text: str) -> str:
    return ":" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
