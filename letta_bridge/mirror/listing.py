"""Asking Letta for its agents: one listing at a time, shared by all who wait for it."""

import asyncio
from collections.abc import Callable

from ..ids import MXID
from ..letta.backend import Agent, AgentListing, Backend
from ..letta.errors import Kind, LettaError
from .names import Names
from .settings import MirrorSettings

_ABSENT_FOR = 30.0
_MOST_ABSENT = 1000


class Listings:
    """The agents of the configured Letta that are to be mirrored."""

    def __init__(self, backend: Backend, names: Names, settings: MirrorSettings, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._names = names
        self._settings = settings
        self._clock = clock
        self._lock = asyncio.Lock()
        self._begun = 0
        self._number = 0
        self._last: AgentListing | LettaError | None = None
        self._absent: dict[MXID, float] = {}

    async def get(self) -> AgentListing:
        """A listing that was begun after this call. Raises LettaError."""
        ticket = self._begun
        async with self._lock:
            if self._last is None or self._number <= ticket:
                self._begun += 1
                self._number = self._begun
                try:
                    self._last = await self._backend.list_agents()
                except LettaError as error:
                    self._last = error
                except BaseException:
                    self._last = None
                    raise
            if isinstance(self._last, LettaError):
                raise self._last
            return self._last

    def forget(self) -> None:
        """The newest listing is not to be used any more: whoever asks next gets another."""
        self._last = None

    def wanted(self, agent: Agent) -> bool:
        """Whether an agent is to be mirrored."""
        return not agent.companion and self._settings.wants(agent.id, agent.name, agent.tags)

    async def find(self, mxid: MXID) -> tuple[Agent, AgentListing] | None:
        """The agent whose new puppet ``mxid`` would be, and the list that has it; None when there certainly is none to
        be mirrored (believed for 30 s).

        Not for users that stand in a row: an agent that took the place of another has that one's puppet.

        Raises:
            LettaError: it cannot be known now.
        """
        if self._absent.get(mxid, 0.0) > self._clock():
            return None
        if isinstance(self._last, AgentListing) and (known := self._in(self._last, mxid)) and self.wanted(known):
            return known, self._last
        listing = await self.get()
        if agent := self._in(listing, mxid):
            return (agent, listing) if self.wanted(agent) else None
        if not listing.complete:
            raise LettaError(Kind.UNREACHABLE, "the list of agents could not be read to its end")
        self._remember_absent(mxid)
        return None

    def _in(self, listing: AgentListing, mxid: MXID) -> Agent | None:
        return next((agent for agent in listing.agents if self._names.mxid(agent.id) == mxid), None)

    def _remember_absent(self, mxid: MXID) -> None:
        now = self._clock()
        if len(self._absent) >= _MOST_ABSENT:
            self._absent = {key: until for key, until in self._absent.items() if until > now}
        if len(self._absent) < _MOST_ABSENT:
            self._absent[mxid] = now + _ABSENT_FOR
