"""The one exception by which every layer of the fake refuses a request."""

import secrets
from typing import Any


class MatrixError(Exception):
    """A refusal as a homeserver words it: HTTP status, ``errcode``, text, and further keys of the body."""

    def __init__(self, status: int, errcode: str, error: str, **extra: Any) -> None:
        super().__init__(f"{status} {errcode}: {error}")
        self.status = status
        self.errcode = errcode
        self.error = error
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        return {"errcode": self.errcode, "error": self.error, **self.extra}


class PasswordNeededError(MatrixError):
    """401 of the user-interactive flow: its body has the ways to go on, and no errcode."""

    def __init__(self) -> None:
        super().__init__(401, "", "User-interactive authentication is needed")

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        return {"session": secrets.token_hex(12), "flows": [{"stages": ["m.login.password"]}], "params": {}}


def forbidden(text: str) -> MatrixError:
    """403 ``M_FORBIDDEN``."""
    return MatrixError(403, "M_FORBIDDEN", text)


def not_found(text: str) -> MatrixError:
    """404 ``M_NOT_FOUND``."""
    return MatrixError(404, "M_NOT_FOUND", text)


def bad(text: str, errcode: str = "M_UNKNOWN") -> MatrixError:
    """400 with the errcode that the homeserver uses for this mistake."""
    return MatrixError(400, errcode, text)


def internal() -> MatrixError:
    """500: how Synapse 1.163 answers several malformed requests that it does not check for."""
    return MatrixError(500, "M_UNKNOWN", "Internal server error")
