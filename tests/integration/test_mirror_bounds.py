"""The mirror while its bot is out of a room, and while somebody changes a room without end."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letta_bridge.ids import MXID

from .mirror_world import ALICE, BOT, World, agent, new_world, open_database
from .repair_kit import a_portal, damaged, put_out
from .world import World as Bridge
from .world import settled, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_database(tmp_path, "sqlite:mirror.db") as database, new_world(database, invite=(ALICE,)) as made:
        yield made


@pytest.mark.parametrize("membership", ["leave", "ban"])
async def test_whoever_is_configured_while_the_bot_is_out_is_invited_when_it_is_back(
    world: World, membership: str
) -> None:
    portal = await a_portal(world)
    bob = await world.fake.person("bob")
    await world.restart(dataclasses.replace(world.settings, invite=(ALICE, MXID(bob.mxid))))
    put_out(world, portal, BOT, membership)
    for _ in range(3):
        await world.run_pass()
        world.clock.now += 4000.0
    put_out(world, portal, BOT, "join", BOT)
    await world.settle()
    assert world.fake.hs.rooms[portal].membership(bob.mxid) == "invite"


async def test_who_may_not_be_invited_is_asked_once(world: World) -> None:
    portal = await a_portal(world)
    bob = await world.fake.person("bob")
    put_out(world, portal, bob.mxid, "ban")
    await world.restart(dataclasses.replace(world.settings, invite=(ALICE, MXID(bob.mxid))))
    await world.settle()
    since = len(world.fake.requests)
    world.clock.now += 4000.0
    await world.settle()
    assert not [line for line in world.requests(since) if "invite" in line]


async def test_changes_without_end_cost_no_list_of_letta_and_few_passes(world: World) -> None:
    portal = await a_portal(world)
    await world.settle()
    fence, passes = await world.claim(), 0
    await world.directory.handle(fence)
    listings, began, poll = world.letta.listings, world.clock.now, world.settings.poll_interval
    while world.clock.now - began < poll * 4:
        await damaged(world, portal)
        since = len(world.fake.requests)
        pause = await world.directory.handle(fence)
        assert pause is not None
        passes += len(world.fake.requests) > since
        world.clock.now += 0.2
    assert 4 <= world.letta.listings - listings <= 8, "Letta is asked at most twice per interval, and at least once"
    assert passes <= poll * 4 / 2 + 1


async def test_what_is_asked_for_is_done_at_once(world: World) -> None:
    portal = await a_portal(world)
    await world.settle()
    fence = await world.claim()
    await world.directory.handle(fence)
    world.letta.agents.append(agent(2))
    await damaged(world, portal)
    number = await world.db.write(world.directory.refreshes.ask)
    await world.directory.handle(fence)
    result = await world.directory.refreshes.wait(number, 0.0)
    assert result is not None and result.changes["added"] == 1


async def test_a_second_damage_is_set_right_after_a_moment(sqlite_world: Bridge) -> None:
    """Also when it comes right behind a pass: the lane waits and goes on by itself."""
    world = sqlite_world
    ada = world.letta.add_agent("Ada")
    admin = await world.hs.person("admin", auto_join=True)
    await world.start(mirror__invite=[admin.mxid], mirror__room_version="11")
    await world.mirrored()
    await settled(world)
    portal = await world.portal(ada)
    room = world.hs.hs.rooms[portal]
    room.state[("m.room.power_levels", "")].content["users"][admin.mxid] = 100
    await until(lambda: room.membership(admin.mxid) == "join")
    for name in ("One", "Two"):
        await admin.set_state(portal, "m.room.name", {"name": name})
        await until(lambda: room.content("m.room.name") == {"name": "Ada"}, timeout=15.0)
