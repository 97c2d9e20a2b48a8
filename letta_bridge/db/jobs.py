"""Work of several steps, begun by a command or by the mirror: the ``job`` table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ids import JobID, RoomID
from .database import Connection, Database, Reader, Row, clean, due_in

OPEN = "('open', 'undoing')"


def job_lane(job_id: JobID) -> str:
    """The lane in which a job runs."""
    return f"job:{job_id}"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be begun.

    Attributes:
        kind: which steps it has.
        key: names it for ever: adding it twice is adding it once.
        subject: what it works on (``agent:<id>``, ``room:<id>`` or empty).
        asked_by: the Matrix id of who asked, ``ctl`` for the command line, or ``bridge``.
        room_id: where its progress is shown; empty: nowhere.
        args: what it was asked for; JSON.
    """

    kind: str
    key: str
    asked_by: str
    args: Mapping[str, Any]
    subject: str = ""
    room_id: str = ""
    thread_root: str = ""


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job. ``done`` has the result of each finished step by its name; ``wait`` is seconds until its next try."""

    job_id: JobID
    kind: str
    key: str
    subject: str
    asked_by: str
    room_id: RoomID
    thread_root: str
    args: dict[str, Any]
    done: dict[str, Any]
    state: str
    attempts: int
    wait: float
    error: str
    age: float

    @property
    def open(self) -> bool:
        """Whether there is still something to do."""
        return self.state in ("open", "undoing")


class Jobs:
    """Statements on ``job``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, conn: Connection, new: NewJob) -> JobID:
        """Write a job down; one with its key that is there already is left as it is. Returns its id."""
        await conn.execute(
            "INSERT INTO job (kind, key, subject, asked_by, room_id, thread_root, args, state, created_at) "
            f"VALUES ($1, $2, $3, $4, $5, $6, $7, 'open', {self._db.now}) ON CONFLICT (key) DO NOTHING",
            new.kind,
            new.key,
            new.subject,
            new.asked_by,
            new.room_id,
            new.thread_root,
            clean(json.dumps(new.args)),
        )
        return JobID(await conn.fetchval("SELECT job_id FROM job WHERE key = $1", new.key))

    async def get(self, job_id: JobID, reader: Reader | None = None) -> JobRow | None:
        """One job."""
        row = await (reader or self._db).fetchrow(f"{self._select} WHERE job_id = $1", job_id)
        return None if row is None else _job(row)

    async def by_key(self, key: str, reader: Reader | None = None) -> JobRow | None:
        """The job with this key."""
        row = await (reader or self._db).fetchrow(f"{self._select} WHERE key = $1", key)
        return None if row is None else _job(row)

    async def newest(self, limit: int, *, only_open: bool = False) -> list[JobRow]:
        """The newest jobs, newest first."""
        where = f"WHERE state IN {OPEN}" if only_open else ""
        return [
            _job(row) for row in await self._db.fetch(f"{self._select} {where} ORDER BY job_id DESC LIMIT $1", limit)
        ]

    async def open_on(self, subject: str, reader: Reader | None = None) -> list[JobRow]:
        """Unfinished jobs that work on ``subject``, oldest first."""
        rows = await (reader or self._db).fetch(
            f"{self._select} WHERE subject = $1 AND state IN {OPEN} ORDER BY job_id", subject
        )
        return [_job(row) for row in rows]

    @property
    def _select(self) -> str:
        return f"SELECT *, not_before - {self._db.now} AS wait, {self._db.now} - created_at AS age FROM job"

    async def open_lanes(self) -> list[str]:
        """Lanes of unfinished jobs."""
        rows = await self._db.fetch(f"SELECT job_id FROM job WHERE state IN {OPEN}")
        return [job_lane(JobID(row["job_id"])) for row in rows]

    async def save_done(self, conn: Connection, job_id: JobID, done: Mapping[str, Any], *, error: str = "") -> None:
        """Note what its finished steps came to; the trouble of the last try is over."""
        await conn.execute(
            "UPDATE job SET done = $2, attempts = 0, error = $3 WHERE job_id = $1",
            job_id,
            clean(json.dumps(done)),
            error,
        )

    async def postpone(self, conn: Connection, job_id: JobID, delay: float, error: str) -> None:
        """Try again in ``delay`` seconds."""
        await conn.execute(
            f"UPDATE job SET attempts = attempts + 1, not_before = {self._db.now} + $2, error = $3 WHERE job_id = $1",
            job_id,
            float(delay),
            clean(error)[:500],
        )

    async def end_waits(self, conn: Connection, errors: Sequence[str]) -> list[str]:
        """Jobs that wait because of such an error (patterns of LIKE) need not wait for their next try; their lanes."""
        lanes = []
        for error in errors:
            rows = await conn.fetch(
                f"UPDATE job SET not_before = 0 WHERE state IN {OPEN} AND not_before > {self._db.now} "
                "AND error LIKE $1 RETURNING job_id",
                error,
            )
            lanes += [job_lane(JobID(row["job_id"])) for row in rows]
        return lanes

    async def undo(self, conn: Connection, job_id: JobID, error: str) -> None:
        """It cannot be finished: from now on its steps are taken back."""
        await conn.execute(
            "UPDATE job SET state = 'undoing', attempts = 0, not_before = 0, error = $2 "
            "WHERE job_id = $1 AND state = 'open'",
            job_id,
            clean(error)[:500],
        )

    async def close(self, conn: Connection, job_id: JobID, state: str, error: str = "") -> None:
        """``done``, ``failed`` or ``cancelled``."""
        await conn.execute(
            f"UPDATE job SET state = $2, error = $3, finished_at = {self._db.now} "
            f"WHERE job_id = $1 AND state IN {OPEN}",
            job_id,
            state,
            clean(error)[:500],
        )

    async def prune(self, age: float) -> None:
        """Forget jobs that ended more than ``age`` seconds ago: what was asked for may hold texts (personas)."""
        await self._db.write(
            lambda conn: conn.execute(f"DELETE FROM job WHERE finished_at < {self._db.now} - $1", float(age))
        )


def _job(row: Row) -> JobRow:
    return JobRow(
        JobID(row["job_id"]),
        row["kind"],
        row["key"],
        row["subject"],
        row["asked_by"],
        RoomID(row["room_id"]),
        row["thread_root"],
        json.loads(row["args"]),
        json.loads(row["done"]),
        row["state"],
        row["attempts"],
        due_in(float(row["wait"])),
        row["error"],
        float(row["age"]),
    )
