"""What ``letta-bridge smoke`` says: one line per step, and what the homeserver was seen to do."""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..logs import TextFormatter
from ..matrix.homeserver import HomeserverError
from .checks_homeserver import REGISTERED
from .checkup import Status
from .exitcodes import Exit


class FailedError(Exception):
    """A step failed: what was seen, what to do about it, and the class of the trouble."""

    def __init__(self, text: str, remedy: str, code: Exit = Exit.SMOKE) -> None:
        super().__init__(text)
        self.text, self.remedy, self.code = text, remedy, code


class SkippedError(Exception):
    """A step could not be made, or proves nothing here, and that is no failure."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.why, self.remedy = why, remedy


_NO_ANSWER = "check homeserver.url and that the homeserver runs and is not overloaded; see its log"
_LIMITED = "the registration has to say rate_limited: false; if it does, " + REGISTERED
_TOO_OLD = "update the homeserver: Synapse 1.132 or Tuwunel 1.8.3 and newer are supported"
_REFUSED = "the homeserver's log says more; a module or setting of it may forbid this"


def explain(error: HomeserverError) -> FailedError:
    """A refusal as a sentence with what to do."""
    said = f"{error.status} {error.errcode} {error.message}".strip()
    if not error.status:
        return FailedError(f"the homeserver did not answer ({error.message})", _NO_ANSWER, Exit.HOMESERVER)
    if error.status == 401:
        return FailedError(f"the homeserver does not accept as_token ({said})", REGISTERED, Exit.AS_TOKEN)
    if error.status == 429:
        return FailedError(f"the homeserver limits the bridge's rate ({said})", _LIMITED)
    if error.errcode == "M_EXCLUSIVE" or "masquerade" in error.message:
        text = f"the homeserver does not let the bridge do this in its own namespace ({said})"
        return FailedError(text, REGISTERED, Exit.NAMESPACES)
    if error.errcode == "M_UNRECOGNIZED":
        return FailedError(f"the homeserver does not know this call ({said})", _TOO_OLD)
    return FailedError(f"the homeserver refuses this ({said})", _REFUSED)


@dataclass(frozen=True, slots=True)
class Line:
    """How a step ended. ``ms`` is None where nothing was timed."""

    what: str
    status: Status
    detail: str
    ms: int | None
    remedy: str = ""
    code: Exit = Exit.OK

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "step": self.what,
            "status": self.status.value.lower(),
            "detail": self.detail,
            "ms": self.ms,
            "remedy": self.remedy,
            "class": self.code.name.lower(),
        }

    def as_text(self) -> str:
        """For people."""
        told = ", ".join(part for part in (self.detail, "" if self.ms is None else f"{self.ms} ms") if part)
        line = f"{self.status.value:<5} {self.what}" + (f"  ({told})" if told else "")
        return f"{line}\n        → {self.remedy}" if self.remedy else line


@dataclass(frozen=True, slots=True)
class Observation:
    """Something in which homeservers differ, and which of the two known ones does the same."""

    topic: str
    seen: str
    like: str = ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"topic": self.topic, "seen": self.seen, "like": self.like}

    def as_text(self) -> str:
        """For people."""
        likes = {"synapse": "as Synapse", "tuwunel": "as Tuwunel", "neither": "as neither Synapse nor Tuwunel"}
        like = likes.get(self.like, "")
        return f"  {self.topic}: {self.seen}" + (f"  [{like}]" if like else "")


class Report:
    """Collects and shows; no secret gets through it.

    Args:
        secrets: texts that are never shown, whoever says them.
        show: is given each line of text when it is there; nothing with ``--json``.
    """

    def __init__(self, secrets: Iterable[str], show: Callable[[str], None]) -> None:
        self._hide = TextFormatter(secrets).hide
        self._print = show
        self.lines: list[Line] = []
        self.observations: list[Observation] = []
        self.left_behind: list[str] = []
        self.software = ""
        self.mode = ""
        self.interrupted = False

    def add(self, line: Line) -> None:
        """A step has ended."""
        self.lines.append(line)
        self._show(line.as_text())

    def _show(self, text: str) -> None:
        self._print(self._hide(text))

    def observe(self, topic: str, seen: str, *, synapse: str = "", tuwunel: str = "") -> None:
        """Note what the homeserver does, beside what the two known ones do (nothing where that says nothing)."""
        like = ""
        if synapse or tuwunel:
            same = [name for name, does in (("synapse", synapse), ("tuwunel", tuwunel)) if does == seen]
            like = {0: "neither", 1: "".join(same), 2: "both"}[len(same)]
        if topic not in {known.topic for known in self.observations}:
            self.observations.append(Observation(topic, seen, like))

    @property
    def code(self) -> Exit:
        """That of the first step that failed."""
        return next((line.code for line in self.lines if line.status is Status.FAIL), Exit.OK)

    def conclude(self, seconds: float) -> None:
        """Say what was seen of the homeserver, what stays, and how it went."""
        if self.observations:
            self._show(f"\nWhat this homeserver{self.software and f' ({self.software})'} does:")
        for observation in self.observations:
            self._show(observation.as_text())
        if self.left_behind:
            self._show("\nWhat stays on the homeserver: " + "; ".join(self.left_behind) + ".")
        self._show("\n" + self._verdict(seconds))

    def _verdict(self, seconds: float) -> str:
        failed = sum(line.status is Status.FAIL for line in self.lines)
        skipped = sum(line.status is Status.SKIP for line in self.lines)
        if self.interrupted:
            return f"Interrupted after {seconds:.1f} s; cleaned up as told above."
        if failed:
            return f"{failed} failed, {skipped} skipped, in {seconds:.1f} s."
        rest = f"; {skipped} skipped, for the reason beside it" if skipped else ""
        unknown = any(observation.like == "neither" for observation in self.observations)
        tell = " What is neither Synapse's nor Tuwunel's way is new to the bridge: please report it." if unknown else ""
        return f"Everything that was tried works ({seconds:.1f} s{rest}).{tell}"

    def as_json(self, seconds: float, code: int) -> str:
        """All of it as one JSON object."""
        plain = {
            "ok": code == Exit.OK,
            "exit_code": int(code),
            "version": __version__,
            "software": self.software,
            "mode": self.mode,
            "interrupted": self.interrupted,
            "seconds": round(seconds, 1),
            "steps": [line.as_json() for line in self.lines],
            "observed": [observation.as_json() for observation in self.observations],
            "left_behind": self.left_behind,
        }
        return self._hide(json.dumps(plain, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """To standard output, at once."""
    print(text, file=sys.stdout, flush=True)
