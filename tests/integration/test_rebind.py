"""``rebind``, ``sync`` and ``guard`` as an administrator uses them; and a rebind that is killed in the middle."""

from __future__ import annotations

import re
from typing import Any

import pytest

from letta_bridge.db.agents import AgentRow
from letta_bridge.mirror.maker import PORTAL_STATE

from .admin_kit import ask, dm_with_bot, said
from .world import BOT, World, settled, until


async def a_pass(world: World) -> dict[str, Any]:
    """One pass now; what it did."""
    assert world.bridge is not None
    refreshes = world.bridge.directory.refreshes
    result = await refreshes.wait(await refreshes.request(), 15)
    assert result is not None
    return dict(result.changes)


async def row(world: World, agent: str) -> AgentRow:
    assert world.bridge is not None
    found = await world.bridge.agents.get(agent)  # type: ignore[arg-type]
    assert found is not None, agent
    return found


async def state_of(world: World, room: str | None, kind: str) -> dict[str, Any]:
    assert room is not None
    return dict(world.hs.hs.rooms[room].content(kind, ""))


async def a_recreated_agent(world: World) -> tuple[str, str, Any, str, str]:
    """Ada was talked to, deleted, and made anew; both have a room: (old, new, admin, Ada's chat, the bot's chat)."""
    old = world.letta.add_agent("Ada")
    world.letta.add_agent("Basil")
    admin = await world.hs.person("admin")
    await world.start(mirror__invite=[admin.mxid])
    await world.mirrored()
    dm = await world.dm(admin, old, "hello")
    await admin.wait_message(dm, sender=world.puppet(old), text=re.compile("hello"))
    bot = await dm_with_bot(admin)
    world.letta.remove_agent(old)
    new = world.letta.add_agent("Ada")
    await a_pass(world)
    assert (await row(world, old)).state == "missing" and (await row(world, new)).state in ("new", "active")
    await until(lambda: _made(world, new), why="the new agent has no room")
    return old, new, admin, dm, bot


async def _made(world: World, agent: str) -> bool:
    found = await row(world, agent)
    return bool(found.portal_joined and found.in_space)


async def rebind(admin: Any, bot: str, old: str, new: str) -> None:
    """Ask for it, and type the line that the preview ends with."""
    shown = await ask(admin, bot, f"rebind {old} {new}")
    (line,) = re.findall(r"!letta (rebind .*)", shown)
    await admin.send(bot, line.rstrip("`"))


async def check_rebound(world: World, old: str, new: str, former: str | None, portal: str | None) -> None:
    """The new agent has the old one's user and room, once; the room it had points there."""
    assert world.bridge is not None
    rows = await world.bridge.agents.all()
    assert sorted(one.agent_id for one in rows if one.state == "active").count(new) == 1  # type: ignore[arg-type]
    assert old not in {one.agent_id for one in rows}
    now = await row(world, new)
    assert (now.mxid, now.portal_room, now.state) == (world.puppet(old), portal, "active")
    told = await state_of(world, portal, PORTAL_STATE)
    assert (told["agent_id"], told["puppet"]) == (new, world.puppet(old))
    if former is not None:
        past = await state_of(world, former, PORTAL_STATE)
        assert past["agent_id"] != new and past["replaced_by"] == portal
        (retired,) = [one for one in rows if one.portal_room == former]
        assert (retired.state, retired.dismissed) == ("archived", True)


async def test_a_recreated_agent_gets_the_room_and_the_chats_of_the_old_one(world: World) -> None:
    old, new, admin, dm, bot = await a_recreated_agent(world)
    portal, former = (await row(world, old)).portal_room, (await row(world, new)).portal_room
    assert await ask(admin, bot, "rebind Ada Ada") and "agents fit" in (await ask(admin, bot, "rebind Ada Ada"))
    await rebind(admin, bot, old, new)
    await said(admin, bot, "has the place of the old agent now", timeout=20)
    await check_rebound(world, old, new, former, portal)
    await a_pass(world)
    await check_rebound(world, old, new, former, portal)
    await ask(admin, bot, "sync --full", timeout=20)
    await a_pass(world)
    await check_rebound(world, old, new, former, portal)
    await admin.send(dm, "do you remember?")
    await admin.wait_message(dm, sender=world.puppet(old), text=re.compile("do you remember"), timeout=15)
    assert [turn.agent_id for turn in world.letta.turns()][-1] == new
    assert former is not None
    pointed = [event for event in world.hs.hs.rooms[former].timeline if str(portal) in str(event.content.get("body"))]
    assert [event.sender for event in pointed] == [BOT]
    twice = await ask(admin, bot, f"rebind {old} {new}")
    assert "There is no agent" in twice


