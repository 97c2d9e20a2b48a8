"""Events: their ids, sizes, redaction, and the shapes in which clients and appservices get them."""

import base64
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from .errors import MatrixError, bad, internal
from .flavour import Flavour

JSON = dict[str, Any]

MAX_EVENT_BYTES = 65_536
_MAX_ID = 255
_KEPT_KEYS: dict[str, tuple[str, ...]] = {
    "m.room.member": ("membership", "join_authorised_via_users_server"),
    "m.room.join_rules": ("join_rule", "allow"),
    "m.room.power_levels": (
        "ban", "events", "events_default", "invite", "kick", "redact", "state_default", "users", "users_default",
    ),
    "m.room.history_visibility": ("history_visibility",),
    "m.room.redaction": ("redacts",),
}  # fmt: skip
_REQUIRED_STRINGS: dict[str, tuple[str, ...]] = {
    "m.room.message": ("body", "msgtype"),
    "m.room.topic": ("topic",),
    "m.room.name": ("name",),
}


@dataclass(slots=True, eq=False)
class Event:
    """One persisted event. ``position`` counts within its room, ``stream`` over the whole server."""

    event_id: str
    room_id: str
    sender: str
    type: str
    content: JSON
    origin_server_ts: int
    state_key: str | None
    position: int
    stream: int
    replaced: "Event | None" = None
    transaction: tuple[str, str | None, str] | None = None
    redacted_because: "Event | None" = None
    invite_state: list[JSON] | None = None
    hidden: bool = False  # a redaction of an unknown event: stored, shown to nobody

    @property
    def redacts(self) -> str | None:
        """The target of a redaction that was well formed."""
        target = self.content.get("redacts") if self.type == "m.room.redaction" else None
        return target if isinstance(target, str) else None

    def relation(self) -> tuple[str, str, str | None] | None:
        """(rel_type, target event, key) when the event relates to another one, else None."""
        raw = self.content.get("m.relates_to")
        if not isinstance(raw, dict):
            return None
        kind, target, key = raw.get("rel_type"), raw.get("event_id"), raw.get("key")
        if not isinstance(kind, str) or not isinstance(target, str):
            return None
        return kind, target, key if isinstance(key, str) else None

    def prune(self, because: "Event") -> None:
        """Redact: keep only what room versions 11 and 12 keep."""
        self.content = pruned(self.type, self.content)
        self.redacted_because = because


def pruned(event_type: str, content: JSON) -> JSON:
    """What a redaction leaves of a content in room versions 11 and 12."""
    if event_type == "m.room.create":
        return content
    return {key: content[key] for key in _KEPT_KEYS.get(event_type, ()) if key in content}


def now_ms() -> int:
    """Wall clock in milliseconds."""
    return int(time.time() * 1000)


def new_event_id() -> str:
    """An id in the form of room versions 4 and later."""
    return "$" + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")


def canonical(value: Any) -> bytes:
    """Canonical JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def check_content(event_type: str, content: JSON) -> None:
    """Refuse contents that Synapse's validator refuses: missing or wrongly typed required strings."""
    for key in _REQUIRED_STRINGS.get(event_type, ()):
        if key not in content:
            raise bad(f"'{key}' not in content")
        if not isinstance(content[key], str):
            raise bad(f"'{key}' not a string type")


def check_size(event: Event, version: str, domain: str) -> None:
    """Refuse an event whose federation form would exceed 64 KiB, or whose ids exceed 255 bytes.

    The form is imitated with dummy hashes and signatures: within a few bytes of Synapse's own count.
    """
    for name, value in (("type", event.type), ("state_key", event.state_key or "")):
        if len(value.encode()) > _MAX_ID:
            raise MatrixError(413, "M_TOO_LARGE", f"'{name}' too large")
    pdu: JSON = {
        "auth_events": ["$" + "a" * 43] * (2 if version == "12" else 3),
        "content": event.content,
        "depth": max(10, event.position),
        "hashes": {"sha256": "h" * 43},
        "origin_server_ts": event.origin_server_ts,
        "prev_events": ["$" + "p" * 43],
        "room_id": event.room_id,
        "sender": event.sender,
        "signatures": {domain: {"ed25519:a_AbCd": "s" * 86}},
        "type": event.type,
        "unsigned": {"age_ts": event.origin_server_ts},
    }
    if event.state_key is not None:
        pdu["state_key"] = event.state_key
    try:
        size = len(canonical(pdu))
    except UnicodeEncodeError as lone_surrogate:
        raise internal() from lone_surrogate
    if size > MAX_EVENT_BYTES:
        raise MatrixError(413, "M_TOO_LARGE", "event too large")


def _base(event: Event) -> JSON:
    out: JSON = {
        "content": event.content,
        "event_id": event.event_id,
        "origin_server_ts": event.origin_server_ts,
        "room_id": event.room_id,
        "sender": event.sender,
        "type": event.type,
    }
    if event.state_key is not None:
        out["state_key"] = event.state_key
    if event.redacts is not None:
        out["redacts"] = event.redacts
    return out


def _unsigned(event: Event, flavour: Flavour) -> JSON:
    unsigned: JSON = {}
    if flavour.v1_events:
        unsigned["age"] = max(0, now_ms() - event.origin_server_ts)
    if event.replaced is not None:
        unsigned["prev_content"] = event.replaced.content
        unsigned["prev_sender"] = event.replaced.sender
        unsigned["replaces_state"] = event.replaced.event_id
    if event.redacted_because is not None:
        unsigned["redacted_because"] = _base(event.redacted_because)
        if flavour.v1_events:
            unsigned["redacted_by"] = event.redacted_because.event_id
    return unsigned


def _lift(event: Event, out: JSON) -> JSON:
    """Synapse repeats some unsigned keys at the top level and adds ``user_id``."""
    out["user_id"] = event.sender
    for key in ("age", "prev_content", "replaces_state", "redacted_because", "invite_room_state"):
        if key in out["unsigned"]:
            out[key] = out["unsigned"][key]
    return out


def bare_event(event: Event, flavour: Flavour) -> JSON:
    """The newer client form, as in ``/state/{type}?format=event``."""
    return {**_base(event), "unsigned": _unsigned(event, flavour)}


def client_event(event: Event, flavour: Flavour, extra: JSON) -> JSON:
    """The form of ``/messages``, ``/event`` and ``/state``; ``extra`` goes into ``unsigned``."""
    out = {**_base(event), "unsigned": {**_unsigned(event, flavour), **extra}}
    return _lift(event, out) if flavour.v1_events else out


def pushed_event(event: Event, flavour: Flavour) -> JSON:
    """The form in a transaction. Built at send time: an event redacted meanwhile arrives pruned."""
    unsigned = _unsigned(event, flavour)
    if flavour.v1_events:
        if event.invite_state is not None:
            unsigned["invite_room_state"] = event.invite_state
        return _lift(event, {**_base(event), "unsigned": unsigned})
    if event.transaction is not None:
        unsigned["transaction_id"] = event.transaction[2]
    return {**_base(event), "unsigned": unsigned}
