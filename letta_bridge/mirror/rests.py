"""Waiting longer after each failure, per thing that failed."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Rests(Generic[K]):
    """Which things have failed and are left alone for a while: ``first`` seconds, doubled up to ``longest``."""

    def __init__(self, first: float, longest: float, clock: Callable[[], float]) -> None:
        self._first = first
        self._longest = longest
        self._clock = clock
        self._until: dict[K, tuple[int, float]] = {}

    def failed(self, key: K) -> float:
        """Note a failure; returns the seconds to wait."""
        failures = self._until.get(key, (0, 0.0))[0] + 1
        pause = min(self._first * 2.0 ** min(failures - 1, 30), self._longest)
        self._until[key] = (failures, self._clock() + pause)
        return pause

    def recovered(self, key: K) -> bool:
        """Forget the failures; whether there were any."""
        return self._until.pop(key, None) is not None

    def resting(self, key: K) -> bool:
        """Whether it is still to be left alone."""
        return self.left(key) > 0

    def left(self, key: K) -> float:
        """Seconds for which it is still to be left alone; 0 or less when it may be tried."""
        entry = self._until.get(key)
        return 0.0 if entry is None else entry[1] - self._clock()
