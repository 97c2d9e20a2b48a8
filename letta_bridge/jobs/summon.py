"""``summon``: a new agent in Letta, with its user, picture, room, place in the space and invitations.

What Matrix cannot delete is left behind unseen when the job is taken back: the user without a name and in no room, the
room without an alias and members.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..commands.desk import Desk
from ..commands.show import portal_link, user_link
from ..config.kinds import Template
from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.jobs import JobRow
from ..ids import MXID, PREFIX, AgentID, RoomID
from ..letta.backend import CREATION_KEY, Agent, NewAgent
from ..matrix.homeserver import HomeserverError
from ..routing import rights
from ..routing.permissions import Level
from .steps import ANOTHER_LETTA, JobError, JobKind, NotYetError, Step, Work

KIND = "summon"
TRAITS = f"{PREFIX}.traits"
"""Metadata of an agent: the numbers from which lines of its persona were written."""

_FEATURES = ((0.2, "very low"), (0.4, "low"), (0.6, "medium"), (0.8, "high"))


def new_agent(args: Mapping[str, Any]) -> NewAgent:
    """What is created in Letta for a job's arguments."""
    traits = args["traits"]
    return NewAgent(
        name=args["name"],
        persona=args["persona"],
        human=args["human"],
        description=args["description"],
        tags=tuple(args["tags"]),
        model=args["model"] or None,
        metadata={TRAITS: traits} if traits else {},
    )


def persona_with(template: Template) -> str:
    """The persona of a template, its traits as lines that a model reads as they are meant."""
    if not template.traits:
        return template.persona
    lines = [f"- {name}: {_degree(number)} ({number:g} of 1)" for name, number in template.traits.items()]
    return "\n".join([*([template.persona, ""] if template.persona else []), "My personality:", *lines])


def _degree(number: float) -> str:
    return next((word for limit, word in _FEATURES if number < limit), "very high")


# -- forward


async def _create(work: Work) -> Any:
    await _our_letta(work)
    agent = await work.desk.backend.create_agent(new_agent(work.args), key=work.job.key)
    owner, staged = work.args["owner"], work.desk.directory.staged
    await staged.write_down(work.fence, agent, origin="summoned", owner=owner)
    return {"agent_id": agent.id}


async def _puppet(work: Work) -> Any:
    return {"user": (await work.desk.directory.staged.puppet(work.fence, _agent_id(work))).mxid}


async def _picture(work: Work) -> Any:
    row = await work.desk.directory.staged.picture(work.fence, _agent_id(work))
    return {"shown": row.shown_avatar is not None}


async def _room(work: Work) -> Any:
    return {"room": (await work.desk.directory.staged.room(work.fence, _agent_id(work))).portal_room}


async def _place(work: Work) -> Any:
    row = await work.desk.directory.staged.place(work.fence, _agent_id(work))
    return {"space": row.in_space}


async def _invite(work: Work) -> Any:
    """What is left of the room, and the invitations. Whoever cannot be invited is named at the end."""
    desk = work.desk
    row = await desk.directory.staged.rest(work.fence, _agent_id(work))
    assert row.portal_room is not None
    failed = {}
    for person in work.args["invite"]:
        if refused := await invite(work, row.portal_room, MXID(person)):
            failed[person] = refused
    return {"failed": failed}


async def _join(work: Work) -> Any:
    """Into the room that was asked for. Not being let in there is no reason to take the agent back."""
    row = await _row(work)
    room_id = RoomID(work.args["room"])
    refused = await bring_in(work, room_id, row)
    return {"refused": refused}


async def bring_in(work: Work, room_id: RoomID, agent: AgentRow) -> str:
    """Let the agent's user join a room, invited by the bot if need be; why not, where it is not let in.

    Raises:
        HomeserverError: not now.
    """
    desk = work.desk
    puppet = desk.homeserver.intent(agent.mxid, agent.device_id if agent.device_made else None)
    try:
        await puppet.join(room_id)
    except HomeserverError as error:
        if error.passing or error.unknown_device:
            raise
        try:
            await desk.homeserver.bot.invite(room_id, agent.mxid)
            await puppet.join(room_id)
        except HomeserverError as refused:
            if refused.passing or refused.unknown_device:
                raise
            return str(refused)
    await desk.lanes.write(work.fence, lambda conn: desk.rooms.set_membership(conn, room_id, agent.mxid, "join"))
    return ""


