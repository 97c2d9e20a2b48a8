"""Rooms that claim to be an agent's portal and are not: reported, never used, never touched."""

from collections.abc import Mapping

from ..db.agents import AgentRow, Agents
from ..db.past_rooms import PastRooms
from ..db.rooms import Rooms
from ..ids import AgentID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from .maker import portal_agent


class Orphans:
    """Looks once per process at each room the bot is in that the mirror does not know.

    Such a room comes about when a homeserver died between creating a room and giving it its alias.
    """

    def __init__(self, homeserver: Homeserver, agents: Agents, rooms: Rooms, past: PastRooms) -> None:
        self._homeserver = homeserver
        self._agents = agents
        self._rooms = rooms
        self._past = past
        self._seen: set[RoomID] = set()

    async def look(self, space: RoomID | None) -> list[tuple[AgentRow, RoomID]]:
        """Agents with a second room, and that room."""
        unseen = set(await self._rooms.rooms_of(self._homeserver.bot_mxid)) - self._seen - {space}
        if not unseen:
            return []
        rows = {row.agent_id: row for row in await self._agents.all()}
        portals = {row.portal_room for row in rows.values() if row.portal_room} | await self._past.ids()
        self._seen |= unseen & portals
        found: list[tuple[AgentRow, RoomID]] = []
        for room_id in sorted(unseen - portals):
            row = await self._claims(room_id, rows)
            if row is not None and row.portal_room is not None:
                found.append((row, room_id))
        return found

    async def _claims(self, room_id: RoomID, rows: Mapping[AgentID, AgentRow]) -> AgentRow | None:
        """The agent whose portal the room says it is. Looked at again while that is unknown, or about to be adopted: of
        an agent that Letta does not list it is adopted when the agent is back, and that finds it by itself.
        """
        try:
            state = await self._homeserver.bot.state(room_id)
        except HomeserverError as error:
            if not error.passing:
                self._seen.add(room_id)
            return None
        agent_id = portal_agent(state, self._homeserver.bot_mxid)
        row = rows.get(agent_id) if agent_id else None
        if row is None or row.portal_room is not None or row.state in ("missing", "archived"):
            self._seen.add(room_id)
        return row
