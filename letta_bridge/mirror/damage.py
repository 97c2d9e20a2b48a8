"""Which of the events that the homeserver pushes may have damaged a room of the mirror."""

from collections.abc import Callable, Mapping
from typing import Any

from ..ids import MXID
from .maker import PORTAL_STATE, SPACE_STATE
from .target import BRIDGE_STATE

_KINDS = frozenset(
    (
        "m.room.name",
        "m.room.topic",
        "m.room.power_levels",
        "m.room.canonical_alias",
        "m.room.encryption",
        "m.room.join_rules",
        "m.room.tombstone",
        "m.space.child",
        "m.space.parent",
        PORTAL_STATE,
        SPACE_STATE,
        BRIDGE_STATE,
    )
)


def may_damage(event: Mapping[str, Any], is_ours: Callable[[MXID], bool]) -> bool:
    """Whether the mirror is to look at the room after this event, if it is a portal or the space.

    State that others wrote; and whenever one of ours is out, or is invited or put out by others: an admin who deletes
    a room lets everybody leave it, as if of their own accord.
    """
    kind, about, sender = event.get("type"), event.get("state_key"), event.get("sender")
    if not isinstance(about, str) or not isinstance(sender, str):
        return False
    foreign = not is_ours(MXID(sender))
    if kind != "m.room.member":
        return foreign and kind in _KINDS
    content = event.get("content")
    membership = content.get("membership") if isinstance(content, Mapping) else None
    return is_ours(MXID(about)) and (foreign or membership in ("leave", "ban"))
