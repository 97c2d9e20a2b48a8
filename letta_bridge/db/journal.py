"""The message log: what came in and went out, as ``export`` shows it."""

import asyncio
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..ids import AgentID, RoomID
from .database import Database, Row
from .inbox import ECHO

_BATCH = 200
_SPAN = 5000
"""Rows that are looked through at a time, however few of them are meant."""
_MOST_BYTES = 24 << 20
_STEP = 0.002
"""Seconds: more than what is lost of a time when it is written down in milliseconds."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which messages: of one room, of one agent, or all; ``since`` in seconds since 1970."""

    room_id: RoomID | None = None
    agent_id: AgentID | None = None
    since: float = 0.0


async def entries(
    db: Database, wish: Wish, most: int, most_bytes: int = _MOST_BYTES
) -> tuple[list[dict[str, Any]], bool]:
    """The oldest ``most`` messages in the order of their time, and whether there are more.

    Args:
        most_bytes: of what came in, and of what went out; there are fewer messages where they are larger than that.
    """
    came, until_in = await _pages(db, "inbox", wish, most, most_bytes)
    went, until_out = await _pages(db, "outbox", wish, most, most_bytes)
    return await asyncio.to_thread(_merged, came, went, most, min(until_in, until_out))


def _merged(came: list[Row], went: list[Row], most: int, until: float) -> tuple[list[dict[str, Any]], bool]:
    found = sorted([*map(_came, came), *map(_went, went)], key=lambda entry: (entry["at"], entry["direction"]))
    read = [entry for entry in found if entry["at"] <= until]  # what is later has gaps
    return read[:most], until < math.inf or len(read) > most


_IN = (
    "SELECT i.seq AS seq, i.received_at AS at, i.room_id, i.sender, i.event_id, i.state, i.decision, i.body, "
    "(SELECT MIN(e.agent_id) FROM turn_event e WHERE e.event_id = i.event_id) AS agent_id FROM inbox i "
    "WHERE i.seq > $1 AND i.seq <= $2 AND i.type IN ('m.room.message', 'm.room.encrypted', 'm.sticker') "
    "AND i.decision <> '" + ECHO + "' AND i.received_at >= $3 AND ($4 = '' OR i.room_id = $4) AND ($5 = '' OR EXISTS "
    "(SELECT 1 FROM turn_event e WHERE e.event_id = i.event_id AND e.agent_id = $5)) ORDER BY i.seq LIMIT $6"
)
_OUT = (
    "SELECT o.seq AS seq, COALESCE(o.sent_at, o.created_at) AS at, o.room_id, o.sender, o.sent_event_id AS event_id, "
    "o.state, o.edits, o.content AS body, o.error, a.agent_id FROM outbox o LEFT JOIN agent a ON a.mxid = o.sender "
    "WHERE o.seq > $1 AND o.seq <= $2 AND COALESCE(o.sent_at, o.created_at) >= $3 AND ($4 = '' OR o.room_id = $4) "
    "AND ($5 = '' OR a.agent_id = $5) ORDER BY o.seq LIMIT $6"
)
_QUERIES = {"inbox": _IN, "outbox": _OUT}


async def _pages(db: Database, table: str, wish: Wish, most: int, most_bytes: int) -> tuple[list[Row], float]:
    """Read in bites, so that no single question holds the database for long; and up to which time that is everything.

    A bite that is too large is still taken whole, and so is what has the time from which on it is asked for: who asks
    for the rest gets on.
    """
    rows: list[Row] = []
    after = size = 0
    newest = int(await db.fetchval(f"SELECT COALESCE(MAX(seq), 0) FROM {table}"))
    while len(rows) <= most and after < newest:
        upto = after + _SPAN
        page = await db.fetch(_QUERIES[table], after, upto, wish.since, wish.room_id or "", wish.agent_id or "", _BATCH)
        rows += page
        after = upto if len(page) < _BATCH else page[-1]["seq"]
        size += sum(len(row["body"] or "") for row in page)
        if page and size > most_bytes and page[-1]["at"] > wish.since + _STEP:
            return rows, float(page[-1]["at"])
    return rows, math.inf


def _came(row: Row) -> dict[str, Any]:
    event = _object(row["body"])
    written = event.get("origin_server_ts")
    entry = _entry(row, "in", _object(event.get("content")))
    sent_at = written / 1000 if isinstance(written, int) else None
    return entry | {"sent_at": sent_at, "why": row["decision"]}


def _went(row: Row) -> dict[str, Any]:
    content = _object(row["body"])
    entry = _entry(row, "out", _object(content.get("m.new_content")) or content)
    return entry | {"edit": bool(row["edits"]), "why": row["error"]}


def _entry(row: Row, direction: str, content: dict[str, Any]) -> dict[str, Any]:
    body = content.get("body")
    return {
        "at": float(row["at"]),
        "direction": direction,
        "room": row["room_id"],
        "sender": row["sender"],
        "event": row["event_id"] or None,
        "agent": row["agent_id"] or None,
        "state": row["state"],
        "body": body if isinstance(body, str) else None,
    }


def _object(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """Each as a line of JSON."""
    for entry in found:
        yield json.dumps(entry, ensure_ascii=False) + "\n"
