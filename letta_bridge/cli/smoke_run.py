"""What the steps of ``letta-bridge smoke`` share: who acts, what was made so far, and how one step is made."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ..config import Config
from ..ids import MXID, EventID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError, Intent
from ..mirror.bot import new_device_id
from .checkup import Answer, Checkup, Finding, Status, ask
from .exitcodes import Exit
from .smoke_listener import Listener
from .smoke_report import FailedError, Line, Report, SkippedError, explain

STEP_SECONDS = 10.0
_PROBE_SECONDS = 5.0
_NONE = EventID("")


@dataclass(slots=True)
class Run:
    """One smoke test.

    ``deadline`` (``time.monotonic``) ends the steps. ``wait`` is how long, in seconds, something pushed may take.
    ``receiving``: the listener has been seen to get what is sent, so it is worth waiting for more.
    """

    config: Config
    checkup: Checkup
    homeserver: Homeserver
    report: Report
    listener: Listener | None
    wait: float
    deadline: float
    tag: str = field(default_factory=lambda: secrets.token_hex(6))
    device_id: str = field(default_factory=new_device_id)
    receiving: bool = False
    registered: bool = False
    device_made: bool = False
    room_asked: bool = False
    room_refused: bool = False
    room_id: RoomID | None = None
    puppet_left: bool = False
    sent: EventID = _NONE
    sent_at: float = 0.0
    by_bot: EventID = _NONE
    broken: set[str] = field(default_factory=set)

    @property
    def localpart(self) -> str:
        """Of the test's user and alias. No agent has it: theirs go on with a UUID or a dot."""
        return f"{self.config.appservice.puppet_prefix}smoke_{self.tag}"

    @property
    def user(self) -> MXID:
        """The test's user."""
        return MXID(f"@{self.localpart}:{self.homeserver.domain}")

    @property
    def alias(self) -> str:
        """The test room's alias."""
        return f"#{self.localpart}:{self.homeserver.domain}"

    @property
    def bot(self) -> Intent:
        """The bridge's own user."""
        return self.homeserver.bot

    @property
    def puppet(self) -> Intent:
        """The test's user."""
        return self.homeserver.intent(self.user)

    @property
    def room(self) -> RoomID:
        """The test room, in steps that need it."""
        assert self.room_id is not None
        return self.room_id

    def txn(self, name: str) -> str:
        """A transaction id that no other call has."""
        return f"smoke-{self.tag}-{name}"

    async def probe(self, method: str, path: str, user: MXID | None = None, **request: Any) -> Answer:
        """A call of which only the answer matters, whatever it is. ``path`` follows ``/_matrix``."""
        params = {"user_id": user} if user else {}
        return await ask(
            self.checkup.session,
            method,
            f"{self.homeserver.url}/_matrix{path}",
            token=self.config.appservice.as_token,
            params=params | request.pop("params", {}),
            seconds=_PROBE_SECONDS,
            **request,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the report: what it is called, what makes it, and what must not have failed before."""

    what: str
    make: Callable[[Run], Awaitable[str]]
    needs: tuple[str, ...] = ()
    seconds: float = STEP_SECONDS


async def perform(run: Run, step: Step) -> None:
    """Make one step, within its time and that of the whole test, and report how it ended."""
    left = run.deadline - time.monotonic()
    lost = next((need for need in step.needs if need in run.broken), None)
    if lost is not None or left <= 0:
        run.broken.add(step.what)
        why = f"because of: {lost}" if lost is not None else "there is no time left for it"
        run.report.add(Line(step.what, Status.SKIP, why, None))
        return
    began = time.monotonic()
    seconds = min(step.seconds, left)
    try:
        async with asyncio.timeout(seconds):
            detail = await step.make(run)
    except SkippedError as skipped:
        run.report.add(Line(step.what, Status.SKIP, skipped.why, _ms(began), skipped.remedy))
    except FailedError as failed:
        _failed(run, step, failed, began)
    except HomeserverError as error:
        _failed(run, step, explain(error), began)
    except TimeoutError:
        text = f"it took longer than {seconds:.0f} seconds"
        remedy = "the homeserver is overloaded, hangs, or limits the bridge's rate; see its log"
        _failed(run, step, FailedError(text, remedy, Exit.HOMESERVER), began)
    except Exception as error:  # noqa: BLE001  (the boundary: an answer nobody thought of fails its step alone)
        text = f"the homeserver's answer is not what it should be ({type(error).__name__}: {error})"
        _failed(run, step, FailedError(text, "see whether a proxy changes answers; if not, please report it"), began)
    else:
        run.report.add(Line(step.what, Status.OK, detail, _ms(began)))


def _failed(run: Run, step: Step, failed: FailedError, began: float) -> None:
    run.broken.add(step.what)
    run.report.add(Line(step.what, Status.FAIL, failed.text, _ms(began), failed.remedy, failed.code))


def _ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def settle(found: list[Finding]) -> str:
    """A finding of ``letta-bridge check`` as the end of a step."""
    for finding in found:
        if finding.status is Status.FAIL:
            raise FailedError(finding.text, finding.remedy, finding.code)
        if finding.status is not Status.OK:
            raise SkippedError(finding.text, finding.remedy)
    return "; ".join(finding.text for finding in found)
