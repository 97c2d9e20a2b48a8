"""Somebody said stop: what that does to turns at once, and what is left for the agent's lane (``stop_request``)."""

from dataclasses import dataclass

from ..ids import MXID, AgentID, EventID, RoomID, TurnID
from .database import Connection, Database, Reader
from .turns import OPEN, Turns, agent_lane

_ANSWERED = "('replying', 'done')"


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Somebody said stop: how many runs were told to end and how many turns were withdrawn from the queue.

    ``quiet``: nothing is said unless an approval was denied (another agent of the room answers).
    """

    event_id: EventID
    agent_id: AgentID
    room_id: RoomID
    sender: MXID
    thread_root: str
    stopped: int
    withdrawn: int
    quiet: bool


class Stops:
    """Statements on stops. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database, turns: Turns) -> None:
        self._db = db
        self._turns = turns

    async def request(
        self, conn: Connection, room_id: RoomID, by: MXID, *, agent_id: AgentID, event_id: str = "", txn_id: str = ""
    ) -> tuple[list[TurnID], list[TurnID]]:
        """Stop an agent's open turns of a room (or those about one event): (withdrawn from the queue, told to stop).

        ``event_id`` may be a message of a turn or an event that shows a turn's answer. ``txn_id`` is the transaction id
        of the latter, if known: people can react to it before it stands here which event it became.
        """
        rows = await conn.fetch(
            "SELECT turn_id, state, stop_by FROM turn WHERE room_id = $1 AND lane = $2 "
            "AND ($3 = '' OR turn_id IN (SELECT turn_id FROM turn_event WHERE event_id = $3) "
            "OR turn_id IN (SELECT turn_id FROM outbox WHERE sent_event_id = $3 AND sent_event_id <> '') "
            "OR turn_id IN (SELECT turn_id FROM outbox WHERE txn_id = $4)) "
            f"AND state IN {OPEN} ORDER BY turn_id {self._db.for_update}",
            room_id,
            agent_lane(agent_id),
            event_id,
            txn_id,
        )
        queued: list[TurnID] = []
        running: list[TurnID] = []
        for row in rows:
            if row["state"] == "queued":
                await self._turns.take_back(conn, row["turn_id"], by, f"stopped by {by}")
                queued.append(TurnID(row["turn_id"]))
            elif not row["stop_by"]:
                await conn.execute("UPDATE turn SET stop_by = $2 WHERE turn_id = $1", row["turn_id"], by)
                running.append(TurnID(row["turn_id"]))
        return queued, running

    async def everything(
        self, conn: Connection, agent_id: AgentID, by: str
    ) -> tuple[list[tuple[RoomID, str, int]], list[TurnID]]:
        """Stop all that an agent has to do: (room, thread and number of messages of each turn that was withdrawn from
        the queue, turns that were told to stop).
        """
        rows = await conn.fetch(
            "SELECT turn_id, room_id, thread_root, state, stop_by FROM turn WHERE lane = $1 "
            f"AND state IN {OPEN} ORDER BY turn_id {self._db.for_update}",
            agent_lane(agent_id),
        )
        queued: list[tuple[RoomID, str, int]] = []
        running: list[TurnID] = []
        for row in rows:
            if row["state"] == "queued":
                count = await conn.fetchval(
                    "SELECT COUNT(*) FROM turn_event WHERE turn_id = $1 AND withdrawn = 0", row["turn_id"]
                )
                await self._turns.take_back(conn, row["turn_id"], by, f"stopped by {by}")
                queued.append((RoomID(row["room_id"]), row["thread_root"], int(count)))
            else:
                if not row["stop_by"]:
                    await conn.execute("UPDATE turn SET stop_by = $2 WHERE turn_id = $1", row["turn_id"], by)
                running.append(TurnID(row["turn_id"]))
        return queued, running

    async def has_open(self, agent_id: AgentID) -> bool:
        """Whether the agent has anything to do."""
        lane = agent_lane(agent_id)
        return bool(await self._db.fetchval(f"SELECT 1 FROM turn WHERE lane = $1 AND state IN {OPEN} LIMIT 1", lane))

    async def busy_elsewhere(self, conn: Connection, agent_id: AgentID, room_id: RoomID) -> bool:
        """Whether the agent works on a turn of another room: its lane comes to this room's affairs only later."""
        return bool(
            await conn.fetchval(
                f"SELECT 1 FROM turn WHERE lane = $1 AND room_id <> $2 AND state IN {OPEN} AND state = 'running'",
                agent_lane(agent_id),
                room_id,
            )
        )

    async def answered_last(self, conn: Connection, agent_id: AgentID, room_id: RoomID, event_id: str) -> bool:
        """Whether the event belongs to the agent's newest answered turn of the room: as a message, or as its answer."""
        # from the event on: the newest turn of a room where the agent said nothing for long is far to seek
        return bool(
            await conn.fetchval(
                "SELECT 1 FROM turn t WHERE t.turn_id IN (SELECT turn_id FROM turn_event WHERE event_id = $3 "
                "UNION SELECT turn_id FROM outbox WHERE sent_event_id = $3 AND sent_event_id <> '') "
                f"AND t.agent_id = $1 AND t.room_id = $2 AND t.state IN {_ANSWERED} "
                "AND NOT EXISTS (SELECT 1 FROM turn n WHERE n.turn_id > t.turn_id "
                f"AND n.agent_id = $1 AND n.room_id = $2 AND n.state IN {_ANSWERED})",
                agent_id,
                room_id,
                event_id,
            )
        )

    async def add(self, conn: Connection, stop: StopRequest) -> None:
        """Leave a stop for the agent's lane: it denies a pending approval there and tells what was stopped."""
        await conn.execute(
            "INSERT INTO stop_request (event_id, agent_id, room_id, sender, thread, stopped, withdrawn, quiet, "
            f"created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, {self._db.now}) ON CONFLICT DO NOTHING",
            stop.event_id,
            stop.agent_id,
            stop.room_id,
            stop.sender,
            stop.thread_root,
            stop.stopped,
            stop.withdrawn,
            int(stop.quiet),
        )

    async def waiting(self, agent_id: AgentID, reader: Reader | None = None) -> list[StopRequest]:
        """Stops that the agent's lane has not served yet."""
        rows = await (reader or self._db).fetch(
            "SELECT * FROM stop_request WHERE agent_id = $1 AND done = 0 ORDER BY created_at", agent_id
        )
        return [
            StopRequest(
                EventID(row["event_id"]),
                AgentID(row["agent_id"]),
                RoomID(row["room_id"]),
                MXID(row["sender"]),
                row["thread"],
                row["stopped"],
                row["withdrawn"],
                bool(row["quiet"]),
            )
            for row in rows
        ]

    async def served(self, conn: Connection, stop: StopRequest) -> None:
        """The stop needs nothing more."""
        await conn.execute(
            "UPDATE stop_request SET done = 1 WHERE event_id = $1 AND agent_id = $2", stop.event_id, stop.agent_id
        )
