"""Calls that make, change and look at rooms: membership, state, aliases."""

from collections.abc import Mapping
from typing import Any

from mautrix.api import Method, Path, PathBuilder

from ..ids import MXID, EventID, RoomID
from .answers import HomeserverError, mapping, part
from .caller import Caller

Content = Mapping[str, Any]


class RoomCalls(Caller):
    """What one of the appservice's users does with rooms."""

    async def create_room(self, body: Content) -> RoomID:
        """``POST /createRoom``."""
        answer = await self.patiently(Method.POST, Path.v3.createRoom, dict(body))
        return RoomID(part(answer, "room_id", str))

    async def resolve_alias(self, alias: str) -> RoomID | None:
        """The room behind an alias; None only when the homeserver says for certain that there is none."""
        try:
            answer = await self.patiently(Method.GET, Path.v3.directory.room[alias])
        except HomeserverError as error:
            if error.not_found:
                return None
            raise
        return RoomID(part(answer, "room_id", str))

    async def set_alias(self, alias: str, room_id: RoomID) -> None:
        """Let an alias of our namespace lead to a room; no error when it does already, M_UNKNOWN 409 when elsewhere."""
        try:
            await self.patiently(Method.PUT, Path.v3.directory.room[alias], {"room_id": room_id})
        except HomeserverError as error:
            if error.status != 409 or await self.resolve_alias(alias) != room_id:
                raise

    async def delete_alias(self, alias: str) -> None:
        """Let an alias of our namespace lead nowhere; no error when it is certain that it does not lead anywhere."""
        try:
            await self.patiently(Method.DELETE, Path.v3.directory.room[alias])
        except HomeserverError as error:
            if not error.not_found:
                raise

    async def join(self, room_id: RoomID) -> None:
        """Join; being joined already is no error."""
        part(await self.patiently(Method.POST, Path.v3.rooms[room_id].join), "room_id", str)

    async def leave(self, room_id: RoomID, reason: str = "") -> None:
        """Leave, or refuse an invitation; not being there is no error."""
        try:
            await self.patiently(Method.POST, Path.v3.rooms[room_id].leave, {"reason": reason} if reason else {})
        except HomeserverError as error:
            if error.status not in (403, 404):
                raise

    async def invite(self, room_id: RoomID, user: MXID, reason: str = "") -> None:
        """Invite; whoever is joined or invited already is no error."""
        body = {"user_id": user, **({"reason": reason} if reason else {})}
        try:
            await self.patiently(Method.POST, Path.v3.rooms[room_id].invite, body)
        except HomeserverError as error:
            if not error.forbidden or await self.membership(room_id, user) not in ("join", "invite"):
                raise

    async def kick(self, room_id: RoomID, user: MXID, reason: str = "") -> None:
        """Put somebody out, or take an invitation back; whoever is certainly not there is no error."""
        body = {"user_id": user, **({"reason": reason} if reason else {})}
        try:
            await self.patiently(Method.POST, Path.v3.rooms[room_id].kick, body)
        except HomeserverError as error:
            if not error.forbidden or not await self._is_out(room_id, user):
                raise

    async def _is_out(self, room_id: RoomID, user: MXID) -> bool:
        """Whether this user, who is in the room, reads there that ``user`` is not. Who has left reads old news."""
        try:
            if await self.membership(room_id, self.mxid) != "join":
                return False
            member = await self.get_state(room_id, "m.room.member", user)
        except HomeserverError:
            return False
        return member is None or member.get("membership") in ("leave", "ban")

    async def forget(self, room_id: RoomID) -> None:
        """Give up the right to read the past of a room that this user has left; a repeat is no error."""
        await self.patiently(Method.POST, Path.v3.rooms[room_id].forget, {})

    async def joined_rooms(self) -> list[RoomID]:
        """All rooms that this user is in."""
        rooms = part(await self.patiently(Method.GET, Path.v3.joined_rooms), "joined_rooms", list)
        if not all(isinstance(room_id, str) for room_id in rooms):
            raise HomeserverError(502, "", "a list of rooms with something else in it")
        return [RoomID(room_id) for room_id in rooms]

    async def membership(self, room_id: RoomID, user: MXID) -> str | None:
        """What the room's state says of ``user``; None when that cannot be read."""
        try:
            answer = await self.request(Method.GET, Path.v3.rooms[room_id].state["m.room.member"][user])
        except HomeserverError:
            return None
        value = mapping(answer).get("membership")
        return value if isinstance(value, str) else None

    async def state(self, room_id: RoomID) -> list[dict[str, Any]]:
        """The whole present state of a room this user is in."""
        events = await self.patiently(Method.GET, Path.v3.rooms[room_id].state)
        if not isinstance(events, list):
            raise HomeserverError(502, "", "a state that is no list")
        return [event for event in events if isinstance(event, dict)]

    async def get_state(self, room_id: RoomID, kind: str, key: str = "") -> dict[str, Any] | None:
        """The content of one state event; None only when it is certain that the room has none.

        Tuwunel's answer to who may not look is the same 404 as for an event that is not there. So after a 404 the
        event that every room has is asked for.
        """
        try:
            return mapping(await self.patiently(Method.GET, _state_path(room_id, kind, key)))
        except HomeserverError as error:
            if not error.not_found:
                raise
        await self._may_look(room_id)
        return None

    async def _may_look(self, room_id: RoomID) -> None:
        try:
            await self.patiently(Method.GET, _state_path(room_id, "m.room.create", ""))
        except HomeserverError as error:
            if error.not_found:
                raise HomeserverError(403, "M_FORBIDDEN", "this user may not read the room's state") from None
            raise

    async def joined_members(self, room_id: RoomID) -> list[MXID]:
        """Who is in a room, asked as somebody who is in it."""
        answer = await self.request(Method.GET, Path.v3.rooms[room_id].joined_members)
        return [MXID(mxid) for mxid in part(answer, "joined", dict)]

    async def set_state(self, room_id: RoomID, kind: str, key: str, content: Content) -> EventID:
        """Set one state event."""
        path = _state_path(room_id, kind, key)
        return EventID(part(await self.patiently(Method.PUT, path, dict(content)), "event_id", str))


def _state_path(room_id: RoomID, kind: str, key: str) -> PathBuilder:
    return Path.v3.rooms[room_id].state[kind][key] if key else Path.v3.rooms[room_id].state[kind]
