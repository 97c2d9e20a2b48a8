"""What commands that begin jobs have in common."""

from collections.abc import Mapping
from typing import Any

from ..db.database import Connection, Reader
from ..db.jobs import NewJob, job_lane
from ..ids import AgentID, JobID
from .call import Call
from .table import CommandError, Reply


async def begin(
    call: Call, kind: str, args: Mapping[str, Any], *, subject: str = "", text: str, agent: AgentID | None = None
) -> Reply:
    """Begin the job of a command, once however often the command is carried out.

    Args:
        agent: the agent on which no other job may work, also if two people ask at the same moment.

    Raises:
        CommandError: one does.
    """
    subject = subject if agent is None else f"agent:{agent}"
    new = NewJob(
        kind=kind,
        key=f"{kind}|{call.key}",
        asked_by=call.who,
        args=args,
        subject=subject,
        room_id=call.job_room,
        thread_root=call.thread_root,
    )

    async def work(conn: Connection) -> JobID:
        if agent is not None:
            await call.desk.agents.hold(conn, agent)  # whoever asks too waits until it is written down
            await nothing_else(call, agent, new.key, conn)
        return await call.engine.begin(conn, new)

    job_id = await call.desk.db.write(work)
    call.desk.lanes.wake(job_lane(job_id))
    return Reply(f"{text} (job {job_id})", data={"job": job_id}, job=job_id)


async def nothing_else(call: Call, agent: AgentID, key: str, reader: Reader | None = None) -> None:
    """No other job than the one with ``key`` works on the agent.

    Raises:
        CommandError: one does.
    """
    for job in await call.desk.jobs.open_on(f"agent:{agent}", reader):
        if job.key != key:
            raise CommandError(f"{call.engine.title(job)} is still under way (job {job.job_id}); `jobs` shows it.")


def several(text: str | None) -> tuple[str, ...]:
    """A list that is separated by commas."""
    return tuple(part for part in (piece.strip() for piece in (text or "").split(",")) if part)
