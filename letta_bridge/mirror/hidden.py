"""Asking Letta by id for agents that its list leaves out: one that is only hidden is not gone."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from ..ids import AgentID
from ..letta.backend import Backend
from ..letta.errors import Kind, LettaError

log = logging.getLogger(__name__)

_TOGETHER = 10
_BELIEVED = 3600.0
"""Seconds for which it is believed that Letta has an agent that it does not list."""


class Hidden:
    """Who is there although no list has them.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self._until: dict[AgentID, float] = {}

    def known(self) -> set[AgentID]:
        """Who was found lately."""
        now = self._clock()
        self._until = {agent_id: until for agent_id, until in self._until.items() if until > now}
        return set(self._until)

    async def ask(self, agent_ids: Sequence[AgentID]) -> tuple[set[AgentID], set[AgentID]]:
        """Which of them Letta has all the same, and of which that cannot be known now. The others are gone."""
        there: set[AgentID] = set()
        unsure: set[AgentID] = set()
        queue = iter(agent_ids)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_TOGETHER, len(agent_ids))):
                group.create_task(self._ask(queue, there, unsure))
        for agent_id in set(agent_ids) - there - unsure:
            self._until.pop(agent_id, None)
        for agent_id in there:
            log.info("agent is hidden in Letta", extra={"action": "agent_hidden", "agent": agent_id})
            self._until[agent_id] = self._clock() + _BELIEVED
        return there, unsure

    async def _ask(self, queue: Iterable[AgentID], there: set[AgentID], unsure: set[AgentID]) -> None:
        for agent_id in queue:
            try:
                await self._backend.get_agent(agent_id)
            except LettaError as error:
                if error.kind is not Kind.AGENT_GONE:
                    unsure.add(agent_id)
            else:
                there.add(agent_id)
