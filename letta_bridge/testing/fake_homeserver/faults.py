"""Faults that a test asks for: failing answers, delays, answers that never arrive."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(slots=True)
class Fault:
    """One armed fault. ``hits`` counts how often it struck; ``cancel()`` disarms it."""

    pattern: re.Pattern[str]
    left: int | None
    method: str | None = None
    seconds: float = 0.0
    status: int = 0
    errcode: str = "M_UNKNOWN"
    retry_after_ms: int | None = None
    after_processing: bool | Literal["disconnect"] = False
    hits: int = 0

    def cancel(self) -> None:
        """Let requests pass again."""
        self.left = 0

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is hit; counts down."""
        if self.left == 0 or (self.method and self.method != method) or not self.pattern.search(path):
            return False
        self.hits += 1
        if self.left is not None:
            self.left -= 1
        return True

    def body(self) -> dict[str, Any]:
        """The JSON body of the failing answer."""
        out: dict[str, Any] = {"errcode": self.errcode, "error": f"Scripted failure {self.status}"}
        if self.retry_after_ms is not None:
            out["retry_after_ms"] = self.retry_after_ms
        return out

    def headers(self) -> dict[str, str]:
        """``Retry-After`` in whole seconds, as Synapse sends it beside ``retry_after_ms``."""
        if self.retry_after_ms is None:
            return {}
        return {"Retry-After": str(-(-self.retry_after_ms // 1000))}


@dataclass(slots=True)
class Faults:
    """All armed faults, oldest first."""

    failing: list[Fault] = field(default_factory=list)
    slow: list[Fault] = field(default_factory=list)

    def delay_of(self, method: str, path: str) -> float:
        """Seconds by which this request is delayed."""
        return sum(fault.seconds for fault in self.slow if fault.strikes(method, path))

    def failure_of(self, method: str, path: str) -> Fault | None:
        """The fault that strikes this request."""
        return next((fault for fault in self.failing if fault.strikes(method, path)), None)
