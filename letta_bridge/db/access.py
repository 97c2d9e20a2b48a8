"""Permissions given by command, for one agent or one room: the ``access`` table."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..ids import AgentID, RoomID
from .database import Connection, Database, Reader


@dataclass(frozen=True, slots=True)
class Access:
    """``who`` (a full Matrix id, a domain or ``*``) has ``level`` on ``subject`` (``agent:<id>`` or ``room:<id>``)."""

    subject: str
    who: str
    level: str
    by: str


class AccessTable:
    """Statements on ``access``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def set(self, conn: Connection, access: Access) -> None:
        """Give a level, instead of the one given before."""
        await conn.execute(
            f"INSERT INTO access (subject, who, level, by_user, at) VALUES ($1, $2, $3, $4, {self._db.now}) "
            f"ON CONFLICT (subject, who) DO UPDATE SET level = $3, by_user = $4, at = {self._db.now}",
            access.subject,
            access.who,
            access.level,
            access.by,
        )

    async def take_back(self, conn: Connection, subject: str, who: str) -> bool:
        """Whether there was something to take back."""
        row = await conn.fetchrow("DELETE FROM access WHERE subject = $1 AND who = $2 RETURNING who", subject, who)
        return row is not None

    async def on(self, subject: str, reader: Reader | None = None) -> list[Access]:
        """What was given on one agent or room."""
        rows = await (reader or self._db).fetch("SELECT * FROM access WHERE subject = $1 ORDER BY who", subject)
        return [Access(row["subject"], row["who"], row["level"], row["by_user"]) for row in rows]

    async def to(self, names: Iterable[str], reader: Reader | None = None) -> list[Access]:
        """What was given to these: a full Matrix id, its domain, ``*``."""
        found: list[Access] = []
        for who in names:
            rows = await (reader or self._db).fetch("SELECT * FROM access WHERE who = $1 ORDER BY subject", who)
            found += [Access(row["subject"], row["who"], row["level"], row["by_user"]) for row in rows]
        return found

    async def owns(self, who: str, reader: Reader | None = None) -> bool:
        """Whether an agent is this person's."""
        return bool(await (reader or self._db).fetchval("SELECT 1 FROM agent WHERE owner = $1 LIMIT 1", who))

    async def in_room(self, room_id: RoomID, agents: Iterable[AgentID], reader: Reader | None = None) -> list[Access]:
        """What was given on a room and on these agents."""
        given = await self.on(f"room:{room_id}", reader)
        for agent_id in agents:
            given += await self.on(f"agent:{agent_id}", reader)
        return given

    async def all(self) -> list[Access]:
        """Everything given."""
        rows = await self._db.fetch("SELECT * FROM access ORDER BY subject, who")
        return [Access(row["subject"], row["who"], row["level"], row["by_user"]) for row in rows]
