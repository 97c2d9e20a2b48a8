"""What it means that Letta says of an agent that there is none: asked before anybody is told that the agent is gone.

It is decided from the same look as the mirror's own, made now. That look writes nothing and needs no lane: it waits
for no pass, and works while the mirror is busy or in another replica. The mirror is asked to look as well, so that
administrators are asked, or the agent becomes missing.
"""

import asyncio
import logging
from collections.abc import Callable

from ..db.database import Connection, Database
from ..db.turns import Turns
from ..ids import AgentID
from ..lanes import Lanes
from ..letta.errors import Kind, LettaError
from .guard import Who
from .refresh import Refreshes
from .roster import Look, Roster
from .writer import Writer

log = logging.getLogger(__name__)

_GATHER = 0.1
"""Seconds in which those who meet the same at the same time come together for one look."""
_STILL = 2.0
"""Seconds for which a doubt is believed without another look, until the mirror has written it down."""
_LONGEST = 60.0
"""Seconds that a look may take; Letta's own time limits end it before."""


class Absences:
    """Judges single agents that Letta does not have.

    Args:
        clock: seconds that never go back.
    """

    def __init__(
        self, db: Database, lanes: Lanes, roster: Roster, refreshes: Refreshes, clock: Callable[[], float]
    ) -> None:
        self._turns = Turns(db)
        self._lanes = lanes
        self._roster = roster
        self._refreshes = refreshes
        self._clock = clock
        self._lock = asyncio.Lock()
        self._begun = 0
        self._number = 0
        self._last: Look | None = None
        self._doubtful_until = float("-inf")

    async def judge(self, agent_id: AgentID) -> Kind:
        """What trouble it is that Letta has just said of an agent that is mirrored as present: there is none.

        ``AGENT_GONE``: it is ours that said so, and the agent is gone. ``NOT_OURS``: an administrator is, or will be,
        asked about it. ``UNREACHABLE``: that cannot be known now. ``INTERNAL``: Letta has the agent all the same.
        """
        for _ in range(2):
            if self._clock() < self._doubtful_until or await self._roster.guard.in_doubt():
                return Kind.NOT_OURS
            seen = await self._see()
            if seen is None:
                return Kind.UNREACHABLE
            if any(agent.id == agent_id for agent in seen.listing.agents):
                return Kind.INTERNAL
            if seen.verdict.why is not None:
                return Kind.NOT_OURS
            if not _certain(seen):
                return Kind.UNREACHABLE
            # once more: who said it first may have been another than the one that was seen
            has = await self._roster.has(agent_id)
            if has is None:
                return Kind.UNREACHABLE
            if has or agent_id not in seen.evidence.listed:
                return Kind.INTERNAL if has else Kind.AGENT_GONE
            # it was only believed to be hidden, and so was evidence: a second look goes without that
        return Kind.UNREACHABLE

    async def decided(self, writer: Writer) -> None:
        """What was in doubt is decided, or another question: messages that wait for that are tried again at once."""
        self._doubtful_until = float("-inf")

        async def work(conn: Connection) -> list[str]:
            lanes = await self._turns.end_waits(conn, [Kind.NOT_OURS.value])
            for lane in lanes:
                await self._lanes.announce(conn, lane)
            return lanes

        lanes = await writer.run(work)
        for lane in lanes:
            self._lanes.wake(lane)
        if lanes:
            log.info("what waited goes on", extra={"action": "woken", "check": "guard", "lanes": len(lanes)})

    async def _see(self) -> Look | None:
        """A look that began after this call, shared by all who wait for one; None: it cannot be had now."""
        ticket = self._begun
        async with self._lock:
            if self._number <= ticket:
                await asyncio.sleep(_GATHER)
                self._begun += 1
                self._last, self._number = None, self._begun
                self._last = await self._look()
            return self._last

    async def _look(self) -> Look | None:
        try:
            async with asyncio.timeout(_LONGEST):
                seen = await self._roster.see()
        except (LettaError, TimeoutError):
            return None
        if seen.verdict.why is not None:
            self._doubtful_until = self._clock() + _STILL
        if seen.verdict.why is not None or seen.picture.gone:
            await self._refreshes.request()
        return seen


def _certain(seen: Look) -> bool:
    """Whether it is our Letta, and nobody has to be asked about who is not there."""
    if seen.listing.complete:
        return seen.verdict.remove
    return seen.verdict.add and seen.who in (Who.SAME, Who.UNTOLD)
