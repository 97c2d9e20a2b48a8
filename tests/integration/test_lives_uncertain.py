"""Agents' lives where something comes in between: a pass, a crash, another Letta, a job that cannot be finished."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest

from letta_bridge.db.agents import AgentRow
from letta_bridge.ids import AgentID
from letta_bridge.jobs import engine as engine_module
from letta_bridge.letta.backend import Agent
from letta_bridge.mirror.maker import PORTAL_STATE

from .life_kit import ADMIN, ask, carried_out, children, content, named, summoned
from .world import BOT, World, notices, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses shorter than in life."""
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(engine_module, "_LONGEST_PAUSE", 0.2)


async def started(world: World, *names: str) -> list[str]:
    ids = [world.letta.add_agent(name) for name in names]
    bridge = await world.start()
    if names:
        await world.mirrored()
    await until(lambda: bridge.directory.space_room, why="no space")
    return ids


async def row_of(world: World, agent_id: str) -> AgentRow:
    assert world.bridge is not None
    row = await world.bridge.agents.get(AgentID(agent_id))
    assert row is not None
    return row


async def a_pass(world: World) -> None:
    assert world.bridge is not None
    refreshes = world.bridge.directory.refreshes
    assert await refreshes.wait(await refreshes.request(), 15) is not None


def line_of(text: str) -> str:
    found = re.search(r"`!letta (.*)`", text)
    assert found, text
    return found[1]


# -- a pass and a command


async def test_an_agent_that_is_despawned_while_it_is_being_made_stays_so(world: World) -> None:
    await started(world)
    bridge = world.bridge
    assert bridge is not None
    slow = world.hs.delay(r"/createRoom$", 1.0)
    before = len(world.hs.requests)
    agent_id = world.letta.add_agent("Ada")
    bridge.lanes.wake("mirror")
    await until(lambda: any("/upload" in made.path for made in world.hs.requests[before:]), why="nothing was begun")
    job, text = await carried_out(world, "despawn Ada")
    slow.cancel()
    assert job.state == "done", text
    await a_pass(world)
    row = await row_of(world, agent_id)
    assert (row.state, row.dismissed) == ("archived", True)
    assert children(world.hs) == []
    assert not world.hs.hs.accounts.users[row.mxid].profile.get("displayname")


async def test_a_room_that_a_pass_made_first_says_who_summoned_the_agent(sqlite_world: World) -> None:
    world = sqlite_world
    (agent_id,) = await started(world, "Ada")
    bridge = world.bridge
    assert bridge is not None
    row = await row_of(world, agent_id)
    agent = await bridge.desk.backend.get_agent(row.agent_id)
    await bridge.desk.directory.staged.write_down(None, agent, origin="summoned", owner=ADMIN)
    await a_pass(world)
    said = content(world.hs, str(row.portal_room), PORTAL_STATE)
    assert (said["origin"], said["owner"]) == ("summoned", ADMIN)


async def test_an_answer_that_comes_late_brings_no_despawned_agent_back(sqlite_world: World) -> None:
    """It is being renamed while it is despawned."""
    world = sqlite_world
    (agent_id,) = await started(world, "Ada")
    bridge = world.bridge
    assert bridge is not None
    rename = bridge.desk.backend.rename_agent

    async def slow(asked: AgentID, name: str) -> Agent:
        job, _ = await carried_out(world, f"despawn {agent_id}")
        assert job.state == "done"
        return await rename(asked, name)

    backend = replace(bridge.desk, backend=_With(bridge.desk.backend, rename_agent=slow))
    bridge.carrier.desk = backend
    reply = await ask(world, "rename Ada Eve")
    row = await row_of(world, agent_id)
    assert (row.state, row.dismissed) == ("archived", True), reply.text


class _With:
    """A thing with some of its methods in the place of its own."""

    def __init__(self, real: Any, **methods: Any) -> None:
        self._real = real
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


# -- a job that cannot be finished


