"""A restore from before an agent had its room, and the room cannot be found again at once: what was said there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_letta import Behaviour

from .test_backup_since import heard, lose_all, nothing_twice, quiet, said, saved, talk
from .world import World, notices, until


async def agent_since_the_backup(world: World) -> tuple[Person, Path, str, str]:
    """Somebody, a backup, an agent made after it, and that one's own room, with her in it."""
    world.overrides["mirror.invite"] = ["@alice:test.local"]
    _, alice, _ = await talk(world)
    path = await saved(world)
    basil = world.letta.add_agent("Basil")
    assert world.bridge is not None
    await world.bridge.directory.refreshes.request()
    await world.mirrored()
    portal = await world.portal(basil)
    await alice.join(portal)
    return alice, path, basil, portal


@pytest.mark.parametrize("reached", ["answered", "runs", "never"])
async def test_a_portal_that_could_not_be_had_again(sqlite_world: World, reached: str) -> None:
    """In the agent's own room its main conversation was spoken in, whatever the bridge knows of the room now."""
    world = sqlite_world
    alice, path, basil, portal = await agent_since_the_backup(world)
    await alice.send(portal, "one")
    await until(lambda: len(said(world, alice, portal, basil)) == 1, why="no answer")
    await quiet(world)
    hold = world.letta.hold(basil) if reached == "runs" else None
    if reached == "answered":
        fault = world.hs.fail_next(r"/send/", status=503, times=None)
        await alice.send(portal, "two")
        await until(lambda: len(world.letta.turns(basil)) == 2 and world.letta.turns(basil)[1].outcome != "running")
        await until(lambda: fault.hits)
        await lose_all(world, path)
        fault.cancel()
    elif hold is not None:
        await alice.send(portal, "two")
        await hold.entered()
        await lose_all(world, path)
    else:
        await lose_all(world, path)
        await alice.send(portal, "two")
    refused = world.hs.fail_next(r"/createRoom$", status=403, errcode="M_FORBIDDEN", times=None)
    await world.start()
    bridge = world.bridge
    assert bridge is not None

    async def failed() -> bool:
        return any(row.agent_id == basil and row.error for row in await bridge.agents.all())

    await until(failed, why="the room is no trouble")
    doubtful = "SELECT COUNT(*) FROM turn WHERE agent_id = $1 AND state = 'running'"
    if hold is not None:
        await until(lambda: bridge.db.fetchval(doubtful, basil), 20.0, why="nobody looks for it")
        hold.release()
    await until(lambda: len(said(world, alice, portal, basil)) == 2, 20.0, why="no answer")
    await quiet(world)
    assert heard(world, basil) == ["one", "two"]
    nothing_twice(said(world, alice, portal, basil))
    assert notices(alice, portal) == []
    refused.cancel()
    world.letta.script(basil, Behaviour(text="three it is"))
    await world.restart()
    await world.mirrored()
    assert await world.portal(basil) == portal
    await alice.send(portal, "three")
    await alice.wait_message(portal, text=re.compile("three it is"))
    assert heard(world, basil) == ["one", "two", "three"]


@pytest.mark.parametrize("lost", ["since the backup", "all"])
async def test_a_message_to_an_agent_that_is_not_known_again_yet_is_no_command(sqlite_world: World, lost: str) -> None:
    """It comes before Letta could be asked who there is: the bot is in the room, and it was not spoken to."""
    world = sqlite_world
    alice, path, basil, portal = await agent_since_the_backup(world)
    if lost == "all":
        await world.stop()
        world.database = "sqlite:another.db"
    else:
        await lose_all(world, path)
    await alice.send(portal, "sync")
    fault = world.letta.fail_next(r"^/v1/agents/$", 503, times=1000)
    await world.start()
    tries = world.letta.requests.count(("GET", "/v1/agents/")) + 3
    await until(lambda: world.letta.requests.count(("GET", "/v1/agents/")) > tries, 20.0, why="nobody asks Letta")
    fault.times = 0
    await until(lambda: said(world, alice, portal, basil), 20.0, why="no answer")
    await quiet(world)
    assert heard(world, basil) == ["sync"]
    assert notices(alice, portal) == []
