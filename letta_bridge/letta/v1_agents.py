"""Agents as the V1 server shows them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..ids import AgentID
from .backend import Agent
from .v1_stream import Json

_SLEEPTIME = ("sleeptime_agent", "voice_sleeptime_agent")


@dataclass(frozen=True, slots=True)
class Listed:
    """What is kept of an agent in a listing, and the companions that it names."""

    agent: Agent
    companions: tuple[str, ...]
    streams_tokens: bool


def listed(row: Json) -> Listed:
    """What is kept of an agent in a listing."""
    return Listed(agent_of(row), tuple(_companions_named_by(row)), streams_tokens(row))


def agent_of(row: Json) -> Agent:
    """The agent in an answer of Letta's."""
    tags, metadata = row.get("tags"), row.get("metadata")
    return Agent(
        AgentID(row["id"]),
        str(row.get("name") or ""),
        str(row.get("description") or ""),
        tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
        metadata if isinstance(metadata, dict) else {},
        companion=row.get("agent_type") in _SLEEPTIME,
        model=str(row.get("model") or ""),
    )


def streams_tokens(row: Json) -> bool:
    """Whether the agent's tokens can be streamed.

    Letta cuts the blanks and leaves the escapes in the token streams of the older types, which answer through a
    ``send_message`` tool ("A  b\\n" arrives as "Ab\\\\n"); whole messages of theirs are right.
    """
    return row.get("agent_type") == "letta_v1_agent"


def _companions_named_by(row: Json) -> list[str]:
    group = row.get("managed_group") or row.get("multi_agent_group")
    if not isinstance(group, dict) or "sleeptime" not in str(group.get("manager_type")):
        return []
    return [str(member) for member in group.get("agent_ids") or () if member != row.get("id")]


def memory_fingerprint(blocks: Sequence[Json]) -> str:
    """Changes when one of an agent's memory blocks does."""
    kept = sorted([str(block.get("label")), str(block.get("value"))] for block in blocks)
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()
