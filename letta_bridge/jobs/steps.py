"""What a job is made of."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..commands.desk import Desk
from ..db.jobs import JobRow
from ..lanes import Fence

ANOTHER_LETTA = "another Letta answers than the one whose agents are mirrored; `guard` says more"


class JobError(Exception):
    """The step can never succeed; the text tells people why. What was done before is taken back."""


class NotYetError(Exception):
    """The step cannot be made now; it is tried again. The text tells people what it waits for."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step works with.

    ``done`` has the results of the steps before it; ``fence`` is the job's lane: writes go through
    ``desk.lanes.write(fence, …)``.
    """

    desk: Desk
    job: JobRow
    done: Mapping[str, Any]
    fence: Fence

    @property
    def args(self) -> Mapping[str, Any]:
        """What the job was asked for."""
        return self.job.args


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a job.

    Attributes:
        name: names its result; never changed once released.
        label: what people read beside its mark.
        run: makes it true; may be run again after a crash, and must then find what it made before. Returns what is to
            be remembered (JSON). Raises JobError, NotYetError, HomeserverError, LettaError, MirrorError.
        undo: takes it back when it or a later step cannot be made; ``done[name]`` is None where the step itself failed,
            perhaps half made. None where nothing is to be taken back.
        stays: nothing takes it back, so it is true also when a later step cannot be made; people are told so.
    """

    name: str
    label: str
    run: Callable[[Work], Awaitable[Any]]
    undo: Callable[[Work], Awaitable[None]] | None = None
    stays: bool = False


@dataclass(frozen=True, slots=True)
class JobKind:
    """The steps of one kind of job, and the sentence that ends its report (Markdown)."""

    name: str
    title: Callable[[JobRow], str]
    steps: Callable[[JobRow], Sequence[Step]]
    ending: Callable[[Desk, JobRow], Awaitable[str]] | None = None
    patience: float = 86400.0
    """Seconds for which passing trouble is waited out, from the beginning of the job."""
