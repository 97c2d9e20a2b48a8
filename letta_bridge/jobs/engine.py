"""Runs jobs: one step after the other, each recorded when it is true, with its report kept up to date."""

import logging
from collections.abc import Iterable, Sequence

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
from .report import Report
from .steps import JobError, JobKind, NotYetError, Step, Work

log = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
_TRIES = 5
"""Of a step that breaks in a way nobody thought of."""


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
        await self._report.show(fence, job, kind)
        try:
            faults.reach("job.step")
            result = await step.run(Work(self._desk, job, job.done, fence))
        except (FencedError, *DATABASE_ERRORS):
            raise
        except Exception as error:  # noqa: BLE001 - reported there
            await self._failed(fence, job, kind, step, error)
            return
        faults.reach("job.stepped")
        done = {**job.done, step.name: result}
        await self._desk.lanes.write(fence, lambda conn: self._desk.jobs.save_done(conn, job.job_id, done))
        faults.reach("job.recorded")

    async def _failed(self, fence: Fence, job: JobRow, kind: JobKind, step: Step, error: Exception) -> None:
        """The boundary of a step: wait, or give up and take back what was done."""
        waits = _passes(error) and job.age < kind.patience
        if not _expected(error):
            log.exception("a step of a job broke", extra=_extra("job_error", job, step))
            waits = job.attempts + 1 < _TRIES
        if waits:
            pause = min(_FIRST_PAUSE * 2.0 ** min(job.attempts, 12), _LONGEST_PAUSE)
            if not job.attempts:
                log.warning("a job has to wait", extra={**_extra("job_waits", job, step), "why": _words(error)})
            await self._desk.lanes.write(
                fence, lambda conn: self._desk.jobs.postpone(conn, job.job_id, pause, _words(error))
            )
            if job.attempts:  # trouble that is over at the second try is not worth a word
                await self._report.show(fence, job, kind, _words(error))
            return
        log.warning("a job cannot be finished", extra={**_extra("job_given_up", job, step), "why": _words(error)})
        done = {**job.done, step.name: None}  # it may be half made: it is taken back too

        async def work(conn: Connection) -> None:
            await self._desk.jobs.save_done(conn, job.job_id, done)
            await self._desk.jobs.undo(conn, job.job_id, _words(error))

        await self._desk.lanes.write(fence, work)

    # -- back

    async def _back(self, fence: Fence, job: JobRow, kind: JobKind) -> None:
        """Take back the newest step that is still done, or end."""
        left = [step for step in kind.steps(job) if step.name in job.done]
        if not left:
            await self._close(fence, job, kind, "failed", job.error)
            return
        step = left[-1]
        await self._report.show(fence, job, kind)
        try:
            faults.reach("job.undo")
            if step.undo is not None:
                await step.undo(Work(self._desk, job, job.done, fence))
        except (FencedError, *DATABASE_ERRORS):
            raise
        except Exception as error:  # noqa: BLE001 - reported there
            if await self._waits_to_undo(fence, job, step, error):
                return
        done = {name: result for name, result in job.done.items() if name != step.name}

        await self._desk.lanes.write(
            fence, lambda conn: self._desk.jobs.save_done(conn, job.job_id, done, error=job.error)
        )

    async def _waits_to_undo(self, fence: Fence, job: JobRow, step: Step, error: Exception) -> bool:
        """The boundary of taking back: what can never be taken back is logged and left."""
        if _passes(error) or (not _expected(error) and job.attempts + 1 < _TRIES):
            pause = min(_FIRST_PAUSE * 2.0 ** min(job.attempts, 12), _LONGEST_PAUSE)
            await self._desk.lanes.write(
                fence, lambda conn: self._desk.jobs.postpone(conn, job.job_id, pause, job.error)
            )
            return True
        log.error(
            "a step of a job could not be taken back",
            extra={**_extra("job_not_undone", job, step), "why": _words(error)},
            exc_info=not _expected(error),
        )
        return False

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


def _passes(error: Exception) -> bool:
    if isinstance(error, HomeserverError):
        return error.passing or error.unknown_device
    if isinstance(error, LettaError):
        return TROUBLES[error.kind].fate is not Fate.GIVE_UP or error.kind is Kind.TIMEOUT
    return isinstance(error, NotYetError) or (isinstance(error, MirrorError) and not error.conflict)


def _expected(error: Exception) -> bool:
    return isinstance(error, (HomeserverError, LettaError, MirrorError, JobError, NotYetError))


def _words(error: Exception) -> str:
    if isinstance(error, LettaError):
        return ABOUT_LETTA[error.kind]
    return str(error) if _expected(error) else f"an unexpected error ({type(error).__name__}); see the log"


def _extra(action: str, job: JobRow, step: Step) -> dict[str, object]:
    return {"action": action, "job": job.job_id, "kind": job.kind, "step": step.name, "attempt": job.attempts + 1}
