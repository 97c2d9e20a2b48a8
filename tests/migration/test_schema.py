"""The schema: the same on both databases, made once, and strict about what it takes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from letta_bridge.db.database import Connection, Database

VERSION = 2
TABLES = {
    "access",
    "agent",
    "alarm",
    "command",
    "conversation",
    "inbox",
    "invitation",
    "job",
    "lane",
    "letta_bridge_version",
    "management",
    "member",
    "outbox",
    "past_room",
    "pause",
    "replica",
    "room",
    "setting",
    "stop_request",
    "told",
    "turn",
    "turn_event",
}
REFUSALS = (sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError)

Columns = dict[str, set[tuple[str, bool]]]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_uri(request: pytest.FixtureRequest) -> str:
    """Both databases, one after the other."""
    if request.param == "sqlite":
        return "sqlite:bridge.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest_asyncio.fixture
async def db(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    made = Database(database_uri, tmp_path)
    await made.open()
    yield made
    await made.close()


async def tables(db: Database) -> set[str]:
    query = (
        "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public'"
        if db.postgres
        else "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    )
    return {row["name"] for row in await db.fetch(query)}


async def columns(db: Database) -> Columns:
    """Every table's columns: name and whether it must not be null."""
    found: Columns = {}
    for table in await tables(db) - {"letta_bridge_version"}:
        if db.postgres:
            rows = await db.fetch(
                "SELECT column_name AS name, is_nullable = 'NO' AS required FROM information_schema.columns "
                "WHERE table_schema = 'public' AND table_name = $1",
                table,
            )
            found[table] = {(row["name"], row["required"]) for row in rows}
        else:
            rows = await db.fetch(f"PRAGMA table_info({table})")
            found[table] = {(row["name"], bool(row["notnull"] or row["pk"])) for row in rows}
    return found


async def indexes(db: Database) -> set[str]:
    """The names of the indexes that we made ourselves."""
    query = (
        "SELECT indexname AS name FROM pg_indexes WHERE schemaname = 'public' "
        "AND indexname NOT LIKE '%_pkey' AND indexname NOT LIKE '%_key'"
        if db.postgres
        else "SELECT name FROM sqlite_master WHERE type = 'index' AND name NOT LIKE 'sqlite_%'"
    )
    return {row["name"] for row in await db.fetch(query)}


async def test_fresh_schema(db: Database) -> None:
    assert await tables(db) == TABLES
    assert await db.fetchval("SELECT version FROM letta_bridge_version") == VERSION


@pytest.mark.postgres
async def test_both_databases_have_the_same_columns_and_indexes(tmp_path: Path, postgres_url: str) -> None:
    shapes = []
    for uri in ("sqlite:bridge.db", postgres_url):
        db = Database(uri, tmp_path)
        await db.open()
        shapes.append((await columns(db), await indexes(db)))
        await db.close()
    assert shapes[0] == shapes[1]


async def test_opening_again_changes_nothing(tmp_path: Path, database_uri: str) -> None:
    shapes = []
    for _ in range(3):
        db = Database(database_uri, tmp_path)
        await db.open()
        await db.write(
            lambda conn: conn.execute("INSERT INTO setting (name, value) VALUES ('kept', 'x') ON CONFLICT DO NOTHING")
        )
        shapes.append((await columns(db), await indexes(db), await db.fetchval("SELECT COUNT(*) FROM setting")))
        await db.close()
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0][2] == 1


@pytest.mark.postgres
async def test_replicas_that_start_together_migrate_once(tmp_path: Path, postgres_url: str) -> None:
    replicas = [Database(postgres_url, tmp_path) for _ in range(4)]
    await asyncio.gather(*(db.open() for db in replicas))
    try:
        assert await tables(replicas[3]) == TABLES
        assert await replicas[0].fetchval("SELECT COUNT(*) FROM letta_bridge_version") == 1
    finally:
        for db in replicas:
            await db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO inbox (event_id, room_id, sender, type, body, origin, state, received_at) "
        "VALUES ('$1', '!r', '@a', 't', '{}', 'push', 'lost', 0)",
        "INSERT INTO inbox (event_id, room_id, sender, type, body, origin, state, received_at) "
        "VALUES ('$1', '!r', '@a', 't', '{}', 'rumour', 'new', 0)",
        "INSERT INTO turn (lane, agent_id, room_id, source, state, created_at) "
        "VALUES ('agent:a', 'a', '!r', 's', 'sleeping', 0)",
        "INSERT INTO turn_event (event_id, agent_id, turn_id, position, sender, text, created_at) "
        "VALUES ('$1', 'a', 4711, 1, '@a', 'x', 0)",
        "INSERT INTO outbox (txn_id, room_id, sender, type, content, state, created_at) "
        "VALUES ('t', '!r', '@a', 'm', '{}', 'perhaps', 0)",
    ],
    ids=["inbox state", "inbox origin", "turn state", "event without turn", "outbox state"],
)
async def test_rows_that_make_no_sense_are_refused(db: Database, statement: str) -> None:
    with pytest.raises(REFUSALS):
        await db.write(lambda conn: conn.execute(statement))


async def test_an_event_counts_once_per_agent(db: Database) -> None:
    async def work(conn: Connection) -> None:
        turn = await conn.fetchval(
            "INSERT INTO turn (lane, agent_id, room_id, source, state, created_at) "
            "VALUES ('agent:a', 'a', '!r', 's', 'queued', 0) RETURNING turn_id"
        )
        for agent in ("a", "b", "a"):
            await conn.execute(
                "INSERT INTO turn_event (event_id, agent_id, turn_id, position, sender, text, created_at) "
                "VALUES ('$1', $1, $2, 1, '@a', 'x', 0)",
                agent,
                turn,
            )

    with pytest.raises(REFUSALS):
        await db.write(work)
    assert await db.fetchval("SELECT COUNT(*) FROM turn") == 0
