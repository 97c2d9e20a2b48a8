"""Letta fails: every message waits, is answered, or its sender is told that it was not."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from letta_bridge.testing.fake_letta import Behaviour

from ..integration.world import World, until
from .kit import LETTA_SEND, Scene, admin_reads, another_room, is_ready, said, scene
from .relay import HTML, Relay, answering, late

BOTH = pytest.mark.parametrize(
    "sqlite_world",
    [pytest.param({}, id="plain"), pytest.param({"redis": True}, id="redis", marks=pytest.mark.full)],
    indirect=True,
)
REDIS = pytest.mark.parametrize("sqlite_world", [{"redis": True}], indirect=True, ids=["redis"])
WORDS = " ".join(f"word{number}" for number in range(20))


@asynccontextmanager
async def behind_a_proxy(world: World, **overrides: Any) -> AsyncIterator[tuple[Scene, Relay]]:
    """The scene with a breakable proxy between the bridge and its Letta."""
    async with Relay(world.letta.url) as relay:
        yield await scene(world, letta__url=relay.url, **overrides), relay
        await world.stop()


@pytest.mark.full
@pytest.mark.timeout(150)
async def test_down_for_thirty_seconds(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "letta_bridge.delivery")
    at = await scene(world)
    other = await another_room(at)
    world.letta.kill()
    begun = time.monotonic()
    await at.say("one")
    await at.is_told("cannot reach Letta")
    await at.say("two")
    await other.say("three")
    await other.is_told("cannot reach Letta")
    await is_ready(world, 200)
    await until(lambda: time.monotonic() - begun > 30, 40)
    await world.letta.start()
    await at.answered("one", "two", timeout=45)
    await other.answered("three", timeout=45)
    at.once_in_order("one", "two")
    other.once_in_order("three")
    assert [len(at.told()), len(other.told())] == [2, 2], "told more than once, or not that it is over"
    tries = said(caplog, "turn_failed")
    assert len(tries) < 12, "asked again and again without a pause"
    assert [record.levelno for record in tries].count(logging.WARNING) <= 3, "once for each that waits"


@pytest.mark.parametrize("status", [502, *(pytest.param(status, marks=pytest.mark.full) for status in (500, 503, 504))])
async def test_a_proxy_says_that_letta_is_away(
    sqlite_world: World, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Letta restarts behind a reverse proxy: for the bridge that is a burst of errors on every path."""
    world = sqlite_world
    async with behind_a_proxy(world) as (at, relay):
        away = relay.rule(r"^/v1/", answering(status, HTML, kind="text/html"), None)
        await at.say("one")
        await until(lambda: away.hits >= 2, 20)
        away.cancel()
        await at.say("two")
        await at.answered("one", "two", timeout=20)
        at.once_in_order("one", "two")
        if status != 500:
            assert len(at.told()) == 2 and "cannot reach Letta" in at.told()[0]
        await admin_reads(caplog, "turn_failed")


