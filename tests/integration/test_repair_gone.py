"""Portals that are gone are replaced once, without asking back who had left; an upgraded one is followed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letta_bridge.db.database import Database
from letta_bridge.db.past_rooms import PastRooms
from letta_bridge.mirror.maker import PORTAL_STATE
from letta_bridge.mirror.replace import FULL_CHECK

from .mirror_world import ALICE, BOT, DOMAIN, World, agent, agent_id, alias, new_world, open_database, puppet
from .repair_kit import a_portal, damaged, looks, put, put_out, repair
from .test_mirror_resume import Point, _killed_pass

BOB = f"@bob:{DOMAIN}"


@pytest.fixture
async def database(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    """An open, empty one; on both engines."""
    async with open_database(tmp_path, database_uri) as opened:
        yield opened


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with new_world(database, invite=(ALICE,)) as made:
        await made.fake.person("bob")
        yield made


async def test_a_room_that_is_gone_is_replaced_once(world: World) -> None:
    old = await a_portal(world)
    bob = await world.fake.person("bob")
    put(world, old, "m.room.member", {"membership": "invite"}, bob.mxid, BOT)
    await bob.join(old)
    await world.push()
    world.fake.purge_room(old)
    await repair(world, old)
    world.check_complete([1], [ALICE, BOB])
    (new,) = world.portals(1)
    assert new != old and world.children() == {new}
    (past,) = await PastRooms(world.db).of(agent_id(1))
    assert (past.room_id, past.replaced_by, past.reason) == (old, new, "gone")
    assert await world.alarms() == [] and not await looks(world)
    await world.restart()
    await world.settle()
    assert world.portals(1) == [new]


async def test_who_had_left_is_not_invited_to_the_new_room(world: World) -> None:
    old = await a_portal(world)
    alice = await world.fake.person("alice")
    await alice.leave(old)
    await world.push()
    world.fake.purge_room(old)
    await repair(world, old)
    world.check_complete([1])
    (new,) = world.portals(1)
    await world.restart()
    await world.settle()
    assert world.fake.hs.rooms[new].membership(ALICE) is None


async def test_a_second_loss_within_a_day_waits_for_an_admin(world: World) -> None:
    first = await a_portal(world)
    world.fake.purge_room(first)
    await repair(world, first)
    (second,) = world.portals(1)
    world.fake.purge_room(second)
    await repair(world, second)
    await world.restart()
    await world.settle()
    assert world.portals(1) == []
    (alarm,) = await world.alarms()
    assert "!letta sync --full" in alarm
    await world.memory.stamp(FULL_CHECK)
    await repair(world, second)
    world.check_complete([1])
    assert await world.alarms() == []
    (newest, _) = await PastRooms(world.db).of(agent_id(1))
    assert newest.replaced_by == world.portals(1)[0]


async def test_a_refusal_is_no_proof(world: World) -> None:
    """Everybody of ours is refused, and the alias still leads there: 63 rooms were made twice because of less."""
    world.letta.set(agent(number) for number in range(1, 64))
    await world.settle()
    rooms = set(world.fake.hs.rooms)
    world.fake.fail_next(r"/rooms/[^/]+/state$", status=403, errcode="M_FORBIDDEN", times=None)
    world.fake.fail_next("/joined_rooms", status=500, times=None)
    for number in range(1, 64):
        await damaged(world, world.portals(number)[0])
    for _ in range(3):
        await world.run_pass()
        world.clock.now += 1000
    assert set(world.fake.hs.rooms) == rooms


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_replacement_that_was_interrupted_is_found_again(world: World, when: str) -> None:
    old = await a_portal(world)
    world.fake.purge_room(old)
    fault = world.fake.fail_next("/createRoom", status=502, after_processing=when == "after", times=1)
    await damaged(world, old)
    await world.run_pass()
    assert fault.hits
    await world.restart()
    await world.settle()
    world.check_complete([1])
    (new,) = world.portals(1)
    (past,) = await PastRooms(world.db).of(agent_id(1))
    assert past.replaced_by == new


@pytest.mark.timeout(120)
@pytest.mark.parametrize("point", ["request lost", "answer lost", "write lost", "after write"])
async def test_killed_at_every_step_of_a_replacement(tmp_path: Path, point: Point) -> None:
    step, struck = 0, True
    while struck:
        step += 1
        async with (
            open_database(tmp_path, f"sqlite:{step}.db") as db,
            new_world(db, invite=(ALICE, BOB), concurrency=1) as world,
        ):
            bob = await world.fake.person("bob")
            old = await a_portal(world)
            await bob.leave(old)
            await world.push()
            world.fake.purge_room(old)
            await damaged(world, old)
            struck = await _killed_pass(world, point, step)
            await world.restart()
            await world.settle()
            world.check_complete([1], [ALICE])
            (new,) = world.portals(1)
            (past,) = await PastRooms(world.db).of(agent_id(1))
            assert (past.room_id, past.replaced_by) == (old, new)
            timeline = world.fake.hs.rooms[new].timeline
            assert sum(event.type == "m.room.member" and event.state_key == ALICE for event in timeline) == 1
            assert world.fake.hs.rooms[new].membership(BOB) is None
            assert len(world.fake.hs.rooms) == 2 and await world.alarms() == []
    assert step > 4


async def test_a_missing_agents_room_is_replaced_when_it_is_back(world: World) -> None:
    old = await a_portal(world)
    await world.agents.update(agent_id(1), state="missing")
    world.letta.complete = False
    world.letta.set([])
    world.fake.purge_room(old)
    await repair(world, old)
    assert world.portals(1) == [] and (await world.row(1)).portal_room is None
    world.letta.complete = True
    world.letta.set([agent(1)])
    await world.settle()
    world.check_complete([1])


# -- upgrades


async def _upgraded(world: World, old: str, *, invite: bool = True, predecessor: str | None = None) -> str:
    admin = await world.fake.person("admin")
    new = await admin.create_room(
        room_version="11",
        name="Agent 1",
        creation_content={"predecessor": {"room_id": predecessor or old, "event_id": "$x"}},
        power_level_content_override={"users": {admin.mxid: 100, BOT: 100, puppet(1): 50}},
        invite=[BOT] if invite else [],
    )
    put(world, old, "m.room.tombstone", {"body": "upgraded", "replacement_room": new}, sender=admin.mxid)
    return new


async def test_an_upgraded_room_is_followed(world: World) -> None:
    old = await a_portal(world)
    new = await _upgraded(world, old)
    await repair(world, old)
    row = await world.row(1)
    assert row.portal_room == new
    room = world.fake.hs.rooms[new]
    assert room.membership(BOT) == room.membership(puppet(1)) == "join"
    assert world.fake.hs.aliases[alias(1)][0] == new
    assert world.state(new, PORTAL_STATE)["agent_id"] == agent_id(1)
    assert world.children() == {new}
    (past,) = await PastRooms(world.db).of(agent_id(1))
    assert (past.room_id, past.replaced_by, past.reason) == (old, new, "upgraded")
    assert await world.alarms() == []
    await world.restart()
    await world.settle()
    assert await world.alarms() == [], "the old room is no second portal"


async def test_an_upgrade_that_lets_nobody_in_is_told(world: World) -> None:
    old = await a_portal(world)
    new = await _upgraded(world, old, invite=False)
    await damaged(world, old)
    await world.run_pass()
    assert (await world.row(1)).portal_room == old
    (alarm,) = await world.alarms()
    assert f"Invite {BOT}" in alarm and new in alarm
    admin = await world.fake.person("admin")
    await admin.invite(new, BOT)
    world.clock.now += 1000
    await world.settle()
    assert (await world.row(1)).portal_room == new
    assert await world.alarms() == []


async def test_a_room_that_only_says_it_was_upgraded_is_not_followed(world: World) -> None:
    old = await a_portal(world)
    new = await _upgraded(world, old, predecessor="!another:test.local")
    await damaged(world, old)
    await world.run_pass()
    assert (await world.row(1)).portal_room == old
    assert world.fake.hs.rooms[new].membership(BOT) == "leave"
    (alarm,) = await world.alarms()
    assert "not an upgrade" in alarm


async def test_a_room_closed_in_favour_of_the_space_does_not_take_the_bot_out_of_it(world: World) -> None:
    old = await a_portal(world)
    other = await a_portal(world, 2)
    (space,) = world.spaces()
    for named in (space, other):
        put(world, old, "m.room.tombstone", {"body": "upgraded", "replacement_room": named})
        await damaged(world, old)
        await world.run_pass()
        world.clock.now += 700.0
        assert world.fake.hs.rooms[named].membership(BOT) == "join"
    assert "not an upgrade of it" in (await world.alarms())[0]


async def test_a_person_out_of_the_old_room_is_not_asked_into_the_upgraded_one(world: World) -> None:
    old = await a_portal(world)
    put_out(world, old, ALICE)
    await world.push()
    new = await _upgraded(world, old)
    await repair(world, old)
    assert world.fake.hs.rooms[new].membership(ALICE) is None


@pytest.mark.parametrize("version", ["11", "12"])
async def test_as_tuwunel_answers(tmp_path: Path, version: str) -> None:
    async with (
        open_database(tmp_path, "sqlite:one.db") as db,
        new_world(db, "tuwunel", room_version=version, invite=(ALICE,)) as world,
    ):
        old = await a_portal(world)
        put_out(world, old, puppet(1))
        put(world, old, "m.room.name", {"name": "Mine"}, sender=f"@admin:{DOMAIN}")
        await repair(world, old)
        world.check_complete([1], [ALICE])
        (space,) = world.spaces()
        world.fake.purge_room(old)
        await repair(world, old)
        world.check_complete([1], [ALICE])
        world.fake.purge_room(space)
        await repair(world, space)
        assert world.spaces() == [] and len(await world.alarms()) == 1
