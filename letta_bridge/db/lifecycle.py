"""How agents come, go and come back: statements on the ``agent`` table that change many rows in one commit.

Every statement asks for the state it starts from, so that a command which changed a row meanwhile wins.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ids import MXID, AgentID
from .agents import Agents
from .database import Connection, Database, clean

_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class NewRow:
    """An agent about to be written down. ``history``: ``due`` where its older lines are to be shown."""

    agent_id: AgentID
    mxid: MXID
    device_id: str
    name: str
    description: str
    avatar: str
    tags: tuple[str, ...]
    model: str
    history: str = ""


@dataclass(frozen=True, slots=True)
class Absence:
    """Of an agent that is missing or archived: seconds since it was first missed (less than 0: the clock was set
    back).
    """

    agent_id: AgentID
    state: str
    age: float


class Lifecycle:
    """The statements. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database, agents: Agents) -> None:
        self._db = db
        self._agents = agents

    async def add(self, conn: Connection, rows: Sequence[NewRow]) -> None:
        """Write agents down before anything is made for them; who is known, or whose user id is taken, is left."""
        await conn.executemany(
            "INSERT INTO agent (agent_id, mxid, device_id, name, description, avatar, tags, model, history, state, "
            f"created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'new', {self._db.now}) ON CONFLICT DO NOTHING",
            [
                (
                    row.agent_id,
                    row.mxid,
                    row.device_id,
                    clean(row.name),
                    clean(row.description),
                    clean(row.avatar),
                    clean(json.dumps(row.tags)),
                    clean(row.model),
                    row.history,
                )
                for row in rows
            ],
        )

    async def change(self, conn: Connection, changes: Iterable[tuple[AgentID, Mapping[str, Any]]]) -> None:
        """Write what Letta says differently now."""
        for agent_id, columns in changes:
            await self._agents.update_in(conn, agent_id, **columns)

    async def bring_back(self, conn: Connection, agent_ids: Iterable[AgentID]) -> None:
        """Letta has them again: they are what they were. Who was dismissed by a command stays so."""
        await conn.executemany(
            "UPDATE agent SET state = CASE WHEN portal_joined = 1 THEN 'active' ELSE 'new' END, missing_since = NULL "
            "WHERE agent_id = $1 AND state IN ('missing', 'archived') AND dismissed = 0",
            [(agent_id,) for agent_id in agent_ids],
        )

    async def miss(self, conn: Connection, agent_ids: Iterable[AgentID]) -> None:
        """They are missing from now on."""
        await conn.executemany(
            f"UPDATE agent SET state = 'missing', missing_since = {self._db.now} "
            "WHERE agent_id = $1 AND state IN ('new', 'active')",
            [(agent_id,) for agent_id in agent_ids],
        )

    async def archive(self, conn: Connection, agent_ids: Iterable[AgentID]) -> None:
        """They were missing for long enough. The moment at which they were first missed stays known."""
        await conn.executemany(
            "UPDATE agent SET state = 'archived' WHERE agent_id = $1 AND state = 'missing'",
            [(agent_id,) for agent_id in agent_ids],
        )

    async def pass_over(self, conn: Connection, agent_ids: Iterable[AgentID], seconds: float) -> None:
        """The last ``seconds``, in which nobody could see whether they are there, do not count as absence."""
        await conn.executemany(
            "UPDATE agent SET missing_since = missing_since + $2 WHERE agent_id = $1 AND state = 'missing'",
            [(agent_id, float(seconds)) for agent_id in agent_ids],
        )

    async def restamp(self, conn: Connection, agent_ids: Iterable[AgentID]) -> None:
        """They are missing as of now: there is no moment, or the clock was set back behind it."""
        await conn.executemany(
            f"UPDATE agent SET missing_since = {self._db.now} WHERE agent_id = $1 AND state = 'missing'",
            [(agent_id,) for agent_id in agent_ids],
        )

    async def absences(self) -> list[Absence]:
        """Everybody who is missing, and who was archived after being missed within the last day."""
        rows = await self._db.fetch(
            f"SELECT agent_id, state, COALESCE({self._db.now} - missing_since, -1) AS age FROM agent "
            "WHERE state = 'missing' OR (state = 'archived' AND dismissed = 0 "
            f"AND missing_since > {self._db.now} - {_DAY})"
        )
        return [Absence(AgentID(row["agent_id"]), row["state"], float(row["age"])) for row in rows]
