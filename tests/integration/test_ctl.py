"""``letta-bridge ctl``: the socket, the answers, the exit codes, jobs that are followed, backups."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from letta_bridge.cli.exitcodes import Exit
from letta_bridge.commands.socket import LONGEST_PATH, SocketError, _listen
from letta_bridge.db import journal

from .command_kit import short_folder, through, typed
from .world import World, a_world, until


@pytest_asyncio.fixture
async def near(tmp_path: Path) -> AsyncIterator[tuple[World, Path]]:
    """A world whose socket and configuration are in a folder with a short name; with Ada, not started."""
    with short_folder() as folder:
        async with a_world(folder, "sqlite:bridge.db") as world:
            world.overrides["management.rooms"] = False
            world.letta.add_agent("Ada")
            config = folder / "config.yaml"
            yield world, config


async def started(near: tuple[World, Path], **overrides: Any) -> tuple[World, Path, Path]:
    world, config = near
    await world.start(**overrides)
    await world.mirrored()
    config.write_text(json.dumps(world.settings()))
    config.chmod(0o600)
    return world, config, world.folder / "letta-bridge.sock"


async def test_only_the_owner_can_use_the_socket_and_it_is_gone_afterwards(near: tuple[World, Path]) -> None:
    world, _, path = await started(near)
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    await world.stop()
    assert not path.exists()


async def test_what_a_dead_process_left_is_replaced_and_a_live_one_is_left_alone(
    near: tuple[World, Path], caplog: pytest.LogCaptureFixture
) -> None:
    world, _ = near
    path = world.folder / "letta-bridge.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    await started(near)
    assert (await through(path, "version"))[-1]["reply"]["ok"]
    await world.stop()
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        await world.start()
        assert any("another process listens on" in getattr(record, "why", "") for record in caplog.records)
        await world.stop()
        assert path.exists()
    path.unlink()
    path.write_text("no socket")
    await world.start()
    assert any("is no socket" in getattr(record, "why", "") for record in caplog.records)
    assert path.read_text() == "no socket"


def test_a_socket_is_taken_for_a_dead_ones_at_no_moment() -> None:
    with short_folder() as folder:
        listening, _ = _listen(folder / "a.sock")  # not served yet
        with contextlib.closing(listening), pytest.raises(SocketError, match="another process listens"):
            _listen(folder / "a.sock")
        assert (folder / "a.sock").exists()


async def test_an_export_of_large_messages_goes_on_where_it_ended(
    near: tuple[World, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _, _ = await started(near)
    alice = await world.hs.person("alice")
    room = await world.dm(alice, next(iter(world.letta.agents)))
    assert world.bridge is not None
    db = world.bridge.db
    for number in range(30):
        await alice.send(room, f"message {number} " + "x" * 2000)
    await alice.wait_message(room, text=re.compile("echo(?s:.*)message 29"), timeout=30.0)
    await until(lambda: _nothing_waits(world), why="something is still to be sent")
    monkeypatch.setattr(journal, "_BATCH", 5)
    everything, more = await journal.entries(db, journal.Wish(), 1000)
    assert not more
    parts: dict[str, dict[str, Any]] = {}
    begin, calls = 0.0, 0
    while more or not calls:
        found, more = await journal.entries(db, journal.Wish(since=begin), 1000, 8_000)
        assert found and found[-1]["at"] >= begin
        parts |= {entry["event"]: entry for entry in found}
        begin, calls = found[-1]["at"], calls + 1
        assert calls < 40
    assert calls > 1
    assert parts == {entry["event"]: entry for entry in everything}


async def _nothing_waits(world: World) -> bool:
    bridge = world.bridge
    assert bridge is not None
    return not await bridge.turns.open_lanes() and not await bridge.outbox.open_lanes()


async def test_a_path_that_is_too_long_names_the_key(
    near: tuple[World, Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = "x" * LONGEST_PATH
    _, config, _ = await started(near, management__socket=name)
    assert any("management.socket" in getattr(record, "why", "") for record in caplog.records)
    answer = await typed(capfd, config, "version")
    assert answer.code == Exit.NOT_RUNNING
    assert "management.socket" in answer.err


async def test_answers_and_exit_codes(near: tuple[World, Path], capfd: pytest.CaptureFixture[str]) -> None:
    world, config, path = await started(near)
    answer = await typed(capfd, config, "agents")
    assert answer.code == Exit.OK
    assert answer.out.startswith("One agent:")
    assert "Ada (@letta_" in answer.out, "Markdown is for clients"
    answer = await typed(capfd, config, "agents", "--json")
    assert [agent["name"] for agent in answer.data] == ["Ada"]
    answer = await typed(capfd, config, "--json", "status")
    assert answer.data["ready"] is True
    assert answer.data["agents"]["active"] == 1
    answer = await typed(capfd, config, "agnets")
    assert answer.code == Exit.FAILED
    assert "Did you mean agents" in answer.err
    assert not answer.out
    assert "I understand" in (await typed(capfd, config)).out
    assert "For example:\n\n- letta-bridge ctl agents" in (await typed(capfd, config, "help", "agents")).out
    assert "agents [search]" in (await typed(capfd, config, "agents", "--help")).out
    assert (await typed(capfd, config, "status", "--timeout")).code == Exit.USAGE
    await world.stop()
    answer = await typed(capfd, config, "status")
    assert answer.code == Exit.NOT_RUNNING
    assert f"the bridge is not running here (no socket at {path}); start it with" in answer.err
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    answer = await typed(capfd, config, "status")
    assert answer.code == Exit.NOT_RUNNING
    assert f"(nobody answers at the socket {path})" in answer.err


async def test_what_changes_something_is_logged_with_who_asked_and_without_its_text(
    near: tuple[World, Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, _, path = await started(near)
    caplog.set_level("INFO")
    await through(path, "pause", "Ada", "a secret reason")
    found = [record for record in caplog.records if getattr(record, "action", "") == "command"]
    assert [(record.command, record.who) for record in found] == [("pause", "ctl")]  # type: ignore[attr-defined]
    assert not any("secret reason" in str(record.__dict__) for record in found)


async def test_a_job_is_followed_to_its_end(near: tuple[World, Path], capfd: pytest.CaptureFixture[str]) -> None:
    world, config, _ = await started(near)
    answer = await typed(capfd, config, "summon", "Bea", "--owner", "@alice:test.local")
    assert answer.code == Exit.OK, answer
    assert "job" in answer.err
    assert answer.err.count("\n") > 3, "a line for each step"
    assert ") is there" in answer.out and "✅" not in answer.out, "each step is told once"
    assert any(agent.name == "Bea" for agent in world.letta.agents.values()), "made in Letta"
    answer = await typed(capfd, config, "jobs", "--all", "--json")
    assert [job["state"] for job in answer.data] == ["done"]


async def test_who_goes_away_leaves_the_job_to_the_bridge(
    near: tuple[World, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    world, config, _ = await started(near)
    await world.letta.stop()
    argv = [sys.executable, "-m", "letta_bridge", "ctl", "-c", str(config), "summon", "Bea"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in a shell's background ignores it
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE, preexec_fn=heard)
    assert process.stderr is not None
    said = await asyncio.wait_for(process.stderr.readline(), 30)
    process.send_signal(signal.SIGINT)
    said += await asyncio.wait_for(process.stderr.read(), 30)
    assert await process.wait() == 130
    assert b"job 1 goes on in the bridge; 'letta-bridge ctl jobs 1' shows it" in said
    answer = await typed(capfd, config, "summon", "Cid", "--timeout", "1")
    assert answer.code == Exit.FAILED
    assert "no end within 1 s; job 2 goes on" in answer.err
    assert len((await typed(capfd, config, "jobs", "--json")).data) == 2


async def test_open_for_somebody(near: tuple[World, Path]) -> None:
    world, _, path = await started(near)
    alice = await world.hs.person("alice")
    reply = (await through(path, "open", "Ada"))[-1]["reply"]
    assert not reply["ok"]
    assert "--user" in reply["text"]
    rooms = [(await through(path, "open", "Ada", "--user", alice.mxid))[-1]["reply"]["data"]["room"] for _ in range(2)]
    assert rooms[0] == rooms[1]
    assert await alice.wait_invite() == rooms[0]
    agent = next(iter(world.letta.agents))
    bridge = world.bridge
    assert bridge is not None
    await bridge.desk.settings.set(f"direct:{agent}:{alice.mxid}", "?")  # it ended before it had noted the room
    assert (await through(path, "open", "Ada", "--user", alice.mxid))[-1]["reply"]["data"]["room"] == rooms[0]
    await alice.join(rooms[0])
    assert (await through(path, "open", "Ada", "--user", alice.mxid))[-1]["reply"]["data"]["room"] == rooms[0]
    await alice.leave(rooms[0])
    fourth = (await through(path, "open", "Ada", "--user", alice.mxid))[-1]["reply"]["data"]
    assert fourth["room"] != rooms[0], "who left is not called back into the same room"
    await alice.join(fourth["room"])
    await alice.send(fourth["room"], "hello")
    await alice.wait_message(fourth["room"], sender=next(iter(world.puppet(agent) for agent in world.letta.agents)))


async def test_export_goes_to_standard_output(near: tuple[World, Path], capfd: pytest.CaptureFixture[str]) -> None:
    world, config, _ = await started(near)
    alice = await world.hs.person("alice")
    agent = next(iter(world.letta.agents))
    room = await world.dm(alice, agent)
    await alice.send(room, "good morning")
    await alice.wait_message(room, sender=world.puppet(agent), timeout=15)
    answer = await typed(capfd, config, "export", "Ada", "--since", "1h")
    assert answer.code == Exit.OK
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [(one["direction"], one["sender"]) for one in lines] == [("in", alice.mxid), ("out", world.puppet(agent))]
    assert lines[0]["body"] == "good morning"
    assert {"at", "room", "event", "agent", "state"} <= set(lines[0])
    assert abs(lines[0]["sent_at"] - lines[0]["at"]) < 60 and "sent_at" not in lines[1]
    assert "2 messages" in answer.err
    assert "is no time" in (await typed(capfd, config, "export", "--since", "soon")).err


async def test_backup_and_restore(near: tuple[World, Path], capfd: pytest.CaptureFixture[str]) -> None:
    world, config, path = await started(near)
    reply = (await through(path, "backup", "kept.gz", cwd=str(world.folder)))[-1]["reply"]
    assert reply["ok"], reply
    kept = world.folder / "kept.gz"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    again = (await through(path, "backup", "kept.gz", cwd=str(world.folder)))[-1]["reply"]
    assert not again["ok"]
    answer = await typed(capfd, config, "restore", str(kept), "--replace")
    assert answer.code == Exit.FAILED, "the bridge is running"
    await world.stop()
    answer = await typed(capfd, config, "restore", str(kept))
    assert answer.code == Exit.FAILED, "there is something in the database"
    answer = await typed(capfd, config, "restore", str(kept), "--replace")
    assert answer.code == Exit.OK, answer.err
    assert "Restored" in answer.out
    await world.start()
    assert "One agent" in (await typed(capfd, config, "agents")).out


async def test_rubbish_is_refused(near: tuple[World, Path]) -> None:
    _, _, path = await started(near)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=os.fspath(path))) as session:
        for body in (b"", b"[]", b'{"words": "x"}', b'{"words": [1]}', b"\xff"):
            async with session.post("http://bridge/v1/command", data=body) as response:
                assert response.status == 400
        async with session.post("http://bridge/v1/command", json={"words": ["ping"]}) as response:
            assert response.status == 200
