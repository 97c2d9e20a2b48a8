"""Reading back what was not pushed.

Homeservers push only what happens while one of our users is joined: the first text of a new DM, sent between the
invitation and the join, never comes by itself. The same reading closes gaps after a time in which nothing came.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..db.inbox import Arrival, Inbox, arrival
from ..ids import MXID, EventID, RoomID
from .homeserver import Intent

log = logging.getLogger(__name__)

_PAGE = 100


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Events that may be new, oldest first. ``complete`` is False when the limit ended the reading."""

    arrivals: tuple[Arrival, ...]
    complete: bool


async def read_back(intent: Intent, inbox: Inbox, room_id: RoomID, invite: EventID | None, limit: int) -> ReadBack:
    """Read the timeline back to our invitation, else to the last event that was handled, at most ``limit`` events.

    State is left out: a snapshot tells it better. Our own messages are left out too.

    Args:
        invite: the invitation that led here; None where the reading closes a gap.

    Raises:
        HomeserverError: nothing was learned.
    """
    found: list[Arrival] = []
    seen = 0
    start: str | None = None
    while seen < limit:
        page = await intent.messages_back(room_id, start, min(_PAGE, limit - seen))
        chunk = page.get("chunk")
        for event in chunk if isinstance(chunk, list) else ():
            seen += 1
            if not isinstance(event, Mapping):
                continue
            if await _is_border(event, inbox, intent.mxid, room_id, invite):
                return ReadBack(tuple(reversed(found)), True)
            if "state_key" not in event and event.get("sender") != intent.mxid:
                found.append(as_arrival(event, room_id))
        start = page.get("end")
        if not isinstance(start, str) or not chunk:
            return ReadBack(tuple(reversed(found)), True)
    log.warning("reading back ended at its limit", extra={"action": "catchup_limit", "room": room_id, "limit": limit})
    return ReadBack(tuple(reversed(found)), False)


def as_arrival(event: Mapping[str, Any], room_id: RoomID) -> Arrival:
    """An event of a timeline as it is to be stored."""
    one = arrival({**event, "room_id": room_id})
    unsigned = event.get("unsigned")
    if one.state == "new" and isinstance(unsigned, Mapping) and unsigned.get("redacted_because"):
        return replace(one, state="skipped", decision="redacted before it was read")
    return one


async def _is_border(event: Mapping[str, Any], inbox: Inbox, me: MXID, room_id: RoomID, invite: EventID | None) -> bool:
    """Whether everything older was handled or was never meant for us."""
    event_id = event.get("event_id")
    if not isinstance(event_id, str):
        return False
    if event_id == invite or invites(event, me):
        return True
    # after an invitation: something later may have been handled already, because another of our users was here
    return invite is None and await inbox.settled(room_id, EventID(event_id))


def invites(event: Mapping[str, Any], me: MXID) -> bool:
    """Whether this is the invitation of one of our users: what lies before it was never meant for that one."""
    content = event.get("content")
    membership = content.get("membership") if isinstance(content, Mapping) else None
    return event.get("type") == "m.room.member" and event.get("state_key") == me and membership == "invite"
