"""The file of a backup: gzip'd lines of JSON, the same for both databases.

First a header (what it is of, and every table with its columns), then for each table its name and its rows as arrays,
last a footer with the numbers of rows and the SHA-256 of all lines before it. Everything here blocks: it belongs on a
thread.
"""

import errno
import gzip
import hashlib
import json
import os
import secrets
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .database import DatabaseError

FORMAT = 1
_MARK = "letta_bridge_backup"
_LONGEST_LINE = 64 * 2**20
_BATCH = 500


class BackupError(DatabaseError):
    """A backup cannot be made, read or restored; the text says why and what to do. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class TableHead:
    """A table as the header names it. ``last`` is the number that its counter gave last, 0 without one."""

    name: str
    columns: tuple[str, ...]
    last: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a backup is of.

    Attributes:
        schema: version of the database's schema.
        database: ``sqlite`` or ``postgresql``.
        at: seconds since 1970 by the clock of the database, when the snapshot was taken.
        about: whose it is: ``domain``, ``appservice``, the program's ``version``.
    """

    schema: int
    database: str
    at: float
    about: dict[str, str]
    tables: tuple[TableHead, ...]


class DumpWriter:
    """Writes a backup into a file beside ``path`` and moves it there when it is whole and on the disk.

    Raises:
        BackupError: from every method, when the file cannot be written.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self._path = path
        self._overwrite = overwrite
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        self._raw: IO[bytes] | None = None
        self._zip: gzip.GzipFile | None = None
        self._hash = hashlib.sha256()
        self._table = ""
        self.rows: dict[str, int] = {}

    def open(self, header: Header) -> None:
        """Make the file, which only its owner can read, and write the header."""
        try:
            if self._path.exists():
                self._may_replace()
            fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._trouble(error) from error
        self._raw = os.fdopen(fd, "wb")
        self._zip = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=self._raw, mtime=0)
        tables = [{"name": t.name, "columns": t.columns, "last": t.last} for t in header.tables]
        head = {_MARK: FORMAT, "schema": header.schema, "database": header.database, "at": header.at}
        self._lines([head | {"about": header.about, "tables": tables}])

    def _may_replace(self) -> None:
        """Only another backup is ever replaced, or an empty file: names are mistyped, and the database has one too."""
        if not self._overwrite:
            raise BackupError(f"{self._path} exists already. Give another name, or add `--overwrite` to replace it.")
        about = self._path.stat()
        if stat.S_ISREG(about.st_mode) and not about.st_size:
            return
        try:
            if not stat.S_ISREG(about.st_mode):
                raise BackupError(f"{self._path} is no file.")
            DumpReader(self._path).close()
        except BackupError as error:
            raise BackupError(
                f"{self._path} exists, and is no backup of letta-bridge that could be read, so it is not replaced. "
                "Give another name, or remove it first."
            ) from error

    def table(self, name: str) -> None:
        """What follows are rows of this table."""
        self._table = name
        self.rows[name] = 0
        self._lines([{"table": name}])

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows: texts, numbers and None in the order of the table's columns."""
        self.rows[self._table] += len(rows)
        self._lines([list(row) for row in rows])

    def finish(self) -> int:
        """Write the footer, make sure that all of it is on the disk, and give the file its name. Its size in bytes."""
        assert self._raw is not None and self._zip is not None
        footer = {"end": {"rows": self.rows, "sha256": self._hash.hexdigest()}}
        self._lines([footer])
        try:
            self._zip.close()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            size = os.fstat(self._raw.fileno()).st_size
            self._raw.close()
            self._publish()
        except OSError as error:
            raise self._trouble(error) from error
        return size

    def _publish(self) -> None:
        if self._overwrite:
            os.replace(self._temporary, self._path)
        else:
            self._link()
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _link(self) -> None:
        """Under a name that nobody has taken meanwhile."""
        try:
            os.link(self._temporary, self._path)
        except FileExistsError as error:
            raise BackupError(f"{self._path} exists already. Give another name.") from error
        except OSError:  # a filesystem without hard links
            if self._path.exists():
                raise BackupError(f"{self._path} exists already. Give another name.") from None
            os.rename(self._temporary, self._path)
        else:
            os.unlink(self._temporary)

    def discard(self) -> None:
        """Leave nothing behind; nothing to do after :meth:`finish`."""
        with suppress(OSError):
            if self._raw is not None:
                self._raw.close()
        with suppress(OSError):
            os.unlink(self._temporary)

    def _lines(self, values: Sequence[Any]) -> None:
        assert self._zip is not None
        text = "".join(json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n" for value in values)
        data = text.encode("ascii")
        self._hash.update(data)
        try:
            self._zip.write(data)
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError) -> BackupError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return BackupError(f"There is not enough room for the backup at {self._path}. No file was written.")
        return BackupError(f"{self._path} cannot be written: {error.strerror or error}. No file was written.")


