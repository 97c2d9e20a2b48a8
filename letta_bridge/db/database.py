"""The one database of the process, and the containment of what mautrix's database layer does not promise.

mautrix's layer keeps the current connection in a context variable (a task started inside a block would inherit the
transaction), leaves a SQLite transaction open when its task is cancelled, begins transactions deferred, and syncs
commits only at checkpoints. Here every write runs where a cancelled caller cannot tear it, begins ``IMMEDIATE``, rolls
back on whatever ends it, and is synced before it returns.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import quote

import asyncpg
from mautrix.util.async_db import Database as MautrixDatabase
from mautrix.util.async_db.errors import UnsupportedDatabaseVersion
from mautrix.util.logging import TraceLogger
from yarl import URL

from ..sight import BLIND, Sight
from .listener import end_when_cut_off
from .sqlite import GroupCommit, ThreadConnection, drive
from .upgrades import UPGRADES

log = logging.getLogger(__name__)

T = TypeVar("T")
_PG_TRIES = 4
MIGRATION_LOCK = 0x6C627264
"""PostgreSQL's advisory lock of whoever changes the schema."""
# one round trip; a server or role that does not wait for its disk must not lose what the homeserver was promised, and a
# replica that freezes or is cut off within a transaction must not keep its locks from the others
_BEGIN_POSTGRES = (
    "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '3s'; "
    "SELECT set_config('synchronous_commit', 'on', true) "
    "WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)


DATABASE_ERRORS = (
    sqlite3.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that breaks in the middle of something, sometimes
    OSError,
)
"""What a working database may raise; nothing is known then about the statement, and it may work later."""


class Row(Protocol):
    """A result row: columns by name or position."""

    def __getitem__(self, key: str | int, /) -> Any: ...


class Reader(Protocol):
    """What reading statements need: a :class:`Database`, or the connection of a piece of work.

    Parameters are written ``$1``, ``$2``, … on both engines.
    """

    async def fetch(self, query: str, *args: Any) -> list[Row]: ...
    async def fetchrow(self, query: str, *args: Any) -> Row | None: ...
    async def fetchval(self, query: str, *args: Any) -> Any: ...


class Connection(Reader, Protocol):
    """What a piece of database work may use."""

    async def execute(self, query: str, *args: Any) -> Any: ...
    async def executemany(self, query: str, args: Sequence[Sequence[Any]]) -> Any: ...


class DatabaseError(Exception):
    """The database cannot be used; the text says why and what to do."""


class DatabaseTooNewError(DatabaseError):
    """The database was written by a newer version of the bridge: running on it could lose data."""


class DatabaseInUseError(DatabaseError):
    """Another process holds this SQLite file, or runs under this replica's id."""


class Database:
    """Opened once per process; see the module's text for what it adds to mautrix's layer.

    Args:
        uri: ``sqlite:<path>`` or ``postgresql://user:password@host/name``.
        base: the folder that a relative SQLite path starts from.
        sight: is told of every write.
    """

    def __init__(self, uri: str, base: Path | None = None, sight: Sight = BLIND) -> None:
        self._sight = sight
        self.postgres = uri.startswith(("postgres://", "postgresql://"))
        if not self.postgres and not uri.startswith("sqlite:"):
            raise DatabaseError("database.uri must start with sqlite: or postgresql://")
        self._path: Path | None = None
        self._lock_fd: int | None = None
        self._writes: set[asyncio.Task[Any]] = set()
        self._commits = GroupCommit(self._on_thread)
        mau_log = cast(TraceLogger, logging.getLogger("mau.db"))
        if self.postgres:
            self.url = uri
            args: dict[str, Any] = {"min_size": 2, "max_size": 8, "command_timeout": 60}
            args["init"] = end_when_cut_off
            args["meow_exit_on_ice"] = False  # mautrix ends the process when a connection dies at a bad moment
            args["reset"] = _keep_session  # nothing here changes a session: a round trip less for every use
            self._db = MautrixDatabase.create(uri, db_args=args, upgrade_table=UPGRADES, log=mau_log)
        else:
            self._path = (base or Path()) / uri.removeprefix("sqlite:").removeprefix("//")
            self.url = f"sqlite:{self._path}"
            args = {"min_size": 1, "init_commands": ["PRAGMA synchronous = FULL"], "cached_statements": 512}
            url = URL(f"sqlite://{quote(str(self._path.absolute()))}", encoded=True)
            self._db = MautrixDatabase.create(url, db_args=args, upgrade_table=UPGRADES, log=mau_log)

    @property
    def now(self) -> str:
        """SQL for the database's clock in seconds since 1970: the only clock that rows are stamped with."""
        if self.postgres:
            return "extract(epoch FROM clock_timestamp())::double precision"
        return "((julianday('now') - 2440587.5) * 86400.0)"

    @property
    def for_update(self) -> str:
        """SQL that locks selected rows until the transaction ends (SQLite has one writer and needs none)."""
        return "FOR UPDATE" if self.postgres else ""

    async def open(self) -> None:
        """Connect, take the process lock (SQLite), and migrate.

        Raises:
            DatabaseInUseError: another process runs on this SQLite file.
            DatabaseTooNewError: a newer version of the bridge migrated it.
            DatabaseError: it cannot be opened or reached; the text says why.
        """
        try:
            if self._path is not None:
                self._take_lock(self._path)
                await asyncio.to_thread(_probe, self._path)
                await self._db.start()
            else:
                await self._open_postgres()
        except UnsupportedDatabaseVersion as error:
            await self.close()
            raise DatabaseTooNewError(
                f"{self.describe()} was written by a newer version of letta-bridge ({error}). "
                "Install that version again, or restore the backup made before the upgrade."
            ) from error
        except DatabaseError:
            await self.close()
            raise
        except DATABASE_ERRORS as error:
            await self.close()
            raise DatabaseError(f"{self.describe()} cannot be opened: {error}") from error

    async def _open_postgres(self) -> None:
        """Connect and migrate; replicas that start together migrate one after the other."""
        guard = await asyncpg.connect(self.url, timeout=20)
        try:
            await guard.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
            await self._db.start()
            await _warn_of_unsynced(guard)
        finally:
            await guard.close()

    def describe(self) -> str:
        """The database in words, without its password."""
        if self._path is not None:
            return f"the SQLite database {self._path}"
        url = URL(self.url)
        return f"the PostgreSQL database {url.path.lstrip('/') or '(no name)'} on {url.host or 'the local socket'}"

    def _take_lock(self, path: Path) -> None:
        """Hold ``<database>.lock`` for the life of the process: a SQLite file has exactly one bridge."""
        lock = path.with_name(path.name + ".lock")
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DatabaseError(f"{self.describe()} cannot be opened: {error}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise DatabaseInUseError(
                f"{self.describe()} is in use by another letta-bridge (process {owner}). "
                "One process runs on a SQLite file; stop the other one, or move to PostgreSQL for several."
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._lock_fd = fd
        # made by us, so that nobody else can ever read it; SQLite gives its other files the same mode
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
        except OSError as error:
            raise DatabaseError(f"{self.describe()} cannot be opened: {error}") from error

    async def close(self) -> None:
        """Wait for writes under way, then disconnect and give the process lock back."""
        while self._writes:
            await asyncio.gather(*self._writes, return_exceptions=True)
        await self._commits.idle()
        await self._db.stop()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def fetch(self, query: str, *args: Any) -> list[Row]:
        """Rows of a reading statement."""
        return await self.read(lambda conn: conn.fetch(query, *args))

    async def fetchrow(self, query: str, *args: Any) -> Row | None:
        """The first row of a reading statement, or None."""
        return await self.read(lambda conn: conn.fetchrow(query, *args))

    async def fetchval(self, query: str, *args: Any) -> Any:
        """The first column of the first row of a reading statement, or None."""
        return await self.read(lambda conn: conn.fetchval(query, *args))

    async def read(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run reading statements together on one connection, outside of a transaction: each sees what is committed
        when it runs. ``work`` must wait for nothing but the connection it is given.
        """
        if self.postgres:
            async with self._db.acquire_direct() as conn:
                return await work(cast(Connection, conn))
        return await self._on_thread(lambda conn: drive(work(ThreadConnection(conn))))

    async def _on_thread(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``function`` on the thread of the SQLite connection."""
        async with self._db.acquire_direct() as conn:
            connection = cast(Any, conn.wrapped)
            # what was begun there goes on when the caller is cancelled; the connection is free again when it ended
            task = asyncio.ensure_future(connection._execute(function, connection._conn))
            try:
                return cast(T, await asyncio.shield(task))
            finally:
                if not task.done():
                    await _ended(task)

    async def write(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run ``work`` in one synced transaction and return what it returned.

        ``work`` may run again (PostgreSQL deadlocks are retried), must use only the connection it is given, and must
        wait for nothing else: on SQLite it runs on another thread. A cancelled caller gets its CancelledError at once
        while the transaction runs to its end: it is never torn.
        """
        began = time.monotonic()
        try:
            if not self.postgres:
                return await self._commits.write(work)
            task = asyncio.create_task(self._transact(work))
            self._writes.add(task)
            task.add_done_callback(self._finished)
            return await asyncio.shield(task)
        finally:
            self._sight.written(time.monotonic() - began)

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone: never "exception was never retrieved"

    async def _transact(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        for left in range(_PG_TRIES - 1, -1, -1):
            try:
                async with self._db.acquire_direct() as conn:
                    return await self._once(cast(Connection, conn), work)
            except _NotBegunError as error:
                if not left:
                    raise error.cause from None
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                if not left:
                    raise
                log.debug("transaction retried", extra={"action": "db_retry", "left": left})
        raise AssertionError("unreachable")

    async def _once(self, conn: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            await conn.execute(_BEGIN_POSTGRES)
        except (asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError, ConnectionError) as error:
            raise _NotBegunError(error) from error
        try:
            result = await work(conn)
            await conn.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(Exception):  # the connection may be gone; the first error is the one to tell
                await conn.execute("ROLLBACK")
            raise
        return result

    async def notify(self, conn: Connection, payload: str) -> None:
        """Within a transaction: tell the other replicas at commit. Nothing to do on SQLite."""
        if self.postgres:
            await conn.execute("SELECT pg_notify('letta_bridge', $1)", payload)


async def _warn_of_unsynced(conn: asyncpg.Connection) -> None:
    """Say it when the server itself does not wait for its disk: no session can ask it to."""
    query = "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name"
    if names := [row["name"] for row in await conn.fetch(query)]:
        log.warning(
            "PostgreSQL may lose at a power cut what it confirmed",
            extra={"action": "database_unsynced", "off": " ".join(names)},
        )


class _NotBegunError(Exception):
    """A connection of the pool was dead already: nothing was written, another one may live."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


async def _keep_session(_: object) -> None:
    """What the pool runs when a connection is given back; it rolls back by itself what was left open."""


async def _ended(task: "asyncio.Future[Any]") -> None:
    """Wait for the end of ``task``, however often the waiter is cancelled."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


def _probe(path: Path) -> None:
    """Raise ``sqlite3.Error`` for a file that is no usable database.

    mautrix would leave the thread of a connection behind whose first statements fail, and with it the process.
    """
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()


LONGEST_WAIT = 300.0
"""Seconds; nothing is ever put off for longer."""


def due_in(seconds: float) -> float:
    """Seconds until a stamp is reached. One that lies farther ahead than anything is put off was written before the
    clock was set back, and counts as reached.
    """
    return seconds if seconds <= LONGEST_WAIT else 0.0


def clean(text: str) -> str:
    """``text`` as both engines can store it: NUL and lone surrogates become U+FFFD."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8") if _dirty(text) else text


def _dirty(text: str) -> bool:
    if "\x00" in text:
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
