"""What was said in an agent's main conversation, without all else that Letta keeps in the same list.

The forms are those of 0.16.8, measured: a page is counted in messages, and one message can be several items of the same
id (reasoning, answer); agents of the older types begin with a scripted greeting and a "login" event that are marked
like a person's and the agent's own words.
"""

import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from ..ids import MAIN_CONVERSATION, AgentID, LettaMessageID
from .backend import HistoryItem
from .v1_http import V1Http
from .v1_stream import Json

PAGE = 200
PAGES = 50
"""The longest way back. An agent that has only used tools for 10,000 messages has nothing more to show."""

_SPOKEN: dict[str, Literal["user", "assistant"]] = {"user_message": "user", "assistant_message": "assistant"}
_EVENTS = ("login", "heartbeat", "system_alert")
# Letta's pings to an agent that waited for an approval, and its notes of a run that was interrupted
_NOTE = re.compile(r"\s*<(system-alert|system-reminder)>.*</\1>\s*", re.DOTALL)
_IMAGE = "[image]"


async def read_history(http: V1Http, agent_id: AgentID, limit: int) -> list[HistoryItem]:
    """The newest ``limit`` spoken lines, oldest first. Raises ``NotFound`` for an unknown agent."""
    newest_first: list[Json] = []
    lines: list[HistoryItem] = []
    before: LettaMessageID | None = None
    for _ in range(PAGES if limit > 0 else 0):
        page = await http.history(agent_id, MAIN_CONVERSATION, limit=PAGE, before=before)
        if not page or page[-1]["id"] == before:
            break
        newest_first += page
        lines = spoken(reversed(newest_first))
        if len(lines) > limit:  # one more than asked for, because the first one may be taken for the greeting
            break
        before = LettaMessageID(page[-1]["id"])
    return lines[-limit:] if limit > 0 else []


def spoken(items: Iterable[Json]) -> list[HistoryItem]:
    """The lines of people and of the agent among ``items``, which are in the order of the conversation."""
    lines: list[tuple[HistoryItem, bool]] = []
    parts: dict[str, int] = {}
    for item in items:
        kind = _SPOKEN.get(str(item.get("message_type")))
        if kind is None:
            continue
        content = item.get("content")
        event, text = (None, visible(content)) if kind == "assistant" else _unwrapped(content)
        if event == "login" and lines and lines[-1][1]:
            lines.pop()  # the greeting that was there before anybody spoke
        if not text.strip():
            continue
        part = parts.get(item["id"], 0)
        parts[item["id"]] = part + 1
        message_id, otid = LettaMessageID(item["id"]), str(item.get("otid") or "")
        run_id, name = str(item.get("run_id") or ""), str(item.get("name") or "")
        line = HistoryItem(message_id, kind, text, _moment(item.get("date")), otid, part, run_id, name)
        lines.append((line, kind == "assistant" and item.get("run_id") is None and not lines))
    return [line for line, _ in lines]


def visible(content: object) -> str:
    """The text of a content, which is a text or a list of parts. What is no text is named, or left out."""
    if isinstance(content, str):
        return "" if _NOTE.fullmatch(content) else content
    if not isinstance(content, list):
        return ""
    shown = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and (text := visible(str(part.get("text") or ""))):
            shown.append(text)
        elif kind == "image":
            shown.append(_IMAGE)
    return "\n".join(shown)


def _unwrapped(content: object) -> tuple[str | None, str]:
    """The event of Letta's own that a user message is, if it is one, and else the text.

    Letta speaks to its agents in the user's name, in JSON with a ``type``; it also wraps people's words so, and takes
    the wrapping off only when a message has a single part.
    """
    text = visible(content)
    if not text.lstrip().startswith("{"):
        return None, text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None, text
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in _EVENTS:
        return kind, ""
    if kind == "user_message" and "message" in value:
        return None, str(value["message"] or "")
    return None, text


def _moment(date: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(date))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
