"""What became of a turn: the state of its run, its messages in the history, and following a run that still works."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing
from datetime import datetime

from ..ids import MAIN_CONVERSATION, AgentID, ConversationID, LettaMessageID, Otid, RunID
from .backend import (
    Alive,
    Finished,
    Live,
    NotDelivered,
    Outcome,
    RunEnded,
    RunFailed,
    RunStarted,
    TurnEvent,
    Unknown,
)
from .errors import Delivery, Kind, LettaError
from .v1_errors import FAILURES, NoRedis, NotFound, classify_failure
from .v1_http import V1Http
from .v1_stream import DONE, Json, Told, Translator, run_id_of, whole_run

FINAL = frozenset({"completed", "failed", "cancelled"})
"""The states in which a run stays."""

_RUNS = 50  # newest runs of the agent that are looked at
_PAGE, _PAGES = 100, 3  # newest messages of the conversation that are looked at
_DEEP_PAGES = 100  # the same where what is looked for may have been handed over long ago
_ATTACH_SILENCE = 10.0  # seconds without news after which the run object is asked
_IDENTIFY = 5.0  # seconds to wait for the first message of a run that is looked up by otid
_POLL_FIRST, _POLL_MOST = 0.5, 2.0
_AFTER_DONE = 2.0  # seconds that the close of a stream may lag behind its [DONE]


class Recovery:
    """Looks up and follows runs of one Letta; changes nothing there."""

    def __init__(self, http: V1Http) -> None:
        self._http = http
        self._redis = True
        """Whether re-attaching to background runs is worth trying; ``False`` once Letta said that it has no Redis."""

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
        """See :meth:`letta_bridge.letta.backend.Backend.find`. Raises ``NotFound`` for what is not there."""
        if run_id is not None:
            try:
                return await self.conclude(await self._http.run(run_id), otids)
            except NotFound:
                await self._http.agent(agent_id)  # a run goes with its agent
            except LettaError as error:
                if error.kind is not Kind.REJECTED:  # that is said of an id that names no run
                    raise
        outcome = await self._look(agent_id, conversation_id, otids, since)
        if outcome is None:
            await asyncio.sleep(settle)
            outcome = await self._look(agent_id, conversation_id, otids, since)
        return NotDelivered() if outcome is None else outcome

    async def conclude(self, run: Json, otids: Collection[Otid]) -> Outcome:
        """What the object of a run says about the turn, with the run's messages when it is over."""
        run_id, status = RunID(str(run["id"])), str(run.get("status"))
        if status not in FINAL:
            return Live(run_id)
        reason = str(run.get("stop_reason") or "")
        messages = await self._http.run_messages(run_id)
        stored = any(str(message.get("otid")) in otids for message in messages)
        if "cancelled" in (status, reason):
            return RunFailed(run_id, Kind.INTERRUPTED, "the run was cancelled", cancelled=True, stored=stored)
        # a foreground stream that broke leaves a run that is "completed" with an error as its stop reason
        if reason in FAILURES or (status == "failed" and reason != "max_tokens_exceeded"):
            metadata = run.get("metadata")
            error = metadata.get("error") if isinstance(metadata, dict) else None
            kind, detail = classify_failure(error, reason or None)
            return RunFailed(run_id, kind, detail, stored=stored)
        return Finished(run_id, whole_run(run_id, messages, reason or "end_turn"))

    async def stored(self, run_id: RunID | None, otids: Collection[Otid]) -> Delivery:
        """Whether a run that failed kept the messages: it does when it failed after its first step."""
        if run_id is None:
            return Delivery.UNKNOWN
        try:
            messages = await self._http.run_messages(run_id)
        except LettaError:
            return Delivery.UNKNOWN
        return Delivery.YES if any(str(message.get("otid")) in otids for message in messages) else Delivery.NO

    async def live_run(self, agent_id: AgentID, conversation_id: ConversationID) -> RunID | None:
        """The newest run of this conversation that is not final, among the agent's newest runs."""
        for run in await self._http.runs(agent_id, limit=_RUNS):
            if str(run.get("status")) not in FINAL and _may_belong(run, conversation_id):
                return RunID(str(run["id"]))
        return None

    async def follow(self, agent_id: AgentID, run_id: RunID, *, until: float) -> AsyncGenerator[TurnEvent, None]:
        """Every event of a run from its beginning; ``until`` is a time of the event loop."""
        told = Told()
        run = await self._http.run(run_id)
        started = RunStarted(run_id)
        told.note(started)
        yield started
        if str(run.get("status")) not in FINAL and run.get("background") and self._redis:
            async with aclosing(self._attached(agent_id, run_id, until)) as events:
                async for event in events:
                    told.note(event)
                    yield event
                    if isinstance(event, RunEnded):
                        return
        wait = _POLL_FIRST
        while isinstance(outcome := await self.conclude(await self._http.run(run_id), ()), Live):
            if (left := until - _now()) <= 0:
                raise timed_out(run_id)
            await asyncio.sleep(min(wait, left))
            wait = min(wait * 1.5, _POLL_MOST)
            yield Alive()
        for event in _ending(outcome, told):
            yield event

    async def _attached(self, agent_id: AgentID, run_id: RunID, until: float) -> AsyncGenerator[TurnEvent, None]:
        """The events of a background run's stream. Ends without :class:`RunEnded` when the stream has no more to say.

        A run whose server was killed replays what it had and then only pings, so the run object is asked whenever
        nothing came for a while. Reading goes on after the last sequence number.
        """
        translator, seen = Translator(run_id), 0
        while True:
            silent = False
            async with aclosing(self._http.attach(agent_id, run_id=run_id, after=seen)) as messages:
                while not silent:
                    try:
                        message = await next_message(messages, min(until, _now() + _ATTACH_SILENCE))
                    except TimeoutError:
                        silent = True
                        continue
                    except LettaError as error:
                        self._redis = self._redis and not isinstance(error, NoRedis)
                        return  # expired, gone, broken: the run object knows more
                    if message is None:
                        break
                    number = message.get("seq_id")
                    seen = max(seen, number if isinstance(number, int) else 0)
                    for event in translator.feed(message):
                        yield event
                    if translator.error_seen:
                        raise failed(translator, Delivery.UNKNOWN)
            if not silent:
                for event in self._closed(translator):
                    yield event
                return
            if _now() >= until:
                raise timed_out(run_id)
            if seen == 0 or str((await self._http.run(run_id)).get("status")) in FINAL:
                return

    @staticmethod
    def _closed(translator: Translator) -> list[TurnEvent]:
        if translator.failure:
            raise failed(translator, Delivery.UNKNOWN)
        return translator.finish() if translator.stop_reason else []

    async def _look(
        self, agent_id: AgentID, conversation_id: ConversationID, otids: Sequence[Otid], since: float | None
    ) -> Outcome | None:
        # runs first: whatever they had finished to store is then in the history
        suspect = await self.live_run(agent_id, conversation_id)
        try:
            found = await self._in_history(agent_id, conversation_id, frozenset(otids), since)
        except _TooLongError:
            return Unknown("the history is too long to be read back that far")
        if found is None and suspect is not None:
            found = await self._by_otid(agent_id, otids)
        if found is not None:
            try:
                return await self.conclude(await self._http.run(found), otids)
            except NotFound:
                return Unknown(f"the messages are in the history, their run {found} is gone")
        if suspect is not None:
            return Unknown(f"run {suspect} of this conversation is not over and may be the one")
        return None

    async def _in_history(
        self, agent_id: AgentID, conversation_id: ConversationID, otids: Collection[Otid], since: float | None
    ) -> RunID | None:
        before: LettaMessageID | None = None
        for _ in range(_PAGES if since is None else _DEEP_PAGES):
            rows = await self._http.history(agent_id, conversation_id, limit=_PAGE, before=before)
            for row in rows:
                if row.get("otid") in otids and (run_id := run_id_of(row)):
                    return run_id
            if not rows and before is None and conversation_id != MAIN_CONVERSATION:
                await self._http.conversation(conversation_id)  # a deleted one has an empty history
            if not rows or rows[-1].get("id") == before:
                return None
            if since is not None and _older(rows[0], since):  # the newest of the page
                return None
            before = LettaMessageID(str(rows[-1]["id"]))
        if since is not None:
            raise _TooLongError
        return None

    async def _by_otid(self, agent_id: AgentID, otids: Sequence[Otid]) -> RunID | None:
        """The run of an otid from Letta's Redis, which knows it from the run's first moment. Background runs only."""
        if not self._redis or not otids:
            return None
        async with aclosing(self._http.attach(agent_id, otid=otids[0])) as messages:
            try:
                message = await next_message(messages, _now() + _IDENTIFY)
            except NoRedis:
                self._redis = False
                return None
            except (LettaError, TimeoutError):
                return None
        return None if message is None else run_id_of(message)


