"""Databases with something in them, what they hold, and traffic while a backup is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from letta_bridge.db.backup import backup
from letta_bridge.db.catalog import tables
from letta_bridge.db.database import Connection, Database
from letta_bridge.db.restore import Target

ABOUT = {"domain": "test.local", "appservice": "letta"}


def target(uri: str, base: Path, **about: str) -> Target:
    return Target(uri, base, 6.0, {**ABOUT, **about})


async def opened(uri: str, base: Path) -> Database:
    db = Database(uri, base)
    await db.open()
    return db


async def fill(db: Database, start: int, many: int) -> None:
    """Rooms, events, turns with their messages, and answers: ``many`` of each, whose numbers begin at ``start``."""

    async def work(conn: Connection) -> None:
        for number in range(start, start + many):
            room = f"!room{number % 7}:test.local"
            await conn.execute(
                "INSERT INTO room (room_id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING", room, "Räume ☃"
            )
            await conn.execute(
                "INSERT INTO inbox (event_id, room_id, sender, type, body, origin, state, received_at) "
                f"VALUES ($1, $2, '@a:test.local', 'm.room.message', $3, 'push', 'dispatched', {db.now})",
                f"$e{number}",
                room,
                '{"text": "line\\n\\u2603 \\"quoted\\""}' * 5,
            )
            turn_id = await conn.fetchval(
                "INSERT INTO turn (lane, agent_id, room_id, source, state, created_at, finished_at) "
                f"VALUES ('agent:a', 'a', $1, $2, 'done', {db.now}, NULL) RETURNING turn_id",
                room,
                f"$e{number}|a",
            )
            await conn.execute(
                "INSERT INTO turn_event (event_id, agent_id, turn_id, position, sender, text, created_at) "
                f"VALUES ($1, 'a', $2, 1, '@a:test.local', 'hello', {db.now})",
                f"$e{number}",
                turn_id,
            )
            await conn.execute(
                "INSERT INTO outbox (txn_id, room_id, sender, type, content, turn_id, state, created_at) "
                f"VALUES ($1, $2, '@p:test.local', 'm.room.message', '{{}}', $3, 'sent', {db.now})",
                f"t{number}",
                room,
                turn_id,
            )

    await db.write(work)


async def contents(db: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table that a backup carries, as sets that can be compared."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for table in await tables(db, db.postgres):
        rows = await db.fetch(f"SELECT {', '.join(sorted(table.columns))} FROM {table.name}")
        found[table.name] = sorted((tuple(row) for row in rows), key=repr)
    return found


async def as_restored(db: Database) -> dict[str, list[tuple[Any, ...]]]:
    """The contents without what a restore itself notes down."""
    found = await contents(db)
    found["setting"] = [row for row in found["setting"] if "restored" not in row]
    found["told"] = [row for row in found["told"] if not any(str(value).startswith("restored|") for value in row)]
    rooms = await db.fetch("SELECT room_id, name FROM room")
    found["room"] = sorted(tuple(row) for row in rows) if (rows := rooms) else []
    return found


async def made(db: Database, path: Path) -> Path:
    await backup(db, path, ABOUT)
    return path
