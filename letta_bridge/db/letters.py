"""Dead letters: what came in and could not be decided, turns that were given up, and what could not be sent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ids import MXID, AgentID, RoomID
from .database import Connection, Database, Reader, Row, clean
from .depths import MOST
from .outbox import Outbox, Outgoing


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter.

    Attributes:
        number: ``i12`` (came in), ``t7`` (a turn) or ``o5`` (to go out).
        who: who wrote it: a person, or who of ours was to say it.
        why: the reason; never the text.
        age: seconds since it came in, ended, or was made.
        kept: whether its text is still there, so that it can be tried again.
        accepted: a turn that Letta had taken.
        source: what a turn answers.
        attempt: how often a turn was tried.
    """

    number: str
    room_id: RoomID
    who: MXID
    why: str
    age: float
    kept: bool
    agent_id: AgentID | None = None
    accepted: bool = False
    source: str = ""
    attempt: int = 0


class Letters:
    """Statements on them. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._outbox = Outbox(db)

    async def all(self, most: int, reader: Reader | None = None) -> list[Letter]:
        """The newest of each kind, at most ``most`` of each."""
        reader = reader or self._db
        now = self._db.now
        came = await reader.fetch(
            "SELECT seq, room_id, sender, decision, body, event_id, "
            f"{now} - received_at AS age FROM inbox WHERE state = 'dead' ORDER BY seq DESC LIMIT $1",
            most,
        )
        turns = await reader.fetch(
            f"SELECT t.*, {now} - COALESCE(t.finished_at, t.created_at) AS age, {_SENDER} AS who, {_KEPT} AS kept "
            "FROM turn t WHERE t.state = 'dead' ORDER BY t.turn_id DESC LIMIT $1",
            most,
        )
        out = await reader.fetch(
            f"SELECT seq, room_id, sender, error, content, {now} - created_at AS age FROM outbox "
            "WHERE state = 'dead' ORDER BY seq DESC LIMIT $1",
            most,
        )
        return [_came(row) for row in came] + [_turn(row) for row in turns] + [_out(row) for row in out]

    async def get(self, number: str, reader: Reader | None = None) -> Letter | None:
        """One dead letter by its number."""
        reader = reader or self._db
        kind, key, now = number[:1], int(number[1:]), self._db.now
        if kind == "i":
            row = await reader.fetchrow(
                "SELECT seq, room_id, sender, decision, body, event_id, "
                f"{now} - received_at AS age FROM inbox WHERE state = 'dead' AND seq = $1",
                key,
            )
            return None if row is None else _came(row)
        if kind == "t":
            row = await reader.fetchrow(
                f"SELECT t.*, {now} - COALESCE(t.finished_at, t.created_at) AS age, {_SENDER} AS who, {_KEPT} AS kept "
                "FROM turn t WHERE t.state = 'dead' AND t.turn_id = $1",
                key,
            )
            return None if row is None else _turn(row)
        row = await reader.fetchrow(
            f"SELECT seq, room_id, sender, error, content, {now} - created_at AS age FROM outbox "
            "WHERE state = 'dead' AND seq = $1",
            key,
        )
        return None if row is None else _out(row)

    async def dead_turns(self) -> int:
        """How many turns were given up; of more than :data:`MOST` only so many are counted."""
        return int(
            await self._db.fetchval(
                f"SELECT COUNT(*) FROM (SELECT turn_id FROM turn WHERE state = 'dead' LIMIT {MOST}) dead"
            )
        )

    # -- again

    async def again(self, conn: Connection, letter: Letter) -> bool:
        """Let it be tried once more; False when it is none any more, or not the one that was read: it was tried since,
        or its text was emptied. Wake its lane afterwards.
        """
        key = int(letter.number[1:])
        if letter.number[0] == "i":
            row = await conn.fetchrow(
                "UPDATE inbox SET state = 'new', decision = '', attempts = 0, not_before = 0, decided_at = NULL "
                "WHERE seq = $1 AND state = 'dead' AND body <> '' RETURNING seq",
                key,
            )
            return row is not None
        if letter.number[0] == "t":
            return await self._turn_again(conn, key, letter.attempt)
        row = await conn.fetchrow(
            "DELETE FROM outbox WHERE seq = $1 AND state = 'dead' AND content <> '{}' RETURNING *", key
        )
        if row is not None:  # behind everything that the room has waiting
            await self._outbox.add(conn, _outgoing(row))
        return row is not None

    async def _turn_again(self, conn: Connection, key: int, attempt: int) -> bool:
        # first the lock: whether its text is kept is asked while nobody empties it
        await conn.fetchval(f"SELECT 1 FROM turn WHERE turn_id = $1 {self._db.for_update}", key)
        # the next attempt gets message ids of its own, and all that is said about it is said anew: what was said
        # before stands further up, with its end
        row = await conn.fetchrow(
            "UPDATE turn SET state = 'queued', source = source || '|' || attempt, failures = 0, not_before = 0, "
            "wait_reason = '', error = '', run_id = '', stop_by = '', submitted_at = NULL, finished_at = NULL "
            f"WHERE turn_id = $1 AND state = 'dead' AND attempt = $2 AND {_HAS_TEXT.format(turn='turn')} "
            "RETURNING turn_id",
            key,
            attempt,
        )
        return row is not None

    async def drop(self, conn: Connection, letter: Letter, by: str) -> bool:
        """It is no dead letter any more, and nothing is done with it; False when it was none."""
        key, why = int(letter.number[1:]), clean(f"dropped by {by}: {letter.why}")[:300]
        statement = {
            "i": "UPDATE inbox SET state = 'skipped', decision = $2 WHERE seq = $1 AND state = 'dead' RETURNING seq",
            "t": "UPDATE turn SET state = 'cancelled', error = $2 WHERE turn_id = $1 AND state = 'dead' "
            "RETURNING turn_id",
            "o": "UPDATE outbox SET state = 'dropped', error = $2 WHERE seq = $1 AND state = 'dead' RETURNING seq",
        }[letter.number[0]]
        return await conn.fetchrow(statement, key, why) is not None


_SENDER = (  # of what was said before a restore only the event that was read back tells who it was
    "COALESCE((SELECT MIN(e.sender) FROM turn_event e WHERE e.turn_id = t.turn_id AND e.sender <> ''), "
    "(SELECT MIN(i.sender) FROM turn_event e JOIN inbox i ON i.event_id = e.event_id WHERE e.turn_id = t.turn_id), '')"
)
_HAS_TEXT = "EXISTS (SELECT 1 FROM turn_event e WHERE e.turn_id = {turn}.turn_id AND e.withdrawn = 0 AND e.text <> '')"
_KEPT = f"CASE WHEN {_HAS_TEXT.format(turn='t')} THEN 1 ELSE 0 END"


def _came(row: Row) -> Letter:
    malformed = not row["room_id"] or str(row["decision"]).startswith("malformed")
    kept = bool(row["body"]) and not malformed
    return Letter(
        f"i{row['seq']}", RoomID(row["room_id"]), MXID(row["sender"]), row["decision"], float(row["age"]), kept
    )


def _turn(row: Row) -> Letter:
    return Letter(
        f"t{row['turn_id']}",
        RoomID(row["room_id"]),
        MXID(row["who"]),
        row["error"],
        float(row["age"]),
        bool(row["kept"]),
        AgentID(row["agent_id"]),
        row["accepted_at"] is not None or bool(row["run_id"]),
        row["source"],
        int(row["attempt"]),
    )


def _out(row: Row) -> Letter:
    kept = row["content"] not in ("", "{}")
    return Letter(f"o{row['seq']}", RoomID(row["room_id"]), MXID(row["sender"]), row["error"], float(row["age"]), kept)


def _outgoing(row: Row) -> Outgoing:
    content: Mapping[str, Any] = json.loads(row["content"])
    return Outgoing(
        row["txn_id"],
        RoomID(row["room_id"]),
        MXID(row["sender"]),
        row["type"],
        content,
        row["edits"],
        row["turn_id"],
        row["stamp"],
    )
