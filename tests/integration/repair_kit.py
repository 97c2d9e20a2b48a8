"""What the tests of damaged rooms share."""

from __future__ import annotations

from typing import Any

from letta_bridge.db.rooms import doubt
from letta_bridge.ids import RoomID
from letta_bridge.testing.fake_homeserver.accounts import Requester

from .mirror_world import BOT, World, agent


async def a_portal(world: World, number: int = 1, **more: Any) -> RoomID:
    """An agent with everything; its portal."""
    world.letta.agents.append(agent(number, **more))
    await world.settle()
    portal = (await world.row(number)).portal_room
    assert portal is not None
    return portal


async def damaged(world: World, room_id: str) -> None:
    """What the bridge does when it is told that somebody changed the room."""
    assert await world.db.write(lambda conn: doubt(conn, RoomID(room_id)))


async def repair(world: World, room_id: str) -> list[str]:
    """The room is looked at until there is nothing to do; what was asked of the homeserver for it."""
    since = len(world.fake.requests)
    await damaged(world, room_id)
    await world.settle()
    return world.requests(since)


def put(world: World, room_id: str, kind: str, content: dict[str, Any], key: str = "", sender: str = BOT) -> None:
    """State as whoever has the power writes it, over the heads of the rules."""
    room = world.fake.hs.rooms[room_id]
    world.fake.hs.append(room, Requester(sender), kind, content, state_key=key)


def put_out(world: World, room_id: str, user: str, membership: str = "leave", by: str = "@admin:test.local") -> None:
    """Somebody with the power puts a user out of a room."""
    put(world, room_id, "m.room.member", {"membership": membership}, user, by)


async def looks(world: World) -> set[str]:
    """Rooms that are still to be looked at."""
    return set(await world.rooms.to_look_at())
