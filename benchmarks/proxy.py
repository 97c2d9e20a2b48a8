"""A wire to the homeserver that counts what goes over it; in the bench's own process, for the rows that need it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length", "host"}


@dataclass(frozen=True)
class Call:
    """One request and how it was answered."""

    begun: float
    ended: float
    method: str
    path: str
    status: int

    @property
    def is_ping(self) -> bool:
        """The appservice's ping of itself through the homeserver."""
        return "/appservice/" in self.path and self.path.endswith("/ping")

    @property
    def name(self) -> str:
        """Method and kind of request, without what differs from one to the next."""
        parts = self.path.split("?", 1)[0].split("/")
        if "rooms" in parts[:5] and len(parts) > 6:
            return f"{self.method} {parts[6]}" + (f" {parts[7]}" if parts[6] == "state" and len(parts) > 7 else "")
        return f"{self.method} {parts[-1] if 'profile' in parts else parts[4] if len(parts) > 4 else self.path}"


class CountingProxy:
    """``async with CountingProxy(target) as proxy``: passes on what comes to ``proxy.url`` and notes it."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.calls: list[Call] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{rest:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._http.close()

    async def _pass(self, request: web.Request) -> web.Response:
        begun = time.monotonic()
        url = URL(self._target + request.raw_path, encoded=True)
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP}
        async with self._http.request(request.method, url, data=await request.read(), headers=headers) as answer:
            body = await answer.read()
        self.calls.append(Call(begun, time.monotonic(), request.method, request.path, answer.status))
        kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP}
        return web.Response(status=answer.status, body=body, headers=kept)

    def since(self, at: float) -> list[Call]:
        """The calls that began after a moment, pings left out."""
        return [call for call in self.calls if call.begun >= at and not call.is_ping]


def counted(calls: list[Call]) -> str:
    """How many of each kind, in words."""
    return ", ".join(f"{count} × {name}" for name, count in Counter(call.name for call in calls).most_common())
