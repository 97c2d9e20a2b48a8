"""The V1 REST server (0.16.8, self-hosted) as a :class:`~letta_bridge.letta.backend.Backend`.

Sends go through the conversations route, always streaming: it is the only one with a lock and with recovery. With
Redis on Letta's side they run in the background, so that a stream can be attached to again; Letta says with a 503
when it has none, and that answer is remembered for the life of this object.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from ..ids import MAIN_CONVERSATION, AgentID, ConversationID, Otid, RunID
from .backend import Agent, AgentListing, Health, HistoryItem, NewAgent, Outcome, Prompt, TurnEvent
from .errors import Delivery, Kind, LettaError
from .v1_agents import agent_of, listed, memory_fingerprint, streams_tokens
from .v1_errors import NoRedis, NotFound
from .v1_history import read_history
from .v1_http import ALL_AGENTS, V1Http
from .v1_manage import Management
from .v1_recovery import FINAL, Recovery, failed, next_message, timed_out
from .v1_stream import Json, Translator, calls_of

log = logging.getLogger(__name__)

DENIAL_TIME = 300.0
"""Seconds for the run that a denied approval starts."""

_DENIALS = 5  # approvals denied one after the other; an agent that goes on asking is stuck
_BUSY_WAIT, _BUSY_POLL = 30.0, 0.5


class V1Backend:
    """A Letta V1 server.

    Args:
        url: base URL without ``/v1``.
        api_key: password or key; ``None`` for a server without authentication.
        request_timeout: seconds for each request that is not a stream.
        connect_timeout: seconds to establish a connection.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        request_timeout: float = 30,
        connect_timeout: float = 5,
    ) -> None:
        self._http = V1Http(
            url,
            api_key,
            request_timeout=request_timeout,
            connect_timeout=connect_timeout,
        )
        self._recovery = Recovery(self._http)
        self._manage = Management(self._http)
        self._background = True
        self._denied: dict[str, int] = {}
        self._tokens: dict[AgentID, bool] = {}
        self._denying: WeakValueDictionary[tuple[AgentID, ConversationID], asyncio.Lock] = WeakValueDictionary()

    async def health(self) -> Health:
        try:
            answer = await self._http.health()
        except LettaError as error:
            raise LettaError(Kind.UNREACHABLE, error.detail, retry_after=error.retry_after) from error
        return Health(str(answer.get("version") or "unknown"))

    async def list_agents(self) -> AgentListing:
        page = await self._http.agents(listed, limit=ALL_AGENTS)
        found = {one.agent.id: one for one in page}
        complete = len(page) < ALL_AGENTS
        if complete and page:
            # a server that silently caps the page would make every further agent look deleted
            more = await self._http.agents(listed, limit=1, after=page[-1].agent.id)
            complete = all(one.agent.id in found for one in more)
        self._tokens = {agent_id: one.streams_tokens for agent_id, one in found.items()}
        for member in {AgentID(member) for one in page for member in one.companions}:
            if (one := found.get(member)) is not None:
                found[member] = replace(one, agent=replace(one.agent, companion=True))
        return AgentListing(tuple(one.agent for one in found.values()), complete)

    async def get_agent(self, agent_id: AgentID) -> Agent:
        try:
            return agent_of(await self._http.agent(agent_id))
        except NotFound as error:
            raise LettaError(Kind.AGENT_GONE, error.detail) from error

    async def create_agent(self, new: NewAgent, *, key: str) -> Agent:
        return await self._manage.create(new, key)

    async def rename_agent(self, agent_id: AgentID, name: str) -> Agent:
        return await self._manage.rename(agent_id, name)

    async def delete_agent(self, agent_id: AgentID) -> None:
        await self._manage.delete(agent_id)

    async def history(self, agent_id: AgentID, limit: int) -> Sequence[HistoryItem]:
        try:
            return await read_history(self._http, agent_id, limit)
        except NotFound as error:
            await self._gone(agent_id, MAIN_CONVERSATION, error)

    async def models(self) -> Sequence[str]:
        return await self._http.models()

    async def fingerprint(self) -> str | None:
        return await self._manage.fingerprint()

    async def read_marker(self) -> str | None:
        return await self._manage.read_marker()

    async def write_marker(self, value: str) -> None:
        await self._manage.write_marker(value)

    async def open_conversation(self, agent_id: AgentID, label: str) -> ConversationID:
        # Letta's search is an SQL LIKE, in which a backslash would not mean itself
        part = max(label.split("\\"), key=len)
        try:
            same = [row for row in await self._http.conversations(agent_id, part) if row.get("summary") == label]
            if same:
                oldest = min(same, key=lambda row: str(row.get("created_at")))
                return ConversationID(oldest["id"])
            return ConversationID((await self._http.create_conversation(agent_id, label))["id"])
        except NotFound as error:
            await self._gone(agent_id, MAIN_CONVERSATION, error)

    async def refresh_memory(self, agent_id: AgentID, conversation_id: ConversationID, known: str) -> str:
        if conversation_id == MAIN_CONVERSATION:
            return known
        try:
            fingerprint = memory_fingerprint(await self._http.blocks(agent_id))
            if fingerprint != known:
                await self._http.recompile(conversation_id)
        except NotFound as error:
            await self._gone(agent_id, conversation_id, error)
        return fingerprint

    async def send(
        self, agent_id: AgentID, conversation_id: ConversationID, prompts: Sequence[Prompt], *, deadline: float
    ) -> AsyncGenerator[TurnEvent, None]:
        until = asyncio.get_running_loop().time() + deadline
        messages = [{"role": "user", "content": prompt.text, "otid": prompt.otid} for prompt in prompts]
        otids = frozenset(prompt.otid for prompt in prompts)
        tokens = await self._wants_tokens(agent_id)
        while True:
            background = self._background
            try:
                async with aclosing(
                    self._turn(agent_id, conversation_id, messages, otids, until, background, tokens)
                ) as events:
                    async for event in events:
                        yield event
                return
            except NoRedis:
                if not background:
                    raise
                log.info("letta has no redis: streaming in the foreground", extra={"action": "no_redis"})
                self._background = False

    async def resume(
        self, agent_id: AgentID, conversation_id: ConversationID, run_id: RunID, *, deadline: float
    ) -> AsyncGenerator[TurnEvent, None]:
        until = asyncio.get_running_loop().time() + deadline
        try:
            async with aclosing(self._recovery.follow(agent_id, run_id, until=until)) as events:
                async for event in events:
                    yield event
        except NotFound as error:
            await self._gone(agent_id, conversation_id, error, Delivery.UNKNOWN)
        except LettaError as error:
            raise _of_the_past(error, run_id) from error

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
        try:
            return await self._recovery.find(
                agent_id, conversation_id, run_id=run_id, otids=otids, settle=settle, since=since
            )
        except NotFound as error:
            await self._gone(agent_id, conversation_id, error, Delivery.UNKNOWN)
        except LettaError as error:
            raise _of_the_past(error, run_id) from error

    async def cancel(self, agent_id: AgentID, run_id: RunID) -> None:
        try:
            # cancelling a run that is over would still deny an approval that is pending in the main thread
            if str((await self._http.run(run_id)).get("status")) in FINAL:
                return
            if await self._http.cancel(agent_id, run_id):
                return
            if str((await self._http.run(run_id)).get("status")) not in FINAL:
                raise LettaError(Kind.INTERNAL, "Letta did not cancel the run", run_id=run_id)
        except NotFound as error:
            await self._gone(agent_id, MAIN_CONVERSATION, error)

    async def deny_approval(self, agent_id: AgentID, conversation_id: ConversationID, reason: str) -> bool:
        # a request that is answered twice makes the agent run an extra turn, and without Redis nothing prevents it
        async with self._denying.setdefault((agent_id, conversation_id), asyncio.Lock()):
            try:
                return await self._deny_pending(agent_id, conversation_id, reason)
            except NotFound as error:
                await self._gone(agent_id, conversation_id, error)

    async def close(self) -> None:
        await self._http.close()

    async def _turn(
        self,
        agent_id: AgentID,
        conversation_id: ConversationID,
        messages: Sequence[Mapping[str, Any]],
        otids: frozenset[Otid],
        until: float,
        background: bool,
        tokens: bool,
    ) -> AsyncGenerator[TurnEvent, None]:
        translator = Translator()
        async with aclosing(
            self._http.send(agent_id, conversation_id, messages, background=background, tokens=tokens)
        ) as stream:
            while True:
                try:
                    message = await next_message(stream, until)
                except TimeoutError as error:
                    raise _deadline_passed(translator.run_id) from error
                except NotFound as error:
                    await self._gone(agent_id, conversation_id, error)
                except LettaError as error:
                    raise _interrupted(error, translator.run_id) from error
                if message is None:
                    break
                for event in translator.feed(message):
                    yield event
                if translator.error_seen:
                    break
        if translator.failure:
            raise await self._failure(translator, otids)
        if translator.stop_reason is None:
            raise _interrupted(None, translator.run_id)
        for event in translator.finish():
            yield event

    async def _wants_tokens(self, agent_id: AgentID) -> bool:
        if agent_id not in self._tokens:
            try:
                self._tokens[agent_id] = streams_tokens(await self._http.agent(agent_id))
            except NotFound as error:
                raise LettaError(Kind.AGENT_GONE, error.detail) from error
            except LettaError as error:
                # nothing was handed over yet, however this question ended
                raise LettaError(
                    error.kind, error.detail, retry_after=error.retry_after, refused=error.refused
                ) from error
        return self._tokens[agent_id]

    async def _failure(self, translator: Translator, otids: frozenset[Otid]) -> LettaError:
        assert translator.failure
        if translator.failure[0] is Kind.APPROVAL:
            return failed(translator, Delivery.NO)
        return failed(translator, await self._recovery.stored(translator.run_id, otids))

    async def _gone(
        self,
        agent_id: AgentID,
        conversation_id: ConversationID,
        error: NotFound,
        delivery: Delivery = Delivery.NO,
    ) -> NoReturn:
        """Raise what a 404 means. Its texts vary and even a missing model gives one, so Letta is asked."""
        kind = Kind.REJECTED
        try:
            await self._http.agent(agent_id)
            if conversation_id != MAIN_CONVERSATION:
                kind = Kind.CONVERSATION_GONE
                await self._http.conversation(conversation_id)
            kind = Kind.REJECTED
        except NotFound:
            kind = Kind.AGENT_GONE if kind is Kind.REJECTED else kind
        except LettaError as other:
            raise LettaError(other.kind, other.detail, delivery=delivery) from error
        raise LettaError(kind, error.detail, delivery=delivery) from error

    async def _pending_approval(self, agent_id: AgentID, conversation_id: ConversationID) -> Json | None:
        if conversation_id == MAIN_CONVERSATION:
            pending = (await self._http.agent(agent_id, pending_approval=True)).get("pending_approval")
            return pending if isinstance(pending, dict) else None
        # what the agent offers for its main thread does not exist for conversations: the newest message tells
        rows = await self._http.history(agent_id, conversation_id, limit=1)
        return next((row for row in rows if row.get("message_type") == "approval_request_message"), None)

    async def _wait_until_idle(self, agent_id: AgentID, conversation_id: ConversationID) -> None:
        until = asyncio.get_running_loop().time() + _BUSY_WAIT
        while run_id := await self._recovery.live_run(agent_id, conversation_id):
            if asyncio.get_running_loop().time() > until:
                raise LettaError(Kind.BUSY, "a run of this conversation is not over", run_id=run_id)
            await asyncio.sleep(_BUSY_POLL)

    async def _deny_pending(self, agent_id: AgentID, conversation_id: ConversationID, reason: str) -> bool:
        for denied in range(_DENIALS):
            if await self._pending_approval(agent_id, conversation_id) is None:
                return denied > 0
            # an answer may be on its way already, from here before a restart or from another client
            await self._wait_until_idle(agent_id, conversation_id)
            request = await self._pending_approval(agent_id, conversation_id)
            if request is None:
                return True
            try:
                await self._deny(agent_id, conversation_id, request, reason)
            except LettaError as error:
                # Letta keeps the denial even when the model fails on it: then the run is over and the agent usable
                if error.run_id is None or error.kind in (Kind.INTERRUPTED, Kind.TIMEOUT, Kind.BUSY):
                    raise
                left = await self._pending_approval(agent_id, conversation_id)
                if left is not None and left["id"] == request["id"]:
                    raise
        raise LettaError(Kind.APPROVAL, "the agent goes on asking for approval")

    async def _deny(self, agent_id: AgentID, conversation_id: ConversationID, request: Json, reason: str) -> None:
        """Deny every tool call of the request (Letta wants them all in one answer) and wait for the run.

        The otid makes a repeated answer a replay where Letta has Redis; it changes when a run of it is known to have
        failed, because the replay of a failed run fails again.
        """
        request_id = str(request["id"])
        otid = _denial_otid(agent_id, conversation_id, request_id, self._denied.get(request_id, 0))
        approvals = [
            {"type": "approval", "approve": False, "tool_call_id": call.get("tool_call_id"), "reason": reason}
            for call in calls_of(request)
        ]
        answer = {"type": "approval", "approvals": approvals, "otid": otid}
        until = asyncio.get_running_loop().time() + DENIAL_TIME
        while True:
            background = self._background
            try:
                async with aclosing(
                    self._turn(agent_id, conversation_id, [answer], frozenset(), until, background, tokens=False)
                ) as events:
                    async for _ in events:
                        pass
                self._denied.pop(request_id, None)
                return
            except NoRedis:
                if not background:
                    raise
                self._background = False
            except LettaError as error:
                if error.delivery is Delivery.NO and error.run_id is not None:
                    self._denied[request_id] = self._denied.get(request_id, 0) + 1
                raise


