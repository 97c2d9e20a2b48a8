"""What a request to send messages asks for, and whether it is well formed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from .failures import Refused
from .state import Row
from .wire import Json, body_of, invalid, refuse

KEEP_ALIVE = (
    "<system-alert>Automated keep-alive ping. Ignore this message and continue from where you stopped.</system-alert>"
)


@dataclass(slots=True)
class Order:
    """What a request asks for."""

    messages: list[Json]
    streaming: bool = False
    tokens: bool = False
    """Whether the answer is streamed in pieces."""
    pings: bool = True
    background: bool = False
    max_steps: int = 50
    client_tools: frozenset[str] = frozenset()
    types: frozenset[str] | None = None
    """The message types to return; ``None`` means all."""
    tracked: bool = True
    """Whether the end of the run is recorded: on the conversations route it is not when nothing is streamed."""
    agents_route: bool = False

    @property
    def otids(self) -> list[str]:
        return [message["otid"] for message in self.messages if message.get("otid")]


async def read_order(request: web.Request, *, streaming: bool) -> tuple[Order, Json]:
    """The order in a request, and its body; ``streaming`` is what the route does when the body does not say.

    Raises a 422 for what the real server does not accept.
    """
    body = await body_of(request)
    messages = body.get("messages")
    if messages is None and body.get("input") is None:
        raise invalid("value_error", ("body",), "Value error, Must specify either 'input' or 'messages'.", body)
    if messages is None:
        messages = [{"role": "user", "content": body["input"]}]
    if not isinstance(messages, list):
        raise invalid("list_type", ("body", "messages"), "Input should be a valid list", messages)
    if not messages:
        refuse(422, "Messages must not be empty")
    for index, message in enumerate(messages):
        _check_message(index, message)
    wants_stream = bool(body.get("streaming", streaming))
    types = body.get("include_return_message_types")
    order = Order(
        messages=messages,
        streaming=wants_stream,
        tokens=wants_stream and bool(body.get("stream_tokens")),
        pings=wants_stream and bool(body.get("include_pings", True)),
        background=wants_stream and bool(body.get("background")),
        max_steps=int(body.get("max_steps") or 50),
        client_tools=frozenset(tool["name"] for tool in body.get("client_tools") or ()),
        types=frozenset(types) if types else None,
    )
    return order, body


def _check_message(index: int, message: object) -> None:
    loc = ("body", "messages", index)
    if not isinstance(message, dict):
        raise invalid("model_attributes_type", loc, "Input should be a valid dictionary", message)
    if message.get("type") in ("approval", "tool_return"):
        return
    if message.get("role") not in ("user", "system", "assistant"):
        wanted = "Input should be 'user', 'system' or 'assistant'"
        raise invalid("literal_error", (*loc, "role"), wanted, message.get("role"))
    if not isinstance(message.get("content"), str | list):
        raise invalid("missing", (*loc, "content"), "Field required", message)


def approvals_in(message: Json) -> list[Json] | None:
    """The answers in an approval message, in any of its three forms; ``None`` for another message."""
    kind = message.get("type")
    if kind == "tool_return":
        return list(message.get("tool_returns") or [])
    if kind != "approval":
        return None
    if message.get("approvals"):
        return list(message["approvals"])
    old = {key: message.get(key) for key in ("approve", "reason")}
    return [{"type": "approval", "tool_call_id": message.get("approval_request_id"), **old}]


def check_answers(pending: Row, answers: Sequence[Json]) -> None:
    """Raise :class:`Refused` unless the answers are for the call that waits."""
    assert pending.call is not None
    expected = [pending.call["tool_call_id"]]
    received = [answer.get("tool_call_id") for answer in answers]
    if set(expected) != set(received):
        raise Refused(f"Invalid tool call IDs. Expected '{expected}', but received '{received}'.")


def answer_text(answer: Json) -> str:
    """What a tool that the client ran returned."""
    value = answer.get("tool_return")
    return value if isinstance(value, str) else json.dumps(value)
