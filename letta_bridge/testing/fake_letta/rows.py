"""Makes the rows of a history: what is stored for each kind of message."""

import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from .shapes import message_json, part_otid, tool_text
from .state import Row, Run
from .wire import Json, new_id, now, second

_GREETING = "More human than human is our motto."
_GREETING_THOUGHT = "Bootup sequence complete. Persona activated. Testing messaging functionality."


def text_of(content: Any) -> str:
    """The text of a message's content as the model gets it."""
    if isinstance(content, str):
        return content
    texts = "\n\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    images = len([part for part in content if part.get("type") == "image"])
    return texts + " [Image omitted]" * images


def _stored(content: Any) -> Any:
    """Content as the history gives it back: parts get more fields, images an id of the server."""
    if isinstance(content, str):
        return content
    if len(content) == 1 and content[0].get("type") == "text":
        return str(content[0].get("text", ""))
    return _stored_parts(content)


def _unpacked(content: Any) -> Any:
    """What is in a person's message that is wrapped in JSON; whatever that is, as the real server does."""
    try:
        value = json.loads(content) if isinstance(content, str) else None
    except (ValueError, RecursionError):
        return content
    if isinstance(value, dict) and value.get("type") == "user_message" and "message" in value:
        return value["message"]
    return content


def _stored_parts(content: Any) -> list[Json]:
    parts: list[Json] = []
    for part in content:
        if part.get("type") == "image":
            source = part.get("source") or {}
            source = {
                "type": "letta",
                "file_id": new_id("file"),
                "media_type": source.get("media_type"),
                "data": source.get("data"),
                "detail": source.get("detail"),
            }
            parts.append({"type": "image", "source": source})
        else:
            parts.append({"type": "text", "text": part.get("text", ""), "signature": None})
    return parts


def input_row(run: Run, message: Json) -> Row:
    """A message of the request. Its step is known only when it is stored."""
    role = message["role"]
    message_id = new_id("message")
    content = _stored(message["content"])
    item = message_json(
        f"{role}_message",
        message_id,
        run.id,
        None,
        name=message.get("name"),
        otid=message.get("otid") or str(uuid.uuid4()),
        sender_id=message.get("sender_id"),
        content=_unpacked(content) if role == "user" else content,
    )
    return Row(role, text_of(message["content"]), [item], message_id, run.agent_id, run.conversation_id, run.id)


def system_row(agent_id: str, conversation_id: str | None, prompt: str) -> Row:
    """The system prompt at the head of a thread."""
    message_id = new_id("message")
    item = message_json("system_message", message_id, None, None, content=prompt)
    return Row("system", prompt, [item], message_id, agent_id, conversation_id, None)


def boot_rows(agent_id: str) -> list[Row]:
    """What an agent of the older types finds in its history: its own greeting, and that nobody has logged in yet."""
    greeting, event = new_id("message"), new_id("message")
    login = {"type": "login", "last_login": "Never (first login)", "time": now().strftime("%Y-%m-%d %I:%M:%S %p UTC")}
    shared = {"source": "non_reasoner_model", "reasoning": _GREETING_THOUGHT, "signature": None}
    said = [
        message_json("reasoning_message", greeting, None, None, otid=part_otid(greeting, 0), **shared),
        message_json("assistant_message", greeting, None, None, otid=part_otid(greeting, 1), content=_GREETING),
    ]
    text = json.dumps(login, indent=2)
    item = message_json("user_message", event, None, None, content=text)
    return [
        Row("assistant", _GREETING, said, greeting, agent_id, None, None),
        Row("user", text, [item], event, agent_id, None, None),
    ]


def line_row(agent_id: str, conversation_id: str | None, role: str, text: str, at: datetime) -> Row:
    """A line as an older Letta left it: without a run."""
    message_id = new_id("message")
    item = message_json(f"{role}_message", message_id, None, None, otid=part_otid(message_id, 0), content=text)
    return Row(role, text, [{**item, "date": second(at)}], message_id, agent_id, conversation_id, None)


