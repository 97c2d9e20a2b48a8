"""From the first schema to the present one: nothing lost, and nothing different from a database made now."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from letta_bridge.db.agents import Agents
from letta_bridge.db.database import Database, DatabaseTooNewError
from letta_bridge.db.outbox import Outbox, Outgoing
from letta_bridge.ids import MXID, AgentID, RoomID

from .old import make_old
from .test_schema import VERSION

_CATALOG = (
    "SELECT c.relname AS tab, a.attname AS col, a.attnum AS place, format_type(a.atttypid, a.atttypmod) AS kind, "
    "a.attnotnull AS needed, pg_get_expr(d.adbin, d.adrelid) AS otherwise "
    "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid "
    "LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum "
    "WHERE n.nspname = 'public' AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped",
    "SELECT conrelid::regclass::text AS tab, conname, pg_get_constraintdef(oid) AS def FROM pg_constraint "
    "WHERE connamespace = 'public'::regnamespace",
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "SELECT sequencename, data_type::text, start_value, increment_by FROM pg_sequences WHERE schemaname = 'public'",
)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_uri(request: pytest.FixtureRequest) -> str:
    """Both databases, one after the other."""
    return "sqlite:bridge.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


async def catalog(db: Database) -> list[Any]:
    """Everything that the database says of its own shape, in a form that can be compared."""
    if db.postgres:
        return [sorted(tuple(map(str, row)) for row in await db.fetch(query)) for query in _CATALOG]  # type: ignore[call-overload]
    found: list[Any] = []
    tables = await db.fetch("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    for table in sorted(tables, key=lambda row: str(row["name"])):
        name = table["name"]
        columns = await db.fetch(f"PRAGMA table_info({name})")
        indexes = await db.fetch(f"PRAGMA index_list({name})")
        checks = sorted(" ".join(check.split()) for check in re.findall(r"CHECK\s*\([^)]*\)\)?", table["sql"]))
        keys = sorted(tuple(map(str, row)) for row in await db.fetch(f"PRAGMA foreign_key_list({name})"))  # type: ignore[call-overload]
        found.append((name, [tuple(map(str, row)) for row in columns], len(indexes), checks, keys))  # type: ignore[call-overload]
        found.append(("AUTOINCREMENT" in table["sql"], "UNIQUE" in table["sql"]))
    named = await db.fetch("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name")
    return [*found, [(row["name"], " ".join(row["sql"].split())) for row in named]]


async def _shape_and_close(db: Database) -> list[Any]:
    await db.open()
    try:
        assert await db.fetchval("SELECT version FROM letta_bridge_version") == VERSION
        return await catalog(db)
    finally:
        await db.close()


async def test_a_migrated_database_is_like_a_new_one(tmp_path: Path, database_uri: str) -> None:
    new = await _shape_and_close(Database(database_uri, tmp_path))
    if database_uri.startswith("sqlite:"):
        old_uri = "sqlite:old.db"
    else:
        old_uri = database_uri
        connection = await asyncpg.connect(database_uri)
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await connection.close()
    await make_old(old_uri, tmp_path)
    migrated = await _shape_and_close(Database(old_uri, tmp_path))
    assert migrated == new
    assert len(str(new)) > 5000  # the comparison saw something


async def test_nothing_is_lost_on_the_way(tmp_path: Path, database_uri: str) -> None:
    await make_old(database_uri, tmp_path)
    db = Database(database_uri, tmp_path)
    await db.open()
    try:
        ada, other = await Agents(db).all()
        assert (ada.agent_id, ada.shown_name, ada.portal_room, ada.portal_joined) == ("agent-1", "Ada", "!p", True)
        assert (ada.owner, ada.origin, ada.tags, ada.dismissed) == ("", "letta", (), False)
        assert ada.history == "done", "the room of an agent that is in use gets no history put behind it"
        assert (other.agent_id, other.state) == (AgentID("agent-2"), "missing")
        rows = await db.fetch("SELECT seq, txn_id, state, turn_id, stamp FROM outbox ORDER BY seq")
        assert [tuple(row) for row in rows] == [(1, "t1", "sent", 1, None), (2, "t2", "pending", None, None)]  # type: ignore[call-overload]
        assert await db.fetchval("SELECT text FROM turn_event") == "hello"
        assert await db.fetchval("SELECT look FROM room WHERE room_id = '!p'") == 0
        out = Outgoing("t3", RoomID("!p"), MXID("@letta_1:x"), "m.room.message", {})
        await db.write(lambda conn: Outbox(db).add(conn, out))
        assert await db.fetchval("SELECT seq FROM outbox WHERE txn_id = 't3'") == 3, "numbers go on"
    finally:
        await db.close()


async def test_an_empty_old_database_goes_on_at_its_first_number(tmp_path: Path, database_uri: str) -> None:
    await make_old(database_uri, tmp_path, rows=False)
    db = Database(database_uri, tmp_path)
    await db.open()
    try:
        out = Outgoing("t1", RoomID("!p"), MXID("@letta_1:x"), "m.room.message", {})
        await db.write(lambda conn: Outbox(db).add(conn, out))
        assert await db.fetchval("SELECT seq FROM outbox") == 1
    finally:
        await db.close()


async def test_an_older_program_refuses_this_database(
    tmp_path: Path, database_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Database(database_uri, tmp_path)
    await db.open()
    await db.write(lambda conn: conn.execute("INSERT INTO setting (name, value) VALUES ('kept', 'x')"))
    await db.close()
    from letta_bridge.db.upgrades import UPGRADES

    monkeypatch.setattr(UPGRADES, "upgrades", UPGRADES.upgrades[:1])  # what a program of version 1 knows
    with pytest.raises(DatabaseTooNewError):
        await Database(database_uri, tmp_path).open()
    monkeypatch.undo()
    again = Database(database_uri, tmp_path)
    await again.open()
    assert await again.fetchval("SELECT value FROM setting WHERE name = 'kept'") == "x"
    await again.close()
