"""The wire between the bridge and its homeserver, which a test can watch and cut."""

from __future__ import annotations

import asyncio
import re
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length", "host"}


class LostAnswer:
    """An answer that the homeserver gives and the bridge never gets. ``given`` is set when the homeserver gave it."""

    def __init__(self, path: str) -> None:
        self.path = re.compile(path)
        self.given = asyncio.Event()
        self._cut = asyncio.Event()

    def cut(self) -> None:
        """Break the connection of the one who waits for it."""
        self._cut.set()

    async def wait(self) -> None:
        """Hold the answer back (called by the wire)."""
        self.given.set()
        await self._cut.wait()


class Wire:
    """``async with Wire(target) as wire``: passes on what comes to ``wire.url``."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._losses: list[LostAnswer] = []
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None
        self._changed = asyncio.Event()
        self.calls: list[tuple[str, str, int]] = []
        """Method, path and status of every call; status 0 where the homeserver did not answer."""

    @property
    def url(self) -> str:
        assert self._runner is not None
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{rest:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None and self._http is not None
        await self._runner.cleanup()
        await self._http.close()

    def lose(self, path: str) -> LostAnswer:
        """Lose the answer to the next call whose path matches."""
        loss = LostAnswer(path)
        self._losses.append(loss)
        return loss

    def count(self, path: str, status: int | None = None) -> int:
        """How many calls were made whose path matches (and that got this status)."""
        return sum(bool(re.search(path, one)) and status in (None, got) for _, one, got in self.calls)

    async def seen(self, path: str, status: int, seconds: float = 20) -> None:
        """Return when a call to this path has got this status."""
        async with asyncio.timeout(seconds):
            while not self.count(path, status):
                changed = self._changed
                await changed.wait()

    def _note(self, request: web.Request, status: int) -> None:
        self.calls.append((request.method, request.path, status))
        self._changed.set()
        self._changed = asyncio.Event()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        assert self._http is not None
        url = URL(self._target + request.raw_path, encoded=True)
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP}
        try:
            async with self._http.request(request.method, url, data=await request.read(), headers=headers) as answer:
                body = await answer.read()
        except aiohttp.ClientError:
            self._note(request, 0)
            return _hang_up(request)
        self._note(request, answer.status)
        loss = next((loss for loss in self._losses if loss.path.search(request.path)), None)
        if loss is not None:
            self._losses.remove(loss)
            await loss.wait()
            return _hang_up(request)
        kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP}
        return web.Response(status=answer.status, body=body, headers=kept)


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
