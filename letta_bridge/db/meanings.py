"""Which agents a command in a room meant: rows of ``setting`` that live until it is answered.

A command that is carried out again after a crash must not mean another agent because the first time has changed a name.
"""

import json
from collections.abc import Mapping

from ..ids import AgentID
from .database import Connection, Database, clean

_PREFIX = "meant:"


class Meanings:
    """Statements on them. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def of(self, key: str) -> dict[str, AgentID]:
        """The agents by the names of the arguments that meant them; empty for a command that is new."""
        value = await self._db.fetchval("SELECT value FROM setting WHERE name = $1", _PREFIX + key)
        return {} if value is None else {name: AgentID(agent_id) for name, agent_id in json.loads(value).items()}

    async def keep(self, key: str, agents: Mapping[str, AgentID]) -> None:
        """Write them down, before the command changes anything."""
        await self._db.write(
            lambda conn: conn.execute(
                "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
                _PREFIX + key,
                clean(json.dumps(dict(agents))),
            )
        )

    async def forget(self, conn: Connection, key: str) -> None:
        """The command is answered."""
        await conn.execute("DELETE FROM setting WHERE name = $1", _PREFIX + key)
