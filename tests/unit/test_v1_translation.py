"""From what a V1 server says to events and errors, without a server."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import letta_client
import pytest

from letta_bridge.ids import LettaMessageID, RunID
from letta_bridge.letta.backend import (
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
from letta_bridge.letta.errors import Delivery, Kind, LettaError
from letta_bridge.letta.v1_errors import NoRedis, NotFound, classify_failure, clean, from_exception
from letta_bridge.letta.v1_stream import DONE, Json, Told, Translator, read_sse, whole_run

RUN = RunID("run-1")
M = LettaMessageID("message-1")


async def sse(*chunks: bytes) -> list[Json]:
    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [message async for message in read_sse(source())]


def ping() -> Json:
    return {"message_type": "ping", "run_id": RUN}


def piece(text: Any) -> Json:
    return {"message_type": "assistant_message", "id": M, "run_id": RUN, "content": text}


def stop(reason: str) -> Json:
    return {"message_type": "stop_reason", "stop_reason": reason}


def error(kind: str, detail: str, message: str = "m") -> Json:
    return {"message_type": "error_message", "run_id": RUN, "error_type": kind, "message": message, "detail": detail}


def feed(translator: Translator, *messages: Json) -> list[TurnEvent]:
    return [event for message in messages for event in translator.feed(message)]


# --- bytes of the stream


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_events_survive_any_cut_of_the_bytes(size: int, newline: bytes) -> None:
    messages = [piece("a\u2028b\u0085c\x0bd\r\ne ü🙂"), stop("end_turn")]
    lines = [b": comment"]
    for message in messages:
        lines += [b"event: x", b"data: " + json.dumps(message, ensure_ascii=False).encode(), b""]
    data = newline.join([*lines, b"data: [DONE]", b"", b""])
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    assert await sse(*chunks) == [*messages, DONE]


async def test_a_cut_off_event_is_not_taken_for_a_whole_one() -> None:
    assert await sse(b'data: {"message_type":"stop_reason","stop_reason":"end_turn"}\n') == []


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: 7\n\n", b"data: \xff\n\n"])
async def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        await sse(data)


# --- messages to events


def test_the_run_is_named_first_and_once() -> None:
    translator = Translator()
    assert feed(translator, ping(), ping(), piece("a")) == [RunStarted(RUN), Alive(), Text(M, "a")]
    assert feed(Translator(), piece("a")) == [RunStarted(RUN), Text(M, "a")]


def test_texts_and_parts() -> None:
    parts = [{"type": "text", "text": "b"}, {"type": "image"}, {"type": "text", "text": "c"}]
    reasoning = {"message_type": "reasoning_message", "id": M, "run_id": RUN, "reasoning": "why"}
    events = feed(Translator(RUN), reasoning, piece("a"), piece(parts), piece(""), piece(None))
    assert events == [Reasoning(M, "why"), Text(M, "a"), Text(M, "bc")]


def test_what_is_not_said_by_the_agent_is_left_out() -> None:
    quiet = ["user_message", "system_message", "hidden_reasoning_message", "summary_message", "event_message", "new"]
    assert feed(Translator(RUN), *({"message_type": name, "content": "x", "id": M} for name in quiet)) == []


def test_a_tool_call_is_told_once_and_returns_only_of_told_calls() -> None:
    first = {"message_type": "tool_call_message", "tool_call": {"name": "t", "tool_call_id": "c", "arguments": None}}
    more = {"message_type": "tool_call_message", "tool_calls": {"arguments": "{", "tool_call_id": "c", "name": None}}
    back = {"message_type": "tool_return_message", "tool_call_id": "c", "status": "success"}
    others = {
        "message_type": "tool_return_message",
        "tool_returns": [{"tool_call_id": "c", "status": "error"}, {"tool_call_id": "x", "status": "success"}],
    }
    events = feed(Translator(RUN), first, more, back, others)
    assert events == [ToolCall("c", "t"), ToolReturn("c", True), ToolReturn("c", False)]


def test_approvals_are_put_together_from_their_pieces() -> None:
    def delta(call: str, name: str | None, arguments: str | None) -> Json:
        value = {"tool_call_id": call, "name": name, "arguments": arguments}
        return {"message_type": "approval_request_message", "tool_call": value, "tool_calls": value}

    translator = Translator(RUN)
    assert not feed(translator, delta("a", "x", None), delta("b", "y", "{}"), delta("a", None, '{"k"'))
    assert not feed(translator, delta("a", None, ":1}"), stop("requires_approval"))
    assert translator.finish() == [
        ApprovalRequest("a", "x", '{"k":1}'),
        ApprovalRequest("b", "y", "{}"),
        RunEnded("requires_approval"),
    ]


def test_the_last_stop_reason_counts_but_cancelled_stays() -> None:
    translator = Translator(RUN)
    feed(translator, stop("cancelled"), stop("error"))
    assert translator.failure is None and translator.finish() == [RunEnded("cancelled")]
    translator = Translator(RUN)
    feed(translator, stop("error"), stop("llm_api_error"), error("internal_error", "INTERNAL_SERVER_ERROR: dropped"))
    assert translator.failure is not None and translator.failure[0] is Kind.MODEL
    for end in ("end_turn", "max_steps", "tool_rule", "max_tokens_exceeded", "something_new"):
        translator = Translator(RUN)
        feed(translator, stop(end))
        assert translator.failure is None and translator.finish() == [RunEnded(end)]


def test_whole_messages_complete_what_was_told() -> None:
    other = LettaMessageID("message-2")
    told = Told()
    for event in (RunStarted(RUN), Alive(), Reasoning(M, "why"), Text(M, "ab"), Text(M, "c"), ToolCall("c", "t")):
        told.note(event)
    messages: list[Json] = [
        {"message_type": "user_message", "content": "question"},
        {"message_type": "reasoning_message", "id": M, "reasoning": "why not"},
        piece("abcdef"),
        {"message_type": "tool_call_message", "tool_call": {"name": "t", "tool_call_id": "c", "arguments": "{}"}},
        {"message_type": "tool_return_message", "tool_call_id": "c", "status": "success"},
        {**piece("more"), "id": other},
    ]
    assert list(told.missing(whole_run(RUN, messages, "end_turn"))) == [
        Reasoning(M, " not"),
        Text(M, "def"),
        ToolReturn("c", True),
        Text(other, "more"),
        RunEnded("end_turn"),
    ]


# --- failures


@pytest.mark.parametrize(
    ("kind", "detail", "message", "reason", "expected"),
    [
        ("llm_error", "INTERNAL_SERVER_ERROR: 500", "m", "llm_api_error", Kind.MODEL),
        ("llm_error", "no code", "m", "llm_api_error", Kind.MODEL),
        ("llm_error", "INVALID_ARGUMENT: 400", "m", "llm_api_error", Kind.MODEL_REFUSED),
        ("llm_error", "PAYMENT_REQUIRED: 402", "m", "llm_api_error", Kind.MODEL_REFUSED),
        ("llm_error", "PERMISSION_DENIED: 403", "m", "llm_api_error", Kind.MODEL_REFUSED),
        ("llm_error", "NOT_FOUND: 404", "m", "llm_api_error", Kind.MODEL_REFUSED),
        ("llm_error", "CONTEXT_WINDOW_EXCEEDED: 413", "m", "llm_api_error", Kind.CONTEXT_FULL),
        ("llm_rate_limit", "RATE_LIMIT_EXCEEDED: 429", "m", "llm_api_error", Kind.MODEL),
        ("llm_timeout", "", "m", "llm_api_error", Kind.MODEL),
        ("llm_empty_response", "", "m", "invalid_llm_response", Kind.MODEL),
        ("llm_authentication", "UNAUTHENTICATED: 401", "m", "llm_api_error", Kind.MODEL_REFUSED),
        ("internal_error", "CONTEXT_WINDOW_EXCEEDED: 413", "m", "error", Kind.CONTEXT_FULL),
        ("context_window_overflow_in_system_prompt", "", "m", None, Kind.CONTEXT_FULL),
        ("internal_error", "x", "CONFLICT: … The agent is waiting for approval on …", "error", Kind.APPROVAL),
        ("internal_error", "INVALID_ARGUMENT: Message content is empty", "m", "error", Kind.REJECTED),
        ("internal_error", "boom", "m", "error", Kind.INTERNAL),
        ("internal_error", "boom", "m", None, Kind.INTERNAL),
        ("stream_incomplete", "", "m", "error", Kind.INTERRUPTED),
        ("stream_task_cancelled", "", "m", "error", Kind.INTERRUPTED),
    ],
)
def test_kinds_of_failed_runs(kind: str, detail: str, message: str, reason: str | None, expected: Kind) -> None:
    assert classify_failure(error(kind, detail, message), reason)[0] is expected


def test_failed_runs_without_an_error_object() -> None:
    assert classify_failure(None, "llm_api_error")[0] is Kind.MODEL
    assert classify_failure(None, "insufficient_credits")[0] is Kind.MODEL_REFUSED
    assert classify_failure(None, "context_window_overflow_in_system_prompt")[0] is Kind.CONTEXT_FULL
    assert classify_failure("INTERNAL_SERVER_ERROR: Background streaming requires Redis", None)[0] is Kind.INTERNAL


def status_error(status: int, body: Any, headers: dict[str, str] | None = None) -> LettaError:
    request = httpx.Request("POST", "http://letta")
    response = httpx.Response(status, headers=headers, request=request)
    return from_exception(letta_client.APIStatusError("x", response=response, body=body), "my-secret-key")


@pytest.mark.parametrize(
    ("status", "body", "kind", "delivery"),
    [
        (401, {"detail": "Unauthorized"}, Kind.BAD_KEY, Delivery.NO),
        (401, {"error": {"type": "llm_authentication", "message": "m"}}, Kind.MODEL_REFUSED, Delivery.NO),
        (402, {"error": {"type": "llm_insufficient_credits"}}, Kind.MODEL_REFUSED, Delivery.NO),
        (402, {"error": {"type": "llm_error"}}, Kind.MODEL_REFUSED, Delivery.NO),
        (400, {"error": {"type": "llm_bad_request", "detail": "x"}}, Kind.MODEL_REFUSED, Delivery.NO),
        (429, {"error": {"type": "llm_rate_limit"}}, Kind.MODEL, Delivery.NO),
        (500, {"error": {"type": "llm_error"}}, Kind.MODEL, Delivery.NO),
        (504, {"error": {"type": "llm_timeout"}}, Kind.MODEL, Delivery.NO),
        (400, {"detail": "Message content is empty or invalid"}, Kind.REJECTED, Delivery.NO),
        (422, {"detail": [{"loc": ["body"], "msg": "bad", "input": "the message"}]}, Kind.REJECTED, Delivery.NO),
        (409, {"detail": "CONFLICT: …", "run_id": "run-2"}, Kind.BUSY, Delivery.NO),
        (409, {"detail": "Another request is currently being processed"}, Kind.BUSY, Delivery.NO),
        (409, {"detail": "CONFLICT: … is waiting for approval on …"}, Kind.APPROVAL, Delivery.NO),
        (409, {"detail": {"code": "PENDING_APPROVAL", "message": "m"}}, Kind.APPROVAL, Delivery.NO),
        (409, {"detail": "A database deadlock was detected."}, Kind.UNREACHABLE, Delivery.UNKNOWN),
        (404, {"detail": "Not Found"}, Kind.UNREACHABLE, Delivery.UNKNOWN),
        (404, "<html>nginx</html>", Kind.UNREACHABLE, Delivery.UNKNOWN),
        (429, "slow down", Kind.UNREACHABLE, Delivery.NO),
        (502, "<html>bad gateway</html>", Kind.UNREACHABLE, Delivery.UNKNOWN),
        (503, {"detail": "The database is temporarily unavailable."}, Kind.UNREACHABLE, Delivery.UNKNOWN),
        (500, {"detail": "An unknown error occurred"}, Kind.INTERNAL, Delivery.UNKNOWN),
        (500, None, Kind.INTERNAL, Delivery.UNKNOWN),
    ],
)
def test_kinds_of_http_answers(status: int, body: Any, kind: Kind, delivery: Delivery) -> None:
    found = status_error(status, body)
    assert (found.kind, found.delivery) == (kind, delivery)
    assert "the message" not in found.detail and "html" not in found.detail.replace("HTML", "")


def test_special_http_answers() -> None:
    assert isinstance(status_error(404, {"detail": "Agent with ID x not found"}), NotFound)
    assert isinstance(status_error(503, {"detail": "Background streaming requires Redis to be running."}), NoRedis)
    assert status_error(409, {"detail": "x", "run_id": "run-2"}).run_id == "run-2"
    assert status_error(503, None, {"retry-after": "7"}).retry_after == 7
    assert status_error(503, None, {"retry-after": "Fri, 20 Nov 2026 04:00:00 GMT"}).retry_after is None


@pytest.mark.parametrize(
    ("cause", "delivery"),
    [
        (httpx.ConnectError("refused"), Delivery.NO),
        (httpx.ConnectTimeout("x"), Delivery.NO),
        (httpx.PoolTimeout("x"), Delivery.NO),
        (httpx.LocalProtocolError("Illegal header value b'Bearer my-secret-key'"), Delivery.NO),
        (httpx.ReadTimeout("x"), Delivery.UNKNOWN),
        (httpx.WriteError("x"), Delivery.UNKNOWN),
        (httpx.RemoteProtocolError("x"), Delivery.UNKNOWN),
        (ConnectionResetError("x"), Delivery.UNKNOWN),
    ],
)
def test_kinds_of_broken_connections(cause: Exception, delivery: Delivery) -> None:
    wrapped = letta_client.APIConnectionError(request=httpx.Request("POST", "http://letta"))
    wrapped.__cause__ = cause
    for raised in (wrapped, cause):
        found = from_exception(raised, "my-secret-key")
        assert (found.kind, found.delivery) == (Kind.UNREACHABLE, delivery)
        assert "my-secret-key" not in str(found)


def test_details_are_one_short_line_without_secrets() -> None:
    text = (
        "Incorrect API key\nprovided: sk-proj-abcdef123456 at https://me:pass@host/ Bearer abc my-secret-key "
        + "x" * 999
    )
    shown = clean(text, "my-secret-key", None)
    assert "\n" not in shown and len(shown) <= 300
    for secret in ("abcdef123456", "pass", "abc", "my-secret-key"):
        assert secret not in shown
