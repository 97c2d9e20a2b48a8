"""``createRoom``: presets, overrides, and the order in which the first events are written."""

from typing import TYPE_CHECKING, Any

from . import auth, membership
from .accounts import Requester
from .auth import USER_ID
from .errors import MatrixError, bad, forbidden
from .events import JSON, check_content, new_event_id

if TYPE_CHECKING:
    from .homeserver import Homeserver
    from .rooms import Room

_PRESETS: dict[str, tuple[str, bool]] = {  # join rule, guests may join
    "private_chat": ("invite", True),
    "trusted_private_chat": ("invite", True),
    "public_chat": ("public", False),
}
_VERSIONS = ("11", "12")


def create_room(hs: "Homeserver", requester: Requester, body: JSON) -> str:
    """Create a room as the requester asks; its id.

    A refusal after the first events leaves a half-made room behind, as on the real servers. Room versions other
    than 11 and 12 are not imitated and refused as unsupported.
    """
    version = body.get("room_version", hs.flavour.default_room_version)
    if not isinstance(version, str):
        raise bad("room_version must be a string", "M_BAD_JSON")
    if version not in _VERSIONS:
        raise bad("Your homeserver does not support this room version", "M_UNSUPPORTED_ROOM_VERSION")
    preset = body.get("preset") or ("public_chat" if body.get("visibility") == "public" else "private_chat")
    if preset not in _PRESETS:
        raise bad(f"'{preset}' is not a valid preset", "M_BAD_JSON")
    alias = _check_alias(hs, requester, body.get("room_alias_name"))
    invites = _check_invites(hs, body.get("invite") or [])
    levels = _power_levels(hs, requester, version, preset, invites, body.get("power_level_content_override") or {})
    for key in ("name", "topic"):
        if key in body and not isinstance(body[key], str):
            raise bad(f"'{key}' not a string type")
    room = _open(hs, requester, version, preset, invites, body.get("creation_content") or {})
    _put(hs, room, requester, "m.room.power_levels", levels)
    if alias is not None:
        hs.aliases[alias] = (room.room_id, requester.user_id)
        _put(hs, room, requester, "m.room.canonical_alias", {"alias": alias})
    _fill(hs, room, requester, preset, body)
    for user_id in invites:
        try:
            membership.invite(hs, requester, room.room_id, user_id, direct=bool(body.get("is_direct")))
        except MatrixError:
            if hs.flavour.strict_create:
                raise
    return room.room_id


def _check_alias(hs: "Homeserver", requester: Requester, localpart: Any) -> str | None:
    if localpart is None:
        return None
    if not isinstance(localpart, str) or ":" in localpart or any(map(str.isspace, localpart)):
        raise bad("':' is not permitted in the room alias name.")
    alias = f"#{localpart}:{hs.domain}"
    if requester.appservice and not hs.appservice.owns_alias(alias):
        raise bad("This application service has not reserved this kind of alias.", "M_EXCLUSIVE")
    if not requester.appservice and hs.appservice.reserves_alias(alias):
        raise bad("This alias is reserved by an application service.", "M_EXCLUSIVE")
    if alias in hs.aliases:
        raise bad("Room alias already taken", "M_ROOM_IN_USE")
    return alias


def _check_invites(hs: "Homeserver", invites: Any) -> list[str]:
    for user_id in invites:
        if not isinstance(user_id, str) or not USER_ID.match(user_id):
            raise bad(f"Invalid user_id: {user_id}")
        if hs.flavour.strict_create and user_id.split(":", 1)[1] not in hs.known_domains:
            raise forbidden(f"Federation denied with {user_id.split(':', 1)[1]}.")
    return list(dict.fromkeys(invites))


