"""Small memories: what was told once, single facts, and which conversation belongs to which room."""

from ..ids import AgentID, ConversationID, RoomID
from .database import Connection, Database, Reader, clean


class Told:
    """What is said once. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def first_time(self, conn: Connection, topic: str, again_after: float | None = None) -> bool:
        """Note that ``topic`` is being told; False when it was already (within ``again_after`` seconds, if given)."""
        row = await conn.fetchrow(
            f"INSERT INTO told AS t (topic, at) VALUES ($1, {self._db.now}) "
            f"ON CONFLICT (topic) DO UPDATE SET at = {self._db.now} "
            "WHERE CAST($2 AS DOUBLE PRECISION) >= 0 AND (t.at > "  # the clock was set back since, or it is long ago
            f"{self._db.now} OR t.at < {self._db.now} - CAST($2 AS DOUBLE PRECISION)) "
            "RETURNING topic",
            clean(topic),
            -1.0 if again_after is None else float(again_after),
        )
        return row is not None

    async def untell(self, conn: Connection, topic: str) -> bool:
        """Forget that ``topic`` was told; whether it had been."""
        row = await conn.fetchrow("DELETE FROM told WHERE topic = $1 RETURNING topic", clean(topic))
        return row is not None

    async def untell_all(self, conn: Connection, prefix: str) -> list[str]:
        """Forget every topic that starts with ``prefix``; what follows it in each."""
        rows = await conn.fetch(
            "DELETE FROM told WHERE SUBSTR(topic, 1, $2) = $1 RETURNING topic", clean(prefix), len(clean(prefix))
        )
        return [str(row["topic"])[len(clean(prefix)) :] for row in rows]

    async def forget_old(self, conn: Connection, prefix: str, seconds: float) -> None:
        """Forget every topic that starts with ``prefix`` and was told more than ``seconds`` ago."""
        await conn.execute(
            f"DELETE FROM told WHERE SUBSTR(topic, 1, $2) = $1 AND at < {self._db.now} - $3",
            clean(prefix),
            len(clean(prefix)),
            float(seconds),
        )

    async def was_told(self, topic: str, within: float | None = None) -> bool:
        """Whether ``topic`` was told (in the last ``within`` seconds, if given)."""
        seconds = -1.0 if within is None else float(within)
        return bool(
            await self._db.fetchval(
                "SELECT 1 FROM told WHERE topic = $1 AND (CAST($2 AS DOUBLE PRECISION) < 0 "
                f"OR at > {self._db.now} - CAST($2 AS DOUBLE PRECISION))",
                clean(topic),
                seconds,
            )
        )

    async def tell(self, topic: str) -> None:
        """Note in a commit of its own that ``topic`` was told now."""
        await self._db.write(lambda conn: self.first_time(conn, topic, again_after=0.0))


class Settings:
    """Single facts by name."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, name: str) -> str | None:
        """The value, or None."""
        value = await self._db.fetchval("SELECT value FROM setting WHERE name = $1", name)
        return None if value is None else str(value)

    async def set(self, name: str, value: str) -> None:
        """Write the value in a commit of its own."""
        await self._db.write(
            lambda conn: conn.execute(
                "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2",
                name,
                value,
            )
        )

    async def stamp(self, name: str) -> None:
        """Write the present time of the database as the value."""
        await self._db.write(
            lambda conn: conn.execute(
                f"INSERT INTO setting (name, value) VALUES ($1, CAST({self._db.now} AS TEXT)) "
                f"ON CONFLICT (name) DO UPDATE SET value = CAST({self._db.now} AS TEXT)",
                name,
            )
        )

    async def age(self, name: str) -> float | None:
        """Seconds since :meth:`stamp`; None if it never was."""
        age = await self._db.fetchval(
            f"SELECT {self._db.now} - CAST(value AS DOUBLE PRECISION) FROM setting WHERE name = $1", name
        )
        return None if age is None else float(age)


class Conversations:
    """Which Letta conversation a room has with an agent, and the memory it was last compiled with."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(
        self, agent_id: AgentID, room_id: RoomID, reader: Reader | None = None
    ) -> tuple[ConversationID, str] | None:
        """The conversation and the fingerprint of the memory it knows."""
        row = await (reader or self._db).fetchrow(
            "SELECT conversation_id, memory FROM conversation WHERE agent_id = $1 AND room_id = $2",
            agent_id,
            room_id,
        )
        return None if row is None else (ConversationID(row["conversation_id"]), row["memory"])

    async def set(
        self, conn: Connection, agent_id: AgentID, room_id: RoomID, conversation: ConversationID, memory: str
    ) -> None:
        """Remember both."""
        await conn.execute(
            "INSERT INTO conversation (agent_id, room_id, conversation_id, memory) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (agent_id, room_id) DO UPDATE SET conversation_id = $3, memory = $4",
            agent_id,
            room_id,
            conversation,
            memory,
        )

    async def forget(self, conn: Connection, agent_id: AgentID, room_id: RoomID) -> None:
        """The conversation is gone on Letta: the next turn opens another."""
        await conn.execute("DELETE FROM conversation WHERE agent_id = $1 AND room_id = $2", agent_id, room_id)
