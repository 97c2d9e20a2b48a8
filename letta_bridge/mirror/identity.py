"""Which Letta answers: by the fingerprint of its database, else by a marker that the bridge may leave there."""

import secrets

from ..letta.backend import Backend
from ..letta.errors import LettaError
from .guard import Who

_TOLD, _MARKED = "fingerprint ", "marker "


class Identity:
    """Asks the connected Letta who it is.

    Args:
        backend: the Letta.
        marker: whether a memory block of the bridge's own may be made in it (``letta.marker``).
    """

    def __init__(self, backend: Backend, marker: bool) -> None:
        self._backend = backend
        self._marker = marker

    async def ask(self, ours: str | None) -> tuple[Who, str | None]:
        """Whether it is the Letta with the fingerprint ``ours``, and its own; None where it has none (yet)."""
        try:
            told = await self._backend.fingerprint()
            if told is not None:
                return _compared(ours, _TOLD + told, _TOLD)
            if not self._marker:
                return Who.UNTOLD, None
            mark = await self._backend.read_marker()
        except LettaError:
            return Who.UNKNOWN, None
        if mark is not None:
            return _compared(ours, _MARKED + mark, _MARKED)
        return (Who.OTHER if ours is not None and ours.startswith(_MARKED) else Who.UNTOLD), None

    async def mark(self, ours: str | None) -> str | None:
        """Leave the marker in a Letta that has no fingerprint: ``ours`` again, or a new one. Returns what it is now.

        None where that is not allowed or does not work now.
        """
        if not self._marker:
            return None
        known = ours is not None and ours.startswith(_MARKED)
        value = str(ours).removeprefix(_MARKED) if known else secrets.token_hex(16)
        try:
            await self._backend.write_marker(value)
        except LettaError:
            return None
        return _MARKED + value


def _compared(ours: str | None, its: str, kind: str) -> tuple[Who, str]:
    if ours is None or not ours.startswith(kind):
        return Who.UNTOLD, its
    return (Who.SAME if ours == its else Who.OTHER), its
