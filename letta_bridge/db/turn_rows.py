"""What a row of the ``turn`` table is, and the words of SQL that all statements on turns share."""

from collections.abc import Callable
from dataclasses import dataclass

from ..ids import MXID, AgentID, EventID, Otid, RoomID, TurnID
from .database import Database, Row, due_in
from .restored import is_doubtful

OPEN = "('queued', 'running')"
"""SQLite uses the index of open turns only where a statement says just this, whatever else it says of the state."""
OtidMaker = Callable[[EventID, int], Otid]
"""Makes the otid of a message in an attempt of its turn."""


def agent_lane(agent_id: AgentID) -> str:
    """The lane of an agent's turns: one at a time, because parallel turns lose memory edits on Letta V1."""
    return f"agent:{agent_id}"


@dataclass(frozen=True, slots=True)
class TurnRow:
    """A turn as stored. Empty strings stand for "none". ``paused``: it waits until its agent or room is resumed."""

    turn_id: TurnID
    agent_id: AgentID
    room_id: RoomID
    source: str
    thread_root: str
    reply_to: str
    mention: bool
    conversation_id: str
    state: str
    attempt: int
    failures: int
    wait: float
    wait_reason: str
    run_id: str
    stop_by: str
    running_for: float
    age: float
    paused: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether a bridge whose database is lost may have handed it over: it is looked up first."""
        return is_doubtful(self.attempt)


@dataclass(frozen=True, slots=True)
class TurnMessage:
    """One message of a turn. ``text`` is what the agent reads, sealed when the event was dispatched."""

    event_id: EventID
    sender: MXID
    text: str
    otid: Otid


@dataclass(frozen=True, slots=True)
class Begun:
    """A turn that has just begun to run, and the messages that are handed over."""

    turn: TurnRow
    messages: list[TurnMessage]


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message about to be queued for an agent."""

    event_id: EventID
    sender: MXID
    agent_id: AgentID
    room_id: RoomID
    thread_root: str
    reply_to: str
    mention: bool
    text: str
    attempt: int = 0
    """Other than 0: the attempt of a turn that is to be looked up before it is handed over, and alone."""


@dataclass(frozen=True, slots=True)
class WaitingRoom:
    """A room that waits for an agent: its newest waiting message, and the tries of that message's turn so far."""

    room_id: RoomID
    event_id: EventID
    sender: MXID
    thread_root: str
    attempt: int


def turn_columns(db: Database) -> str:
    """SQL for what :func:`turn_row` needs to be selected or returned."""
    now = db.now
    return f"*, not_before - {now} AS wait, {now} - created_at AS age, COALESCE({now} - submitted_at, 0) AS running_for"


def turn_row(row: Row) -> TurnRow:
    """A row with :func:`turn_columns`."""
    return TurnRow(
        TurnID(row["turn_id"]),
        AgentID(row["agent_id"]),
        RoomID(row["room_id"]),
        row["source"],
        row["thread_root"],
        row["reply_to"],
        bool(row["mention"]),
        row["conversation_id"],
        row["state"],
        row["attempt"],
        row["failures"],
        due_in(float(row["wait"])),
        row["wait_reason"],
        row["run_id"],
        row["stop_by"],
        float(row["running_for"]),
        float(row["age"]),
    )


def is_paused(turn: str) -> str:
    """Whether a row of ``turn`` is covered by a pause; three look-ups by key in a table that is mostly empty."""
    subjects = f"('all', 'agent:' || {turn}.agent_id, 'room:' || {turn}.room_id)"
    return f"EXISTS (SELECT 1 FROM pause WHERE subject IN {subjects})"
