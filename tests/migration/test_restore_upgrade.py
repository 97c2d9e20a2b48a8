"""A backup of an older schema is restored into that schema and upgraded by the next start, as any database is."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from mautrix.util.async_db import Scheme

from letta_bridge.db.backup import backup
from letta_bridge.db.catalog import NEWEST, VERSION_TABLE, schema_version, tables
from letta_bridge.db.database import Database
from letta_bridge.db.restore import Target, inspect, restore
from letta_bridge.db.sqlite import ThreadConnection, drive
from letta_bridge.db.upgrades import make_v1

ABOUT = {"domain": "test.local", "appservice": "letta"}


def old_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("BEGIN")
        drive(make_v1(ThreadConnection(conn), Scheme.SQLITE))
        conn.execute(f"CREATE TABLE {VERSION_TABLE} (version INTEGER PRIMARY KEY)")
        conn.execute(f"INSERT INTO {VERSION_TABLE} VALUES (1)")
        conn.execute(
            "INSERT INTO agent (agent_id, mxid, device_id, name, state, portal_room, created_at) "
            "VALUES ('agent-1', '@letta_1:test.local', 'D', 'Ada', 'active', '!p:test.local', 1.5)"
        )
        conn.execute(
            "INSERT INTO outbox (txn_id, room_id, sender, type, content, state, created_at) "
            "VALUES ('t1', '!p:test.local', '@letta_1:test.local', 'm.room.message', '{}', 'sent', 2)"
        )
        conn.execute("COMMIT")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_uri(request: pytest.FixtureRequest) -> str:
    """Both databases, one after the other."""
    return "sqlite:new.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


async def test_a_backup_of_version_1_becomes_the_newest(tmp_path: Path, database_uri: str) -> None:
    old_database(tmp_path / "old.db")
    report = await backup(Database("sqlite:old.db", tmp_path), tmp_path / "b", ABOUT)
    assert report.schema == 1
    header, counts = await inspect(tmp_path / "b")
    assert (header.schema, counts["agent"]) == (1, 1)
    await restore(Target(database_uri, tmp_path, 6.0, ABOUT), tmp_path / "b")
    db = Database(database_uri, tmp_path)
    await db.open()
    fresh = Database("sqlite:fresh.db", tmp_path)
    await fresh.open()
    try:
        assert await schema_version(db) == NEWEST
        mine, theirs = await tables(db, db.postgres), await tables(fresh, False)
        assert {t.name: set(t.columns) for t in mine} == {t.name: set(t.columns) for t in theirs}
        row = await db.fetchrow("SELECT name, portal_room FROM agent")
        assert row is not None and tuple(row) == ("Ada", "!p:test.local")
        assert await db.fetchval("SELECT gap FROM room WHERE room_id = '!p:test.local'") == 1
        await db.write(
            lambda conn: conn.execute(
                "INSERT INTO outbox (txn_id, room_id, sender, type, content, state, created_at) "
                "VALUES ('t2', '!p:test.local', '@letta_1:test.local', 'm.room.message', '{}', 'sent', 2)"
            )
        )
        assert await db.fetchval("SELECT MAX(seq) FROM outbox") == 2
    finally:
        await db.close()
        await fresh.close()
