"""What the mirror makes of a failed call."""

from ..matrix.homeserver import HomeserverError


class MirrorError(Exception):
    """Something of one agent (or the space) cannot be made now; the text is for the log and the admin.

    ``conflict``: another room stands where the agent's own should be; a person has to look at it.
    """

    def __init__(self, text: str, *, conflict: bool = False) -> None:
        super().__init__(text)
        self.conflict = conflict


def unreachable(error: HomeserverError) -> bool:
    """Whether the homeserver (or whatever stands before it) does nothing for us now, so that trying on is useless.

    401 is among them: while a Tuwunel starts, or before the registration is loaded, it does not know our token.
    """
    return error.status in (0, 401, 502, 503, 504)
