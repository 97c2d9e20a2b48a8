"""Everything that can happen, at DEBUG: no secret in the log at any level, and nobody's words at INFO or above."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import pytest_asyncio

from letta_bridge import logs
from letta_bridge.testing.fake_homeserver import FakeHomeserver, Person
from letta_bridge.testing.fake_letta import Behaviour, FakeLetta

from .world import World, notices, settled, until

LETTA_KEY = "k3y-of/the+letta=secret"
DB_PASSWORD = "pässword/of the:database"
SPOKEN = "zebra"
"""Begins everything that people and agents say here, and that is in a topic; followed by a word that says where."""


@pytest.fixture(
    params=[pytest.param("sqlite", marks=pytest.mark.full), pytest.param("postgres", marks=pytest.mark.postgres)]
)
def database_uri(request: pytest.FixtureRequest) -> str:
    """PostgreSQL has a password and names the rows that it refuses."""
    return "sqlite:bridge.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Where the whole log goes, at DEBUG, third parties included."""
    root, ours = logging.root, logging.getLogger("letta_bridge")
    before = (root.handlers[:], root.level, ours.level)
    yield io.StringIO()
    root.handlers[:], level, own = before
    root.setLevel(level)
    ours.setLevel(own)


@pytest_asyncio.fixture
async def world(tmp_path: Path, database_uri: str) -> AsyncIterator[World]:
    """With secrets of its own everywhere, those in addresses included."""
    uri = database_uri.replace("//postgres:postgres@", f"//postgres:{quote(DB_PASSWORD, safe='')}@")
    async with FakeHomeserver(backoff_scale=0.02) as hs, FakeLetta(password=LETTA_KEY) as letta:
        made = World(hs, letta, tmp_path, uri)
        try:
            yield made
        finally:
            await made.stop()


def spoken(where: str) -> str:
    return f"{SPOKEN}-{where}"


async def said(person: Person, room: str, text: str, timeout: float = 20.0) -> None:
    await until(
        lambda: any(text in message.body for message in person.messages(room)), timeout, why=f"nobody said {text}"
    )


async def test_the_log_of_everything(world: World, log: io.StringIO) -> None:
    world.overrides |= {"letta.api_key": LETTA_KEY, "limits.turn_attempts": 2, "conversation.first_event_s": 0.1}
    secrets = world.config().secrets()
    assert {LETTA_KEY, world.hs.appservice.as_token, world.hs.appservice.hs_token} <= secrets
    logs.setup("DEBUG", "json", secrets, log)
    world.letta.reply = lambda texts: spoken("reply")
    agent = world.letta.add_agent("Ada", description=spoken("topic"), metadata={"avatar": "http://127.0.0.1:9/a.png"})
    other = world.letta.add_agent("Basil", description=spoken("topic"))
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob", auto_join=True)
    await world.start()
    await world.mirrored()
    room = await conversation(world, alice, bob, agent, other)
    await failing_model(world, alice, room, agent)
    await letta_away(world, alice, room, agent)
    await homeserver_fails(world, alice, room)
    await hostile(world, room, alice)
    await database_fails(world, alice, room)
    await world.restart()
    await alice.send(room, spoken("after"))
    await until(lambda: heard(world, agent, "after"), 20)
    await wrong_tokens(world)
    logging.getLogger("another.library").debug("heard")
    await world.stop()
    judge(log.getvalue(), secrets)


def heard(world: World, agent: str, where: str) -> bool:
    return any(spoken(where) in text for turn in world.letta.turns(agent) for text in turn.texts)


async def conversation(world: World, alice: Person, bob: Person, agent: str, other: str) -> str:
    """A DM, a group, an edit, a redaction, a stop."""
    room = await world.dm(alice, agent, spoken("dm"))
    await said(alice, room, spoken("reply"))
    group = await alice.create_room(invite=[bob.mxid, world.puppet(agent), world.puppet(other)])
    for one in (agent, other):
        await alice.wait_joined(group, world.puppet(one))
    await bob.send(group, f"Ada: {spoken('group')}")
    await until(lambda: heard(world, agent, "group"))
    hold = world.letta.hold(agent)
    await alice.send(room, spoken("running"))
    await hold.entered()
    waiting = await alice.send(room, spoken("waiting"))
    await alice.edit(room, waiting, spoken("edited"))
    doomed = await alice.send(room, spoken("doomed"))
    await alice.redact(room, doomed, spoken("reason"))
    await alice.send(room, "!stop")
    await said(alice, room, "Stopped")
    hold.release()
    await settled(world)
    return room


async def failing_model(world: World, alice: Person, room: str, agent: str) -> None:
    """The provider repeats the prompt in its error, in a stream and in what a run keeps."""
    quoting = f" for the input {spoken('prompt')}"
    world.letta.script(agent, *(Behaviour(error=code, says=quoting) for code in (500, 500)))
    await alice.send(room, spoken("asked"))
    await said(alice, room, "model behind me failed")
    world.letta.script(agent, Behaviour(error=400, says=quoting))
    await alice.send(room, spoken("again"))
    await said(alice, room, "refused the request")
    world.letta.script(agent, Behaviour(error_after=2), Behaviour(error_after=2))
    await alice.send(room, spoken("broken"))
    await until(lambda: len([one for one in notices(alice, room) if "failed several times" in one.body]) == 2, 20)


