"""Going on at once when a neighbour is reached again: whoever waits for it need not sit out a pause that has grown."""

import logging
import time
from collections.abc import Callable

from .db.database import Connection, Database
from .db.jobs import Jobs
from .db.turns import Turns
from .errors import ABOUT_LETTA
from .lanes import Lanes
from .letta.errors import Kind
from .web.health import Check, Health

log = logging.getLogger(__name__)

_AT_MOST_EVERY = 5.0
"""Seconds; a neighbour that comes and goes is not met by everybody each time."""
_LETTA_AWAY = (Kind.UNREACHABLE, Kind.BAD_KEY)
_JOBS_WAIT: dict[Check, tuple[str, ...]] = {
    "letta": tuple(ABOUT_LETTA[kind] for kind in _LETTA_AWAY),
    "homeserver_out": ("no answer%", "401 %", "5__ %", "5__"),
}
"""What stands as the error of a job that waits for this neighbour, as patterns of LIKE."""


class Waking:
    """Ends the waits for Letta and the homeserver when this process sees them working after it saw them away.

    Each replica does that for all: what waits stands in the database, and the lanes are announced.
    """

    def __init__(
        self,
        db: Database,
        turns: Turns,
        jobs: Jobs,
        lanes: Lanes,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._turns = turns
        self._jobs = jobs
        self._lanes = lanes
        self._health = health
        self._clock = clock
        self._away: set[Check] = set()
        self._rests: dict[Check, float] = {}

    async def look(self) -> None:
        """Wake whoever waited for a neighbour that is back; to be called whenever something changed, and regularly.

        Raises:
            DATABASE_ERRORS: not now; the next call does it.
        """
        for check in _JOBS_WAIT:
            ok, _, _ = self._health.known(check)
            if ok is False:
                self._away.add(check)
            elif ok and check in self._away and self._clock() >= self._rests.get(check, 0.0):
                await self._wake(check)
                self._away.discard(check)
                self._rests[check] = self._clock() + _AT_MOST_EVERY

    async def _wake(self, check: Check) -> None:
        async def work(conn: Connection) -> list[str]:
            lanes = await self._jobs.end_waits(conn, _JOBS_WAIT[check])
            if check == "letta":
                lanes += await self._turns.end_waits(conn, [kind.value for kind in _LETTA_AWAY])
            for lane in lanes:
                await self._lanes.announce(conn, lane)
            return lanes

        lanes = await self._db.write(work)
        for lane in lanes:
            self._lanes.wake(lane)
        if lanes:
            log.info("what waited goes on", extra={"action": "woken", "check": check, "lanes": len(lanes)})
