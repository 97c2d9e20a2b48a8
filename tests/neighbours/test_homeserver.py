"""The homeserver fails: replies come later, each once and in order."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ..integration.world import World, until
from .kit import ANSWER_SEND, Scene, admin_reads, another_room, is_ready, on_disk, said, scene
from .relay import HTML, Act, Relay, answering, cut_after, cut_before, cut_midway


@asynccontextmanager
async def behind_a_proxy(world: World) -> AsyncIterator[tuple[Scene, Relay]]:
    """The scene with a breakable proxy between the bridge and its homeserver."""
    async with Relay(world.hs.url) as relay:
        yield await scene(world, homeserver__url=relay.url), relay
        await world.stop()


async def test_connection_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    at = await scene(world)
    hold = world.letta.hold(at.agent)
    await at.say("one")
    await hold.entered()
    await at.say("two")
    await world.hs.wait_pushed()
    await world.hs.stop()
    hold.release()
    await admin_reads(caplog, "send_retry")
    assert "no answer from" in (await admin_reads(caplog, "ping_failed")).hint
    await is_ready(world, 503)
    await world.hs.start()
    await at.say("three")
    await at.answered("one", "two", "three")
    at.once_in_order("one", "two", "three")
    assert at.told() == []
    await is_ready(world, 200)
    assert len(said(caplog, "ping_failed")) == 1, "said again and again"


async def test_restarted_with_its_transaction_counter_reset(sqlite_world: World) -> None:
    """Its transactions are called 1, 2, 3 again: the names of transactions that the bridge has seen."""
    world = sqlite_world
    at = await scene(world)
    texts = [f"m{number}" for number in range(6)]
    for text in texts[:3]:
        await at.say(text)
        await at.answered(text)
    for text in texts[3:]:
        await world.hs.restart(reset_txn_counter=True)
        await at.say(text)
        await at.answered(text)
    ids = [transaction.txn_id for transaction in world.hs.transactions if transaction.status == 200]
    assert len(ids) > len(set(ids)), "no id came twice: this test proves nothing"
    at.once_in_order(*texts)


@pytest.mark.parametrize("seconds", [1.5, pytest.param(5.0, marks=pytest.mark.full)])
async def test_every_answer_takes_long(sqlite_world: World, seconds: float) -> None:
    world = sqlite_world
    at = await scene(world)
    slow = world.hs.delay(r"^/_matrix/client", seconds)
    await at.say("one", "two")
    await world.hs.wait_pushed()  # taking events in does not wait for the homeserver's answers
    await is_ready(world, 200)
    await at.answered("one", "two", timeout=30)
    slow.cancel()
    await at.say("three")
    await at.answered("three", timeout=30)
    at.once_in_order("one", "two", "three")
    assert at.told() == []


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        pytest.param({"Retry-After": "2"}, {"errcode": "M_LIMIT_EXCEEDED", "error": "slow"}, 2.0, id="header alone"),
        pytest.param({}, {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1300}, 1.3, id="body alone"),
        pytest.param({"Retry-After": "1"}, HTML, 1.0, id="of a proxy", marks=pytest.mark.full),
        pytest.param({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, {"retry_after_ms": 1200}, 1.2, id="date"),
    ],
)
async def test_a_rate_limit_is_waited_out_and_not_much_longer(
    sqlite_world: World, headers: dict[str, str], body: object, seconds: float
) -> None:
    kind = "text/html" if body is HTML else "application/json"
    async with behind_a_proxy(sqlite_world) as (at, relay):
        relay.calls.clear()
        relay.rule(ANSWER_SEND, answering(429, body, headers=headers, kind=kind))
        await at.say("ping")
        await at.answered("ping")
        first, second = relay.times(ANSWER_SEND)
        assert seconds <= second - first < seconds + 1.5
        at.once_in_order("ping")


async def test_a_burst_of_rate_limits_does_not_reorder(sqlite_world: World) -> None:
    async with behind_a_proxy(sqlite_world) as (at, relay):
        other = await another_room(at)
        limited = answering(429, {"errcode": "M_LIMIT_EXCEEDED", "error": "slow", "retry_after_ms": 60})
        texts = [f"m{number}" for number in range(8)]
        for room in (at.room, other.room):  # each message is refused once or twice
            relay.rule(re.escape(room) + ANSWER_SEND, limited, 12)
        for text in texts:
            await at.say(text)
            await other.say(text)
        await at.answered(*texts)
        await other.answered(*texts)
        for one in (at, other):
            one.once_in_order(*texts)


STORED = {"cut in the middle of the answer": cut_midway, "cut before the answer": cut_after}
ODD: dict[str, Act] = {
    "no body": answering(502),
    "matrix body": answering(502, {"errcode": "M_UNKNOWN", "error": "Internal server error"}),
    "html page": answering(502, HTML, kind="text/html"),
    "json of another program": answering(503, {"message": "no upstream"}),
    "json list": answering(503, ["nobody there"]),
    "json null": answering(504, None),
    "bytes that are no text": answering(500, "\x00\udcff".encode("utf-8", "replace").decode(), kind="text/plain"),
    "html page as 200": answering(200, HTML, kind="text/html"),
    "other json as 200": answering(200, {"status": "maintenance"}),
    "json list as 200": answering(200, []),
    "html page as 404": answering(404, HTML, kind="text/html"),
    "html page as 403": answering(403, HTML, kind="text/html"),
    "cut before it arrives": cut_before,
    **STORED,
}
STATUSES = {
    f"matrix {status}": answering(status, {"errcode": "M_UNKNOWN", "error": "no"}) for status in (500, 503, 504)
}


async def test_whatever_a_send_gets_for_an_answer(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Each of these once, in a room of its own, all at the same time."""
    async with behind_a_proxy(world) as (first, relay):
        rooms: dict[str, Scene] = {}
        for name, act in {**ODD, **STATUSES}.items():
            at = rooms[name] = await another_room(first)
            relay.rule(re.escape(at.room) + ANSWER_SEND, act)
        for at in rooms.values():
            await at.say("one", "two")
        for name, at in rooms.items():
            await at.answered("one", "two", timeout=30)
            assert at.told() == [], name
            at.once_in_order("one", "two")
        assert all(rule.hits == 1 for rule in relay.rules)
        assert not said(caplog, "lane_error"), "an answer that nobody foresaw"
        # the HTTP client itself sends once more where an idle connection turns out to be closed
        quiet = {rooms[name].room for name in ("cut before it arrives", "cut before the answer")}
        assert {record.room for record in said(caplog, "send_retry")} | quiet == {at.room for at in rooms.values()}


