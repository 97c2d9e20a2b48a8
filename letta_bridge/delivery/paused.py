"""What rooms with waiting messages are told when their agent does not work because of a pause."""

from .. import errors
from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.memory import Told
from ..db.pauses import EVERYTHING, Pause, Pauses
from ..db.turns import WaitingRoom, agent_lane
from ..ids import AgentID, RoomID
from ..lanes import Fence
from ..routing import rights
from .context import TurnContext
from .outgoing import ReplyTarget, Voice, notice


def told_prefix(subject: str) -> str:
    """How the notes begin that rooms were told of a pause; whoever ends it forgets them."""
    return f"paused:{subject}|"


class PauseNotices:
    """Tells each room once for each pause."""

    def __init__(self, context: TurnContext) -> None:
        self._c = context
        self._pauses = Pauses(context.db)
        self._told = Told(context.db)

    async def tell(self, fence: Fence, agent_id: AgentID) -> None:
        """Tell every room that waits for this agent and is held up by a pause, if it was not told yet."""
        lane = agent_lane(agent_id)
        agent = await self._c.agents.get(agent_id)
        held = await self._c.turns.paused_rooms(lane)
        pauses = {pause.subject: pause for pause in await self._pauses.all()}
        waiting = [room for room in await self._c.turns.waiting_rooms(lane) if room.room_id in held]
        if agent is None or not waiting:
            return

        async def work(conn: Connection) -> list[RoomID]:
            told = []
            for room in waiting:
                pause = _of(pauses, agent_id, room.room_id)
                if pause is not None and await self._say(conn, agent, room, pause):
                    told.append(room.room_id)
            return told

        for room_id in await self._c.lanes.write(fence, work):
            self._c.lanes.wake(f"send:{room_id}")

    async def _say(self, conn: Connection, agent: AgentRow, room: WaitingRoom, pause: Pause) -> bool:
        topic = f"{told_prefix(pause.subject)}{agent.agent_id}|{room.room_id}"
        if not await self._told.first_time(conn, topic):
            return False
        target = ReplyTarget(room.thread_root, room.event_id, (room.sender,))
        source = f"{room.event_id}|{agent.agent_id}"
        text = errors.paused(pause.subject, by_owner=pause.by == agent.owner, reason=pause.reason)
        voice = Voice(agent.mxid, room.room_id, agent.agent_id)
        await self._c.outbox.add(conn, notice(voice, text, target, source=source, kind=f"paused:{pause.subject}"))
        await self._c.lanes.announce(conn, f"send:{room.room_id}")
        return True


def _of(pauses: dict[str, Pause], agent_id: AgentID, room_id: RoomID) -> Pause | None:
    """The widest pause that holds up this agent in this room."""
    subjects = (EVERYTHING, rights.of_agent(agent_id), rights.of_room(room_id))
    return next((pauses[subject] for subject in subjects if subject in pauses), None)
