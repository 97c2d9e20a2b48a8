"""The requests of the V1 REST API that the bridge makes, with plain JSON as their answers.

letta-client knows the paths and parameters; its models are not used: they take seconds for thousands of agents, in the
event loop. What every message costs goes straight over the :mod:`wire <letta_bridge.letta.v1_wire>`. Nothing here is
ever retried: a repeated send is a second message to the agent.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeVar

import anyio._backends._asyncio  # noqa: F401 - loaded at the first request otherwise, which holds up the running loop
import httpcore  # noqa: F401 - likewise
import httpx
import letta_client
import letta_client.resources.agents
import letta_client.resources.conversations
import letta_client.resources.runs
from letta_client import AsyncLetta, DefaultAsyncHttpxClient

from ..ids import MAIN_CONVERSATION, AgentID, ConversationID, LettaMessageID, Otid, RunID
from .errors import Kind, LettaError
from .v1_errors import from_exception
from .v1_stream import Json, read_sse
from .v1_wire import Wire, elements, parsed

T = TypeVar("T")

CONNECTIONS = 1000
"""Streams that may be open at once; letta-client's own default of 100 would make the 101st turn wait unseen."""

STREAM_SILENCE = 75.0
"""Seconds without a byte after which a stream counts as broken. Letta pings every 20 s."""

ALL_AGENTS = 20_000
"""Agents asked for in one page. Small pages lose agents: an unknown cursor silently starts again at the first one."""

LONG_LIST = 120.0
"""Seconds that Letta may take for the list of all agents (about 1.7 s per thousand were measured)."""

# uvicorn closes idle connections after 5 s; one that is just being closed would swallow a send
_IDLE = 3.0
_NO_KEY = "none"  # letta-client insists on a key; a Letta without a password takes any


