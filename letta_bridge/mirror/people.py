"""Inviting the configured people: once to each room, whatever they do then."""

import logging
from collections.abc import Callable

from ..db.database import Connection
from ..db.memory import Told
from ..db.rooms import Rooms
from ..ids import MXID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from .rests import Rests
from .writer import Writer

log = logging.getLogger(__name__)

_EVER = 1e10
_REFUSED = (400, 403, 404)


class People:
    """Sees to it that everybody configured was invited to a room.

    Args:
        wanted: who is to be invited.
        clock: seconds, for waiting after failures.
    """

    def __init__(
        self, homeserver: Homeserver, rooms: Rooms, told: Told, wanted: list[MXID], clock: Callable[[], float]
    ) -> None:
        self._homeserver = homeserver
        self._rooms = rooms
        self._told = told
        self.wanted = wanted
        self._rests: Rests[MXID] = Rests(30.0, 3600.0, clock)
        self._settled: set[RoomID] = set()

    def settled(self, room_id: RoomID) -> bool:
        """Whether nothing is left to do for this room, as this process knows."""
        return not self.wanted or room_id in self._settled

    async def settle(self, room_id: RoomID, writer: Writer, *, verify: bool) -> None:
        """Invite who was not invited yet.

        ``verify`` also looks after invitations made while the room was created, which some homeservers (Tuwunel) only
        log when they fail: who is not in the room's state, neither as pushed nor as read, is invited once more. For a
        room created just now that says nothing yet.
        """
        invited = await self._rooms.invited_once(room_id)
        done = verify
        for person in self.wanted:
            if person in invited and (not verify or await self._arrived(room_id, person, writer)):
                continue
            if self._rests.resting(person) or not await self._invite(room_id, person, writer):
                done = False
        if done:
            self._settled.add(room_id)

    async def _arrived(self, room_id: RoomID, person: MXID, writer: Writer) -> bool:
        """Whether an invitation needs no second try: it is in the room's state, or there was a second try."""
        if await self._rooms.membership(room_id, person) is not None:
            return True
        if await self._told.was_told(_second_try(room_id, person), _EVER):
            return True
        membership = await self._homeserver.bot.membership(room_id, person)
        if membership is None:
            return False
        await writer.run(lambda conn: self._rooms.set_membership(conn, room_id, person, membership))
        return True

    async def _invite(self, room_id: RoomID, person: MXID, writer: Writer) -> bool:
        """One try; False when its outcome leaves hope for another."""
        try:
            await self._homeserver.bot.invite(room_id, person)
        except HomeserverError as error:
            if error.status == 401 or error.unknown_device:
                raise  # says nothing about the person
            pause = None if error.status in _REFUSED else self._rests.failed(person)
            log.warning(
                "invitation failed",
                extra={
                    "action": "invite_failed",
                    "room": room_id,
                    "user": person,
                    "error": str(error),
                    "retry_in": pause,
                },
            )
            if pause is not None:
                return False
        else:
            self._rests.recovered(person)

        async def note(conn: Connection) -> None:
            await self._rooms.note_invited(conn, room_id, [person])
            await self._told.first_time(conn, _second_try(room_id, person))

        await writer.run(note)
        return True


def _second_try(room_id: RoomID, person: MXID) -> str:
    return f"mirror.invited:{room_id}:{person}"
