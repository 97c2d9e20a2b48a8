"""What people's messages do to turns that wait: a message is queued, corrected, or taken back."""

from collections.abc import Callable

from ..ids import MXID, EventID, RoomID, TurnID
from .database import Connection, Reader, clean
from .hand_over import HandOver
from .restored import GENERATION
from .turn_rows import OPEN, NewMessage, agent_lane


class Queueing(HandOver):
    """Statements of the rooms' dispatch, within its transaction."""

    async def add(self, conn: Connection, new: NewMessage) -> TurnID | None:
        """Queue a message: into the waiting turn of its room and thread, else as a turn of its own. So it is when that
        turn began to be answered already: an answer that stands above a question would not be taken for one to it.

        Returns None when this agent has this event already.
        """
        known = await conn.fetchval(
            "SELECT 1 FROM turn_event WHERE event_id = $1 AND agent_id = $2", new.event_id, new.agent_id
        )
        if known:
            return None
        lane = agent_lane(new.agent_id)
        turn_id = await conn.fetchval(
            "SELECT turn_id FROM turn WHERE lane = $1 AND room_id = $2 AND thread_root = $3 "
            f"AND state IN {OPEN} AND state = 'queued' AND stop_by = '' AND attempt < {GENERATION} "
            "AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.turn_id = turn.turn_id) "
            f"ORDER BY turn_id DESC LIMIT 1 {self._db.for_update}",
            lane,
            new.room_id,
            new.thread_root,
        )
        if new.attempt:  # what became of others of its turn does not say what became of it
            turn_id = None
        if turn_id is None:
            turn_id = await conn.fetchval(
                "INSERT INTO turn (lane, agent_id, room_id, source, thread_root, reply_to, mention, attempt, state, "
                f"created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'queued', {self._db.now}) RETURNING turn_id",
                lane,
                new.agent_id,
                new.room_id,
                f"{new.event_id}|{new.agent_id}",
                new.thread_root,
                new.reply_to,
                int(new.mention),
                new.attempt,
            )
        else:  # the answer goes to the last message of the batch
            await conn.execute(
                "UPDATE turn SET reply_to = $2, mention = $3 WHERE turn_id = $1",
                turn_id,
                new.reply_to,
                int(new.mention),
            )
        position = await conn.fetchval(
            "SELECT COALESCE(MAX(position), 0) + 1 FROM turn_event WHERE turn_id = $1", turn_id
        )
        await conn.execute(
            "INSERT INTO turn_event (event_id, agent_id, turn_id, position, sender, text, created_at) "
            f"VALUES ($1, $2, $3, $4, $5, $6, {self._db.now})",
            new.event_id,
            new.agent_id,
            turn_id,
            position,
            new.sender,
            clean(new.text),
        )
        return TurnID(turn_id)

    async def edit(
        self, conn: Connection, room_id: RoomID, event_id: EventID, sender: MXID, change: Callable[[str], str]
    ) -> tuple[int, int]:
        """An edit: (agents whose queued copy was changed, agents that have it already or answer it now)."""
        rows = await conn.fetch(
            "SELECT e.turn_id, e.text, t.state FROM turn_event e JOIN turn t ON t.turn_id = e.turn_id "
            f"WHERE e.event_id = $1 AND e.sender = $2 AND t.room_id = $3 AND e.withdrawn = 0 {self._lock_turn}",
            event_id,
            sender,
            room_id,
        )
        replaced = late = 0
        for row in rows:
            if row["state"] != "queued":
                late += row["state"] in ("running", "replying", "done")
                continue
            await conn.execute(
                "UPDATE turn_event SET text = $3 WHERE event_id = $1 AND turn_id = $2",
                event_id,
                row["turn_id"],
                change(row["text"]),
            )
            replaced += 1
        return replaced, late

    async def withdraw(self, conn: Connection, room_id: RoomID, event_id: EventID, author: MXID | None) -> list[str]:
        """A redaction: take the message out of turns that have not started; their lanes.

        In a turn that runs it is marked (``withdrawn = 2``), so that it is not handed over again if this try proves
        to have failed. ``author``: only if it is this person's message.
        """
        rows = await conn.fetch(
            "SELECT e.turn_id, e.sender, t.lane, t.state FROM turn_event e JOIN turn t ON t.turn_id = e.turn_id "
            "WHERE e.event_id = $1 AND t.room_id = $2 AND ($3 = '' OR e.sender = $3) AND e.withdrawn = 0 "
            f"AND t.state IN {OPEN} {self._lock_turn}",
            event_id,
            room_id,
            author or "",
        )
        queued = [row for row in rows if row["state"] == "queued"]
        await conn.executemany(
            "UPDATE turn_event SET withdrawn = 2 WHERE event_id = $1 AND turn_id = $2",
            [(event_id, row["turn_id"]) for row in rows if row["state"] == "running"],
        )
        for row in queued:
            await conn.execute(
                "UPDATE turn_event SET withdrawn = 1, text = '' WHERE event_id = $1 AND turn_id = $2",
                event_id,
                row["turn_id"],
            )
            left = await conn.fetchval(
                "SELECT COUNT(*) FROM turn_event WHERE turn_id = $1 AND withdrawn = 0", row["turn_id"]
            )
            if not left:
                await self.take_back(conn, row["turn_id"], row["sender"], "withdrawn by its sender")
        return [str(row["lane"]) for row in queued]

    @property
    def _lock_turn(self) -> str:
        # what is read of the message may be older than the lock: whose it is may have changed (``rebind``)
        return "FOR UPDATE OF t" if self._db.postgres else ""

    async def recent_by(self, sender: MXID, seconds: float, reader: Reader | None = None) -> int:
        """How many messages of ``sender`` were handed to agents in the last ``seconds``."""
        return int(  # the times as questions of their own: PostgreSQL compares no index with a clock that goes on
            await (reader or self._db).fetchval(
                "SELECT COUNT(DISTINCT event_id) FROM turn_event WHERE sender = $1 "
                f"AND created_at BETWEEN (SELECT {self._db.now} - $2) AND (SELECT {self._db.now})",
                sender,
                seconds,
            )
        )
