"""What the model behind the fake answers, and how a test directs it."""

import asyncio
import html
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Words = str | Iterable[str] | AsyncIterable[str]
Reply = Callable[[list[str]], Words]
"""Gives the answer to the texts of a turn: whole, or in the pieces in which it is to be streamed."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the model answers one turn. Directives in the user's text say the same (see :func:`directives`)."""

    text: Words | None = None
    """The answer; ``None`` means an echo of the last user text."""
    reason: str | None = None
    """Reasoning that comes before the answer."""
    hang: float = 0.0
    """Seconds before the first byte. ``math.inf`` hangs for ever."""
    delay: float = 0.0
    """Seconds between words when tokens are streamed."""
    error: int | None = None
    """The model's HTTP status instead of an answer."""
    says: str = ""
    """What the model's provider adds to its error; real ones repeat parts of the prompt."""
    error_after: int | None = None
    """When tokens are streamed: the model drops the connection after so many words."""
    silent: bool = False
    """With ``error_after``: Letta does not notice, and only pings from then on."""
    tool: tuple[str, dict[str, Any]] | None = None
    """A tool that the model calls first, if it is offered; then it answers ``tool said: <result>``."""
    approve: bool = False
    """The tool is there and needs approval, whatever the agent has attached."""

    @property
    def directed(self) -> bool:
        return self != Behaviour()


def _arguments(text: str, at: int) -> dict[str, Any] | None:
    """The JSON object that starts at ``at``, also when the text around it has been escaped for a markup."""
    for candidate in (text[at:], html.unescape(text[at:])):
        try:
            value, _ = json.JSONDecoder().raw_decode(candidate)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


def directives(text: str) -> Behaviour:
    """Read the directives anywhere in ``text``.

    ``#hang S``, ``#slow N D``, ``#error CODE``, ``#errorafter N``, ``#tool NAME {json}``, ``#approve NAME {json}``,
    ``#reason TEXT`` and ``#say TEXT`` (both to the end of the line). Of an envelope of the bridge only the lines of
    the message count, not what it quotes in its head.
    """
    if text.startswith("[letta_bridge v"):
        text = "\n".join(line for line in text.split("\n") if line.startswith("|"))
    found: dict[str, Any] = {}
    if match := re.search(r"#hang ([\d.]+)", text):
        found["hang"] = float(match[1])
    if match := re.search(r"#slow (\d+) ([\d.]+)", text):
        found["text"] = " ".join(f"word{index}" for index in range(int(match[1])))
        found["delay"] = float(match[2])
    if match := re.search(r"#error (\d+)", text):
        found["error"] = int(match[1])
    if match := re.search(r"#errorafter (\d+)", text):
        found["error_after"] = int(match[1])
    if match := re.search(r"#reason (.*)", text):
        found["reason"] = match[1]
    if match := re.search(r"#(tool|approve) (\w+) (?=\{)", text):
        arguments = _arguments(text, match.end())
        if arguments is not None:
            found["tool"] = (match[2], arguments)
            found["approve"] = match[1] == "approve"
    if match := re.search(r"#say (.*)", text):
        found["text"] = match[1].strip()
    return Behaviour(**found)


async def pieces(words: Words) -> AsyncIterator[str]:
    """The pieces in which an answer is streamed: given ones, else word by word."""
    if isinstance(words, str):
        for piece in re.findall(r"^\s+|\S+\s*", words):
            yield piece
    elif isinstance(words, AsyncIterable):
        async for piece in words:
            yield piece
    else:
        for piece in words:
            yield piece


async def whole(words: Words) -> str:
    """The answer in one."""
    if isinstance(words, str):
        return words
    return "".join([piece async for piece in pieces(words)])


@dataclass(eq=False, slots=True)
class Hold:
    """A model that hangs until it is released. Turns that are in it only ping."""

    agent_id: str | None
    waiting: int = 0
    """How many turns are in it now."""
    _arrived: int = 0
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let every turn go on; later turns do not hang."""
        self._open.set()

    @property
    def released(self) -> bool:
        return self._open.is_set()

    async def entered(self, count: int = 1) -> None:
        """Wait until ``count`` turns have come into it, counted from the beginning."""
        while self._arrived < count:
            await self._changed.wait()

    async def wait(self) -> None:
        """Hang (called by the turn)."""
        self._arrived += 1
        self.waiting += 1
        self._changed.set()
        self._changed = asyncio.Event()
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


ToolFunction = Callable[[dict[str, Any]], str | Awaitable[str]]
"""A custom tool of the server: takes its arguments, returns its text, raises to fail."""
