"""Runs jobs: one step after the other, each recorded when it is true, with its report kept up to date."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from enum import Enum

from .. import faults
from ..commands.desk import Desk
from ..db.database import DATABASE_ERRORS, Connection
from ..db.jobs import JobRow, NewJob, job_lane
from ..errors import ABOUT_LETTA, TROUBLES, Fate
from ..ids import JobID
from ..lanes import Fence, FencedError
from ..letta.errors import Kind, LettaError
from ..matrix.homeserver import HomeserverError
from ..mirror.trouble import MirrorError
from .report import FAILED, KEPT, LEFT, Report, final_text
from .steps import JobError, JobKind, NotYetError, Step, Work

log = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
_TRIES = 8
"""Of a step that breaks in a way nobody thought of, or whose trouble is as likely to stay as to pass."""
_SLOW = 1.0
"""Seconds after which people are shown which step is being made."""


class _Hope(Enum):
    """What to expect of another try."""

    LATER = "later"  # somebody is away: wait as long as the job has patience
    PERHAPS = "perhaps"  # a few more tries
    NONE = "none"


class Engine:
    """Handler of ``job:`` lanes.

    Args:
        desk: what the steps work with.
        kinds: every kind of job.
    """

    def __init__(self, desk: Desk, kinds: Iterable[JobKind]) -> None:
        self._desk = desk
        self._kinds = {kind.name: kind for kind in kinds}
        self._report = Report(desk)
        self._tries: dict[tuple[JobID, str], int] = {}
        """Failed tries of a step that may be hopeless, as far as this process has seen them."""

    async def begin(self, conn: Connection, new: NewJob) -> JobID:
        """Within the caller's transaction: write a job down and let a replica begin it. Wake its lane afterwards."""
        assert new.kind in self._kinds, new.kind
        job_id = await self._desk.jobs.add(conn, new)
        await self._desk.lanes.announce(conn, job_lane(job_id))
        return job_id

    def title(self, job: JobRow) -> str:
        """What people read as its name."""
        kind = self._kinds.get(job.kind)
        return job.kind if kind is None else kind.title(job)

    async def outcome(self, job: JobRow) -> str:
        """How a job that is over ended, for whoever was shown its steps."""
        return await final_text(self._desk, job, self._kinds.get(job.kind), job.state, job.error, steps=False)

    def steps(self, job: JobRow) -> Sequence[Step]:
        """Its steps."""
        kind = self._kinds.get(job.kind)
        return () if kind is None else kind.steps(job)

    async def handle(self, fence: Fence) -> float | None:
        """Go on with the job of the lane until it is over or has to wait."""
        job_id = JobID(int(fence.lane.partition(":")[2]))
        while not self._desk.lanes.closing:
            job = await self._desk.jobs.get(job_id)
            if job is None or not job.open:
                return None
            if job.wait > 0:
                return job.wait
            kind = self._kinds.get(job.kind)
            if kind is None:
                await self._close(fence, job, None, "failed", "this version of the bridge does not know such a job")
                return None
            await (self._forward(fence, job, kind) if job.state == "open" else self._back(fence, job, kind))
        return None

    # -- forward

    async def _forward(self, fence: Fence, job: JobRow, kind: JobKind) -> None:
        """The next step, or the end."""
        step = next((step for step in kind.steps(job) if step.name not in job.done), None)
        if step is None:
            await self._close(fence, job, kind, "done", "")
            return
        if not job.done:
            await self._report.show(fence, job, kind)
        try:
            faults.reach("job.step")
            self._desk.lanes.check(fence)  # who was frozen may have an heir that has made it meanwhile
            async with self._shown_when_slow(fence, job, kind):
                result = await step.run(Work(self._desk, job, job.done, fence))
        except (FencedError, *DATABASE_ERRORS):
            raise
        except Exception as error:  # noqa: BLE001 - reported there
            await self._failed(fence, job, kind, step, error)
            return
        faults.reach("job.stepped")
        done = {**job.done, step.name: result}
        await self._desk.lanes.write(fence, lambda conn: self._desk.jobs.save_done(conn, job.job_id, done))
        self._tries.pop((job.job_id, step.name), None)
        faults.reach("job.recorded")

    @asynccontextmanager
    async def _shown_when_slow(self, fence: Fence, job: JobRow, kind: JobKind) -> AsyncIterator[None]:
        """Bring the report up to date if what happens inside takes long enough for somebody to wonder."""

        async def show() -> None:
            await asyncio.sleep(_SLOW)
            await self._report.show(fence, job, kind)

        task = asyncio.create_task(show())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # a lost lane is seen by the next write too

    async def _failed(self, fence: Fence, job: JobRow, kind: JobKind, step: Step, error: Exception) -> None:
        """The boundary of a step: wait, or give up and take back what was done."""
        if self._again(job, step, error) and job.age < kind.patience:
            await self._postpone(fence, job, _words(error))
            if not job.attempts:
                log.warning(
                    "a job has to wait", extra={"action": "job_waits", **_fields(job, step), "why": _words(error)}
                )
            else:  # trouble that is over at the second try is not worth a word
                await self._report.show(fence, job, kind, _words(error))
            return
        log.warning(
            "a job cannot be finished", extra={"action": "job_given_up", **_fields(job, step), "why": _words(error)}
        )
        done = {**job.done, step.name: None, FAILED: step.name}  # it may be half made: it is taken back too

        async def work(conn: Connection) -> None:
            await self._desk.jobs.save_done(conn, job.job_id, done)
            await self._desk.jobs.undo(conn, job.job_id, _words(error))

        await self._desk.lanes.write(fence, work)
        self._tries.pop((job.job_id, step.name), None)

    def _again(self, job: JobRow, step: Step, error: Exception) -> bool:
        """Whether to try the step again. What is to be taken back is not given up because a server is ill."""
        if not _expected(error):
            log.error("a step of a job broke", exc_info=error, extra={"action": "job_error", **_fields(job, step)})
        hope = _hope(error)
        if hope is _Hope.PERHAPS and job.state == "undoing" and isinstance(error, (HomeserverError, LettaError)):
            hope = _Hope.LATER
        if hope is not _Hope.PERHAPS:
            return hope is _Hope.LATER
        key = (job.job_id, step.name)
        self._tries[key] = self._tries.get(key, 0) + 1
        return self._tries[key] < _TRIES

    async def _postpone(self, fence: Fence, job: JobRow, words: str) -> None:
        pause = min(_FIRST_PAUSE * 2.0 ** min(job.attempts, 12), _LONGEST_PAUSE)
        await self._desk.lanes.write(fence, lambda conn: self._desk.jobs.postpone(conn, job.job_id, pause, words))

    # -- back

    async def _back(self, fence: Fence, job: JobRow, kind: JobKind) -> None:
        """Take back the newest step that is still done, or end."""
        left = [step for step in kind.steps(job) if step.name in job.done]
        if not left:
            await self._close(fence, job, kind, "failed", job.error)
            return
        step, done = left[-1], dict(job.done)
        if step.stays and done[step.name] is not None:
            done[KEPT] = [*done.get(KEPT, ()), step.name]
        try:
            faults.reach("job.undo")
            self._desk.lanes.check(fence)
            async with self._shown_when_slow(fence, job, kind):
                if step.undo is not None:
                    await step.undo(Work(self._desk, job, job.done, fence))
        except (FencedError, *DATABASE_ERRORS):
            raise
        except Exception as error:  # noqa: BLE001 - reported there
            if self._again(job, step, error) and job.age < 2 * kind.patience:
                await self._postpone(fence, job, job.error)
                return
            log.error(
                "a step of a job could not be taken back",
                extra={"action": "job_not_undone", **_fields(job, step), "why": _words(error)},
            )
            done[LEFT] = [*done.get(LEFT, ()), step.name]
        del done[step.name]

        await self._desk.lanes.write(
            fence, lambda conn: self._desk.jobs.save_done(conn, job.job_id, done, error=job.error)
        )
        self._tries.pop((job.job_id, step.name), None)

    # -- the end

    async def _close(self, fence: Fence, job: JobRow, kind: JobKind | None, state: str, error: str) -> None:
        out = await self._report.last(job, kind, state, error)

        async def work(conn: Connection) -> None:
            await self._desk.jobs.close(conn, job.job_id, state, error)
            if out is not None:
                await self._desk.outbox.add(conn, out)
                await self._desk.lanes.announce(conn, f"send:{job.room_id}")

        await self._desk.lanes.write(fence, work)
        log.info("job ended", extra={"action": "job_ended", "job": job.job_id, "kind": job.kind, "state": state})
        if out is not None:
            self._desk.lanes.wake(f"send:{job.room_id}")


