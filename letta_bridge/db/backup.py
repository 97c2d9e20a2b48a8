"""A copy of the database in one file, made while the bridge runs.

It is one snapshot: of a connection and a read transaction of its own, which waits for nobody and keeps nobody waiting.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import asyncpg

from .. import __version__
from .catalog import Table, schema_version, tables
from .database import DATABASE_ERRORS, Connection, Database
from .dump import BackupError, DumpWriter, Header, TableHead
from .sqlite import ThreadConnection, drive

T = TypeVar("T")
_BATCH = 500


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What was written: where, how many bytes, of which schema, at what time (seconds since 1970), how many rows."""

    path: Path
    size: int
    schema: int
    at: float
    rows: dict[str, int]


async def backup(db: Database, path: Path, about: Mapping[str, str], *, overwrite: bool = False) -> BackupReport:
    """Write everything that the database holds into ``path`` (mode 0600), as it was at one moment.

    Args:
        db: an open database; it goes on being used meanwhile.
        about: whose it is: ``domain`` and ``appservice``, which a restore compares (see :func:`.restore.whose`).
        overwrite: whether a backup of this name may be replaced; anything else never is.

    Raises:
        BackupError: it cannot be made (the file exists, the disk is full, the database cannot be read); there is no
            half file then.
    """
    if not path.name or "\0" in str(path):
        raise BackupError(f"{str(path)!r} is no name for a file.")
    writer = DumpWriter(path, overwrite)
    whose = {**about, "version": __version__}
    try:
        if db.postgres:
            return await _of_postgres(db, path, writer, whose)
        stop = threading.Event()
        return await beside(lambda: _of_sqlite(db, path, writer, whose, stop), stop)
    except BackupError:
        raise
    except DATABASE_ERRORS as error:
        raise BackupError(f"{db.describe()} cannot be read: {error}. No file was written.") from error
    finally:
        await asyncio.shield(asyncio.to_thread(writer.discard))


async def beside(work: Callable[[], T], stop: threading.Event) -> T:
    """Run ``work`` on a thread. A cancelled caller sets ``stop`` and waits until the work has seen it."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(BaseException):  # it was told to end: how it did is of no interest
            await task
        raise


def check_stop(stop: threading.Event) -> None:
    """Raise :class:`BackupError` when the caller does not want it any more."""
    if stop.is_set():
        raise BackupError("It was stopped before its end.")


def _of_sqlite(
    db: Database, path: Path, writer: DumpWriter, about: dict[str, str], stop: threading.Event
) -> BackupReport:
    conn = sqlite3.connect(db.url.removeprefix("sqlite:"), isolation_level=None, timeout=30)
    try:
        conn.row_factory = sqlite3.Row
        conn.execute("PRAGMA query_only = 1")
        conn.execute("BEGIN")
        header, found = drive(_header(cast(Connection, ThreadConnection(conn)), db, about))
        writer.open(header)
        conn.row_factory = None
        for table in found:
            writer.table(table.name)
            rows = conn.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}")
            while batch := rows.fetchmany(_BATCH):
                check_stop(stop)
                writer.write(batch)
        conn.execute("ROLLBACK")
        return _report(path, writer, header)
    finally:
        conn.close()


async def _of_postgres(db: Database, path: Path, writer: DumpWriter, about: dict[str, str]) -> BackupReport:
    conn: Any = await asyncpg.connect(db.url, timeout=20)
    stop = threading.Event()  # each piece of writing is short: a cancelled backup only waits for it
    try:
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            header, found = await _header(conn, db, about)
            await beside(partial(writer.open, header), stop)
            for table in found:
                await beside(partial(writer.table, table.name), stop)
                rows = await conn.cursor(f"SELECT {', '.join(table.columns)} FROM {table.name}")
                while batch := await rows.fetch(_BATCH):
                    await beside(partial(writer.write, batch), stop)
        return await beside(partial(_report, path, writer, header), stop)
    finally:
        conn.terminate()  # nothing was written; an orderly end would wait for the server


async def _header(conn: Connection, db: Database, about: dict[str, str]) -> tuple[Header, list[Table]]:
    version = await schema_version(conn)
    at = float(await conn.fetchval(f"SELECT {db.now}"))
    found = await tables(conn, db.postgres)
    heads = tuple(TableHead(table.name, table.columns, table.last) for table in found)
    return Header(version, "postgresql" if db.postgres else "sqlite", at, about, heads), found


def _report(path: Path, writer: DumpWriter, header: Header) -> BackupReport:
    return BackupReport(path, writer.finish(), header.schema, header.at, dict(writer.rows))
