"""Setting right what others change, but never for ever."""

from collections.abc import Callable

from ..ids import RoomID

_MOST = 3
_WITHIN = 3600.0


class Fights:
    """Counts what was set right in each room: three times an hour, then it is left as it is until the hour is over.

    Kept in memory: a new process begins to count anew.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._mended: dict[tuple[RoomID, str], list[float]] = {}

    def may_mend(self, room_id: RoomID, thing: str) -> bool:
        """Whether ``thing`` may be set right once more; notes that it is."""
        now = self._clock()
        times = [at for at in self._mended.get((room_id, thing), ()) if now - at < _WITHIN]
        allowed = len(times) < _MOST
        if allowed:
            times.append(now)
        self._mended[(room_id, thing)] = times
        return allowed
