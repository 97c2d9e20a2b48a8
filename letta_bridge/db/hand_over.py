"""The states of a turn: handed over to Letta, put back, answered, closed."""

from collections.abc import Sequence

from ..ids import MXID, AgentID, ConversationID, EventID, RunID, TurnID
from .database import LONGEST_WAIT, Connection, Database, clean
from .turn_rows import OPEN, Begun, OtidMaker, TurnMessage, TurnRow, agent_lane, is_paused, turn_columns, turn_row


class HandOver:
    """Every change of a turn's state but its first. Methods that take a connection belong into the caller's
    transaction.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def begin(
        self, conn: Connection, turn_id: TurnID, conversation_id: ConversationID, otid_of: OtidMaker
    ) -> Begun | None:
        """``queued → running`` with a new attempt's otids stored before the call; None if it is not queued any more,
        or somebody said stop, or its agent or room was paused.
        """
        row = await conn.fetchrow(
            "UPDATE turn SET state = 'running', attempt = attempt + 1, conversation_id = $2, run_id = '', "
            f"accepted_at = NULL, submitted_at = {self._db.now} "
            f"WHERE turn_id = $1 AND state = 'queued' AND stop_by = '' AND NOT {is_paused('turn')} "
            f"RETURNING {turn_columns(self._db)}",
            turn_id,
            conversation_id,
        )
        if row is None:
            return None
        turn = turn_row(row)
        rows = await conn.fetch(
            "SELECT event_id, sender, text FROM turn_event WHERE turn_id = $1 AND withdrawn = 0 ORDER BY position",
            turn_id,
        )
        messages = [
            TurnMessage(
                EventID(r["event_id"]), MXID(r["sender"]), r["text"], otid_of(EventID(r["event_id"]), turn.attempt)
            )
            for r in rows
        ]
        await conn.executemany(
            "UPDATE turn_event SET otid = $3 WHERE turn_id = $1 AND event_id = $2",
            [(turn_id, message.event_id, message.otid) for message in messages],
        )
        return Begun(turn, messages)

    async def look_up(self, conn: Connection, turn_id: TurnID, conversation_id: ConversationID) -> TurnRow | None:
        """``queued → running`` of a doubtful turn, in order to find out about it; None if it is not queued any more."""
        row = await conn.fetchrow(
            f"UPDATE turn SET state = 'running', conversation_id = $2, submitted_at = {self._db.now} "
            f"WHERE turn_id = $1 AND state = 'queued' RETURNING {turn_columns(self._db)}",
            turn_id,
            conversation_id,
        )
        return None if row is None else turn_row(row)

    async def no_doubt(self, conn: Connection, turn_id: TurnID, run_id: RunID | None) -> None:
        """A doubtful turn was found (with its run), or proved never to have been handed over (None)."""
        await conn.execute(
            "UPDATE turn SET attempt = attempt + 1, run_id = $2 WHERE turn_id = $1 AND state = 'running'",
            turn_id,
            run_id or "",
        )

    async def others_run(self, turn_id: TurnID, agent_id: AgentID, run_id: RunID) -> bool:
        """Whether another turn of the agent is this run already."""
        return bool(
            await self._db.fetchval(
                "SELECT 1 FROM turn WHERE agent_id = $1 AND run_id = $2 AND turn_id <> $3", agent_id, run_id, turn_id
            )
        )

    async def accepted(self, conn: Connection, turn_id: TurnID, run_id: RunID) -> TurnRow | None:
        """Letta named the run; the turn as it is then, None if it is not running any more."""
        row = await conn.fetchrow(
            f"UPDATE turn SET run_id = $2, wait_reason = '', accepted_at = {self._db.now} "
            f"WHERE turn_id = $1 AND state = 'running' RETURNING {turn_columns(self._db)}",
            turn_id,
            run_id,
        )
        return None if row is None else turn_row(row)

    async def requeue(self, conn: Connection, turn_id: TurnID, *, delay: float, reason: str, failed: bool) -> None:
        """``running → queued``: it stays the head of its lane and is tried again after ``delay`` seconds."""
        await conn.execute(
            "UPDATE turn SET state = 'queued', wait_reason = $3, failures = failures + $4, run_id = '', "
            f"not_before = {self._db.now} + $2 WHERE turn_id = $1 AND state IN {OPEN}",
            turn_id,
            min(delay, LONGEST_WAIT),
            clean(reason)[:300],
            int(failed),
        )
        await conn.execute(
            "UPDATE turn_event SET withdrawn = 1, text = '' WHERE turn_id = $1 AND withdrawn = 2", turn_id
        )

    async def take_back(self, conn: Connection, turn_id: TurnID, by: str, why: str) -> None:
        """A queued turn that is not to be handed over any more: ``cancelled``; but when an earlier try showed some of
        an answer, its lane closes it, and gives what is shown an end.
        """
        shown = await conn.fetchval(
            "UPDATE turn SET stop_by = $2, not_before = 0 WHERE turn_id = $1 AND state = 'queued' AND attempt > 0 "
            "AND EXISTS (SELECT 1 FROM outbox o WHERE o.turn_id = turn.turn_id) RETURNING lane",
            turn_id,
            by,
        )
        if shown is None:
            await self.close(conn, turn_id, "cancelled", why)

    async def restamp(self, conn: Connection, turn_id: TurnID) -> None:
        """The clock was set back since the turn began: its time is measured anew."""
        await conn.execute(
            f"UPDATE turn SET submitted_at = {self._db.now} WHERE turn_id = $1 AND submitted_at > {self._db.now}",
            turn_id,
        )

    async def note_wait(self, conn: Connection, turn_id: TurnID, reason: str) -> None:
        """Why a running turn cannot be followed at the moment."""
        await conn.execute("UPDATE turn SET wait_reason = $2 WHERE turn_id = $1", turn_id, reason)

    async def end_wait(self, conn: Connection, agent_id: AgentID) -> None:
        """What the agent's turns waited for is over: they need not wait for their next try."""
        await conn.execute(
            f"UPDATE turn SET not_before = 0 WHERE lane = $1 AND state IN {OPEN} AND state = 'queued'",
            agent_lane(agent_id),
        )

    async def end_waits(self, conn: Connection, reasons: Sequence[str]) -> list[str]:
        """What turns wait for by one of these reasons is over, whosever they are; the lanes that can go on."""
        lanes = set()
        for reason in reasons:
            rows = await conn.fetch(
                f"UPDATE turn SET not_before = 0 WHERE state IN {OPEN} AND wait_reason = $1 RETURNING lane", reason
            )
            lanes |= {str(row["lane"]) for row in rows}
        return sorted(lanes)

    async def tidy(self) -> None:
        """At a start: whatever turns waited for may be over, so each is tried again at once; and what was shown whole
        is done.
        """

        async def work(conn: Connection) -> None:
            await conn.execute(f"UPDATE turn SET not_before = 0 WHERE state IN {OPEN} AND state = 'queued'")
            await conn.execute(
                f"UPDATE turn SET state = 'done', finished_at = {self._db.now} WHERE state = 'replying' AND NOT EXISTS "
                "(SELECT 1 FROM outbox o WHERE o.turn_id = turn.turn_id AND o.state = 'pending')"
            )

        await self._db.write(work)

    async def replying(self, conn: Connection, turn_id: TurnID) -> bool:
        """``running → replying``: its answer stands in the outbox. False if the turn is over already."""
        row = await conn.fetchrow(
            f"UPDATE turn SET state = 'replying', replying_at = {self._db.now} "
            "WHERE turn_id = $1 AND state = 'running' RETURNING turn_id",
            turn_id,
        )
        if row is not None and self._db.postgres:
            # whoever notes at this moment that something of the turn was sent sees it running: wait for them
            await conn.fetch("SELECT 1 FROM outbox WHERE turn_id = $1 AND state = 'pending' FOR SHARE", turn_id)
        return row is not None

    async def close(self, conn: Connection, turn_id: TurnID, state: str, error: str = "") -> bool:
        """Any open state to ``done``, ``dead`` or ``cancelled``; False if it was closed already."""
        row = await conn.fetchrow(
            f"UPDATE turn SET state = $2, error = $3, finished_at = {self._db.now} "
            "WHERE turn_id = $1 AND state IN ('queued', 'running', 'replying') RETURNING turn_id",
            turn_id,
            state,
            clean(error)[:500],
        )
        return row is not None

    async def close_delivered(self, conn: Connection, turn_id: TurnID) -> bool:
        """``replying → done`` once nothing of the turn waits in the outbox; whether that is so now."""
        row = await conn.fetchrow(
            f"UPDATE turn SET state = 'done', finished_at = {self._db.now} WHERE turn_id = $1 "
            "AND state = 'replying' AND NOT EXISTS "
            "(SELECT 1 FROM outbox o WHERE o.turn_id = $1 AND o.state = 'pending') RETURNING turn_id",
            turn_id,
        )
        return row is not None