def _power_levels(
    hs: "Homeserver", requester: Requester, version: str, preset: str, invites: list[str], override: JSON
) -> JSON:
    tombstone = 150 if version == "12" else 100
    if hs.flavour.name == "synapse":
        events = {
            "m.room.name": 50, "m.room.power_levels": 100, "m.room.history_visibility": 100,
            "m.room.canonical_alias": 50, "m.room.avatar": 50, "m.room.tombstone": tombstone,
            "m.room.server_acl": 100, "m.room.encryption": 100,
        }  # fmt: skip
    else:
        events = {
            "m.room.power_levels": 100, "m.room.history_visibility": 100, "m.room.tombstone": tombstone,
            "m.room.server_acl": 100, "m.room.encryption": 100,
            "org.matrix.msc3381.poll.start": 0, "org.matrix.msc3381.poll.response": 0, "m.poll.start": 0,
            "m.poll.response": 0,
        }  # fmt: skip
    users: dict[str, int] = {}
    if version != "12":
        users[requester.user_id] = 100
        if preset == "trusted_private_chat":
            users |= dict.fromkeys(invites, 100)
    public = preset == "public_chat"
    if public:
        events["m.call.invite"] = 50
    levels: JSON = {
        "users": users, "users_default": 0, "events": events, "events_default": 0, "state_default": 50,
        "ban": 50, "kick": 50, "redact": 50, "invite": 50 if public else 0, "historical": 100,
    }  # fmt: skip
    levels |= override
    if version != "12" and requester.user_id not in levels["users"]:
        raise bad(f"Not a valid power_level_content_override: 'users' did not contain {requester.user_id}")
    return levels


def _open(
    hs: "Homeserver", requester: Requester, version: str, preset: str, invites: list[str], creation: JSON
) -> "Room":
    content = {**creation, "room_version": version}
    content.pop("creator", None)
    if version == "12" and preset == "trusted_private_chat":
        creators = [*content.get("additional_creators", ()), *invites]
        content["additional_creators"] = list(dict.fromkeys(creators))
    create_id = new_event_id()
    room = hs.new_room(version, create_id)
    hs.append(room, requester, "m.room.create", content, state_key="", event_id=create_id)
    account = hs.accounts.users.get(requester.user_id)
    profile = account.profile if account else {}
    shown: JSON = {key: profile[key] for key in ("displayname", "avatar_url") if key in profile}
    hs.append(room, requester, "m.room.member", {**shown, "membership": "join"}, state_key=requester.user_id)
    return room


def _fill(hs: "Homeserver", room: "Room", requester: Requester, preset: str, body: JSON) -> None:
    initial = body.get("initial_state") or []
    given = {(entry.get("type"), entry.get("state_key", "")) for entry in initial}
    join_rule, guests = _PRESETS[preset]
    defaults: list[tuple[str, JSON]] = [
        ("m.room.join_rules", {"join_rule": join_rule}),
        ("m.room.history_visibility", {"history_visibility": "shared"}),
    ]
    if guests:
        defaults.append(("m.room.guest_access", {"guest_access": "can_join"}))
    elif hs.flavour.name == "tuwunel":
        defaults.append(("m.room.guest_access", {"guest_access": "forbidden"}))
    for event_type, content in defaults:
        if (event_type, "") not in given:
            _put(hs, room, requester, event_type, content)
    for entry in initial:
        event_type, content = entry.get("type"), entry.get("content")
        if not isinstance(event_type, str) or not isinstance(content, dict):
            raise MatrixError(500, "M_UNKNOWN", "Internal server error")
        if not hs.flavour.strict_create and (content == {} or _repeated(event_type, body)):
            continue
        _put(hs, room, requester, event_type, content, entry.get("state_key", ""))
    if "name" in body:
        _put(hs, room, requester, "m.room.name", {"name": body["name"]})
    if "topic" in body:
        topic = body["topic"]
        _put(hs, room, requester, "m.room.topic", {"topic": topic, "m.topic": {"m.text": [{"body": topic}]}})


def _repeated(event_type: str, body: JSON) -> bool:
    return (event_type == "m.room.name" and "name" in body) or (event_type == "m.room.topic" and "topic" in body)


def _put(
    hs: "Homeserver", room: "Room", requester: Requester, event_type: str, content: JSON, state_key: str = ""
) -> None:
    check_content(event_type, content)
    auth.check_send(room, requester.user_id, event_type, state_key, content)
    hs.append(room, requester, event_type, content, state_key=state_key)
