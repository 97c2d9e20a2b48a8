"""Databases as older versions of the bridge made and filled them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import asyncpg
from mautrix.util.async_db import Scheme

from letta_bridge.db.upgrades import make_v1

_ROWS = (
    "INSERT INTO agent (agent_id, mxid, device_id, name, state, registered, shown_name, portal_room, portal_joined, "
    "created_at) VALUES ('agent-1', '@letta_1:x', 'DEV', 'Ada', 'active', 1, 'Ada', '!p', 1, 5.5)",
    "INSERT INTO agent (agent_id, mxid, device_id, name, state, created_at) "
    "VALUES ('agent-2', '@letta_2:x', 'DEW', '', 'missing', 6.5)",
    "INSERT INTO room (room_id, name, known) VALUES ('!p', 'Ada', 1)",
    "INSERT INTO inbox (event_id, room_id, sender, type, body, origin, state, received_at) "
    "VALUES ('$1', '!p', '@a:x', 'm.room.message', '{}', 'push', 'new', 1)",
    "INSERT INTO turn (lane, agent_id, room_id, source, state, created_at) "
    "VALUES ('agent:agent-1', 'agent-1', '!p', 's', 'queued', 1)",
    "INSERT INTO turn_event (event_id, agent_id, turn_id, position, sender, text, created_at) "
    "VALUES ('$1', 'agent-1', 1, 0, '@a:x', 'hello', 1)",
    "INSERT INTO outbox (txn_id, room_id, sender, type, content, turn_id, state, created_at) "
    "VALUES ('t1', '!p', '@letta_1:x', 'm.room.message', '{\"body\": \"hi\"}', 1, 'sent', 1)",
    "INSERT INTO outbox (txn_id, room_id, sender, type, content, state, created_at) "
    "VALUES ('t2', '!p', '@letta_1:x', 'm.room.message', '{}', 'pending', 2)",
    "INSERT INTO setting (name, value) VALUES ('space', '!space')",
)
_VERSION = (
    "CREATE TABLE letta_bridge_version (version INTEGER PRIMARY KEY)",
    "INSERT INTO letta_bridge_version VALUES (1)",
)


class _Plain:
    """sqlite3 with the one asynchronous method that the schema needs."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def execute(self, statement: str) -> None:
        self._connection.execute(statement)


async def make_old(uri: str, base: Path, *, rows: bool = True) -> None:
    """A database of version 1, with a row of everything that the migration touches."""
    statements = (*_VERSION, *(_ROWS if rows else ()))
    if uri.startswith("sqlite:"):
        connection = sqlite3.connect(base / uri.removeprefix("sqlite:"))
        await make_v1(_Plain(connection), Scheme.SQLITE)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()
        return
    postgres = await asyncpg.connect(uri)
    try:
        await make_v1(postgres, Scheme.POSTGRES)
        for statement in statements:
            await postgres.execute(statement)
    finally:
        await postgres.close()
