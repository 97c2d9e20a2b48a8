"""The events that FakeTuwunel may have to send again: as they are now, over restarts."""

import json
import sqlite3

from ..fake_homeserver.events import JSON, pruned

_SCHEMA = "CREATE TABLE IF NOT EXISTS event (event_id TEXT PRIMARY KEY, event TEXT NOT NULL)"
_FIELDS = ("content", "event_id", "origin_server_ts", "redacts", "room_id", "sender", "state_key", "type")
_UNSIGNED = ("prev_content", "prev_sender", "replaces_state", "transaction_id")


class EventStore:
    """A pusher's source (see its Source), in the file of its rows."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.users: dict[str, list[str]] = {}
        """Devices of the appservice's users."""
        db.execute(_SCHEMA)

    def put(self, event: JSON) -> bool:
        """Keep an event; False when one of this id is there already."""
        values = (event["event_id"], json.dumps(event))
        return self._db.execute("INSERT OR IGNORE INTO event VALUES (?, ?)", values).rowcount == 1

    def redact(self, event_id: str) -> None:
        """From now on it is sent pruned. Redacting what is unknown changes nothing."""
        event = self.current(event_id)
        if event is not None:
            event["content"] = pruned(event["type"], event["content"])
            self._db.execute("UPDATE event SET event = ? WHERE event_id = ?", (json.dumps(event), event_id))

    def purge(self, event_id: str) -> None:
        """From now on it is left out."""
        self._db.execute("DELETE FROM event WHERE event_id = ?", (event_id,))

    def current(self, event_id: str) -> JSON | None:
        """See Source."""
        found = self._db.execute("SELECT event FROM event WHERE event_id = ?", (event_id,)).fetchone()
        event: JSON | None = json.loads(found[0]) if found else None
        return event

    def devices(self, user_id: str) -> list[str]:
        """See Source."""
        return self.users.get(user_id, [])


def tuwunel_form(event: JSON) -> JSON:
    """An event as Tuwunel pushes it, from one that Synapse pushed: no age, no invite_room_state, nothing repeated."""
    unsigned = event.get("unsigned")
    kept = {key: unsigned[key] for key in _UNSIGNED if key in unsigned} if isinstance(unsigned, dict) else {}
    return {**{key: event[key] for key in _FIELDS if key in event}, "unsigned": kept}
