"""The one way the bridge speaks to a Letta, whichever product it is.

``v1.py`` implements it with letta-client for the V1 REST API. The App Server's WebSocket is to be a second one.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from ..ids import PREFIX, AgentID, ConversationID, LettaMessageID, Otid, RunID
from .errors import Kind

CREATION_KEY = f"{PREFIX}.key"
"""Where an agent's metadata says for which ``key`` the bridge created it."""


@dataclass(frozen=True, slots=True)
class Health:
    """The answer of a healthy Letta."""

    version: str


@dataclass(frozen=True, slots=True)
class Agent:
    """What the bridge wants to know of an agent. Two names may be equal, and any name may be empty."""

    id: AgentID
    name: str
    description: str = ""
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    companion: bool = False
    """A sleeptime companion of another agent: never mirrored."""
    model: str = ""
    """The handle of its model (``provider/name``), where Letta says it."""


@dataclass(frozen=True, slots=True)
class NewAgent:
    """An agent to be created. ``model=None`` leaves the choice to :meth:`Backend.create_agent`."""

    name: str
    persona: str = ""
    human: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    model: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """A line that was spoken in an agent's main conversation. ``id`` and ``part`` together name it for ever."""

    id: LettaMessageID
    kind: Literal["user", "assistant"]
    text: str
    """What a person would read, as Letta keeps it: the bridge's own messages still in their envelope."""
    at: datetime | None
    """In whole seconds, with a time zone; the order of the items is more exact."""
    otid: str
    """Empty where Letta has none; of a message that the bridge handed over the otid that it gave it."""
    part: int
    """Counts the lines of one message from 0: one message may be several."""
    run_id: str = ""
    """The run in which it was said; empty where Letta has none."""
    name: str = ""
    """What Letta calls who wrote it, if somebody told it."""


