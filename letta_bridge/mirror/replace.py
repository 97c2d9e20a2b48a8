"""A portal that is gone gets a successor, and one that was upgraded is followed."""

import logging
from collections.abc import Callable
from typing import Any

from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.memory import Settings
from ..db.past_rooms import PastRooms
from ..db.rooms import Rooms, doubt
from ..ids import MXID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from .maker import State, find
from .outcome import Outcome
from .people import People
from .target import forgotten_portal, moved_portal, target_of

log = logging.getLogger(__name__)

FULL_CHECK = "mirror_full"
"""The setting that is stamped when an admin asked for a full check: a room that is gone again may be replaced again."""

_ONCE_PER = 86400.0


class Replacement:
    """Decides what becomes of an agent whose portal has ended.

    Args:
        space: the space now, which is to take the old room out.
        people: who invites.
        history: whether a new portal begins with the agent's last lines.
    """

    def __init__(
        self,
        homeserver: Homeserver,
        rooms: Rooms,
        past: PastRooms,
        settings: Settings,
        space: Callable[[], RoomID | None],
        people: People,
        history: bool,
    ) -> None:
        self._homeserver = homeserver
        self._rooms = rooms
        self._past = past
        self._settings = settings
        self._space = space
        self._people = people
        self._history = history

    async def gone(self, row: AgentRow, why: str) -> Outcome:
        """It is proven to be gone. The row forgets it, so that another is made; once a day and no oftener, unless an
        admin asked for it since. For an agent that Letta does not list, none is made before it is back.
        """
        room_id = row.portal_room
        assert room_id is not None
        if row.state in ("new", "active") and await self._too_soon(row):
            text = (
                f"The room {room_id} of {target_of(row).portal_name} is gone, the second within a day. No other is "
                "made before tomorrow; `!letta sync --full` makes one now."
            )
            return Outcome(troubles=[text])

        async def note(conn: Connection) -> None:
            await self._end(conn, row, room_id, "gone")

        extra = {"action": "portal_gone", "agent": row.agent_id, "room": room_id, "why": why}
        log.warning("a portal is gone, the agent gets another", extra=extra)
        columns = {**forgotten_portal(), **({"history": "due"} if self._history else {})}
        name = target_of(row).portal_name
        then = "Another is made" if row.state in ("new", "active") else "Another is made when the agent is back"
        news = f"The room {room_id} of {name} was deleted. {then}, and who was in it is invited there."
        return Outcome(changes=[(row, columns)], also=[note], news=[news])

    async def _too_soon(self, row: AgentRow) -> bool:
        ages = [room.age for room in await self._past.of(row.agent_id) if room.reason == "gone"]
        if not ages or min(ages) > _ONCE_PER:
            return False
        asked = await self._settings.age(FULL_CHECK)
        return asked is None or asked > min(ages)

    async def upgraded(self, row: AgentRow, successor: RoomID) -> Outcome:
        """Somebody with the power closed it in favour of another room: followed when that one says the same and lets
        the bot in.
        """
        room_id = row.portal_room
        assert room_id is not None
        bot = self._homeserver.bot
        where = f"The room {room_id} of {target_of(row).portal_name} was closed in favour of {successor}"
        inside = await self._rooms.membership(successor, bot.mxid) == "join"
        try:
            await bot.join(successor)
            state = await bot.state(successor)
        except HomeserverError as error:
            if error.passing:
                raise
            text = f"{where}, where the bridge's bot may not enter. Invite {bot.mxid} to it."
            return Outcome(troubles=[text], again=True)
        predecessor = find(state, "m.room.create").get("predecessor")
        if not isinstance(predecessor, dict) or predecessor.get("room_id") != room_id:
            if not inside:  # whoever closes a room can name any: the space, another agent's room
                await bot.leave(successor)
            text = f"{where}, but that is not an upgrade of it, so the bridge does not use it."
            return Outcome(troubles=[text], again=True)
        wanted = await self._people.still_in(room_id)

        async def note(conn: Connection) -> None:
            await self._end(conn, row, room_id, "upgraded")
            await self._past.point(conn, row.agent_id, successor)
            await self._rooms.snapshot(conn, successor, state)
            await self._people.leave_alone(conn, successor, [*wanted.left_alone, *_seen_in(state)])
            await doubt(conn, successor)

        extra = {"action": "portal_upgraded", "agent": row.agent_id, "room": room_id, "successor": successor}
        log.info("a portal was upgraded, following", extra=extra)
        return Outcome(changes=[(row, _columns(row, successor, state))], also=[note])

    async def _end(self, conn: Connection, row: AgentRow, room_id: RoomID, reason: str) -> None:
        await self._past.add(conn, room_id, row.agent_id, reason)
        if (space := self._space()) is not None:
            await doubt(conn, space)


def _columns(row: AgentRow, room_id: RoomID, state: State) -> dict[str, Any]:
    name, topic = find(state, "m.room.name").get("name"), find(state, "m.room.topic").get("topic")
    return {
        **moved_portal(room_id),
        "portal_name": name if isinstance(name, str) else "",
        "portal_topic": topic if isinstance(topic, str) else "",
        "portal_joined": find(state, "m.room.member", row.mxid).get("membership") == "join",
    }


def _seen_in(state: State) -> list[MXID]:
    return [
        MXID(str(event["state_key"]))
        for event in state
        if event.get("type") == "m.room.member" and isinstance(event.get("state_key"), str)
    ]
