"""The space is one for ever: set right, never made again unasked, and not needed to talk to agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letta_bridge.db.database import Database
from letta_bridge.ids import RoomID
from letta_bridge.mirror.maker import SPACE_STATE
from letta_bridge.mirror.space import ask_for_another

from .mirror_world import ALICE, BOT, World, agent, alias, new_world, open_database, puppet
from .repair_kit import a_portal, damaged, looks, put, put_out, repair

ADMIN = "@admin:test.local"


@pytest.fixture
async def database(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    """An open, empty one; on both engines."""
    async with open_database(tmp_path, database_uri) as opened:
        yield opened


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with new_world(database, invite=(ALICE,)) as made:
        yield made


async def test_the_spaces_name_and_mark_are_set_right(world: World) -> None:
    await a_portal(world)
    (space,) = world.spaces()
    put(world, space, "m.room.name", {"name": "Mine"}, sender=ADMIN)
    await repair(world, space)
    assert world.state(space, "m.room.name") == {"name": "Letta Agents"}
    put(world, space, SPACE_STATE, {"version": "none"}, sender=ADMIN)
    await repair(world, space)
    assert world.state(space, SPACE_STATE) == {"version": 1}
    assert await repair(world, space) == [f"GET /_matrix/client/v3/rooms/{space}/state"]


async def test_a_space_that_is_gone_is_told_and_not_made_again(world: World) -> None:
    await a_portal(world)
    (space,) = world.spaces()
    world.fake.purge_room(space)
    await repair(world, space)
    (alarm,) = await world.alarms()
    assert "!letta sync --new-space" in alarm
    for number in (2, 3):
        world.letta.agents.append(agent(number))
        await world.restart()
        await world.settle()
    assert world.spaces() == []
    for number in (1, 2, 3):
        (portal,) = world.portals(number)
        assert world.fake.hs.rooms[portal].membership(puppet(number)) == "join", "agents can be talked to"
    assert world.directory.progress[0] == 3 and {row.error for row in await world.agents.all()} == {""}


async def test_another_space_is_made_when_an_admin_asks(world: World) -> None:
    portal = await a_portal(world)
    (old,) = world.spaces()
    world.fake.purge_room(old)
    await repair(world, old)
    await ask_for_another(world.memory, RoomID(old))
    await world.settle()
    (new,) = world.spaces()
    assert new != old
    world.check_complete([1], [ALICE])
    assert world.state(portal, "m.space.parent", old) == {}
    assert await world.alarms() == []
    await world.restart()
    await world.settle()
    assert world.spaces() == [new]


async def test_asking_for_another_space_does_nothing_while_this_one_is_there(world: World) -> None:
    await a_portal(world)
    (space,) = world.spaces()
    await ask_for_another(world.memory, RoomID(space))
    await world.settle()
    assert world.spaces() == [space]
    fault = world.fake.fail_next(r"/rooms/[^/]+/state$", status=403, errcode="M_FORBIDDEN", times=None)
    await ask_for_another(world.memory, RoomID(space))
    await world.run_pass()
    assert fault.hits and world.spaces() == [space], "a refusal is no proof"


async def test_a_bot_that_was_put_out_of_the_space_holds_up_no_agent(database: Database) -> None:
    async with new_world(database, room_version="11", invite=(ALICE,)) as world:
        await a_portal(world)
        (space,) = world.spaces()
        put(world, space, "m.room.member", {"membership": "join"}, ALICE, ALICE)
        put_out(world, space, BOT)
        world.letta.agents.append(agent(2))  # nobody told us yet
        await world.settle()
        (portal,) = world.portals(2)
        assert world.fake.hs.rooms[portal].membership(puppet(2)) == "join"
        assert world.directory.progress == (2, 2, 0)
        (alarm,) = await world.alarms()
        assert BOT in alarm and "space" in alarm
        put(world, space, "m.room.member", {"membership": "invite"}, BOT, ADMIN)
        await world.homeserver.bot.join(RoomID(space))
        await repair(world, space)
        world.check_complete([1, 2], [ALICE])
        assert await world.alarms() == []


async def test_a_lost_alias_of_the_space_leads_there_again(world: World) -> None:
    await a_portal(world)
    (space,) = world.spaces()
    name = "#letta_space:test.local"
    del world.fake.hs.aliases[name]
    put(world, space, "m.room.canonical_alias", {}, sender=ADMIN)
    await repair(world, space)
    assert world.fake.hs.aliases[name][0] == space
    assert world.fake.hs.aliases[alias(1)][0] == world.portals(1)[0]


async def test_a_child_that_is_taken_out_again_and_again_is_left_out(world: World) -> None:
    portal = await a_portal(world)
    (space,) = world.spaces()
    for _ in range(5):
        put(world, space, "m.space.child", {}, portal, ADMIN)
        await damaged(world, space)
        await world.run_pass()
    assert world.children() == set()
    assert world.fake.count("/state/m.space.child", method="PUT") == 1 + 3
    assert "Somebody keeps changing" in (await world.alarms())[0]
    assert await looks(world) == {space}
