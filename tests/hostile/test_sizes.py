"""What is larger, deeper or more than anything should be: bounded in time and memory, and never in anybody's way."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import time
import zlib
from typing import Any

import pytest

from letta_bridge.delivery.speech import Renderer
from letta_bridge.ids import LettaMessageID
from letta_bridge.letta.backend import Text
from letta_bridge.testing.fake_homeserver import Rendered
from letta_bridge.testing.fake_letta import Behaviour

from ..integration.intake_kit import Scene, event_of, heard, nested, scene
from ..integration.world import World, until
from .kit import LogWatch, loop_lag, memory_mib, reset_peak, slowness

MOST_LAG = 0.2
"""Seconds for which a body may hold the event loop."""
MOST_LAG_OF_ALL = 0.5
"""Where the fakes and the client of these tests, which share the loop, handle thousands of events too."""
EVENT_LIMIT = 65_536
"""Bytes of an event (specification, "Size limits")."""


def put(port: int, body: bytes, **headers: str) -> tuple[int, Any]:
    """Push a transaction from outside of the event loop; status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            "PUT",
            "/_matrix/app/v1/transactions/large",
            body=body,
            headers={"Authorization": "Bearer test-hs-token", **headers},
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


async def undisturbed(at: Scene, body: bytes, **headers: str) -> tuple[int, Any]:
    """Push ``body`` while Alice talks to the agent; the answer. She is answered and the loop goes round."""
    async with loop_lag() as lag:
        pushed = asyncio.create_task(asyncio.to_thread(put, at.bridge.port, body, **headers))
        number = 0
        while not pushed.done() or number < 2:
            number += 1
            await at.alice.send(at.room, f"meanwhile {number} {id(body)}")
            await at.answered(f"meanwhile {number} {id(body)}", timeout=20)
        answer = await pushed
        await until(at.bridge.inbox_is_empty, timeout=20)
    assert lag.worst < MOST_LAG * slowness()
    return answer


# -- bodies


MANY = 1_000_000


def _bodies(at: Scene) -> dict[str, bytes]:
    event = json.dumps(event_of(at, "hello"))[:-1]
    return {
        "one string": b'"' + b"x" * (63 * 2**20) + b'"',
        "one string of an event": event.encode() + b', "x": "' + b"x" * (62 * 2**20) + b'"}',
        "an event with one string": b'{"events": [' + event.encode() + b', "x": "' + b"x" * (62 * 2**20) + b'"}]}',
        "a string that does not end": b'"' + b"x" * (63 * 2**20),
        "many quotes": b'"\\' * (8 * 2**20),
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "a deep event": f'{{"events": [{event}, "x": {nested(100_000)}}}]}}'.encode(),
        "many numbers": b'{"events": [' + b"1," * MANY + b"1]}",
        "many different numbers": ('{"events": [' + ",".join(map(str, range(MANY))) + "]}").encode(),
        "many objects": b'{"events": [' + b"{}," * MANY + b"{}]}",
        "an event with many numbers": f'{{"events": [{event}, "x": [{"1," * MANY}1]}}]}}'.encode(),
        "an event with many keys": (
            f'{{"events": [{event}, "x": {{' + ",".join(f'"{n}":1' for n in range(100_000)) + "}}]}"
        ).encode(),
        "the largest events, and all that they can hold": json.dumps(
            {"events": [{**event_of(at, "hello"), "x": [1] * 32_000} for _ in range(100)]}, separators=(",", ":")
        ).encode(),
        "many copies of one event": f'{{"events": [{",".join([event + "}"] * 2000)}]}}'.encode(),
    }