@dataclass(frozen=True, slots=True)
class AgentListing:
    """A listing of agents. Only a complete one may be taken as evidence that an agent is gone."""

    agents: tuple[Agent, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """One message for an agent. ``otid`` must be stored before it is handed over."""

    otid: Otid
    text: str


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Letta named the run: the recovery handle, to be stored at once. Always the first event of a stream."""

    run_id: RunID


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of an assistant message, to be appended to what came before under the same id."""

    message_id: LettaMessageID
    delta: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's reasoning."""

    message_id: LettaMessageID
    delta: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The agent calls a tool on Letta's side. Sent once per call, when its name is known."""

    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolReturn:
    """A tool of Letta's side returned."""

    call_id: str
    ok: bool


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """The run ended because a tool call waits for somebody's approval."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Alive:
    """A keep-alive: Letta is there, the model has said nothing new."""


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run ended in good order. Always the last event.

    ``stop_reason`` is Letta's own word: ``end_turn``, ``requires_approval``, ``cancelled``, ``max_steps``, …
    """

    stop_reason: str


TurnEvent = RunStarted | Text | Reasoning | ToolCall | ToolReturn | ApprovalRequest | Alive | RunEnded


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over: every event that its stream would have carried, whole messages instead of pieces."""

    run_id: RunID
    events: tuple[TurnEvent, ...]


@dataclass(frozen=True, slots=True)
class Live:
    """The run still works: :meth:`Backend.resume` follows it."""

    run_id: RunID


@dataclass(frozen=True, slots=True)
class NotDelivered:
    """Proven: Letta does not have the messages and no run of theirs is under way. Sending anew is safe."""


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The run ended in an error or was cancelled; Letta's history does not have the messages unless ``stored``."""

    run_id: RunID
    kind: Kind
    detail: str
    cancelled: bool = False
    stored: bool = False
    """The run failed after its first step (a tool was called): the agent knows the messages; do not send them again."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Cannot be said (yet). Nothing may be repeated on this evidence; ``detail`` says why."""

    detail: str


Outcome = Finished | Live | NotDelivered | RunFailed | Unknown


class Backend(Protocol):
    """A Letta. Every method raises :class:`~letta_bridge.letta.errors.LettaError` and nothing else of its own."""

    async def health(self) -> Health:
        """Ask whether Letta is there. Needs no key. Raises UNREACHABLE."""
        ...

    async def list_agents(self) -> AgentListing:
        """Every agent of this Letta, duplicates removed; parsed outside the event loop when the answer is large."""
        ...

    async def get_agent(self, agent_id: AgentID) -> Agent:
        """One agent, also one that listings leave out (Letta can hide agents). Raises AGENT_GONE."""
        ...

    async def create_agent(self, new: NewAgent, *, key: str) -> Agent:
        """The agent that was created for ``key``; it is created if there is none yet.

        After an error that leaves open what happened the caller calls again with the same ``new`` and ``key``. An
        agent is found again by its name and the key in its metadata (:data:`CREATION_KEY`), so one that somebody
        renamed between two calls is not. Without a model the one most of the newest agents use, else the first that
        the server lists. Raises NO_MODEL.
        """
        ...

    async def rename_agent(self, agent_id: AgentID, name: str) -> Agent:
        """The agent, renamed. May be repeated. Raises AGENT_GONE."""
        ...

    async def delete_agent(self, agent_id: AgentID) -> None:
        """Delete the agent with its conversations, for ever. One that is gone already is no error.

        Its memory blocks stay in Letta, attached to nobody: others may share them.
        """
        ...

    async def history(self, agent_id: AgentID, limit: int) -> Sequence[HistoryItem]:
        """The newest ``limit`` lines spoken in the agent's main conversation, oldest first. Raises AGENT_GONE.

        Without tool calls, reasoning, system prompts, summaries, and what Letta itself says to its agents.
        """
        ...

    async def models(self) -> Sequence[str]:
        """The handles of the language models that agents can have, in the server's order."""
        ...

    async def fingerprint(self) -> str | None:
        """What tells the database of this Letta from another's; it survives restarts.

        ``None`` when this server does not tell. Raises when that cannot be known now: an outage is no answer.
        """
        ...

    async def read_marker(self) -> str | None:
        """What :meth:`write_marker` wrote, ``None`` when nothing is there. For servers without a fingerprint."""
        ...

    async def write_marker(self, value: str) -> None:
        """Keep ``value`` in a memory block of the bridge's own, attached to no agent. May be repeated.

        Whether the bridge may do that is the caller's to know.
        """
        ...

    async def open_conversation(self, agent_id: AgentID, label: str) -> ConversationID:
        """The conversation of ``agent_id`` labelled ``label``: found again, else created.

        Creating is not idempotent on Letta, so it looks first; callers hold the agent's lane.
        """
        ...

    async def refresh_memory(self, agent_id: AgentID, conversation_id: ConversationID, known: str) -> str:
        """Make the conversation see the agent's present memory. ``known`` is what this returned last, or ``""``.

        A conversation's memory is frozen when it is made; it is recompiled only when the agent's blocks differ from
        ``known``. Returns a fingerprint of the blocks to keep. Does nothing for the main conversation.
        """
        ...

    def send(
        self,
        agent_id: AgentID,
        conversation_id: ConversationID,
        prompts: Sequence[Prompt],
        *,
        deadline: float,
    ) -> AsyncIterator[TurnEvent]:
        """Hand over ``prompts`` as one turn and yield what happens, ending with :class:`RunEnded`.

        ``deadline`` is seconds for the whole run; when it passes, TIMEOUT is raised (the run is not cancelled).
        Never retries. An error before :class:`RunStarted` says by its ``delivery`` what is known.
        Closing the iterator stops reading; the run goes on.
        """
        ...

    def resume(
        self, agent_id: AgentID, conversation_id: ConversationID, run_id: RunID, *, deadline: float
    ) -> AsyncIterator[TurnEvent]:
        """Follow a live run from its beginning: re-attach where Letta can, else poll until it is final."""
        ...

    async def find(
        self,
        agent_id: AgentID,
        conversation_id: ConversationID,
        *,
        run_id: RunID | None,
        otids: Sequence[Otid],
        settle: float,
        since: float | None = None,
    ) -> Outcome:
        """Find out what became of messages handed over earlier. Never changes anything.

        ``since`` (seconds since 1970): they were not handed over before that, but possibly long ago; the history is
        read back so far, and where it is too long for that the outcome is :class:`Unknown`.

        Without a run id absence is believed only when seen twice, ``settle`` seconds apart, with the agent's newest
        runs all final: a run can appear late, and history is written only after the model's first answer.
        """
        ...

    async def cancel(self, agent_id: AgentID, run_id: RunID) -> None:
        """Cancel exactly this run; a run that is over already is no error."""
        ...

    async def deny_approval(self, agent_id: AgentID, conversation_id: ConversationID, reason: str) -> bool:
        """Deny whatever approval is pending in the conversation; whether there was one. The agent is usable after.

        Waits for the run that the denial starts, and drops what it says.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
