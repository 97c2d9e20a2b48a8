"""Whether the bridge can do its work, said so that a load balancer, a container runtime and a person understand it.

Ready: the database takes writes now, and the last ping went through the homeserver and back. A Letta that is away is
told in the rooms and its messages wait, so that makes the bridge degraded, not unready. What is known comes from the
work itself; only the database is asked, because nothing else would notice in time that it is gone.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from ..db.database import Connection, Database
from ..letta.errors import Kind
from ..matrix.homeserver import HomeserverError

PROBE_SECONDS = 2.0
"""What the database may take for one small write before it counts as away."""
CACHE_SECONDS = 1.0
"""How long an answer of the database is believed, so that whoever polls costs nothing."""

_UNKNOWN = "unknown"
_WAY_BACK = {
    "M_URL_NOT_SET": "the registration has no url",
    "M_CONNECTION_FAILED": "cannot connect",
    "M_CONNECTION_TIMEOUT": "connecting timed out",
    "M_BAD_STATUS": "refused by the bridge",
    "M_NOT_FOUND": "no appservice pings",
    "M_UNRECOGNIZED": "no appservice pings",
}
"""What a homeserver says that was reached, and takes the token, and does not reach us (spec v1.7, appservice ping)."""

Check = Literal["database", "homeserver_out", "homeserver_in", "letta"]
CHECKS: tuple[Check, ...] = ("database", "homeserver_out", "homeserver_in", "letta")
_NEEDED: tuple[Check, ...] = ("database", "homeserver_out", "homeserver_in")


@dataclass(slots=True)
class _State:
    ok: bool | None = None
    since: float = field(default_factory=time.time)
    detail: str = _UNKNOWN
    said: float = float("-inf")
    """When it was last said, on the clock of :class:`Health`."""

    def say(self, ok: bool | None, detail: str) -> None:
        if ok is not self.ok:
            self.since = time.time()
        self.ok, self.detail = ok, detail

    def shown(self) -> dict[str, Any]:
        since = datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")
        return {"ok": self.ok, "since": since, "detail": self.detail}


class Health:
    """Collects what the parts find out, and answers.

    Args:
        db: the database, which is asked with a small write.
        replica: the name of this process among its replicas.
    """

    def __init__(self, db: Database, replica: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._replica = replica
        self._clock = clock
        self._states: dict[Check, _State] = {check: _State() for check in CHECKS}
        self._stopping = False
        self._started = False
        self._probe: asyncio.Task[None] | None = None
        self._probed_at = 0.0
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._change = asyncio.Event()
        self.alarms: Callable[[], list[str]] = list
        """What is wrong by topic, as the report shows it."""

    # -- what the parts tell

    def start(self) -> None:
        """From now on the bridge may be ready."""
        self._started = True

    async def stop(self) -> None:
        """From now on it is not, and says why; the database is not asked any more."""
        self._stopping = True
        for task in (self._asking, self._probe):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def pinged(self, error: HomeserverError | None) -> None:
        """A ping went through the homeserver and back, or ``error`` says how far it came."""
        if error is None:
            self._say("homeserver_out", True, "answers")
            self._say("homeserver_in", True, "reaches the bridge")
        elif error.errcode in _WAY_BACK:
            self._say("homeserver_out", True, "answers")
            self._say("homeserver_in", False, _WAY_BACK[error.errcode])
        else:
            refused = error.status in (401, 403)
            words = "as_token refused" if refused else f"answers {error.status}" if error.status else "no answer"
            self._say("homeserver_out", False, words)
            self._say("homeserver_in", None, _UNKNOWN)

    def letta(self, trouble: Kind | None) -> None:
        """A call to Letta worked, or failed in this way."""
        if trouble in (Kind.UNREACHABLE, Kind.BAD_KEY):
            self._say("letta", False, trouble.value)
        elif trouble not in (Kind.TIMEOUT, Kind.INTERRUPTED, Kind.INTERNAL):  # those prove nothing of Letta as a whole
            self._say("letta", True, "answers")

    def _say(self, check: Check, ok: bool | None, detail: str) -> None:
        state = self._states[check]
        changed = (state.ok, state.detail) != (ok, detail)
        state.say(ok, detail)
        state.said = self._clock()
        if changed:
            self._change.set()

    def known(self, check: Check) -> tuple[bool | None, str, float]:
        """What is known of one part: whether it works, in which way not, and how many seconds ago that was seen."""
        state = self._states[check]
        return state.ok, state.detail, self._clock() - state.said

    async def changed(self, seconds: float) -> None:
        """Wait until something is otherwise than before, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._change.wait()
        self._change.clear()

    # -- the answer

    async def report(self) -> Mapping[str, Any]:
        """``{"ready", "degraded", "stopping", "replica", "checks", "alarms"}``; takes at most :data:`PROBE_SECONDS`.

        ``alarms`` are topics of what admins were told or will be, as they were known some seconds ago.
        """
        await self._ask_database()
        ready = self._started and not self._stopping and all(self._states[check].ok for check in _NEEDED)
        return {
            "ready": ready,
            "degraded": self._states["letta"].ok is False,
            "stopping": self._stopping,
            "replica": self._replica,
            "checks": {check: state.shown() for check, state in self._states.items()},
            "alarms": self.alarms(),
        }

    async def _ask_database(self) -> None:
        """Ask again when the last answer is old; whoever comes meanwhile waits for the same answer."""
        if self._stopping or not self._started:
            return
        if self._asking is None or (self._asking.done() and self._clock() - self._asked_at >= CACHE_SECONDS):
            self._asking = asyncio.create_task(self._ask(), name="health")
        await asyncio.wait({self._asking})

    async def _ask(self) -> None:
        """One question. A write that hangs is not torn: as long as it hangs, that is the answer to every question."""
        if self._probe is None or self._probe.done():
            self._probed_at = self._clock()
            self._probe = asyncio.create_task(self._db.write(self._small_write), name="health probe")
            self._probe.add_done_callback(end_in_silence)
        database = self._states["database"]
        left = self._probed_at + PROBE_SECONDS - self._clock()
        done, _ = await asyncio.wait({self._probe}, timeout=max(0.0, left))
        if not done:
            database.say(False, f"no answer within {PROBE_SECONDS:.0f} s")
        elif self._probe.cancelled():
            database.say(None, _UNKNOWN)
        elif error := self._probe.exception():
            database.say(False, _words(error))
        else:
            database.say(True, "takes writes")
        self._asked_at = self._clock()

    async def _small_write(self, conn: Connection) -> None:
        """Leaves nothing behind, and has its own row: a frozen replica must not hold up the others' probes."""
        name = f"probe:{self._replica}"
        await conn.execute("INSERT INTO setting (name, value) VALUES ($1, '') ON CONFLICT (name) DO NOTHING", name)
        await conn.execute("DELETE FROM setting WHERE name = $1", name)


def end_in_silence(question: "asyncio.Task[Any]") -> None:
    """A question that fails after nobody waits for it any more is not worth a line in the log: the answer was given."""
    if not question.cancelled():
        question.exception()


def _words(error: BaseException) -> str:
    """A few words that hold neither an address nor a value."""
    if isinstance(error, sqlite3.Error):
        return str(error)[:80]
    return "cannot be reached" if isinstance(error, OSError) else type(error).__name__