RARE = ("one string of an event", "many quotes", "deep objects", "many objects", "an event with many keys")
"""What is much like others; only in the long run."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rare", [False, pytest.param(True, marks=pytest.mark.full)], ids=["usual", "rare"])
async def test_a_monstrous_body_is_in_nobodys_way(sqlite_world: World, rare: bool) -> None:
    at = await scene(sqlite_world)
    for name, body in _bodies(at).items():
        if (name in RARE) is not rare:
            continue
        before = reset_peak()
        try:
            assert await undisturbed(at, body) == (200, {})
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        assert memory_mib() - before < 8 * 64 + 50, name
    assert await at.bridge.db.fetchval("SELECT COUNT(*) FROM inbox") < 1500
    assert await at.bridge.db.fetchval("SELECT MAX(LENGTH(body)) FROM inbox") <= 2**19


async def test_a_body_over_the_limit_is_refused_without_being_read(sqlite_world: World) -> None:
    at = await scene(sqlite_world)
    before = reset_peak()
    status, answer = await undisturbed(at, b"x" * (65 * 2**20))
    assert (status, answer["errcode"]) == (413, "M_TOO_LARGE")
    assert memory_mib() - before < 64 * 3 + 50


def _bombs() -> dict[str, bytes]:
    zeros = b'{"events": [], "x": "' + b"0" * 2**20
    wide = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = wide.compress(zeros) + b"".join(wide.compress(b"0" * 2**20) for _ in range(512)) + wide.compress(b'"}')
    bomb += wide.flush()
    return {
        "gzip": bomb,
        "x-gzip": bomb,
        "deflate": zlib.compress(b"0" * 2**23, 9),
        "gzip, gzip": gzip.compress(bomb, 9),
        "br": b"\x00" * 1000,
        "zstd": b"\x28\xb5\x2f\xfd" + b"\x00" * 1000,
        "compress": b"x",
        "nonsense": b"{}",
    }


async def test_a_bomb_is_not_unpacked(sqlite_world: World, log_watch: LogWatch) -> None:
    """512 MiB in 500 KiB: refused, and nothing grows. No homeserver compresses what it pushes."""
    at = await scene(sqlite_world)
    bombs = await asyncio.to_thread(_bombs)
    before = reset_peak()
    for encoding, body in bombs.items():
        status, answer = await undisturbed(at, body, **{"Content-Encoding": encoding})
        assert (status, answer["errcode"]) == (415, "M_NOT_JSON"), encoding
    assert await undisturbed(at, b'{"events": []}', **{"Content-Encoding": "identity"}) == (200, {})
    assert memory_mib() - before < 100  # what the agent and its person say meanwhile takes some, too
    assert not log_watch.unexpected()


# -- events in


async def test_the_largest_event_is_read_whole(sqlite_world: World) -> None:
    at = await scene(sqlite_world)
    event = event_of(at, "")
    content = event["content"]
    content |= {"format": "org.matrix.custom.html"}
    room = EVENT_LIMIT - len(json.dumps(event, ensure_ascii=False).encode()) - 60
    content["body"] = "ü" * (room // 4 - 8) + "BODYEND"
    content["formatted_body"] = "<b>" + "ß" * (room // 4 - 20) + "</b> THE END"
    size = len(json.dumps(event, ensure_ascii=False).encode())
    assert EVENT_LIMIT - 200 < size <= EVENT_LIMIT
    async with loop_lag() as lag:
        assert await sqlite_world.hs.push_raw(json.dumps({"events": [event]}, ensure_ascii=False).encode()) == (
            200,
            "{}",
        )
        await until(lambda: any("THE END" in text for text in heard(at)), timeout=10)
    [text] = [text for text in heard(at) if "THE END" in text]
    assert text == "**" + "ß" * (room // 4 - 20) + "** THE END"
    assert lag.worst < MOST_LAG_OF_ALL * slowness()


@pytest.mark.timeout(120)
async def test_a_thousand_edits_cost_little(world: World) -> None:
    """Of a message that still waits: the last counts. Others are answered meanwhile."""
    other = world.letta.add_agent("Bystander")
    at = await scene(world)
    elsewhere = Scene(world, at.alice, other, await world.dm(at.alice, other, "hello"))
    await elsewhere.answered("hello")
    hold = world.letta.hold(at.agent)
    await at.alice.send(at.room, "keep busy")
    await hold.entered()
    waiting = await at.alice.send(at.room, "edited 0")
    begun = time.monotonic()
    async with loop_lag() as lag:
        for number in range(1, 1001):
            await at.alice.edit(at.room, waiting, f"edited {number}")
            if number % 250 == 0:
                await elsewhere.alice.send(elsewhere.room, f"meanwhile {number}")
                await elsewhere.answered(f"meanwhile {number}", timeout=20)
        await world.hs.wait_pushed()
        await until(at.bridge.inbox_is_empty, timeout=40)
    assert time.monotonic() - begun < 40
    assert lag.worst < MOST_LAG_OF_ALL * slowness()
    hold.release()
    await at.answered("edited 1000")
    assert [text for text in heard(at) if "edited" in text] == ["edited 1000"]


async def test_a_thousand_edits_of_what_was_read_are_mentioned_once(sqlite_world: World) -> None:
    at = await scene(sqlite_world)
    read = await at.alice.send(at.room, "read already")
    await at.answered("read already")
    for number in range(1000):
        await at.alice.edit(at.room, read, f"edited {number}")
    await at.alice.send(at.room, "after them")
    await at.answered("after them", timeout=30)
    said = [message for message in at.alice.messages(at.room) if "cannot take edits" in message.body]
    assert len(said) == 1
    assert not [text for text in heard(at) if text.startswith("edited")]


# -- replies out

LINES = 10_000
REPLIES = {
    "plain": "\n".join(f"line {number} of a long reply" for number in range(LINES)),
    "list": "\n".join(f"- item **{number}** is `code`" for number in range(LINES)),
    "table": "| a | b |\n| - | - |\n" + "\n".join(f"| {number} | *x* |" for number in range(LINES)),
    "code": "```python\n" + "\n".join(f"x = {number} * y" for number in range(LINES)) + "\n```",
    "emoji": "\n".join(f"{number} " + "\N{FOX FACE}" * 8 for number in range(LINES)),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "kind", ["list", "code", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("plain", "table", "emoji"))]
)
async def test_ten_thousand_lines_arrive_whole_and_in_order(sqlite_world: World, kind: str) -> None:
    at = await scene(sqlite_world)
    sqlite_world.letta.reply = None
    pieces = [f"{line}\n" for line in REPLIES[kind].split("\n")]
    pieces[-1] = pieces[-1].removesuffix("\n")
    sqlite_world.letta.script(at.agent, Behaviour(text=pieces))
    async with loop_lag() as lag:
        await at.alice.send(at.room, "tell me everything")
        puppet = at.world.puppet(at.agent)
        last = REPLIES[kind].removesuffix("\n```").rsplit("\n", 1)[-1]
        await at.alice.wait_message(at.room, sender=puppet, text=lambda body: last in body, timeout=60)
    said = [m for m in at.alice.messages(at.room) if m.sender == puppet and m.body != "hello"]
    assert lines_of(said) == REPLIES[kind].replace("```python\n", "").replace("\n```", "").split("\n")
    for message in said:
        assert len(json.dumps(message.content, ensure_ascii=False).encode()) < EVENT_LIMIT - 2048
    assert lag.worst < MOST_LAG_OF_ALL * slowness()


def lines_of(said: list[Rendered]) -> list[str]:
    """All parts together, without the fences that a cut in the code adds."""
    lines = [line for message in said for line in message.body.split("\n")]
    return [line for line in lines if not line.startswith("```")]


def test_a_long_answer_in_small_pieces_costs_little() -> None:
    """Whether something is to be shown is asked at every token."""
    renderer = Renderer(1.0, 50)
    renderer.accepted(0.0)
    begun = time.process_time()
    for _ in range(150_000):
        renderer.feed(Text(LettaMessageID("message-1"), "word "))
        assert renderer.due(0.5) == 0.5
    assert time.process_time() - begun < 2 * slowness()
    assert renderer.speeches[0].text == "word " * 150_000
