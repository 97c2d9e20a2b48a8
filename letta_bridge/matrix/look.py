"""Whether a room is there: a look with three answers, of which only one may lead to a new room.

A homeserver words "no such room", "you are not in it" and "it was purged" alike (Synapse: 403 M_FORBIDDEN for all
three), and a proxy, a restart or a registration that is being reloaded say something else again. So one refusal is
never a proof; that nobody of ours can see the room, that nobody of ours is in it, and that its name leads elsewhere
are one together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..ids import MXID, RoomID
from .answers import HomeserverError, mapping
from .homeserver import Homeserver

_REFUSALS = frozenset(((403, "M_FORBIDDEN"), (404, "M_NOT_FOUND")))
"""What is said of a room. Other errors with these statuses are about the user or the server: M_USER_DEACTIVATED,
M_UNRECOGNIZED."""
_ASK_NOBODY_ELSE = (0, 401, 429)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known of a room.

    Args:
        answer: ``exists``: somebody of ours reads it. ``gone``: proven. ``unknown``: neither, nothing may be done.
        state: the room's state as ``seen_by`` reads it; None unless it exists.
        seen_by: who of ours reads it.
        why: in plain words, for the log and for admins.
        successor: the room to which this one was upgraded.
    """

    answer: Literal["exists", "gone", "unknown"]
    state: list[dict[str, Any]] | None = None
    seen_by: MXID | None = None
    why: str
    successor: RoomID | None = None

    @property
    def current(self) -> bool:
        """Whether the state is that of now: who was put out reads it as it was then."""
        if self.state is None or self.seen_by is None:
            return False
        return content_of(self.state, "m.room.member", self.seen_by).get("membership") not in ("leave", "ban")


def content_of(state: Sequence[dict[str, Any]], kind: str, key: str = "") -> dict[str, Any]:
    """The content of one event of a room's state; empty when it is not there."""
    for event in state:
        if event.get("type") == kind and event.get("state_key") == key:
            return mapping(event.get("content"))
    return {}


async def look(homeserver: Homeserver, room_id: RoomID, alias: str | None, users: Sequence[MXID]) -> Look:
    """Find out whether a room is there. Never raises :class:`HomeserverError`; changes nothing.

    Args:
        alias: the name in our namespace that leads to the room, if it should have one.
        users: who of ours might be in it, beside the bot, who is always asked, and first.
    """
    if not room_id.startswith("!"):  # Synapse refuses it with the same words
        return Look(answer="unknown", why=f"{room_id!r} is no room's id")
    old: Look | None = None
    doubt = ""
    everybody = tuple(dict.fromkeys((homeserver.bot_mxid, *users)))
    for user in everybody:
        try:
            state = await homeserver.intent(user).state(room_id)
        except HomeserverError as error:
            if (error.status, error.errcode) not in _REFUSALS:
                doubt = doubt or f"the homeserver's answer to {user} leaves it open: {error}"
            if error.status in _ASK_NOBODY_ELSE:
                break
            continue
        seen = _seen(state, user)
        if seen.answer == "unknown":
            doubt = doubt or seen.why
        elif seen.current:
            return seen
        else:
            old = old or seen
    if old is not None:
        return old
    if not doubt:
        doubt = await _still_in(homeserver, room_id, everybody)
    if not doubt and alias is not None:
        doubt = await _still_named(homeserver, room_id, alias)
    if doubt:
        return Look(answer="unknown", why=doubt)
    led = "" if alias is None else f", and {alias} does not lead to it"
    return Look(answer="gone", why=f"none of {', '.join(everybody)} may read it, none is in it{led}")


def _seen(state: list[dict[str, Any]], user: MXID) -> Look:
    """Somebody reads the room. A state without the event that every room begins with is no room's state."""
    if not any(event.get("type") == "m.room.create" for event in state):
        return Look(answer="unknown", why=f"the homeserver answered {user} with a state in which there is no room")
    successor = content_of(state, "m.room.tombstone").get("replacement_room")
    seen = Look(
        answer="exists",
        state=state,
        seen_by=user,
        why=f"{user} reads it",
        successor=RoomID(successor) if isinstance(successor, str) and successor else None,
    )
    if seen.current:
        return seen
    return replace(seen, why=f"{user} reads it as it was when they left it or were put out")


async def _still_in(homeserver: Homeserver, room_id: RoomID, users: Sequence[MXID]) -> str:
    """Why it is not certain that nobody of ours is in the room; nothing when it is."""
    for user in users:
        try:
            if room_id in await homeserver.intent(user).joined_rooms():
                return f"{user} is in it, but may not read it"
        except HomeserverError as error:
            return f"the homeserver does not say which rooms {user} is in: {error}"
    return ""


async def _still_named(homeserver: Homeserver, room_id: RoomID, alias: str) -> str:
    """Why it is not certain that the alias does not lead to the room; nothing when it is."""
    try:
        if await homeserver.bot.resolve_alias(alias) == room_id:
            return f"{alias} still leads to it, though nobody of ours may read it"
    except HomeserverError as error:
        return f"the homeserver does not say where {alias} leads: {error}"
    return ""
