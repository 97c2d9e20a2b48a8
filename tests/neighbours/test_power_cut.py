"""The power fails: what was answered with 200 is on the disk by then."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from letta_bridge.db.database import Connection, Database
from letta_bridge.testing.stack.postgres import LocalPostgres

from ..crash.harness import crash_world
from ..integration.world import until
from .kit import said

_CALLS = "recvfrom,read,sendto,write,pwrite64,fsync,fdatasync"


@asynccontextmanager
async def traced(pid: int, out: Path) -> AsyncIterator[None]:
    """The system calls of a process and its threads, in their order, with what the descriptors stand for."""
    command = ["strace", "-f", "-qq", "-y", "-s", "8192", "-e", f"trace={_CALLS}", "-o", str(out), "-p", str(pid)]
    errors = out.with_suffix(".err")
    with errors.open("wb") as log:
        tracer = subprocess.Popen(command, stderr=log)
    try:
        await until(lambda: tracer.poll() is not None or _is_traced(pid), 10, why="strace does not attach")
        if tracer.poll() is not None:
            pytest.skip(f"processes cannot be traced here: {errors.read_text().strip()[:100]}")
        yield
    finally:
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
        await asyncio.to_thread(tracer.wait)


def _is_traced(pid: int) -> bool:
    """Every thread has a tracer."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks)


def finished_calls(trace: Path) -> list[str]:
    """The calls in the order in which they ended, each as one line."""
    begun: dict[str, str] = {}
    done = []
    for line in trace.read_text(errors="replace").splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
        elif call.startswith("<... "):
            done.append(begun.pop(thread, "") + call.partition("resumed>")[2])
        else:
            done.append(call)
    return done


def transaction_with(word: str, calls: list[str]) -> list[str]:
    """The calls from the request of the transaction that brings a word to its answer: other requests, and answers of
    others to us, may come in between.
    """
    asked, connection = -1, ""
    for number, call in enumerate(calls):
        if "PUT /_matrix/app/v1/transactions" in call:
            asked, connection = number, _descriptor(call)
        if asked >= 0 and word in call and _descriptor(call) == connection:
            break
    else:
        raise AssertionError("the transaction was not seen")
    for number, call in enumerate(calls[asked:], start=asked):
        if call.startswith("sendto(") and _descriptor(call) == connection and '"HTTP/1.1 200' in call:
            return calls[asked:number]
    raise AssertionError("the transaction was not answered")


def _descriptor(call: str) -> str:
    """Which file or connection a call is about."""
    return call.partition("(")[2].partition(",")[0]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
async def test_sqlite_syncs_its_log_before_the_answer_goes_out(tmp_path: Path) -> None:
    async with crash_world(tmp_path, "sqlite:bridge.db") as world:
        world.settings["appservice.ping_interval"] = 300.0
        agent = world.letta.add_agent("Scout")
        alice = await world.hs.person("alice")
        await world.start()
        room = await world.dm(alice, agent, "hello")
        await world.hs.wait_pushed()
        assert world.child is not None
        trace = tmp_path / "trace"
        async with traced(world.child.pid, trace):
            await alice.send(room, "kept?")
            await world.answered(alice, room, agent, "kept?")
        calls = finished_calls(trace)
    between = transaction_with("kept?", calls)
    written = [i for i, call in enumerate(between) if re.match(r"pwrite64\(\d+<[^>]*bridge\.db-wal>", call)]
    synced = [i for i, call in enumerate(between) if re.match(r"f(data)?sync\(\d+<[^>]*bridge\.db-wal>\)\s+= 0", call)]
    assert written, "nothing was written between the request and its 200"
    # what is written after the sync is the next transaction: the message is worked on already
    assert synced and written[0] < synced[-1], "\n".join(between)


@pytest.mark.postgres
async def test_postgres_has_flushed_its_log_when_a_write_returns(tmp_path: Path, postgres_url: str) -> None:
    """The server's own default here is not to wait. What it would lose then is measured on a connection beside."""
    db = Database(postgres_url, tmp_path)
    await db.open()
    beside, judge = await asyncpg.connect(postgres_url), await asyncpg.connect(postgres_url)
    insert = "INSERT INTO setting (name, value) VALUES ($1, '')"
    position = "SELECT pg_current_wal_insert_lsn()::text"
    flushed = await judge.prepare("SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn")

    async def kept(name: str) -> bool:
        async def work(conn: Connection) -> object:
            await conn.execute(insert, name)
            return await conn.fetchval(position)

        return bool(await flushed.fetchval(await db.write(work)))

    async def kept_by_default(name: str) -> bool:
        async with beside.transaction():
            await beside.execute(insert, name)
            at = await beside.fetchval(position)
        return bool(await flushed.fetchval(at))

    try:
        assert await beside.fetchval("SHOW synchronous_commit") == "off"
        assert all([await kept(f"ours {n}") for n in range(30)])
        assert not all([await kept_by_default(f"theirs {n}") for n in range(30)]), "this server syncs everything"
    finally:
        await beside.close()
        await judge.close()
        await db.close()


@pytest.mark.postgres
@pytest.mark.parametrize("default", ["off", "local", "remote_apply"])
async def test_postgres_waits_for_the_disk_whatever_the_role_says(
    tmp_path: Path, postgres_server: LocalPostgres, postgres_url: str, default: str
) -> None:
    name = postgres_url.rpartition("/")[2]
    await postgres_server.run_sql(f"ALTER ROLE postgres IN DATABASE {name} SET synchronous_commit = {default}")
    db = Database(postgres_url, tmp_path)
    await db.open()
    try:
        level = await db.write(lambda conn: conn.fetchval("SHOW synchronous_commit"))
        assert level == ("remote_apply" if default == "remote_apply" else "on")
    finally:
        await db.close()


@pytest.mark.postgres
async def test_a_postgres_that_never_syncs_is_warned_about(
    tmp_path: Path, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    db = Database(postgres_url, tmp_path)
    await db.open()
    await db.close()
    [record] = said(caplog, "database_unsynced")
    assert record.levelname == "WARNING" and record.off == "fsync full_page_writes"
