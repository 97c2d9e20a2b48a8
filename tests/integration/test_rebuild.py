"""The database made again from the rooms: everything that they tell, nothing against what it has, nobody asked back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from letta_bridge.bridge import LettaBridge
from letta_bridge.commands.call import CTL
from letta_bridge.commands.carry import Asked
from letta_bridge.commands.parse import of_words
from letta_bridge.commands.table import Reply
from letta_bridge.ids import RoomID
from letta_bridge.mirror.maker import PORTAL_STATE, SPACE_STATE
from letta_bridge.mirror.rebuild import RebuildReport, rebuild
from letta_bridge.routing.permissions import Level
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_homeserver.accounts import Requester

from .world import BOT, DOMAIN, World, settled, until

ALICE, BOB = f"@alice:{DOMAIN}", f"@bob:{DOMAIN}"


async def _people(world: World) -> tuple[Person, Person]:
    return await world.hs.person("alice", auto_join=True), await world.hs.person("bob")


async def _lived(world: World) -> tuple[str, str, str]:
    """Two agents, one with an owner; Bob left a portal; a group with the bot. The ids of agents and group."""
    ada, basil = world.letta.add_agent("Ada", description="Knows all"), world.letta.add_agent("Basil")
    alice, bob = await _people(world)
    bridge = await world.start(mirror__invite=[ALICE, BOB])
    await world.mirrored()
    await bob.join(await world.portal(ada))
    await bob.leave(await world.portal(ada))
    group = await alice.create_room(invite=[BOT, world.puppet(ada)])
    await alice.wait_joined(group, BOT)
    await settled(world)
    portal = world.hs.hs.rooms[await world.portal(basil)]
    content = {**portal.content(PORTAL_STATE), "owner": ALICE, "origin": "summoned"}
    world.hs.hs.append(portal, Requester(BOT), PORTAL_STATE, content, state_key="")
    await until(bridge.inbox_is_empty)
    return ada, basil, group


async def _facts(bridge: LettaBridge, *agents: str) -> dict[str, Any]:
    """What a rebuilt database must have again."""
    rows = [row for agent in agents if (row := await bridge.agents.get(agent))]  # type: ignore[arg-type]
    return {
        row.agent_id: (row.mxid, row.portal_room, row.portal_name, row.portal_topic, row.in_space, row.state)
        for row in rows
    }


async def _lost(world: World, folder: Path, *, listed: bool) -> LettaBridge:
    """Start over with an empty database; ``listed`` says whether Letta answers."""
    await world.stop()
    if not listed:
        await world.letta.stop()
    for path in folder.glob("bridge.db*"):
        path.unlink()
    return await world.start()


async def test_everything_that_rooms_tell_is_written(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    ada, basil, group = await _lived(world)
    assert world.bridge is not None
    before, space = await _facts(world.bridge, ada, basil), world.bridge.directory.space_room
    portals = {await world.portal(ada), await world.portal(basil)}
    bridge = await _lost(world, tmp_path, listed=False)
    await until(lambda: bridge.directory.space_room, why="the space is found again by itself")

    seen: RebuildReport = await rebuild(bridge.desk, dry_run=True)
    assert sorted(seen.agents) == sorted([ada, basil]) and set(seen.portals.values()) == portals  # type: ignore[comparison-overlap]
    assert await bridge.agents.all() == [], "nothing is written in a dry run"
    done = await rebuild(bridge.desk, dry_run=False)
    assert (done.agents, done.portals, done.conflicts, done.unreadable) == (seen.agents, seen.portals, [], [])
    assert await _facts(bridge, ada, basil) == before and bridge.directory.space_room == space
    row = await bridge.agents.get(basil)  # type: ignore[arg-type]
    assert row is not None and (row.owner, row.origin, row.registered, row.history) == (ALICE, "summoned", True, "done")
    assert ALICE in {member.mxid for member in (await bridge.rooms.info(group)).joined}  # type: ignore[arg-type]
    again = await rebuild(bridge.desk, dry_run=False)
    assert not (again.agents or again.portals or again.space or again.rooms or again.conflicts)

    await world.letta.start()
    await world.restart()
    await world.mirrored()
    await settled(world)
    assert await _facts(world.bridge, ada, basil) == before
    rooms = world.hs.hs.rooms
    assert {room for room in rooms if rooms[room].content(PORTAL_STATE)} == portals, "no second room"
    assert rooms[await world.portal(ada)].membership(BOB) == "leave", "who had left is not asked back"


async def test_what_the_database_has_is_never_overwritten(sqlite_world: World) -> None:
    world = sqlite_world
    ada, _, _ = await _lived(world)
    bridge = world.bridge
    assert bridge is not None
    before = await bridge.agents.all()
    portal = await world.portal(ada)
    impostor = await bridge.homeserver.bot.create_room(
        {"initial_state": [{"type": PORTAL_STATE, "state_key": "", "content": {"version": 1, "agent_id": ada}}]}
    )
    report = await rebuild(bridge.desk, dry_run=False)
    assert not (report.agents or report.portals or report.conflicts), "the alias says which of the two it is"
    bot = bridge.homeserver.bot
    await bot.leave(portal)  # type: ignore[arg-type]
    report = await rebuild(bridge.desk, dry_run=False)
    (conflict,) = report.conflicts
    assert impostor in conflict and portal in conflict
    rows = [(row.agent_id, row.portal_room) for row in await bridge.agents.all()]
    assert rows == [(row.agent_id, row.portal_room) for row in before]


async def test_a_room_that_cannot_be_read_is_said_and_found_by_a_repeat(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    ada, basil, _ = await _lived(world)
    portal = await world.portal(ada)
    bridge = await _lost(world, tmp_path, listed=False)
    fault = world.hs.fail_next(f"/rooms/{portal}/state$", status=502, times=None)
    report = await rebuild(bridge.desk, dry_run=False)
    assert report.agents == [basil] and portal in report.unreadable[0]  # type: ignore[comparison-overlap]
    fault.cancel()
    report = await rebuild(bridge.desk, dry_run=False)
    assert report.agents == [ada] and not report.unreadable  # type: ignore[comparison-overlap]


async def test_a_space_of_somebody_else_is_not_taken_for_ours(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    mallory = await world.hs.person("mallory")
    await world.start()
    state = [{"type": SPACE_STATE, "state_key": "", "content": {"version": 1}}]
    theirs = await mallory.create_room(creation_content={"type": "m.space"}, initial_state=state, invite=[BOT])
    await mallory.wait_joined(theirs, BOT)
    await settled(world)
    await until(lambda: world.bridge is not None and world.bridge.directory.space_room is not None)
    bridge = world.bridge
    assert bridge is not None and bridge.directory.space_room is not None
    world.hs.purge_room(bridge.directory.space_room)
    await settled(world)
    await bridge.desk.settings.set("space", "")
    await bridge.directory.start()
    report = await rebuild(bridge.desk, dry_run=True)
    assert report.space is None


async def test_a_former_portal_is_remembered_as_that(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    ada, _, _ = await _lived(world)
    portal = await world.portal(ada)
    room = world.hs.hs.rooms[portal]
    bridge = await _lost(world, tmp_path, listed=False)
    successor = "!somewhere:else.example"
    world.hs.hs.append(room, Requester(BOT), "m.room.tombstone", {"replacement_room": successor}, state_key="")
    report = await rebuild(bridge.desk, dry_run=False)
    assert report.past == [portal] and ada not in report.agents  # type: ignore[comparison-overlap]
    (past,) = await bridge.desk.past_rooms.of(ada)  # type: ignore[arg-type]
    assert (past.room_id, past.replaced_by) == (portal, successor)


async def test_the_command(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    await _lived(world)
    bridge = await _lost(world, tmp_path, listed=False)

    async def run(*words: str) -> Reply:
        return await bridge.carrier.carry_out(
            Asked(line=of_words(words), who=CTL, level=Level.ADMIN, via="ctl", key="k", room_id=RoomID(""))
        )

    reply = await run("rebuild", "--dry-run")
    assert "Would be written: 2 agents" in reply.text and json.dumps(reply.data)
    reply = await run("rebuild")
    assert "Written: 2 agents" in reply.text and reply.ok
    reply = await run("rebuild")
    assert "lacks nothing" in reply.text
