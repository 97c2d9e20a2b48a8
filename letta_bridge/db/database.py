"""The one database of the process, and the containment of what mautrix's database layer does not promise.

mautrix's layer keeps the current connection in a context variable (a task started inside a block would inherit the
transaction), leaves a SQLite transaction open when its task is cancelled, begins transactions deferred, and syncs
commits only at checkpoints. Here every write runs in a task of its own that a cancelled caller cannot tear, begins
``IMMEDIATE``, rolls back on whatever ends it, and is synced before it returns.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import quote

import asyncpg
from mautrix.util.async_db import Database as MautrixDatabase
from mautrix.util.async_db.errors import UnsupportedDatabaseVersion
from mautrix.util.logging import TraceLogger
from yarl import URL

from .upgrades import UPGRADES

log = logging.getLogger(__name__)

T = TypeVar("T")
_PG_TRIES = 4
_MIGRATION_LOCK = 0x6C627264
# one round trip; a server or role that does not wait for its disk must not lose what the homeserver was promised
_BEGIN_POSTGRES = (
    "BEGIN; SELECT set_config('synchronous_commit', 'on', true) "
    "WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)


DATABASE_ERRORS = (sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""What a working database may raise; nothing is known then about the statement, and it may work later."""


class Row(Protocol):
    """A result row: columns by name or position."""

    def __getitem__(self, key: str | int, /) -> Any: ...


class Connection(Protocol):
    """What a piece of database work may use. Parameters are written ``$1``, ``$2``, … on both engines."""

    async def execute(self, query: str, *args: Any) -> Any: ...
    async def executemany(self, query: str, args: Sequence[Sequence[Any]]) -> Any: ...
    async def fetch(self, query: str, *args: Any) -> list[Row]: ...
    async def fetchrow(self, query: str, *args: Any) -> Row | None: ...
    async def fetchval(self, query: str, *args: Any) -> Any: ...


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
    """

    def __init__(self, uri: str, base: Path | None = None) -> None:
        self.postgres = uri.startswith(("postgres://", "postgresql://"))
        if not self.postgres and not uri.startswith("sqlite:"):
            raise DatabaseError("database.uri must start with sqlite: or postgresql://")
        self._path: Path | None = None
        self._lock_fd: int | None = None
        self._writes: set[asyncio.Task[Any]] = set()
        mau_log = cast(TraceLogger, logging.getLogger("mau.db"))
        if self.postgres:
            self.url = uri
            args: dict[str, Any] = {"min_size": 2, "max_size": 8, "command_timeout": 60}
            args["meow_exit_on_ice"] = False  # mautrix ends the process when a connection dies at a bad moment
            self._db = MautrixDatabase.create(uri, db_args=args, upgrade_table=UPGRADES, log=mau_log)
        else:
            self._path = (base or Path()) / uri.removeprefix("sqlite:").removeprefix("//")
            self.url = f"sqlite:{self._path}"
            args = {"min_size": 1, "init_commands": ["PRAGMA synchronous = FULL"]}
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
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, sqlite3.Error) as error:
            await self.close()
            raise DatabaseError(f"{self.describe()} cannot be opened: {error}") from error

    async def _open_postgres(self) -> None:
        """Connect and migrate; replicas that start together migrate one after the other."""
        guard = await asyncpg.connect(self.url, timeout=20)
        try:
            await guard.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
            await self._db.start()
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
        await self._db.stop()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def fetch(self, query: str, *args: Any) -> list[Row]:
        """Rows of a reading statement."""
        async with self._db.acquire_direct() as conn:
            return cast(list[Row], await conn.fetch(query, *args))

    async def fetchrow(self, query: str, *args: Any) -> Row | None:
        """The first row of a reading statement, or None."""
        async with self._db.acquire_direct() as conn:
            return cast(Row | None, await conn.fetchrow(query, *args))

    async def fetchval(self, query: str, *args: Any) -> Any:
        """The first column of the first row of a reading statement, or None."""
        async with self._db.acquire_direct() as conn:
            return await conn.fetchval(query, *args)

    async def write(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run ``work`` in one synced transaction and return what it returned.

        ``work`` may run again (PostgreSQL deadlocks are retried), must use only the connection it is given, and must
        neither wait for a network nor start tasks. A cancelled caller gets its CancelledError at once while the
        transaction runs to its end: it is never torn.
        """
        task = asyncio.create_task(self._transact(work))
        self._writes.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone: never "exception was never retrieved"

    async def _transact(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        for left in range(_PG_TRIES - 1, -1, -1):
            try:
                async with self._db.acquire_direct() as conn:
                    return await self._once(cast(Connection, conn), work)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                if not left:
                    raise
                log.debug("transaction retried", extra={"action": "db_retry", "left": left})
        raise AssertionError("unreachable")

    async def _once(self, conn: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
        await conn.execute(_BEGIN_POSTGRES if self.postgres else "BEGIN IMMEDIATE")
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


def _probe(path: Path) -> None:
    """Raise ``sqlite3.Error`` for a file that is no usable database.

    mautrix would leave the thread of a connection behind whose first statements fail, and with it the process.
    """
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()


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
