"""Waiting until a deletion has come to its end."""

from collections.abc import Callable, Iterable

from ..ids import MXID, RoomID
from .maker import State
from .swept import silently_left

_SETTLED = 8.0
"""Seconds. Synapse lets one user after the other leave, removes the aliases and then fails, or forgets the room."""


class Settling:
    """Rooms out of which the bridge's own users were put as a server's admin does who deletes a room.

    Whoever comes back meanwhile lets the deletion fail ("Users are still joined to this room"), with everybody else
    put out already. So nothing is done there before the departures have ended for some seconds. Kept in memory: a new
    process waits anew.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left: dict[RoomID, tuple[frozenset[str], float]] = {}

    def wait(self, room_id: RoomID, state: State, ours: Iterable[MXID]) -> bool:
        """Whether the room is to be left as it is for now."""
        left = frozenset(str(event["state_key"]) for event in state if silently_left(event))
        if not left.intersection(ours):
            self._left.pop(room_id, None)
            return False
        known = self._left.get(room_id)
        if known is None or known[0] != left:
            self._left[room_id] = (left, self._clock())
            return True
        return self._clock() - known[1] < _SETTLED

    def ended(self, room_id: RoomID) -> None:
        """It is gone."""
        self._left.pop(room_id, None)
