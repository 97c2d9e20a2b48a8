"""What is wrong now, told once: the ``alarm`` table."""

from dataclasses import dataclass

from .database import Connection, Database, Row, clean

_MOST_NEWS = 50
"""Lines of news that are told in one message."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """``since`` is when it came up, on the database's clock, ``age`` seconds since then; ``told`` and ``cleared``
    whether that happened, ``cleared_for`` how many seconds ago.
    """

    topic: str
    text: str
    age: float
    told: bool
    cleared: bool
    since: float = 0.0
    cleared_for: float = 0.0

    @property
    def lasted(self) -> float:
        """Seconds from its beginning to its end, or to now."""
        return max(0.0, self.age - self.cleared_for)


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

    async def renew(self, conn: Connection, topic: str, text: str) -> None:
        """It is so now in a way that has to be told even if an earlier one was."""
        await conn.execute("DELETE FROM alarm WHERE topic = $1", topic)
        await self.raise_(conn, topic, text)

    async def add_news(self, conn: Connection, topic: str, text: str) -> None:
        """Something to be told once; together with what waits to be told under this topic."""
        query = f"SELECT text FROM alarm WHERE topic = $1 AND told_at IS NULL {self._db.for_update}"
        row = await conn.fetchrow(query, topic)
        waiting = str(row["text"]).split("\n") if row is not None else []
        if len(waiting) >= _MOST_NEWS:  # the newest; all of them stand in the log
            waiting = waiting[1 - _MOST_NEWS :]
        await self.renew(conn, topic, "\n".join([*waiting, text]))

    async def drop_told(self, conn: Connection, topic: str) -> None:
        """Forget what was only news, once it was told."""
        await conn.execute("DELETE FROM alarm WHERE topic = $1 AND told_at IS NOT NULL", topic)

    async def clear(self, conn: Connection, topic: str) -> None:
        """It is over. What was never told needs no word."""
        await conn.execute("DELETE FROM alarm WHERE topic = $1 AND told_at IS NULL", topic)
        await conn.execute(
            f"UPDATE alarm SET cleared_at = {self._db.now} WHERE topic = $1 AND cleared_at IS NULL", topic
        )

    async def up(self, prefix: str) -> list[str]:
        """What follows ``prefix`` in the topics of alarms that are up."""
        rows = await self._db.fetch(
            "SELECT topic FROM alarm WHERE SUBSTR(topic, 1, $2) = $1 AND cleared_at IS NULL", prefix, len(prefix)
        )
        return [str(row["topic"])[len(prefix) :] for row in rows]

    async def all(self) -> list[Alarm]:
        """Every alarm that is up, or whose end was not told yet; oldest first."""
        now = self._db.now
        rows = await self._db.fetch(
            f"SELECT *, {now} - since AS age, COALESCE({now} - cleared_at, 0) AS cleared_for FROM alarm "
            "ORDER BY since, topic"
        )
        return [_alarm(row) for row in rows]

    async def stands(self, conn: Connection, alarm: Alarm) -> bool:
        """Whether it is still as it was read (not over, up again or another one meanwhile), and will be until the
        caller's transaction ends.
        """
        query = f"SELECT since, cleared_at FROM alarm WHERE topic = $1 {self._db.for_update}"
        row = await conn.fetchrow(query, alarm.topic)
        return row is not None and (row["cleared_at"] is not None) == alarm.cleared and row["since"] == alarm.since

    async def note_told(self, conn: Connection, topic: str) -> None:
        """It was told that it is so."""
        await conn.execute(f"UPDATE alarm SET told_at = {self._db.now} WHERE topic = $1", topic)

    async def forget(self, conn: Connection, topic: str) -> None:
        """It was told that it is over."""
        await conn.execute("DELETE FROM alarm WHERE topic = $1 AND cleared_at IS NOT NULL", topic)


def _alarm(row: Row) -> Alarm:
    return Alarm(
        row["topic"],
        row["text"],
        float(row["age"]),
        row["told_at"] is not None,
        row["cleared_at"] is not None,
        float(row["since"]),
        float(row["cleared_for"]),
    )
