"""The renderer: turns a run's typed stream into assistant messages, and decides when a live one is shown again.

Pure: time is handed in, nothing is sent. One Matrix message per assistant message of Letta.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..letta.backend import ApprovalRequest, RunEnded, Text, ToolCall, TurnEvent

_FIRST_GAP = 1.0
_GROWTH = 1.12
_LARGEST_GAP = 10.0


@dataclass(slots=True)
class Speech:
    """One assistant message. ``index`` is its number within the turn, counted over resumed runs alike."""

    index: int
    message_id: str
    pieces: list[str] = field(default_factory=list)
    complete: bool = False
    shown_txn: str = ""
    """Transaction id of what began to show it before it was complete: its first event, or an edit of an older one."""
    edits: int = 0
    next_edit: float = 0.0
    shown: str = ""
    length: int = 0
    """Characters so far: of a text of thousands of pieces that is still growing, these two must cost nothing."""
    visible: bool = False
    """Whether there is more than blanks."""

    def add(self, piece: str) -> None:
        """It goes on."""
        self.pieces.append(piece)
        self.length += len(piece)
        self.visible = self.visible or bool(piece.strip())

    @property
    def text(self) -> str:
        """All of it so far."""
        if len(self.pieces) > 1:
            self.pieces[:] = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""


class Renderer:
    """Collects what a run says.

    Args:
        first_event_s: seconds after acceptance at which an incomplete message first shows.
        max_edits: events that one streamed message may cost beyond its first, the final one included.
    """

    def __init__(self, first_event_s: float, max_edits: int) -> None:
        self._first_event_s = first_event_s
        self._max_edits = max_edits
        self._accepted_at: float | None = None
        self.speeches: list[Speech] = []
        self.approvals: list[ApprovalRequest] = []
        self.ended: RunEnded | None = None

    def accepted(self, now: float) -> None:
        """Letta has the message: the clock of the first event starts."""
        if self._accepted_at is None:
            self._accepted_at = now

    def feed(self, event: TurnEvent) -> Speech | None:
        """Take in an event; returns a message that this event completed."""
        if isinstance(event, Text):
            return self._text(event)
        if isinstance(event, ToolCall | ApprovalRequest | RunEnded):
            if isinstance(event, ApprovalRequest):
                self.approvals.append(event)
            elif isinstance(event, RunEnded):
                self.ended = event
            return self._complete_last()
        return None

    def _text(self, event: Text) -> Speech | None:
        last = self.speeches[-1] if self.speeches else None
        if last is not None and last.message_id == event.message_id and not last.complete:
            last.add(event.delta)
            return None
        completed = self._complete_last()
        if event.delta:
            self.speeches.append(Speech(len(self.speeches), event.message_id))
            self.speeches[-1].add(event.delta)
        return completed

    def _complete_last(self) -> Speech | None:
        if self.speeches and not self.speeches[-1].complete:
            self.speeches[-1].complete = True
            return self.speeches[-1]
        return None

    @property
    def live(self) -> Speech | None:
        """The message that is being said, if one is."""
        if self.speeches and not self.speeches[-1].complete and self.speeches[-1].visible:
            return self.speeches[-1]
        return None

    def due(self, now: float) -> float | None:
        """Seconds until the live message is to be shown (again); None when nothing is to be shown."""
        speech = self.live
        if speech is None or self._accepted_at is None:
            return None
        if not speech.shown_txn:
            return max(0.0, self._accepted_at + self._first_event_s - now)
        if speech.edits >= self._max_edits - 1 or speech.length == len(speech.shown):
            return None
        return max(0.0, speech.next_edit - now)

    def first_shown(self, speech: Speech, txn: str, text: str, now: float) -> None:
        """Its first event is out with ``text``; edits come at growing distances from now on."""
        speech.shown_txn = txn
        speech.shown = text
        speech.next_edit = now + _FIRST_GAP

    def edited(self, speech: Speech, text: str, now: float) -> None:
        """A live edit was tried, successfully or not."""
        speech.edits += 1
        speech.shown = text
        speech.next_edit = now + min(_LARGEST_GAP, _FIRST_GAP * _GROWTH**speech.edits)


def whole(events: Sequence[TurnEvent]) -> Renderer:
    """A renderer that was fed a finished run."""
    renderer = Renderer(0.0, 0)
    for event in events:
        renderer.feed(event)
    return renderer
