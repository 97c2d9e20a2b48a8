"""Putting a backup back: into an empty database, or in the place of what is there, all at once or not at all.

The backup's own schema is made first, also when it is an older one; the next start upgrades it as it always does.
"""

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import asyncpg
from mautrix.util.async_db import Scheme

from ..config import Config
from ..heartbeat import alive_at
from .backup import beside, check_stop
from .catalog import (
    MAKE,
    NEWEST,
    OF_THE_PROCESS,
    VERSION_TABLE,
    Table,
    in_order,
    present,
    schema_version,
    set_counter,
    tables,
)
from .database import DATABASE_ERRORS, MIGRATION_LOCK, Connection, Database, DatabaseInUseError
from .dump import BackupError, DumpReader, Header
from .restored import note_restore
from .sqlite import ThreadConnection, drive

Progress = Callable[[str, int], None]
"""Told of every few hundred rows that were written: their table and how many. May be called on another thread."""
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """The database that a backup goes into, and whose backups it takes.

    Attributes:
        lease: seconds without a beat after which a replica counts as gone (PostgreSQL).
        about: ``domain`` and ``appservice`` that the backup must be of.
    """

    uri: str
    base: Path | None
    lease: float
    about: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What was restored: of what time (seconds since 1970), which schema, how many rows; and how many rooms will be
    read back at the next start.
    """

    at: float
    schema: int
    about: Mapping[str, str]
    rows: dict[str, int]
    rooms: int


def whose(config: Config) -> dict[str, str]:
    """What a backup says about the bridge that it is of."""
    return {"domain": config.homeserver.domain, "appservice": config.appservice.id}


def target(config: Config) -> Target:
    """The configured database."""
    return Target(config.database.uri, config.base, config.database.lease_s, whose(config))


async def inspect(path: Path) -> tuple[Header, dict[str, int]]:
    """Read a backup to its end and check it: what it is of, and how many rows each table has.

    Raises:
        BackupError: it cannot be read, is damaged, or is of a newer version.
    """
    stop = threading.Event()

    def look() -> tuple[Header, dict[str, int]]:
        with DumpReader(path) as dump:
            return dump.header, dump.check()

    return await beside(look, stop)


async def restore(
    target: Target, path: Path, *, replace: bool = False, progress: Progress | None = None
) -> RestoreReport:
    """Put the backup ``path`` into the database of a stopped bridge.

    Nothing is changed before the whole file was checked, and then everything in one transaction. At its next start the
    bridge reads its rooms back: see :mod:`letta_bridge.delivery.restored`.

    Args:
        replace: whether what the database holds may be thrown away.
        progress: is told how far it is.

    Raises:
        BackupError: the file is damaged, newer than this program, or of another bridge; or the database is not empty.
        DatabaseInUseError: a bridge runs on the database.
        DatabaseError: the database cannot be used.
    """
    db = Database(target.uri, target.base)
    stop = threading.Event()
    dump = await asyncio.to_thread(DumpReader, path)
    try:
        _compare(dump.header, target.about)
        counts = await beside(dump.check, stop)
        work = _Restore(db, target, dump, replace, progress, stop)
        if db.postgres:
            rooms = await work.into_postgres()
        else:
            rooms = await beside(work.into_sqlite, stop)
        return RestoreReport(dump.header.at, dump.header.schema, dump.header.about, counts, rooms)
    except DATABASE_ERRORS as error:
        raise BackupError(f"{db.describe()} cannot be written: {error}. It holds what it held before.") from error
    finally:
        await asyncio.to_thread(dump.close)


def _compare(header: Header, about: Mapping[str, str]) -> None:
    """Raise where the backup is not for this program or not for this bridge."""
    if header.schema > NEWEST:
        raise BackupError(
            f"The backup was made by a newer version of letta-bridge ({header.about.get('version', 'unknown')}). "
            "Install that version, or a newer one, and restore with it."
        )
    if header.schema not in MAKE:
        raise BackupError(f"The backup has a schema of version {header.schema}, which this letta-bridge does not know.")
    names = {"domain": "homeserver.domain", "appservice": "appservice.id"}
    for key, name in names.items():
        theirs = header.about.get(key, "")
        if key in about and theirs != about[key]:
            raise BackupError(
                f"The backup is of another bridge: its {name} is {theirs[:100]!r}, the configuration says "
                f"{about[key]!r}. Restore it with the configuration that belongs to it."
            )


class _LockedDatabase(Database):
    """Only the process lock of a SQLite file, without opening it."""

    def lock(self, path: Path) -> int:
        self._take_lock(path)
        assert self._lock_fd is not None
        return self._lock_fd


@dataclass(frozen=True, slots=True)
class _Restore:
    """One restore of a checked file."""

    db: Database
    target: Target
    dump: DumpReader
    replace: bool
    progress: Progress | None
    stop: threading.Event

    def into_sqlite(self) -> int:
        """Blocks; how many rooms are to be read back."""
        path = Path(self.db.url.removeprefix("sqlite:"))
        lock = _LockedDatabase(self.target.uri, self.target.base).lock(path)
        try:
            conn = sqlite3.connect(path, isolation_level=None, timeout=30)
            try:
                conn.row_factory = sqlite3.Row
                return self._sqlite_transaction(conn)
            finally:
                conn.close()
        finally:
            os.close(lock)

    def _sqlite_transaction(self, conn: sqlite3.Connection) -> int:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute("PRAGMA foreign_keys = OFF")  # tables are dropped and filled again as a whole
        thread = cast(Connection, ThreadConnection(conn))
        conn.execute("BEGIN IMMEDIATE")
        try:
            made = drive(self._prepare(thread))
            for table, rows in self.dump.batches():
                check_stop(self.stop)
                columns = self._columns(table)
                marks = ", ".join("?" * len(columns))
                conn.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)
                self._tell(table, rows)
            rooms = drive(self._complete(thread, made))
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return rooms

    async def into_postgres(self) -> int:
        """How many rooms are to be read back."""
        conn: Any = await asyncpg.connect(self.db.url, timeout=20)
        try:
            await conn.execute(f"SET lock_timeout = '{int(_LOCK_SECONDS)}s'")
            try:
                await conn.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)  # nobody starts meanwhile
                async with conn.transaction():
                    await conn.execute("SET LOCAL synchronous_commit = on")
                    made = {table.name: table for table in await self._prepare(conn)}
                    await self._fill_postgres(conn, made)
                    return await self._complete(conn, list(made.values()))
            except asyncpg.LockNotAvailableError as error:
                raise DatabaseInUseError(
                    f"{self.db.describe()} is in use by somebody. Stop every letta-bridge that runs on it."
                ) from error
        finally:
            conn.terminate()

    async def _fill_postgres(self, conn: Any, made: Mapping[str, Table]) -> None:
        batches: Iterator[tuple[str, list[list[Any]]]] = self.dump.batches()
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            table, rows = batch
            columns = self._columns(table)
            types = dict(zip(made[table].columns, made[table].types, strict=True))
            adapt = [_ADAPT.get(types[column]) for column in columns]
            records = [
                [
                    value if value is None or make is None else make(value)
                    for make, value in zip(adapt, row, strict=True)
                ]
                for row in rows
            ]
            await conn.copy_records_to_table(table, records=records, columns=columns)
            self._tell(table, rows)

    def _tell(self, table: str, rows: list[list[Any]]) -> None:
        if self.progress is not None:
            self.progress(table, len(rows))

    def _columns(self, table: str) -> tuple[str, ...]:
        return next(head.columns for head in self.dump.header.tables if head.name == table)

    async def _prepare(self, conn: Connection) -> list[Table]:
        """Within the transaction: throw away what may be thrown away, and make the empty schema of the backup."""
        postgres = self.db.postgres
        there = await present(conn, postgres)
        if there:
            await self._may_replace(conn, there)
            old = await tables(conn, postgres)
            for name in in_order(there, old):
                await conn.execute(f"DROP TABLE {name}")
        version = self.dump.header.schema
        await MAKE[version](conn, Scheme.POSTGRES if postgres else Scheme.SQLITE)
        await conn.execute(f"CREATE TABLE {VERSION_TABLE} (version INTEGER PRIMARY KEY)")
        await conn.execute(f"INSERT INTO {VERSION_TABLE} (version) VALUES ($1)", version)
        made = await tables(conn, postgres)
        theirs = {head.name: set(head.columns) for head in self.dump.header.tables}
        if theirs != {table.name: set(table.columns) for table in made}:
            raise BackupError(
                f"The backup's tables are not those of schema version {version}. It was made by a development version "
                "of letta-bridge, or was changed."
            )
        return made

    async def _may_replace(self, conn: Connection, there: set[str]) -> None:
        if VERSION_TABLE not in there:
            raise BackupError(
                f"{self.db.describe()} has tables of the same names that are not letta-bridge's: "
                f"{', '.join(sorted(there))[:200]}. Use a database of its own."
            )
        if self.db.postgres:
            await conn.execute(f"LOCK TABLE {', '.join(sorted(there))} IN ACCESS EXCLUSIVE MODE")
        if await schema_version(conn) > NEWEST:
            raise BackupError(
                f"{self.db.describe()} was written by a newer version of letta-bridge. Use that version to restore."
            )
        if self.db.postgres and "replica" in there:
            alive = await conn.fetch(f"SELECT r.id FROM replica r WHERE {alive_at(self.db, '$1')}", self.target.lease)
            if alive:
                names = ", ".join(str(row["id"])[:50] for row in alive[:5])
                raise DatabaseInUseError(
                    f"letta-bridge runs on {self.db.describe()} (replica {names}). Stop it; after a kill, wait "
                    f"{self.target.lease:.0f} seconds."
                )
        if not self.replace:
            for name in sorted(there - OF_THE_PROCESS - {VERSION_TABLE}):
                if await conn.fetchval(f"SELECT 1 FROM {name} LIMIT 1"):
                    raise BackupError(
                        f"{self.db.describe()} is not empty. Say --replace to throw away what it holds, or make a "
                        "backup of it first."
                    )

    async def _complete(self, conn: Connection, made: list[Table]) -> int:
        """Within the transaction, when all rows are in: counters, and what the bridge must know at its next start."""
        last = {head.name: head.last for head in self.dump.header.tables}
        for table in made:
            if table.counter:
                await set_counter(conn, self.db.postgres, table, last[table.name])
        return await note_restore(conn, self.db.now, self.dump.header.at, {table.name for table in made})


_ADAPT: dict[str, Callable[[Any], Any]] = {
    "double precision": float,
    "bigint": int,
    "integer": int,
    "text": str,
    "boolean": bool,
}
"""What PostgreSQL wants by the type of a column; SQLite takes anything, and may have given anything."""
