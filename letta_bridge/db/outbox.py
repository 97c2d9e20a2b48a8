"""What must go out: the ``outbox`` table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ids import CONTENT_KEY, MXID, EventID, RoomID, TurnID
from .database import LONGEST_WAIT, Connection, Database, Reader, clean, due_in


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event to be sent. ``txn_id`` names it for ever: adding it twice is adding it once.

    ``edits`` is the ``txn_id`` of the row whose event this one replaces; the event id is filled in when it is sent.
    """

    txn_id: str
    room_id: RoomID
    sender: MXID
    type: str
    content: Mapping[str, Any]
    edits: str = ""
    turn_id: TurnID | None = None
    stamp: int | None = None
    """Milliseconds since 1970 that it is to carry instead of the time of sending, where the homeserver allows."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A row whose turn it is to be sent. ``device_id`` is that of its sender, ``""`` while it has none."""

    seq: int
    txn_id: str
    room_id: RoomID
    sender: MXID
    type: str
    content: dict[str, Any]
    edits: str
    turn_id: TurnID | None
    attempts: int
    wait: float
    age: float
    device_id: str
    stamp: int | None


@dataclass(frozen=True, slots=True)
class Said:
    """The text of an event after its ``edits`` so far, but for live ones, which are never stored. ``growing``: its end
    is still to come.
    """

    text: str
    edits: int
    growing: bool


def is_growing(content: Mapping[str, Any]) -> bool:
    """Whether an event of ours, or an edit, shows a text of which the end is still to come."""
    marker = content.get(CONTENT_KEY)
    return isinstance(marker, Mapping) and marker.get("growing") is True


class Outbox:
    """Statements on ``outbox``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, conn: Connection, out: Outgoing) -> None:
        """Put an event in; it is sent after everything that its room has waiting."""
        await conn.execute(
            "INSERT INTO outbox (txn_id, room_id, sender, type, content, edits, turn_id, stamp, state, created_at) "
            f"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'pending', {self._db.now}) ON CONFLICT (txn_id) DO NOTHING",
            out.txn_id,
            out.room_id,
            out.sender,
            out.type,
            json.dumps(out.content),
            out.edits,
            out.turn_id,
            out.stamp,
        )

    async def head(self, room_id: RoomID, reader: Reader | None = None) -> OutboxRow | None:
        """The oldest event of the room that waits to be sent."""
        row = await (reader or self._db).fetchrow(
            f"SELECT o.*, o.not_before - {self._db.now} AS wait, {self._db.now} - o.created_at AS age, a.device_id "
            "FROM outbox o LEFT JOIN agent a ON a.mxid = o.sender AND a.device_made = 1 "
            "WHERE o.room_id = $1 AND o.state = 'pending' ORDER BY o.seq LIMIT 1",
            room_id,
        )
        if row is None:
            return None
        return OutboxRow(
            row["seq"],
            row["txn_id"],
            RoomID(row["room_id"]),
            MXID(row["sender"]),
            row["type"],
            json.loads(row["content"]),
            row["edits"],
            None if row["turn_id"] is None else TurnID(row["turn_id"]),
            row["attempts"],
            due_in(float(row["wait"])),
            float(row["age"]),
            row["device_id"] or "",
            row["stamp"],
        )

    async def sent(self, conn: Connection, seq: int, event_id: EventID) -> None:
        """Confirmed by the homeserver."""
        await conn.execute(
            f"UPDATE outbox SET state = 'sent', sent_event_id = $2, sent_at = {self._db.now}, error = '' "
            "WHERE seq = $1",
            seq,
            event_id,
        )

    async def postpone(self, conn: Connection, seq: int, delay: float, error: str) -> None:
        """Try again after ``delay`` seconds; it stays the head of its room."""
        await conn.execute(
            f"UPDATE outbox SET attempts = attempts + 1, error = $3, not_before = {self._db.now} + $2 WHERE seq = $1",
            seq,
            min(delay, LONGEST_WAIT),
            clean(error)[:300],
        )

    async def bury(self, conn: Connection, seq: int, error: str) -> None:
        """It can never be sent: keep it as a dead letter with its reason."""
        await conn.execute("UPDATE outbox SET state = 'dead', error = $2 WHERE seq = $1", seq, clean(error)[:300])

    async def drop(self, conn: Connection, txn_id: str, why: str) -> None:
        """A dead letter that needs no second try."""
        await conn.execute(
            "UPDATE outbox SET state = 'dropped', error = $2 WHERE txn_id = $1 AND state = 'dead'", txn_id, why
        )

    async def event_of(self, txn_id: str) -> EventID | None:
        """The event that a row became, once confirmed."""
        value = await self._db.fetchval("SELECT sent_event_id FROM outbox WHERE txn_id = $1 AND state = 'sent'", txn_id)
        return EventID(value) if value else None

    async def state_of(self, txn_id: str) -> str | None:
        """``pending``, ``sent``, ``dead``, or None when there is no such row."""
        value = await self._db.fetchval("SELECT state FROM outbox WHERE txn_id = $1", txn_id)
        return None if value is None else str(value)

    async def refused(self, txn_id: str) -> dict[str, Any] | None:
        """The content of an event that could not be sent; None when it is no dead letter."""
        content = await self._db.fetchval("SELECT content FROM outbox WHERE txn_id = $1 AND state = 'dead'", txn_id)
        return None if content is None else dict(json.loads(content))

    async def said(self, txn_id: str) -> Said | None:
        """What the event of this transaction id says as far as it stands here; None when there is no such row."""
        content = await self._db.fetchval("SELECT content FROM outbox WHERE txn_id = $1", txn_id)
        if content is None:
            return None
        edits = await self._db.fetch("SELECT content, state FROM outbox WHERE edits = $1 ORDER BY seq", txn_id)
        newest = next((row["content"] for row in reversed(edits) if row["state"] in ("pending", "sent")), content)
        shown: Mapping[str, Any] = json.loads(newest)
        return Said(str(shown.get("m.new_content", shown).get("body", "")), len(edits), is_growing(shown))

    async def final_of(self, txn_id: str) -> dict[str, Any] | None:
        """The content of the newest edit that was sent of the event with this transaction id; None if there is none."""
        content = await self._db.fetchval(
            "SELECT content FROM outbox WHERE edits = $1 AND state = 'sent' ORDER BY seq DESC LIMIT 1", txn_id
        )
        return None if content is None else dict(json.loads(content))

    async def spoken(self, room_id: RoomID, event_id: EventID) -> tuple[MXID, dict[str, Any]] | None:
        """Which of our users sent this event of this room, and its content as it stands after edits."""
        row = await self._db.fetchrow(
            "SELECT o.sender, COALESCE((SELECT e.content FROM outbox e WHERE e.edits = o.txn_id "
            "ORDER BY e.seq DESC LIMIT 1), o.content) AS content "
            "FROM outbox o WHERE o.sent_event_id = $1 AND o.sent_event_id <> '' AND o.room_id = $2",
            event_id,
            room_id,
        )
        if row is None:
            return None
        content = json.loads(row["content"])
        newer = content.get("m.new_content")
        return MXID(row["sender"]), newer if isinstance(newer, dict) else content

    async def open_lanes(self) -> list[str]:
        """Send lanes of rooms with something waiting."""
        rows = await self._db.fetch("SELECT DISTINCT room_id FROM outbox WHERE state = 'pending'")
        return [f"send:{row['room_id']}" for row in rows]
