"""What agents have to do: the ``turn`` and ``turn_event`` tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..ids import MXID, AgentID, ConversationID, EventID, Otid, RoomID, RunID, TurnID
from ..letta.errors import Kind
from .database import LONGEST_WAIT, Connection, Database, Reader, Row, clean, due_in
from .restored import GENERATION, is_doubtful

OPEN = "('queued', 'running')"
"""SQLite uses the index of open turns only where a statement says just this, whatever else it says of the state."""
OtidMaker = Callable[[EventID, int], Otid]
"""Makes the otid of a message in an attempt of its turn."""


def agent_lane(agent_id: AgentID) -> str:
    """The lane of an agent's turns: one at a time, because parallel turns lose memory edits on Letta V1."""
    return f"agent:{agent_id}"


@dataclass(frozen=True, slots=True)
class TurnRow:
    """A turn as stored. Empty strings stand for "none". ``paused``: it waits until its agent or room is resumed."""

    turn_id: TurnID
    agent_id: AgentID
    room_id: RoomID
    source: str
    thread_root: str
    reply_to: str
    mention: bool
    conversation_id: str
    state: str
    attempt: int
    failures: int
    wait: float
    wait_reason: str
    run_id: str
    stop_by: str
    running_for: float
    age: float
    paused: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether a bridge whose database is lost may have handed it over: it is looked up first."""
        return is_doubtful(self.attempt)


@dataclass(frozen=True, slots=True)
class TurnMessage:
    """One message of a turn. ``text`` is what the agent reads, sealed when the event was dispatched."""

    event_id: EventID
    sender: MXID
    text: str
    otid: Otid


@dataclass(frozen=True, slots=True)
class Begun:
    """A turn that has just begun to run, and the messages that are handed over."""

    turn: TurnRow
    messages: list[TurnMessage]


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message about to be queued for an agent."""

    event_id: EventID
    sender: MXID
    agent_id: AgentID
    room_id: RoomID
    thread_root: str
    reply_to: str
    mention: bool
    text: str
    attempt: int = 0
    """Other than 0: the attempt of a turn that is to be looked up before it is handed over, and alone."""


@dataclass(frozen=True, slots=True)
class WaitingRoom:
    """A room that waits for an agent: its newest waiting message, and the tries of that message's turn so far."""

    room_id: RoomID
    event_id: EventID
    sender: MXID
    thread_root: str
    attempt: int