async def test_whatever_entering_a_room_gets_for_an_answer(
    sqlite_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not the homeserver's answer is never read as "you are in", "nobody is there", "nothing was said"."""
    async with behind_a_proxy(sqlite_world) as (at, relay):
        relay.rule(r"/join", ODD["other json as 200"])
        relay.rule(r"/state$", ODD["json list as 200"])
        relay.rule(r"/state$", ODD["html page as 403"])
        relay.rule(r"/messages$", ODD["other json as 200"])
        room = await at.alice.create_dm(at.puppet, text="hello")
        newcomer = Scene(at.world, at.alice, at.agent, room)
        await newcomer.say("more")
        await newcomer.answered("hello", "more", timeout=30)
        newcomer.once_in_order("more")
        assert newcomer.told() == []
        assert all(rule.hits for rule in relay.rules)
        assert not said(caplog, "dispatch_failed")


@pytest.mark.parametrize("look", ["at once", "fails at first"])
async def test_a_reply_older_than_the_homeservers_memory_is_looked_for_first(world: World, look: str) -> None:
    """The homeserver took it, the bridge never learned, and the transaction id was forgotten since."""
    at = await scene(world)
    world.hs.fail_next(ANSWER_SEND, status=502, after_processing="disconnect")
    away = world.hs.fail_next(ANSWER_SEND, status=503, times=None)
    await at.say("one")
    await until(lambda: away.hits)
    await world.stop()
    await world.hs.restart()
    world.hs.hs.transactions._disk.clear()  # a day has passed
    await on_disk(world, "UPDATE outbox SET created_at = created_at - 86400 WHERE state = 'pending'")
    away.cancel()
    if look == "fails at first":
        world.hs.fail_next(r"/messages$", status=500)
    world.hs.requests.clear()
    await world.start()
    await at.say("two")
    await at.answered("one", "two")
    at.once_in_order("one", "two")
    assert world.hs.count(rf"{re.escape(at.room)}.*{ANSWER_SEND}", method="PUT") == 1, "only the new one was sent"


async def test_the_as_token_is_refused_for_a_while(sqlite_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The registration is being reloaded: that ends nothing, deletes nothing, and is said."""
    world = sqlite_world
    at = await scene(world)
    hold = world.letta.hold(at.agent)
    await at.say("one")
    await hold.entered()
    refused = world.hs.fail_next(r"^/_matrix/client", status=401, errcode="M_UNKNOWN_TOKEN", times=None)
    hold.release()
    record = await admin_reads(caplog, "ping_failed")
    assert "does not know as_token" in record.hint and record.levelname == "ERROR"
    await is_ready(world, 503)
    await until(lambda: refused.hits > 3)
    refused.cancel()
    await at.say("two")
    await at.answered("one", "two")
    at.once_in_order("one", "two")
    assert at.told() == []
    await is_ready(world, 200)
