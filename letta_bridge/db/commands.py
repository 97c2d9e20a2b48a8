"""Commands that were accepted in a room and wait to be carried out: the ``command`` table."""

from dataclasses import dataclass

from ..ids import MXID, EventID, RoomID
from .database import Connection, Database, Reader


@dataclass(frozen=True, slots=True)
class CommandRow:
    """A command as it was written. ``management``: in a room that is for nothing else."""

    seq: int
    event_id: EventID
    room_id: RoomID
    sender: MXID
    thread_root: str
    text: str
    management: bool
    attempts: int


class Commands:
    """Statements on ``command``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, conn: Connection, row: CommandRow) -> None:
        """Take a command in, once per event."""
        await conn.execute(
            "INSERT INTO command (event_id, room_id, sender, thread_root, text, management, state, created_at) "
            f"VALUES ($1, $2, $3, $4, $5, $6, 'open', {self._db.now}) ON CONFLICT (event_id) DO NOTHING",
            row.event_id,
            row.room_id,
            row.sender,
            row.thread_root,
            row.text,
            int(row.management),
        )

    async def head(self, room_id: RoomID, reader: Reader | None = None) -> CommandRow | None:
        """The oldest command of the room that waits."""
        row = await (reader or self._db).fetchrow(
            "SELECT seq, event_id, room_id, sender, thread_root, text, management, attempts FROM command "
            "WHERE room_id = $1 AND state = 'open' ORDER BY seq LIMIT 1",
            room_id,
        )
        if row is None:
            return None
        return CommandRow(
            row["seq"],
            EventID(row["event_id"]),
            RoomID(row["room_id"]),
            MXID(row["sender"]),
            row["thread_root"],
            row["text"],
            bool(row["management"]),
            row["attempts"],
        )

    async def recent_by(self, sender: MXID, seconds: float, reader: Reader | None = None) -> int:
        """How many commands of ``sender`` were taken in in the last ``seconds``."""
        return int(
            await (reader or self._db).fetchval(
                "SELECT COUNT(*) FROM command WHERE sender = $1 "
                f"AND created_at BETWEEN (SELECT {self._db.now} - $2) AND (SELECT {self._db.now})",
                sender,
                seconds,
            )
        )

    async def prune(self, age: float) -> None:
        """Forget commands that were answered more than ``age`` seconds ago."""
        await self._db.write(
            lambda conn: conn.execute(
                f"DELETE FROM command WHERE state = 'done' AND created_at < {self._db.now} - $1", age
            )
        )

    async def failed(self, conn: Connection, seq: int) -> None:
        """One more try that broke."""
        await conn.execute("UPDATE command SET attempts = attempts + 1 WHERE seq = $1", seq)

    async def finish(self, conn: Connection, seq: int) -> None:
        """It was answered; its text is not needed any more."""
        await conn.execute("UPDATE command SET state = 'done', text = '' WHERE seq = $1", seq)

    async def withdraw(self, conn: Connection, room_id: RoomID, event_id: EventID, author: MXID | None) -> int:
        """A redaction: take the command away if it still waits; how many that were. ``author``: only if theirs."""
        rows = await conn.fetch(
            "UPDATE command SET state = 'done', text = '' WHERE event_id = $1 AND room_id = $2 AND state = 'open' "
            "AND ($3 = '' OR sender = $3) RETURNING seq",
            event_id,
            room_id,
            author or "",
        )
        return len(rows)

    async def is_open(self, conn: Connection, seq: int) -> bool:
        """Whether it still waits to be answered."""
        return bool(await conn.fetchval("SELECT 1 FROM command WHERE seq = $1 AND state = 'open'", seq))

    async def open_lanes(self) -> list[str]:
        """Lanes of rooms with commands that wait."""
        rows = await self._db.fetch("SELECT DISTINCT room_id FROM command WHERE state = 'open'")
        return [f"command:{row['room_id']}" for row in rows]
