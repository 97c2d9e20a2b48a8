"""The hot requests to Letta on the wire: what networks, proxies and the environment do to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from letta_bridge.letta.errors import Delivery, Kind, LettaError
from letta_bridge.letta.v1_wire import Wire

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """The address of a server on which every path is this handler's."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def wire_to(address: str, api_key: str | None) -> AsyncIterator[Wire]:
    wire = Wire(f"http://{address}", api_key, request_timeout=5, connect_timeout=5, silence=5, connections=10, idle=3)
    try:
        yield wire
    finally:
        await wire.close()


@asynccontextmanager
async def served(handler: Handler, api_key: str | None = "key-123") -> AsyncIterator[Wire]:
    """A wire to a server on which every path is this handler's."""
    async with listening(handler) as address, wire_to(address, api_key) as wire:
        yield wire


async def refusal(wire: Wire) -> LettaError:
    with pytest.raises(LettaError) as caught:
        async for _ in wire.stream("conversations", "default", "messages", body={}):
            pass
    return caught.value


async def test_a_refusal_that_comes_in_pieces_is_read_whole() -> None:
    """Long ones come in several packets; what a piece of JSON means, nobody can say."""
    body = json.dumps({"detail": "x" * 3000, "run_id": "run-1"})

    async def in_pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=409, headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        for start in range(0, len(body), 1000):
            await response.write(body[start : start + 1000].encode())
            await asyncio.sleep(0.05)  # packets of their own
        return response

    async with served(in_pieces) as wire:
        error = await refusal(wire)
    assert (error.kind, error.delivery, error.run_id) == (Kind.BUSY, Delivery.NO, "run-1")


async def test_an_endless_refusal_is_not_read_to_its_end() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 10_000)

    async with served(endless) as wire, asyncio.timeout(5):
        error = await refusal(wire)
    assert (error.kind, error.delivery) == (Kind.INTERNAL, Delivery.UNKNOWN)


async def test_the_key_is_used_whatever_a_netrc_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools keep passwords for other hosts, and a default one, in it."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    presented: list[str | None] = []

    async def look(request: web.Request) -> web.StreamResponse:
        presented.append(request.headers.get("Authorization"))
        return web.json_response([])

    for key in ("key-123", None):
        async with served(look, key) as wire:
            assert await wire.get("agents", "agent-1", "core-memory", "blocks", query={}) == []
    assert presented == ["Bearer key-123", None]


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    async def proxy(request: web.Request) -> web.StreamResponse:
        asked.append((request.raw_path, request.headers.get("Proxy-Authorization")))
        return web.json_response(["by proxy"])

    async with listening(proxy) as address:
        monkeypatch.setenv("http_proxy", f"http://user:word@{address}")
        monkeypatch.setenv("no_proxy", "elsewhere.test")
        async with wire_to("letta.test:8283", None) as wire:
            assert await wire.get("agents", query={}) == ["by proxy"]
        monkeypatch.setenv("no_proxy", "letta.test")
        async with wire_to("letta.test:8283", None) as wire:
            with pytest.raises(LettaError) as caught:
                await wire.get("agents", query={})
    assert asked == [("http://letta.test:8283/v1/agents", "Basic dXNlcjp3b3Jk")]
    assert caught.value.delivery is Delivery.NO


async def test_an_answer_that_is_nested_too_deeply_is_an_answer_that_is_no_json() -> None:
    async def deep(_: web.Request) -> web.StreamResponse:
        return web.Response(text="[" * 100_000 + "]" * 100_000, content_type="application/json")

    async with served(deep) as wire:
        with pytest.raises(LettaError) as caught:
            await wire.get("agents", query={})
    assert caught.value.kind is Kind.INTERNAL


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_named_and_not_followed(status: int) -> None:
    """It would lose the key on another origin, or make a GET of the POST."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": "https://letta.example/"})

    async with served(handler) as wire:
        error = await refusal(wire)
    assert (error.kind, error.delivery) == (Kind.UNREACHABLE, Delivery.NO)
    assert "letta.url is redirected" in error.detail