def model_row(
    run: Run, message_id: str, step_id: str, *, reason: str | None, text: str | None = None, call: Json | None = None
) -> Row:
    """What the model said in one step: reasoning, and an answer or a tool call."""
    items = []
    if reason is not None:
        items.append(reasoning_item(run, message_id, step_id, reason))
    if call is not None:
        items.append(call_item(run, message_id, step_id, bare_call(call), len(items)))
    if text is not None:
        items.append(answer_item(run, message_id, step_id, text, len(items)))
    return Row("assistant", text or "", items, message_id, run.agent_id, run.conversation_id, run.id, call=call)


def reasoning_item(run: Run, message_id: str, step_id: str, reason: str) -> Json:
    return message_json(
        "reasoning_message",
        message_id,
        run.id,
        step_id,
        otid=part_otid(message_id, 0),
        source="reasoner_model",
        reasoning=reason,
        signature=None,
    )


def answer_item(run: Run, message_id: str, step_id: str, text: str, index: int) -> Json:
    return message_json(
        "assistant_message", message_id, run.id, step_id, otid=part_otid(message_id, index), content=text
    )


def call_item(run: Run, message_id: str, step_id: str, call: Json, index: int) -> Json:
    return message_json(
        "tool_call_message",
        message_id,
        run.id,
        step_id,
        otid=part_otid(message_id, index),
        tool_call=call,
        tool_calls=[call],
    )


def request_row(run: Run, message_id: str, step_id: str, *, reason: str | None, call: Json) -> Row:
    """A tool call that waits for an approval, or for the client to run it."""
    items = [] if reason is None else [reasoning_item(run, message_id, step_id, reason)]
    items.append(request_item(run, message_id, step_id, bare_call(call)))
    waiting = {**call, "step": step_id}
    return Row("approval_request", "", items, message_id, run.agent_id, run.conversation_id, run.id, call=waiting)


def request_item(run: Run, message_id: str, step_id: str, call: Json) -> Json:
    return message_json(
        "approval_request_message",
        message_id,
        run.id,
        step_id,
        otid=message_id,
        tool_call=call,
        tool_calls=[call],
    )


def response_row(run: Run, approvals: Sequence[Json]) -> Row:
    """The answer to an approval request."""
    message_id = new_id("message")
    shown = []
    for one in approvals:
        if one.get("type") == "tool":
            shown.append({"type": "tool", **tool_return(one["tool_call_id"], one["status"], one["tool_return"])})
        else:
            keys = ("type", "tool_call_id", "approve", "reason")
            shown.append({"type": "approval", **{key: one.get(key) for key in keys[1:]}})
    first = shown[0]
    plain = first["type"] == "approval"
    item = message_json(
        "approval_response_message",
        message_id,
        run.id,
        None,
        approvals=shown,
        approve=first.get("approve") if plain else None,
        approval_request_id=first["tool_call_id"] if plain else None,
        reason=first.get("reason") if plain else None,
    )
    return Row("approval_response", "", [item], message_id, run.agent_id, run.conversation_id, run.id)


def bare_call(call: Json) -> Json:
    """A tool call as it is shown."""
    return {key: call[key] for key in ("name", "arguments", "tool_call_id")}


def tool_return(call_id: str, status: str, text: str, stderr: list[str] | None = None) -> Json:
    return {"tool_return": text, "status": status, "tool_call_id": call_id, "stdout": None, "stderr": stderr}


def return_row(
    run: Run,
    step_id: str | None,
    call: Json,
    ok: bool,
    text: str,
    *,
    name: str | None = None,
    stderr: list[str] | None = None,
) -> Row:
    """A tool's return. ``name`` is shown only for tools that the server ran itself."""
    message_id = new_id("message")
    result = tool_return(call["tool_call_id"], "success" if ok else "error", text, stderr)
    item = message_json(
        "tool_return_message",
        message_id,
        run.id,
        step_id,
        name=name,
        otid=part_otid(message_id, 0),
        **result,
        tool_returns=[{"type": "tool", **result}],
    )
    return Row("tool", tool_text(ok, text), [item], message_id, run.agent_id, run.conversation_id, run.id, call=call)
