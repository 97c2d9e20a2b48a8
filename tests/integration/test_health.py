"""Health that means it: what a load balancer, a container runtime and a person are told while something is down."""

from __future__ import annotations

import asyncio
import gc
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from letta_bridge.db.database import Database
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.stack.postgres import LocalPostgres
from letta_bridge.web import health

from .world import World, a_world, until


async def ask(world: World, which: str = "ready") -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{world.port}/_matrix/mau/{which}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.json()


async def wait_for(world: World, status: int, timeout: float = 10.0, **checks: bool | None) -> dict[str, Any]:
    """Wait until health says this; the report."""
    last: list[Any] = []

    async def said() -> bool:
        code, report = await ask(world)
        last[:] = [code, report]
        return code == status and all(report["checks"][name]["ok"] is ok for name, ok in checks.items())

    try:
        await until(said, timeout)
    except AssertionError as late:
        raise AssertionError(f"never {status} with {checks}; at last {last}") from late
    assert (await ask(world, "live"))[0] == 200, "alive all the time"
    report: dict[str, Any] = last[1]
    return report


async def scene(world: World, **overrides: Any) -> tuple[str, Person, str]:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(**overrides)
    room = await world.dm(alice, agent, "hello")
    await answered(world, alice, room, agent, "hello")
    return agent, alice, room


async def answered(world: World, person: Person, room: str, agent: str, text: str) -> None:
    await person.wait_message(room, sender=world.puppet(agent), text=re.compile(f"echo: (?s:.*){text}"), timeout=20)


@asynccontextmanager
async def locked(world: World) -> AsyncIterator[None]:
    """Somebody else holds what every small write needs, so that writes hang instead of failing."""
    if world.database.startswith("sqlite:"):
        with closing(sqlite3.connect(world.folder / "bridge.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
        return
    other = await asyncpg.connect(world.database)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE setting IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await other.close()


async def test_everything_works(world: World) -> None:
    before = int(time.time())
    await scene(world, database__replica_id="left")
    report = await wait_for(world, 200, letta=True)
    assert (report["ready"], report["degraded"], report["stopping"], report["replica"]) == (True, False, False, "left")
    assert list(report["checks"]) == ["database", "homeserver_out", "homeserver_in", "letta"]
    for check in report["checks"].values():
        assert check["ok"] is True
        assert time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before)) <= check["since"] <= "2100"
    bridge = world.bridge
    assert bridge is not None
    assert await bridge.db.fetchval("SELECT COUNT(*) FROM setting WHERE name LIKE 'probe%'") == 0, "leaves nothing"


async def test_a_database_that_hangs_is_not_ready_within_three_seconds_and_ready_again_after(world: World) -> None:
    agent, alice, room = await scene(world)
    async with locked(world):
        began = time.monotonic()
        report = await wait_for(world, 503, 4.0, database=False)
        assert time.monotonic() - began < 3.5
        assert report["checks"]["database"]["detail"] == "no answer within 2 s"
        began = time.monotonic()
        await asyncio.gather(*(ask(world) for _ in range(20)))
        assert time.monotonic() - began < 3.0, "those who poll wait together, and for one probe"
    await wait_for(world, 200, 20.0, database=True)
    await alice.send(room, "still there?")
    await answered(world, alice, room, agent, "still there")


async def test_a_database_that_is_gone(tmp_path: Path, postgres_server: LocalPostgres, postgres_url: str) -> None:
    async with a_world(tmp_path, postgres_url) as world:
        await scene(world)
        await gone_and_back(world, postgres_server, postgres_url.rpartition("/")[2])


async def gone_and_back(world: World, postgres_server: LocalPostgres, name: str) -> None:
    await postgres_server.run_sql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    await postgres_server.run_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    began = time.monotonic()
    report = await wait_for(world, 503, 5.0, database=False)
    assert time.monotonic() - began < 3.5
    assert name not in str(report)
    await postgres_server.run_sql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    await wait_for(world, 200, 20.0, database=True)


async def test_a_database_that_takes_no_writes(sqlite_world: World) -> None:
    world = sqlite_world
    await scene(world)
    bridge = world.bridge
    assert bridge is not None
    await bridge.db.write(_no_probes)
    report = await wait_for(world, 503, database=False)
    assert report["checks"]["database"]["detail"] == "disk is full"


async def _no_probes(conn: Any) -> None:
    await conn.execute(
        "CREATE TRIGGER full BEFORE INSERT ON setting WHEN NEW.name LIKE 'probe:%' "
        "BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
    )


async def test_a_homeserver_that_is_down(sqlite_world: World) -> None:
    world = sqlite_world
    await scene(world)
    since = (await ask(world))[1]["checks"]["homeserver_out"]["since"]
    await world.hs.stop()
    report = await wait_for(world, 503, homeserver_out=False, homeserver_in=None)
    assert report["checks"]["homeserver_out"]["detail"] == "no answer"
    assert report["checks"]["homeserver_out"]["since"] >= since
    assert report["checks"]["database"]["ok"] is True
    await world.hs.start()
    await wait_for(world, 200, homeserver_out=True, homeserver_in=True)


