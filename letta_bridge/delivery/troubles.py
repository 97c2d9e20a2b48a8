"""Telling people about trouble once, and about its end once."""

import logging

from .. import errors
from ..db.agents import Agents
from ..db.database import Connection
from ..db.memory import Told
from ..db.outbox import Outbox
from ..db.turns import TurnRow, Turns, agent_lane
from ..errors import Fate
from ..ids import MXID, AgentID, RoomID
from ..lanes import Fence, Lanes
from ..letta.errors import Kind
from .outgoing import ReplyTarget, Voice, notice

log = logging.getLogger(__name__)

_OF_THE_AGENT = tuple(
    kind for kind, trouble in errors.TROUBLES.items() if trouble.fate is Fate.WAIT and kind is not Kind.APPROVAL
)


class Troubles:
    """Notices of waiting agents: each room with a waiting message is told why, and later that it is over."""

    def __init__(self, turns: Turns, outbox: Outbox, told: Told, agents: Agents, lanes: Lanes) -> None:
        self._turns = turns
        self._outbox = outbox
        self._told = told
        self._agents = agents
        self._lanes = lanes

    async def tell_waiting(self, fence: Fence, agent_id: AgentID, kind: Kind, room_id: RoomID) -> None:
        """Tell every room that waits for this agent, if it was not told yet. ``room_id``: where the trouble showed."""
        agent = await self._agents.get(agent_id)
        rooms = await self._turns.waiting_rooms(agent_lane(agent_id))
        if kind is Kind.APPROVAL:  # it holds up its own conversation only
            rooms = [room for room in rooms if room.room_id == room_id]
        if agent is None or not rooms:
            return
        sentence = errors.TROUBLES[kind].sentence

        async def work(conn: Connection) -> list[RoomID]:
            told = []
            for room in rooms:
                if not await self._told.first_time(conn, _topic(agent_id, kind, room.room_id)):
                    continue
                target = ReplyTarget(room.thread_root, room.event_id, (room.sender,))
                voice = Voice(agent.mxid, room.room_id, agent_id)
                source = f"{room.event_id}|{agent_id}|{room.attempt}"
                await self._outbox.add(conn, notice(voice, sentence, target, source=source, kind=f"wait:{kind.value}"))
                await self._lanes.announce(conn, f"send:{room.room_id}")
                told.append(room.room_id)
            if told and kind is not Kind.APPROVAL:
                await self._told.first_time(conn, _mark(agent_id))
            return told

        for told_room in await self._lanes.write(fence, work):
            self._lanes.wake(f"send:{told_room}")

    async def over(self, conn: Connection, turn: TurnRow, puppet: MXID) -> list[RoomID]:
        """Within the commit that says the agent works again: tell the rooms that were told and still wait.

        Returns them. Costs two look-ups by key while nobody was told.
        """
        await self._told.untell(conn, _topic(turn.agent_id, Kind.APPROVAL, turn.room_id))
        if not await self._told.untell(conn, _mark(turn.agent_id)):
            return []
        waiting = await self._turns.open_rooms(conn, agent_lane(turn.agent_id))
        rooms = []
        for kind in _OF_THE_AGENT:
            for room in await self._told.untell_all(conn, _topic(turn.agent_id, kind, RoomID(""))):
                if (recovery := errors.TROUBLES[kind].recovery) and room in waiting:
                    voice = Voice(puppet, RoomID(room), turn.agent_id)
                    source = f"{turn.source}|{room}|{turn.attempt}"
                    out = notice(voice, recovery, ReplyTarget(), source=source, kind=f"over:{kind.value}")
                    await self._outbox.add(conn, out)
                    await self._lanes.announce(conn, f"send:{room}")
                    rooms.append(RoomID(room))
        return rooms

    async def ended(self, conn: Connection, agent_id: AgentID, room_id: RoomID) -> None:
        """In the commit that ends a wait without an answer: a room that waits no more is told of the next trouble."""
        if room_id in await self._turns.open_rooms(conn, agent_lane(agent_id)):
            return
        for kind in (*_OF_THE_AGENT, Kind.APPROVAL):
            await self._told.untell(conn, _topic(agent_id, kind, room_id))


def _topic(agent_id: AgentID, kind: Kind, room_id: RoomID) -> str:
    return f"wait:{agent_id}:{kind.value}:{room_id}"


def _mark(agent_id: AgentID) -> str:
    """Stands while any room was told of a trouble that holds up the whole agent."""
    return f"waits:{agent_id}"