@BOTH
@pytest.mark.parametrize("status", [503, pytest.param(500, marks=pytest.mark.full)])
async def test_a_burst_of_errors_on_the_messages_themselves(
    sqlite_world: World, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = sqlite_world
    at = await scene(world)
    world.letta.fail_next(LETTA_SEND, status, 2, method="POST")
    await at.say("one", "two")
    await at.answered("one", "two")
    at.once_in_order("one", "two")
    assert at.told() == []
    assert len(said(caplog, "turn_interrupted")) == 2


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(400, "provider of my model refused"), (402, "provider of my model refused"), (403, "provider of my model")],
)
async def test_a_provider_that_refuses_is_told_at_once(
    sqlite_world: World, error: int, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    """These come as HTTP 200 with an error inside the stream."""
    at = await scene(sqlite_world)
    sqlite_world.letta.script(at.agent, Behaviour(error=error))
    await at.say("one")
    await at.is_told(sentence)
    await at.say("two")
    await at.answered("two")
    assert at.heard() == ["hello", "one", "two"]
    assert len(at.told()) == 1
    assert (await admin_reads(caplog, "turn_failed")).fate == "give_up"


@BOTH
@pytest.mark.parametrize("after", ["nothing", "some words"])
async def test_it_only_pings_until_the_turns_time_is_over(
    sqlite_world: World, after: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = sqlite_world
    world.letta.settings.ping_every = 0.05
    at = await scene(world, letta__turn_timeout=1.0, conversation__first_event_s=0.1)
    silent = Behaviour(hang=math.inf) if after == "nothing" else Behaviour(text=WORDS, error_after=5, silent=True)
    world.letta.script(at.agent, silent)
    await at.say("one")
    await at.is_told("did not finish within a minute and was stopped")
    await admin_reads(caplog, "turn_timeout")
    assert all("…" not in body for body in at.shown()), "a text that still seems to grow"
    await at.say("two")
    await at.answered("two")
    assert at.heard() == ["hello", "one", "two"]
    assert len(at.told()) == 1


@BOTH
@pytest.mark.parametrize("events", [0, 21, 22, 23], ids=["before run id", "last token", "stop reason", "usage"])
async def test_the_stream_is_cut(sqlite_world: World, events: int) -> None:
    """After its 20 words come the stop reason, the usage and the end mark; before them the ping with the run's id."""
    world = sqlite_world
    at = await scene(world)
    world.letta.fail_next(LETTA_SEND, "disconnect", method="POST", after_events=events)
    world.letta.script(at.agent, Behaviour(text=WORDS, delay=0.01))
    await at.say("one")
    await until(lambda: len(at.heard()) == 2)
    await at.say("two")
    await at.answered("two")
    assert at.heard() == ["hello", "one", "two"]
    assert at.shown().count(WORDS) == 1 and len(at.shown()) == 3
    assert at.told() == []


@pytest.mark.parametrize("sqlite_world", [{"password": "right"}], indirect=True, ids=["secured"])
async def test_the_password_is_changed_and_changed_back(sqlite_world: World, caplog: pytest.LogCaptureFixture) -> None:
    world = sqlite_world
    world.pace["key_pause"] = 0.3
    at = await scene(world, letta__api_key="right")
    world.letta._core.password = "another"
    await at.say("one")
    await at.is_told("does not accept the bridge's key")
    await at.say("two")
    assert "bad_key" in (await admin_reads(caplog, "turn_failed")).why
    assert "right" not in caplog.text.replace("all rights", "")
    world.letta._core.password = "right"
    await at.answered("one", "two")
    at.once_in_order("one", "two")
    assert len(at.told()) == 2 and "accepts the bridge's key again" in at.told()[1]


async def test_replaced_by_an_empty_one_and_back_again(sqlite_world: World, caplog: pytest.LogCaptureFixture) -> None:
    world = sqlite_world
    at = await scene(world, letta__poll_interval=1.0)
    kept = world.letta._core.db
    rows = await at.bridge.agents.all()
    world.hs.requests.clear()
    world.letta.wipe()
    await admin_reads(caplog, "guard_frozen")
    await at.say("one")
    await at.is_told("cannot be found in the Letta that answers now")
    assert [row for row in await at.bridge.agents.all()] == rows, "the mirror acted on an empty list"
    writes = [r for r in world.hs.requests if r.method != "GET" and not any(w in r.path for w in ("/send/", "/ping"))]
    assert [r.path for r in writes if "/receipt/" not in r.path and "/typing/" not in r.path] == []
    world.letta._core.db = kept
    await at.say("two")
    await at.answered("one", "two", timeout=30)
    assert at.heard() == ["hello", "one", "two"]
    assert len(at.told()) == 1
    assert not said(caplog, "agent_missing")


async def test_replaced_by_another_one_for_good(sqlite_world: World, caplog: pytest.LogCaptureFixture) -> None:
    world = sqlite_world
    at = await scene(world, letta__poll_interval=0.5)
    world.letta.wipe()
    await admin_reads(caplog, "guard_frozen")
    await at.say("one")
    await at.is_told("Your message is kept")
    bridge = at.bridge
    frozen = (await bridge.directory.guard.read()).frozen
    assert frozen is not None
    assert await bridge.db.write(lambda conn: bridge.directory.guard.confirm(conn, frozen.nonce))
    await at.is_told("does not exist in Letta any more", 40)
    assert len(at.told()) == 2
    assert await bridge.db.fetchval("SELECT COUNT(*) FROM turn WHERE state IN ('queued', 'running')") == 0


@REDIS
async def test_busy_without_saying_with_which_run(sqlite_world: World) -> None:
    world = sqlite_world
    world.pace["busy_pause"] = 0.2
    at = await scene(world)
    [conversation] = world.letta.conversations(at.agent)
    world.letta._core.db.locks[conversation] = ("a request without a run", time.monotonic())
    await at.say("one", "two")
    await at.is_told("busy")
    world.letta._core.db.locks.clear()
    await at.answered("one", "two")
    at.once_in_order("one", "two")
    assert len(at.told()) == 1


@BOTH
async def test_the_first_token_takes_long(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.settings.ping_every = 0.2
    at = await scene(world)
    world.letta.script(at.agent, Behaviour(hang=2.5, text="re: <one>"))
    await at.say("one")
    await world.hs.wait_until(lambda: at.puppet in at.alice.typing(at.room), 8, "typing")
    await at.answered("one")
    await world.hs.wait_until(lambda: at.puppet not in at.alice.typing(at.room), 8, "the end of typing")
    at.once_in_order("one")
    assert at.told() == []


@BOTH
async def test_the_run_appears_after_the_connection_broke(sqlite_world: World) -> None:
    """The request was on its way when the connection broke: the first look finds nothing, the second does."""
    world = sqlite_world
    world.pace["settle"] = 1.0
    async with behind_a_proxy(world) as (at, relay):
        relay.rule(LETTA_SEND, late(0.5), method="POST")
        await at.say("one", "two")
        await at.answered("one", "two")
        at.once_in_order("one", "two")
        assert at.told() == []


async def test_the_run_failed_for_good_while_the_bridge_was_away(sqlite_world: World) -> None:
    world = sqlite_world
    at = await scene(world, shutdown__drain_s=0.0)
    hold = world.letta.hold(at.agent)
    world.letta.script(at.agent, Behaviour(error=401))
    await at.say("one")
    await hold.entered()
    await until(lambda: at.bridge.db.fetchval("SELECT COUNT(*) FROM turn WHERE run_id <> '' AND state = 'running'"))
    await world.stop()
    hold.release()
    await until(lambda: world.letta.turns(at.agent)[-1].outcome == "llm_api_error")
    await world.start()
    await at.is_told("provider of my model refused")
    await at.say("two")
    await at.answered("two")
    assert at.heard() == ["hello", "one", "two"]
    assert len(at.told()) == 1