async def next_message(messages: AsyncIterator[Json], until: float) -> Json | None:
    """The next message of a stream, ``None`` when it was closed, ``TimeoutError`` at the loop time ``until``.

    After ``TimeoutError`` the stream is unusable. The ``[DONE]`` mark is not a message: Letta still writes the run's
    state and frees its lock before it closes the stream, so the close is waited for, for a moment.
    """
    async with asyncio.timeout_at(until):
        message = await anext(messages, None)
    if message is not DONE:
        return message
    try:
        async with asyncio.timeout_at(min(until, _now() + _AFTER_DONE)):
            while await anext(messages, None) is not None:
                pass
    except (TimeoutError, LettaError):
        pass
    return None


def timed_out(run_id: RunID) -> LettaError:
    """The deadline of a turn passed while its run goes on."""
    return LettaError(Kind.TIMEOUT, "the deadline of the turn passed", delivery=Delivery.YES, run_id=run_id)


def failed(translator: Translator, delivery: Delivery) -> LettaError:
    """The error of a run that went wrong."""
    kind, detail = translator.failure or classify_failure(None, translator.stop_reason)
    return LettaError(kind, detail, delivery=delivery, run_id=translator.run_id)


def _ending(outcome: Outcome, told: Told) -> list[TurnEvent]:
    if isinstance(outcome, Finished):
        return list(told.missing(outcome.events))
    if isinstance(outcome, RunFailed) and outcome.cancelled:
        return [RunEnded("cancelled")]
    assert isinstance(outcome, RunFailed)
    raise LettaError(outcome.kind, outcome.detail, delivery=Delivery.UNKNOWN, run_id=outcome.run_id)


def _may_belong(run: Json, conversation_id: ConversationID) -> bool:
    """Whether a run may be one that the bridge started in this conversation: those stream on the conversations route.

    Other clients' non-streaming runs stay "created" for ever and name no conversation; their run type tells.
    """
    if conversation_id != MAIN_CONVERSATION:
        return run.get("conversation_id") == conversation_id
    metadata = run.get("metadata")
    run_type = metadata.get("run_type") if isinstance(metadata, dict) else None
    return run.get("conversation_id") is None and run_type in (None, "send_message")


class _TooLongError(Exception):
    """A history was not read back as far as it had to be."""


def _older(row: Json, since: float) -> bool:
    """Whether a message of a history was certainly written before ``since`` (seconds since 1970)."""
    try:
        return datetime.fromisoformat(str(row.get("date"))).timestamp() < since
    except ValueError:
        return False


def _now() -> float:
    return asyncio.get_running_loop().time()
