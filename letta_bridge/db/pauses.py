"""Who was stopped for the time being: the ``pause`` table."""

from collections.abc import Iterable
from dataclasses import dataclass

from .database import Connection, Database, Reader, clean

EVERYTHING = "all"


@dataclass(frozen=True, slots=True)
class Pause:
    """``subject`` is ``agent:<id>``, ``room:<id>`` or ``all``; ``age`` is in seconds."""

    subject: str
    by: str
    reason: str
    age: float


class Pauses:
    """Statements on ``pause``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def set(self, conn: Connection, subject: str, by: str, reason: str = "") -> bool:
        """Pause; False when it was already."""
        row = await conn.fetchrow(
            f"INSERT INTO pause (subject, by_user, reason, at) VALUES ($1, $2, $3, {self._db.now}) "
            "ON CONFLICT (subject) DO NOTHING RETURNING subject",
            subject,
            by,
            clean(reason)[:500],
        )
        return row is not None

    async def end(self, conn: Connection, subject: str) -> bool:
        """Resume; False when it was not paused."""
        return await conn.fetchrow("DELETE FROM pause WHERE subject = $1 RETURNING subject", subject) is not None

    async def all(self) -> list[Pause]:
        """Everything that is paused."""
        rows = await self._db.fetch(f"SELECT *, {self._db.now} - at AS age FROM pause ORDER BY at, subject")
        return [Pause(row["subject"], row["by_user"], row["reason"], float(row["age"])) for row in rows]

    async def covering(self, subjects: Iterable[str], reader: Reader | None = None) -> Pause | None:
        """A pause that covers any of ``subjects`` (``all`` is always asked too)."""
        reader = reader or self._db
        for subject in (EVERYTHING, *subjects):
            row = await reader.fetchrow(f"SELECT *, {self._db.now} - at AS age FROM pause WHERE subject = $1", subject)
            if row is not None:
                return Pause(row["subject"], row["by_user"], row["reason"], float(row["age"]))
        return None