def _hope(error: Exception) -> _Hope:
    if isinstance(error, LettaError) and error.kind is not Kind.TIMEOUT:
        fates = {Fate.WAIT: _Hope.LATER, Fate.RETRY: _Hope.PERHAPS, Fate.GIVE_UP: _Hope.NONE}
        return fates[TROUBLES[error.kind].fate]
    if isinstance(error, (LettaError, NotYetError)):
        return _Hope.LATER
    if isinstance(error, HomeserverError):
        if error.unknown_device or error.status == 500:  # "internal error" may be about this very thing, for ever
            return _Hope.PERHAPS
        return _Hope.LATER if error.passing else _Hope.NONE
    # of a MirrorError too: a room that is not the one it should be may be half made, by another replica
    return _Hope.NONE if isinstance(error, JobError) else _Hope.PERHAPS


def _expected(error: Exception) -> bool:
    return isinstance(error, (HomeserverError, LettaError, MirrorError, JobError, NotYetError))


def _words(error: Exception) -> str:
    if isinstance(error, LettaError):
        return ABOUT_LETTA[error.kind]
    return str(error) if _expected(error) else f"an unexpected error ({type(error).__name__}); see the log"


def _fields(job: JobRow, step: Step) -> dict[str, object]:
    return {"job": job.job_id, "kind": job.kind, "step": step.name, "attempt": job.attempts + 1}
