"""The admins' management rooms: the ``management`` table."""

from ..ids import MXID, RoomID
from .database import Connection, Database, Reader


class ManagementRooms:
    """Statements on ``management``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def all(self) -> dict[MXID, RoomID]:
        """Every admin's room; empty while it is to be made."""
        rows = await self._db.fetch("SELECT user_id, room_id FROM management ORDER BY at, user_id")
        return {MXID(row["user_id"]): RoomID(row["room_id"]) for row in rows}

    async def rooms(self, reader: Reader | None = None) -> set[RoomID]:
        """The rooms themselves."""
        rows = await (reader or self._db).fetch("SELECT DISTINCT room_id FROM management WHERE room_id <> ''")
        return {RoomID(row["room_id"]) for row in rows}

    async def is_one(self, room_id: RoomID, reader: Reader | None = None) -> bool:
        """Whether the room is a management room."""
        value = await (reader or self._db).fetchval("SELECT 1 FROM management WHERE room_id = $1 LIMIT 1", room_id)
        return value is not None

    async def set(self, conn: Connection, user: MXID, room_id: RoomID) -> None:
        """From now on this is the admin's room; empty while it is being made."""
        await conn.execute(
            f"INSERT INTO management (user_id, room_id, at) VALUES ($1, $2, {self._db.now}) "
            "ON CONFLICT (user_id) DO UPDATE SET room_id = $2",
            user,
            room_id,
        )

    async def forget(self, conn: Connection, room_id: RoomID) -> None:
        """The room is none any more."""
        await conn.execute("DELETE FROM management WHERE room_id = $1", room_id)
