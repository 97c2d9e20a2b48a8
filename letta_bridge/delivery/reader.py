"""Reading a stream with patience: the next event, or the moment when something else is due."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ..letta.backend import TurnEvent


class StreamReader:
    """Reads one event ahead in a task of its own, so that waiting for it can end early without losing it."""

    def __init__(self, stream: AsyncIterator[TurnEvent]) -> None:
        self._stream = stream
        self._next: asyncio.Task[TurnEvent | None] | None = None

    async def _read(self) -> TurnEvent | None:
        try:
            return await anext(self._stream)
        except StopAsyncIteration:
            return None

    async def wait(self, patience: float | None, also: "asyncio.Task[Any] | None") -> bool:
        """Wait until :meth:`take` has something, ``patience`` seconds passed, or ``also`` is done.

        Returns whether :meth:`take` has something.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._read())
        tasks: set[asyncio.Task[Any]] = {self._next} if also is None else {self._next, also}
        await asyncio.wait(tasks, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        return self._next.done()

    def take(self) -> TurnEvent | None:
        """The event that is there, or None at the end of the stream. Raises what reading raised."""
        assert self._next is not None
        task, self._next = self._next, None
        return task.result()

    async def aclose(self) -> None:
        """Stop reading and close the stream; the run itself goes on."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
            self._next = None
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()