class DumpReader:
    """Reads a backup, as often as wanted, always the same open file.

    Raises:
        BackupError: from every method: it cannot be read, is none, is damaged, or is of a newer format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._raw = open(path, "rb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise BackupError(f"{path} cannot be read: {error.strerror or error}.") from error
        try:
            self.header = self._header(next(self._read(hashlib.sha256()), None))
        except BaseException:
            self._raw.close()
            raise

    def __enter__(self) -> "DumpReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    def check(self) -> dict[str, int]:
        """Read all of it and throw it away; how many rows each table has."""
        counts = {table.name: 0 for table in self.header.tables}
        for table, rows in self.batches():
            counts[table] += len(rows)
        return counts

    def batches(self) -> Iterator[tuple[str, list[list[Any]]]]:
        """All rows, a few hundred of a table at a time, in the order of the header's tables.

        What was given is to be believed only when the iteration has come to its end: the hash stands there.
        """
        digest = hashlib.sha256()
        widths = {table.name: len(table.columns) for table in self.header.tables}
        order = iter(widths)
        counts: dict[str, int] = {}
        batch: list[list[Any]] = []
        table = ""
        lines = self._read(digest)
        next(lines)
        for value in lines:
            if isinstance(value, list) and table and len(value) == widths[table]:
                counts[table] += 1
                batch.append(value)
                if len(batch) >= _BATCH:
                    yield table, batch
                    batch = []
                continue
            if batch:
                yield table, batch
                batch = []
            if not isinstance(value, dict):
                raise self._damaged("a row that belongs to no table")
            if "end" in value:
                self._check_end(value, counts, lines)
                return
            table = str(value.get("table"))
            if table != next(order, None):
                raise self._damaged("tables that its header does not name")
            counts[table] = 0
        raise self._damaged("its end is missing")

    def _check_end(self, footer: dict[str, Any], counts: dict[str, int], lines: Iterator[Any]) -> None:
        expected = {table.name for table in self.header.tables}
        if footer["end"].get("rows") != counts or counts.keys() != expected:
            raise self._damaged("the numbers of rows do not match")
        if next(lines, None) is not None:
            raise self._damaged("something follows its end")

    def _read(self, digest: "hashlib._Hash") -> Iterator[Any]:
        """The parsed lines; the footer's hash is compared here, where its own line is not yet counted."""
        try:
            self._raw.seek(0)
            with gzip.GzipFile(fileobj=self._raw, mode="rb") as lines:
                while line := lines.readline(_LONGEST_LINE):
                    if not line.endswith(b"\n"):
                        raise self._damaged("a line that does not end")
                    value = json.loads(line)
                    if isinstance(value, dict) and "end" in value:
                        end = value["end"]
                        if not isinstance(end, dict) or end.get("sha256") != digest.hexdigest():
                            raise self._damaged("its SHA-256 does not match")
                    digest.update(line)
                    yield value
        except gzip.BadGzipFile as error:
            raise BackupError(f"{self._path} is no backup of letta-bridge, or it is damaged.") from error
        except (EOFError, zlib.error, ValueError, RecursionError) as error:
            raise self._damaged("it is cut off or was changed") from error
        except OSError as error:
            raise BackupError(f"{self._path} cannot be read: {error.strerror or error}.") from error

    def _header(self, value: Any) -> Header:
        if not isinstance(value, dict) or _MARK not in value:
            raise BackupError(f"{self._path} is no backup of letta-bridge.")
        if value[_MARK] != FORMAT:
            raise BackupError(
                f"{self._path} was written by a newer version of letta-bridge, in a format that this one does not "
                "know. Install that version and restore with it."
            )
        try:
            tables = tuple(
                TableHead(str(t["name"]), tuple(str(c) for c in t["columns"]), int(t["last"])) for t in value["tables"]
            )
            about = {str(key): str(text) for key, text in value["about"].items()}
            return Header(int(value["schema"]), str(value["database"]), float(value["at"]), about, tables)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged("its header is not understood") from error

    def _damaged(self, what: str) -> BackupError:
        return BackupError(f"{self._path} is damaged: {what}. Nothing was restored; use another backup.")
