"""The mirrored agents: the ``agent`` table, one row per agent with what was last made true on the homeserver."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from ..ids import MXID, AgentID, RoomID
from .database import Connection, Database, Reader, Row, clean

_MANY = 500
"""Rows above which making them leaves the event loop."""
_COLUMNS = frozenset(
    (
        "name",
        "description",
        "avatar",
        "state",
        "registered",
        "shown_name",
        "device_made",
        "shown_avatar",
        "avatar_mxc",
        "portal_room",
        "portal_name",
        "portal_topic",
        "portal_joined",
        "in_space",
        "error",
        "agent_id",
        "mxid",
        "tags",
        "model",
        "owner",
        "origin",
        "missing_since",
        "dismissed",
        "portal_bridge",
        "history",
    )
)


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent with its puppet and portal.

    ``name``, ``description`` and ``avatar`` (its source) are what Letta says; ``shown_*``, ``portal_*`` and
    ``in_space`` (the space's room id) are what the homeserver was last told, None where it was not told yet.
    ``state`` is ``new``, ``active``, ``missing`` (since ``missing_since``, in seconds of the database's clock) or
    ``archived``. ``owner`` is the Matrix id of who summoned it; ``origin`` is ``letta``, ``summoned`` or ``adopted``;
    ``dismissed`` says that it was despawned by a command; ``history`` is ``due`` while older lines are to be shown.
    """

    agent_id: AgentID
    mxid: MXID
    device_id: str
    name: str
    description: str
    avatar: str
    state: str
    registered: bool
    shown_name: str | None
    device_made: bool
    shown_avatar: str | None
    avatar_mxc: str
    portal_room: RoomID | None
    portal_name: str | None
    portal_topic: str | None
    portal_joined: bool
    in_space: str
    error: str
    tags: tuple[str, ...] = ()
    model: str = ""
    owner: str = ""
    origin: str = "letta"
    missing_since: float | None = None
    dismissed: bool = False
    portal_bridge: str | None = None
    history: str = ""


class Agents:
    """Statements on ``agent``."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def all(self) -> list[AgentRow]:
        """Every agent ever mirrored."""
        rows = await self._db.fetch("SELECT * FROM agent ORDER BY created_at, agent_id")
        if len(rows) < _MANY:
            return [_agent(row) for row in rows]
        return await asyncio.to_thread(lambda: [_agent(row) for row in rows])

    async def get(self, agent_id: AgentID, reader: Reader | None = None) -> AgentRow | None:
        """One agent by its Letta id."""
        row = await (reader or self._db).fetchrow("SELECT * FROM agent WHERE agent_id = $1", agent_id)
        return None if row is None else _agent(row)

    async def by_mxid(self, mxid: MXID) -> AgentRow | None:
        """The agent whose puppet this is."""
        row = await self._db.fetchrow("SELECT * FROM agent WHERE mxid = $1", mxid)
        return None if row is None else _agent(row)

    async def by_portal(self, room_id: RoomID, reader: Reader | None = None) -> AgentRow | None:
        """The agent whose portal this room is."""
        row = await (reader or self._db).fetchrow("SELECT * FROM agent WHERE portal_room = $1", room_id)
        return None if row is None else _agent(row)

    async def in_room(self, room_id: RoomID, reader: Reader | None = None) -> list[AgentRow]:
        """The agents whose puppets have joined the room, in a stable order."""
        return (await self.ruled_in_room(room_id, reader))[0]

    async def ruled_in_room(self, room_id: RoomID, reader: Reader | None = None) -> tuple[list[AgentRow], bool]:
        """The same, and whether anything at all was given by ``permissions grant``: one statement for both."""
        rows = await (reader or self._db).fetch(
            "SELECT a.*, EXISTS (SELECT 1 FROM access) AS ruled FROM agent a JOIN member m ON m.user_id = a.mxid "
            "WHERE m.room_id = $1 AND m.membership = 'join' ORDER BY a.created_at, a.agent_id",
            room_id,
        )
        return [_agent(row) for row in rows], any(row["ruled"] for row in rows)

    async def add(self, agent_id: AgentID, mxid: MXID, device_id: str, name: str) -> None:
        """Write an agent down before anything is made for it; no effect when it is known."""
        await self._db.write(
            lambda conn: conn.execute(
                "INSERT INTO agent (agent_id, mxid, device_id, name, state, created_at) "
                f"VALUES ($1, $2, $3, $4, 'new', {self._db.now}) ON CONFLICT DO NOTHING",
                agent_id,
                mxid,
                device_id,
                clean(name),
            )
        )

    async def history_due(self, limit: int) -> list[AgentRow]:
        """Agents that can be talked to in their portals and whose older lines are still to be shown there."""
        rows = await self._db.fetch(
            "SELECT * FROM agent WHERE history = 'due' AND state = 'active' AND portal_joined = 1 "
            "ORDER BY created_at, agent_id LIMIT $1",
            limit,
        )
        return [_agent(row) for row in rows]

    async def update(self, agent_id: AgentID, **columns: Any) -> None:
        """Write columns of one agent in a commit of its own: a finished step is never repeated."""

        async def work(conn: Connection) -> None:
            await self.update_in(conn, agent_id, **columns)

        await self._db.write(work)

    async def remove(self, conn: Connection, agent_id: AgentID) -> None:
        """Forget an agent that never came into being. What was said to it stays in its tables."""
        await conn.execute("DELETE FROM agent WHERE agent_id = $1", agent_id)

    async def hold(self, conn: Connection, agent_id: AgentID) -> None:
        """Let everybody else who holds the agent wait until the transaction ends."""
        await conn.fetchval(f"SELECT 1 FROM agent WHERE agent_id = $1 {self._db.for_update}", agent_id)

    async def all_made(self, conn: Connection, agent_id: AgentID) -> None:
        """Nothing is wrong with it; if it still counts as new, it is active.

        Whoever writes this has read the row many requests ago, and it may have been despawned since.
        """
        await conn.execute(
            "UPDATE agent SET error = '', state = CASE WHEN state = 'new' THEN 'active' ELSE state END "
            "WHERE agent_id = $1",
            agent_id,
        )

    async def update_in(self, conn: Connection, agent_id: AgentID, **columns: Any) -> None:
        """The same within the caller's transaction."""
        assert columns.keys() <= _COLUMNS
        names = list(columns)
        values = [_stored(value) for value in columns.values()]
        assignments = ", ".join(f"{name} = ${index}" for index, name in enumerate(names, start=2))
        await conn.execute(f"UPDATE agent SET {assignments} WHERE agent_id = $1", agent_id, *values)


def _stored(value: Any) -> Any:
    if isinstance(value, tuple):
        return clean(json.dumps(value))
    if isinstance(value, bool):
        return int(value)
    return clean(value) if isinstance(value, str) else value


def _agent(row: Row) -> AgentRow:
    portal = row["portal_room"]
    return AgentRow(
        AgentID(row["agent_id"]),
        MXID(row["mxid"]),
        row["device_id"],
        row["name"],
        row["description"],
        row["avatar"],
        row["state"],
        bool(row["registered"]),
        row["shown_name"],
        bool(row["device_made"]),
        row["shown_avatar"],
        row["avatar_mxc"],
        None if portal is None else RoomID(portal),
        row["portal_name"],
        row["portal_topic"],
        bool(row["portal_joined"]),
        row["in_space"],
        row["error"],
        tuple(json.loads(row["tags"])),
        row["model"],
        row["owner"],
        row["origin"],
        row["missing_since"],
        bool(row["dismissed"]),
        row["portal_bridge"],
        row["history"],
    )
