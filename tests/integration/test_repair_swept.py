"""A room that is being deleted is left alone until that has come to its end, and set right where it has failed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letta_bridge.db.alarms import Alarms
from letta_bridge.db.database import Database

from .mirror_world import ALICE, BOT, DOMAIN, World, new_world, open_database, puppet
from .repair_kit import a_portal, damaged, put_out, repair

BOB = f"@bob:{DOMAIN}"
CARL = f"@carl:{DOMAIN}"


@pytest.fixture
async def database(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    """An open, empty one; on both engines."""
    async with open_database(tmp_path, database_uri) as opened:
        yield opened


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with new_world(database, invite=(ALICE,)) as made:
        yield made


async def _lived_in(world: World) -> str:
    """A portal with Alice and Bob in it, which Carl has left an hour ago."""
    portal = await a_portal(world)
    for name in ("alice", "bob", "carl"):
        person = await world.fake.person(name)
        if name != "alice":
            put_out(world, portal, person.mxid, "invite", BOT)
        await person.join(portal)
    await (await world.fake.person("carl")).leave(portal)
    room = world.fake.hs.rooms[portal]
    room.state[("m.room.member", CARL)].origin_server_ts -= 3_600_000
    await world.push()
    return portal


def _swept(world: World, portal: str, *users: str) -> None:
    """The server lets them leave, one after the other, in their own names."""
    for user in users:
        put_out(world, portal, user, by=user)


async def test_nobody_comes_back_while_a_room_is_being_deleted(world: World) -> None:
    old = await _lived_in(world)
    _swept(world, old, BOT, ALICE)
    await damaged(world, old)
    pause = await world.run_pass()
    room = world.fake.hs.rooms[old]
    assert pause <= 6.0, "it is looked at again soon"
    assert room.membership(BOT) == "leave" and await world.alarms() == []
    _swept(world, old, puppet(1))
    world.clock.now += 6.0
    await world.run_pass()
    assert room.membership(BOT) == room.membership(puppet(1)) == "leave"
    assert await world.alarms() == [], "nobody is asked to invite the bot into a room that is about to be gone"
    world.fake.purge_room(old)
    world.clock.now += 11.0
    await world.settle()
    world.check_complete([1], [ALICE, BOB])
    (said,) = await world.news()
    assert old in said and "Agent 1" in said and await world.alarms() == []


async def test_who_was_put_out_by_a_deletion_that_failed_is_invited_again(world: World) -> None:
    portal = await _lived_in(world)
    _swept(world, portal, BOT, ALICE, BOB)
    await repair(world, portal)
    room = world.fake.hs.rooms[portal]
    assert room.membership(BOT) == room.membership(puppet(1)) == "join"
    assert room.membership(ALICE) == room.membership(BOB) == "invite"
    assert room.membership(CARL) == "leave", "who left before did so by their own will"
    (said,) = await world.news()
    assert portal in said and "2 people" in said
    await world.restart()
    await repair(world, portal)
    assert len(await world.news()) == 1
    await world.db.write(lambda conn: Alarms(world.db).note_told(conn, "room.news"))
    await repair(world, portal)
    assert await Alarms(world.db).all() == [], "what was told is no trouble that lasts"


async def test_a_room_that_stays_without_the_bridge_is_told_after_a_second_look(world: World) -> None:
    portal = await _lived_in(world)
    _swept(world, portal, BOT, puppet(1), ALICE)
    await damaged(world, portal)
    await world.run_pass()
    assert await world.alarms() == []
    world.clock.now += 20.0
    await world.run_pass()
    (alarm,) = await world.alarms()
    assert f"Invite {BOT}" in alarm


async def test_who_is_put_out_by_an_admin_is_back_at_once(world: World) -> None:
    portal = await _lived_in(world)
    put_out(world, portal, BOT)
    await damaged(world, portal)
    await world.run_pass()
    assert world.fake.hs.rooms[portal].membership(BOT) == "join"
