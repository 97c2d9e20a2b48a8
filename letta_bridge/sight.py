"""What the parts of the bridge tell of their work, for whoever counts it.

The parts know :class:`Sight` only; :class:`letta_bridge.web.meters.Meters` is the one that counts. Whatever a report is
called by (an action, a call, a result) comes from a small fixed set: ids of rooms, people and events have no end.
"""

from collections.abc import Iterable

from .ids import TurnID


class Sight:
    """Takes reports and forgets them. No method waits, raises, or keeps anything of what a message says."""

    def transaction(self, status: int, seconds: float) -> None:
        """A pushed transaction was answered with this HTTP status after so many seconds."""

    def arrived(self, states: Iterable[str]) -> None:
        """Pushed events were stored, each in this state (``new``, ``skipped``: our own words, ``dead``: malformed)."""

    def decided(self, action: str) -> None:
        """What becomes of an event was decided and committed."""

    def claimed(self, lane: str) -> None:
        """A lane was claimed."""

    def fenced(self, lane: str) -> None:
        """A lane was found to be another replica's."""

    def lane_failed(self, lane: str) -> None:
        """A round of a lane ended in an unexpected error."""

    def self_fenced(self) -> None:
        """This process gave all its lanes up because its heartbeat was late."""

    def retried(self, stage: str) -> None:
        """Something has to be tried again (``dispatch``, ``turn``, ``send``)."""

    def buried(self, stage: str) -> None:
        """Something became a dead letter (``inbox``, ``outbox``)."""

    def turn_taken(self, turn_id: TurnID, age: float) -> None:
        """A lane has a turn in hand that was queued ``age`` seconds ago. Told again when it is taken again."""

    def turn_begun(self, turn_id: TurnID, tries: int) -> None:
        """A turn is being handed to Letta, after so many earlier tries."""

    def turn_accepted(self, turn_id: TurnID) -> None:
        """Letta named the turn's run."""

    def turn_ended(self, turn_id: TurnID, end: str) -> None:
        """A turn came to its end (``done``, ``dead``, ``cancelled``)."""

    def sent(self, kind: str, turn_id: TurnID | None) -> None:
        """The homeserver confirmed an event of the outbox (``answer``, ``edit``, ``notice``), if any of this turn."""

    def live_edit(self, result: str) -> None:
        """A live edit was ``sent`` or ``shed``."""

    def homeserver(self, call: str, status: int, seconds: float) -> None:
        """The homeserver answered a request with this HTTP status (0: not at all) after so many seconds."""

    def letta(self, call: str, result: str, seconds: float) -> None:
        """A call to Letta ended: ``ok``, or the kind of its trouble."""

    def written(self, seconds: float) -> None:
        """A transaction of the database took so many seconds, the waiting for a connection included."""


BLIND = Sight()
"""For whoever has nobody to report to."""
