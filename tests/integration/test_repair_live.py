"""A running bridge learns of damage by itself: from what is pushed, from what it cannot send, after an absence."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest

from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_homeserver.accounts import Requester

from .world import BOT, DOMAIN, World, notices, settled, until

ADMIN = f"@admin:{DOMAIN}"


async def _with_admin(world: World, version: str = "11") -> tuple[str, str, Person]:
    """An agent with its portal, and a person who has all power in it (as a server's admin can take it)."""
    agent = world.letta.add_agent("Ada")
    admin = await world.hs.person("admin", auto_join=True)
    await world.start(mirror__room_version=version, mirror__invite=[ADMIN])
    await world.mirrored()
    await settled(world)
    portal = await world.portal(agent)
    room = world.hs.hs.rooms[portal]
    room.state[("m.room.power_levels", "")].content["users"][ADMIN] = 100
    await until(lambda: room.membership(ADMIN) == "join")
    return agent, portal, admin


async def test_a_renamed_portal_gets_its_name_back(sqlite_world: World) -> None:
    world = sqlite_world
    _, portal, admin = await _with_admin(world)
    await admin.set_state(portal, "m.room.name", {"name": "Mine"})
    await admin.set_state(portal, "m.room.topic", {"topic": "Mine"})
    room = world.hs.hs.rooms[portal]
    await until(lambda: room.content("m.room.name") == {"name": "Ada"})
    await until(lambda: room.content("m.room.topic").get("topic") == "")


async def test_what_the_bridge_itself_changes_is_no_damage(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Ada")
    await world.hs.person("admin", auto_join=True)
    bridge = await world.start(mirror__invite=[ADMIN])
    await world.mirrored()
    await settled(world)
    assert await bridge.rooms.to_look_at() == {}
    portal = await world.portal(agent)
    assert world.hs.count(f"/rooms/{portal}/state$") == 0


async def test_a_kicked_puppet_is_back_and_answers(sqlite_world: World) -> None:
    world = sqlite_world
    agent, portal, admin = await _with_admin(world)
    await admin.kick(portal, world.puppet(agent))
    await admin.wait_joined(portal, world.puppet(agent), timeout=15.0)
    await settled(world)
    await admin.send(portal, "Are you there?")
    await admin.wait_message(portal, sender=world.puppet(agent), timeout=15.0)


async def test_a_kicked_bot_is_back(sqlite_world: World) -> None:
    world = sqlite_world
    agent, portal, admin = await _with_admin(world, "12")
    room = world.hs.hs.rooms[portal]
    room.creators = ()  # type: ignore[assignment,misc]
    await admin.kick(portal, BOT)
    await admin.wait_joined(portal, BOT, timeout=15.0)
    assert world.puppet(agent) in admin.members(portal)


async def test_a_purged_room_is_replaced_without_asking_back_who_had_left(world: World) -> None:
    agent, portal, admin = await _with_admin(world)
    bob = await world.hs.person("bob", auto_join=True)
    await admin.invite(portal, bob.mxid)
    await admin.wait_joined(portal, bob.mxid)
    await bob.leave(portal)
    await settled(world)
    await _long_ago(world, bob.mxid)
    world.hs.purge_room(portal)

    await until(lambda: _moved(world, agent, portal), timeout=20.0, why="not replaced")
    room = world.hs.hs.rooms[await world.portal(agent)]
    assert room.membership(bob.mxid) is None
    await settled(world)
    assert len([one for one in world.hs.hs.rooms.values() if one.membership(world.puppet(agent)) == "join"]) == 1


async def test_who_was_put_out_by_the_purge_is_asked_into_the_new_room(world: World) -> None:
    agent, portal, _ = await _with_admin(world)
    await settled(world)
    # whom the server lets leave first, that is pushed; once ours are out, nothing is
    room = world.hs.hs.rooms[portal]
    world.hs.hs.append(room, Requester(ADMIN), "m.room.member", {"membership": "leave"}, state_key=ADMIN)
    world.hs.purge_room(portal)
    await until(lambda: _moved(world, agent, portal), timeout=20.0, why="not replaced")
    room = world.hs.hs.rooms[await world.portal(agent)]
    await until(lambda: room.membership(ADMIN) in ("invite", "join"), why="not asked")


async def _long_ago(world: World, user: str) -> None:
    """What this user did last was an hour ago."""
    assert world.bridge is not None
    rows = await world.bridge.db.fetch("SELECT seq, body FROM inbox WHERE type = 'm.room.member' ORDER BY seq")
    for row in rows:
        event = json.loads(row["body"])
        if event["state_key"] == user:
            event["origin_server_ts"] -= 3_600_000
            body, seq = json.dumps(event), row["seq"]
            await world.bridge.db.write(
                lambda conn, body=body, seq=seq: conn.execute("UPDATE inbox SET body = $1 WHERE seq = $2", body, seq)
            )


async def _moved(world: World, agent: str, portal: str) -> bool:
    assert world.bridge is not None
    row = await world.bridge.agents.get(agent)  # type: ignore[arg-type]
    return row is not None and row.portal_room not in (None, portal) and row.portal_joined and bool(row.in_space)


async def test_an_answer_that_cannot_be_sent_has_the_room_looked_at(sqlite_world: World) -> None:
    world = sqlite_world
    agent, portal, admin = await _with_admin(world)
    hold = world.letta.hold(agent)
    await admin.send(portal, "Think")
    await hold.entered()
    await settled(world)
    world.hs.hold_push()  # nobody tells us
    before = world.hs.count(f"/rooms/{portal}/state$")
    await admin.kick(portal, world.puppet(agent))
    hold.release()
    await until(lambda: world.hs.count(f"/rooms/{portal}/state$") > before, timeout=15.0)
    await admin.wait_joined(portal, world.puppet(agent), timeout=15.0)
    world.hs.release_push()
    await settled(world)


async def test_after_an_absence_every_room_is_looked_at(sqlite_world: World) -> None:
    world = sqlite_world
    _, portal, _ = await _with_admin(world)
    room = world.hs.hs.rooms[portal]
    room.state[("m.room.name", "")].content["name"] = "Mine"  # and the push of it never came
    await world.restart()
    await settled(world)
    assert room.content("m.room.name") == {"name": "Mine"}
    await world.stop()
    with contextlib.closing(sqlite3.connect(world.folder / "bridge.db")) as database, database:
        database.execute("UPDATE setting SET value = '1000' WHERE name = 'alive_at'")
    await world.start()
    await until(lambda: room.content("m.room.name") == {"name": "Ada"}, timeout=15.0)


async def test_repairs_are_quiet(sqlite_world: World) -> None:
    world = sqlite_world
    _, portal, admin = await _with_admin(world)
    await admin.set_state(portal, "m.room.name", {"name": "Mine"})
    room = world.hs.hs.rooms[portal]
    await until(lambda: room.content("m.room.name") == {"name": "Ada"})
    await settled(world)
    assert notices(admin, portal) == []


@pytest.mark.parametrize("option", ["--full", "--new-space"])
async def test_sync_looks_at_rooms_when_asked(sqlite_world: World, option: str) -> None:
    world = sqlite_world
    _, portal, admin = await _with_admin(world)
    chat = await admin.create_dm(BOT)
    await admin.wait_joined(chat, BOT)
    assert world.bridge is not None
    space = world.bridge.directory.space_room
    world.hs.hs.rooms[portal].state[("m.room.name", "")].content["name"] = "Mine"
    await admin.send(chat, f"!letta sync {option}")
    await admin.wait_message(chat, sender=BOT, timeout=20.0)
    if option == "--full":
        await until(lambda: world.hs.hs.rooms[portal].content("m.room.name") == {"name": "Ada"}, timeout=15.0)
    assert world.bridge.directory.space_room == space
