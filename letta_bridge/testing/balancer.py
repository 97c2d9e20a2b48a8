"""A small load balancer in front of several replicas, as strict as nginx or HAProxy in their usual configurations."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

HEALTH = "/_matrix/mau/serving"
"""Asked of every replica; see docs/replicas.md for why it is this route."""
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length", "host"}


@dataclass(frozen=True, slots=True)
class Passed:
    """One request that was answered: by which peer, with which status."""

    peer: str
    method: str
    path: str
    status: int


class Balancer:
    """``async with Balancer() as balancer``: spreads what comes to ``balancer.url`` over ``peers`` in turn.

    A peer gets requests while its health check says 200. A request goes to the next peer only if the connection was
    refused: once anything was sent, a broken connection is a 502. Without a healthy peer the answer is 503.

    Args:
        port: where it listens on 127.0.0.1; 0 takes a free one.
        every: seconds between two health checks of a peer.
        health: path of the health check.
    """

    def __init__(self, port: int = 0, *, every: float = 0.1, health: str = HEALTH) -> None:
        self._port = port
        self.peers: list[str] = []
        """Base URLs of the replicas; may be changed at any time."""
        self.healthy: set[str] = set()
        self.passed: list[Passed] = []
        """Every answer of a peer, oldest first."""
        self.unanswered: list[str] = []
        """Paths of the requests that no peer answered (502 and 503)."""
        self._every = every
        self._health = health
        self._next = 0
        self._http: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._checks: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The one address of all replicas."""
        assert self._runner is not None
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        # every request on a connection of its own: a refusal then always comes before anything was sent
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        self._http = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._checks = asyncio.create_task(self._checking())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._checks is not None and self._runner is not None and self._http is not None
        self._checks.cancel()
        await asyncio.gather(self._checks, return_exceptions=True)
        await self._runner.cleanup()
        await self._http.close()

    def answers(self, path_part: str) -> Counter[str]:
        """How many requests with this in their path each peer answered with 200."""
        return Counter(one.peer for one in self.passed if path_part in one.path and one.status == 200)

    async def _checking(self) -> None:
        while True:
            await asyncio.gather(*(self._check(peer) for peer in tuple(self.peers)))
            self.healthy &= set(self.peers)
            await asyncio.sleep(self._every)

    async def _check(self, peer: str) -> None:
        assert self._http is not None
        status = 0
        try:
            async with self._http.get(peer + self._health, timeout=aiohttp.ClientTimeout(total=1)) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            pass
        if status == 200:
            self.healthy.add(peer)
        else:
            self.healthy.discard(peer)

    def _in_turn(self) -> list[str]:
        """The healthy peers, another one first each time."""
        if not self.peers:
            return []
        self._next = (self._next + 1) % len(self.peers)
        turned = self.peers[self._next :] + self.peers[: self._next]
        return [peer for peer in turned if peer in self.healthy]

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        assert self._http is not None
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP}
        body = await request.read()
        for peer in self._in_turn():
            url = URL(peer + request.raw_path, encoded=True)
            try:
                async with self._http.request(request.method, url, data=body, headers=headers) as answer:
                    text = await answer.read()
            except aiohttp.ClientConnectorError:
                continue
            except aiohttp.ClientError:
                self.unanswered.append(request.path)
                return web.Response(status=502, text="bad gateway")
            self.passed.append(Passed(peer, request.method, request.path, answer.status))
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP}
            return web.Response(status=answer.status, body=text, headers=kept)
        self.unanswered.append(request.path)
        return web.Response(status=503, text="no server is available")
