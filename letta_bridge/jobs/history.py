"""``import``: an agent's earlier conversation into its portal, because somebody asked for it."""

from typing import Any

from ..commands.desk import Desk
from ..commands.show import count, portal_link
from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.jobs import JobRow
from ..ids import AgentID
from ..mirror.history import set_failed, show_earlier
from .steps import JobError, JobKind, NotYetError, Step, Work

KIND = "import"


async def _lines(work: Work) -> Any:
    row = await _row(work)

    async def finish(conn: Connection) -> None:
        await work.desk.agents.update_in(conn, row.agent_id, history="done")
        await set_failed(conn, row.agent_id, "")

    shown = await show_earlier(work.desk, work.fence, row, int(work.args["count"]), work.job.key, finish)
    if not shown.whole:
        raise NotYetError("the room still sends what it was given before")
    return {"lines": shown.lines}


async def _row(work: Work) -> AgentRow:
    row = await work.desk.agents.get(AgentID(work.args["agent_id"]))
    if row is None or row.portal_room is None or not row.portal_joined:
        raise JobError("the agent has no room any more, or is not in it")
    return row


async def _ending(desk: Desk, job: JobRow) -> str:
    lines = int(job.done["lines"]["lines"])
    row = await desk.agents.get(AgentID(job.args["agent_id"]))
    where = portal_link(row, "its room") if row is not None else "its room"
    if not lines:
        return f"There is nothing to show that is not in {where} already."
    return f"{count(lines, 'line')} shown in {where}."


HISTORY = JobKind(
    KIND,
    lambda job: f"Showing the earlier conversation of {job.args['shown']}",
    lambda _: (Step("lines", "its last lines", _lines),),
    _ending,
)
