"""What people see of a job: one message in the room where it was asked for, edited as the steps are made."""

from ..commands.desk import Desk
from ..db.jobs import JobRow
from ..db.outbox import Outgoing
from ..delivery.outgoing import ReplyTarget, Voice, message
from ..lanes import Fence
from .steps import JobKind

_DONE, _NOW, _LATER, _UNDONE, _FAILED = "✅", "⏳", "▫️", "↩️", "❌"


class Report:
    """Writes reports."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def show(self, fence: Fence, job: JobRow, kind: JobKind, trouble: str = "") -> None:
        """Bring the message up to date: before a step, and when the job waits because of ``trouble``."""
        if not job.room_id:
            return
        mark = f"{job.state}:{len(job.done)}:{job.attempts if trouble else 0}"
        out = self._event(job, _lines(job, kind, trouble), mark)
        await self._desk.lanes.write(fence, lambda conn: self._desk.outbox.add(conn, out))
        self._desk.lanes.wake(f"send:{job.room_id}")

    async def last(self, job: JobRow, kind: JobKind | None, state: str, error: str) -> Outgoing | None:
        """The message as it stays; None where nobody is shown it."""
        if not job.room_id:
            return None
        text = await final_text(self._desk, job, kind, state, error)
        return self._event(job, text, "end")

    def _event(self, job: JobRow, text: str, mark: str) -> Outgoing:
        voice = Voice(self._desk.homeserver.bot_mxid, job.room_id)
        target = ReplyTarget(job.thread_root)
        first = message(voice, text, target, source=job.key, kind="job", msgtype="m.notice")
        if mark == "open:0:0":
            return first
        return message(voice, text, target, source=job.key, kind=f"job:{mark}", msgtype="m.notice", edits=first.txn_id)


async def final_text(desk: Desk, job: JobRow, kind: JobKind | None, state: str, error: str) -> str:
    """How a job ended, as Markdown."""
    if kind is None:
        return f"{_FAILED} {error}"
    if state == "done":
        ending = await kind.ending(desk, job) if kind.ending is not None else ""
        return "\n\n".join(part for part in (_lines(job, kind, ""), ending) if part)
    return f"{_FAILED} **{kind.title(job)}**: {error}\n\nWhat had been done before was taken back."


def _lines(job: JobRow, kind: JobKind, trouble: str) -> str:
    rows = [f"**{kind.title(job)}** (job {job.job_id})", ""]
    current = True
    for step in kind.steps(job):
        if step.name in job.done:
            mark = _DONE
        elif job.state == "undoing":
            mark = _UNDONE
        else:
            mark, current = (_NOW, False) if current else (_LATER, False)
        rows.append(f"- {mark} {step.label}")
    if trouble:
        rows += ["", f"Waiting: {trouble}. It goes on by itself."]
    if job.state == "undoing":
        rows += ["", f"{_FAILED} {job.error}. What was done is taken back."]
    return "\n".join(rows)
