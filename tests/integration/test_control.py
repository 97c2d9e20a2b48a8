"""The bridge's own HTTP interface: only with its token, and a pass for whoever asks, shared where that is possible."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from letta_bridge.web.control import REFRESH

from .world import World, a_world, free_port, until

TOKEN = "a-token-of-some-length-0123456789"


@asynccontextmanager
async def caller(world: World, **overrides: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A bridge with the interface, and a client of it."""
    await world.start(control__token=TOKEN, control__port=free_port(), **overrides)
    assert world.bridge is not None
    base = f"http://127.0.0.1:{world.bridge.control.port}"
    async with aiohttp.ClientSession(base, headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        yield session


def passes(world: World) -> int:
    """How often Letta was asked for its list."""
    return len([path for method, path in world.letta.requests if method == "GET" and path == "/v1/agents/"])


async def test_a_refresh_shows_a_new_agent_at_once(world: World) -> None:
    world.letta.add_agent("Ada")
    async with caller(world) as session:
        await world.mirrored()
        async with session.post(REFRESH, params={"wait": "1"}) as answer:
            assert (await answer.json())["added"] == 0
        basil = world.letta.add_agent("Basil")
        async with session.post(REFRESH, params={"wait": "1"}, json={"event": "agent.created"}) as answer:
            assert answer.status == 200
            told = await answer.json()
        # on PostgreSQL the notice of the first request may have begun a pass that nobody waits for
        assert told["added"] == 1 or (world.bridge is not None and world.bridge.db.postgres)
        assert (told["missing"], told["archived"], told["frozen"], told["trouble"]) == (0, 0, "", "")
        assert await world.portal(basil)
        async with session.post(REFRESH) as answer:
            assert answer.status == 202
            number = (await answer.json())["pass"]
        assert number > told["pass"]
        assert world.bridge is not None
        assert await world.bridge.directory.refreshes.wait(number, 15) is not None


@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("", 401), ("Basic abc", 401), ("Bearer", 401), ("Bearer wrong", 403), (f"Bearer {TOKEN}x", 403)],
)
async def test_without_its_token_it_says_nothing(sqlite_world: World, header: str | None, status: int) -> None:
    world = sqlite_world
    async with caller(world):
        assert world.bridge is not None
        base = f"http://127.0.0.1:{world.bridge.control.port}"
        await until(lambda: passes(world) > 0)
        async with aiohttp.ClientSession(base, headers={"Authorization": header} if header else {}) as stranger:
            for path in (REFRESH, "/", "/_letta_bridge/v1/nothing"):
                async with stranger.post(path) as answer:
                    assert answer.status == status
                    assert TOKEN not in await answer.text()


async def test_what_is_not_there_and_what_is_too_much(sqlite_world: World) -> None:
    async with caller(sqlite_world) as session:
        async with session.get(REFRESH) as answer:
            assert answer.status == 405
        async with session.post("/_letta_bridge/v1/nothing") as answer:
            assert answer.status == 404
        async with session.post(REFRESH, data=b"x" * 20_000) as answer:
            assert answer.status == 413


async def test_without_a_token_nobody_listens(sqlite_world: World) -> None:
    bridge = await sqlite_world.start()
    assert bridge.control.port == 0


async def test_a_taken_port_keeps_the_bridge_from_nothing(sqlite_world: World) -> None:
    world = sqlite_world
    ada = world.letta.add_agent("Ada")
    server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    async with server:
        await world.start(control__token=TOKEN, control__port=server.sockets[0].getsockname()[1])
        await world.mirrored()
        assert await world.portal(ada)


async def test_requests_during_a_pass_share_the_next(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Ada")
    async with caller(world) as session:
        await world.mirrored()
        gate = world.letta.hold_next(r"^/v1/agents/$", method="GET")
        async with session.post(REFRESH) as answer:
            first = (await answer.json())["pass"]
        await gate.entered()
        since = passes(world)
        world.letta.add_agent("Basil")

        async def ask() -> dict[str, Any]:
            async with session.post(REFRESH, params={"wait": "1"}) as answer:
                assert answer.status == 200
                return dict(await answer.json())

        asked = [asyncio.create_task(ask()) for _ in range(10)]
        assert world.bridge is not None
        db = world.bridge.db

        async def all_noted() -> bool:
            value = await db.fetchval("SELECT value FROM setting WHERE name = 'mirror.asked'")
            return int(value) == int(first) + 10

        await until(all_noted)
        gate.release()
        results = await asyncio.gather(*asked)
        assert {result["pass"] for result in results} == {first + 10}
        assert passes(world) - since <= 3, "the one that ran, and one more (which asks twice whether it has all)"


@pytest.mark.postgres
async def test_any_replica_may_be_asked(tmp_path: Path, postgres_url: str) -> None:
    async with a_world(tmp_path, postgres_url) as first:
        first.letta.add_agent("Ada")
        await first.start(database__replica_id="one", management__socket="one.sock")
        await first.mirrored()
        second = World(first.hs, first.letta, tmp_path, postgres_url)
        try:
            async with caller(second, database__replica_id="two", management__socket="two.sock") as session:
                basil = first.letta.add_agent("Basil")
                async with session.post(REFRESH, params={"wait": "1"}) as answer:
                    assert answer.status == 200 and (await answer.json())["trouble"] == ""
                assert await first.portal(basil)
                assert first.bridge is not None and second.bridge is not None
                held = [bridge.lanes.census()[0]["mirror"] for bridge in (first.bridge, second.bridge)]
                assert held == [1, 0], "the other one made the pass"
        finally:
            await second.stop()


async def test_a_pass_that_letta_does_not_answer_is_told(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Ada")
    async with caller(world) as session:
        await world.mirrored()
        world.letta.fail_next(r"^/v1/agents/$", how=503, times=3)
        async with session.post(REFRESH, params={"wait": "1"}) as answer:
            told = await answer.json()
        assert answer.status == 200 and told["trouble"].startswith("letta")
