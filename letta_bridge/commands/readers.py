"""Who can read what is said in a room, asked of the homeserver: what we remember may be a moment old."""

from ..ids import MXID, RoomID
from ..matrix.look import content_of
from ..routing.permissions import Level
from .desk import Desk
from .show import escape

_BY_INVITATION = ("invite", "private", "knock")


async def why_open(desk: Desk, room_id: RoomID) -> str:
    """Why anybody can come to read what is said in a room; empty when it takes an invitation.

    Raises:
        HomeserverError: it cannot be known.
    """
    return _open(await desk.homeserver.bot.state(room_id))


async def why_not_private(desk: Desk, room_id: RoomID, who: str) -> str:
    """Why somebody beside ``who`` who is no administrator reads what is said in a room, or will; empty when nobody.

    Who is invited counts: they read what was said before they came.

    Raises:
        HomeserverError: it cannot be known.
    """
    state = await desk.homeserver.bot.state(room_id)
    if why := _open(state):
        return why
    for event in state:
        key, content = event.get("state_key"), event.get("content")
        if not isinstance(key, str) or not isinstance(content, dict):
            continue
        if event.get("type") == "m.room.third_party_invite" and content:
            return "somebody is invited to this room by mail"
        if event.get("type") != "m.room.member" or content.get("membership") not in ("join", "invite"):
            continue
        other = MXID(key)
        if other != who and not desk.directory.is_ours(other) and desk.permissions.level(other) < Level.ADMIN:
            return f"{escape(key)} is {'in' if content['membership'] == 'join' else 'invited to'} this room"
    return ""


def _open(state: list[dict[str, object]]) -> str:
    if content_of(state, "m.room.join_rules").get("join_rule", "invite") not in _BY_INVITATION:
        return "people can enter this room without an invitation"
    if content_of(state, "m.room.history_visibility").get("history_visibility") == "world_readable":
        return "anybody can read this room without being in it"
    return ""
