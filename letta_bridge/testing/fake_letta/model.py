"""What the model decides in one step."""

import json
import re
import uuid
from collections.abc import Sequence

from .orders import Order
from .script import Behaviour, Reply, Words
from .state import Agent
from .wire import Json


def plan_call(behaviour: Behaviour, order: Order, agent: Agent, results: Sequence[str]) -> Json | None:
    """The tool call that the model makes, if the tool is offered and has not returned yet."""
    if behaviour.tool is None or results:
        return None
    name, arguments = behaviour.tool
    client = name in order.client_tools
    attached = any(tool.name == name for tool in agent.tools)
    if not (client or attached or behaviour.approve):
        return None
    return {
        "name": name,
        "arguments": json.dumps(arguments),
        "tool_call_id": f"call_{uuid.uuid4().hex[:20]}",
        "client": client,
        "approve": behaviour.approve or (attached and name in agent.needs_approval),
    }


def choose_words(
    behaviour: Behaviour, reply: Reply | None, texts: Sequence[str], last: str, results: Sequence[str]
) -> Words:
    """The answer: as directed, else what the tool said, else the test's reply, else an echo."""
    if behaviour.text is not None:
        return behaviour.text
    if results:
        return f"tool said: {results[-1][:300]}"
    if reply is not None:
        return reply(list(texts))
    return f"echo: {last}"


def call_deltas(call: Json, *, waits: bool) -> list[Json]:
    """A tool call in the pieces in which it is streamed: its name first, then its arguments.

    The absent half is null when the call waits for somebody, else it is missing.
    """
    call_id = call["tool_call_id"]
    first: Json = {"name": call["name"], "tool_call_id": call_id}
    nameless: Json = {}
    if waits:
        first = {"name": call["name"], "arguments": None, "tool_call_id": call_id}
        nameless = {"name": None}
    pieces = re.findall(r"\S+\s*", call["arguments"])
    return [first, *({**nameless, "arguments": piece, "tool_call_id": call_id} for piece in pieces)]