async def letta_away(world: World, alice: Person, room: str, agent: str) -> None:
    """Letta is killed in the middle of an answer, and comes back."""
    hold = world.letta.hold(agent)
    await alice.send(room, spoken("killed"))
    await hold.entered()
    world.letta.kill()
    await said(alice, room, "cannot reach Letta")
    # from then on it is known that whatever Letta was doing has ended: its own record will say "running" for ever
    seen = "SELECT 1 FROM setting WHERE name = 'letta_refused_at'"
    bridge = world.bridge
    assert bridge is not None
    await until(lambda: bridge.db.fetchval(seen), 30, why="nobody saw that nothing listens at Letta's address")
    hold.release()
    await world.letta.start()
    await alice.send(room, spoken("back"))
    await until(lambda: heard(world, agent, "back"), 30)


async def homeserver_fails(world: World, alice: Person, room: str) -> None:
    """It fails on sends, refuses one for good, and is away for a while."""
    before = len(alice.messages(room))
    world.hs.fail_next(r"/send/", status=500, times=2)
    world.hs.fail_next(r"/receipt/", status=503, times=1)
    await alice.send(room, spoken("five hundred"))
    await until(lambda: len(alice.messages(room)) > before + 1, 20)
    world.hs.fail_next(r"/send/", status=413, errcode="M_TOO_LARGE")
    await alice.send(room, spoken("large"))
    await said(alice, room, "homeserver did not take my answer")
    assert world.bridge is not None
    bridge = world.bridge
    await world.hs.stop()
    await until(lambda: not bridge.ready)
    await world.hs.start()
    await until(lambda: bridge.ready)


async def hostile(world: World, room: str, alice: Person) -> None:
    """Transactions of a wrong homeserver, and events that are none."""
    body = json.dumps({"events": [{"content": {"body": spoken("stranger")}}]}).encode()
    assert (await world.hs.push_raw(body, token="not-the-hs-token"))[0] == 403
    right = world.hs.appservice.hs_token
    assert (await world.hs.push_raw(body, query_token="not-the-hs-token"))[0] == 403
    assert (await world.hs.push_raw(body, query_token=right))[0] == 200
    for events in (
        [spoken("text"), None, 1, [spoken("list")]],
        [{"event_id": "$x", "room_id": room, "sender": alice.mxid, "type": "m.room.message", "content": spoken("no")}],
        [{"event_id": "$y", "room_id": room, "sender": alice.mxid, "type": "m.room.message", "content": {"body": 7}}],
    ):
        assert (await world.hs.push_raw(json.dumps({"events": events}).encode()))[0] == 200
    broken = f'{{"events": [{{"body": "{spoken("broken json")}"'.encode()
    assert (await world.hs.push_raw(broken))[0] == 200


async def database_fails(world: World, alice: Person, room: str) -> None:
    """A database that names the row that it refuses."""
    assert world.bridge is not None
    db = world.bridge.db
    if db.postgres:
        await db.write(
            lambda conn: conn.execute("ALTER TABLE inbox ADD CONSTRAINT odd CHECK (body NOT LIKE '%refused%')")
        )
    else:
        await db.write(
            lambda conn: conn.execute(
                "CREATE TRIGGER odd BEFORE INSERT ON inbox WHEN NEW.body LIKE '%refused%' "
                "BEGIN SELECT RAISE(ABORT, 'odd'); END"
            )
        )
    failed = {"event_id": "$r", "room_id": room, "sender": alice.mxid, "type": "m.room.message"}
    body = json.dumps({"events": [{**failed, "content": {"body": spoken("refused")}}]}).encode()
    assert (await world.hs.push_raw(body))[0] == 500
    drop = "ALTER TABLE inbox DROP CONSTRAINT odd" if db.postgres else "DROP TRIGGER odd"
    await db.write(lambda conn: conn.execute(drop))


async def wrong_tokens(world: World) -> None:
    """Neither the homeserver nor Letta knows the bridge any more."""
    assert world.bridge is not None
    bridge = world.bridge
    fault = world.hs.fail_next(r"/appservice/", status=401, errcode="M_UNKNOWN_TOKEN", times=None)
    await until(lambda: not bridge.ready)
    fault.cancel()
    await until(lambda: bridge.ready)
    order = asyncio.create_task(world.restart(**{"letta.api_key": "another-key-of-letta"}))
    await order
    assert world.bridge is not None
    checks: Any = (await world.bridge.health.report())["checks"]
    assert checks["letta"]["ok"] is not True


def judge(text: str, secrets: frozenset[str]) -> None:
    """Hold the log to its promise; and that it says enough for this to mean something."""
    for secret in secrets:
        raw = secret.encode()
        for form in {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), json.dumps(secret)[1:-1]}:
            assert form not in text, f"a secret is in the log: {_around(text, form)}"
        for encoded in (base64.b64encode(raw).decode(), raw.hex()):
            assert encoded not in text
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        if line["level"] != "DEBUG":
            assert SPOKEN not in json.dumps(line, ensure_ascii=False), line
            if line["logger"].startswith("letta_bridge"):
                assert line["action"]
    actions = {line.get("action") for line in lines}
    assert {"started", "turn_failed", "turn_found", "intake_failed", "intake_garbage", "dead_letter"} <= actions
    assert {"ping_failed", "ping_ok", "send_retry", "avatar_unusable", "stopped", "error_words"} <= actions
    assert any(spoken("prompt") in json.dumps(line) for line in lines), "the provider's words, at DEBUG"
    loggers = {line["logger"].partition(".")[0] for line in lines}
    assert "another" in loggers and "markdown_it" not in loggers, "others are heard, but not each step of a parser"


def _around(text: str, form: str) -> str:
    at = text.index(form)
    return text[max(0, at - 200) : at + 40]
