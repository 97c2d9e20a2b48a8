"""The room's own rules: who may join, invite, kick, ban, send what, and change power levels.

Room versions 11 and 12 of the Matrix specification, with Synapse's wording.
"""

import math
import re
from typing import TYPE_CHECKING

from .errors import bad, forbidden
from .events import JSON

if TYPE_CHECKING:
    from .rooms import Room

USER_ID = re.compile(r"@[^:\s]+:[^\s]+\Z")
_SCALARS = ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite")
_DEFAULTS = {"ban": 50, "kick": 50, "redact": 50, "invite": 0, "state_default": 50, "events_default": 0}


def named_level(room: "Room", name: str) -> int:
    """The level that the room asks for an action, with the specification's default."""
    return int(room.content("m.room.power_levels").get(name, _DEFAULTS[name]))


def user_level(room: "Room", user_id: str) -> float:
    """A user's power; the creators of a version 12 room have no limit."""
    if room.version == "12" and user_id in room.creators:
        return math.inf
    levels = room.state.get(("m.room.power_levels", ""))
    if levels is None:
        return 100 if user_id in room.creators else 0
    users = levels.content.get("users", {})
    return float(users.get(user_id, levels.content.get("users_default", 0)))


def send_level(room: "Room", event_type: str, is_state: bool) -> int:
    """The power that sending this type of event takes."""
    events = room.content("m.room.power_levels").get("events", {})
    if event_type in events:
        return int(events[event_type])
    return named_level(room, "state_default" if is_state else "events_default")


def check_send(room: "Room", sender: str, event_type: str, state_key: str | None, content: JSON) -> None:
    """Raise unless ``sender`` may put this event into the room. Not for membership."""
    if room.membership(sender) != "join":
        raise forbidden(f"User {sender} not in room {room.room_id}")
    level, needed = user_level(room, sender), send_level(room, event_type, state_key is not None)
    if level < needed:
        raise forbidden(
            f"You don't have permission to post that to the room. user_level ({int(level)}) < send_level ({needed})"
        )
    if state_key is not None and state_key.startswith("@") and state_key != sender:
        raise forbidden("You are not allowed to set others state")
    if event_type == "m.room.power_levels" and state_key == "":
        check_power_levels(room, sender, content)


def check_power_levels(room: "Room", sender: str, new: JSON) -> None:
    """Raise unless the new levels are well formed and ``sender`` may set them."""
    _check_level_shapes(room, new)
    current = room.state.get(("m.room.power_levels", ""))
    if current is None:
        return
    old, own = current.content, user_level(room, sender)
    for name in _SCALARS:
        _check_change(old.get(name), new.get(name), own, False)
    for group in ("users", "events", "notifications"):
        before, after = old.get(group, {}), new.get(group, {})
        for key in before.keys() | after.keys():
            _check_change(before.get(key), after.get(key), own, group == "users" and key != sender)


def _check_level_shapes(room: "Room", new: JSON) -> None:
    for name in _SCALARS:
        if name in new and type(new[name]) is not int:
            raise bad(f"{new[name]!r} is not of type 'integer'", "M_BAD_JSON")
    for group in ("users", "events", "notifications"):
        for key, value in new.get(group, {}).items():
            if type(value) is not int:
                raise bad(f"\"{key}\": {value!r} is not of type 'integer'", "M_BAD_JSON")
    for user_id in new.get("users", {}):
        if not USER_ID.match(user_id):
            raise bad(f"Not a valid user_id: {user_id}")
        if room.version == "12" and user_id == room.creator:
            raise bad(f"Creator user {user_id} must not appear in content.users")
        if room.version == "12" and user_id in room.creators:
            raise bad("Additional creators users must not appear in content.users")


def _check_change(old: int | None, new: int | None, own: float, other_user: bool) -> None:
    if old == new:
        return
    if other_user and old is not None and old == own:
        raise forbidden("You don't have permission to remove ops level equal to your own")
    if (old is not None and old > own) or (new is not None and new > own):
        raise forbidden("You don't have permission to add ops level greater than your own")


def check_member(room: "Room", sender: str, target: str, membership: str) -> None:
    """Raise unless ``sender`` may give ``target`` this membership. Restricted joins are checked by the caller."""
    if membership == "join":
        _check_join(room, sender, target)
        return
    caller = room.membership(sender)
    if membership == "leave" and sender == target and caller in ("invite", "knock"):
        return
    if caller != "join":
        raise forbidden(f"{sender} not in room {room.room_id}.")
    level, other = user_level(room, sender), user_level(room, target)
    if membership == "invite":
        _check_invite(room, target, level)
    elif membership == "leave":
        if room.membership(target) == "ban" and level < named_level(room, "ban"):
            raise forbidden(f"You cannot unban user {target}.")
        if target != sender and (level < named_level(room, "kick") or level <= other):
            raise forbidden(f"You cannot kick user {target}.")
    elif membership == "ban":
        if level < named_level(room, "ban"):
            raise forbidden("You don't have permission to ban")
        if level <= other:
            raise forbidden("You don't have permission to ban this user")
    else:
        raise bad("Invalid membership key")


def _check_invite(room: "Room", target: str, level: float) -> None:
    if room.membership(target) == "ban":
        raise forbidden(f"{target} is banned from the room")
    if room.membership(target) == "join":
        raise forbidden(f"{target} is already in the room.")
    if level < named_level(room, "invite"):
        raise forbidden("You don't have permission to invite users")


def _check_join(room: "Room", sender: str, target: str) -> None:
    if sender != target:
        raise forbidden("Cannot force another user to join.")
    current = room.membership(target)
    if current == "ban":
        raise forbidden("You are banned from this room")
    rule = room.content("m.room.join_rules").get("join_rule", "invite")
    if rule == "public" or current in ("join", "invite"):
        return
    if rule in ("restricted", "knock_restricted"):
        return
    if rule in ("invite", "knock"):
        raise forbidden("You are not invited to this room.")
    raise forbidden("You are not allowed to join this room")
