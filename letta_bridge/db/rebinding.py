"""Giving a re-created agent the place of the one before it: everything that names the old one names the new one."""

from dataclasses import dataclass

from ..ids import MXID, AgentID, RoomID
from .database import Connection, Database
from .hand_over import HandOver
from .memory import Told
from .turns import OPEN, agent_lane


@dataclass(frozen=True, slots=True)
class Move:
    """From ``old``, whose puppet is ``mxid``, to ``new``. ``retired`` is how the row that ``new`` had until now is
    called from then on.
    """

    old: AgentID
    new: AgentID
    mxid: MXID
    retired: AgentID


class Rebinding:
    """The statements. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def busy(self, conn: Connection, move: Move) -> bool:
        """Whether a turn of the old agent runs, or the new one has anything to do under its own puppet.

        Nothing of the old agent can begin to run before the caller's transaction ends.
        """
        lane = agent_lane(move.old)
        # one that nobody ever had cannot be locked
        await conn.execute("INSERT INTO lane (lane, epoch) VALUES ($1, 0) ON CONFLICT (lane) DO NOTHING", lane)
        await conn.fetch(f"SELECT epoch FROM lane WHERE lane = $1 {self._db.for_update}", lane)
        running = await conn.fetchval(
            f"SELECT 1 FROM turn WHERE lane = $1 AND state IN {OPEN} AND state = 'running'", lane
        )
        own = await conn.fetchval(
            "SELECT 1 FROM turn WHERE agent_id = $1 AND state IN ('queued', 'running', 'replying') "
            "AND EXISTS (SELECT 1 FROM agent WHERE agent_id = $1 AND mxid <> $2)",
            move.new,
            move.mxid,
        )
        return running is not None or own is not None

    async def holder(self, conn: Connection, mxid: MXID) -> AgentID | None:
        """The agent that has this puppet, until the caller's transaction ends."""
        value = await conn.fetchval(f"SELECT agent_id FROM agent WHERE mxid = $1 {self._db.for_update}", mxid)
        return None if value is None else AgentID(value)

    async def make(self, conn: Connection, move: Move) -> RoomID | None:
        """Do it; returns the portal that the new agent had until now."""
        own = await conn.fetchrow("SELECT portal_room FROM agent WHERE agent_id = $1", move.new)
        await conn.execute(
            "UPDATE agent SET agent_id = $2, state = 'archived', dismissed = 1, history = '', error = '', "
            f"missing_since = {self._db.now}, portal_bridge = NULL WHERE agent_id = $1",
            move.new,
            move.retired,
        )
        await conn.execute(
            "UPDATE agent SET agent_id = $2, state = CASE WHEN portal_joined = 1 THEN 'active' ELSE 'new' END, "
            "missing_since = NULL, dismissed = 0, portal_bridge = NULL, error = '' WHERE agent_id = $1",
            move.old,
            move.new,
        )
        await conn.execute("DELETE FROM conversation WHERE agent_id = $1", move.old)
        await conn.execute("UPDATE past_room SET agent_id = $2 WHERE agent_id = $1", move.old, move.new)
        await conn.execute("UPDATE stop_request SET done = 1 WHERE agent_id = $1", move.old)
        await self._move_rules(conn, move)
        told = Told(self._db)
        await told.untell_all(conn, f"wait:{move.old}:")
        await told.untell_all(conn, f"waits:{move.old}")
        await conn.execute(
            "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2",
            _now_name(move.old),
            move.new,
        )
        await self.move_turns(conn, move.old, move.new)
        return RoomID(own["portal_room"]) if own is not None and own["portal_room"] else None

    async def _move_rules(self, conn: Connection, move: Move) -> None:
        """Permissions and pauses: those of the old agent win."""
        old, new = f"agent:{move.old}", f"agent:{move.new}"
        await conn.execute(
            "DELETE FROM access WHERE subject = $2 AND who IN (SELECT who FROM access WHERE subject = $1)", old, new
        )
        await conn.execute("UPDATE access SET subject = $2 WHERE subject = $1", old, new)
        await conn.execute(
            "DELETE FROM pause WHERE subject = $2 AND EXISTS (SELECT 1 FROM pause WHERE subject = $1)", old, new
        )
        await conn.execute("UPDATE pause SET subject = $2 WHERE subject = $1", old, new)

    async def successor(self, agent_id: AgentID) -> AgentID | None:
        """The agent that took the place of one that has no row any more."""
        value = await self._db.fetchval("SELECT value FROM setting WHERE name = $1", _now_name(agent_id))
        return None if value is None else AgentID(value)

    async def move_turns(self, conn: Connection, old: AgentID, new: AgentID) -> None:
        """What waits for the old agent waits for the new one. A message that the new one has already is not doubled."""
        rows = await conn.fetch(
            f"SELECT turn_id FROM turn WHERE lane = $1 AND state IN {OPEN} AND state = 'queued' {self._db.for_update}",
            agent_lane(old),
        )
        for row in rows:
            turn_id = row["turn_id"]
            await conn.execute(
                "UPDATE turn_event SET withdrawn = 1, text = '' WHERE turn_id = $1 AND EXISTS (SELECT 1 FROM "
                "turn_event e WHERE e.event_id = turn_event.event_id AND e.agent_id = $2)",
                turn_id,
                new,
            )
            await conn.execute(
                "UPDATE turn_event SET agent_id = $2 WHERE turn_id = $1 AND withdrawn <> 1", turn_id, new
            )
            await conn.execute(
                "UPDATE turn SET lane = $2, agent_id = $3, conversation_id = '', wait_reason = '', not_before = 0 "
                "WHERE turn_id = $1",
                turn_id,
                agent_lane(new),
                new,
            )
            left = await conn.fetchval("SELECT COUNT(*) FROM turn_event WHERE turn_id = $1 AND withdrawn = 0", turn_id)
            if not left:
                await HandOver(self._db).take_back(conn, turn_id, new, "the agent has its messages already")


def _now_name(agent_id: AgentID) -> str:
    return f"rebound:{agent_id}"