async def test_deleting_that_fails_brings_no_agent_back_that_was_despawned_before(sqlite_world: World) -> None:
    world = sqlite_world
    await started(world)
    row = await summoned(world, "summon Ada")
    await carried_out(world, "despawn Ada")
    world.letta.fail_next(r"/v1/agents/agent-", 422, times=1, method="DELETE")
    job, text = await carried_out(world, line_of((await ask(world, "despawn Ada --delete-agent")).text))
    assert job.state == "failed", text
    now = await row_of(world, row.agent_id)
    assert (now.state, now.dismissed) == ("archived", True)
    assert children(world.hs) == []
    assert named(world.letta, "Ada") == [row.agent_id]


async def test_nothing_is_called_deleted_that_another_letta_does_not_have(sqlite_world: World) -> None:
    world = sqlite_world
    await started(world)
    row = await summoned(world, "summon Ada")
    line = line_of((await ask(world, "despawn Ada --delete-agent")).text)
    before = world.letta.swap_database()
    job, text = await carried_out(world, line)
    assert job.state == "failed", text
    assert "deleted in Letta. Its room" not in text
    assert "another Letta" in text
    world.letta.swap_database(before)
    now = await row_of(world, row.agent_id)
    assert (now.state, now.dismissed) == ("active", False)


async def test_what_stays_of_a_recall_that_fails_is_not_called_taken_back(sqlite_world: World) -> None:
    world = sqlite_world
    (agent_id,) = await started(world, "Ada")
    await carried_out(world, "despawn Ada")
    world.hs.fail_next(r"/state/m\.room\.name", times=1, status=403, errcode="M_FORBIDDEN")
    job, text = await carried_out(world, f"recall {agent_id}")
    assert job.state == "failed", text
    assert not (await row_of(world, agent_id)).dismissed
    assert "taken back" not in text
    assert "stays" in text


# -- another Letta, and no certain answer


@pytest.mark.parametrize("how", ["another", "400", "503"])
async def test_nobody_is_replaced_on_uncertain_evidence(sqlite_world: World, how: str) -> None:
    """The old agent has to be certainly gone, from our Letta."""
    world = sqlite_world
    old, new = await started(world, "Ada", "Basil")
    if how == "another":
        world.letta.swap_database()
        new = world.letta.add_agent("Ada")
    else:
        world.letta.fail_next(rf"/v1/agents/{old}", int(how), times=10)
    reply = await ask(world, f"rebind {old} {new}")
    assert not reply.ok
    assert reply.job is None
    assert "confirm" not in reply.text
    assert (await row_of(world, old)).state == "active"


# -- carried out again


async def test_a_command_that_is_carried_out_again_means_the_same_agent(world: World) -> None:
    """It died after the renaming, before its answer: by then another agent fits the name."""
    ada, longer = await started(world, "Ada", "Ada Lovelace")
    bridge = world.bridge
    assert bridge is not None
    admin = await world.hs.person("admin", auto_join=True)
    room = await admin.create_dm(BOT)
    await admin.wait_joined(room, BOT)
    died = 0
    finish = bridge.desk.commands.finish

    async def once(*args: Any) -> None:
        nonlocal died
        died += 1
        if died == 1:
            raise RuntimeError("killed")
        await finish(*args)

    bridge.desk.commands.finish = once  # type: ignore[method-assign]
    await admin.send(room, "!letta rename Ada Bob")
    await until(lambda: died >= 1, why="never carried out")
    await world.restart()
    await until(lambda: notices(admin, room), 20, why="no answer")
    assert "called Bob" in notices(admin, room)[-1].body
    assert named(world.letta, "Bob") == [ada]
    assert named(world.letta, "Ada Lovelace") == [longer]
    bridge = world.bridge
    left = await bridge.db.fetchval("SELECT COUNT(*) FROM setting WHERE SUBSTR(name, 1, 6) = 'meant:'")
    assert left == 0


async def test_two_who_ask_at_once_begin_one_job(world: World) -> None:
    """In two rooms, so that neither waits for the other."""
    (agent_id,) = await started(world, "Ada")
    bridge = world.bridge
    assert bridge is not None
    lines = [f"despawn {agent_id}"] * 6
    replies = await asyncio.gather(*(ask(world, line) for line in lines))
    jobs = await bridge.desk.jobs.newest(20)
    assert len([job for job in jobs if job.kind == "despawn"]) == 1
    assert len([reply for reply in replies if reply.ok]) == 1
    refused = [reply.text for reply in replies if not reply.ok]
    assert all("is still under way" in text or "is despawned already" in text for text in refused)
