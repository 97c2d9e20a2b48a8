"""mautrix's hazards that the bridge contains. Each test holds that the hazard is still there.

When one fails after an upgrade, that is good news: the text of the failure says which containment may go.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession, web
from asyncpg import InternalClientError
from mautrix.api import HTTPAPI, Method
from mautrix.errors import MatrixRequestError
from mautrix.util.async_db import Database
from mautrix.util.async_db.aiosqlite import TxnConnection


def _open(path: Path) -> Database:
    return Database.create(f"sqlite://{path}")


@pytest_asyncio.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    made = _open(tmp_path / "one.db")
    await made.start()
    await made.execute("CREATE TABLE item (name TEXT)")
    yield made
    await made.stop()


async def test_a_query_on_another_database_runs_on_the_current_connection(db: Database, tmp_path: Path) -> None:
    other = _open(tmp_path / "two.db")
    await other.start()
    await other.execute("CREATE TABLE elsewhere (name TEXT)")
    try:
        async with db.acquire():
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await other.fetch("SELECT * FROM elsewhere")
    except pytest.fail.Exception as fixed:
        raise AssertionError("the connection is per database now: several mautrix databases may coexist") from fixed
    finally:
        await other.stop()


async def test_a_task_started_in_a_transaction_inherits_it(db: Database) -> None:
    async def child() -> None:
        async with db.acquire() as conn, conn.transaction():
            await conn.execute("INSERT INTO item VALUES ('of the child, which ended well')")

    async with db.acquire() as conn:
        with pytest.raises(RuntimeError, match="the parent fails"):
            async with conn.transaction():
                await asyncio.create_task(child())
                raise RuntimeError("the parent fails")
    kept = await db.fetchval("SELECT COUNT(*) FROM item")
    assert kept == 0, "tasks have connections of their own now: Database.write need not use acquire_direct"


async def test_a_cancelled_task_leaves_its_transaction_open(db: Database) -> None:
    entered = asyncio.Event()

    async def cancelled() -> None:
        async with db.acquire() as conn, conn.transaction():
            await conn.execute("INSERT INTO item VALUES ('torn')")
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(cancelled())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    fixed = "transactions are rolled back on cancellation now: Database.write needs no task of its own for that"
    assert await db.fetchval("SELECT COUNT(*) FROM item") == 1, fixed
    with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
        async with db.acquire() as conn, conn.transaction():
            pass
    await db.execute("ROLLBACK")


async def test_commits_are_not_synced_by_default(db: Database) -> None:
    level = await db.fetchval("PRAGMA synchronous")
    assert level == 1, "no longer NORMAL by default: the init command of Database may go if this is FULL (2)"


async def test_transactions_begin_deferred(db: Database, tmp_path: Path) -> None:
    async with db.acquire() as conn, conn.transaction():
        other = sqlite3.connect(tmp_path / "one.db", timeout=0, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as fixed:
            raise AssertionError("transaction() takes the write lock at once now: so may Database") from fixed
        finally:
            other.close()


async def test_the_wish_of_a_rate_limit_is_dropped() -> None:
    async def limited(_: web.Request) -> web.Response:
        body = {"errcode": "M_LIMIT_EXCEEDED", "error": "slow down", "retry_after_ms": 1234}
        return web.json_response(body, status=429, headers={"Retry-After": "2"})

    app = web.Application()
    app.router.add_get("/{rest:.*}", limited)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession() as session:
            api = HTTPAPI(f"http://127.0.0.1:{runner.addresses[0][1]}", "token", client_session=session)
            with pytest.raises(MatrixRequestError) as refusal:
                await api.request(Method.GET, "/anything", retry_count=0)
    finally:
        await runner.cleanup()
    told = {name: value for name, value in vars(refusal.value).items() if "retry" in name}
    assert not told, f"the error carries {told} now: the middleware in matrix/caller.py may go"


async def test_a_broken_postgres_connection_ends_the_process() -> None:
    db = Database.create("postgresql://nobody@127.0.0.1/nothing")
    fixed = "mautrix does not exit on asyncpg's internal errors by default: meow_exit_on_ice may go from Database"
    assert getattr(db, "_exit_on_ice", False), fixed
    with pytest.raises(SystemExit):
        await db._handle_exception(InternalClientError("as after a connection that died at a bad moment"))


async def test_a_file_that_is_no_database_leaves_a_thread_behind(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"this is not a database " * 100)
    before = set(threading.enumerate())
    broken = _open(tmp_path / "bad.db")
    with pytest.raises(sqlite3.DatabaseError):
        await broken.start()
    await broken.stop()
    left = set(threading.enumerate()) - before
    assert left, "a connection whose init commands fail is closed now: _probe may go from Database"
    for conn in [one for one in gc.get_objects() if isinstance(one, TxnConnection)]:
        await conn.close()  # or this process would not end either
