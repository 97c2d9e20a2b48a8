"""An agent that is missing or archived, and comes back; killed at every step of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from letta_bridge.db.database import Database

from .mirror_world import ALICE, BOT, World, agent, agent_id, new_world, open_database, puppet
from .repair_kit import a_portal
from .test_mirror_resume import Point, _killed_pass

LONG = "N" * 255


@pytest.fixture
async def database(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    """An open, empty one; on both engines."""
    async with open_database(tmp_path, database_uri) as opened:
        yield opened


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with new_world(database, invite=(ALICE,)) as made:
        yield made


async def let_go(world: World, number: int, state: str) -> None:
    """Letta does not list the agent, and the row says what follows."""
    world.letta.complete = False  # what a list says is another matter
    world.letta.set([one for one in world.letta.agents if one.id != agent_id(number)])
    await world.agents.update(agent_id(number), state=state, missing_since=1_700_000_000.0)


def _is_archived(world: World, portal: str) -> None:
    assert world.state(portal, "m.room.name") == {"name": "Agent 1 (archived)"}
    assert "2023-11-14" in world.state(portal, "m.room.topic")["topic"]
    assert world.profile(1).get("displayname", "") == world.profile(1).get("avatar_url", "") == ""
    assert portal not in world.children()
    assert not any(
        kind == "m.space.parent" and event.content for (kind, _), event in world.fake.hs.rooms[portal].state.items()
    )
    room = world.fake.hs.rooms[portal]
    assert room.membership(BOT) == room.membership(puppet(1)) == "join"
    assert room.membership(ALICE) == "invite", "who was there still is"


async def test_missing_is_shown_and_undone(world: World) -> None:
    portal = await a_portal(world)
    await let_go(world, 1, "missing")
    await world.settle()
    assert world.profile(1)["displayname"] == "Agent 1 (offline)"
    assert world.state(portal, "m.room.name") == {"name": "Agent 1"}
    assert portal in world.children()
    world.letta.set([agent(1)])
    await world.settle()
    assert world.profile(1)["displayname"] == "Agent 1"
    world.check_complete([1], [ALICE])


async def test_long_names_keep_their_mark(world: World) -> None:
    portal = await a_portal(world, name=LONG)
    for state in ("missing", "archived"):
        await let_go(world, 1, state)
        await world.settle()
        shown = world.profile(1)["displayname"] if state == "missing" else world.state(portal, "m.room.name")["name"]
        assert len(shown) == 255 and shown.endswith(("(offline)", "(archived)"))


async def test_archived_is_shown_costs_nothing_then_and_is_undone(world: World) -> None:
    portal = await a_portal(world, description="Knows all")
    await let_go(world, 1, "archived")
    await world.settle()
    _is_archived(world, portal)
    since = len(world.fake.requests)
    await world.run_pass()
    assert world.requests(since) == []
    assert world.directory.progress == (0, 0, 0)
    world.letta.complete = True
    world.letta.set([agent(1, description="Knows all")])
    await world.settle()
    world.check_complete([1], [ALICE])
    assert world.state(portal, "m.room.topic")["topic"] == "Knows all"
    assert world.portals(1) == [portal], "it has its old room"


async def test_nothing_is_begun_for_an_agent_that_is_not_there(world: World) -> None:
    world.letta.set([agent(1)])
    await world.directory.resolve(puppet(1))
    await let_go(world, 1, "archived")
    await world.settle()
    assert world.portals(1) == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("point", ["request lost", "answer lost", "write lost", "after write"])
@pytest.mark.parametrize("back", [False, True])
async def test_killed_at_every_step(tmp_path: Path, point: Point, back: bool) -> None:
    """Of archiving, and of coming back."""
    step = 0
    while True:
        step += 1
        db = Database(f"sqlite:{tmp_path / f'{step}.db'}")
        await db.open()
        try:
            async with new_world(db, invite=(ALICE,), concurrency=1) as world:
                portal = await a_portal(world)
                await let_go(world, 1, "archived")
                if back:
                    await world.settle()
                    world.letta.set([agent(1)])
                begun = len(world.fake.hs.rooms[portal].timeline)
                struck = await _killed_pass(world, point, step)
                await world.restart()
                await world.settle()
                if back:
                    world.check_complete([1], [ALICE])
                else:
                    _is_archived(world, portal)
                written = world.fake.hs.rooms[portal].timeline[begun:]
                events: Counter[Any] = Counter((event.type, event.state_key) for event in written)
                assert all(count <= 2 for (kind, _), count in events.items() if kind != "m.room.member")
                assert len(world.fake.hs.rooms) == 2
                if not struck:
                    break
        finally:
            await db.close()
    assert step > 5
