"""Questions about lanes and rooms: whose turn it is, what waits where, what runs."""

from dataclasses import replace

from ..ids import MXID, EventID, Otid, RoomID, RunID, TurnID
from ..letta.errors import Kind
from .database import Connection, Database, Reader
from .turn_rows import OPEN, TurnMessage, TurnRow, WaitingRoom, is_paused, turn_columns, turn_row


class Waiting:
    """Reading statements on turns."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def head(self, lane: str, reader: Reader | None = None) -> TurnRow | None:
        """The turn whose turn it is: the one that is running, else the oldest that waits.

        A turn that waits for an approval lets those of other rooms (other conversations) pass, not those of its own;
        so does one whose room is paused. What is running, or only has to be closed, is never held up by a pause.
        """
        paused = f"state = 'queued' AND stop_by = '' AND {is_paused('t')}"
        blocked = f"b.state = 'queued' AND b.wait_reason = '{Kind.APPROVAL.value}' AND b.not_before > {self._db.now}"
        row = await (reader or self._db).fetchrow(
            f"SELECT {turn_columns(self._db)}, CASE WHEN {paused} THEN 1 ELSE 0 END AS paused "
            f"FROM turn t WHERE lane = $1 AND state IN {OPEN} "
            "ORDER BY CASE WHEN state = 'running' THEN 0 WHEN stop_by <> '' THEN 1 ELSE 2 END, paused, "
            "CASE WHEN EXISTS (SELECT 1 FROM turn b WHERE b.lane = $1 AND b.room_id = t.room_id "
            f"AND b.turn_id <= t.turn_id AND {blocked}) THEN 1 ELSE 0 END, turn_id LIMIT 1",
            lane,
        )
        return None if row is None else replace(turn_row(row), paused=bool(row["paused"]))

    async def get(self, turn_id: TurnID) -> TurnRow | None:
        """One turn."""
        row = await self._db.fetchrow(f"SELECT {turn_columns(self._db)} FROM turn WHERE turn_id = $1", turn_id)
        return None if row is None else turn_row(row)

    async def messages(self, turn_id: TurnID) -> list[TurnMessage]:
        """The turn's messages in order, without those that were withdrawn before they were handed over."""
        rows = await self._db.fetch(
            "SELECT event_id, sender, text, otid FROM turn_event WHERE turn_id = $1 AND withdrawn <> 1 "
            "ORDER BY position",
            turn_id,
        )
        return [TurnMessage(EventID(r["event_id"]), MXID(r["sender"]), r["text"], Otid(r["otid"])) for r in rows]

    async def paused_rooms(self, lane: str) -> set[str]:
        """Rooms whose turns in the lane wait because the agent, the room or everything is paused."""
        rows = await self._db.fetch(
            f"SELECT DISTINCT room_id FROM turn WHERE lane = $1 AND state IN {OPEN} AND state = 'queued' "
            f"AND {is_paused('turn')}",
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
