"""The same over real HTTP, with Letta's own habits: an empty database that looks healthy, a page that is no list."""

from __future__ import annotations

import re
from typing import Any

from letta_bridge.db.alarms import Alarms

from .admin_kit import ask, dm_with_bot, said, texts_of
from .world import World, until


async def a_pass(world: World) -> dict[str, Any]:
    """One pass now; what it did."""
    assert world.bridge is not None
    refreshes = world.bridge.directory.refreshes
    result = await refreshes.wait(await refreshes.request(), 15)
    assert result is not None and not result.trouble
    return dict(result.changes)


async def started(world: World, count: int, **overrides: Any) -> list[str]:
    """A bridge with that many agents."""
    agents = [world.letta.add_agent(f"Agent {number}") for number in range(count)]
    await world.start(**overrides)
    await world.mirrored()
    await a_pass(world)
    return agents


async def states(world: World) -> list[str]:
    assert world.bridge is not None
    return [row.state for row in await world.bridge.agents.all()]


async def alarms(world: World) -> list[str]:
    assert world.bridge is not None
    return [alarm.topic for alarm in await Alarms(world.bridge.db).all() if not alarm.cleared]


async def test_an_empty_database_behind_the_same_url(world: World) -> None:
    """F-23: an empty list nearly removed all."""
    await started(world, 4)
    before = world.letta.swap_database()
    assert (await a_pass(world))["frozen"] == "another"
    world.letta.add_agent("Somebody else")
    assert (await a_pass(world))["added"] == 0
    assert await states(world) == ["active"] * 4 and await alarms(world) == ["letta.another"]
    await world.restart()
    assert (await a_pass(world))["frozen"] == "another"
    assert await states(world) == ["active"] * 4 and await alarms(world) == ["letta.another"]
    world.letta.swap_database(before)
    assert (await a_pass(world))["frozen"] == ""
    assert await alarms(world) == []


async def test_all_agents_deleted_in_the_same_letta(sqlite_world: World) -> None:
    world = sqlite_world
    await started(world, 3)
    world.letta.empty()
    assert (await a_pass(world))["frozen"] == "empty"
    assert await states(world) == ["active"] * 3 and await alarms(world) == ["guard"]


async def test_a_page_that_the_server_cuts_is_no_list(sqlite_world: World) -> None:
    """F-23: the default page had 3 of 51 agents."""
    world = sqlite_world
    await started(world, 6)
    world.letta.settings.page_cap = 4
    newest = world.letta.add_agent("Newest")
    told = await a_pass(world)
    assert told["missing"] == 0 and told["frozen"] in ("incomplete", "")
    assert "missing" not in await states(world)
    world.letta.settings.page_cap = None
    await a_pass(world)
    assert await world.portal(newest)


async def test_two_of_one_name_stay_two(sqlite_world: World) -> None:
    """F-6, F-20: names are shown and never keys."""
    world = sqlite_world
    twins = [world.letta.add_agent("Twin") for _ in range(2)]
    await world.start()
    await world.mirrored()
    assert len({await world.portal(twin) for twin in twins}) == 2
    world.letta.remove_agent(twins[0])
    await a_pass(world)
    assert world.bridge is not None
    rows = {row.agent_id: row.state for row in await world.bridge.agents.all()}
    assert [rows[twin] for twin in twins] == ["missing", "active"]  # type: ignore[index]


async def test_a_marker_in_a_letta_that_hides_its_organisations(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.fail_next(r"^/v1/admin/orgs/$", 404, times=1000)
    await started(world, 3, letta__marker=True)
    assert world.bridge is not None
    kept = await world.bridge.directory.guard.read()
    assert kept.fingerprint is not None and kept.fingerprint.startswith("marker ")
    before = world.letta.swap_database()
    assert (await a_pass(world))["frozen"] == "another"
    world.letta.swap_database(before)
    assert (await a_pass(world))["frozen"] == ""


async def test_a_letta_that_flips_with_every_pass_is_told_once_and_no_more(sqlite_world: World) -> None:
    world = sqlite_world
    admin = await world.hs.person("admin")
    agents = await started(world, 6)
    bot = await dm_with_bot(admin)
    await ask(admin, bot, "set-management-room")
    words = set()
    bridge = world.bridge
    assert bridge is not None
    for _ in range(3):
        removed = [world.letta.remove_agent(agent) for agent in agents[2:]]
        assert (await a_pass(world))["frozen"] == "shrunk"
        frozen = (await bridge.directory.guard.read()).frozen
        assert frozen is not None
        words.add(frozen.nonce)
        await said(admin, bot, "4 agents are gone from Letta", timeout=20)
        await until(lambda: not bridge.lanes.census()[1]["alarms"], why="it is still being told")
        for agent_ in removed:
            world.letta.restore_agent(agent_)
        assert (await a_pass(world))["frozen"] == ""
        await said(admin, bot, "Over, after", timeout=20)
        await until(lambda: not bridge.lanes.census()[1]["alarms"], why="it is still being told")
    shown = await ask(admin, bot, "guard")  # whatever was to be said before it is said
    assert "Nothing is frozen" in shown
    signs = [text[:1] for text in texts_of(admin, bot) if "4 agents are gone from Letta" in text]
    assert (signs.count("⚠"), signs.count("✅")) == (1, 1)
    assert len(words) == 1, "the same question has the same word"
    # one that was answered is asked anew
    for agent in agents[2:]:
        world.letta.remove_agent(agent)
    await a_pass(world)
    assert "4 missing now" in await ask(admin, bot, f"guard confirm {words.pop()}")


async def test_administrators_are_told_once_and_can_confirm(sqlite_world: World) -> None:
    world = sqlite_world
    admin = await world.hs.person("admin")
    agents = await started(world, 6)
    bot = await dm_with_bot(admin)
    await ask(admin, bot, "set-management-room")
    for agent in agents[2:]:
        world.letta.remove_agent(agent)
    for _ in range(3):
        await a_pass(world)
    told = await said(admin, bot, "!letta guard confirm", timeout=20)
    (word,) = re.findall(r"guard confirm (\w{4})", told)
    assert "frozen" in await ask(admin, bot, "status")
    await ask(admin, bot, f"guard confirm {word}")
    await said(admin, bot, "Over, after", timeout=20)
    signs = [text[:1] for text in texts_of(admin, bot) if "4 agents are gone from Letta" in text]
    assert (signs.count("⚠"), signs.count("✅")) == (1, 1)
    assert sorted(await states(world)) == ["active"] * 2 + ["missing"] * 4
