"""The database fails: the homeserver keeps what could not be stored, and what was under way is finished afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from letta_bridge import faults
from letta_bridge.db.database import Connection, Database
from letta_bridge.testing.fake_letta import Behaviour
from letta_bridge.testing.stack.postgres import LocalPostgres

from ..crash.harness import crash_world
from ..integration.world import World, a_world, until
from .kit import admin_reads, is_ready, scene
from .relay import Pipe

_HOLDER = """
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
conn.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
conn.execute("ROLLBACK")
"""


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Another process holds the write lock, as a backup or a curious admin does."""
    command = [sys.executable, "-c", _HOLDER, str(path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert await asyncio.to_thread(holder.stdout.readline) == "locked\n"
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            holder.stdin.write("\n")
            holder.stdin.close()
        await asyncio.to_thread(holder.wait)
        holder.stdout.close()


def database_file(world: World) -> Path:
    return world.folder / "bridge.db"


async def passed(seconds: float) -> None:
    """Let so much time go by."""
    begun = time.monotonic()
    await until(lambda: time.monotonic() - begun > seconds, seconds + 5)


async def test_sqlite_locked_for_three_seconds(sqlite_world: World) -> None:
    """Shorter than SQLite's own patience: it takes longer, that is all."""
    world = sqlite_world
    at = await scene(world)
    hold = world.letta.hold(at.agent)
    await at.say("one")
    await hold.entered()
    async with locked(database_file(world)):
        hold.release()
        await at.say("two")
        await passed(3.0)
    await at.answered("one", "two")
    at.once_in_order("one", "two")
    assert not any(transaction.status == 500 for transaction in world.hs.transactions)


@pytest.mark.parametrize(
    ("patience", "seconds"),
    [
        pytest.param(0.3, 2.5, id="shortened"),
        pytest.param(5.0, 30.0, id="thirty seconds", marks=[pytest.mark.full, pytest.mark.timeout(120)]),
    ],
)
async def test_sqlite_locked_for_longer_than_it_waits(
    sqlite_world: World, patience: float, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    world = sqlite_world
    at = await scene(world)
    await at.bridge.db.fetchval(f"PRAGMA busy_timeout = {round(patience * 1000)}")
    hold = world.letta.hold(at.agent)
    await at.say("one")
    await hold.entered()
    async with locked(database_file(world)):
        begun = time.monotonic()
        hold.release()
        await at.say("two")
        await world.hs.wait_until(
            lambda: any(t.status == 500 for t in world.hs.transactions), 3 * patience + 5, "a refused push"
        )
        assert "database is locked" in (await admin_reads(caplog, "intake_failed")).exc_text
        await is_ready(world, 503)
        await passed(seconds - (time.monotonic() - begun))
    await at.answered("one", "two", timeout=40)
    at.once_in_order("one", "two")
    assert at.told() == []
    await is_ready(world, 200)


async def test_many_who_wait_for_a_locked_sqlite_learn_it_together(tmp_path: Path) -> None:
    """Not one after the other, each after SQLite's whole patience: the homeserver's push would time out."""
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()
    try:
        await db.fetchval("PRAGMA busy_timeout = 400")

        async def work(conn: Connection) -> None:
            await conn.execute("INSERT INTO setting (name, value) VALUES ('x', '')")

        async with locked(tmp_path / "bridge.db"):
            begun = time.monotonic()
            outcomes = await asyncio.gather(*(db.write(work) for _ in range(10)), return_exceptions=True)
            assert time.monotonic() - begun < 2.0
        assert [str(outcome) for outcome in outcomes] == ["database is locked"] * 10
        await db.write(work)
    finally:
        await db.close()


@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_sqlite_fails_in_the_middle_of_a_turn(
    sqlite_world: World, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends while its answer cannot be written down: it is found again, not repeated."""
    world = sqlite_world
    at = await scene(world)
    hold = world.letta.hold(at.agent)
    world.letta.script(at.agent, Behaviour(text="re: <one> " + "lorem ipsum " * 20_000))
    await at.say("one")
    await hold.entered()
    await until(lambda: at.bridge.db.fetchval("SELECT COUNT(*) FROM turn WHERE state = 'running' AND run_id <> ''"))
    db = at.bridge.db
    if trouble == "full":
        await db.fetchval(f"PRAGMA max_page_count = {await db.fetchval('PRAGMA page_count')}")
    else:
        await db.fetchval("PRAGMA query_only = ON")
    hold.release()
    record = await admin_reads(caplog, "lane_error")
    assert ("full" if trouble == "full" else "readonly") in record.exc_text
    if trouble == "read-only":
        await at.say("two")
        await world.hs.wait_until(lambda: any(t.status == 500 for t in world.hs.transactions), 5, "a refused push")
        await is_ready(world, 503)
    await db.fetchval("PRAGMA max_page_count = 1000000" if trouble == "full" else "PRAGMA query_only = OFF")
    if trouble == "full":
        await at.say("two")
    await at.answered("one", "two", timeout=30)
    at.once_in_order("one", "two")
    assert at.told() == []


async def test_sqlite_file_whose_inside_is_damaged_is_said_in_words(tmp_path: Path) -> None:
    """The head of the file is fine, so it opens; what cannot be read shows only when it is used."""
    async with crash_world(tmp_path, "sqlite:bridge.db") as world:
        agent = world.letta.add_agent("Scout")
        alice = await world.hs.person("alice")
        await world.start()
        await world.dm(alice, agent, "hello")
        assert await world.terminate() == 0
        path = tmp_path / "bridge.db"
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
        code, said = await world.ended(world.spawn(log=tmp_path / "damaged.log"))
        assert code == 12, said
        assert "bridge.db" in said and "malformed" in said
        assert "Traceback" not in said


# -- a real file system without space


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes; only root can make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(ballast: Path) -> None:
    """Take the space that is left."""
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, b"x" * 4096)
    os.close(fd)


@pytest.mark.full
async def test_disk_full_at_every_moment(small_disk: Path) -> None:
    async with crash_world(small_disk, "sqlite:bridge.db") as world:
        agent = world.letta.add_agent("Scout")
        alice = await world.hs.person("alice")
        await world.start()
        room = await world.dm(alice, agent, "hello")
        hold = world.letta.hold(agent)
        await alice.send(room, "before")
        await hold.entered()
        ballast = small_disk / "ballast"
        fill(ballast)
        hold.release()
        for number in range(5):
            await alice.send(room, f"full {number} " + "x" * 20_000)
        await world.hs.wait_until(lambda: any(t.status == 500 for t in world.hs.transactions), 20, "a refused push")
        assert world.child is not None and world.child.running
        assert "action=intake_failed" in world.log.read_text()
        ballast.unlink()
        await world.hs.wait_pushed(60)
        await alice.send(room, "after")
        await until(lambda: "after" in world.heard(agent), 40)
        heard = world.heard(agent)
        assert [text[:6] for text in heard] == ["hello", "before", *(f"full {n}" for n in range(5)), "after"]
        await world.answered(alice, room, agent, "before", "after", seconds=40)


@pytest.mark.full
async def test_read_only_file_system_at_the_start(small_disk: Path, tmp_path: Path) -> None:
    async with crash_world(small_disk, "sqlite:bridge.db") as world:
        await world.start()
        assert await world.terminate() == 0
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        world.folder = tmp_path
        world.database = f"sqlite:{small_disk / 'bridge.db'}"
        code, said = await world.ended(world.spawn(log=tmp_path / "ro.log"))
        assert code == 12, said
        assert "bridge.db cannot be opened" in said and "Read-only file system" in said
        assert "Traceback" not in said


# -- PostgreSQL


@pytest.mark.postgres
@pytest.mark.parametrize("cut", ["after", pytest.param("before", marks=pytest.mark.full)])
async def test_the_connection_breaks_at_a_commit(
    tmp_path: Path,
    postgres_server: LocalPostgres,
    postgres_url: str,
    cut: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At each kind of commit, before PostgreSQL sees it, and after, when the bridge does not learn that it was done."""
    points = ("intake.stored", "dispatch.decided", "turn.named", "turn.ended", "send.after")
    async with Pipe("127.0.0.1", postgres_server.port) as pipe:
        database = postgres_url.replace(f":{postgres_server.port}/", f":{pipe.port}/")
        async with a_world(tmp_path, database) as world:
            at = await scene(world)
            texts: list[str] = []
            for point in points:
                armed = [point]

                def arm(reached: str, armed: list[str] = armed) -> None:
                    if armed == [reached]:
                        armed.clear()
                        pipe.cut = cut

                monkeypatch.setattr(faults, "hook", arm)
                texts.append(point)
                await at.say(point)
                await at.answered(point, timeout=20)
                await until(lambda: not armed and not pipe.cut, why=f"nothing was cut at {point}")  # noqa: B023
            assert pipe.cuts == len(points)
            at.once_in_order(*texts)
            assert at.told() == []
            await at.settled()
            refused = [t for t in world.hs.transactions if t.status == 500]
            assert len(refused) >= 1, "200 for what was not known to be stored"
