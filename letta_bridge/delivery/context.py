"""What working on a room or on a turn needs, each handed around as one thing."""

import time
from dataclasses import dataclass, field

from ..db.agents import Agents
from ..db.commands import Commands
from ..db.database import Database
from ..db.inbox import Inbox
from ..db.management import ManagementRooms
from ..db.memory import Conversations, Settings, Told
from ..db.outbox import Outbox
from ..db.restored import Restored
from ..db.rooms import Rooms
from ..db.stops import Stops
from ..db.turns import Turns
from ..ids import AgentID, RunID
from ..lanes import Lanes
from ..letta.backend import Backend
from ..letta.errors import Kind, LettaError
from ..matrix.homeserver import Homeserver
from ..mirror.absence import Absences
from ..mirror.directory import Directory
from ..routing.permissions import Permissions
from ..sight import BLIND, Sight
from .presence import Presence
from .sender import Sender
from .troubles import Troubles

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSettings:
    """How turns are run and shown.

    Attributes:
        timeout: seconds an agent may take for one answer.
        attempts: tries after unclear failures.
        settle: seconds between the two looks that prove that Letta does not have a message.
        stream: whether an answer shows while it is written.
        first_event_s: seconds after acceptance until it first shows.
        max_edits: events that one streamed message may cost beyond its first.
        edit_patience: seconds for which a live edit holds up the run's own events.
        part_bytes: largest Markdown text of one event.
        busy_pause: seconds between two tries while another run has the conversation.
        approval_pause: seconds between two tries while an approval is pending.
        key_pause: seconds between two tries while Letta refuses the key.
        unknown_pause: seconds between two looks for a turn of which nothing can be said yet.
    """

    timeout: float = 600.0
    attempts: int = 5
    settle: float = 10.0
    stream: bool = True
    first_event_s: float = 1.0
    max_edits: int = 50
    edit_patience: float = 10.0
    part_bytes: int = 16 * 1024
    busy_pause: float = 2.0
    approval_pause: float = 15.0
    key_pause: float = 30.0
    unknown_pause: float = 5.0

    def pause_of(self, kind: Kind) -> float | None:
        """Seconds between two tries while ``kind`` lasts; None where the pause grows with the outage."""
        pauses = {Kind.BUSY: self.busy_pause, Kind.APPROVAL: self.approval_pause, Kind.BAD_KEY: self.key_pause}
        return pauses.get(kind)


@dataclass(slots=True)
class Outage:
    """What was seen of Letta being away: by this process, and by whoever had its lanes before."""

    refused_at: float = float("-inf")
    noted_at: float = float("-inf")
    """The ``refused_at`` that stands in the database."""
    _counts: dict[AgentID, int] = field(default_factory=dict)

    def seen(self, error: LettaError) -> None:
        """A call failed; when nothing listened at Letta's address, whatever it was running then has ended."""
        if error.refused:
            self.refused_at = time.monotonic()

    def was_seen(self, seconds_ago: float) -> None:
        """Somebody found nobody listening so long ago."""
        self.refused_at = self.noted_at = max(self.refused_at, time.monotonic() - seconds_ago)

    def began_before(self, seconds_ago: float) -> bool:
        """Whether Letta was seen away after something that began ``seconds_ago``."""
        return self.refused_at > time.monotonic() - seconds_ago

    def pause(self, agent_id: AgentID) -> float:
        """Seconds until this agent's next try, growing while the outage lasts."""
        count = self._counts.get(agent_id, 0)
        self._counts[agent_id] = count + 1
        return float(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(count, 8)))

    def over(self, agent_id: AgentID) -> None:
        """Letta works for this agent."""
        self._counts.pop(agent_id, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomContext:
    """The parts that dispatching a room's events touches."""

    db: Database
    homeserver: Homeserver
    directory: Directory
    permissions: Permissions
    agents: Agents
    inbox: Inbox
    outbox: Outbox
    turns: Turns
    stops: Stops
    rooms: Rooms
    told: Told
    restored: Restored
    commands: Commands
    management: ManagementRooms
    lanes: Lanes
    sight: Sight = BLIND


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnContext:
    """The parts that a turn touches."""

    db: Database
    backend: Backend
    agents: Agents
    turns: Turns
    stops: Stops
    outbox: Outbox
    conversations: Conversations
    lanes: Lanes
    sender: Sender
    presence: Presence
    troubles: Troubles
    notes: Settings
    restored: Restored
    absences: Absences
    settings: TurnSettings
    sight: Sight = BLIND
    outage: Outage = field(default_factory=Outage)
    cancelled: dict[AgentID, RunID] = field(default_factory=dict)
    """Runs that were cancelled, by us or by who had the lane before, and that may not have ended yet."""
