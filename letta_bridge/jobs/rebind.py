"""``rebind``: an agent that was made anew in Letta gets the user, the room, the chats and the rights of the old one.

The new agent's own user and room, where the mirror has made them already, are retired: the room stays readable, says
where to go on, and is shown as archived.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..commands.desk import Desk
from ..db.agents import AgentRow
from ..db.database import Connection, clean
from ..db.jobs import JobRow
from ..db.rebinding import Move, Rebinding
from ..db.turns import agent_lane
from ..delivery.outgoing import ReplyTarget, Voice, notice
from ..ids import MXID, AgentID, RoomID
from ..letta.errors import Kind, LettaError
from ..matrix.homeserver import HomeserverError
from ..mirror.directory import LANE
from ..mirror.maker import PORTAL_STATE
from ..mirror.target import BRIDGE_STATE, bridge_key, portal_content
from .steps import ANOTHER_LETTA, JobError, JobKind, NotYetError, Step, Work

log = logging.getLogger(__name__)

MOVED = "This room was {name}’s for a short time. It goes on in {link}, where everything that was said before stands."


def _move(job: JobRow) -> Move:
    args = job.args
    return Move(
        AgentID(args["old"]), AgentID(args["new"]), MXID(args["mxid"]), AgentID(f"{args['new']}#retired-{job.job_id}")
    )


async def _row(desk: Desk, agent_id: AgentID) -> AgentRow:
    row = await desk.agents.get(agent_id)
    if row is None:
        raise JobError("the agent is not known to the bridge any more")
    return row


async def _look(work: Work) -> Mapping[str, Any]:
    """Ask Letta for the new agent: what it is called may have changed, and it has to be there."""
    move = _move(work.job)
    try:
        agent = await work.desk.backend.get_agent(move.new)
    except LettaError as error:
        if error.kind is Kind.AGENT_GONE:
            raise JobError("the new agent does not exist in Letta any more") from None
        raise
    if not await work.desk.directory.our_letta():
        raise NotYetError(ANOTHER_LETTA)
    return {"name": clean(agent.name), "description": clean(agent.description), "model": clean(agent.model)}


async def _make(work: Work) -> Mapping[str, Any]:
    """The one commit after which the new agent is the old one's successor."""
    desk, move = work.desk, _move(work.job)
    rebinding = Rebinding(desk.db)
    own = await desk.agents.get(move.new)
    making = own is not None and own.mxid != move.mxid and own.state in ("new", "active") and not own.error
    if own is not None and making and not desk.directory.settled(own):
        desk.lanes.wake(LANE)
        raise NotYetError("the new agent's own room is just being made")

    async def commit(conn: Connection) -> None:
        holder = await rebinding.holder(conn, move.mxid)
        if holder == move.new:  # it was done before a crash
            return
        if holder != move.old:
            raise JobError("the old agent is not known to the bridge any more")
        if await rebinding.busy(conn, move):
            raise NotYetError("an answer is still being written")
        former = await rebinding.make(conn, move)
        await desk.agents.update_in(conn, move.new, **work.done["look"])
        portal = await conn.fetchval("SELECT portal_room FROM agent WHERE agent_id = $1", move.new)
        if former is not None:
            await desk.past_rooms.add(conn, former, move.new, "rebind")
            if portal:
                await desk.past_rooms.point(conn, move.new, RoomID(portal))
        await desk.lanes.announce(conn, agent_lane(move.new))

    first, second = sorted((move.new, move.old))
    async with desk.directory.lock(first), desk.directory.lock(second):
        await desk.lanes.write(work.fence, commit)
    desk.lanes.wake(agent_lane(move.new))
    return {}


async def _tell_rooms(work: Work) -> None:
    """The rooms' own state names whose they are, so that the database could be made again from them."""
    desk, move = work.desk, _move(work.job)
    bot = desk.homeserver.bot
    row, former = await _row(desk, move.new), await desk.agents.get(move.retired)
    told: list[tuple[RoomID | None, str, str, dict[str, Any]]] = [
        (row.portal_room, PORTAL_STATE, "", portal_content(row)),
        (row.portal_room, BRIDGE_STATE, _old_bridge_key(row, move.old), {}),
    ]
    if former is not None:
        told += [
            (former.portal_room, PORTAL_STATE, "", {**portal_content(former), "replaced_by": row.portal_room or ""}),
            (former.portal_room, BRIDGE_STATE, bridge_key(row), {}),
        ]
    for room_id, kind, key, content in told:
        if room_id is None:
            continue
        try:
            await bot.set_state(room_id, kind, key, content)
        except HomeserverError as error:
            if error.passing or error.unknown_device:
                raise
            # the database says it too; the mirror repairs rooms in which the bot has lost its power
            log.warning("a room could not be told whose it is", extra={"action": "rebind_untold", "why": str(error)})


def _old_bridge_key(row: AgentRow, old: AgentID) -> str:
    return bridge_key(replace(row, agent_id=old))


async def _tell_people(work: Work) -> None:
    """One notice in the room that the new agent had for a while."""
    desk, move = work.desk, _move(work.job)
    row, former = await _row(desk, move.new), await desk.agents.get(move.retired)
    if former is None or former.portal_room is None or row.portal_room is None:
        return
    room_id = former.portal_room
    link = f"https://matrix.to/#/{row.portal_room}?via={desk.homeserver.domain}"
    voice = Voice(desk.homeserver.bot_mxid, room_id)
    text = MOVED.format(name=work.args["shown"], link=link)
    out = notice(voice, text, ReplyTarget(), source=work.job.key, kind="rebound")

    async def commit(conn: Connection) -> None:
        await desk.outbox.add(conn, out)
        await desk.lanes.announce(conn, f"send:{room_id}")

    await desk.lanes.write(work.fence, commit)
    desk.lanes.wake(f"send:{room_id}")


async def _show(work: Work) -> None:
    """Name, picture and topic follow now; what is left follows with the next pass."""
    desk, move = work.desk, _move(work.job)
    await desk.directory.staged.rest(work.fence, move.new)
    desk.lanes.wake(LANE)


async def _ending(desk: Desk, job: JobRow) -> str:
    row = await desk.agents.get(AgentID(job.args["new"]))
    if row is None or row.portal_room is None:
        return f"{job.args['shown']} has the place of the old agent now."
    link = f"https://matrix.to/#/{row.portal_room}?via={desk.homeserver.domain}"
    return f"{job.args['shown']} has the place of the old agent now: [its room]({link})."


_STEPS = (
    Step("look", "the new agent is there in Letta", _look),
    Step("make", "user, room, chats, waiting messages and rights are the new agent's", _make, stays=True),
    Step("rooms", "the rooms say whose they are", _tell_rooms, stays=True),
    Step("people", "the room it had until now points to this one", _tell_people, stays=True),
    Step("show", "name and picture are the new agent's", _show, stays=True),
)

REBIND = JobKind("rebind", lambda job: f"Rebinding {job.args['shown']}", lambda job: _STEPS, _ending)
