"""How the mirror writes: on behalf of its lane during a pass, without a fence for what is harmless to repeat."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ..db.agents import AgentRow, Agents
from ..db.database import Connection, Database
from ..lanes import Fence, Lanes

T = TypeVar("T")
Work = Callable[[Connection], Awaitable[T]]


class Writer:
    """Commits finished steps. With a fence, a pass that lost its lane raises FencedError and writes nothing."""

    def __init__(self, db: Database, agents: Agents, lanes: Lanes, fence: Fence | None) -> None:
        self._db = db
        self._agents = agents
        self._lanes = lanes
        self._fence = fence

    async def run(self, work: Work[T]) -> T:
        """One transaction."""
        if self._fence is None:
            return await self._db.write(work)
        return await self._lanes.write(self._fence, work)

    async def save(self, row: AgentRow, also: Work[None] | None = None, **columns: Any) -> AgentRow:
        """Write columns of an agent, and what belongs to the same step; returns the row as it is now."""

        async def work(conn: Connection) -> None:
            await self._agents.update_in(conn, row.agent_id, **columns)
            if also is not None:
                await also(conn)

        await self.run(work)
        return dataclasses.replace(row, **columns)

    async def all_made(self, row: AgentRow) -> AgentRow:
        """Nothing is wrong with the agent, and a new one is active; unless a command took it away meanwhile."""
        await self.run(lambda conn: self._agents.all_made(conn, row.agent_id))
        return dataclasses.replace(row, state="active" if row.state == "new" else row.state, error="")
