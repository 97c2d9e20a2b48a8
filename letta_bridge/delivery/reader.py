"""Reading a stream with patience: the next event, or the moment when something else is due."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from ..letta.backend import TurnEvent

_AHEAD = 256
"""Events read ahead at most: a stream is not read faster than its answer is shown for long."""


class StreamReader:
    """Reads ahead in a task of its own, so that waiting for an event can end early without losing it."""

    def __init__(self, stream: AsyncIterator[TurnEvent]) -> None:
        self._stream = stream
        self._events: deque[TurnEvent] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def _read(self) -> None:
        try:
            async for event in self._stream:
                self._events.append(event)
                self._news.set()
                if len(self._events) >= _AHEAD:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._news.set()

    def nudge(self) -> None:
        """End the present :meth:`wait`, or the next one that would have to wait."""
        self._news.set()

    async def wait(self, patience: float | None) -> bool:
        """Wait until :meth:`take` has something, ``patience`` seconds passed, or somebody nudges.

        Returns whether :meth:`take` has something.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._read())
        if not self._events and not self._task.done():
            try:
                async with asyncio.timeout(patience):
                    await self._news.wait()
            except TimeoutError:
                return False
            self._news.clear()
        return bool(self._events) or self._task.done()

    def take(self) -> TurnEvent | None:
        """The event that is there, or None at the end of the stream. Raises what reading raised."""
        if self._events:
            self._room.set()
            return self._events.popleft()
        assert self._task is not None
        self._task.result()
        return None

    async def aclose(self) -> None:
        """Stop reading and close the stream; the run itself goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()
