"""What the fake server keeps: its database, and what the real one keeps in Redis."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .wire import EventLog, Json, new_id, now

BASE_TOOLS = ("conversation_search", "memory_insert", "memory_replace")
MEMORY_TOOLS = ("memory_insert", "memory_replace", "core_memory_append")


@dataclass(eq=False, slots=True)
class Block:
    """A memory block."""

    label: str | None
    value: str
    limit: int = 100_000
    description: str | None = None
    read_only: bool = False
    metadata: Json = field(default_factory=dict)
    id: str = field(default_factory=lambda: new_id("block"))


@dataclass(eq=False, slots=True)
class Tool:
    """A tool as attached to agents."""

    name: str
    type: str
    id: str = field(default_factory=lambda: new_id("tool"))


@dataclass(eq=False, slots=True)
class Row:
    """One stored message. ``items`` are what the history shows for it: one message may give several."""

    role: str
    text: str
    """What the model sees of it."""
    items: list[Json]
    id: str
    agent_id: str
    conversation_id: str | None
    run_id: str | None
    call: Json | None = None
    """The tool call of a request, or the one a return belongs to (``tool_call_id``)."""
    seq: int = 0
    position: int = 0
    deleted: bool = False


@dataclass(eq=False, slots=True)
class Agent:
    """An agent with its main thread."""

    name: str
    tags: list[str]
    metadata: Json
    description: str | None
    blocks: list[Block]
    tools: list[Tool]
    agent_type: str = "letta_v1_agent"
    model: str = "openai-proxy/gpt-4o"
    id: str = field(default_factory=lambda: new_id("agent"))
    created_at: datetime = field(default_factory=now)
    updated_at: datetime = field(default_factory=now)
    last_stop_reason: str | None = None
    message_ids: list[str] = field(default_factory=list)
    needs_approval: set[str] = field(default_factory=set)
    group: Json | None = None
    hidden: bool | None = None
    """Whether listings and the count leave it out. Only its creation can say so."""

    def block(self, label: str) -> Block | None:
        return next((block for block in self.blocks if block.label == label), None)

    def memory(self) -> dict[str, str]:
        """The values of the blocks as they are now."""
        return {block.label or "": block.value for block in self.blocks}


@dataclass(eq=False, slots=True)
class Conversation:
    """A conversation of an agent. Its memory is frozen when it is made, until it is recompiled."""

    agent_id: str
    summary: str | None
    memory: dict[str, str]
    id: str = field(default_factory=lambda: new_id("conv"))
    created_at: datetime = field(default_factory=now)
    updated_at: datetime = field(default_factory=now)
    last_message_at: datetime | None = None
    context: list[str] = field(default_factory=list)
    model: str | None = None
    model_settings: Json | None = None


@dataclass(eq=False, slots=True)
class Step:
    """One call of the model."""

    run_id: str
    agent_id: str
    id: str = field(default_factory=lambda: new_id("step"))
    stop_reason: str | None = None
    failed: bool = False


@dataclass(eq=False, slots=True)
class Run:
    """One execution of an agent."""

    agent_id: str
    conversation_id: str | None
    background: bool
    metadata: Json
    lock_key: str | None
    id: str = field(default_factory=lambda: new_id("run"))
    status: str = "created"
    stop_reason: str | None = None
    created_at: datetime = field(default_factory=now)
    completed_at: datetime | None = None
    log: EventLog | None = None
    """The events that can be read again later: background runs only."""
    steps: list[Step] = field(default_factory=list)
    seq: int = 0

    @property
    def active(self) -> bool:
        return self.status in ("created", "running")


@dataclass(eq=False, slots=True)
class Turn:
    """One turn that the model really ran: what a test counts."""

    agent_id: str
    conversation_id: str
    """``default`` for the main thread."""
    texts: list[str]
    otids: list[str]
    run_id: str
    memory: dict[str, str]
    """The block values that the turn saw."""
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    outcome: str = "running"
    """Letta's stop reason, ``lost`` when the server died under it, ``running`` while it runs."""

    def overlaps(self, other: "Turn") -> bool:
        """Whether both ran at the same time."""
        mine = self.ended_at if self.ended_at is not None else float("inf")
        its = other.ended_at if other.ended_at is not None else float("inf")
        return self.started_at < its and other.started_at < mine


