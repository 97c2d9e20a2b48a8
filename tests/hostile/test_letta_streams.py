"""Letta's streams with something wrong in them: every turn ends with an answer or an honest sentence, and the next
message to the agent is answered.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from letta_bridge import errors
from letta_bridge.letta.errors import Kind
from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person

from ..integration.world import World, until
from .kit import SEED, LogWatch, memory_mib, reset_peak, samples
from .raw_letta import RawLetta, RawStream, cheap, hostile_streams, known_streams, raw_letta, sse, transcript

LONG_SEED = SEED or random.SystemRandom().randrange(1, 2**31)
UNKNOWN_RUN = "run-00000000-0000-4000-8000-000000000001"
ODD_RUNS = ["run-\x00", "run-\ud800", "run-" + "x" * 5000, "..", "../agents", "run a/b?c", "-"]


@pytest_asyncio.fixture
async def raw_sqlite(sqlite_world: World) -> AsyncIterator[RawLetta]:
    async with raw_letta(sqlite_world.letta.url) as made:
        sqlite_world.overrides["letta.url"] = made.url
        yield made
        await sqlite_world.stop()


@pytest_asyncio.fixture
async def raw(world: World) -> AsyncIterator[RawLetta]:
    async with raw_letta(world.letta.url) as made:
        world.overrides["letta.url"] = made.url
        world.overrides["limits.messages_per_minute"] = 100_000
        yield made
        await world.stop()


async def chats(world: World, count: int) -> list[tuple[Person, str, str]]:
    """People who have had an answer of an agent each: person, agent, room."""
    agents = [world.letta.add_agent(f"Scout {number}") for number in range(count)]
    world.letta.reply = lambda texts: f"heard {envelope.open_(texts[-1]).body}"
    people = [await world.hs.person(f"person{number}") for number in range(count)]
    await world.start()
    found = []
    for person, agent in zip(people, agents, strict=True):
        found.append((person, agent, await world.dm(person, agent, "hello")))
    for person, agent, room in found:
        await person.wait_message(room, sender=world.puppet(agent), text=lambda body: "heard hello" in body)
    return found


async def over(world: World, person: Person, agent: str, room: str, text: str, timeout: float = 30.0) -> list[str]:
    """Say something, wait until its turn is over and shown; what was said in answer."""
    puppet = world.puppet(agent)
    before = {message.event_id for message in person.messages(room)}
    asked = await person.send(room, text)
    assert world.bridge is not None
    db = world.bridge.db

    async def ended() -> bool:
        turn = await db.fetchval(
            "SELECT t.state FROM turn t JOIN turn_event m ON m.turn_id = t.turn_id WHERE m.event_id = $1", asked
        )
        waiting = await db.fetchval("SELECT COUNT(*) FROM outbox WHERE state = 'pending' AND room_id = $1", room)
        return turn in ("done", "dead", "cancelled") and not waiting

    await until(ended, timeout, why=f"the turn of {text!r} does not end")
    await person.wait_message(room, sender=puppet, timeout=5)

    def said() -> list[str]:
        return [m.body for m in person.messages(room) if m.sender == puppet and m.event_id not in before]

    await until(said, 5, why=f"nothing was said about {text!r}")
    return said()


async def attack(world: World, raw: RawLetta, log_watch: LogWatch, count: int, seed: int) -> None:
    people = await chats(world, 10)
    finished = [str(turn.run_id) for turn in world.letta.turns()]
    streams = await asyncio.to_thread(
        samples, hostile_streams([UNKNOWN_RUN, UNKNOWN_RUN, finished[0], finished[-1], *ODD_RUNS]), count, seed
    )
    streams = [*known_streams(UNKNOWN_RUN), *streams]
    raw.cases = dict(enumerate(streams))
    trouble: dict[int, str] = {}

    async def talk(number: int, person: Person, agent: str, room: str) -> None:
        for case in range(number, len(streams), len(people)):
            try:
                await over(world, person, agent, room, f"case {case}")
            except AssertionError as error:
                assert world.bridge is not None
                query = "SELECT state, run_id, wait_reason FROM turn WHERE room_id = $1 ORDER BY turn_id"
                turn = (await world.bridge.db.fetch(query, room))[-1]
                trouble[case] = f"{error}: {turn['state']}, {turn['run_id']!r}, {turn['wait_reason']}"
                return
        assert (await over(world, person, agent, room, "and now?"))[-1] == "heard and now?"

    await asyncio.gather(*(talk(number, *chat) for number, chat in enumerate(people)))
    for case, why in trouble.items():
        print(f"seed {seed}, case {case}: {why}\n{streams[case].end} {b''.join(streams[case].chunks)!r:.300}")
    assert not trouble
    assert not log_watch.unexpected(), seed
    assert "lane_error" not in log_watch.actions()


@pytest.mark.timeout(240)
async def test_every_turn_ends_and_the_next_is_answered(world: World, raw: RawLetta, log_watch: LogWatch) -> None:
    await attack(world, raw, log_watch, 80, SEED)


@pytest.mark.full
@pytest.mark.timeout(3600)
async def test_every_turn_of_thousands_ends(world: World, raw: RawLetta, log_watch: LogWatch) -> None:
    await attack(world, raw, log_watch, int(os.environ.get("LETTA_BRIDGE_FUZZ_STREAMS") or 3000), LONG_SEED)


# -- streams that do not end, or are larger than anything


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "chunk",
    [
        b"x" * 65_536,
        b"data: " + b"y" * 65_536 + b"\n",
        cheap(UNKNOWN_RUN, "z" * 60_000),
        pytest.param(b'data: {"message_type": "ping"}\n\n' * 2000, marks=pytest.mark.full),
        pytest.param(b": comment\n" * 6000, marks=pytest.mark.full),
    ],
    ids=["line", "event", "text", "pings", "comments"],
)
async def test_a_stream_without_end_is_left(
    sqlite_world: World, raw_sqlite: RawLetta, log_watch: LogWatch, chunk: bytes
) -> None:
    """Whatever is poured in, memory stays; the message is handed over again and answered."""
    [(person, agent, room)] = await chats(sqlite_world, 1)
    raw_sqlite.cases[1] = RawStream([chunk], end="repeat")
    before = reset_peak()
    said = await over(sqlite_world, person, agent, room, "case 1", timeout=60)
    assert said[-1] == "heard case 1"
    assert raw_sqlite.written < 300 * 2**20
    assert memory_mib() - before < 400
    assert (await over(sqlite_world, person, agent, room, "and now?"))[-1] == "heard and now?"
    assert not log_watch.unexpected()


async def test_a_run_that_only_pings_is_given_up_in_time(sqlite_world: World, raw_sqlite: RawLetta) -> None:
    sqlite_world.overrides["letta.turn_timeout"] = 1.0
    [(person, agent, room)] = await chats(sqlite_world, 1)
    ping = transcript(UNKNOWN_RUN)[0]
    raw_sqlite.cases[1] = RawStream([sse([ping])[:-14]], end="repeat", pause=0.05)
    [said] = await over(sqlite_world, person, agent, room, "case 1")
    assert said == errors.TROUBLES[Kind.TIMEOUT].sentence.format(minutes="a minute")
    assert (await over(sqlite_world, person, agent, room, "and now?"))[-1] == "heard and now?"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("lines", [1000, pytest.param(10_000, marks=pytest.mark.full)])
async def test_megabytes_in_one_event_are_shown(sqlite_world: World, raw_sqlite: RawLetta, lines: int) -> None:
    """Much, but whole: a reply in parts, not a broken turn. Others are answered meanwhile."""
    [(person, agent, room), (other, second, elsewhere)] = await chats(sqlite_world, 2)
    text = "\n".join(f"line {number} " + "w" * 1000 for number in range(lines))
    raw_sqlite.cases[1] = RawStream([sse(transcript(UNKNOWN_RUN, [text]))])
    asked = asyncio.create_task(over(sqlite_world, person, agent, room, "case 1", timeout=50))
    for number in range(5):
        assert (await over(sqlite_world, other, second, elsewhere, f"hi {number}"))[-1] == f"heard hi {number}"
    said = await asked
    assert len(text) > 1000 * lines and "\n".join(said).split() == text.split()


async def test_the_run_of_somebody_else_ends_the_turn_too(sqlite_world: World, raw_sqlite: RawLetta) -> None:
    """Letta names another agent's run that is still at work, and breaks off."""
    [(person, agent, room), (other, second, elsewhere)] = await chats(sqlite_world, 2)
    hold = sqlite_world.letta.hold(second)
    await other.send(elsewhere, "wait")
    await hold.entered()
    await until(lambda: len(sqlite_world.letta.turns(second)) == 2)
    foreign = sqlite_world.letta.turns(second)[-1].run_id
    raw_sqlite.cases[1] = RawStream([sse(transcript(foreign)[:3])[:-14]], end="cut")
    asked = asyncio.create_task(over(sqlite_world, person, agent, room, "case 1", timeout=30))
    await until(lambda: raw_sqlite.cases[1].served)
    hold.release()
    assert await asked
    assert (await over(sqlite_world, person, agent, room, "and now?"))[-1] == "heard and now?"
