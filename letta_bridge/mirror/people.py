"""Inviting the configured people: once to each room, whatever they do then."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..db.database import Connection
from ..db.memory import Told
from ..db.past_rooms import PastRooms
from ..db.rooms import Rooms
from ..ids import MXID, AgentID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError, Intent
from .rests import Rests
from .swept import swept_out
from .writer import Writer

log = logging.getLogger(__name__)

_EVER = 1e10
_REFUSED = (400, 403, 404)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who is to be in a new portal, and who is not to be asked again although the configuration names them."""

    invited: list[MXID]
    left_alone: list[MXID]


class People:
    """Sees to it that everybody configured was invited to a room.

    Args:
        wanted: who is to be invited.
        clock: seconds, for waiting after failures.
        is_ours: whether a user is the bridge's own.
    """

    def __init__(
        self,
        homeserver: Homeserver,
        rooms: Rooms,
        past: PastRooms,
        told: Told,
        wanted: list[MXID],
        clock: Callable[[], float],
        is_ours: Callable[[MXID], bool],
    ) -> None:
        self._homeserver = homeserver
        self._rooms = rooms
        self._past = past
        self._is_ours = is_ours
        self._told = told
        self.wanted = wanted
        self._rests: Rests[MXID] = Rests(30.0, 3600.0, clock)
        self._settled: set[RoomID] = set()

    async def for_portal(self, agent_id: AgentID) -> Wanted:
        """Whom to invite to a new portal of this agent.

        Where it takes the place of one that is gone, that is who was in that one, or had not answered yet, when it was
        last heard of: who had left it, or was put out, is not asked again. Who was made to leave it by its deletion is.
        """
        lost = [room for room in await self._past.of(agent_id) if not room.replaced_by]
        if not lost:
            return Wanted(self.wanted, [])
        return await self.before_the_end(lost[0].room_id)

    async def before_the_end(self, room_id: RoomID) -> Wanted:
        """Who was in a room that is gone, or had not answered its invitation, before it was deleted."""
        wanted = await self.still_in(room_id)
        swept = swept_out(await self._rooms.departures(room_id), self._is_ours, self._homeserver.domain)
        there = list(dict.fromkeys([*wanted.invited, *swept]))
        return Wanted(there, [person for person in wanted.left_alone if person not in there])

    async def still_in(self, room_id: RoomID) -> Wanted:
        """Who was in a room, or had not answered its invitation, when it was last heard of."""
        members = (await self._rooms.info(room_id)).members
        there = [member.mxid for member in members if not self._is_ours(member.mxid)]
        return Wanted(there, [person for person in self.wanted if person not in there])

    async def leave_alone(self, conn: Connection, room_id: RoomID, people: Iterable[MXID]) -> None:
        """Within a transaction: none of these is ever invited to this room."""
        for person in people:
            await self._rooms.note_invited(conn, room_id, [person])
            await self._told.first_time(conn, _second_try(room_id, person))

    async def ask_back(self, inviter: Intent, room_id: RoomID, people: Iterable[MXID]) -> int:
        """Invite those who did not leave by their own will; how many were invited. Raises HomeserverError: not now."""
        asked = 0
        for person in people:
            try:
                await inviter.invite(room_id, person)
                asked += 1
            except HomeserverError as error:
                if error.passing:
                    raise
                extra = {"action": "invite_failed", "room": room_id, "user": person, "error": str(error)}
                log.warning("invitation failed", extra=extra)
        return asked

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
            final = error.status in _REFUSED and await self._may_ask(room_id)
            pause = None if final else self._rests.failed(person)
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

    async def _may_ask(self, room_id: RoomID) -> bool:
        """Whether a refusal says something about the person: the bot itself is in the room. Who is out of it, or may
        not look, is refused with the same words.
        """
        return await self._homeserver.bot.membership(room_id, self._homeserver.bot_mxid) == "join"


def _second_try(room_id: RoomID, person: MXID) -> str:
    return f"mirror.invited:{room_id}:{person}"
