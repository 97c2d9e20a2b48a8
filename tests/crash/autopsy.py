"""What the bridge's database says of messages that got no answer, for the report of a soak that failed."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg

_INBOX = "SELECT seq, state, decision, attempts FROM inbox WHERE event_id = {}"
_TURN = (
    "SELECT t.turn_id, t.state, t.error, t.attempt, t.failures, t.wait_reason, t.run_id, t.stop_by, e.withdrawn "
    "FROM turn t JOIN turn_event e ON e.turn_id = t.turn_id WHERE e.event_id = {}"
)
_OUTBOX = (
    "SELECT o.seq, o.state, o.attempts, o.error, o.edits, o.sent_event_id FROM outbox o JOIN turn_event e "
    "ON e.turn_id = o.turn_id WHERE e.event_id = {}"
)


async def autopsy(folder: Path, database: str, event_ids: Sequence[str]) -> list[str]:
    """The rows of these events, as text."""
    return await _postgres(database, event_ids) if "postgres" in database else _sqlite(folder / "bridge.db", event_ids)


async def _postgres(url: str, event_ids: Sequence[str]) -> list[str]:
    conn = await asyncpg.connect(url)
    try:
        return [
            _line(name, event_id, [dict(row) for row in await conn.fetch(query.format("$1"), event_id)])
            for event_id in event_ids
            for name, query in (("inbox", _INBOX), ("turn", _TURN), ("outbox", _OUTBOX))
        ]
    finally:
        await conn.close()


def _sqlite(path: Path, event_ids: Sequence[str]) -> list[str]:
    conn = sqlite3.connect(path)
    conn.row_factory = sqlite3.Row
    try:
        return [
            _line(name, event_id, [dict(row) for row in conn.execute(query.format("?"), (event_id,))])
            for event_id in event_ids
            for name, query in (("inbox", _INBOX), ("turn", _TURN), ("outbox", _OUTBOX))
        ]
    finally:
        conn.close()


def _line(table: str, event_id: str, rows: list[dict[str, Any]]) -> str:
    return f"{event_id} {table}: {rows or 'nothing'}"
