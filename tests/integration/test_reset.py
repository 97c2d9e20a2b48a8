"""``reset``: all that the bridge made is given up, nothing else is; afterwards it begins anew."""

from __future__ import annotations

import re
from typing import Any

import pytest

from letta_bridge import faults
from letta_bridge.db.catalog import tables
from letta_bridge.ids import RoomID
from letta_bridge.jobs import engine as engine_module
from letta_bridge.testing.fake_homeserver import Person

from .life_kit import ADMIN, ask, children, live_portals, portals, puppets
from .world import BOT, DOMAIN, World, settled, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses shorter than in life."""
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(engine_module, "_LONGEST_PAUSE", 0.2)


async def a_used_bridge(world: World) -> tuple[Person, Person, str, list[str]]:
    """An admin, somebody who talks in a DM, that room, and two agents."""
    agents = [world.letta.add_agent("Ada"), world.letta.add_agent("Basil")]
    admin = await world.hs.person("admin", auto_join=True)
    alice = await world.hs.person("alice", auto_join=True)
    await world.start(mirror__invite=[alice.mxid], management__rooms=True)
    await world.mirrored()
    dm = await world.dm(alice, agents[0], "hello")
    await alice.wait_message(dm, sender=world.puppet(agents[0]))
    await until(lambda: _management(world), why="no management room")
    await settled(world)
    return admin, alice, dm, agents


async def _management(world: World) -> RoomID | None:
    """The admin's management room, once the admin is in."""
    assert world.bridge is not None
    room = (await world.bridge.desk.management.all()).get(ADMIN)  # type: ignore[call-overload]
    return room if room and ADMIN in world.hs.hs.rooms[room].members("join") else None


async def the_line(world: World, room: str = "") -> str:
    preview = await ask(world, "reset", room=room)
    found = re.search(r"`(?:!letta|letta-bridge ctl) (reset --confirm \w+ test\.local)`\Z", preview.text)
    assert found, preview.text
    return found[1]


def ours_in(world: World, room: str) -> list[str]:
    return [user for user in world.hs.hs.rooms[room].members("join") if user == BOT or user.startswith("@letta_")]


async def begun_anew(world: World, old: set[str]) -> None:
    """Every agent has a new room in a new space, and the admin a new management room."""
    await until(
        lambda: len(set(live_portals(world.hs)) - old) == len(world.letta.agents), timeout=20, why="no new rooms"
    )
    await world.mirrored()
    await until(lambda: _management(world), why="no new management room")
    assert set(children(world.hs)) == set(live_portals(world.hs))


async def test_it_gives_everything_up_and_begins_anew(world: World) -> None:
    admin, alice, dm, agents = await a_used_bridge(world)
    bridge = world.bridge
    assert bridge is not None
    group = await alice.create_room(invite=[world.puppet(agents[1])])
    await alice.wait_joined(group, world.puppet(agents[1]))
    management = str(await _management(world))
    old, letta = set(world.hs.hs.rooms), {agent.id: agent.name for agent in world.letta.agents.values()}
    preview = await ask(world, "reset", room=management)
    assert preview.ok, "a preview that worked is no failure"
    assert "the agents in it and the homeserver would not be touched" in preview.text
    assert "0 permissions given by command, 0 owners of agents, 0 pauses, 0 jobs" in preview.text
    assert all(ours_in(world, room) for room in (dm, group, management)), "a preview changes nothing"
    reply = await ask(world, await the_line(world, management), room=management)
    assert reply.ok, reply.text
    await begun_anew(world, old)
    for room in old:
        assert ours_in(world, room) == []
    assert set(world.hs.hs.rooms[dm].members("join")) == {alice.mxid}, "people stay"
    assert "begins anew at once" in admin.messages(management)[-1].body
    assert {agent.id: agent.name for agent in world.letta.agents.values()} == letta
    assert len(puppets(world.hs)) == 2
    assert await bridge.desk.settings.get("reset") is None
    assert await bridge.desk.pauses.all() == []
    second = await world.dm(alice, agents[0], "are you there?")
    await alice.wait_message(second, sender=world.puppet(agents[0]))


