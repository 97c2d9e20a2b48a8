"""Proxies between the bridge and a neighbour that break what passes, as networks and reverse proxies do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length", "host"}
HTML = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1>nginx</body></html>"

Act = Callable[["Relay", web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Rule:
    """What happens to requests whose path matches, instead of being passed on. ``hits`` counts them."""

    path: re.Pattern[str]
    act: Act
    left: int | None
    method: str | None
    hits: int = 0

    def cancel(self) -> None:
        self.left = 0

    def claims(self, request: web.Request) -> bool:
        if self.left == 0 or self.method not in (None, request.method) or not self.path.search(request.path):
            return False
        self.hits += 1
        if self.left is not None:
            self.left -= 1
        return True


@dataclass(slots=True)
class Relay:
    """``async with Relay(target) as relay``: an HTTP reverse proxy at ``relay.url``."""

    target: str
    rules: list[Rule] = field(default_factory=list)
    calls: list[tuple[float, str, str]] = field(default_factory=list)
    """Time (monotonic), method and path of every request."""
    _runner: web.AppRunner | None = None
    _http: aiohttp.ClientSession | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        assert self._runner is not None
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{rest:.*}", self._serve)
        # whoever goes away takes the request to the target with them
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._http is not None:
            await self._http.close()

    def rule(self, path: str, act: Act, times: int | None = 1, *, method: str | None = None) -> Rule:
        """Let ``act`` deal with the next ``times`` requests (None: all) to ``path`` (searched)."""
        made = Rule(re.compile(path), act, times, method)
        self.rules.append(made)
        return made

    def times(self, path: str) -> list[float]:
        """When requests to ``path`` came."""
        return [when for when, _, called in self.calls if re.search(path, called)]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((time.monotonic(), request.method, request.path))
        rule = next((rule for rule in self.rules if rule.claims(request)), None)
        return await (self.pass_on(request) if rule is None else rule.act(self, request))

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """Ask the target and answer with what it says, piece by piece."""
        body = await request.read()
        try:
            async with self.ask(request, body) as answer:
                headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
                response = web.StreamResponse(status=answer.status, headers=headers)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, OSError):
            return drop(request)

    def ask(self, request: web.Request, body: bytes) -> Any:
        """The same request to the target."""
        assert self._http is not None
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        url = self.target + request.raw_path
        return self._http.request(request.method, url, headers=headers, data=body, allow_redirects=False)

    def spawn(self, work: Any) -> None:
        """Do something apart from the request that ordered it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def drop(request: web.Request) -> web.StreamResponse:
    """Cut the connection without another byte."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def answering(
    status: int, body: Any = "", *, kind: str = "application/json", headers: dict[str, str] | None = None
) -> Act:
    """Answer so, without asking the target."""
    text = body if isinstance(body, str) else json.dumps(body)

    async def act(_: Relay, request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, text=text, content_type=kind, headers=headers)

    return act


async def cut_before(_: Relay, request: web.Request) -> web.StreamResponse:
    """The connection breaks before the target has seen anything."""
    return drop(request)


async def cut_after(relay: Relay, request: web.Request) -> web.StreamResponse:
    """The target does its work; nothing of its answer arrives."""
    async with relay.ask(request, await request.read()) as answer:
        await answer.read()
    return drop(request)


async def cut_midway(relay: Relay, request: web.Request) -> web.StreamResponse:
    """The target does its work; its answer breaks off in the middle of the body."""
    async with relay.ask(request, await request.read()) as answer:
        whole = await answer.read()
    response = web.StreamResponse(status=answer.status)
    response.content_type = "application/json"
    response.content_length = len(whole)
    await response.prepare(request)
    await response.write(whole[: len(whole) // 2])
    return drop(request)


def late(seconds: float) -> Act:
    """The client's connection breaks at once; the target gets the request only ``seconds`` later."""

    async def act(relay: Relay, request: web.Request) -> web.StreamResponse:
        body = await request.read()

        async def deliver() -> None:
            await asyncio.sleep(seconds)
            async with relay.ask(request, body) as answer:
                await answer.read()

        relay.spawn(deliver())
        return drop(request)

    return act


@dataclass(slots=True)
class Pipe:
    """``async with Pipe(host, port) as pipe``: a TCP connection through which PostgreSQL is reached.

    ``cut`` names what happens to the next COMMIT: ``before`` the server sees it, or ``after`` it, so that the client
    does not learn that it was done.
    """

    host: str
    to: int
    cut: str = ""
    cuts: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._open, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            theirs, ours = await asyncio.open_connection(self.host, self.to)
        except OSError:
            writer.transport.abort()
            return
        back = asyncio.create_task(self._pump(theirs, writer))
        try:
            await self._forward(reader, ours, back)
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            writer.transport.abort()
            ours.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: Any) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self.cut and b"COMMIT\x00" in data:
                    how, self.cut = self.cut, ""
                    self.cuts += 1
                    if how == "after":
                        back.cancel()  # whatever the server says from now on stays here
                        writer.write(data)
                        await writer.drain()
                        await asyncio.sleep(0.2)  # the server commits; nobody can tell the client
                    return
                writer.write(data)
                await writer.drain()

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