async def test_a_homeserver_that_refuses_the_token(sqlite_world: World) -> None:
    world = sqlite_world
    await scene(world)
    fault = world.hs.fail_next(r"/appservice/.*/ping", status=401, errcode="M_UNKNOWN_TOKEN", times=None)
    report = await wait_for(world, 503, homeserver_out=False, homeserver_in=None)
    assert report["checks"]["homeserver_out"]["detail"] == "as_token refused"
    fault.cancel()
    await wait_for(world, 200, homeserver_out=True)


async def test_a_homeserver_that_does_not_reach_the_bridge(sqlite_world: World) -> None:
    world = sqlite_world
    await scene(world)
    right, world.hs.appservice_url = world.hs.appservice_url, "http://127.0.0.1:9"
    report = await wait_for(world, 503, homeserver_out=True, homeserver_in=False)
    assert report["checks"]["homeserver_in"]["detail"] == "cannot connect"
    world.hs.appservice_url = right
    await wait_for(world, 200, homeserver_in=True)


async def test_a_homeserver_that_hangs_is_given_up_in_time(sqlite_world: World, monkeypatch: Any) -> None:
    world = sqlite_world
    monkeypatch.setattr("letta_bridge.matrix.ping._ROUND", 0.5)
    await scene(world)
    slow = world.hs.delay(r"/appservice/.*/ping", 30.0)
    await wait_for(world, 503, homeserver_out=False)
    slow.cancel()
    await wait_for(world, 200, homeserver_out=True)


async def test_letta_down_is_degraded_and_still_ready(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await scene(world, letta__api_key="key-of-the-letta")
    world.letta.kill()
    await alice.send(room, "anybody?")
    report = await wait_for(world, 200, letta=False)
    assert (report["ready"], report["degraded"]) == (True, True)
    assert report["checks"]["letta"]["detail"] == "unreachable"
    await world.letta.start()
    await answered(world, alice, room, agent, "anybody")
    report = await wait_for(world, 200, letta=True)
    assert report["degraded"] is False


@pytest.mark.parametrize("sqlite_world", [{"password": "right"}], indirect=True)
async def test_a_letta_that_refuses_the_key_is_degraded(sqlite_world: World) -> None:
    await sqlite_world.start(letta__api_key="wrong-key-of-letta")
    report = await wait_for(sqlite_world, 200, letta=False)
    assert (report["degraded"], report["checks"]["letta"]["detail"]) == (True, "bad_key")
    assert "wrong-key-of-letta" not in str(report)


async def test_a_letta_that_nobody_asked_yet_is_unknown(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.fail_next(r"/v1/agents", "hang")
    await world.start()
    report = await wait_for(world, 200, letta=None)
    assert (report["degraded"], report["checks"]["letta"]["detail"]) == (False, "unknown")


async def test_a_failing_model_says_nothing_against_letta(sqlite_world: World) -> None:
    world = sqlite_world
    _, alice, room = await scene(world, limits__turn_attempts=1)
    await alice.send(room, "#error 500")
    await alice.wait_message(room, text=re.compile("model behind me failed"), timeout=10)
    assert (await wait_for(world, 200, letta=True))["degraded"] is False


async def test_while_draining_it_is_stopping(sqlite_world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "letta_bridge")
    world = sqlite_world
    agent, alice, room = await scene(world, shutdown__drain_s=20.0)
    hold = world.letta.hold(agent)
    await alice.send(room, "slow one")
    await hold.entered()
    stopping = asyncio.create_task(world.stop())
    report = await wait_for(world, 503)
    assert (report["ready"], report["stopping"]) == (False, True)
    assert "stopping" in [getattr(record, "action", "") for record in caplog.records], "and the log says so too"
    hold.release()
    await stopping


async def test_polling_asks_the_database_once_a_second(sqlite_world: World, monkeypatch: Any) -> None:
    world = sqlite_world
    await scene(world)
    probes: list[float] = []
    small_write = health.Health._small_write

    async def counted(self: health.Health, conn: Any) -> None:
        probes.append(time.monotonic())
        await small_write(self, conn)

    monkeypatch.setattr(health.Health, "_small_write", counted)
    began = time.monotonic()
    while time.monotonic() - began < 1.5:
        assert (await ask(world))[0] == 200
    assert len(probes) <= 3


async def test_a_probe_that_fails_after_it_was_given_up_is_no_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its answer was given when it was given up; what comes of it later would stand there as a traceback of asyncio."""
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(health, "CACHE_SECONDS", 0.0)
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()
    try:
        await db.fetchval("PRAGMA busy_timeout = 400")
        told = health.Health(db, "left")
        told.start()
        with closing(sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            report = await told.report()
            assert report["checks"]["database"]["detail"] == "no answer within 0 s"
            given_up = told._probe
            assert given_up is not None
            await asyncio.wait({given_up})
            await told.report()  # asks anew and forgets the one that was given up
            other.execute("ROLLBACK")
        del given_up
        gc.collect()
        await told.stop()
    finally:
        await db.close()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
