"""What people see of a job: one message in the room where it was asked for, edited as the steps are made."""

import logging
from collections.abc import Sequence

from ..commands.desk import Desk
from ..db.database import Connection
from ..db.jobs import JobRow
from ..db.outbox import Outgoing
from ..delivery.outgoing import ReplyTarget, Voice, message
from ..lanes import Fence
from .steps import JobKind, Step

log = logging.getLogger(__name__)

FAILED = "!failed"
"""Beside the results of the steps: the name of the one that could not be made."""
LEFT = "!left"
"""Beside the results of the steps: the names of those that could not be taken back."""
KEPT = "!kept"
"""Beside the results of the steps: the names of those that were made and are never taken back."""

_DONE, _NOW, _LATER, _UNDONE, _WRONG = "✅", "⏳", "▫️", "↩️", "❌"


class Report:
    """Writes reports."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def show(self, fence: Fence, job: JobRow, kind: JobKind, trouble: str = "") -> None:
        """Bring the message up to date: with the first step, with slow ones, and when the job waits because of
        ``trouble`` (once for each trouble of a step)."""
        if not job.room_id:
            return
        out = self._event(job, _text(job, kind, trouble), f"{job.state}:{len(job.done)}:{trouble}")

        async def work(conn: Connection) -> None:
            await self._desk.outbox.add(conn, out)
            await self._desk.lanes.announce(conn, f"send:{job.room_id}")

        await self._desk.lanes.write(fence, work)
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
        if mark == "open:0:":
            return first
        return message(voice, text, target, source=job.key, kind=f"job:{mark}", msgtype="m.notice", edits=first.txn_id)


async def final_text(
    desk: Desk, job: JobRow, kind: JobKind | None, state: str, error: str, *, steps: bool = True
) -> str:
    """How a job ended, as Markdown; without its ``steps`` where people were shown them one by one."""
    if kind is None:
        return f"{_WRONG} {error}"
    rows = "\n".join(_rows(job, kind)) if steps else ""
    if state == "done":
        ending = await _ending(desk, job, kind)
        return "\n\n".join(part for part in (rows, ending) if part) or f"{_DONE} {kind.title(job)}: done."
    said = f"{_WRONG} It was not done: {error}. {_after(job, kind)}"
    return f"{rows}\n\n{said}" if rows else said


def _after(job: JobRow, kind: JobKind) -> str:
    """What is left of a job that could not be finished."""
    steps, said = kind.steps(job), []
    left = [step.label for step in steps if step.name in job.done.get(LEFT, ())]
    kept = [step.label for step in steps if step.name in job.done.get(KEPT, ())]
    if kept:
        said.append(f"This was done before, and stays: {', '.join(kept)}.")
    if any(step.stays and step.name == job.done.get(FAILED) for step in steps):
        said.append("A part of the step that could not be made may have been done.")
    if left:
        said.append(f"This could not be taken back, and may be left over: {', '.join(left)}.")
    if not said:
        said.append("What had been done before was taken back." if _begun(job, kind) else "Nothing was changed.")
    return " ".join(said)


async def _ending(desk: Desk, job: JobRow, kind: JobKind) -> str:
    """The sentence at the end: a boundary, because what is done must not be held up by how it is told."""
    if kind.ending is None:
        return ""
    try:
        return await kind.ending(desk, job)
    except (KeyError, TypeError, ValueError, AttributeError):
        log.exception("the end of a job cannot be told", extra={"action": "job_ending_failed", "job": job.job_id})
        return ""


def _begun(job: JobRow, kind: JobKind) -> bool:
    """Whether the step that could not be made was not the first."""
    steps = kind.steps(job)
    return not steps or job.done.get(FAILED) != steps[0].name


def _text(job: JobRow, kind: JobKind, trouble: str) -> str:
    rows = _rows(job, kind)
    if job.state == "undoing":
        rows += ["", f"{_WRONG} {job.error}. What was done is taken back."]
    elif trouble:
        rows += ["", f"Waiting: {trouble}. It goes on by itself."]
    return "\n".join(rows)


def _rows(job: JobRow, kind: JobKind) -> list[str]:
    steps = kind.steps(job)
    rows = [f"**{kind.title(job)}** (job {job.job_id})", ""]
    return rows + [f"- {mark} {step.label}" for mark, step in zip(marks(job, steps), steps, strict=True)]


def marks(job: JobRow, steps: Sequence[Step]) -> list[str]:
    """A sign for each step: made, being made, to come, taken back, could not be made."""
    names = [step.name for step in steps]
    failed = names.index(job.done[FAILED]) if job.done.get(FAILED) in names else None
    if failed is not None:
        left = {*job.done, *job.done.get(LEFT, ()), *job.done.get(KEPT, ())}
        before = [_DONE if name in left else _UNDONE for name in names[:failed]]
        return [*before, _WRONG, *[_LATER] * (len(names) - failed - 1)]
    current = next((place for place, name in enumerate(names) if name not in job.done), len(names))
    return [_DONE if name in job.done else _NOW if place == current else _LATER for place, name in enumerate(names)]