@dataclass(frozen=True, slots=True)
class Removed:
    """A deleted agent and what went with it."""

    agent: Agent
    rows: dict[str, Row]
    runs: dict[str, Run]
    conversations: dict[str, Conversation]


class Database:
    """Everything that a restart keeps and :meth:`FakeLetta.wipe` empties."""

    def __init__(self) -> None:
        self.created_at = now()
        self.agents: dict[str, Agent] = {}
        self.conversations: dict[str, Conversation] = {}
        self.runs: dict[str, Run] = {}
        self.steps: dict[str, Step] = {}
        self.blocks: dict[str, Block] = {}
        self.rows: dict[str, Row] = {}
        self.tools = {
            name: Tool(name, "letta_core" if name == "conversation_search" else "letta_sleeptime_core")
            for name in (*BASE_TOOLS, "core_memory_append")
        }
        # what the real server keeps in Redis
        self.locks: dict[str, tuple[str, float]] = {}
        self.otid_runs: dict[str, str] = {}
        self.latest_run: dict[str, str] = {}
        self._seq = 0
        self._runs = 0

    def store(self, rows: Sequence[Row], context: list[str]) -> None:
        """Write ``rows`` and put them at the end of ``context``."""
        for row in rows:
            self._seq += 1
            row.seq = self._seq
            row.position = len(context)
            context.append(row.id)
            self.rows[row.id] = row

    def add_run(self, run: Run) -> None:
        self._runs += 1
        run.seq = self._runs
        self.runs[run.id] = run
        self.latest_run[run.agent_id] = run.id

    def history(self, *, agent_id: str | None = None, conversation_id: str | None = "*") -> list[Row]:
        """Stored messages in the order of storing; ``None`` is the main thread, ``*`` everything."""
        return [
            row
            for row in self.rows.values()
            if not row.deleted
            and (agent_id is None or row.agent_id == agent_id)
            and (conversation_id == "*" or row.conversation_id == conversation_id)
        ]

    def context(self, agent: Agent, conversation: Conversation | None) -> list[str]:
        """The ids that the model sees, of a conversation or of the main thread."""
        return agent.message_ids if conversation is None else conversation.context

    def pending(self, context: list[str]) -> Row | None:
        """The approval request that blocks a thread, when its last message is one."""
        row = self.rows.get(context[-1]) if context else None
        return row if row is not None and row.role == "approval_request" else None

    def release(self, key: str | None) -> None:
        """Free a lock, whoever holds it: the real server does not look either."""
        if key is not None:
            self.locks.pop(key, None)

    def remove_agent(self, agent: Agent) -> "Removed":
        """Delete an agent with its runs and conversations, and its companion. Blocks stay, as on the real server."""
        for companion_id in (agent.group or {}).get("agent_ids", ()):
            if companion_id in self.agents:
                self.remove_agent(self.agents[companion_id])
        removed = Removed(
            agent,
            {key: row for key, row in self.rows.items() if row.agent_id == agent.id},
            {key: run for key, run in self.runs.items() if run.agent_id == agent.id},
            {key: one for key, one in self.conversations.items() if one.agent_id == agent.id},
        )
        del self.agents[agent.id]
        self.rows = {key: row for key, row in self.rows.items() if row.agent_id != agent.id}
        self.runs = {key: run for key, run in self.runs.items() if run.agent_id != agent.id}
        self.conversations = {key: one for key, one in self.conversations.items() if one.agent_id != agent.id}
        return removed

    def restore_agent(self, removed: "Removed") -> None:
        """Put a deleted agent back with all that went with it, as from a backup."""
        self.agents[removed.agent.id] = removed.agent
        self.rows.update(removed.rows)
        self.runs.update(removed.runs)
        self.conversations.update(removed.conversations)

    def remove_conversation(self, conversation: Conversation) -> None:
        """Delete a conversation; its messages vanish from every history."""
        del self.conversations[conversation.id]
        for row in self.rows.values():
            if row.conversation_id == conversation.id:
                row.deleted = True


def page(rows: Sequence[Any], *, above: int | None, below: int | None, limit: int, descending: bool) -> list[Any]:
    """The first ``limit`` of ``rows`` with a ``seq`` between the two, in the order asked for."""
    chosen = [row for row in rows if (above is None or row.seq > above) and (below is None or row.seq < below)]
    chosen.sort(key=lambda row: row.seq, reverse=descending)
    return chosen[:limit]
