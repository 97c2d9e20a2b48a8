"""What came in: the ``inbox`` table. Rows stay, emptied, as the memory that makes every event count once."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import faults
from ..ids import MXID, EventID, RoomID
from .database import LONGEST_WAIT, Connection, Database, Reader, clean, due_in
from .restored import NOTE

_LONGEST_ID = 1024
"""Bytes: 255 characters of four. PostgreSQL refuses more than 2704 in an index, and a refused batch comes for ever."""
_DEEPEST = 100
"""Levels of nesting: whatever is stored must be parsed again, on a stack that may be fuller."""
_LARGEST = 2**19
"""Bytes: an event has 65,536 at most; escapes make up to three times as much of it, and servers add what was before."""
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]')
_INTAKE_LOCK = 0x6E6C62
_NOTIFY_MOST = 7000
"""Bytes: PostgreSQL's own limit is 8000."""


ECHO = "sent by the bridge"
"""The decision about what our own users said."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A row whose turn it is."""

    seq: int
    event_id: EventID
    room_id: RoomID
    sender: MXID
    type: str
    event: dict[str, Any]
    attempts: int
    doubtful: bool = False
    """A bridge whose database is lost may have dealt with it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event as it is to be stored; ``state`` other than ``new`` means that no lane needs to look at it."""

    event_id: EventID
    room_id: RoomID
    sender: MXID
    type: str
    body: str
    state: str = "new"
    decision: str = ""


def arrival(event: object) -> Arrival:
    """Any JSON value as a row: what is no event is kept as a dead letter that says why, never refused."""
    reason = "malformed: content is not an object"
    try:
        body = json.dumps(event, ensure_ascii=True, separators=(",", ":"))
    except RecursionError:
        body = ""
    if len(body) > _LARGEST:
        body, reason = "", "malformed: larger than any event"
    elif not body or _depth(body) > _DEEPEST:
        body, reason = "", "malformed: nested too deeply"
    fields = event if isinstance(event, Mapping) else {}
    names = [fields.get(key) for key in ("event_id", "room_id", "sender", "type")]
    texts = [clean(name) if isinstance(name, str) else "" for name in names]
    if all(0 < len(text.encode()) <= _LONGEST_ID for text in texts):
        event_id, room_id, sender, kind = texts
        if body and isinstance(fields.get("content"), Mapping):
            return Arrival(EventID(event_id), RoomID(room_id), MXID(sender), kind, body)
        return Arrival(EventID(event_id), RoomID(room_id), MXID(sender), kind, body, "dead", reason)
    digest = hashlib.sha256(body.encode()).hexdigest()
    reason = "malformed: event_id, room_id, sender or type is missing or too long"
    return Arrival(EventID(f"malformed:{digest}"), RoomID(""), MXID(""), "", body, "dead", reason)


def _depth(body: str) -> int:
    """How deep a JSON text is nested."""
    if body.count("[") + body.count("{") <= _DEEPEST:
        return 0
    depth = most = 0
    for token in _BRACKET.finditer(body):
        if token.group() in ("[", "{"):
            depth += 1
            most = max(most, depth)
        elif token.group() in ("]", "}"):
            depth -= 1
    return most


