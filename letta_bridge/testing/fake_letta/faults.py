"""Faults of the transport that a test orders in advance."""

import asyncio
import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from .script import Hold
from .wire import answer

How = int | Literal["disconnect", "hang", "truncate"]


@dataclass(slots=True)
class Fault:
    """What happens to the next ``times`` requests whose path matches ``path`` (searched, not anchored)."""

    path: re.Pattern[str]
    how: How
    times: int
    method: str | None
    after_processing: bool
    after_events: int | None
    skip: int = 0
    """How many requests pass before the first that fails: the first pages of a list."""

    def claims(self, request: web.Request) -> bool:
        """Whether it takes this request; it is used up by that."""
        if self.times <= 0 or not self.path.search(request.path):
            return False
        if self.method is not None and request.method != self.method:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True

    @property
    def late(self) -> bool:
        """Whether the request is worked on before it fails."""
        return self.after_processing or self.after_events is not None or self.how == "truncate"

    async def strike(self, request: web.Request) -> web.StreamResponse:
        """Let the request fail."""
        if isinstance(self.how, int):
            return answer({"detail": f"Fault ordered by the test: {self.how}"}, self.how)
        if self.how == "disconnect":
            drop(request)
        await asyncio.Event().wait()  # until the client, or the server, is gone
        raise AssertionError("unreachable")


@dataclass(slots=True)
class Gate:
    """Where the next request to a path waits before the server works on it."""

    path: re.Pattern[str]
    method: str | None
    hold: Hold
    taken: bool = False

    async def pass_(self, request: web.Request) -> None:
        """Wait here if this is the request that is meant."""
        fits = self.path.search(request.path) and self.method in (None, request.method)
        if fits and not self.taken:
            self.taken = True
            await self.hold.wait()


async def cut(request: web.Request, whole: web.StreamResponse) -> web.StreamResponse:
    """Send half of an answer's body, then nothing more: the connection breaks."""
    body = whole.body if isinstance(whole, web.Response) else None
    assert isinstance(body, bytes)
    half = web.StreamResponse(status=whole.status, headers={"Content-Type": "application/json"})
    half.content_length = len(body)
    await half.prepare(request)
    await half.write(body[: len(body) // 2])
    drop(request)
    return half


def drop(request: web.Request) -> None:
    """Cut the connection as a crash would: no farewell."""
    if request.transport is not None:
        request.transport.abort()


LATE: ContextVar[Fault | None] = ContextVar("LATE", default=None)
"""The fault that is to strike the request in hand after it has been worked on. Set anew for every request."""