class Turns:
    """Statements on turns. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # -- dispatch

    async def add(self, conn: Connection, new: NewMessage) -> TurnID | None:
        """Queue a message: into the waiting turn of its room and thread, else as a turn of its own.

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
            "SELECT e.agent_id, e.text, t.state FROM turn_event e JOIN turn t ON t.turn_id = e.turn_id "
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
                "UPDATE turn_event SET text = $3 WHERE event_id = $1 AND agent_id = $2",
                event_id,
                row["agent_id"],
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
            "SELECT e.turn_id, e.agent_id, e.sender, t.state FROM turn_event e JOIN turn t ON t.turn_id = e.turn_id "
            "WHERE e.event_id = $1 AND t.room_id = $2 AND ($3 = '' OR e.sender = $3) AND e.withdrawn = 0 "
            f"AND t.state IN {OPEN} {self._lock_turn}",
            event_id,
            room_id,
            author or "",
        )
        queued = [row for row in rows if row["state"] == "queued"]
        await conn.executemany(
            "UPDATE turn_event SET withdrawn = 2 WHERE event_id = $1 AND agent_id = $2",
            [(event_id, row["agent_id"]) for row in rows if row["state"] == "running"],
        )
        for row in queued:
            await conn.execute(
                "UPDATE turn_event SET withdrawn = 1, text = '' WHERE event_id = $1 AND agent_id = $2",
                event_id,
                row["agent_id"],
            )
            left = await conn.fetchval(
                "SELECT COUNT(*) FROM turn_event WHERE turn_id = $1 AND withdrawn = 0", row["turn_id"]
            )
            if not left:
                await self.take_back(conn, row["turn_id"], row["sender"], "withdrawn by its sender")
        return [agent_lane(row["agent_id"]) for row in queued]

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

    @property
    def _lock_turn(self) -> str:
        return "FOR UPDATE OF t" if self._db.postgres else ""

    async def recent_by(self, sender: MXID, seconds: float, reader: Reader | None = None) -> int:
        """How many messages of ``sender`` were handed to agents in the last ``seconds``."""
        return int(
            await (reader or self._db).fetchval(
                "SELECT COUNT(DISTINCT event_id) FROM turn_event WHERE sender = $1 "
                f"AND created_at BETWEEN {self._db.now} - $2 AND {self._db.now}",
                sender,
                seconds,
            )
        )

    # -- the agent's lane

    async def head(self, lane: str, reader: Reader | None = None) -> TurnRow | None:
        """The turn whose turn it is: the one that is running, else the oldest that waits.

        A turn that waits for an approval lets those of other rooms (other conversations) pass, not those of its own;
        so does one whose room is paused. What is running, or only has to be closed, is never held up by a pause.
        """
        paused = f"state = 'queued' AND stop_by = '' AND {_paused('t')}"
        blocked = f"b.state = 'queued' AND b.wait_reason = '{Kind.APPROVAL.value}' AND b.not_before > {self._db.now}"
        row = await (reader or self._db).fetchrow(
            f"SELECT {self._columns}, CASE WHEN {paused} THEN 1 ELSE 0 END AS paused "
            f"FROM turn t WHERE lane = $1 AND state IN {OPEN} "
            "ORDER BY CASE WHEN state = 'running' THEN 0 WHEN stop_by <> '' THEN 1 ELSE 2 END, paused, "
            "CASE WHEN EXISTS (SELECT 1 FROM turn b WHERE b.lane = $1 AND b.room_id = t.room_id "
            f"AND b.turn_id <= t.turn_id AND {blocked}) THEN 1 ELSE 0 END, turn_id LIMIT 1",
            lane,
        )
        return None if row is None else replace(_turn(row), paused=bool(row["paused"]))

    async def get(self, turn_id: TurnID) -> TurnRow | None:
        """One turn."""
        row = await self._db.fetchrow(f"SELECT {self._columns} FROM turn WHERE turn_id = $1", turn_id)
        return None if row is None else _turn(row)

    @property
    def _columns(self) -> str:
        now = self._db.now
        return (
            f"*, not_before - {now} AS wait, {now} - created_at AS age, "
            f"COALESCE({now} - submitted_at, 0) AS running_for"
        )

    async def messages(self, turn_id: TurnID) -> list[TurnMessage]:
        """The turn's messages in order, without those that were withdrawn before they were handed over."""
        rows = await self._db.fetch(
            "SELECT event_id, sender, text, otid FROM turn_event WHERE turn_id = $1 AND withdrawn <> 1 "
            "ORDER BY position",
            turn_id,
        )
        return [TurnMessage(EventID(r["event_id"]), MXID(r["sender"]), r["text"], Otid(r["otid"])) for r in rows]

    async def begin(
        self, conn: Connection, turn_id: TurnID, conversation_id: ConversationID, otid_of: OtidMaker
    ) -> Begun | None:
        """``queued → running`` with a new attempt's otids stored before the call; None if it is not queued any more,
        or somebody said stop, or its agent or room was paused.
        """
        row = await conn.fetchrow(
            "UPDATE turn SET state = 'running', attempt = attempt + 1, conversation_id = $2, run_id = '', "
            f"accepted_at = NULL, submitted_at = {self._db.now} "
            f"WHERE turn_id = $1 AND state = 'queued' AND stop_by = '' AND NOT {_paused('turn')} "
            f"RETURNING {self._columns}",
            turn_id,
            conversation_id,
        )
        if row is None:
            return None
        turn = _turn(row)
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
            f"WHERE turn_id = $1 AND state = 'queued' RETURNING {self._columns}",
            turn_id,
            conversation_id,
        )
        return None if row is None else _turn(row)

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
            f"WHERE turn_id = $1 AND state = 'running' RETURNING {self._columns}",
            turn_id,
            run_id,
        )
        return None if row is None else _turn(row)

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

    async def prune(self, keep: float) -> None:
        """Empty the messages of turns closed more than ``keep`` seconds ago, and drop served stops."""

        async def work(conn: Connection) -> None:
            await conn.execute(
                "UPDATE turn_event SET text = '' WHERE text <> '' AND turn_id IN "
                f"(SELECT turn_id FROM turn WHERE finished_at < {self._db.now} - $1)",
                keep,
            )
            await conn.execute(f"DELETE FROM stop_request WHERE done = 1 AND created_at < {self._db.now} - $1", keep)

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

    async def paused_rooms(self, lane: str) -> set[str]:
        """Rooms whose turns in the lane wait because the agent, the room or everything is paused."""
        rows = await self._db.fetch(
            f"SELECT DISTINCT room_id FROM turn WHERE lane = $1 AND state IN {OPEN} AND state = 'queued' "
            f"AND {_paused('turn')}",
            lane,
        )
        return {row["room_id"] for row in rows}

    async def waiting_lanes(self, conn: Connection, room_id: RoomID | None = None) -> list[str]:
        """Agent lanes with turns that wait, or only those that wait in one room."""
        rows = await conn.fetch(
            f"SELECT DISTINCT lane FROM turn WHERE state IN {OPEN} AND state = 'queued' AND ($1 = '' OR room_id = $1)",
            room_id or "",
        )
        return [str(row["lane"]) for row in rows]

    async def open_lanes(self) -> list[str]:
        """Agent lanes with open turns or stops."""
        rows = await self._db.fetch(
            f"SELECT lane FROM turn WHERE state IN {OPEN} "
            "UNION SELECT 'agent:' || agent_id AS lane FROM stop_request WHERE done = 0"
        )
        return [row["lane"] for row in rows]

    async def waiting_rooms(self, lane: str) -> list[WaitingRoom]:
        """Rooms with open turns in the lane, each with its newest waiting message."""
        rows = await self._db.fetch(
            "SELECT t.room_id, t.thread_root, t.attempt, e.event_id, e.sender FROM turn t JOIN turn_event e "
            f"ON e.turn_id = t.turn_id AND e.withdrawn = 0 WHERE t.lane = $1 AND t.state IN {OPEN} "
            "ORDER BY t.turn_id, e.position",
            lane,
        )
        newest = {row["room_id"]: row for row in rows}
        return [
            WaitingRoom(RoomID(room), EventID(row["event_id"]), MXID(row["sender"]), row["thread_root"], row["attempt"])
            for room, row in newest.items()
        ]

    async def open_rooms(self, conn: Connection, lane: str) -> set[str]:
        """Rooms with open turns in the lane."""
        rows = await conn.fetch(f"SELECT DISTINCT room_id FROM turn WHERE lane = $1 AND state IN {OPEN}", lane)
        return {row["room_id"] for row in rows}

    async def running_rooms(self, lane: str) -> list[RoomID]:
        """Where a typing notice of the lane's agent may stand since before the lane was claimed."""
        rows = await self._db.fetch(
            f"SELECT room_id FROM turn WHERE lane = $1 AND state IN {OPEN} AND state = 'running'", lane
        )
        return [RoomID(row["room_id"]) for row in rows]

    async def cancelled_lately(self, lane: str, seconds: float) -> RunID | None:
        """The run of the lane's newest turn if that ended otherwise than by an answer, not longer ago than this: the
        run may still be live.
        """
        row = await self._db.fetchrow(
            f"SELECT run_id, state, finished_at > {self._db.now} - $2 AS lately FROM turn "
            "WHERE lane = $1 AND run_id <> '' AND turn_id > (SELECT MAX(turn_id) FROM turn) - 1000 "
            "ORDER BY turn_id DESC LIMIT 1",
            lane,
            seconds,
        )
        if row is None or row["state"] not in ("cancelled", "dead") or not row["lately"]:
            return None
        return RunID(row["run_id"])

    async def to_be_stopped(self) -> list[TurnID]:
        """Running turns that somebody said stop to."""
        rows = await self._db.fetch(
            f"SELECT turn_id FROM turn WHERE state IN {OPEN} AND state = 'running' AND stop_by <> ''"
        )
        return [TurnID(row["turn_id"]) for row in rows]


def _paused(turn: str) -> str:
    """Whether a row of ``turn`` is covered by a pause; three look-ups by key in a table that is mostly empty."""
    subjects = f"('all', 'agent:' || {turn}.agent_id, 'room:' || {turn}.room_id)"
    return f"EXISTS (SELECT 1 FROM pause WHERE subject IN {subjects})"


def _turn(row: Row) -> TurnRow:
    return TurnRow(
        TurnID(row["turn_id"]),
        AgentID(row["agent_id"]),
        RoomID(row["room_id"]),
        row["source"],
        row["thread_root"],
        row["reply_to"],
        bool(row["mention"]),
        row["conversation_id"],
        row["state"],
        row["attempt"],
        row["failures"],
        due_in(float(row["wait"])),
        row["wait_reason"],
        row["run_id"],
        row["stop_by"],
        float(row["running_for"]),
        float(row["age"]),
    )
