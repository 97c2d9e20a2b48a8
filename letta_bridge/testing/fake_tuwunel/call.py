"""A client's call on its way through the proxy, and what is answered."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

from multidict import MultiDict

from ..fake_homeserver.events import JSON


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. ``headers`` are the homeserver's, without those of the connection."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> JSON:
        """The object in the body; empty when it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def fine(self) -> bool:
        """Whether the call succeeded."""
        return 200 <= self.status < 300

    @classmethod
    def of(cls, content: JSON, status: int = 200) -> Self:
        """An answer of the proxy's own."""
        return cls(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    @classmethod
    def refusal(cls, status: int, errcode: str, error: str) -> Self:
        """A refusal in Tuwunel's words."""
        return cls.of({"errcode": errcode, "error": error}, status)


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the appservice. ``path`` is as it was sent, percent-encoded, without the query."""

    method: str
    path: str
    query: MultiDict[str]
    headers: dict[str, str]
    body: bytes
    user_id: str
    """Whom it acts as."""
    device_id: str = ""

    @property
    def json(self) -> JSON:
        """The object in the body; empty when it is none."""
        return Answer(200, self.body).json

    def having(self, *, path: str | None = None, body: Any = None) -> "Call":
        """The same call with another path or JSON body."""
        data = self.body if body is None else json.dumps(body).encode()
        return replace(self, path=self.path if path is None else path, body=data)

    def asking(self, **query: str | None) -> "Call":
        """The same call with these parameters changed; None takes one away."""
        changed = self.query.copy()
        for name, value in query.items():
            changed.popall(name, None)
            if value is not None:
                changed[name] = value
        return replace(self, query=changed)


Onward = Callable[[Call], Awaitable[Answer]]
