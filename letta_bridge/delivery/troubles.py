"""Telling people about trouble once, and about its end once."""

import logging

from .. import errors
from ..db.agents import Agents
from ..db.database import Connection
from ..db.memory import Told
from ..db.outbox import Outbox
from ..db.turns import TurnRow, Turns, agent_lane
from ..ids import MXID, AgentID, RoomID
from ..letta.errors import Kind
from .lanes import Fence, Lanes
from .outgoing import ReplyTarget, Voice, notice

log = logging.getLogger(__name__)


class Troubles:
    """Notices of waiting agents: each room with a waiting message is told why, and later that it is over."""

    def __init__(self, turns: Turns, outbox: Outbox, told: Told, agents: Agents, lanes: Lanes) -> None:
        self._turns = turns
        self._outbox = outbox
        self._told = told
        self._agents = agents
        self._lanes = lanes

    async def tell_waiting(self, fence: Fence, agent_id: AgentID, kind: Kind) -> None:
        """Tell every room that waits for this agent, if it was not told yet."""
        agent = await self._agents.get(agent_id)
        rooms = await self._turns.waiting_rooms(agent_lane(agent_id))
        if agent is None or not rooms:
            return
        sentence = errors.TROUBLES[kind].sentence

        async def work(conn: Connection) -> list[RoomID]:
            told = []
            for room_id, event_id, sender, thread in rooms:
                if not await self._told.first_time(conn, f"wait:{agent_id}:{kind.value}:{room_id}"):
                    continue
                target = ReplyTarget(thread, event_id, (sender,))
                voice = Voice(agent.mxid, room_id, agent_id)
                out = notice(voice, sentence, target, source=f"{event_id}|{agent_id}", kind=f"wait:{kind.value}")
                await self._outbox.add(conn, out)
                told.append(room_id)
            return told

        for room_id in await self._lanes.write(fence, work):
            self._lanes.wake(f"send:{room_id}")

    async def over(self, conn: Connection, turn: TurnRow, puppet: MXID) -> list[RoomID]:
        """Within the commit that says the agent works again: tell the rooms that were told; returns them."""
        topics = await self._told.untell_all(conn, f"wait:{turn.agent_id}:")
        rooms = []
        for topic in topics:
            kind, _, room = topic.partition(":")
            if recovery := errors.TROUBLES[Kind(kind)].recovery:
                voice = Voice(puppet, RoomID(room), turn.agent_id)
                out = notice(voice, recovery, ReplyTarget(), source=f"{turn.source}|{room}", kind=f"over:{kind}")
                await self._outbox.add(conn, out)
                rooms.append(RoomID(room))
        return rooms
