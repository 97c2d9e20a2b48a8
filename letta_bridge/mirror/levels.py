"""Power in a room, read from its state, and what is to be restored of it."""

import math
from collections.abc import Mapping
from typing import Any

from ..ids import MXID
from .maker import CREATOR_LISTED, State, find

PUPPET_LEVEL = 50
_RING = 100


def level_of(state: State, user: MXID) -> float:
    """The power of a user; whoever made a room of version 12 or newer may do everything."""
    for event in state:
        if event.get("type") == "m.room.create":
            content = event.get("content") or {}
            if content.get("room_version", "1") not in CREATOR_LISTED:
                more = content.get("additional_creators")
                if user == event.get("sender") or (isinstance(more, list) and user in more):
                    return math.inf
    levels = find(state, "m.room.power_levels")
    return _number(_mapping(levels.get("users")).get(user), _number(levels.get("users_default"), 0))


def may_set(state: State, user: MXID, kind: str) -> bool:
    """Whether a user's power suffices for state of this type."""
    levels = find(state, "m.room.power_levels")
    needed = _number(_mapping(levels.get("events")).get(kind), _number(levels.get("state_default"), 50))
    return level_of(state, user) >= needed


def mended_levels(state: State, puppet: MXID) -> dict[str, Any] | None:
    """The room's power levels with what the bridge needs of them; None when they are fine.

    What people changed beside that is left as it is.
    """
    levels = find(state, "m.room.power_levels")
    users, notifications = _mapping(levels.get("users")), _mapping(levels.get("notifications"))
    mended = dict(levels)
    if level_of(state, puppet) < PUPPET_LEVEL:
        mended["users"] = {**users, puppet: PUPPET_LEVEL}
    if _number(notifications.get("room"), 50) < _RING:  # an agent that writes @room rings nobody
        mended["notifications"] = {**notifications, "room": _RING}
    return mended if mended != levels else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else otherwise
