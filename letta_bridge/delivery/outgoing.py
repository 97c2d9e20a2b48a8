"""How outgoing events look and what they are called: contents, relations, transaction ids."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..db.outbox import Outgoing
from ..ids import CONTENT_KEY, MXID, AgentID, EventID, RoomID, TurnID
from ..matrix.markdown import render

_LARGEST_CONTENT = 60_000
"""Bytes; an event may have 65,536 with everything that the homeserver adds (spec, "Size limits")."""


def txn_id(sender: MXID, room_id: RoomID, source: str, kind: str, part: int) -> str:
    """The transaction id of one outgoing event: the same for the same thing for ever, different for different ones.

    Room and sender are in it because Tuwunel's dedupe key has no room and Synapse's appservice key no sender.
    """
    material = "\x00".join(("out", sender, room_id, source, kind, str(part)))
    digest = hashlib.sha256(material.encode("utf-8", "surrogatepass")).digest()
    return "lb" + base64.urlsafe_b64encode(digest).decode()[:22]


def txn_of(event: Mapping[str, Any] | None) -> str:
    """The transaction id that an event of ours names in its content; empty where there is none."""
    content = (event or {}).get("content")
    marker = content.get(CONTENT_KEY) if isinstance(content, Mapping) else None
    name = marker.get("txn") if isinstance(marker, Mapping) else None
    return name if isinstance(name, str) else ""


@dataclass(frozen=True, slots=True)
class ReplyTarget:
    """Where an answer belongs: fixed when the message came in. Empty strings stand for "none".

    ``mention`` are the people whom the answer notifies; ``@room`` never is.
    """

    thread_root: str = ""
    reply_to: str = ""
    mention: tuple[MXID, ...] = ()

    def relation(self) -> dict[str, Any]:
        """``m.relates_to`` of the first event of an answer (an edit cannot add it later)."""
        if self.thread_root:
            return {
                "rel_type": "m.thread",
                "event_id": self.thread_root,
                "is_falling_back": True,
                "m.in_reply_to": {"event_id": self.reply_to or self.thread_root},
            }
        return {"m.in_reply_to": {"event_id": self.reply_to}} if self.reply_to else {}

    def continued(self) -> "ReplyTarget":
        """The target of what follows the first event: still in the thread, but no second reply arrow or ping."""
        return ReplyTarget(self.thread_root, self.reply_to if self.thread_root else "")


@dataclass(frozen=True, slots=True)
class Voice:
    """Who speaks, where, and on whose behalf."""

    sender: MXID
    room_id: RoomID
    agent_id: AgentID | None = None
    turn_id: TurnID | None = None


def text_content(
    text: str, target: ReplyTarget, *, msgtype: str, marker: dict[str, Any], replaces: bool = False
) -> dict[str, Any]:
    """An ``m.room.message`` content with explicit mentions, so that ``@room`` and names in the text ring nobody.

    With ``replaces`` it is an edit; the outbox completes its ``m.relates_to`` with the event id. What would not fit
    into an event loses its formatting, never its text.
    """
    rendered = render(text)
    body: dict[str, Any] = {"msgtype": msgtype, "body": rendered.body}
    html = {} if rendered.html is None else {"format": "org.matrix.custom.html", "formatted_body": rendered.html}
    mentions = {"user_ids": list(target.mention)} if target.mention else {}
    if replaces:
        # the edit itself mentions nobody: it would ring again. Its own body is for clients that do not know edits
        content: dict[str, Any] = {"msgtype": msgtype, "body": f"* {rendered.body}", "m.mentions": {}}
        content |= {"m.new_content": body | html | {"m.mentions": mentions}, "m.relates_to": {"rel_type": "m.replace"}}
    else:
        relation = target.relation()
        content = body | html | {"m.mentions": mentions} | ({"m.relates_to": relation} if relation else {})
    content[CONTENT_KEY] = marker
    if html and _size(content) > _LARGEST_CONTENT:
        formatted: dict[str, Any] = content["m.new_content"] if replaces else content
        del formatted["format"], formatted["formatted_body"]
    return content


def _size(content: dict[str, Any]) -> int:
    return len(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def message(
    voice: Voice,
    text: str,
    target: ReplyTarget,
    *,
    source: str,
    kind: str,
    part: int = 0,
    answers: Sequence[EventID] = (),
    msgtype: str = "m.text",
    edits: str = "",
    growing: bool = False,
) -> Outgoing:
    """An event for the outbox.

    Args:
        source: what it answers or is about, stable over restarts and rebuilt databases.
        kind: what it is to its source (``answer``, ``final``, ``notice:…``).
        part: its number among those of the same source and kind.
        edits: the transaction id of the event that it replaces.
        growing: whether the end of the text is still to come.
    """
    name = txn_id(voice.sender, voice.room_id, source, kind, part)
    marker: dict[str, Any] = {"version": 1, "txn": name}
    if voice.agent_id:
        marker["agent"] = voice.agent_id
    if answers:
        marker["answers"] = list(answers)
    if growing:
        marker["growing"] = True
    content = text_content(text, target, msgtype=msgtype, marker=marker, replaces=bool(edits))
    return Outgoing(name, voice.room_id, voice.sender, "m.room.message", content, edits, voice.turn_id)


def notice(
    voice: Voice, text: str, target: ReplyTarget, *, source: str, kind: str, answers: Sequence[EventID] = ()
) -> Outgoing:
    """A notice for the outbox: seen by people, never answered by bots.

    ``answers``: the messages that are dealt with by it.
    """
    return message(voice, text, target, source=source, kind=f"notice:{kind}", answers=answers, msgtype="m.notice")
