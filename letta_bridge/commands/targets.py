"""What a command is about that takes an agent as well as a room."""

from dataclasses import dataclass, field

from ..db.agents import AgentRow
from ..ids import RoomID
from ..routing import rights
from . import allow, lookup
from .call import Call
from .parse import linked
from .show import name_of
from .table import CommandError

HERE = "here"


@dataclass(frozen=True, slots=True)
class Target:
    """An agent or a room. ``shown`` is what people read of it."""

    subject: str
    shown: str
    agent: AgentRow | None = None
    room_id: RoomID = field(default=RoomID(""))

    async def refused(self, call: Call, doing: str) -> str | None:
        """None when who asks may do what owners of the agent, or administrators of the room, may."""
        if self.agent is not None:
            return await allow.refused_agent(call.desk, call.who, call.level, self.agent, doing)
        return await allow.refused_room(call.desk, call.who, call.level, self.room_id, doing)

    async def demand(self, call: Call) -> None:
        """Go on only when who asks may.

        Raises:
            CommandError: they may not; says why and what would allow it.
        """
        if refused := await self.refused(call, call.command.name):
            raise CommandError(refused)


async def target(call: Call, text: str) -> Target:
    """A room by id, alias, or ``here``; anything else is an agent.

    Raises:
        CommandError: there is none, or there are several.
        HomeserverError: the alias could not be looked up.
    """
    text = linked(text.strip()) or text.strip()
    if text.startswith("#"):  # an agent's own alias means its room, as it does everywhere in Matrix
        return of_room(await lookup.room(call.desk, text, call.room_id))
    if text.startswith("!") or text.casefold() == HERE:
        return of_room(await lookup.room(call.desk, text, call.room_id), here=text.casefold() == HERE)
    agent = await lookup.agent(call.desk, text, call.room_id, call.who)
    return Target(rights.of_agent(agent.agent_id), name_of(agent), agent)


async def handle(call: Call, where: Target) -> str:
    """What leads to the same target wherever it is typed, as people would type it: an agent's name where that is
    enough, else an id.
    """
    if where.agent is None:
        return where.room_id
    return lookup.handle(await call.desk.agents.all(), where.agent)


def of_room(room_id: RoomID, *, here: bool = False) -> Target:
    """A room as what a command is about."""
    return Target(rights.of_room(room_id), "this room" if here else f"the room `{room_id}`", room_id=room_id)
