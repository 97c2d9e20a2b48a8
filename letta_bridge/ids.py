"""What each identifier names and how long it lives; and the one frozen way from an agent to its Matrix name.

Identifiers are opaque: they are compared and stored, never taken apart (room ids of version 12 have no server part).
"""

import hashlib
import re
from typing import NewType

AgentID = NewType("AgentID", str)
"""A Letta agent (``agent-<uuid>``). Lives as long as the agent; the puppet's user id derives from it."""

ConversationID = NewType("ConversationID", str)
"""A Letta conversation (``conv-<uuid>``), or ``default`` for the agent's main thread. Unique within its agent."""

RunID = NewType("RunID", str)
"""One execution of an agent on Letta (``run-<uuid>``): the handle by which an interrupted turn is found again."""

LettaMessageID = NewType("LettaMessageID", str)
"""A message in Letta's history. Several items (reasoning and answer) may carry the same id."""

Otid = NewType("Otid", str)
"""The id that the bridge gives to a message before Letta sees it. Global over all agents of a Letta."""

MXID = NewType("MXID", str)
"""A Matrix user id (``@localpart:domain``)."""

RoomID = NewType("RoomID", str)
"""A Matrix room. Opaque."""

EventID = NewType("EventID", str)
"""A Matrix event. Opaque, unique over all rooms that the bridge sees; the dedupe key of the inbox."""

TurnID = NewType("TurnID", int)
"""A row of the ``turn`` table; ordered within its lane. Lives only in this database."""

JobID = NewType("JobID", int)
"""A row of the ``job`` table: work of several steps. Lives only in this database."""

MAIN_CONVERSATION = ConversationID("default")

PREFIX = "dev.letta_bridge"
"""Reverse-DNS prefix of the bridge's own event content keys, state event types and account data."""

CONTENT_KEY = f"{PREFIX}.message"
"""Content key of everything the bridge says: ``{"version": 1, "txn": …, "agent": …, "answers": [event ids]}``."""

_UUID = re.compile(r"agent-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\Z")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_LONGEST = 120


def puppet_suffix(agent_id: AgentID) -> str:
    """The part of a puppet's localpart that names its agent: frozen, injective, lower-case.

    ``agent-<uuid>`` gives the uuid. Any other id gives a dot and the id with every byte outside ``[a-z0-9-]``
    written ``=xx`` (the Matrix specification's own escape for localparts); ids too long for a user id give
    two dots and their SHA-256. Changing this function changes every puppet: ``tests/unit/test_ids.py`` holds it.
    """
    if match := _UUID.match(agent_id):
        return match.group(1)
    escaped = "".join(
        chr(byte) if chr(byte) in _PLAIN else f"={byte:02x}" for byte in agent_id.encode("utf-8", "surrogatepass")
    )
    if len(escaped) > _LONGEST:
        return ".." + hashlib.sha256(agent_id.encode("utf-8", "surrogatepass")).hexdigest()
    return "." + escaped


def make_otid(agent_id: AgentID, conversation_id: ConversationID, event_id: EventID, attempt: int) -> Otid:
    """The otid of one message in one attempt.

    Letta's dedupe key is global over all agents, so the event id alone would replay another agent's answer.
    """
    material = "\x00".join((agent_id, conversation_id, event_id, str(attempt)))
    return Otid("lb-" + hashlib.sha256(material.encode("utf-8", "surrogatepass")).hexdigest()[:40])