async def test_what_waits_for_the_old_agent_is_answered_by_the_new_one(sqlite_world: World) -> None:
    world = sqlite_world
    old, new, admin, dm, bot = await a_recreated_agent(world)
    assert world.bridge is not None
    db = world.bridge.db
    await db.write(  # what was queued before it went, and waits for its next try
        lambda conn: conn.execute("UPDATE agent SET state = 'active', missing_since = NULL WHERE agent_id = $1", old)
    )
    await db.write(
        lambda conn: conn.execute(
            "INSERT INTO pause (subject, by_user, at) VALUES ($1, $2, 0)", f"agent:{old}", admin.mxid
        )
    )
    await admin.send(dm, "wait for it")
    await settled(world)
    await until(lambda: db.fetchval("SELECT 1 FROM turn WHERE agent_id = $1 AND state = 'queued'", old))
    await rebind(admin, bot, old, new)
    await said(admin, bot, "has the place of the old agent now", timeout=20)
    assert await db.fetchval("SELECT 1 FROM pause WHERE subject = $1", f"agent:{new}"), "its pause moved too"
    await ask(admin, bot, f"resume {new}")
    await admin.wait_message(dm, sender=world.puppet(old), text=re.compile("wait for it"), timeout=15)
    assert [turn.agent_id for turn in world.letta.turns()][-1] == new


async def test_rebind_says_no_and_why(sqlite_world: World) -> None:
    world = sqlite_world
    ada, basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    admin, alice = await world.hs.person("admin"), await world.hs.person("alice")
    await world.start()
    await world.mirrored()
    bot, hers = await dm_with_bot(admin), await dm_with_bot(alice)
    nobody = "agent-99999999-9999-4999-8999-999999999999"
    assert "is still in Letta" in await ask(admin, bot, "rebind Ada Basil")
    assert "same agent" in await ask(admin, bot, f"rebind Ada {ada}")
    assert "There is no agent" in await ask(admin, bot, "rebind Nobody Basil")
    assert "Letta has no agent" in await ask(admin, bot, f"rebind Ada {nobody}")
    assert "rebind" in await ask(admin, bot, "rebind Ada")
    assert "administrators" in await ask(alice, hers, f"rebind {ada} {basil}")


async def test_rebind_is_shown_first_and_done_when_its_line_is_typed(sqlite_world: World) -> None:
    world = sqlite_world
    old, new, admin, _, bot = await a_recreated_agent(world)
    third = world.letta.add_agent("Cleo")
    shown = await ask(admin, bot, f"rebind {old} {new}")
    for words in (old, new, world.puppet(old), "nothing takes that back", "is archived"):
        assert words in shown
    (word,) = re.findall(r"--confirm (\w{4})", shown)
    assert "Nothing was done" in await ask(admin, bot, f"rebind {old} {third} --confirm {word}")
    wrong = "0000" if word != "0000" else "0001"
    assert "Nothing was done" in await ask(admin, bot, f"rebind {old} {new} --confirm {wrong}")
    assert (await row(world, old)).mxid == world.puppet(old)
    await admin.send(bot, f"rebind {old} {new} --confirm {word}")
    await said(admin, bot, "has the place of the old agent now", timeout=20)
    assert (await row(world, new)).mxid == world.puppet(old)


async def test_sync_and_guard_in_a_room(world: World) -> None:
    agents = [world.letta.add_agent(f"Agent {number}") for number in range(5)]
    admin = await world.hs.person("admin")
    await world.start()
    await world.mirrored()
    bot = await dm_with_bot(admin)
    assert "nothing has changed" in await ask(admin, bot, "sync")
    assert "Every room was looked at" in await ask(admin, bot, "sync --full", timeout=20)
    assert "Nothing is frozen" in await ask(admin, bot, "guard")
    assert "nothing to confirm" in await ask(admin, bot, "guard confirm 4f2a")
    for agent in agents[1:]:
        world.letta.remove_agent(agent)
    assert "The guard holds something back" in await ask(admin, bot, "sync")
    shown = await ask(admin, bot, "guard")
    assert all(agent in shown for agent in agents[1:]) and agents[0] not in shown
    (word,) = set(re.findall(r"guard confirm (\w{4})", shown))
    assert "is not what is asked about now" in await ask(
        admin, bot, f"guard confirm {'0000' if word != '0000' else '1'}"
    )
    assert "4 missing now" in await ask(admin, bot, f"guard confirm {word}")
    assert "Nothing is frozen" in await ask(admin, bot, "guard")
    assert {(await row(world, agent)).state for agent in agents[1:]} == {"missing"}


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
async def test_a_rebind_that_is_killed_goes_on(sqlite_world: World, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each step its result is lost: it is made again, and nothing is there twice."""
    world = sqlite_world
    old, new, admin, _, bot = await a_recreated_agent(world)
    portal, former = (await row(world, old)).portal_room, (await row(world, new)).portal_room
    seen = 0

    def crash(point: str) -> None:
        nonlocal seen
        if point == "job.stepped":
            seen += 1
            if seen == step:
                raise RuntimeError("killed")

    monkeypatch.setattr("letta_bridge.faults.reach", crash)
    await rebind(admin, bot, old, new)
    await until(lambda: seen >= step, 20)
    await world.restart()
    await said(admin, bot, "has the place of the old agent now", timeout=20)
    await a_pass(world)
    await check_rebound(world, old, new, former, portal)
    assert former is not None
    bodies = [str(event.content.get("body")) for event in world.hs.hs.rooms[former].timeline]
    assert sum(str(portal) in body for body in bodies) == 1
