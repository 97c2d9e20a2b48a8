"""What can go wrong with one attempt to push; the same for both kinds of homeserver."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from .events import JSON


@dataclass(slots=True)
class PushFault:
    """One fault. Put into ``PushFaults.armed`` it strikes the first attempt after ``skip`` others, once.

    Times are seconds. ``hits`` counts strikes; ``arrived`` is set when the appservice has the whole request.
    """

    skip: int = 0
    """Attempts that are spared first: n - 1 for the n-th."""
    lost: bool = False
    """Never sent; it counts as a broken connection."""
    status: int | None = None
    """The homeserver believes to have got this status, whatever the appservice answered."""
    cut: bool = False
    """The connection is closed when the body is sent, before any answer."""
    before: float = 0.0
    """Pause between the head of the request and its body."""
    after: float = 0.0
    """Pause after the answer, in which the transaction is still in flight."""
    txn_id: str | None = None
    """Used instead of the right one."""
    header_token: str | None = None
    """Used instead of the right one; ``""``: no header."""
    query_token: str | None = None
    """Used instead of what this homeserver sends; ``""``: none."""
    change: Callable[[JSON], JSON | bytes] | None = None
    """Makes the body: other JSON, or bytes that are sent as they are."""
    hits: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class PushFaults:
    """Faults that wait, oldest first; one attempt meets one of them."""

    armed: list[PushFault] = field(default_factory=list)

    def arm(self, fault: PushFault) -> PushFault:
        """Add a fault."""
        self.armed.append(fault)
        return fault

    def next(self) -> PushFault:
        """What strikes the attempt that begins now; a fault without effect when nothing does."""
        if not self.armed:
            return PushFault()
        if self.armed[0].skip > 0:
            self.armed[0].skip -= 1
            return PushFault()
        fault = self.armed.pop(0)
        fault.hits += 1
        return fault


async def paced(data: bytes, fault: PushFault) -> AsyncIterator[bytes]:
    """The body, after the pause that the fault asks for; tells when it is on its way as a whole."""
    if fault.before:
        await asyncio.sleep(fault.before)
    yield data
    fault.arrived.set()
