"""From the V1 server's messages, streamed in pieces or read whole, to turn events."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any

from ..ids import LettaMessageID, RunID
from .backend import (
    Alive,
    ApprovalRequest,
    Reasoning,
    RunEnded,
    RunStarted,
    Text,
    ToolCall,
    ToolReturn,
    TurnEvent,
)
from .errors import Kind
from .v1_errors import FAILURES, classify_failure

Json = Mapping[str, Any]

DONE: Json = {"message_type": "[DONE]"}
"""What :func:`read_sse` yields for the ``[DONE]`` mark. It is no end: the stream ends when it is closed."""


LONGEST_EVENT = 16 * 2**20
"""Bytes of one event of a stream. Whoever sends more will not stop."""

LONGEST_STREAM = 64 * 2**20
MOST_EVENTS = 400_000
"""Bytes and events of one stream; every token of an answer is an event of about 300 bytes."""

_THREAD_FROM = 200_000  # bytes of JSON above which parsing leaves the event loop
_RUN_ID = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,254}")


async def read_sse(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Json, None]:
    """The JSON objects of a Server-Sent Events stream.

    Lines end at LF or CR LF only: the texts of messages may hold U+2028 and other characters at which Python's
    ``str.splitlines`` would cut. Raises ``ValueError`` for data that is no JSON object, and for more than
    ``LONGEST_EVENT``, ``LONGEST_STREAM`` or ``MOST_EVENTS``.
    """
    pending: list[bytes] = []  # of the line that is not at its end
    data: list[bytes] = []
    held = total = events = 0
    async for chunk in chunks:
        held, total = held + len(chunk), total + len(chunk)
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join((*pending, lines[0]))
            pending.clear()
        pending.append(rest)
        for line in (line.removesuffix(b"\r") for line in lines):
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line.strip() and data:
                yield await _decoded(b"\n".join(data))
                data.clear()
                events += 1
        if lines and not data:
            held = len(rest)
        if held > LONGEST_EVENT or total > LONGEST_STREAM or events > MOST_EVENTS:
            raise ValueError("the stream does not stop")


async def _decoded(data: bytes) -> Json:
    return _decode(data) if len(data) < _THREAD_FROM else await asyncio.to_thread(_decode, data)


def _decode(data: bytes) -> Json:
    if data.startswith(b"[DONE]"):
        return DONE
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("an event of the stream is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("an event of the stream is no JSON object")
    return value


def run_id_of(message: Json) -> RunID | None:
    """The run that a message names; ``None`` for what cannot name one (it goes into paths of requests)."""
    value = message.get("run_id")
    return RunID(value) if isinstance(value, str) and _RUN_ID.fullmatch(value) else None


class Translator:
    """Turns the messages of one run into events, in order. Feed it every message, then call :meth:`finish`.

    Whole messages (history) and deltas (token stream) have the same shape on 0.16.8, so both go through here.

    Attributes:
        run_id: the run, as soon as a message named it.
        stop_reason: Letta's last word on why the run stopped; ``None`` while it goes on.
        failure: kind and detail when the run went wrong.
    """

    def __init__(self, run_id: RunID | None = None) -> None:
        self.run_id = run_id
        self.stop_reason: str | None = None
        self.failure: tuple[Kind, str] | None = None
        self.error_seen = False
        self._calls: set[str] = set()
        self._approvals: dict[str, tuple[str, str]] = {}

    def feed(self, message: Json) -> list[TurnEvent]:
        """The events of one message; :class:`RunStarted` before anything else of a run."""
        started: list[TurnEvent] = []
        if self.run_id is None and (run_id := run_id_of(message)):
            self.run_id = run_id
            started = [RunStarted(run_id)]
        match message.get("message_type"):
            case "ping":
                return started or [Alive()]
            case "stop_reason":
                self._stop(str(message.get("stop_reason") or "error"))
            case "error_message":
                self.error_seen = True
                self.failure = classify_failure(message, self.stop_reason)
            case "assistant_message":
                return started + self._text(message)
            case "reasoning_message":
                delta = str(message.get("reasoning") or "")
                return started + ([Reasoning(_id_of(message), delta)] if delta else [])
            case "tool_call_message":
                return started + self._tool_calls(message)
            case "tool_return_message":
                return started + self._tool_return(message)
            case "approval_request_message":
                self._collect_approval(message)
        return started

    def finish(self) -> list[TurnEvent]:
        """What is left when the run ended in good order: the approvals it waits for, and its end."""
        reason = self.stop_reason or "end_turn"
        waiting: list[TurnEvent] = []
        if reason == "requires_approval":
            waiting = [ApprovalRequest(call, name, args) for call, (name, args) in self._approvals.items()]
        return [*waiting, RunEnded(reason)]

    def _stop(self, reason: str) -> None:
        # a dropped model connection gives two: "error", then the telling "llm_api_error"
        if self.stop_reason != "cancelled":
            self.stop_reason = reason
            self.failure = classify_failure(None, reason) if reason in FAILURES else None

    def _text(self, message: Json) -> list[TurnEvent]:
        delta = text_of(message.get("content"))
        return [Text(_id_of(message), delta)] if delta else []

    def _tool_calls(self, message: Json) -> list[TurnEvent]:
        events: list[TurnEvent] = []
        for call in calls_of(message):
            call_id, name = str(call.get("tool_call_id") or ""), call.get("name")
            if call_id and name and call_id not in self._calls:
                self._calls.add(call_id)
                events.append(ToolCall(call_id, str(name)))
        return events

    def _tool_return(self, message: Json) -> list[TurnEvent]:
        rows = message.get("tool_returns")
        returns = rows if isinstance(rows, list) and rows else [message]
        return [
            ToolReturn(str(row["tool_call_id"]), row.get("status") == "success")
            for row in returns
            if isinstance(row, Mapping) and str(row.get("tool_call_id")) in self._calls
        ]

    def _collect_approval(self, message: Json) -> None:
        for call in calls_of(message):
            call_id = str(call.get("tool_call_id") or "")
            if not call_id:
                continue
            name, arguments = self._approvals.get(call_id, ("", ""))
            self._approvals[call_id] = (
                name or str(call.get("name") or ""),
                arguments + str(call.get("arguments") or ""),
            )


class Told:
    """What a consumer has been told of a run, so that the run's whole messages can complete it without repeating."""

    def __init__(self) -> None:
        self._texts: dict[tuple[type[Text] | type[Reasoning], LettaMessageID], str] = {}
        self._others: set[TurnEvent] = set()

    def note(self, event: TurnEvent) -> None:
        """Remember ``event`` as told."""
        if isinstance(event, Text | Reasoning):
            key = (type(event), event.message_id)
            self._texts[key] = self._texts.get(key, "") + event.delta
        elif not isinstance(event, Alive):
            self._others.add(event)

    def missing(self, events: Iterable[TurnEvent]) -> Iterable[TurnEvent]:
        """Those of ``events`` (whole messages) that were not told, texts cut to what is missing of them."""
        for event in events:
            if not isinstance(event, Text | Reasoning):
                if event not in self._others:
                    yield event
                continue
            told = self._texts.get((type(event), event.message_id), "")
            if event.delta.startswith(told) and len(event.delta) > len(told):
                yield type(event)(event.message_id, event.delta[len(told) :])


def whole_run(run_id: RunID, messages: Iterable[Json], stop_reason: str) -> tuple[TurnEvent, ...]:
    """The events of a run that is over, from its stored messages in order."""
    translator = Translator(run_id)
    events: list[TurnEvent] = [RunStarted(run_id)]
    for message in messages:
        events += translator.feed(message)
    translator.stop_reason = stop_reason
    return tuple(events + translator.finish())


def calls_of(message: Json) -> list[Json]:
    """The tool calls of a message. A delta carries one object where a whole message carries a list."""
    for value in (message.get("tool_calls"), message.get("tool_call")):
        if isinstance(value, Mapping):
            return [value]
        if isinstance(value, list) and value:
            return [row for row in value if isinstance(row, Mapping)]
    return []


def text_of(content: object) -> str:
    """The text of a message's content, which is a text or a list of parts; other parts are left out."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return ""


def _id_of(message: Json) -> LettaMessageID:
    return LettaMessageID(str(message.get("id") or ""))
