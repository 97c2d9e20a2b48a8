"""What a person sees in a room: the final messages, with edits and redactions applied."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .events import JSON

TextMatch = str | re.Pattern[str] | Callable[[str], bool] | None


@dataclass(frozen=True, slots=True)
class Rendered:
    """One message as a client shows it now. ``content`` is the newest edit's (``m.new_content``) or the original's.

    ``relates_to`` is the original's: an edit cannot move a message.
    """

    sender: str
    body: str
    formatted_body: str | None
    msgtype: str
    event_id: str
    relates_to: JSON
    mentions: JSON
    edits_count: int
    content: JSON

    @property
    def reply_to(self) -> str | None:
        """The event that this is a rich reply to (not the fallback inside a thread)."""
        reply = self.relates_to.get("m.in_reply_to")
        if not isinstance(reply, dict) or self.relates_to.get("is_falling_back"):
            return None
        return reply.get("event_id")

    @property
    def thread_root(self) -> str | None:
        """The root of the thread in which this was said."""
        return self.relates_to.get("event_id") if self.relates_to.get("rel_type") == "m.thread" else None

    def __str__(self) -> str:
        edits = f" (edited {self.edits_count}×)" if self.edits_count else ""
        return f"{self.sender} [{self.msgtype}] {self.body!r}{edits}"


def render(timeline: list[JSON]) -> list[Rendered]:
    """The messages of a timeline (oldest first, client form), in the order in which they were first sent."""
    edits: dict[tuple[str, str], list[JSON]] = {}
    for event in timeline:
        relates = _dict(event["content"].get("m.relates_to"))
        if event["type"] == "m.room.message" and relates.get("rel_type") == "m.replace":
            edits.setdefault((str(relates.get("event_id")), event["sender"]), []).append(event)
    out: list[Rendered] = []
    for event in timeline:
        content = event["content"]
        relates = _dict(content.get("m.relates_to"))
        if event["type"] != "m.room.message" or relates.get("rel_type") == "m.replace" or "body" not in content:
            continue
        own = edits.get((event["event_id"], event["sender"]), [])
        shown = _dict(own[-1]["content"].get("m.new_content")) if own else content
        out.append(
            Rendered(
                sender=event["sender"],
                body=str(shown.get("body", "")),
                formatted_body=shown.get("formatted_body"),
                msgtype=str(shown.get("msgtype", "")),
                event_id=event["event_id"],
                relates_to=relates,
                mentions=_dict(shown.get("m.mentions")),
                edits_count=len(own),
                content=shown,
            )
        )
    return out


def _dict(value: Any) -> JSON:
    return value if isinstance(value, dict) else {}


def text_matches(text: TextMatch, body: str) -> bool:
    """Whether a body is the text, matches the pattern (search), or pleases the function; None takes all."""
    if text is None:
        return True
    if isinstance(text, str):
        return body == text
    if isinstance(text, re.Pattern):
        return text.search(body) is not None
    return text(body)


def describe(timeline: list[JSON]) -> str:
    """A timeline for a failed assertion, one event per line."""
    lines = []
    for event in timeline:
        content = event["content"]
        detail = content.get("body") or content.get("membership") or content
        relates = _dict(content.get("m.relates_to"))
        relation = f" ->{relates.get('rel_type', 'reply')} {relates.get('event_id', '')}" if relates else ""
        lines.append(f"  {event['sender']} {event['type']} {str(detail)[:160]!r}{relation}")
    return "\n".join(lines) or "  (nothing)"
