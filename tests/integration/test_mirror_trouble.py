"""The mirror in trouble, and asked for one agent: failures stay where they are, and a no is only said for certain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from letta_bridge.db.database import Database
from letta_bridge.ids import MXID
from letta_bridge.lanes import FencedError
from letta_bridge.letta.errors import Kind, LettaError
from letta_bridge.matrix.homeserver import HomeserverError
from letta_bridge.mirror.directory import LANE
from letta_bridge.mirror.settings import MirrorSettings

from .mirror_world import ALICE, BOT, World, agent, agent_id, new_world, open_database, puppet


@pytest.fixture
async def database(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    """An open, empty one; on both engines."""
    async with open_database(tmp_path, database_uri) as opened:
        yield opened


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with new_world(database, invite=(ALICE,)) as made:
        yield made


# -- trouble


async def test_one_agents_failure_is_its_own(world: World, caplog: Any) -> None:
    await world.run_pass()
    world.fake.fail_next("/profile/@letta_00000002.*/displayname", status=400, errcode="M_UNKNOWN", times=2)
    world.letta.set(agent(number) for number in range(1, 5))
    delay = await world.run_pass()
    assert world.directory.progress == (3, 4, 1)
    assert "Scripted failure" in (await world.row(2)).error
    assert 1 <= delay <= 2
    since = len(world.fake.requests)
    await world.run_pass()
    assert not [line for line in world.requests(since) if "00000002" in line], "left alone for a while"
    for _ in range(2):
        world.clock.now += 10
        await world.run_pass()
    assert world.directory.progress == (4, 4, 0)
    assert (await world.row(2)).error == ""
    world.check_complete(range(1, 5), [ALICE])
    assert sum(getattr(record, "action", "") == "agent_failed" for record in caplog.records) == 1


async def test_an_unreachable_homeserver_stops_the_pass_and_is_tried_again(world: World, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "letta_bridge")
    await world.run_pass()
    world.letta.set(agent(number) for number in range(1, 30))
    fault = world.fake.fail_next("/displayname", status=503, times=None)
    delays = [await world.run_pass() for _ in range(7)]
    assert delays == [2, 4, 8, 16, 32, 60, 60]
    assert fault.hits <= 7 * world.settings.concurrency
    assert {row.error for row in await world.agents.all()} == {""}
    fault.cancel()
    await world.run_pass()
    world.check_complete(range(1, 30), [ALICE])
    said = [record.action for record in caplog.records if hasattr(record, "service")]
    assert said == ["mirror_waits", "mirror_goes_on"]


async def test_a_homeserver_that_is_not_there_at_start(world: World) -> None:
    await world.fake.stop()
    world.letta.set([agent(1)])
    assert await world.run_pass() == 2
    await world.fake.start()
    await world.settle()
    world.check_complete([1], [ALICE])


async def test_letta_down_is_waited_out(world: World) -> None:
    world.letta.set([agent(1)])
    await world.settle()
    world.letta.error = LettaError(Kind.UNREACHABLE, "connection refused")
    assert [await world.run_pass() for _ in range(3)] == [2, 4, 8]
    assert (await world.row(1)).state == "active"
    world.letta.error = None
    world.letta.agents.append(agent(2))
    assert await world.run_pass() > 50
    world.check_complete([1, 2], [ALICE])


async def test_rate_limits_are_waited_out(world: World) -> None:
    await world.run_pass()
    world.fake.fail_next("/createRoom", status=429, retry_after_ms=50, times=2)
    world.letta.set([agent(1)])
    await world.run_pass()
    assert world.directory.progress == (1, 1, 0)


async def test_without_device_management_it_works_and_says_so_once(world: World, caplog: Any) -> None:
    world.fake.appservice.device_management = False
    world.letta.set(agent(number) for number in range(1, 4))
    await world.run_pass()
    assert world.directory.progress == (3, 3, 0)
    await world.push()
    since = len(world.fake.requests)
    await world.run_pass()
    assert world.requests(since) == []
    assert sum(getattr(record, "action", "") == "no_devices" for record in caplog.records) == 1


async def test_a_device_that_vanished_is_made_again(world: World) -> None:
    world.letta.set([agent(1)])
    await world.settle()
    world.fake.hs.accounts.users[puppet(1)].devices.clear()
    world.fake.hs.accounts.users[BOT].devices.clear()
    world.letta.set([agent(1, "Renamed")])
    await world.settle()
    world.check_complete([1], [ALICE])
    assert world.profile(1)["displayname"] == "Renamed"


async def test_who_lost_the_lane_writes_nothing_more(world: World) -> None:
    fence = await world.claim()
    await world.claim()
    world.letta.set([agent(1)])
    with pytest.raises(FencedError):
        await world.directory.handle(fence)
    assert await world.agents.all() == []


# -- asking for one agent


async def test_resolve_makes_an_unknown_puppet_talk_at_once(world: World) -> None:
    world.letta.set([agent(1)])
    row = await world.directory.resolve(puppet(1))
    assert row is not None and row.registered and row.device_made
    assert world.profile(1)["displayname"] == "Agent 1"
    assert world.lanes.woken == [LANE]
    since = len(world.fake.requests)
    assert await world.directory.resolve(puppet(1)) == row
    assert world.requests(since) == [] and world.letta.listings == 1
    await world.run_pass()
    world.check_complete([1], [ALICE])


async def test_resolve_believes_a_no_for_half_a_minute(world: World) -> None:
    for _ in range(3):
        assert await world.directory.resolve(puppet(7)) is None
    assert world.letta.listings == 1
    world.letta.set([agent(7)])
    world.clock.now += 31
    assert await world.directory.resolve(puppet(7)) is not None


async def test_resolve_says_no_only_when_it_is_certain(world: World) -> None:
    world.letta.complete = False
    with pytest.raises(LettaError):
        await world.directory.resolve(puppet(7))
    world.letta.error = LettaError(Kind.UNREACHABLE, "down")
    with pytest.raises(LettaError):
        await world.directory.resolve(puppet(7))
    world.letta.error = None
    world.letta.set([agent(7, companion=True)])
    assert await world.directory.resolve(puppet(7)) is None
    assert await world.directory.resolve(ALICE) is None
    assert await world.directory.resolve(BOT) is None


async def test_many_who_ask_at_once_share_a_listing(world: World) -> None:
    world.letta.set(agent(number) for number in range(10))
    rows = await asyncio.gather(*(world.directory.resolve(puppet(number % 12)) for number in range(48)))
    assert sum(row is None for row in rows) == 8
    assert world.letta.listings <= 4
    assert world.fake.count("/register") == 10


async def test_resolve_of_an_agent_that_is_gone(world: World) -> None:
    world.letta.set([agent(1), agent(2)])
    await world.run_pass()
    world.letta.set([agent(2)])
    await world.run_pass()
    row = await world.directory.resolve(puppet(1))
    assert row is not None and row.state == "missing"


async def test_resolve_with_the_homeserver_down(world: World) -> None:
    world.letta.set([agent(1)])
    await world.fake.stop()
    with pytest.raises(HomeserverError):
        await world.directory.resolve(puppet(1))
    await world.fake.start()
    assert await world.directory.resolve(puppet(1)) is not None


async def test_who_is_ours(world: World) -> None:
    directory = world.directory
    assert directory.bot_mxid == BOT and directory.is_ours(BOT) and directory.is_ours(puppet(1))
    assert not directory.is_ours(ALICE) and not directory.is_ours(MXID("@letta_x:elsewhere.example"))
    assert directory.mxid_of(agent_id(1)) == puppet(1)
    assert directory.space_room is None
    await world.run_pass()
    await world.restart(MirrorSettings())
    await world.directory.start()
    assert world.directory.space_room == world.spaces()[0]
