"""Management rooms: each administrator gets one, once, whatever is interrupted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from letta_bridge.ids import MXID, RoomID
from letta_bridge.testing.fake_homeserver import Person

from .admin_kit import ADMIN, ask, dm_with_bot, said, settled, texts_of
from .world import BOT, DOMAIN, World, until

STATE = "dev.letta_bridge.management"


def made(world: World) -> list[str]:
    """Rooms that say they are management rooms."""
    return [room_id for room_id, room in world.hs.hs.rooms.items() if (STATE, "") in room.state]


async def room_of(world: World, person: Person) -> str:
    """The room that the bridge made for an administrator, once they are in it."""
    await until(lambda: any(person.mxid in person.members(room) for room in person.rooms()), why="not invited")
    [room] = [room for room in person.rooms() if room in made(world)]
    await said(person, room, "this is your management room")
    return room


async def rows(world: World) -> dict[Any, Any]:
    assert world.bridge is not None
    return await world.bridge.desk.management.all()


async def test_every_administrator_of_the_configuration_gets_one_room(world: World) -> None:
    admin, far = await world.hs.person("admin", auto_join=True), await world.hs.person("@far:away.example")
    await world.start(
        management__rooms=True, permissions={DOMAIN: "admin", "*": "user", ADMIN: "admin", far.mxid: "admin"}
    )
    room = await room_of(world, admin)
    assert await far.wait_invite(10.0) in made(world)
    await until(lambda: _all_known(world, 2), why="not noted")
    assert len(made(world)) == 2
    content = world.hs.hs.rooms[room].content
    assert content("m.room.name")["name"] == "Letta Bridge" and content("m.room.topic")["topic"]
    assert content("m.room.join_rules")["join_rule"] == "invite" and not content("m.room.encryption")
    assert content("m.room.power_levels")["users"][ADMIN] == 50
    assert "There are no agents yet" in texts_of(admin, room)[0]
    assert "I understand" in await ask(admin, room, "help"), "no prefix is needed"
    before = len(world.hs.requests)
    assert world.bridge is not None
    await world.bridge.lanes.sweep()
    world.bridge.lanes.wake("management")
    await world.restart()
    await settled(world)
    asked = [request.path for request in world.hs.requests[before:]]
    assert not [path for path in asked if "createRoom" in path or "invite" in path or "directory" in path]
    assert len(made(world)) == 2 and len(texts_of(admin, room)) == 2


async def test_nobody_gets_one_who_did_not_ask_for_it(sqlite_world: World) -> None:
    world = sqlite_world
    await world.start(management__rooms=True, permissions={DOMAIN: "admin", "@alice:test.local": "user"})
    await settled(world)
    await world.restart(management__rooms=False, permissions={ADMIN: "admin"})
    await settled(world)
    assert made(world) == [] and await rows(world) == {}


@pytest.mark.parametrize("failure", [True, "disconnect"], ids=["502", "cut off"])
async def test_an_answer_that_is_lost_makes_no_second_room(sqlite_world: World, failure: Any) -> None:
    """The room is made, the bridge does not learn it: it is found by its alias."""
    world = sqlite_world
    admin = await world.hs.person("admin", auto_join=True)
    world.hs.fail_next(r"/createRoom", status=502, after_processing=failure, times=2)  # the space's is the other
    await world.start(management__rooms=True)
    room = await room_of(world, admin)
    assert made(world) == [room]


async def test_what_was_begun_is_finished(sqlite_world: World) -> None:
    """Ended right after it was written down that a room is to be made."""
    world = sqlite_world
    admin = await world.hs.person("admin", auto_join=True)
    bridge = await world.start()
    await bridge.db.write(lambda conn: bridge.desk.management.set(conn, MXID(ADMIN), RoomID("")))
    await world.restart(management__rooms=True)
    room = await room_of(world, admin)
    assert made(world) == [room]


async def test_a_database_that_is_lost_finds_the_room_again(sqlite_world: World) -> None:
    world = sqlite_world
    admin = await world.hs.person("admin", auto_join=True)
    await world.start(management__rooms=True)
    room = await room_of(world, admin)
    await world.stop()
    for name in ("bridge.db", "bridge.db-wal", "bridge.db-shm"):
        await asyncio.to_thread((world.folder / name).unlink, missing_ok=True)
    await world.start(management__rooms=True)
    await until(lambda: _is_known(world, room), why="not adopted")
    assert made(world) == [room]


async def _all_known(world: World, count: int) -> bool:
    return [bool(room) for room in (await rows(world)).values()] == [True] * count


async def _is_known(world: World, room: str) -> bool:
    return room in (await rows(world)).values()


async def test_who_leaves_is_left_alone_until_they_ask(world: World) -> None:
    admin = await world.hs.person("admin", auto_join=True)
    await world.start(management__rooms=True)
    room = await room_of(world, admin)
    await admin.leave(room)
    await world.restart()
    await settled(world)
    assert world.hs.hs.rooms[room].membership(ADMIN) == "leave" and made(world) == [room]
    dm = await dm_with_bot(admin)
    assert "From now on" in await ask(admin, dm, "set-management-room")
    assert (await rows(world))[ADMIN] == dm
    assert "already" in await ask(admin, dm, "set-management-room")


async def test_set_management_room_refuses_what_cannot_work(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    admin, alice = await world.hs.person("admin", auto_join=True), await world.hs.person("alice", auto_join=True)
    await world.start(management__rooms=True)
    await room_of(world, admin)
    with_agent = await world.dm(admin, agent)
    assert "not in this room" in await ask(admin, with_agent, "!letta set-management-room")
    await admin.invite(with_agent, BOT)
    await admin.wait_joined(with_agent, BOT)
    await settled(world)
    assert "Agents are in this room" in await ask(admin, with_agent, "!letta set-management-room")
    shared = await admin.create_room(invite=[alice.mxid, BOT])
    await admin.wait_joined(shared, BOT)
    await alice.wait_joined(shared, alice.mxid)
    await settled(world)
    assert alice.mxid in await ask(admin, shared, "!letta set-management-room")
    assert "Only administrators" in await ask(alice, shared, "!letta set-management-room")


async def test_an_encrypted_management_room_is_told(sqlite_world: World) -> None:
    world = sqlite_world
    admin = await world.hs.person("admin", auto_join=True)
    await world.start(management__rooms=True)
    await room_of(world, admin)
    dm = await dm_with_bot(admin)
    await ask(admin, dm, "set-management-room")
    await admin.set_state(dm, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    notice = await said(admin, dm, "cannot read encrypted messages")
    assert "set-management-room" in notice and "letta-bridge ctl" in notice
