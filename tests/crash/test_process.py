"""The bridge as a process: how it ends, what it refuses, and what it says then."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sqlite3
import time

import pytest

from letta_bridge.testing.stack.postgres import LocalPostgres
from letta_bridge.testing.stack.process import free_port

from ..integration.world import until
from .harness import CrashWorld


async def test_sigterm_drains_and_the_answer_comes_after_the_restart(world: CrashWorld) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "hello")
    hold = world.letta.hold(agent)
    await alice.send(room, "slow")
    await hold.entered()
    puppet = world.puppet(agent)
    await world.hs.wait_until(lambda: puppet in alice.typing(room), 5, "typing")
    begun = time.monotonic()
    assert await world.terminate() == 0
    assert time.monotonic() - begun < 4
    assert puppet not in alice.typing(room), "still typing after it has gone"
    assert world.letta.turns(agent)[-1].outcome == "running", "the run was not left alone"
    await alice.send(room, "while stopped")
    await world.start()  # at once: an orderly stop gives everything back
    hold.release()
    await world.answered(alice, room, agent, "hello", "slow", "while stopped")
    assert world.heard(agent) == ["hello", "slow", "while stopped"]
    assert len(world.letta.turns(agent)) == 3


async def test_sigterm_when_idle_or_still_starting(sqlite_world: CrashWorld) -> None:
    world = sqlite_world
    await world.start()
    begun = time.monotonic()
    assert await world.terminate() == 0
    assert time.monotonic() - begun < 3
    await world.hs.stop()
    world.child = world.spawn()
    await until(lambda: "does not work" in world.log.read_text())
    assert await world.terminate() == 0
    await world.hs.start()


@pytest.mark.postgres
async def test_sigterm_while_the_database_is_away(postgres_world: CrashWorld, postgres_server: LocalPostgres) -> None:
    world = postgres_world
    await world.start()
    name = world.database.rpartition("/")[2]
    await postgres_server.run_sql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    await postgres_server.run_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    assert await world.terminate() == 0
    await postgres_server.run_sql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    await world.start()


async def test_a_second_process_is_refused_and_the_first_goes_on(world: CrashWorld) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "hello")
    hold = world.letta.hold(agent)
    await alice.send(room, "in the middle")
    await hold.entered()
    first, port = world.child, world.port
    assert first is not None
    world.port = free_port()
    code, said = await world.ended(world.spawn(log=world.folder / "second.log"))
    world.port = port
    assert code == 21
    if "postgres" in world.database:
        assert "another letta-bridge runs as replica 'crashing'" in said
    else:
        assert f"in use by another letta-bridge (process {first.pid})" in said
    assert "Traceback" not in said
    hold.release()
    await world.answered(alice, room, agent, "in the middle")
    assert "lane lost" not in world.log.read_text()


async def test_port_in_use(sqlite_world: CrashWorld) -> None:
    world = sqlite_world
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", world.port)
    try:
        code, said = await world.ended(world.spawn())
    finally:
        server.close()
        await server.wait_closed()
    assert code == 20
    assert f"another program listens on 127.0.0.1:{world.port}" in said
    assert "Traceback" not in said


async def test_address_that_is_not_this_machines(sqlite_world: CrashWorld) -> None:
    world = sqlite_world
    config = world.config()
    config["appservice"]["host"] = "203.0.113.5"  # an address for documentation: nobody has it
    code, said = await world.ended(world.spawn(config=json.dumps(config)))
    assert code == 20
    assert f"cannot listen on 203.0.113.5:{world.port}: this machine has no such address" in said
    assert "Traceback" not in said


async def test_homeserver_that_is_not_there_at_the_start_is_waited_for(sqlite_world: CrashWorld) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    world.hs.appservice_url = world.url
    url = world.hs.url
    await world.hs.stop()
    world.child = world.spawn()
    await until(lambda: world.log.exists() and f"no answer from {url}" in world.log.read_text(), why="nothing was said")
    assert await world.health("live") == 200
    assert await world.health("ready") == 503
    await world.hs.start()
    await world.ready()
    await world.dm(alice, agent, "hello")
    assert world.log.read_text().count(f"no answer from {url}") <= 3, "said again and again"
    assert "Traceback" not in world.log.read_text()


async def test_letta_that_is_not_there_at_the_start_is_waited_for(sqlite_world: CrashWorld) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "hello")
    world.kill()
    world.letta.kill()
    await world.start()
    await alice.send(room, "are you there?")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("(?i)not (be )?reach"), timeout=10)
    await world.letta.start()
    await world.answered(alice, room, agent, "are you there?", seconds=30)
    assert world.heard(agent) == ["hello", "are you there?"]


async def test_registration_of_another_bridge_is_warned_about(sqlite_world: CrashWorld) -> None:
    world = sqlite_world
    other = {
        "id": "letta",
        "url": world.url,
        "as_token": "another-as-token-of-sufficient-length",
        "hs_token": world.hs.appservice.hs_token,
        "sender_localpart": "lettabridge",
        "namespaces": {},
    }
    (world.folder / "registration.yaml").write_text(json.dumps(other))
    await world.start()
    said = world.log.read_text()
    assert "the registration file does not belong to the configuration" in said
    assert "as_token" in said
    assert "another-as-token" not in said and world.hs.appservice.as_token not in said


# -- configurations and databases that cannot be used: an exit code and a sentence, no traceback


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("homeserver: [unclosed", "config.yaml"),
        ("just text", "config.yaml"),
        ("", "the file is empty"),
        ("UNKNOWN", "letta.pol_interval.*poll_interval"),
        ("WRONG", "letta.poll_interval"),
        ("\x00\x01", "config.yaml"),
    ],
)
async def test_configuration_that_cannot_be_used(sqlite_world: CrashWorld, config: str, words: str) -> None:
    world = sqlite_world
    data = world.config()
    if config == "UNKNOWN":
        data["letta"]["pol_interval"] = 5
        config = json.dumps(data)
    elif config == "WRONG":
        data["letta"]["poll_interval"] = "often"
        config = json.dumps(data)
    code, said = await world.ended(world.spawn(config=config))
    assert code == 10, said
    assert re.search(words, said, re.DOTALL), said
    assert "Traceback" not in said
    assert world.hs.appservice.as_token not in said


async def test_databases_that_cannot_be_used(sqlite_world: CrashWorld) -> None:
    world = sqlite_world
    (world.folder / "corrupt.db").write_bytes(b"this is not a database " * 100)
    with sqlite3.connect(world.folder / "newer.db") as newer:
        newer.execute("CREATE TABLE letta_bridge_version (version INTEGER PRIMARY KEY)")
        newer.execute("INSERT INTO letta_bridge_version VALUES (99)")
    newer.close()
    for uri, words in [
        ("sqlite:corrupt.db", "corrupt.db cannot be opened: file is not a database"),
        ("sqlite:newer.db", "newer.db was written by a newer version of letta-bridge"),
        ("sqlite:not/here.db", "cannot be opened"),
        (f"postgresql://me:S3cr3t-word@127.0.0.1:{free_port()}/db", "PostgreSQL database db on 127.0.0.1 cannot be"),
    ]:
        world.database = uri
        log = world.folder / f"{len(uri)}.log"
        code, said = await world.ended(world.spawn(log=log))
        assert code == 12, said
        assert words in said
        assert "Traceback" not in said
        assert "S3cr3t-word" not in said


async def test_full_disk_is_a_500_and_nothing_is_lost(sqlite_world: CrashWorld) -> None:
    """The kernel refuses to let the process's files grow, as a full disk does."""
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "hello")
    assert world.child is not None
    pid = world.child.pid
    largest = max(path.stat().st_size for path in world.folder.iterdir() if path.is_file())
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest + 200_000, hard))
    big = [f"{number} " + "x" * 50_000 for number in range(40)]
    for text in big:
        await alice.send(room, text)
    await world.hs.wait_until(lambda: any(t.status == 500 for t in world.hs.transactions), 20, "a refused push")
    assert world.child.running
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    await world.hs.wait_pushed(30)
    await alice.send(room, "the end")
    await until(lambda: "the end" in world.heard(agent), 30)
    assert world.heard(agent) == ["hello", *big, "the end"]
