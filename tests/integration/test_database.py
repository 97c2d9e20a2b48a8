"""The database of the bridge: what a write promises, and in which words a database is refused."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.db.database import (
    Connection,
    Database,
    DatabaseError,
    DatabaseInUseError,
    DatabaseTooNewError,
    clean,
)
from letta_bridge.db.inbox import Inbox, arrival
from letta_bridge.testing.stack.postgres import LocalPostgres

from .world import free_port, until

_HOLD_LOCK = """
import asyncio, sys
from pathlib import Path
from letta_bridge.db.database import Database, DatabaseInUseError

async def main():
    db = Database("sqlite:bridge.db", Path(sys.argv[1]))
    try:
        await db.open()
    except DatabaseInUseError as error:
        print("refused:", error, flush=True)
        return
    print("open", flush=True)
    sys.stdin.readline()
    await db.close()

asyncio.run(main())
"""


@pytest_asyncio.fixture
async def db(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    made = Database(database_uri, tmp_path)
    await made.open()
    yield made
    await made.close()


async def put(conn: Connection, name: str) -> None:
    await conn.execute("INSERT INTO setting (name, value) VALUES ($1, 'x')", name)


async def names(db: Database) -> list[str]:
    return [row["name"] for row in await db.fetch("SELECT name FROM setting ORDER BY name")]


async def held(db: Database, release: threading.Event) -> None:
    """Within a piece of work: hold its transaction open until it is released."""
    if db.postgres:
        while not release.is_set():
            await asyncio.sleep(0.01)
    else:  # its own thread
        release.wait(20)


class Abrupt(BaseException):
    """Not an Exception: what only ``except BaseException`` sees."""


@pytest.mark.parametrize(
    "error", [ValueError("no"), asyncio.CancelledError(), Abrupt()], ids=lambda e: type(e).__name__
)
async def test_write_is_rolled_back_whatever_ends_it(db: Database, error: BaseException) -> None:
    async def work(conn: Connection) -> None:
        await put(conn, "torn")
        raise error

    with pytest.raises(type(error)):
        await db.write(work)
    await db.write(lambda conn: put(conn, "next"))
    assert await names(db) == ["next"]


async def test_cancelled_caller_goes_at_once_and_tears_nothing(db: Database) -> None:
    entered, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def work(conn: Connection) -> None:
        await put(conn, "one")
        loop.call_soon_threadsafe(entered.set)
        await held(db, release)
        await put(conn, "two")

    caller = asyncio.create_task(db.write(work))
    await entered.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not release.is_set()
    after = asyncio.create_task(db.write(lambda conn: put(conn, "three")))
    release.set()
    await after

    async def all_there() -> bool:
        return await names(db) == ["one", "three", "two"]

    await until(all_there, why="the cancelled caller's transaction was lost or torn")


async def test_cancelled_readers_and_writers_leave_the_database_usable(db: Database) -> None:
    for number in range(50):
        reader = asyncio.create_task(db.fetch("SELECT * FROM setting"))
        writer = asyncio.create_task(db.write(lambda conn, n=number: put(conn, f"{n:02}")))  # type: ignore[misc]
        for _ in range(number % 7):
            await asyncio.sleep(0)
        reader.cancel()
        writer.cancel()
        await asyncio.gather(reader, writer, return_exceptions=True)
    await db.write(lambda conn: put(conn, "last"))
    assert (await names(db))[-1] == "last"


async def test_close_waits_for_a_write_whose_caller_went_away(tmp_path: Path, database_uri: str) -> None:
    db = Database(database_uri, tmp_path)
    await db.open()
    entered, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def work(conn: Connection) -> None:
        loop.call_soon_threadsafe(entered.set)
        await held(db, release)
        await put(conn, "kept")

    caller = asyncio.create_task(db.write(work))
    await entered.wait()
    caller.cancel()
    closing = asyncio.create_task(db.close())
    release.set()
    await closing
    again = Database(database_uri, tmp_path)
    await again.open()
    assert await names(again) == ["kept"]
    await again.close()


async def test_commits_are_synced(db: Database) -> None:
    async def level(conn: Connection) -> object:
        return await conn.fetchval("SHOW synchronous_commit" if db.postgres else "PRAGMA synchronous")

    assert await db.write(level) == ("on" if db.postgres else 2)  # 2 is FULL
    if not db.postgres:
        assert await db.fetchval("PRAGMA journal_mode") == "wal"


async def test_deadlocks_between_two_writes_are_retried(db: Database) -> None:
    for name in ("a", "b"):
        await db.write(lambda conn, n=name: put(conn, n))  # type: ignore[misc]
    first_has = asyncio.Event()

    def locking(first: str, second: str) -> object:
        async def work(conn: Connection) -> None:
            await conn.execute("UPDATE setting SET value = value || '+' WHERE name = $1", first)
            if db.postgres and first == "a":
                first_has.set()
            elif db.postgres:
                await first_has.wait()
            await conn.execute("UPDATE setting SET value = value || '+' WHERE name = $1", second)

        return work

    await asyncio.gather(db.write(locking("a", "b")), db.write(locking("b", "a")))  # type: ignore[arg-type]
    assert {row["value"] for row in await db.fetch("SELECT value FROM setting")} == {"x++"}


@pytest.mark.postgres
async def test_killed_connections_fail_one_write_and_not_the_next(
    tmp_path: Path, postgres_url: str, postgres_server: LocalPostgres
) -> None:
    db = Database(postgres_url, tmp_path)
    await db.open()
    name = postgres_url.rpartition("/")[2]
    kill = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'"

    async def work(conn: Connection) -> None:
        await put(conn, "lost")
        await postgres_server.run_sql(kill)
        await put(conn, "never")

    try:
        with pytest.raises(Exception, match=r"(?i)terminat|closed|released|cannot switch"):
            await db.write(work)
        await db.write(lambda conn: put(conn, "next"))
        assert await names(db) == ["next"]
    finally:
        await db.close()


async def test_full_disk_is_an_error_and_not_half_a_write(tmp_path: Path) -> None:
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()
    try:
        pages = await db.fetchval("PRAGMA page_count")
        await db.fetchval(f"PRAGMA max_page_count = {pages}")

        async def work(conn: Connection) -> None:
            await put(conn, "small")
            await conn.execute("INSERT INTO setting (name, value) VALUES ('big', $1)", "x" * 200_000)

        with pytest.raises(sqlite3.OperationalError, match="full"):
            await db.write(work)
        await db.fetchval("PRAGMA max_page_count = 1000000")
        await db.write(work)
        assert await names(db) == ["big", "small"]
    finally:
        await db.close()


async def test_times_are_of_the_databases_clock(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.clock_gettime(time.CLOCK_REALTIME)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    event = {"event_id": "$1", "room_id": "!r:x", "sender": "@a:x", "type": "m.room.message", "content": {}}
    inbox = Inbox(db)
    await inbox.record([arrival(event)])
    row = await db.fetchrow("SELECT seq, received_at FROM inbox")
    assert row is not None
    assert abs(row["received_at"] - real) < 30
    await db.write(lambda conn: inbox.settle(conn, row["seq"], "skipped", "test"))
    decided = await db.fetchval("SELECT decided_at FROM inbox")
    assert decided >= row["received_at"] > 1e9


# -- one process per SQLite file


async def test_second_instance_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    first = Database("sqlite:bridge.db", tmp_path)
    await first.open()
    second = Database("sqlite:bridge.db", tmp_path)
    with pytest.raises(DatabaseInUseError, match=r"in use by another letta-bridge \(process \d+\)"):
        await second.open()
    await first.write(lambda conn: put(conn, "unharmed"))
    await first.close()
    third = Database("sqlite:bridge.db", tmp_path)
    await third.open()
    assert await names(third) == ["unharmed"]
    await third.close()


async def test_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD_LOCK, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdin is not None
        assert await asyncio.to_thread(holder.stdout.readline) == "open\n"
        mine = Database("sqlite:bridge.db", tmp_path)
        with pytest.raises(DatabaseInUseError, match=f"process {holder.pid}"):
            await mine.open()
    finally:
        holder.kill()
        holder.wait()
        for pipe in (holder.stdin, holder.stdout):
            if pipe is not None:
                pipe.close()
    mine = Database("sqlite:bridge.db", tmp_path)
    await mine.open()  # a killed process leaves no lock behind
    await mine.close()


# -- databases that cannot be used


async def test_newer_schema_is_refused_and_left_alone(tmp_path: Path, database_uri: str) -> None:
    db = Database(database_uri, tmp_path)
    await db.open()
    await db.write(lambda conn: conn.execute("UPDATE letta_bridge_version SET version = 99"))
    await db.close()
    with pytest.raises(DatabaseTooNewError, match=r"newer version of letta-bridge.*restore the backup"):
        await Database(database_uri, tmp_path).open()
    with pytest.raises(DatabaseTooNewError):  # the refusal gave the process lock back
        await Database(database_uri, tmp_path).open()


async def test_unreachable_postgres_is_said_in_words_and_without_the_password(tmp_path: Path) -> None:
    db = Database(f"postgresql://bridge:sEcr3t%21@127.0.0.1:{free_port()}/letters", tmp_path)
    with pytest.raises(DatabaseError) as error:
        await db.open()
    assert "the PostgreSQL database letters on 127.0.0.1 cannot be opened" in str(error.value)
    assert "sEcr3t" not in str(error.value)
    assert "sEcr3t" not in db.describe()


@pytest.mark.postgres
async def test_missing_postgres_database_is_named(tmp_path: Path, postgres_server: LocalPostgres) -> None:
    with pytest.raises(DatabaseError, match=r'nowhere on 127\.0\.0\.1 cannot be opened: database "nowhere" does not'):
        await Database(postgres_server.url("nowhere"), tmp_path).open()


async def test_corrupt_sqlite_file_is_said_in_words_and_nothing_stays_behind(tmp_path: Path) -> None:
    (tmp_path / "bridge.db").write_bytes(b"this is not a database " * 100)

    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if not t.name.startswith("asyncio_")]

    before = threads()
    with pytest.raises(
        DatabaseError, match=r"the SQLite database .*bridge\.db cannot be opened: file is not a database"
    ):
        await Database("sqlite:bridge.db", tmp_path).open()
    await until(lambda: threads() == before, why="a thread of SQLite would keep the process alive")
    (tmp_path / "bridge.db").unlink()
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()
    await db.close()


@pytest.mark.parametrize("uri", ["sqlite:missing/folder/bridge.db", "sqlite:/proc/bridge.db", "sqlite:folder"])
async def test_unwritable_place_is_said_in_words(tmp_path: Path, uri: str) -> None:
    (tmp_path / "folder").mkdir()
    place = re.escape(uri.removeprefix("sqlite:"))
    with pytest.raises(DatabaseError, match=f"the SQLite database .*{place} cannot be opened: .*"):
        await Database(uri, tmp_path).open()


def test_unknown_kind_of_database_is_refused() -> None:
    with pytest.raises(DatabaseError, match="must start with sqlite: or postgresql://"):
        Database("mysql://root:secret@host/db")


# -- texts


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("plain ünïcödé 🦊", "plain ünïcödé 🦊"),
        ("a\x00b", "a\ufffdb"),
        ("lone \ud800 high", "lone ? high"),
        ("\udfff", "?"),
        ("both \x00 and \udc80", "both \ufffd and ?"),
        ("", ""),
    ],
)
async def test_cleaned_text_can_be_stored_and_comes_back(db: Database, text: str, stored: str) -> None:
    cleaned = clean(text)
    assert cleaned.replace("\ufffd", "?") == stored.replace("\ufffd", "?")
    assert clean(cleaned) == cleaned
    await db.write(lambda conn: put(conn, cleaned))
    assert await names(db) == [cleaned]


async def test_sqlite_work_that_waits_for_something_else_is_refused_and_rolled_back(tmp_path: Path) -> None:
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()

    async def work(conn: Connection) -> None:
        await put(conn, "held open")
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="nothing but its connection"):
        await db.write(work)
    with pytest.raises(RuntimeError, match="nothing but its connection"):
        await db.read(lambda _: asyncio.sleep(0))
    await db.write(lambda conn: put(conn, "next"))
    assert await names(db) == ["next"]
    await db.close()


async def test_writes_that_queue_up_share_a_commit_and_no_failure(tmp_path: Path) -> None:
    """A hundred writers at once cost a few commits, and one that fails takes nothing but its own writes with it."""
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()
    statements: list[str] = []
    await db._on_thread(lambda conn: conn.set_trace_callback(statements.append))

    async def fails(conn: Connection) -> None:
        await put(conn, "torn")
        raise ValueError("mine alone")

    writes = [db.write(lambda conn, n=n: put(conn, f"n{n:02}")) for n in range(99)]  # type: ignore[misc]
    outcomes = await asyncio.gather(*writes, db.write(fails), return_exceptions=True)
    assert [outcome for outcome in outcomes if outcome is not None] == [outcomes[-1]]
    assert str(outcomes[-1]) == "mine alone"
    assert await names(db) == [f"n{n:02}" for n in range(99)]
    assert sum(statement == "COMMIT" for statement in statements) <= 3
    await db.close()


async def test_a_shared_commit_that_fails_is_made_again_one_by_one(tmp_path: Path) -> None:
    """What makes SQLite give up a whole transaction (here: a full disk) fails only whoever caused it."""
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()
    pages = await db.fetchval("PRAGMA page_count")
    await db.fetchval(f"PRAGMA max_page_count = {pages + 8}")

    async def too_much(conn: Connection) -> None:
        await conn.execute("INSERT INTO setting (name, value) VALUES ('huge', $1)", "x" * 1_000_000)

    first, middle, last = await asyncio.gather(
        db.write(lambda conn: put(conn, "a")),
        db.write(too_much),
        db.write(lambda conn: put(conn, "b")),
        return_exceptions=True,
    )
    assert (first, last) == (None, None)
    assert isinstance(middle, sqlite3.OperationalError)
    assert await names(db) == ["a", "b"]
    await db.close()
