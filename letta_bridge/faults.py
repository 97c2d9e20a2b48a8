"""Named places on the way of a message at which tests end or freeze the process.

The product only passes them: :func:`reach` does nothing unless a test has hung something on the place. What every
place means stands in :data:`POINTS`; the crash tests go through all of them.
"""

from collections.abc import Callable
from typing import Final

POINTS: Final[dict[str, str]] = {
    "intake.read": "the transaction is read, nothing is stored",
    "intake.stored": "its rows are written, not committed",
    "intake.committed": "the commit is synced, nobody was woken and 200 was not answered",
    "intake.woken": "the lanes are woken, 200 was not answered",
    "lane.claimed": "a lane is claimed, no work of it was begun",
    "dispatch.decided": "it is decided what becomes of events, nothing of it is written",
    "dispatch.written": "the decision and its turns are committed",
    "turn.begun": "the turn is running and its otids are stored, Letta was not called",
    "turn.named": "Letta named the run, nothing of it is stored",
    "turn.accepted": "the run's id is stored",
    "turn.chunk": "a piece of the answer came",
    "turn.ended": "the run ended, nothing of its end is written",
    "turn.replied": "the answer stands in the outbox, nothing of it was sent",
    "send.before": "an event of the outbox is about to be sent",
    "send.after": "the homeserver took it, that is not written",
    "send.recorded": "its event id is stored",
    "edit.before": "a live edit is about to be sent",
    "edit.after": "the homeserver took it",
    "receipt.before": "a read receipt is about to be sent",
    "receipt.after": "the homeserver took it",
    "job.step": "a step of a job is about to be made",
    "job.stepped": "the step is true, that is not written",
    "job.recorded": "the step is written down",
    "job.undo": "a step of a job is about to be taken back",
    "drain.begun": "the bridge is stopping, what runs may still end",
    "drain.ended": "what runs has ended or was cancelled, the lanes were not given back",
}

hook: Callable[[str], None] | None = None
"""Called with the name of every place that is passed. Only tests set it."""


def reach(point: str) -> None:
    """A place is passed."""
    if hook is not None:
        hook(point)