class Inbox:
    """Statements on ``inbox``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(self, arrivals: Sequence[Arrival]) -> set[RoomID]:
        """Store a pushed batch in one synced commit; returns the rooms that have something new.

        An event that is known already, also twice within the batch, counts once.
        """

        async def work(conn: Connection) -> set[RoomID]:
            await self._one_at_a_time(conn)
            before = await conn.fetchval("SELECT COALESCE(MAX(seq), 0) FROM inbox")
            await self._insert(conn, arrivals, "push", None)
            # not DISTINCT: SQLite would go through all that waits instead of what has just come
            rows = await conn.fetch("SELECT room_id FROM inbox WHERE seq > $1 AND state = 'new'", before)
            rooms = {RoomID(row["room_id"]) for row in rows}
            lanes = "\n".join(f"room:{room}" for room in rooms)
            if lanes:
                await self._db.notify(conn, lanes if len(lanes.encode()) < _NOTIFY_MOST else "*")
            faults.reach("intake.stored")
            return rooms

        return await self._db.write(work)

    async def _one_at_a_time(self, conn: Connection) -> None:
        """Until the commit nobody else inserts, so that the order of ``seq`` is that of the commits; also when two
        replicas get the same retry.
        """
        if self._db.postgres:
            await conn.execute("SELECT pg_advisory_xact_lock($1)", _INTAKE_LOCK)

    async def _insert(self, conn: Connection, arrivals: Iterable[Arrival], origin: str, before_seq: int | None) -> None:
        await conn.executemany(
            "INSERT INTO inbox (event_id, room_id, sender, type, body, origin, before_seq, state, decision, "
            f"received_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, {self._db.now}) "
            "ON CONFLICT (event_id) DO NOTHING",
            [
                (a.event_id, a.room_id, a.sender, a.type, a.body, origin, before_seq, a.state, a.decision)
                for a in arrivals
            ],
        )

    async def insert_caught_up(self, conn: Connection, room_id: RoomID, arrivals: Sequence[Arrival], after: int) -> int:
        """Store what ``/messages`` showed, oldest first, each before the pushed event that follows it.

        The caller holds the room's lane, so whatever was pushed meanwhile is still undispatched; what was pushed
        after the reading comes after all of it. ``after`` is the row that is being handled, or 0. Returns how many
        were new.
        """
        await self._one_at_a_time(conn)
        read = {a.event_id for a in arrivals}
        later = await conn.fetch(
            "SELECT seq, event_id FROM inbox WHERE room_id = $1 AND state = 'new' AND seq > $2 ORDER BY seq",
            room_id,
            after,
        )
        known: dict[str, tuple[int, str]] = {}
        for a in arrivals:
            row = await conn.fetchrow("SELECT seq, state FROM inbox WHERE event_id = $1", a.event_id)
            if row is not None:
                known[a.event_id] = (row["seq"], row["state"])
        # what was pushed before something that was read was pushed before the reading: state, which reading leaves out
        newest = max((seq for seq, _ in known.values()), default=0)
        after_all = (row["seq"] for row in later if row["event_id"] not in read and row["seq"] > newest)
        anchor: int | None = next(after_all, None)
        placed: list[tuple[Arrival, int | None]] = []
        for a in reversed(arrivals):
            if a.event_id in known:
                seq, state = known[a.event_id]
                anchor = seq if state == "new" else None
            else:
                placed.append((a, anchor))
        for a, before in reversed(placed):
            await self._insert(conn, [a], "catchup", before)
        return len(placed)

    async def waiting(self, room_id: RoomID, most: int, reader: Reader | None = None) -> list[StoredEvent]:
        """The oldest events of the room that wait to be dispatched and are not set aside, in order."""
        rows = await (reader or self._db).fetch(
            "SELECT seq, event_id, room_id, sender, type, body, attempts, decision FROM inbox "
            f"WHERE room_id = $1 AND state = 'new' AND NOT (not_before > {self._db.now} "
            f"AND not_before <= {self._db.now} + {LONGEST_WAIT}) "  # farther ahead: see due_in
            "ORDER BY room_id, (COALESCE(before_seq, seq)), (before_seq IS NULL), seq LIMIT $2",
            room_id,
            most,
        )
        return [
            StoredEvent(
                row["seq"],
                EventID(row["event_id"]),
                RoomID(row["room_id"]),
                MXID(row["sender"]),
                row["type"],
                _parsed(row["body"]),
                row["attempts"],
                row["decision"] == NOTE,
            )
            for row in rows
        ]

    async def settle(self, conn: Connection, seq: int, state: str, decision: str) -> None:
        """Write what became of an event, and why."""
        await conn.execute(
            f"UPDATE inbox SET state = $2, decision = $3, decided_at = {self._db.now} WHERE seq = $1",
            seq,
            state,
            clean(decision)[:500],
        )

    async def failed(self, conn: Connection, seq: int) -> None:
        """Count a failed try to dispatch."""
        await conn.execute("UPDATE inbox SET attempts = attempts + 1 WHERE seq = $1", seq)

    async def set_aside(self, conn: Connection, seq: int, delay: float) -> None:
        """Let later events of the room pass this one for ``delay`` seconds: only for what nothing else depends on."""
        await conn.execute(
            f"UPDATE inbox SET attempts = attempts + 1, not_before = {self._db.now} + $2 WHERE seq = $1", seq, delay
        )

    async def recall(self, conn: Connection, room_id: RoomID) -> bool:
        """Let what was set aside in a room be handled now, before all that came later; whether there was anything."""
        row = await conn.fetchrow(
            f"UPDATE inbox SET not_before = 0 WHERE room_id = $1 AND state = 'new' AND not_before > {self._db.now} "
            "RETURNING seq",
            room_id,
        )
        return row is not None

    async def next_wait(self, room_id: RoomID) -> float | None:
        """Seconds until the next event of the room is to be tried, 0 for now; None when none waits."""
        wait = await self._db.fetchval(
            f"SELECT MIN(not_before) - {self._db.now} FROM inbox WHERE room_id = $1 AND state = 'new'", room_id
        )
        return None if wait is None else due_in(max(0.0, float(wait)))

    async def settled(self, room_id: RoomID, event_id: EventID) -> bool:
        """Whether this event of the room was stored and dealt with; our own words prove nothing of what lies before."""
        return bool(
            await self._db.fetchval(
                "SELECT 1 FROM inbox WHERE event_id = $1 AND room_id = $2 AND state <> 'new' AND decision <> $3",
                event_id,
                room_id,
                ECHO,
            )
        )

    async def saw_creation_by(self, room_id: RoomID, who: Callable[[MXID], bool]) -> bool:
        """Whether the creation of the room was pushed, and its creator is one of ``who``."""
        rows = await self._db.fetch(
            "SELECT sender FROM inbox WHERE room_id = $1 AND type = 'm.room.create' AND origin = 'push'", room_id
        )
        return any(who(MXID(row["sender"])) for row in rows)

    async def event(self, event_id: EventID, reader: Reader | None = None) -> dict[str, Any] | None:
        """A stored event's JSON, while its body is kept."""
        body = await (reader or self._db).fetchval("SELECT body FROM inbox WHERE event_id = $1", event_id)
        return _parsed(body) or None

    async def age_of(self, event_id: str) -> float | None:
        """Seconds since an event came in; None when it is not known."""
        age = await self._db.fetchval(f"SELECT {self._db.now} - received_at FROM inbox WHERE event_id = $1", event_id)
        return None if age is None else float(age)

    async def open_lanes(self) -> list[str]:
        """Room lanes with undispatched events."""
        rows = await self._db.fetch("SELECT DISTINCT room_id FROM inbox WHERE state = 'new'")
        return [f"room:{row['room_id']}" for row in rows]

    async def active_rooms(self) -> list[RoomID]:
        """Rooms in which anything ever came in."""
        rows = await self._db.fetch("SELECT DISTINCT room_id FROM inbox WHERE state <> 'dead'")
        return [RoomID(row["room_id"]) for row in rows]


def _parsed(body: str | None) -> dict[str, Any]:
    """An event with texts that can be stored; empty when it is none."""
    try:
        parsed = json.loads(body or "null", object_pairs_hook=_clean_object)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _clean_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {clean(key): _clean_value(value) for key, value in pairs}


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_clean_value(item) for item in value]
    return value  # objects were cleaned when they were parsed
