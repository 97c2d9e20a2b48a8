"""What came in: the ``inbox`` table. Rows stay, emptied, as the memory that makes every event count once."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ids import MXID, EventID, RoomID
from .database import Connection, Database, clean


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A row whose turn it is."""

    seq: int
    event_id: EventID
    room_id: RoomID
    sender: MXID
    type: str
    event: dict[str, Any]
    origin: str
    attempts: int


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
    body = json.dumps(event, ensure_ascii=True, separators=(",", ":"))
    fields = event if isinstance(event, Mapping) else {}
    names = [fields.get(key) for key in ("event_id", "room_id", "sender", "type")]
    if all(isinstance(name, str) and name and len(name) <= 1024 for name in names):
        event_id, room_id, sender, kind = (clean(str(name)) for name in names)
        if isinstance(fields.get("content"), Mapping):
            return Arrival(EventID(event_id), RoomID(room_id), MXID(sender), kind, body)
        reason = "malformed: content is not an object"
        return Arrival(EventID(event_id), RoomID(room_id), MXID(sender), kind, body, "dead", reason)
    digest = hashlib.sha256(body.encode()).hexdigest()
    reason = "malformed: event_id, room_id, sender or type is missing"
    return Arrival(EventID(f"malformed:{digest}"), RoomID(""), MXID(""), "", body, "dead", reason)


class Inbox:
    """Statements on ``inbox``. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(self, arrivals: Sequence[Arrival]) -> set[RoomID]:
        """Store a pushed batch in one synced commit; returns the rooms that have something new.

        An event that is known already, also twice within the batch, counts once.
        """

        async def work(conn: Connection) -> set[RoomID]:
            if self._db.postgres:  # seq order = commit order, also when two replicas get the same retry
                await conn.execute("SELECT pg_advisory_xact_lock(7236978)")
            before = await conn.fetchval("SELECT COALESCE(MAX(seq), 0) FROM inbox")
            await self._insert(conn, arrivals, "push", None)
            rows = await conn.fetch("SELECT DISTINCT room_id FROM inbox WHERE seq > $1 AND state = 'new'", before)
            rooms = {RoomID(row["room_id"]) for row in rows}
            lanes = "\n".join(f"room:{room}" for room in rooms)
            if lanes:
                await self._db.notify(conn, lanes if len(lanes) < 7000 else "*")
            return rooms

        return await self._db.write(work)

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

    async def insert_caught_up(self, conn: Connection, room_id: RoomID, arrivals: Sequence[Arrival]) -> int:
        """Store what ``/messages`` showed, oldest first, each before the pushed event that follows it.

        The caller holds the room's lane, so whatever was pushed meanwhile is still undispatched. Returns how many
        were new.
        """
        known: dict[str, tuple[int, str]] = {}
        for a in arrivals:
            row = await conn.fetchrow("SELECT seq, state FROM inbox WHERE event_id = $1", a.event_id)
            if row is not None:
                known[a.event_id] = (row["seq"], row["state"])
        anchor: int | None = None
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

    async def head(self, room_id: RoomID) -> StoredEvent | None:
        """The oldest event of the room that waits to be dispatched."""
        row = await self._db.fetchrow(
            "SELECT seq, event_id, room_id, sender, type, body, origin, attempts FROM inbox "
            "WHERE room_id = $1 AND state = 'new' "
            "ORDER BY COALESCE(before_seq, seq), CASE WHEN before_seq IS NULL THEN 1 ELSE 0 END, seq LIMIT 1",
            room_id,
        )
        if row is None:
            return None
        return StoredEvent(
            row["seq"],
            EventID(row["event_id"]),
            RoomID(row["room_id"]),
            MXID(row["sender"]),
            row["type"],
            json.loads(row["body"]),
            row["origin"],
            row["attempts"],
        )

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

    async def settled(self, room_id: RoomID, event_id: EventID) -> bool:
        """Whether this event of the room was stored and dealt with."""
        return bool(
            await self._db.fetchval(
                "SELECT 1 FROM inbox WHERE event_id = $1 AND room_id = $2 AND state <> 'new'", event_id, room_id
            )
        )

    async def event(self, event_id: EventID) -> dict[str, Any] | None:
        """A stored event's JSON, while its body is kept."""
        body = await self._db.fetchval("SELECT body FROM inbox WHERE event_id = $1", event_id)
        parsed = json.loads(body) if body else None
        return parsed if isinstance(parsed, dict) else None

    async def open_lanes(self) -> list[str]:
        """Room lanes with undispatched events."""
        rows = await self._db.fetch("SELECT DISTINCT room_id FROM inbox WHERE state = 'new'")
        return [f"room:{row['room_id']}" for row in rows]

    async def active_rooms(self) -> list[RoomID]:
        """Rooms in which anything ever came in."""
        rows = await self._db.fetch("SELECT DISTINCT room_id FROM inbox WHERE state <> 'dead'")
        return [RoomID(row["room_id"]) for row in rows]

    async def prune(self, keep_bodies: float) -> None:
        """Empty the bodies of events settled more than ``keep_bodies`` seconds ago; the ids stay."""
        await self._db.write(
            lambda conn: conn.execute(
                "UPDATE inbox SET body = '' WHERE body <> '' AND state IN ('dispatched', 'skipped') "
                f"AND decided_at < {self._db.now} - $1",
                keep_bodies,
            )
        )