async def invite(work: Work, room_id: RoomID, person: MXID) -> str:
    """Invite somebody once, whatever they do then; why not, where they cannot be invited.

    Raises:
        HomeserverError: not now.
    """
    desk = work.desk
    if person in await desk.rooms.invited_once(room_id):
        return ""
    try:
        await desk.homeserver.bot.invite(room_id, person)
    except HomeserverError as error:
        if error.passing or error.unknown_device:
            raise
        return str(error)
    await desk.lanes.write(work.fence, lambda conn: desk.rooms.note_invited(conn, room_id, [person]))
    return ""


# -- back


async def _delete(work: Work) -> None:
    """Delete what this very job created, and its row."""
    desk = work.desk
    await _our_letta(work)
    agent_id = await _created(work)
    if agent_id is None:
        return
    await desk.directory.staged.withdraw(work.fence, agent_id)
    await desk.backend.delete_agent(agent_id)

    async def forget(conn: Connection) -> None:
        await desk.agents.remove(conn, agent_id)

    await desk.lanes.write(work.fence, forget)


async def _our_letta(work: Work) -> None:
    """Another one would get the agent, or say that there is none to be deleted."""
    if not await work.desk.directory.our_letta():
        raise NotYetError(ANOTHER_LETTA)


async def _created(work: Work) -> AgentID | None:
    """The agent of this job. Where the creation itself failed, it may be there all the same."""
    if made := work.done.get("agent"):
        return AgentID(made["agent_id"])
    listing = await work.desk.backend.list_agents()
    mine = [agent.id for agent in listing.agents if _key_of(agent) == work.job.key]
    if not mine and not listing.complete:
        raise NotYetError("the list of agents could not be read to its end")
    return mine[0] if mine else None


async def _withdraw(work: Work) -> None:
    if work.done.get("agent"):
        await work.desk.directory.staged.withdraw(work.fence, _agent_id(work))


async def _close_room(work: Work) -> None:
    await work.desk.directory.staged.close_room(work.fence, _agent_id(work))


async def _unplace(work: Work) -> None:
    await work.desk.directory.staged.unplace(work.fence, _agent_id(work))


async def _leave(work: Work) -> None:
    row = await work.desk.agents.get(_agent_id(work))
    if row is not None:
        await work.desk.homeserver.intent(row.mxid).leave(RoomID(work.args["room"]))


def _agent_id(work: Work) -> AgentID:
    return AgentID(work.done["agent"]["agent_id"])


def _key_of(agent: Agent) -> object:
    return agent.metadata.get(CREATION_KEY)


async def _row(work: Work) -> AgentRow:
    row = await work.desk.agents.get(_agent_id(work))
    if row is None:
        raise JobError("the agent is not known any more")
    return row


# -- the kind

_STEPS = (
    Step("agent", "the agent in Letta", _create, _delete),
    Step("puppet", "its Matrix user, with a name", _puppet, _withdraw),
    Step("picture", "its picture", _picture),
    Step("room", "its room", _room, _close_room),
    Step("place", "the room's place in the space", _place, _unplace),
    Step("invite", "invitations", _invite),
)
_JOIN = Step("join", "the other room", _join, _leave)


def _steps(job: JobRow) -> Sequence[Step]:
    return (*_STEPS, _JOIN) if job.args["room"] else _STEPS


def _title(job: JobRow) -> str:
    return f"Summoning {job.args['shown']}"


async def _ending(desk: Desk, job: JobRow) -> str:
    row = await desk.agents.get(AgentID(job.done["agent"]["agent_id"]))
    if row is None:
        return ""
    said = [f"{user_link(row)} is there: {portal_link(row, 'open its room')}."]
    said += job.args["notes"]
    if not row.in_space:
        said.append("Its room is not in the space yet; the bridge puts it there as soon as it can.")
    for person, why in job.done["invite"]["failed"].items():
        said.append(f"{person} could not be invited ({why}).")
    if owner := row.owner:
        said += _about_owner(desk, owner)
    if job.args["room"] and (why := job.done["join"]["refused"]):
        said.append(
            f"It could not join the other room ({why}): the bot may not invite there. Invite {row.mxid} to it yourself."
        )
    return "\n\n".join(said)


def _about_owner(desk: Desk, owner: str) -> list[str]:
    grant = desk.permissions.grant(owner)
    if grant.level >= Level.USER or not rights.settled(grant):  # owners may always use what is theirs
        return []
    return [f"Its owner may not talk to it: {grant}."]


SUMMON = JobKind(KIND, _title, _steps, _ending)
