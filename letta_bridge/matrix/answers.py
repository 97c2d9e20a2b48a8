"""What the homeserver's answers come to: a refusal with all that is known of it, or what was asked for."""

from typing import Any, TypeVar

T = TypeVar("T")

_MAY_QUOTE = frozenset(("", "M_BAD_JSON", "M_NOT_JSON"))
"""Error codes whose words may repeat what was sent: a proxy's page, a parser's complaint."""


class HomeserverError(Exception):
    """A call that the homeserver refused or did not answer.

    Args:
        status: HTTP status; 0 when there was no answer at all.
        errcode: Matrix error code, or ``""``.
        message: the homeserver's own words; left out of the error's text where they may quote what was sent.
        retry_after: seconds it asked to wait (429), or None.
    """

    def __init__(self, status: int, errcode: str, message: str, retry_after: float | None = None) -> None:
        words = "" if status and errcode in _MAY_QUOTE else message
        super().__init__(" ".join(part for part in (str(status or "no answer"), errcode, words) if part))
        self.status = status
        self.errcode = errcode
        self.message = message
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """The same call may succeed later: nothing is known about what was asked.

        So is a refusal of the token (a registration that is being reloaded), and any answer without a Matrix error
        code: it is not the homeserver's but that of a proxy in front of it.
        """
        if self.status in (0, 401, 408, 429) or self.status >= 500:
            return True
        return not self.errcode and self.status != 413

    @property
    def not_found(self) -> bool:
        """The homeserver itself says that there is no such thing: 404 with ``M_NOT_FOUND``, not a proxy's 404."""
        return self.status == 404 and self.errcode == "M_NOT_FOUND"

    @property
    def forbidden(self) -> bool:
        """Refused by the room's or the server's rules."""
        return self.status == 403 or self.errcode in ("M_FORBIDDEN", "M_EXCLUSIVE")

    @property
    def unknown_device(self) -> bool:
        """The masqueraded device does not exist (Synapse and Tuwunel say it differently)."""
        return self.errcode == "M_UNKNOWN_DEVICE" or (
            self.errcode == "M_INVALID_PARAM" and "device" in self.message.lower()
        )


def mapping(answer: Any) -> dict[str, Any]:
    """An answer that is an object; whatever else came instead has nothing in it."""
    return answer if isinstance(answer, dict) else {}


def part(answer: Any, key: str, kind: type[T]) -> T:
    """What the specification says is in an answer. Without it somebody else answered: nothing is known then."""
    value = mapping(answer).get(key)
    if not isinstance(value, kind):
        raise HomeserverError(502, "", f"an answer without {key}")
    return value
