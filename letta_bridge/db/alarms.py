"""What is wrong now, told once: the ``alarm`` table."""

from dataclasses import dataclass

from .database import Connection, Database, Row, clean


@dataclass(frozen=True, slots=True)
class Alarm:
    """``age`` is seconds since it came up; ``told`` and ``cleared`` whether that happened."""

    topic: str
    text: str
    age: float
    told: bool
    cleared: bool


class Alarms:
    """Statements on ``alarm``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def raise_(self, conn: Connection, topic: str, text: str) -> None:
        """It is so now. One that was cleared and not yet told so comes up again as the same."""
        await conn.execute(
            f"INSERT INTO alarm (topic, text, since) VALUES ($1, $2, {self._db.now}) "
            "ON CONFLICT (topic) DO UPDATE SET text = $2, cleared_at = NULL",
            topic,
            clean(text),
        )

    async def clear(self, conn: Connection, topic: str) -> None:
        """It is over. What was never told needs no word."""
        await conn.execute("DELETE FROM alarm WHERE topic = $1 AND told_at IS NULL", topic)
        await conn.execute(
            f"UPDATE alarm SET cleared_at = {self._db.now} WHERE topic = $1 AND cleared_at IS NULL", topic
        )

    async def all(self) -> list[Alarm]:
        """Every alarm that is up, or whose end was not told yet; oldest first."""
        rows = await self._db.fetch(f"SELECT *, {self._db.now} - since AS age FROM alarm ORDER BY since, topic")
        return [_alarm(row) for row in rows]

    async def note_told(self, conn: Connection, topic: str) -> None:
        """It was told that it is so."""
        await conn.execute(f"UPDATE alarm SET told_at = {self._db.now} WHERE topic = $1", topic)

    async def forget(self, conn: Connection, topic: str) -> None:
        """It was told that it is over."""
        await conn.execute("DELETE FROM alarm WHERE topic = $1 AND cleared_at IS NOT NULL", topic)


def _alarm(row: Row) -> Alarm:
    return Alarm(
        row["topic"], row["text"], float(row["age"]), row["told_at"] is not None, row["cleared_at"] is not None
    )
