"""What a request asks of the homeserver, in one word: for counting."""

_IN_ROOMS = {
    "send": "send",
    "state": "state",
    "join": "join",
    "leave": "leave",
    "invite": "invite",
    "kick": "kick",
    "forget": "forget",
    "typing": "typing",
    "receipt": "receipt",
    "messages": "read",
    "event": "read",
    "joined_members": "read",
}
_ELSEWHERE = {
    "createRoom": "create_room",
    "register": "register",
    "profile": "profile",
    "devices": "device",
    "account": "account",
    "upload": "upload",
    "directory": "alias",
    "joined_rooms": "read",
    "versions": "read",
    "appservice": "ping",
}
CALLS = frozenset((*_IN_ROOMS.values(), *_ELSEWHERE.values(), "other"))
"""What :func:`call_of` can say."""


def call_of(path: str) -> str:
    """What a request asks of the homeserver, as one word of :data:`CALLS`."""
    parts = path.split("/", 7)  # "", "_matrix", "client", "v3", "rooms", id, "send", …
    if len(parts) > 6 and parts[4] == "rooms":
        return _IN_ROOMS.get(parts[6], "other")
    return _ELSEWHERE.get(parts[4] if len(parts) > 4 else parts[-1], "other")
