"""Rooms that were an agent's portal once: the ``past_room`` table."""

from dataclasses import dataclass

from ..ids import AgentID, RoomID
from .database import Connection, Database, Reader


@dataclass(frozen=True, slots=True)
class PastRoom:
    """``replaced_by`` is empty while nothing came after it; ``age`` is seconds since it ended as a portal."""

    room_id: RoomID
    agent_id: AgentID
    replaced_by: str
    reason: str
    age: float


class PastRooms:
    """Statements on ``past_room``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, conn: Connection, room_id: RoomID, agent_id: AgentID, reason: str) -> None:
        """The room is no portal any more."""
        await conn.execute(
            f"INSERT INTO past_room (room_id, agent_id, reason, at) VALUES ($1, $2, $3, {self._db.now}) "
            "ON CONFLICT (room_id) DO NOTHING",
            room_id,
            agent_id,
            reason,
        )

    async def point(self, conn: Connection, agent_id: AgentID, replaced_by: RoomID) -> None:
        """Let the agent's former rooms that point nowhere point to the new one."""
        await conn.execute(
            "UPDATE past_room SET replaced_by = $2 WHERE agent_id = $1 AND replaced_by = '' AND room_id <> $2",
            agent_id,
            replaced_by,
        )

    async def ids(self) -> set[RoomID]:
        """Every room that was a portal once."""
        return {RoomID(row["room_id"]) for row in await self._db.fetch("SELECT room_id FROM past_room")}

    async def of(self, agent_id: AgentID, reader: Reader | None = None) -> list[PastRoom]:
        """The former rooms of an agent, newest first."""
        rows = await (reader or self._db).fetch(
            f"SELECT *, {self._db.now} - at AS age FROM past_room WHERE agent_id = $1 ORDER BY at DESC", agent_id
        )
        return [
            PastRoom(
                RoomID(row["room_id"]), AgentID(row["agent_id"]), row["replaced_by"], row["reason"], float(row["age"])
            )
            for row in rows
        ]