class V1Http:
    """One Letta V1 server. Every method raises :class:`LettaError` (404: its subclass ``NotFound``)."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        request_timeout: float,
        connect_timeout: float,
    ) -> None:
        timeout = httpx.Timeout(request_timeout, connect=connect_timeout)
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=20, keepalive_expiry=_IDLE)
        self._key = api_key
        self._stream_timeout = httpx.Timeout(
            request_timeout, connect=connect_timeout, read=max(STREAM_SILENCE, request_timeout)
        )
        self._list_timeout = httpx.Timeout(max(LONG_LIST, request_timeout), connect=connect_timeout)
        self._client = AsyncLetta(
            api_key=api_key or _NO_KEY,
            base_url=url,
            timeout=timeout,
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(timeout=timeout, limits=limits),
        )
        self._wire = Wire(
            url,
            api_key,
            request_timeout=request_timeout,
            connect_timeout=connect_timeout,
            silence=max(STREAM_SILENCE, request_timeout),
            connections=CONNECTIONS,
            idle=_IDLE,
        )
        self._raw = self._client.with_raw_response

    async def close(self) -> None:
        """Close every connection, those of open streams included."""
        await self._client.close()
        await self._wire.close()

    async def health(self) -> Json:
        """``{"version": …, "status": "ok"}``."""
        return _object(await self._json(self._raw.health()))

    async def agents(
        self,
        take: Callable[[Json], T],
        *,
        limit: int,
        after: str | None = None,
        name: str | None = None,
        newest_first: bool = False,
    ) -> list[T]:
        """What ``take`` makes of each agent of one page, oldest first, with tags and groups. It runs on a thread.

        ``name`` leaves those of exactly this name; the empty one leaves all.
        """
        call = self._raw.agents.list(
            limit=limit,
            order="desc" if newest_first else "asc",
            after=after,
            name=name,
            include=["agent.tags", "agent.managed_group"],
            timeout=self._list_timeout,
        )
        async with self._errors():
            body: bytes = await (await call).read()
            return await asyncio.to_thread(elements, body, lambda row: take(_thing(row)))

    async def agent(self, agent_id: AgentID, *, pending_approval: bool = False) -> Json:
        """One agent, with tags, or with what approval is pending in its main thread."""
        if pending_approval:
            return _thing(await self._json(self._raw.agents.retrieve(agent_id, include=["agent.pending_approval"])))
        return _thing(
            await self._json(self._raw.agents.retrieve(agent_id, include=["agent.tags", "agent.managed_group"]))
        )

    async def create_agent(self, fields: Mapping[str, Any]) -> Json:
        """A new agent. Not idempotent."""
        return _thing(await self._json(self._raw.agents.create(**fields)))

    async def rename_agent(self, agent_id: AgentID, name: str) -> Json:
        """The agent, renamed."""
        return _thing(await self._json(self._raw.agents.update(agent_id, name=name)))

    async def delete_agent(self, agent_id: AgentID) -> None:
        """Delete an agent and all that is its own."""
        await self._json(self._raw.agents.delete(agent_id))

    async def models(self) -> list[str]:
        """The handles of the language models."""
        rows = await self._json(self._raw.models.list())
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise LettaError(Kind.INTERNAL, "the answer is not the list of models that was asked for")
        handles = [row.get("handle") for row in rows if row.get("model_type") in (None, "llm")]
        return [handle for handle in handles if isinstance(handle, str) and handle]

    async def organisations(self) -> list[Json] | None:
        """The organisations, or ``None`` when this server keeps them to itself (401, 403, or no such path)."""
        try:
            value = await self._client.get("/v1/admin/orgs/", cast_to=object)
        except (letta_client.NotFoundError, letta_client.PermissionDeniedError, letta_client.AuthenticationError):
            return None
        except (letta_client.APIError, httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise from_exception(error, self._key) from error
        except (ValueError, RecursionError) as error:
            raise LettaError(Kind.INTERNAL, "the answer is no JSON") from error
        return _things(value)

    async def blocks_labelled(self, label: str) -> list[Json]:
        """Memory blocks of exactly this label, oldest first, attached or not."""
        return _things(await self._json(self._raw.blocks.list(label=label, limit=1000, order="asc")))

    async def create_block(self, label: str, value: str, description: str) -> None:
        """A new block that no agent has. Not idempotent."""
        await self._json(self._raw.blocks.create(label=label, value=value, description=description))

    async def change_block(self, block_id: str, value: str) -> None:
        """Give a block another value."""
        await self._json(self._raw.blocks.update(block_id, value=value))

    async def blocks(self, agent_id: AgentID) -> list[Json]:
        """The agent's memory blocks."""
        return _things(await self._wire.get("agents", agent_id, "core-memory", "blocks", query={"limit": "1000"}))

    async def conversations(self, agent_id: AgentID, summary_part: str) -> list[Json]:
        """Conversations whose summary contains ``summary_part``, newest first. Empty for an unknown agent."""
        call = self._raw.conversations.list(agent_id=agent_id, summary_search=summary_part, limit=1000)
        return _things(await self._json(call))

    async def conversation(self, conversation_id: ConversationID) -> Json:
        """One conversation; the main one cannot be asked for."""
        return _thing(await self._json(self._raw.conversations.retrieve(conversation_id)))

    async def create_conversation(self, agent_id: AgentID, summary: str) -> Json:
        """A new conversation. Not idempotent."""
        return _thing(await self._json(self._raw.conversations.create(agent_id=agent_id, summary=summary)))

    async def recompile(self, conversation_id: ConversationID) -> None:
        """Compile the conversation's system prompt from the present memory."""
        await self._json(self._raw.conversations.recompile(conversation_id))

    async def history(
        self,
        agent_id: AgentID,
        conversation_id: ConversationID,
        *,
        limit: int,
        before: LettaMessageID | None = None,
    ) -> list[Json]:
        """The newest ``limit`` messages (before ``before``), newest first whatever the route's own order is.

        A deleted conversation has an empty history, not a 404.
        """
        main = conversation_id == MAIN_CONVERSATION
        call = self._raw.conversations.messages.list(
            conversation_id, agent_id=agent_id if main else letta_client.omit, limit=limit, before=before, order="desc"
        )
        rows = _things(await self._json(call))
        # on 0.16.8 "desc" of the main thread gives the newest page in ascending order
        return rows[::-1] if main else rows

    async def runs(self, agent_id: AgentID, *, limit: int) -> list[Json]:
        """The agent's newest runs in any of its conversations, newest first."""
        return _things(await self._json(self._raw.runs.list(agent_id=agent_id, limit=limit)))

    async def run(self, run_id: RunID) -> Json:
        """One run."""
        return _thing(await self._json(self._raw.runs.retrieve(run_id)))

    async def run_messages(self, run_id: RunID) -> list[Json]:
        """What the run stored, in order: the messages handed over, then what the agent did and said."""
        return _things(await self._json(self._raw.runs.messages.list(run_id, limit=1000, order="asc")))

    async def cancel(self, agent_id: AgentID, run_id: RunID) -> bool:
        """Cancel this run; whether Letta says that it did."""
        answer = await self._json(self._raw.agents.messages.cancel(agent_id, run_ids=[run_id]))
        return isinstance(answer, Mapping) and answer.get(run_id) == "cancelled"

    def send(
        self,
        agent_id: AgentID,
        conversation_id: ConversationID,
        messages: Sequence[Mapping[str, Any]],
        *,
        background: bool,
        tokens: bool,
    ) -> AsyncGenerator[Json, None]:
        """Hand over ``messages`` and yield the messages of the stream: with ``tokens`` in pieces, else whole."""
        body: dict[str, Any] = {
            "messages": messages,
            "streaming": True,
            "stream_tokens": tokens,
            "include_pings": True,
            "background": background,
        }
        if conversation_id == MAIN_CONVERSATION:
            body["agent_id"] = agent_id
        return self._wire.stream("conversations", conversation_id, "messages", body=body)

    def attach(
        self, agent_id: AgentID, *, run_id: RunID | None = None, otid: Otid | None = None, after: int = 0
    ) -> AsyncGenerator[Json, None]:
        """Yield the messages of a background run (by its id or an otid) after sequence number ``after``.

        Letta does not compare the run with the conversation in the path, so this goes through the main one. A
        foreground run gives silence without end.
        """
        return self._stream(
            self._client.conversations.messages.with_streaming_response.stream(
                MAIN_CONVERSATION,
                agent_id=agent_id,
                run_id=run_id or letta_client.omit,
                otid=otid or letta_client.omit,
                starting_after=after,
                include_pings=True,
                timeout=self._stream_timeout,
            )
        )

    async def _stream(self, opening: AbstractAsyncContextManager[Any]) -> AsyncGenerator[Json, None]:
        try:
            async with opening as response, aclosing(read_sse(response.iter_bytes())) as messages:
                async for message in messages:
                    yield message
        except (letta_client.APIError, httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise from_exception(error, self._key) from error
        except ValueError as error:
            raise LettaError(Kind.INTERRUPTED, "the stream holds something that is no JSON") from error

    async def _json(self, call: Awaitable[Any]) -> Any:
        async with self._errors():
            return await parsed(await (await call).read())

    @asynccontextmanager
    async def _errors(self) -> AsyncGenerator[None, None]:
        try:
            yield
        except (letta_client.APIError, httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise from_exception(error, self._key) from error
        except (ValueError, RecursionError) as error:
            raise LettaError(Kind.INTERNAL, "the answer is no JSON") from error


def _object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise LettaError(Kind.INTERNAL, "the answer is not the JSON object that was asked for")
    return value


def _thing(value: Any) -> Json:
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        raise LettaError(Kind.INTERNAL, "the answer is not the JSON object with an id that was asked for")
    return value


def _things(value: Any) -> list[Json]:
    if not isinstance(value, list):
        raise LettaError(Kind.INTERNAL, "the answer is not the JSON list that was asked for")
    return [_thing(row) for row in value]
