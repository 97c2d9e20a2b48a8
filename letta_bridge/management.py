"""The admins' management rooms: made once for each administrator whom the configuration names by the full Matrix id.

A room is made under an alias in the bridge's own namespace, which the homeserver gives away once only: whatever was
interrupted, the second attempt finds the first one's room. An administrator who leaves is not invited again and gets no
other room, until they ask with ``set-management-room``.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

from .alarms import LANE as ALARM_LANE
from .commands.desk import Desk
from .db.database import Connection
from .db.memory import Told
from .delivery.outgoing import ReplyTarget, Voice, notice
from .ids import MXID, PREFIX, RoomID
from .lanes import Fence
from .matrix.homeserver import HomeserverError
from .mirror.maker import RoomExistsError, RoomMaker, State, find, people_in
from .mirror.rests import Rests
from .mirror.trouble import MirrorError
from .routing.permissions import Level

log = logging.getLogger(__name__)

LANE = "management"
STATE = PREFIX + ".management"
"""State event of a management room: ``{"version": 1, "admin": …}``, which only the bot can set."""
NAME = "Letta Bridge"
TOPIC = (
    "Commands and news of the bridge between Matrix and Letta. Write “help”. Not encrypted: the bridge must read it."
)
_ADMIN_POWER = 50
_REFUSED = (400, 403, 404)


def alias_localpart(prefix: str, admin: MXID) -> str:
    """The local part of the alias of an administrator's room. No agent has it: a suffix is a UUID or begins with a
    dot."""
    return f"{prefix}management.{hashlib.sha256(admin.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


class ManagementMaker:
    """Handler of the lane ``management``.

    Args:
        desk: the parts that it touches.
        clock: seconds, for waiting after failures.
    """

    def __init__(self, desk: Desk, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._desk = desk
        self._maker = RoomMaker(desk.homeserver, desk.config.mirror.room_version, clock)
        self._told = Told(desk.db)
        self._rests: Rests[MXID] = Rests(5.0, 3600.0, clock)
        self._settled = not self.admins

    @property
    def admins(self) -> list[MXID]:
        """Who is to have a room: named by the full Matrix id, as an administrator."""
        if not self._desk.config.management.rooms:
            return []
        entries = self._desk.permissions.entries
        return [MXID(who) for who, level in entries.items() if level >= Level.ADMIN and who.startswith("@")]

    async def open_lanes(self) -> list[str]:
        """The lane, until everybody has a room; afterwards nothing is asked any more."""
        return [] if self._settled else [LANE]

    async def handle(self, fence: Fence) -> float | None:
        """Make what is missing; seconds until the next try of what failed."""
        pauses = [await self._guarded(fence, admin) for admin in self.admins]
        left = [pause for pause in pauses if pause is not None]
        self._settled = not left
        return max(0.1, min(left)) if left else None

    async def _guarded(self, fence: Fence, admin: MXID) -> float | None:
        """One administrator's room; None once nothing is to be done any more."""
        if self._rests.resting(admin):
            return self._rests.left(admin)
        try:
            done = await self._ensure(fence, admin)
        except (HomeserverError, MirrorError) as error:
            pause = self._rests.failed(admin)
            extra = {"action": "management_failed", "user": admin, "error": str(error), "retry_in": pause}
            log.warning("a management room could not be made", extra=extra)
            return pause
        if not done:
            return self._rests.failed(admin)
        self._rests.recovered(admin)
        return None

    async def _ensure(self, fence: Fence, admin: MXID) -> bool:
        desk = self._desk
        room_id = (await desk.management.all()).get(admin)
        if not room_id:
            if room_id is None:  # written down first: whoever finds it knows what was begun
                await desk.lanes.write(fence, lambda conn: desk.management.set(conn, admin, RoomID("")))
            room_id = await self._make(fence, admin)
        if not await self._told.was_told(_own(room_id)) or admin in await desk.rooms.invited_once(room_id):
            return True  # a room that the administrator chose, or the invitation was made
        return await self._invite(fence, room_id, admin)

    async def _make(self, fence: Fence, admin: MXID) -> RoomID:
        try:
            room_id, invited = await self._maker.make(await self._body(admin), [], [admin])
        except RoomExistsError:
            return await self._adopt(fence, admin)

        async def note(conn: Connection) -> None:
            await self._desk.rooms.mark_known(conn, room_id)
            await self._desk.rooms.set_membership(conn, room_id, self._desk.homeserver.bot_mxid, "join")
            await self._desk.rooms.note_invited(conn, room_id, invited)
            await self._begin(conn, room_id, admin)

        await self._write(fence, room_id, note)
        log.info("management room created", extra={"action": "management_created", "room": room_id, "user": admin})
        return room_id

    async def _adopt(self, fence: Fence, admin: MXID) -> RoomID:
        bot = self._desk.homeserver.bot_mxid

        def ours(state: State) -> bool:
            return any(
                event.get("type") == STATE and event.get("sender") == bot and find([event], STATE).get("admin") == admin
                for event in state
            )

        prefix = self._desk.config.appservice.puppet_prefix
        alias = f"#{alias_localpart(prefix, admin)}:{self._desk.homeserver.domain}"
        room_id, state = await self._maker.existing(alias, ours)

        async def note(conn: Connection) -> None:
            await self._desk.rooms.snapshot(conn, room_id, state)
            await self._desk.rooms.note_invited(conn, room_id, people_in(state, [admin]))
            await self._begin(conn, room_id, admin)

        await self._write(fence, room_id, note)
        log.info("management room found again", extra={"action": "management_adopted", "room": room_id, "user": admin})
        return room_id

    async def _write(self, fence: Fence, room_id: RoomID, note: Callable[[Connection], Any]) -> None:
        await self._desk.lanes.write(fence, note)
        self._desk.lanes.wake(f"send:{room_id}")
        self._desk.lanes.wake(ALARM_LANE)  # what could not be told for want of a room

    async def _begin(self, conn: Connection, room_id: RoomID, admin: MXID) -> None:
        """It is the administrator's room now, and begins with a word about what it is."""
        desk = self._desk
        await desk.management.set(conn, admin, room_id)
        await self._told.first_time(conn, _own(room_id))
        voice = Voice(desk.homeserver.bot_mxid, room_id)
        out = notice(voice, await self._welcome(conn), ReplyTarget(), source=f"management|{room_id}", kind="welcome")
        await desk.outbox.add(conn, out)
        await desk.lanes.announce(conn, f"send:{room_id}")
        await desk.lanes.announce(conn, ALARM_LANE)

    async def _welcome(self, conn: Connection) -> str:
        desk = self._desk
        agents = int(await conn.fetchval("SELECT COUNT(*) FROM agent WHERE state IN ('new', 'active')"))
        letta, detail, _ = desk.health.known("letta")
        if agents:
            state = f"I mirror {agents:,} agent{'s' if agents > 1 else ''}; `agents` lists them."
        elif letta is False:
            state = f"There are no agents yet, because Letta does not work for me ({detail}); `doctor` looks for why."
        else:
            state = (
                "There are no agents yet: create one in Letta, where I find it within a minute, or write `summon Ada`."
            )
        return (
            "I am the bridge between Matrix and Letta, and this is your management room. Here I tell you what goes "
            f"wrong and when it is over, and take your commands.\n\n{state}\n\nWrite `help` for what I can do, "
            "`status` for how things are. Whoever you invite here reads along; only administrators can command, and "
            "with several people here commands begin with `!letta`."
        )

    async def _body(self, admin: MXID) -> dict[str, Any]:
        return {
            "preset": "private_chat",
            "room_alias_name": alias_localpart(self._desk.config.appservice.puppet_prefix, admin),
            "name": NAME,
            "topic": TOPIC,
            "initial_state": [
                {"type": STATE, "state_key": "", "content": {"version": 1, "admin": admin}},
                {"type": "m.room.guest_access", "state_key": "", "content": {"guest_access": "forbidden"}},
            ],
            # enough to rename it, invite and put out people; encryption would shut the bridge out
            "power_level_content_override": await self._power(admin),
        }

    async def _power(self, admin: MXID) -> dict[str, Any]:
        power = await self._maker.power({admin: _ADMIN_POWER})
        return {**power, "events": {**power["events"], STATE: 100}}

    async def _invite(self, fence: Fence, room_id: RoomID, admin: MXID) -> bool:
        """One try of an invitation that did not go with the creation; False when there is hope for another."""
        desk = self._desk
        try:
            await desk.homeserver.bot.invite(room_id, admin)
        except HomeserverError as error:
            if error.status not in _REFUSED or error.unknown_device:
                raise
            extra = {"action": "invite_failed", "room": room_id, "user": admin, "error": str(error)}
            log.warning("an administrator cannot be invited to the management room", extra=extra)
            bot = desk.homeserver.bot
            if error.status != 403 or await bot.membership(room_id, bot.mxid) != "join":
                return False  # nobody of that name, as it seems, or the bot is out of the room itself
        await desk.lanes.write(fence, lambda conn: desk.rooms.note_invited(conn, room_id, [admin]))
        return True


def _own(room_id: RoomID) -> str:
    """Noted for rooms that the bridge made."""
    return f"management.own:{room_id}"
