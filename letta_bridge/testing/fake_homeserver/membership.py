"""Joining, inviting, leaving, kicking, banning, forgetting."""

from typing import TYPE_CHECKING

from . import auth
from .accounts import Requester
from .auth import USER_ID
from .errors import MatrixError, bad, forbidden, not_found
from .events import JSON

if TYPE_CHECKING:
    from .homeserver import Homeserver
    from .rooms import Room

_ACTIONS = {"kick": "leave", "unban": "leave"}


def join(hs: "Homeserver", requester: Requester, room_or_alias: str, content: JSON | None = None) -> str:
    """Join by id or alias; the room's id. Joining again is a success."""
    room_id = room_or_alias
    if room_or_alias.startswith("#"):
        if room_or_alias not in hs.aliases:
            raise not_found(f"Room alias {room_or_alias} not found")
        room_id = hs.aliases[room_or_alias][0]
    elif not room_or_alias.startswith("!"):
        raise bad(f"{room_or_alias} was not legal room ID or room alias")
    room = hs.room(room_id)
    if room is None or not (room.members("join") or hs.flavour.joins_empty):
        raise MatrixError(404, "M_UNKNOWN", "Can't join remote room because no servers that are in it are known.")
    change(hs, requester, room, requester.user_id, "join", content or {})
    return room_id


def invite(
    hs: "Homeserver", requester: Requester, room_id: str, target: str, reason: str | None = None, direct: bool = False
) -> None:
    """Invite a user. Users of servers that nobody introduced to the fake cannot be reached."""
    if not USER_ID.match(target):
        raise bad("Expected UserID string to start with '@'", "M_INVALID_PARAM")
    if target.split(":", 1)[1] not in hs.known_domains:
        raise forbidden(f"Federation denied with {target.split(':', 1)[1]}.")
    content: JSON = {"is_direct": True} if direct else {}
    if reason is not None:
        content["reason"] = reason
    room = hs.room(room_id)
    if room is None:
        raise forbidden("Unknown room")
    change(hs, requester, room, target, "invite", content)


def leave(hs: "Homeserver", requester: Requester, room_id: str, content: JSON | None = None) -> None:
    """Leave a room or reject an invite."""
    room = hs.room(room_id)
    if hs.flavour.strangers_leave and (room is None or room.membership(requester.user_id) in (None, "leave", "ban")):
        return
    if room is None:
        raise MatrixError(404, "M_UNKNOWN", "Not a known room")
    change(hs, requester, room, requester.user_id, "leave", content or {})


def remove(hs: "Homeserver", requester: Requester, room_id: str, target: str, action: str, content: JSON) -> None:
    """``kick``, ``ban`` or ``unban`` a user."""
    if not USER_ID.match(target):
        raise bad("Expected UserID string to start with '@'", "M_INVALID_PARAM")
    room = hs.room(room_id)
    if room is None:
        if hs.flavour.name == "synapse" and _ACTIONS.get(action, action) == "leave":
            raise MatrixError(404, "M_UNKNOWN", "Not a known room")
        raise forbidden("Unknown room")
    change(hs, requester, room, target, action, content)


def forget(hs: "Homeserver", requester: Requester, room_id: str) -> None:
    """Forget a room one is not in any more."""
    room = hs.room(room_id)
    if room is None:
        return
    if room.membership(requester.user_id) in ("join", "invite", "knock"):
        raise bad(f"User {requester.user_id} in room {room_id}")
    room.forgotten.add(requester.user_id)


def put_member(hs: "Homeserver", requester: Requester, room_id: str, target: str, content: JSON) -> str:
    """A membership written through ``PUT /state``; the event's id."""
    membership = content.get("membership")
    if not isinstance(membership, str):
        raise bad("Invalid membership (must be a string)")
    room = hs.room(room_id)
    if room is None:
        raise forbidden("Unknown room")
    rest = {key: value for key, value in content.items() if key != "membership"}
    return change(hs, requester, room, target, membership, rest)


def change(hs: "Homeserver", requester: Requester, room: "Room", target: str, action: str, content: JSON) -> str:
    """Give ``target`` a membership; the event's id, the current one when nothing would change."""
    membership = _ACTIONS.get(action, action)
    content = {**content, "membership": membership}
    if membership in ("join", "invite"):
        profile = hs.accounts.users[target].profile if target in hs.accounts.users else {}
        for key in ("displayname", "avatar_url"):
            if key in profile:
                content.setdefault(key, profile[key])
    current = room.membership(target)
    synapse = hs.flavour.name == "synapse"
    if action == "unban" and current != "ban":
        raise MatrixError(
            403,
            "M_BAD_STATE" if synapse else "M_FORBIDDEN",
            f"Cannot unban user who was not banned (membership={current})",
        )
    if synapse and current == "ban" and action in ("join", "invite", "kick"):
        raise MatrixError(403, "M_BAD_STATE", f"Cannot {action} user who was banned")
    old = room.state.get(("m.room.member", target))
    if membership == "join" and current == "join" and old is not None:
        # a second join keeps how the first one was authorised
        content = {**{k: v for k, v in old.content.items() if k == "join_authorised_via_users_server"}, **content}
    if old is not None and old.sender == requester.user_id and old.content == content:
        return old.event_id
    if action == "kick" and current not in ("join", "invite", "knock"):
        raise forbidden("The target user is not in the room")
    _check(hs, requester, room, target, membership)
    if membership == "join" and current not in ("join", "invite"):
        _authorise_restricted(hs, room, target, content)
    event = hs.append(room, requester, "m.room.member", content, state_key=target)
    if membership != "join" and (timer := room.typing.pop(target, None)):
        timer.cancel()
    return event.event_id


def _check(hs: "Homeserver", requester: Requester, room: "Room", target: str, membership: str) -> None:
    try:
        auth.check_member(room, requester.user_id, target, membership)
    except MatrixError as refusal:
        if hs.flavour.name != "tuwunel" or refusal.status != 403:
            raise
        text = refusal.error
        if membership == "invite" and room.membership(target) in ("join", "ban"):
            text = "cannot invite user that is joined or banned"
        elif membership == "join":
            text = "cannot join a room that is not public"
        raise forbidden(f"Auth check failed: {text}") from refusal


def _authorise_restricted(hs: "Homeserver", room: "Room", target: str, content: JSON) -> None:
    rules = room.content("m.room.join_rules")
    if rules.get("join_rule") not in ("restricted", "knock_restricted"):
        return
    for entry in rules.get("allow", ()):
        door = hs.room(str(entry.get("room_id")))
        if door is not None and door.membership(target) == "join":
            needed = auth.named_level(room, "invite")
            for member in room.members():
                if member.endswith(f":{hs.domain}") and auth.user_level(room, member) >= needed:
                    content["join_authorised_via_users_server"] = member
                    return
    raise forbidden("You do not belong to any of the required rooms/spaces to join this room.")


def write_profile(hs: "Homeserver", user_id: str) -> None:
    """Write a member event with the new name and avatar into every room that the user is in."""
    profile = hs.accounts.users[user_id].profile
    for room in hs.rooms.values():
        if room.membership(user_id) != "join":
            continue
        old = room.content("m.room.member", user_id)
        content = {key: value for key, value in old.items() if key not in ("displayname", "avatar_url")}
        content |= {key: profile[key] for key in ("displayname", "avatar_url") if key in profile}
        hs.append(room, Requester(user_id), "m.room.member", content, state_key=user_id)
