"""Direct chats that the bridge opens: one per person and agent."""

from typing import Any

from ..db.agents import AgentRow
from ..db.database import Connection
from ..ids import MXID, PREFIX, RoomID
from .desk import Desk

STATE = f"{PREFIX}.direct"
"""State event of such a room: ``{"with": <person>}``. By it the room is found if we ended before we had noted it."""
_BEGUN = "?"


async def open_direct(desk: Desk, agent: AgentRow, who: MXID) -> tuple[RoomID, bool]:
    """The direct chat of a person and an agent, and whether it was made now. One that was left is not used again.

    Raises:
        HomeserverError: it could not be made, or nothing can be said of the one that there was.
    """
    name = f"direct:{agent.agent_id}:{who}"
    known = await desk.settings.get(name)
    if known == _BEGUN:
        known = await _find(desk, agent, who)
    if known and await _both_in(desk, agent, RoomID(known), who):
        await desk.settings.set(name, known)
        return RoomID(known), False
    await desk.settings.set(name, _BEGUN)
    room_id = await desk.homeserver.intent(agent.mxid).create_room(_body(who))

    async def work(conn: Connection) -> None:
        await desk.rooms.set_membership(conn, room_id, agent.mxid, "join")
        await desk.rooms.set_membership(conn, room_id, who, "invite")

    await desk.db.write(work)
    await desk.settings.set(name, room_id)
    return room_id, True


def _body(who: MXID) -> dict[str, Any]:
    return {
        "preset": "trusted_private_chat",
        "visibility": "private",
        "is_direct": True,
        "invite": [who],
        "initial_state": [{"type": STATE, "state_key": "", "content": {"with": who}}],
    }


async def _find(desk: Desk, agent: AgentRow, who: MXID) -> RoomID | None:
    """The room that was being made when we ended."""
    intent = desk.homeserver.intent(agent.mxid)
    for room_id in await intent.joined_rooms():
        marked = await intent.get_state(room_id, STATE)
        if marked is not None and marked.get("with") == who and await _both_in(desk, agent, room_id, who):
            return room_id
    return None


async def _both_in(desk: Desk, agent: AgentRow, room_id: RoomID, who: MXID) -> bool:
    """Whether the agent is in the room and the person is, or is still invited. Asked of the homeserver."""
    intent = desk.homeserver.intent(agent.mxid)
    if await desk.rooms.membership(room_id, agent.mxid) != "join" and room_id not in await intent.joined_rooms():
        return False
    return await intent.membership(room_id, who) in ("join", "invite")
