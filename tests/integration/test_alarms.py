"""What goes wrong is told to administrators once, and once that it is over."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from letta_bridge.alarms import AlarmWatch
from letta_bridge.db.alarms import Alarms
from letta_bridge.db.database import Connection
from letta_bridge.db.management import ManagementRooms
from letta_bridge.ids import MXID, RoomID
from letta_bridge.lanes import Fence
from letta_bridge.letta.errors import Kind
from letta_bridge.routing.permissions import Level, Permissions
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.web.health import Health

from .admin_kit import ADMIN, older, pass_time, said, settled, texts_of
from .mirror_world import Clock, QuietLanes, open_database
from .test_management_rooms import room_of
from .world import BOT, World, until

DOWN, BACK, KEY = "Letta cannot be reached\\.", "Letta can be reached again, after", "Letta refuses the bridge's key"


async def a_room(world: World, **overrides: Any) -> tuple[Person, str]:
    """The administrator in the management room."""
    admin = await world.hs.person("admin", auto_join=True)
    await world.start(**{"letta__poll_interval": 5, "management__rooms": True, **overrides})
    return admin, await room_of(world, admin)


async def up(world: World, topic: str, *, cleared: bool = False) -> None:
    """Wait until an alarm stands in the table."""
    bridge = world.bridge
    assert bridge is not None

    async def stands() -> bool:
        return any(alarm.topic == topic and alarm.cleared == cleared for alarm in await bridge.desk.alarms.all())

    await until(stands, 20, why=f"{topic} does not come up")


async def none_left(world: World) -> None:
    bridge = world.bridge
    assert bridge is not None

    async def nothing() -> bool:
        return not await bridge.desk.alarms.all()

    await until(nothing, 20, why="an alarm is left")


def told(person: Person, room: str, pattern: str) -> int:
    return len([text for text in texts_of(person, room) if re.search(pattern, text)])


async def ready(world: World) -> dict[str, Any]:
    url = f"http://127.0.0.1:{world.port}/_matrix/mau/ready"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        report: dict[str, Any] = await answer.json()
        return report


async def looked(world: World) -> None:
    """The lane has dealt with what is due now."""
    bridge = world.bridge
    assert bridge is not None
    bridge.lanes.wake("alarms")
    await until(lambda: not bridge.lanes.census()[1]["alarms"], why="the alarms' lane does not rest")


async def test_letta_away_is_told_once_after_a_minute_and_its_return_once(world: World) -> None:
    admin, room = await a_room(world)
    world.letta.kill()
    await up(world, "letta_unreachable")
    await looked(world)
    assert told(admin, room, DOWN) == 0, "not before it has lasted"
    assert "letta_unreachable" in (await ready(world))["alarms"]
    await older(world, 61)
    await said(admin, room, DOWN)
    await world.restart()
    await up(world, "letta_unreachable")
    await older(world, 300)
    await looked(world)
    assert told(admin, room, DOWN) == 1, "also not after a restart"
    await world.letta.start()
    await up(world, "letta_unreachable", cleared=True)
    await older(world, 21)
    assert "6 minutes" in await said(admin, room, BACK, timeout=15)
    await none_left(world)
    assert [told(admin, room, DOWN), told(admin, room, BACK)] == [1, 1]
    await until(lambda: _no_alarms(world), why="ready still names it")


async def _no_alarms(world: World) -> bool:
    report = await ready(world)
    return report["alarms"] == [] and report["ready"] is True


async def test_what_flaps_is_not_told_again_and_again(tmp_path: Path, database_uri: str) -> None:
    clock = Clock()
    async with open_database(tmp_path, database_uri) as db:
        health, lanes = Health(db, "test", clock=clock), QuietLanes(db)
        watch = AlarmWatch(db, lanes, health, Permissions({ADMIN: Level.ADMIN}), MXID(BOT))
        fence = Fence("alarms", "test", 1)
        await db.write(lambda conn: conn.execute("INSERT INTO lane (lane, owner, epoch) VALUES ('alarms', 'test', 1)"))
        await db.write(lambda conn: ManagementRooms(db).set(conn, MXID(ADMIN), RoomID("!room")))

        async def told() -> list[str]:
            rows = await db.fetch("SELECT content FROM outbox ORDER BY seq")
            return [json.loads(row["content"])["body"].split(".")[0].lstrip("⚠️✅ ") for row in rows]

        async def it_is(kind: Kind | None, seconds: float) -> list[str]:
            health.letta(kind)
            await watch.sample()
            clock.now += seconds
            await db.write(lambda conn: pass_time(conn, seconds))
            await watch.handle(fence)
            return await told()

        down, back = "Letta cannot be reached", "Letta can be reached again, after 2 minutes"
        assert await it_is(Kind.UNREACHABLE, 59) == []
        assert await it_is(Kind.UNREACHABLE, 2) == [down]
        assert await it_is(None, 5) == [down], "so short a return is none"
        assert await it_is(Kind.UNREACHABLE, 60) == [down]
        assert await it_is(None, 21) == [down, back]
        assert await watch.handle(fence) is None and watch.topics == []
        assert await it_is(Kind.UNREACHABLE, 100) == [down, back], "within ten minutes"
        assert await it_is(None, 100) == [down, back], "of what was not told no end is told"
        assert await it_is(Kind.UNREACHABLE, 100) == [down, back]
        assert await it_is(Kind.UNREACHABLE, 500) == [down, back, down], "it lasts, so it is told after all"
        assert await it_is(Kind.BAD_KEY, 61) == [down, back, down, "Letta can be reached again, after 10 minutes", KEY]
        assert watch.topics == ["letta_key"]
        health.letta(Kind.BAD_KEY)
        clock.now += 1000
        await watch.sample()
        assert watch.topics == ["letta_key"], "not seen again, and nothing seen that says otherwise"


async def test_a_short_outage_is_no_news(sqlite_world: World) -> None:
    world = sqlite_world
    admin, room = await a_room(world)
    before = texts_of(admin, room)
    world.letta.kill()
    await up(world, "letta_unreachable")
    await world.letta.start()
    await none_left(world)
    await looked(world)
    assert texts_of(admin, room) == before


async def test_a_refused_key_is_another_thing(sqlite_world: World) -> None:
    world = sqlite_world
    admin, room = await a_room(world)
    world.letta.fail_next(r"/v1/", 401, times=1000)
    await up(world, "letta_key")
    await older(world, 61)
    assert "letta.api_key" in await said(admin, room, "refuses the bridge's key")
    assert told(admin, room, DOWN) == 0


async def test_a_homeserver_that_was_away_is_told_afterwards_in_one_sentence(world: World) -> None:
    admin, room = await a_room(world)
    await world.hs.stop()
    await up(world, "homeserver_unreachable")
    await older(world, 400)
    await looked(world)
    await world.hs.start()
    await up(world, "homeserver_unreachable", cleared=True)
    await older(world, 21)
    text = await said(admin, room, "did not answer the bridge for 7 minutes", timeout=15)
    assert "it does now" in text
    await none_left(world)
    assert len(texts_of(admin, room)) == 2


async def test_pushes_that_do_not_arrive(sqlite_world: World) -> None:
    world = sqlite_world
    admin, room = await a_room(world)
    url = world.hs.appservice_url
    world.hs.appservice_url = "http://127.0.0.1:9"
    await up(world, "homeserver_pushes")
    await older(world, 61)
    await said(admin, room, "does not reach the bridge", timeout=15)
    world.hs.appservice_url = url
    await up(world, "homeserver_pushes", cleared=True)
    await older(world, 21)
    await said(admin, room, "reaches the bridge again", timeout=15)


async def test_what_others_raise_is_told_at_once_also_in_a_room_that_comes_later(world: World) -> None:
    bridge = await world.start(management__rooms=False)

    async def work(conn: Connection) -> None:
        await bridge.desk.alarms.raise_(
            conn, "guard", "Frozen: 5 of 6 agents are gone. Nothing is added.\n\nWhat to do: …"
        )

    await bridge.db.write(work)
    await looked(world)
    admin = await world.hs.person("admin", auto_join=True)
    bridge = await world.restart(management__rooms=True)
    room = await room_of(world, admin)
    await said(admin, room, "5 of 6 agents are gone", timeout=20)
    await bridge.db.write(lambda conn: bridge.desk.alarms.clear(conn, "guard"))
    await looked(world)
    over = await said(admin, room, "Over, after")
    assert over.endswith("It was: “Frozen: 5 of 6 agents are gone.”"), "what follows from it is not so any more"
    await none_left(world)


async def test_only_administrators_of_today_are_told(sqlite_world: World) -> None:
    world = sqlite_world
    admin, room = await a_room(world)
    before = len(texts_of(admin, room))
    bridge = await world.restart(permissions={"@other:test.local": "admin", admin.mxid: "user"})
    await bridge.db.write(lambda conn: bridge.desk.alarms.raise_(conn, "guard", "Removals are frozen."))
    other = await world.hs.person("other", auto_join=True)
    await said(other, await room_of(world, other), "Removals are frozen", timeout=20)
    await settled(world)
    assert len(texts_of(admin, room)) == before


@pytest.mark.parametrize("over", [False, True])
async def test_what_changes_while_it_is_told_is_not_told_as_it_was(
    tmp_path: Path, database_uri: str, over: bool
) -> None:
    """An alarm ends between the look and the word: nobody would be told its end. Or it comes back as its end is told:
    it would be up, and never told again.
    """
    async with open_database(tmp_path, database_uri) as db:
        lanes, alarms = QuietLanes(db), Alarms(db)
        watch = AlarmWatch(db, lanes, Health(db, "test"), Permissions({ADMIN: Level.ADMIN}), MXID(BOT))

        async def begin(conn: Connection) -> None:
            await ManagementRooms(db).set(conn, MXID(ADMIN), RoomID("!room:x"))
            await conn.execute("INSERT INTO lane (lane, owner, epoch) VALUES ('alarms', 'test', 1)")
            await alarms.raise_(conn, "room.x", "A room is damaged.")
            if over:
                await alarms.note_told(conn, "room.x")
                await alarms.clear(conn, "room.x")

        await db.write(begin)
        (seen,) = await alarms.all()
        if over:
            await db.write(lambda conn: alarms.raise_(conn, "room.x", "A room is damaged."))
        else:
            await db.write(lambda conn: alarms.clear(conn, "room.x"))
        await watch._one(Fence("alarms", "test", 1), seen, [RoomID("!room:x")])
        assert await db.fetch("SELECT 1 FROM outbox") == []
