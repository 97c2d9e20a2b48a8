"""What waits for a neighbour goes on when that is reached again, however long its next try was put off."""

from __future__ import annotations

import re

import pytest

from letta_bridge.jobs import engine as engine_module
from letta_bridge.letta.errors import Kind, LettaError
from letta_bridge.matrix.homeserver import HomeserverError

from .test_jobs import Script, begin, ended, install
from .world import World, until

_LATER = "(SELECT MAX(created_at) FROM turn) + 250"  # more than five minutes would be a clock gone wrong


async def test_letta_is_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 300.0)
    ada = world.letta.add_agent("Ada")
    alice = await world.hs.person("alice")
    await world.start(letta__poll_interval=0.5)
    await world.mirrored()
    room = await world.dm(alice, ada, "first")
    await alice.wait_message(room, sender=world.puppet(ada), text=re.compile("first"))
    bridge = world.bridge
    assert bridge is not None
    world.letta.kill()
    await until(lambda: bridge.health.known("letta")[0] is False, why="Letta's absence is not seen")
    await alice.send(room, "second")
    await alice.wait_message(room, text=re.compile("cannot reach Letta"))
    script = Script()
    script.fails["one"] = [LettaError(Kind.UNREACHABLE, "away"), None]
    job = await begin(world, install(world, script))
    await until(lambda: bridge.db.fetchval("SELECT COUNT(*) FROM job WHERE attempts = 1"), why="the job does not wait")
    await bridge.db.write(
        lambda conn: conn.execute(f"UPDATE turn SET not_before = {_LATER} WHERE wait_reason = 'unreachable'")
    )
    await world.letta.start()
    assert (await ended(world, job, 20)).state == "done"
    await alice.wait_message(room, sender=world.puppet(ada), text=re.compile("second"), timeout=20)


async def test_what_waits_for_something_else_goes_on_waiting(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 300.0)
    world = sqlite_world
    world.letta.add_agent("Ada")
    await world.start(letta__poll_interval=0.5)
    await world.mirrored()
    bridge = world.bridge
    assert bridge is not None
    script = Script()
    script.fails["one"] = [LettaError(Kind.BUSY, "busy"), LettaError(Kind.UNREACHABLE, "away"), None]
    engine = install(world, script)
    waits = await begin(world, engine, key="busy")
    await until(lambda: bridge.db.fetchval("SELECT COUNT(*) FROM job WHERE attempts = 1"), why="the job does not wait")
    world.letta.kill()
    await until(lambda: bridge.health.known("letta")[0] is False, why="Letta's absence is not seen")
    goes_on = await begin(world, engine, key="away")
    counted = "SELECT COUNT(*) FROM job WHERE attempts = 1 HAVING COUNT(*) = 2"
    await until(lambda: bridge.db.fetchval(counted), why="the second job does not wait")
    await world.letta.start()
    assert (await ended(world, goes_on, 20)).state == "done"
    job = await bridge.desk.jobs.get(waits)
    assert job is not None and job.open and job.wait > 100


async def test_the_homeserver_is_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 300.0)
    await world.start()
    bridge = world.bridge
    assert bridge is not None
    away = HomeserverError(0, "", "connection refused")
    script = Script()
    script.fails["one"] = [away, None]
    job = await begin(world, install(world, script))
    await until(lambda: bridge.db.fetchval("SELECT COUNT(*) FROM job WHERE attempts = 1"), why="the job does not wait")
    bridge.health.pinged(away)
    await until(lambda: bridge.db.fetchval("SELECT COUNT(*) FROM alarm"), why="its absence is not seen")
    bridge.health.pinged(None)
    assert (await ended(world, job, 20)).state == "done"
