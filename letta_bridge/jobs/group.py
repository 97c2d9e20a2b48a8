"""``room create``: a room with several agents, made by the bot for the person who asked.

A room can be created twice by accident, an alias cannot: the room is made under an alias of its job, and found again by
it. The alias stays, because links to a room need a name that says which server to ask.
"""

import hashlib
import time
from typing import Any

from ..commands.desk import Desk
from ..commands.show import count
from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.jobs import JobRow
from ..ids import MXID, PREFIX, AgentID, RoomID
from ..letta.errors import Kind, LettaError
from ..matrix.homeserver import HomeserverError
from ..mirror.maker import RoomExistsError, RoomMaker, State, find
from .steps import JobError, JobKind, Step, Work
from .summon import bring_in, invite

ROOM_STATE = f"{PREFIX}.room"
"""State event of a room that a command made: by which job."""


def alias_localpart(desk: Desk, key: str) -> str:
    """Of the alias under which a job makes its room. No agent has it: what follows the prefix is no UUID, nor a dot."""
    digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:16]
    return f"{desk.config.appservice.puppet_prefix}room_{digest}"


def _alias(desk: Desk, key: str) -> str:
    return f"#{alias_localpart(desk, key)}:{desk.homeserver.domain}"


async def _make(work: Work) -> Any:
    desk, job = work.desk, work.job
    maker = RoomMaker(desk.homeserver, desk.config.mirror.room_version, time.monotonic)
    people = {MXID(work.args["for"]): 100} if work.args["for"] else {}
    body = {
        "preset": "private_chat",
        "room_alias_name": alias_localpart(desk, job.key),
        "name": work.args["name"],
        "initial_state": [
            {"type": ROOM_STATE, "state_key": "", "content": {"version": 1, "job": _alias(desk, job.key)}},
            {"type": "m.room.guest_access", "state_key": "", "content": {"guest_access": "forbidden"}},
        ],
        "power_level_content_override": await maker.power(people),
    }

    def ours(state: State) -> bool:
        return find(state, ROOM_STATE).get("job") == _alias(desk, job.key)

    try:
        room_id, _ = await maker.make(body, [], [])
    except RoomExistsError:
        room_id, _ = await maker.existing(_alias(desk, job.key), ours)

    async def note(conn: Connection) -> None:
        await desk.rooms.mark_known(conn, room_id)
        await desk.rooms.set_membership(conn, room_id, desk.homeserver.bot_mxid, "join")

    await desk.lanes.write(work.fence, note)
    return {"room": room_id}


async def _agents(work: Work) -> Any:
    refused = {}
    for agent_id in work.args["agents"]:
        row = await _ready(work, AgentID(agent_id))
        if why := await bring_in(work, RoomID(work.done["room"]["room"]), row):
            refused[row.mxid] = why
    return {"refused": refused}


async def _ready(work: Work, agent_id: AgentID) -> AgentRow:
    known = await work.desk.agents.get(agent_id)
    try:
        row = known and await work.desk.directory.resolve(known.mxid)
    except LettaError as error:
        if error.kind is not Kind.AGENT_GONE:
            raise
        row = None
    if row is None:
        raise JobError(f"the agent {agent_id} does not exist any more")
    return row


async def _people(work: Work) -> Any:
    failed = {}
    for person in work.args["invite"]:
        if why := await invite(work, RoomID(work.done["room"]["room"]), MXID(person)):
            failed[person] = why
    return {"failed": failed}


async def _close(work: Work) -> None:
    """The alias leads nowhere again, and everybody is out."""
    desk = work.desk
    alias, bot = _alias(desk, work.job.key), desk.homeserver.bot
    room_id = (work.done.get("room") or {}).get("room") or await bot.resolve_alias(alias)
    if room_id is None:
        return
    room_id = RoomID(room_id)
    try:
        members = await bot.joined_members(room_id)
    except HomeserverError as error:
        if error.passing:
            raise
        members = []
    if bot.mxid in members and not await _is_ours(work, room_id):
        return
    if bot.mxid in members:
        for mxid in [*work.args["invite"], *members]:
            if mxid != bot.mxid and not desk.directory.is_ours(MXID(mxid)):
                await bot.kick(room_id, MXID(mxid), "The room could not be finished.")
    for mxid in members:
        if desk.directory.is_ours(mxid) and mxid != bot.mxid:
            await desk.homeserver.intent(mxid).leave(room_id)
    await bot.delete_alias(alias)
    await bot.leave(room_id)


async def _is_ours(work: Work, room_id: RoomID) -> bool:
    """Whether this very job has made the room: nobody is put out of another one, whatever the alias says."""
    mark = await work.desk.homeserver.bot.get_state(room_id, ROOM_STATE)
    return mark is not None and mark.get("job") == _alias(work.desk, work.job.key)


async def _ending(desk: Desk, job: JobRow) -> str:
    alias = _alias(desk, job.key)
    said = [f"[Open the room](https://matrix.to/#/{alias.replace('#', '%23')})"]
    agents = len(job.args["agents"]) - len(job.done["agents"]["refused"])
    said[0] += f" with {count(agents, 'agent')}." if job.args["agents"] else ". Invite agents like anybody else."
    said += [f"{mxid} could not join ({why})." for mxid, why in job.done["agents"]["refused"].items()]
    said += [f"{mxid} could not be invited ({why})." for mxid, why in job.done["people"]["failed"].items()]
    return "\n\n".join(said)


ROOM = JobKind(
    "room",
    lambda job: f"Making the room {job.args['shown']}",
    lambda _: (
        Step("room", "the room", _make, _close),
        Step("agents", "its agents", _agents),
        Step("people", "invitations", _people),
    ),
    _ending,
)