async def test_the_database_is_empty_but_for_what_came_after(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = sqlite_world
    await a_used_bridge(world)
    bridge = world.bridge
    assert bridge is not None
    left: dict[str, int] = {}
    from letta_bridge.db import resetting

    real = resetting.throw_away

    async def counted(conn: Any, db: Any) -> None:
        await real(conn, db)
        for table in await tables(conn, db.postgres):
            left[table.name] = int(await conn.fetchval(f"SELECT COUNT(*) FROM {table.name}"))

    monkeypatch.setattr(resetting, "throw_away", counted)
    old = set(world.hs.hs.rooms)
    await ask(world, await the_line(world))
    await begun_anew(world, old)
    assert set(left.values()) == {0}
    assert {"agent", "inbox", "outbox", "turn", "job", "setting", "told", "room"} <= set(left)


class Killed(BaseException):
    """Ends what passes a place, as a kill does."""


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("point", ["job.step", "job.stepped"])
async def test_killed_anywhere_it_goes_on(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch, point: str, step: int
) -> None:
    world = sqlite_world
    _, alice, _, agents = await a_used_bridge(world)
    old, passed = set(world.hs.hs.rooms), 0
    line = await the_line(world)

    def hook(place: str) -> None:
        nonlocal passed
        passed += place == point
        if place == point and passed == step:
            raise RuntimeError("killed here")

    async def no_failure(*args: Any) -> None:
        raise Killed

    monkeypatch.setattr(faults, "hook", hook)
    assert world.bridge is not None
    monkeypatch.setattr(world.bridge.engine, "_failed", no_failure, raising=True)
    await ask(world, line)
    await until(lambda: passed >= step, why="the place was not passed")
    monkeypatch.setattr(faults, "hook", None)
    await world.restart()
    await begun_anew(world, old)
    for room in old:
        assert ours_in(world, room) == []
    second = await world.dm(alice, agents[0], "are you there?")
    await alice.wait_message(second, sender=world.puppet(agents[0]))


async def test_only_an_admin_who_types_the_domain(sqlite_world: World) -> None:
    world = sqlite_world
    await a_used_bridge(world)
    line = await the_line(world)
    rooms = {room: ours_in(world, room) for room in portals(world.hs)}
    for wrong in (
        "reset now",
        "reset --confirm",
        "reset --confirm 1234 test.local",
        line.replace(DOMAIN, "other.example"),
    ):
        assert not (await ask(world, wrong)).ok, wrong
    assert not (await ask(world, line, who=f"@alice:{DOMAIN}")).ok
    assert {room: ours_in(world, room) for room in portals(world.hs)} == rooms
    first = await ask(world, line, key="$once")
    assert first.ok


async def test_for_uninstalling_it_stays_empty(sqlite_world: World) -> None:
    world = sqlite_world
    admin, *_ = await a_used_bridge(world)
    management = str(await _management(world))
    old = set(world.hs.hs.rooms)
    preview = await ask(world, "reset --stay-empty")
    line = re.search(r"`(?:!letta|letta-bridge ctl) (reset --stay-empty --confirm .*)`", preview.text)
    assert line, preview.text
    await ask(world, line[1])
    await until(lambda: "can be uninstalled" in admin.messages(management)[-1].body)
    await until(lambda: not any(ours_in(world, room) for room in old))
    bridge = world.bridge
    assert bridge is not None
    bridge.lanes.wake("mirror")
    await until(lambda: _forgotten(world), why="something is left")
    assert set(world.hs.hs.rooms) == old
    assert [alias for alias in world.hs.hs.aliases if alias.startswith("#letta_")] == []


async def _forgotten(world: World) -> bool:
    assert world.bridge is not None
    quiet = await world.bridge.desk.settings.get("reset_quiet")
    return quiet == "stay" and await world.bridge.agents.all() == []


async def test_while_the_homeserver_is_away_it_waits(sqlite_world: World) -> None:
    world = sqlite_world
    await a_used_bridge(world)
    old, line = set(world.hs.hs.rooms), await the_line(world)
    world.hs.fail_next(r"/leave$", status=503, errcode="", times=4)
    await ask(world, line)
    await begun_anew(world, old)
