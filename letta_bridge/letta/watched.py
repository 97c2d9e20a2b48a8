"""A backend that is watched: what every call came to, for health and metrics, without asking Letta anything more."""

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from ..ids import AgentID, ConversationID, Otid, RunID
from ..sight import Sight
from .backend import (
    Agent,
    AgentListing,
    Backend,
    Health,
    HistoryItem,
    NewAgent,
    Outcome,
    Prompt,
    RunFailed,
    RunStarted,
    TurnEvent,
    Unknown,
)
from .errors import Kind, LettaError

log = logging.getLogger(__name__)

T = TypeVar("T")
Seen = Callable[[Kind | None], None]
"""Told of every call: None when Letta did what it was asked, else the kind of trouble."""


class WatchedBackend:
    """Passes everything on, and tells what came of it.

    What Letta and the model's provider say about a failure stands in the log at DEBUG only: it may quote the prompt.
    """

    def __init__(self, inner: Backend, sight: Sight, seen: Seen) -> None:
        self._inner = inner
        self._sight = sight
        self._seen = seen

    async def health(self) -> Health:
        return await self._watch("health", self._inner.health())

    async def list_agents(self) -> AgentListing:
        return await self._watch("list_agents", self._inner.list_agents())

    async def get_agent(self, agent_id: AgentID) -> Agent:
        return await self._watch("get_agent", self._inner.get_agent(agent_id))

    async def create_agent(self, new: NewAgent, *, key: str) -> Agent:
        return await self._watch("create_agent", self._inner.create_agent(new, key=key))

    async def rename_agent(self, agent_id: AgentID, name: str) -> Agent:
        return await self._watch("rename_agent", self._inner.rename_agent(agent_id, name))

    async def delete_agent(self, agent_id: AgentID) -> None:
        await self._watch("delete_agent", self._inner.delete_agent(agent_id))

    async def history(self, agent_id: AgentID, limit: int) -> Sequence[HistoryItem]:
        return await self._watch("history", self._inner.history(agent_id, limit))

    async def models(self) -> Sequence[str]:
        return await self._watch("models", self._inner.models())

    async def fingerprint(self) -> str | None:
        return await self._watch("fingerprint", self._inner.fingerprint())

    async def read_marker(self) -> str | None:
        return await self._watch("read_marker", self._inner.read_marker())

    async def write_marker(self, value: str) -> None:
        await self._watch("write_marker", self._inner.write_marker(value))

    async def open_conversation(self, agent_id: AgentID, label: str) -> ConversationID:
        return await self._watch("open_conversation", self._inner.open_conversation(agent_id, label))

    async def refresh_memory(self, agent_id: AgentID, conversation_id: ConversationID, known: str) -> str:
        return await self._watch("refresh_memory", self._inner.refresh_memory(agent_id, conversation_id, known))

    def send(
        self, agent_id: AgentID, conversation_id: ConversationID, prompts: Sequence[Prompt], *, deadline: float
    ) -> AsyncIterator[TurnEvent]:
        return self._follow("send", self._inner.send(agent_id, conversation_id, prompts, deadline=deadline))

    def resume(
        self, agent_id: AgentID, conversation_id: ConversationID, run_id: RunID, *, deadline: float
    ) -> AsyncIterator[TurnEvent]:
        return self._follow("resume", self._inner.resume(agent_id, conversation_id, run_id, deadline=deadline))

    async def find(
        self,
        agent_id: AgentID,
        conversation_id: ConversationID,
        *,
        run_id: RunID | None,
        otids: Sequence[Otid],
        settle: float,
        since: float | None = None,
    ) -> Outcome:
        looking = self._inner.find(agent_id, conversation_id, run_id=run_id, otids=otids, settle=settle, since=since)
        outcome = await self._watch("find", looking)
        if isinstance(outcome, RunFailed | Unknown):
            log.debug("what Letta says of a turn", extra={"action": "letta_found", "text": outcome.detail})
        return outcome

    async def cancel(self, agent_id: AgentID, run_id: RunID) -> None:
        await self._watch("cancel", self._inner.cancel(agent_id, run_id))

    async def deny_approval(self, agent_id: AgentID, conversation_id: ConversationID, reason: str) -> bool:
        return await self._watch("deny_approval", self._inner.deny_approval(agent_id, conversation_id, reason))

    async def close(self) -> None:
        await self._inner.close()

    async def _watch(self, call: str, asking: Awaitable[T]) -> T:
        began = time.monotonic()
        try:
            answer = await asking
        except LettaError as error:
            self._failed(call, error, began)
            raise
        self._worked(call, began)
        return answer

    async def _follow(self, call: str, stream: AsyncIterator[TurnEvent]) -> AsyncGenerator[TurnEvent, None]:
        """The call has done its work once Letta names the run; what follows is ``stream``."""
        began = time.monotonic()
        part = call
        try:
            async with aclosing(stream) as events:  # type: ignore[type-var]
                async for event in events:
                    if part == call and isinstance(event, RunStarted):
                        self._worked(call, began)
                        part, began = "stream", time.monotonic()
                    yield event
        except LettaError as error:
            self._failed(part, error, began)
            raise
        if part != call:
            self._worked(part, began)

    def _worked(self, call: str, began: float) -> None:
        self._sight.letta(call, "ok", time.monotonic() - began)
        self._seen(None)

    def _failed(self, call: str, error: LettaError, began: float) -> None:
        self._sight.letta(call, error.kind.value, time.monotonic() - began)
        self._seen(error.kind)
        extra = {"action": "letta_said", "call": call, "kind": error.kind.value, "text": error.detail}
        log.debug("what Letta said", extra=extra)
