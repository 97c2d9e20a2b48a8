"""The queue of Tuwunel's sender, in SQLite: what waits, what is in flight, and the order of both."""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .events import canonical

Kind = Literal["pdu", "edu", "to_device", "device_list"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS room (room_id TEXT PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sequence (value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS row (
    counter INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    room_no INTEGER NOT NULL,
    position INTEGER NOT NULL,
    payload TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'active'))
);
"""
_COLUMNS = "counter, kind, room_no, position, payload"


@dataclass(frozen=True, slots=True)
class Row:
    """One row. All but events have their counter as room number: they sort behind the rooms that existed before.

    ``payload`` is an event id, or what is to be sent itself.
    """

    counter: int
    kind: Kind
    room_no: int
    position: int
    payload: Any

    def identity(self) -> bytes:
        """The bytes that go into the transaction id: a typing notification has nothing unique."""
        if self.kind == "pdu":
            return self.room_no.to_bytes(8, "big") + self.position.to_bytes(8, "big")
        if self.kind == "edu":
            return canonical(self.payload)
        return self.counter.to_bytes(8, "big") + canonical(self.payload)


class Rows:
    """The rows of one appservice. They outlive the process when ``path`` is a file."""

    def __init__(self, path: Path | None = None) -> None:
        self.db = sqlite3.connect(path or ":memory:", isolation_level=None)
        self.db.execute("PRAGMA synchronous = OFF")
        self.db.execute("PRAGMA journal_mode = MEMORY")
        self.db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self.db.close()

    def __len__(self) -> int:
        return int(self.db.execute("SELECT COUNT(*) FROM row").fetchone()[0])

    def number(self) -> int:
        """The next number of the one sequence that counts rooms and rows."""
        if not self.db.execute("UPDATE sequence SET value = value + 1").rowcount:
            self.db.execute("INSERT INTO sequence VALUES (1)")
        return int(self.db.execute("SELECT value FROM sequence").fetchone()[0])

    def room(self, room_id: str) -> int:
        """The room's number: its age among the rooms."""
        found = self.db.execute("SELECT number FROM room WHERE room_id = ?", (room_id,)).fetchone()
        if found is None:
            found = (self.number(),)
            self.db.execute("INSERT INTO room VALUES (?, ?)", (room_id, found[0]))
        return int(found[0])

    def room_id(self, number: int) -> str:
        """The room of this number. ValueError when there is none."""
        found = self.db.execute("SELECT room_id FROM room WHERE number = ?", (number,)).fetchone()
        if found is None:
            raise ValueError(f"no room has the number {number}")
        return str(found[0])

    def add(self, kind: Kind, payload: Any, room_no: int | None = None) -> None:
        """Queue a row; events name their room's number."""
        counter = self.number()
        position = 0 if room_no is None else counter
        values = (counter, kind, counter if room_no is None else room_no, position, json.dumps(payload))
        self.db.execute(f"INSERT INTO row ({_COLUMNS}, state) VALUES (?, ?, ?, ?, ?, 'queued')", values)

    def active(self) -> list[Row]:
        """The rows of the transaction that is not finished."""
        return self._rows("WHERE state = 'active' ORDER BY room_no, position")

    def take(self, limit: int) -> list[Row]:
        """Mark the next rows as active: the oldest one, or up to ``limit`` in the order of their keys."""
        order = "counter" if limit == 1 else "room_no, position"
        rows = self._rows(f"WHERE state = 'queued' ORDER BY {order} LIMIT {limit}")
        self.db.executemany("UPDATE row SET state = 'active' WHERE counter = ?", [(row.counter,) for row in rows])
        return rows

    def done(self, rows: Iterable[Row]) -> None:
        """These were delivered."""
        self.db.executemany("DELETE FROM row WHERE counter = ?", [(row.counter,) for row in rows])

    def keep(self, count: int) -> None:
        """What a restart does: rows beyond ``count`` are dropped, active ones counting first. -1 keeps all."""
        newest = "SELECT counter FROM row ORDER BY state = 'queued', counter LIMIT -1 OFFSET max(0, ?)"
        if count >= 0:
            self.db.execute(f"DELETE FROM row WHERE state = 'queued' AND counter IN ({newest})", (count,))

    def _rows(self, where: str) -> list[Row]:
        found = self.db.execute(f"SELECT {_COLUMNS} FROM row {where}")
        return [Row(counter, kind, room, position, json.loads(text)) for counter, kind, room, position, text in found]
