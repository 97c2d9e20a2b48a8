"""A Letta whose streams are whatever a test writes: everything else is passed on to the fake."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from aiohttp import web
from hypothesis import strategies as st

from .damage import DEEP, ODD, damage, to_json

Json = dict[str, Any]

_SEND = re.compile(r"/v1/conversations/[^/]+/messages/?")
_HOP = {"transfer-encoding", "content-length", "connection", "content-encoding"}
_CASE = re.compile(rb"case (\d+)")


@dataclass
class RawStream:
    """The bytes of an answer to a message, and how the answer ends."""

    chunks: Sequence[bytes]
    end: Literal["close", "cut", "repeat"] = "close"
    """``cut``: the connection is reset. ``repeat``: the last chunk comes again and again."""
    pause: float = 0.0
    served: int = 0


@dataclass
class RawLetta:
    """Stands before ``upstream``. A message that says ``case 7`` is answered once by ``cases[7]``."""

    upstream: str
    cases: dict[int, RawStream] = field(default_factory=dict)
    url: str = ""
    written: int = 0
    """Bytes of the raw streams that went out."""
    _session: aiohttp.ClientSession = field(init=False, repr=False)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.method == "POST" and _SEND.fullmatch(request.path):
            for number in map(int, reversed(_CASE.findall(body))):
                case = self.cases.get(number)
                if case is not None and not case.served:
                    case.served = 1
                    return await self._raw(request, case)
        return await self._pass_on(request, body)

    async def _raw(self, request: web.Request, case: RawStream) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for chunk in case.chunks:
                await self._write(response, chunk, case)
            while case.end == "repeat":
                await self._write(response, case.chunks[-1], case)
        except ConnectionError:
            return response  # the bridge has had enough
        if case.end == "cut" and request.transport is not None:
            request.transport.abort()
        return response

    async def _write(self, response: web.StreamResponse, chunk: bytes, case: RawStream) -> None:
        await response.write(chunk)
        self.written += len(chunk)
        await asyncio.sleep(case.pause)

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in {*_HOP, "host"}}
        async with self._session.request(
            request.method, self.upstream + request.raw_path, data=body, headers=headers
        ) as answer:
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response


@asynccontextmanager
async def raw_letta(upstream: str) -> AsyncIterator[RawLetta]:
    raw = RawLetta(upstream)
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{rest:.*}", raw.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    raw.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        raw._session = session
        try:
            yield raw
        finally:
            await runner.cleanup()


# -- streams


def transcript(run_id: str, text: Sequence[str] = ("It ", "is ", "done.")) -> list[Json]:
    """A run as 0.16.8 streams it: thought, a tool, an answer in pieces."""

    def message(kind: str, number: int, **fields: Any) -> Json:
        return {
            "id": f"message-00000000-0000-4000-8000-{number:012}",
            "date": "2026-01-31T12:00:00+00:00",
            "message_type": kind,
            "otid": f"otid-{number}",
            "run_id": run_id,
            "step_id": "step-1",
            "seq_id": number,
            **fields,
        }

    call = {"name": "search", "arguments": '{"q": 1}', "tool_call_id": "call-1"}
    returned = {"tool_return": "found", "status": "success", "tool_call_id": "call-1", "stdout": None, "stderr": None}
    return [
        {"message_type": "ping", "run_id": run_id, "id": "message-ping", "date": "2026-01-31T12:00:00+00:00"},
        message("reasoning_message", 1, reasoning="Let me ", source="reasoner_model"),
        message("reasoning_message", 1, reasoning="see."),
        message("tool_call_message", 2, tool_call=call, tool_calls=call),
        message("tool_return_message", 3, **returned, tool_returns=[returned]),
        *(message("assistant_message", 4, content=piece) for piece in text),
        {"message_type": "stop_reason", "stop_reason": "end_turn"},
        {"message_type": "usage_statistics", "completion_tokens": 5, "prompt_tokens": 7, "total_tokens": 12},
    ]


def sse(messages: Sequence[Any]) -> bytes:
    """Server-sent events."""
    return b"".join(b"data: " + to_json(message).encode() + b"\n\n" for message in messages) + b"data: [DONE]\n\n"


_EXTRAS: list[Json] = [
    {"message_type": "approval_request_message", "id": "message-a", "tool_call": {"name": "pay", "tool_call_id": "c"}},
    {"message_type": "approval_request_message", "tool_calls": [{"name": None, "tool_call_id": "c"}, 5, None]},
    {"message_type": "approval_request_message", "tool_calls": {"arguments": "{", "tool_call_id": ["c"]}},
    {"message_type": "stop_reason", "stop_reason": "requires_approval"},
    {"message_type": "stop_reason", "stop_reason": "llm_api_error"},
    {"message_type": "stop_reason", "stop_reason": {"reason": "end_turn"}},
    {"message_type": "stop_reason", "stop_reason": "cancelled"},
    {"message_type": "stop_reason", "stop_reason": "a reason that nobody knows \x00 " + "x" * 5000},
    {"message_type": "error_message", "error_type": "llm_error", "message": "boom", "detail": "INTERNAL: boom"},
    {"message_type": "error_message", "error_type": [], "message": {}, "detail": None},
    {"message_type": "assistant_message", "id": None, "content": [{"type": "text", "text": {"no": 1}}, 7, None]},
    {"message_type": "assistant_message", "id": ["x"], "content": "\x00\ud800 <b>x</b> @room"},
    {"message_type": "tool_return_message", "tool_returns": [{"tool_call_id": ["call-1"], "status": {}}]},
    {"message_type": "tool_return_message", "tool_call_id": {"a": 1}},
    {"message_type": "a_message_of_the_future", "content": "x"},
    {"message_type": ["assistant_message"], "content": "x"},
    {"message_type": "ping"},
    {},
]


def known_streams(run_id: str) -> list[RawStream]:
    """What once held up an agent: unusable run ids, and values that cannot be looked up."""
    odd_ids = [transcript(odd)[:3] for odd in ("..", "../agents", "-", "run-\x00", "run-\ud800")]
    odd_calls = transcript(run_id)
    odd_calls[4:5] = [{"message_type": "tool_return_message", "tool_returns": [{"tool_call_id": ["call-1"]}]}]
    deep = transcript(run_id)
    deep[5]["content"] = DEEP
    whole = [RawStream([sse(odd_calls)]), RawStream([sse(deep)])]
    return [*(RawStream([sse(messages)], end="cut") for messages in odd_ids), *whole]


@st.composite
def hostile_streams(draw: st.DrawFn, run_ids: Sequence[str]) -> RawStream:
    """A stream with something wrong: in its messages, in their order, or in its bytes."""
    messages: list[Any] = transcript(draw(st.sampled_from(run_ids)))
    for _ in range(draw(st.integers(0, 2))):
        messages.insert(draw(st.integers(0, len(messages))), copy.deepcopy(draw(st.sampled_from(_EXTRAS))))
    damage(draw, messages, draw(st.sampled_from([0, 1, 1, 2, 3])))
    match draw(st.sampled_from(["", "", "", "shuffle", "double", "odd", "no stop"])):
        case "shuffle":
            messages = draw(st.permutations(messages))
        case "double":
            messages = [message for message in messages for _ in range(2)]
        case "odd":
            messages.insert(draw(st.integers(0, len(messages))), draw(ODD))
        case "no stop":
            messages = [m for m in messages if not isinstance(m, dict) or m.get("message_type") != "stop_reason"]
    return RawStream(*_in_bytes(draw, sse(messages)))


def _in_bytes(draw: st.DrawFn, raw: bytes) -> tuple[list[bytes], Literal["close", "cut"]]:
    place = draw(st.integers(0, len(raw)))
    match draw(st.sampled_from(["", "", "", "", "truncate", "insert", "crlf", "garbage", "flip"])):
        case "truncate":
            raw = raw[:place]
        case "insert":
            junk = [
                b"\xff\xfe",
                b"\n",
                b"\n\n",
                b"data:",
                b"data: {\n\n",
                b": ping\n\n",
                b"\xed\xa0\x80",
                b"\x00",
                b"}",
            ]
            raw = raw[:place] + draw(st.sampled_from(junk)) + raw[place:]
        case "crlf":
            raw = raw.replace(b"\n", b"\r\n")
        case "garbage":
            raw = draw(st.binary(max_size=200)) + raw
        case "flip" if place < len(raw):
            raw = raw[:place] + bytes([raw[place] ^ 1 << draw(st.integers(0, 7))]) + raw[place + 1 :]
    cuts = sorted({0, len(raw), *draw(st.lists(st.integers(0, len(raw)), max_size=4))})
    chunks = [raw[start:end] for start, end in itertools.pairwise(cuts)]
    return chunks, draw(st.sampled_from(["close", "close", "cut"]))


def cheap(run_id: str, text: str) -> bytes:
    """One delta as bytes."""
    return b"data: " + json.dumps(transcript(run_id, [text])[5]).encode() + b"\n\n"
