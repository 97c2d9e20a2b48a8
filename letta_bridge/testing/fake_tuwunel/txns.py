"""Tuwunel's memory of clients' transaction ids: by user, device and id, without the room, for ever."""

import asyncio
import sqlite3
from typing import NamedTuple

_SCHEMA = """
CREATE TABLE IF NOT EXISTS client_txn (
    user_id TEXT NOT NULL, device_id TEXT NOT NULL, txn_id TEXT NOT NULL, event_id TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id, txn_id)
)
"""


class TxnKey(NamedTuple):
    """What a transaction id is good for."""

    user_id: str
    device_id: str
    txn_id: str


class ClientTxns:
    """Event ids by key; ``""`` stands for a message to devices. ``lock`` lets one request of a key pass at a time."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._locks: dict[TxnKey, asyncio.Lock] = {}
        db.execute(_SCHEMA)

    def lock(self, key: TxnKey) -> asyncio.Lock:
        """To be held from ``find`` to ``remember``."""
        return self._locks.setdefault(key, asyncio.Lock())

    def find(self, key: TxnKey) -> str | None:
        """What came of the first request with this key; None when there was none."""
        where = "user_id = ? AND device_id = ? AND txn_id = ?"
        found = self._db.execute(f"SELECT event_id FROM client_txn WHERE {where}", key).fetchone()
        return str(found[0]) if found else None

    def remember(self, key: TxnKey, event_id: str) -> None:
        """Keep the outcome of the first request."""
        self._db.execute("INSERT INTO client_txn VALUES (?, ?, ?, ?)", (*key, event_id))

    def of_event(self, event_id: str) -> str | None:
        """The transaction id under which an event was sent; it leaks into what is pushed."""
        found = self._db.execute("SELECT txn_id FROM client_txn WHERE event_id = ?", (event_id,)).fetchone()
        return str(found[0]) if found else None
