"""Damaged portals are set right, each damage once; nothing is done on uncertain evidence; nobody is invited twice."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from letta_bridge.db.database import Database
from letta_bridge.mirror.maker import PORTAL_STATE

from .mirror_world import ALICE, BOT, World, agent, alias, new_world, open_database, puppet
from .repair_kit import a_portal, damaged, looks, put, put_out, repair

ADMIN = "@admin:test.local"
BRIDGE_KEY = "dev.letta_bridge://letta/00000001-0000-4000-8000-000000000000"


@pytest.fixture
async def database(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    """An open, empty one; on both engines."""
    async with open_database(tmp_path, database_uri) as opened:
        yield opened


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[World]:
    """Where nothing depends on the database."""
    async with open_database(tmp_path, "sqlite:one.db") as opened, new_world(opened, invite=(ALICE,)) as made:
        yield made


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with new_world(database, invite=(ALICE,)) as made:
        yield made


# -- what a portal says of itself


async def test_a_portal_tells_clients_what_it_is_bridged_to(world: World) -> None:
    portal = await a_portal(world)
    told = world.state(portal, "m.bridge", BRIDGE_KEY)
    assert told["bridgebot"] == told["creator"] == BOT
    assert told["protocol"]["displayname"] == "Letta"
    assert told["channel"]["displayname"] == "Agent 1"
    assert told["channel"]["avatar_url"] == world.profile(1)["avatar_url"]
    world.letta.set([agent(1, "Renamed")])
    await world.settle()
    assert world.state(portal, "m.bridge", BRIDGE_KEY)["channel"]["displayname"] == "Renamed"


async def test_a_portal_of_an_older_bridge_learns_it(world: World) -> None:
    portal = await a_portal(world)
    put(world, portal, PORTAL_STATE, {"version": 1, "agent_id": agent(1).id})
    put(world, portal, "m.bridge", {}, BRIDGE_KEY)
    await world.agents.update(agent(1).id, portal_bridge=None)
    await repair(world, portal)
    assert world.state(portal, PORTAL_STATE)["puppet"] == puppet(1)
    assert world.state(portal, "m.bridge", BRIDGE_KEY)["channel"]["displayname"] == "Agent 1"


# -- each damage


async def test_an_undamaged_room_costs_one_question(world: World) -> None:
    portal = await a_portal(world)
    assert await repair(world, portal) == [f"GET /_matrix/client/v3/rooms/{portal}/state"]
    assert not await looks(world) and not await world.alarms()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("m.room.name", {"name": "Mine"}),
        ("m.room.name", {}),
        ("m.room.name", {"name": ["nonsense"]}),
        ("m.room.topic", {"topic": "Mine"}),
        ("m.room.canonical_alias", {}),
        (PORTAL_STATE, {"agent_id": "agent-another"}),
        (PORTAL_STATE, {}),
    ],
)
async def test_changed_state_is_set_right(sqlite: World, kind: str, content: dict[str, Any]) -> None:
    world = sqlite
    portal = await a_portal(world, description="Knows all")
    before = world.state(portal, kind)
    put(world, portal, kind, content, sender=ADMIN)
    asked = await repair(world, portal)
    after = world.state(portal, kind)
    assert after == {key: value for key, value in before.items() if key != "m.topic"}
    assert sum(line.startswith("PUT") for line in asked) == 1
    assert not await looks(world) and not await world.alarms()


async def test_lost_place_in_the_space_is_set_right(world: World) -> None:
    portal = await a_portal(world)
    (space,) = world.spaces()
    put(world, space, "m.space.child", {}, portal)
    put(world, space, "m.space.child", {"via": ["elsewhere.example"]}, "!unknown:elsewhere.example")
    await repair(world, space)
    assert portal in world.children()
    assert world.state(space, "m.space.child", "!unknown:elsewhere.example"), "what others list is left alone"
    put(world, portal, "m.space.parent", {}, space)
    await repair(world, portal)
    world.check_complete([1], [ALICE])


async def test_lost_power_is_restored_and_what_people_gave_each_other_stays(world: World) -> None:
    portal = await a_portal(world)
    levels = world.state(portal, "m.room.power_levels")
    changed = {**levels, "users": {ALICE: 50, puppet(1): 0}, "notifications": {"room": 0, "x": 1}}
    put(world, portal, "m.room.power_levels", changed)
    await repair(world, portal)
    now = world.state(portal, "m.room.power_levels")
    assert now["users"] == {ALICE: 50, puppet(1): 50}
    assert now["notifications"] == {"room": 100, "x": 1}


async def test_a_bot_without_power_says_so_and_does_not_try(database: Database) -> None:
    async with new_world(database, room_version="11") as world:
        portal = await a_portal(world)
        levels = world.state(portal, "m.room.power_levels")
        put(world, portal, "m.room.power_levels", {**levels, "users": {ADMIN: 100, puppet(1): 50}})
        put(world, portal, "m.room.name", {"name": "Mine"}, sender=ADMIN)
        asked = await repair(world, portal)
        assert not [line for line in asked if line.startswith("PUT")]
        (alarm,) = await world.alarms()
        assert "power" in alarm and BOT in alarm
        put(world, portal, "m.room.power_levels", levels)
        await repair(world, portal)
        assert world.state(portal, "m.room.name") == {"name": "Agent 1"}
        assert await world.alarms() == []


async def test_a_puppet_that_was_put_out_comes_back(world: World) -> None:
    portal = await a_portal(world)
    put_out(world, portal, puppet(1))
    asked = await repair(world, portal)
    world.check_complete([1], [ALICE])
    assert sum("/invite" in line for line in asked) == 1


async def test_a_ban_is_respected(world: World) -> None:
    portal = await a_portal(world)
    put_out(world, portal, puppet(1), "ban")
    asked = await repair(world, portal)
    assert not [line for line in asked if not line.startswith("GET")]
    (alarm,) = await world.alarms()
    assert "banned" in alarm and puppet(1) in alarm
    put_out(world, portal, puppet(1), "leave")
    await repair(world, portal)
    world.check_complete([1], [ALICE])
    assert await world.alarms() == []


async def test_a_bot_that_was_put_out_is_invited_by_the_puppet(database: Database) -> None:
    async with new_world(database, room_version="11", invite=(ALICE,)) as world:
        portal = await a_portal(world)
        put_out(world, portal, BOT)
        put(world, portal, "m.room.name", {"name": "Mine"}, sender=ADMIN)
        await repair(world, portal)
        world.check_complete([1], [ALICE])
        assert await world.alarms() == []


async def test_a_portal_without_any_of_ours_is_left_until_somebody_invites(database: Database) -> None:
    async with new_world(database, room_version="11", invite=(ALICE,)) as world:
        portal = await a_portal(world)
        put(world, portal, "m.room.member", {"membership": "join"}, ALICE, ALICE)
        for user in (puppet(1), BOT):
            put_out(world, portal, user)
        await repair(world, portal)
        assert world.portals(1) == [portal], "no other is made"
        (alarm,) = await world.alarms()
        assert f"Invite {BOT}" in alarm
        put(world, portal, "m.room.member", {"membership": "invite"}, BOT, ADMIN)
        await world.homeserver.bot.join(portal)
        await repair(world, portal)
        world.check_complete([1], [ALICE])
        assert await world.alarms() == []


# -- people


@pytest.mark.parametrize("membership", ["leave", "ban"])
async def test_who_left_or_was_put_out_is_not_invited_again(world: World, membership: str) -> None:
    portal = await a_portal(world)
    put_out(world, portal, ALICE, membership)
    await world.push()
    for _ in range(3):
        asked = await repair(world, portal)
        assert not [line for line in asked if "/invite" in line]
        await world.restart()
    assert world.fake.hs.rooms[portal].membership(ALICE) == membership


# -- no fights


async def test_a_fight_is_given_up_and_told(world: World) -> None:
    portal = await a_portal(world)
    for round_ in range(6):
        put(world, portal, "m.room.name", {"name": f"Mine {round_}"}, sender=ADMIN)
        await damaged(world, portal)
        await world.run_pass()
        await world.run_pass()
    assert world.state(portal, "m.room.name") == {"name": "Mine 5"}
    assert world.fake.count("/state/m.room.name", method="PUT") == 3
    (alarm,) = await world.alarms()
    assert "Somebody keeps changing it" in alarm
    world.clock.now += 3700
    await world.settle()
    assert world.state(portal, "m.room.name") == {"name": "Agent 1"}
    assert await world.alarms() == []


async def test_a_puppet_that_is_put_out_again_and_again_is_left_out(world: World) -> None:
    portal = await a_portal(world)
    for _ in range(6):
        put_out(world, portal, puppet(1))
        await damaged(world, portal)
        await world.run_pass()
        await world.run_pass()
    assert world.fake.count("/invite", method="POST") == 3
    assert world.fake.hs.rooms[portal].membership(puppet(1)) == "leave"
    (alarm,) = await world.alarms()
    assert "puts the agent out" in alarm


async def test_a_refused_change_has_the_room_looked_at(database: Database) -> None:
    async with new_world(database, room_version="11") as world:
        portal = await a_portal(world)
        levels = world.state(portal, "m.room.power_levels")
        put(world, portal, "m.room.power_levels", {**levels, "users": {ADMIN: 100, puppet(1): 50}})  # nobody told us
        world.letta.set([agent(1, "Renamed")])
        for _ in range(3):
            await world.run_pass()
            world.clock.now += 10
        assert any("lost its power" in alarm for alarm in await world.alarms())
        put(world, portal, "m.room.power_levels", levels)
        world.clock.now += 700
        await repair(world, portal)
        assert world.state(portal, "m.room.name") == {"name": "Renamed"}
        assert await world.alarms() == []


# -- no action on uncertain evidence


@pytest.mark.parametrize(
    ("status", "errcode"),
    [
        (403, "M_FORBIDDEN"),
        (404, "M_NOT_FOUND"),
        (404, "M_UNRECOGNIZED"),
        (403, ""),
        (404, ""),
        (500, "M_UNKNOWN"),
        (502, ""),
        (429, "M_LIMIT_EXCEEDED"),
        (401, "M_UNKNOWN_TOKEN"),
    ],
)
async def test_an_unclear_answer_changes_nothing(
    sqlite: World, status: int, errcode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = sqlite
    monkeypatch.setattr("letta_bridge.matrix.caller._WAITS", 1)
    portal = await a_portal(world)
    (space,) = world.spaces()
    rooms = set(world.fake.hs.rooms)
    row = await world.row(1)
    since = len(world.fake.requests)
    retry = 20 if status == 429 else None
    fault = world.fake.fail_next(
        r"/rooms/[^/]+/state$", status=status, errcode=errcode, retry_after_ms=retry, times=None
    )
    await damaged(world, portal)
    await damaged(world, space)
    for _ in range(4):
        await world.run_pass()
        world.clock.now += 1000
    assert fault.hits
    assert not [line for line in world.requests(since) if not re.match("GET|POST .*/register", line)]
    assert (set(world.fake.hs.rooms), await world.row(1)) == (rooms, row)
    assert await looks(world) == {portal, space}, "to be looked at again"
    fault.cancel()
    await world.settle()
    assert not await looks(world)
    world.check_complete([1], [ALICE])


async def test_a_homeserver_that_is_away_changes_nothing(world: World) -> None:
    portal = await a_portal(world)
    await damaged(world, portal)
    await world.fake.stop()
    for _ in range(3):
        await world.run_pass()
        world.clock.now += 1000
    await world.fake.start()
    assert await looks(world) == {portal}
    await world.settle()
    assert not await looks(world)
    world.check_complete([1], [ALICE])


# -- looking now and then


async def test_every_room_is_looked_at_now_and_then(database: Database) -> None:
    async with new_world(database, check_every=3600.0) as world:
        world.letta.set(agent(number) for number in range(70))
        await world.settle()
        first = world.portals(0)[0]
        put(world, first, "m.room.name", {"name": "Mine"}, sender=ADMIN)  # and nobody told us
        since = len(world.fake.requests)
        await world.run_pass()
        assert world.requests(since) == []
        await world.db.write(lambda conn: conn.execute("UPDATE setting SET value = '1' WHERE name = 'mirror_checked'"))
        await world.settle()
        looked = [line for line in world.requests(since) if line.endswith("/state")]
        assert len(looked) == len(set(looked)) == 71, "every portal and the space, once"
        assert world.state(first, "m.room.name") == {"name": "Agent 0"}
        await world.run_pass()
        assert len([line for line in world.requests(since) if line.endswith("/state")]) == 71


async def test_what_happens_during_a_look_is_looked_at_again(world: World) -> None:
    portal = await a_portal(world)
    await damaged(world, portal)
    reasons = (await world.rooms.to_look_at())[portal]
    await damaged(world, portal)
    await world.db.write(lambda conn: world.rooms.looked_at(conn, portal, reasons))
    assert await looks(world) == {portal}


async def test_a_lost_alias_leads_to_the_room_again(world: World) -> None:
    portal = await a_portal(world)
    del world.fake.hs.aliases[alias(1)]
    put(world, portal, "m.room.canonical_alias", {}, sender=ADMIN)
    await repair(world, portal)
    assert world.fake.hs.aliases[alias(1)][0] == portal
    assert world.state(portal, "m.room.canonical_alias") == {"alias": alias(1)}
