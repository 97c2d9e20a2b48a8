"""``despawn`` and ``recall``: an agent leaves Matrix, in Letta it stays, unless that is asked for.

The row and the room are kept: the mirror shows that the room is archived, and the agent can be recalled to it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from ..commands.desk import Desk
from ..commands.show import portal_link, user_link
from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.jobs import JobRow
from ..db.stops import Stops
from ..db.turns import agent_lane
from ..delivery.outgoing import ReplyTarget, Voice, notice
from ..ids import AgentID
from ..letta.errors import Kind, LettaError
from .steps import ANOTHER_LETTA, JobError, JobKind, NotYetError, Step, Work

_LOOK, _LOOKS = 0.1, 100
"""Seconds between two looks at a run that was told to stop, and how often: usually it has ended by then."""

GONE = "this agent does not exist in Letta any more"


async def _row(work: Work) -> AgentRow:
    row = await work.desk.agents.get(_agent_id(work.job))
    if row is None:
        raise JobError("the agent is not known any more")
    return row


def _agent_id(job: JobRow) -> AgentID:
    return AgentID(job.args["agent_id"])


# -- despawn


async def _dismiss(work: Work) -> Any:
    """From now on no message is taken for it. What waits is told so, what runs is stopped."""
    desk, row = work.desk, await _row(work)
    stops = Stops(desk.db, desk.turns)

    async def commit(conn: Connection) -> tuple[int, list[str], list[int]]:
        waiting, running = await stops.everything(conn, row.agent_id, work.job.asked_by)
        lanes = []
        for number, (room_id, thread, count) in enumerate(waiting):
            voice, source = Voice(row.mxid, room_id, row.agent_id), f"{work.job.key}|{number}"
            words = _not_delivered(count)
            await desk.outbox.add(conn, notice(voice, words, ReplyTarget(thread), source=source, kind="despawned"))
            lanes.append(f"send:{room_id}")
        if lanes:  # what is shown of an answer gets its end
            lanes.append(agent_lane(row.agent_id))
        for turn_id in running:
            await desk.lanes.announce(conn, f"!stop {turn_id}")
        for lane in lanes:
            await desk.lanes.announce(conn, lane)
        await desk.agents.update_in(conn, row.agent_id, dismissed=True, state="archived")
        return len(waiting), lanes, list(running)

    withdrawn, lanes, running = await desk.lanes.write(work.fence, commit)
    for lane in lanes:
        desk.lanes.wake(lane)
    for turn_id in running:
        desk.lanes.signal("stop", str(turn_id))
    return {"before": work.args["before"], "withdrawn": withdrawn, "stopped": len(running)}


def _not_delivered(count: int) -> str:
    what = "Your message was" if count == 1 else f"{count} messages that waited for me were"
    return f"I was dismissed by an administrator or my owner. {what} not delivered, and I do not answer any more."


async def _undismiss(work: Work) -> None:
    row = await work.desk.agents.get(_agent_id(work.job))
    if row is None or not row.dismissed or work.args.get("dismissed"):  # it was despawned before this job began
        return
    await work.desk.lanes.write(
        work.fence,
        lambda conn: work.desk.agents.update_in(conn, row.agent_id, dismissed=False, state=work.args["before"]),
    )
    await work.desk.directory.staged.rest(work.fence, row.agent_id)


async def _archive(work: Work) -> Any:
    row = await work.desk.directory.staged.rest(work.fence, _agent_id(work.job))
    return {"room": row.portal_room}


async def _end_turns(work: Work) -> Any:
    """Nothing is deleted while a run goes on."""
    desk, agent_id = work.desk, _agent_id(work.job)
    stops = Stops(desk.db, desk.turns)
    for _ in range(_LOOKS):
        if not await stops.has_open(agent_id):
            return {}
        await asyncio.sleep(_LOOK)
    raise NotYetError("the agent's run in Letta has not ended yet")


async def _delete(work: Work) -> Any:
    if not await work.desk.directory.our_letta():  # it would say that there is no such agent, as if it were deleted
        raise JobError(ANOTHER_LETTA)
    await work.desk.backend.delete_agent(_agent_id(work.job))
    return {}


_DISMISS = Step("dismiss", "no more messages for it; what it was doing is stopped", _dismiss, _undismiss)
_ARCHIVE = Step("archive", "its room archived, out of the space, its profile cleared", _archive)
_END_TURNS = Step("turns", "its last run has ended", _end_turns)
_DELETE = Step("delete", "deleted in Letta", _delete)


def _steps(job: JobRow) -> Sequence[Step]:
    return (_DISMISS, _ARCHIVE, _END_TURNS, _DELETE) if job.args["delete"] else (_DISMISS, _ARCHIVE)


def _title(job: JobRow) -> str:
    return f"{'Deleting' if job.args['delete'] else 'Despawning'} {job.args['shown']}"


async def _ending(desk: Desk, job: JobRow) -> str:
    done, parts = job.done["dismiss"], []
    row = await desk.agents.get(_agent_id(job))
    room = "room" if row is None else portal_link(row) or "room"
    if done["stopped"]:
        parts.append("What it was doing was stopped.")
    if done["withdrawn"]:
        parts.append("Messages that waited for it were not delivered; their senders were told.")
    if job.args["delete"]:
        return " ".join([f"It is deleted in Letta. Its {room} stays readable.", *parts])
    kept = f"In Letta it is untouched. Its {room} stays readable; `recall {_agent_id(job)}` brings it back as it was."
    return " ".join([kept, *parts])


DESPAWN = JobKind("despawn", _title, _steps, _ending)


# -- recall


async def _there(work: Work) -> Any:
    try:
        agent = await work.desk.backend.get_agent(_agent_id(work.job))
    except LettaError as error:
        if error.kind is not Kind.AGENT_GONE:
            raise
        raise JobError(GONE) from None
    await work.desk.directory.staged.write_down(work.fence, agent, recalled=True)
    return {}


async def _show_again(work: Work) -> Any:
    row = await work.desk.directory.staged.rest(work.fence, _agent_id(work.job))
    return {"room": row.portal_room}


async def _back_ending(desk: Desk, job: JobRow) -> str:
    row = await desk.agents.get(_agent_id(job))
    return "" if row is None else f"{user_link(row)} is back: {portal_link(row, 'open its room')}."


RECALL = JobKind(
    "recall",
    lambda job: f"Recalling {job.args['shown']}",
    lambda _: (
        Step("agent", "the agent in Letta", _there, stays=True),
        Step("show", "its user, its room, and its place in the space", _show_again),
    ),
    _back_ending,
)