def _denial_otid(agent_id: AgentID, conversation_id: ConversationID, request_id: str, attempt: int) -> Otid:
    material = "\x00".join((agent_id, conversation_id, request_id, str(attempt)))
    return Otid("lb-deny-" + hashlib.sha256(material.encode("utf-8", "surrogatepass")).hexdigest()[:40])


def _deadline_passed(run_id: RunID | None) -> LettaError:
    if run_id is not None:
        return timed_out(run_id)
    return LettaError(Kind.TIMEOUT, "the deadline passed before Letta named a run", delivery=Delivery.UNKNOWN)


def _of_the_past(error: LettaError, run_id: RunID | None) -> LettaError:
    """``error`` of a look-up. That the question was not delivered says nothing of the messages it was about."""
    if error.delivery is not Delivery.NO:
        return error
    return LettaError(
        error.kind,
        error.detail,
        delivery=Delivery.UNKNOWN,
        run_id=error.run_id or run_id,
        retry_after=error.retry_after,
        refused=error.refused,
    )


def _interrupted(error: LettaError | None, run_id: RunID | None) -> LettaError:
    """What a broken stream means; before the run was named, ``error`` itself says what is known."""
    if error is not None and run_id is None:
        return error
    detail = error.detail if error is not None else "the stream was closed before the run ended"
    return LettaError(Kind.INTERRUPTED, detail, delivery=Delivery.UNKNOWN, run_id=run_id)
