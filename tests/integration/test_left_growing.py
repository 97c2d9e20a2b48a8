"""A text that is shown while it grows never stays so: whatever becomes of its turn, its event gets an end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from letta_bridge.testing.fake_homeserver import Person, Rendered
from letta_bridge.testing.fake_letta import Behaviour

from .command_kit import asked, bot_room
from .world import World, until

QUESTION = "what do you think?"
GROWING = re.compile(r"^half a thought …$")
TURNS = r"/v1/conversations/[^/]+/messages$"


class Thought:
    """An answer that says its first half, then a little more, and then its end, each when it is told to."""

    def __init__(self) -> None:
        self.more = asyncio.Event()
        self.end = asyncio.Event()

    async def words(self) -> AsyncIterator[str]:
        yield "half a thought"
        await self.more.wait()
        yield " and more"
        await self.end.wait()
        yield " and its end"

    def finish(self) -> None:
        self.more.set()
        self.end.set()


async def half_said(
    world: World, behaviour: Behaviour | None = None, **fault: Any
) -> tuple[Person, str, str, Thought, Rendered]:
    """Somebody, a room, its agent, and the answer of which half is shown."""
    thought = Thought()
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(conversation__first_event_s=0.0)
    room = await world.dm(alice, agent, "hello")  # the bridge learns what this Letta can do
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("hello$"))
    world.letta.script(agent, replace(behaviour or Behaviour(), text=thought.words()))
    if fault:
        world.letta.fail_next(TURNS, method="POST", **fault)
    await alice.send(room, QUESTION)
    shown = await alice.wait_message(room, sender=world.puppet(agent), text=GROWING)
    return alice, room, agent, thought, shown


def said(world: World, person: Person, room: str, agent: str) -> list[tuple[str, str]]:
    """What the agent's messages after its first are now, each with its event."""
    spoken = person.messages(room)
    ours = [m for m in spoken if m.sender == world.puppet(agent) and m.msgtype == "m.text"]
    return [(m.event_id, m.body) for m in ours[1:]]


def looks(world: World) -> list[str]:
    """Requests that ask Letta about runs, or to stream one again."""
    return [path for _, path in world.letta.requests if "/v1/runs" in path or path.endswith("/stream")]


EITHER_LETTA = pytest.mark.parametrize("sqlite_world", [{}, {"redis": True}], indirect=True, ids=["plain", "redis"])
"""Without Redis a run can only be asked about; with it, its stream is read again from its beginning."""


@EITHER_LETTA
@pytest.mark.parametrize("ended", [True, False], ids=["the run ended meanwhile", "the run goes on"])
async def test_answer_whose_stream_broke_off_after_it_was_shown(sqlite_world: World, ended: bool) -> None:
    """The same process, the first attempt: the end comes from Letta's record or from the run's own stream."""
    world = sqlite_world
    alice, room, agent, thought, shown = await half_said(world, how="disconnect", after_events=2)
    looked = world.letta.hold_next(r"/v1/runs", method="GET")
    turn = world.letta.turns(agent)[-1]
    try:
        thought.more.set()
        await looked.entered()
        if ended:
            thought.finish()
            await until(lambda: turn.outcome == "end_turn", why="the run does not end")
    finally:
        looked.release()
    if not ended:
        await until(lambda: len(looks(world)) > 1, why="the run is not followed")
        thought.finish()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("and more and its end$"))
    assert said(world, alice, room, agent) == [(shown.event_id, "half a thought and more and its end")]


@EITHER_LETTA
async def test_stop_after_a_restart_closes_what_the_process_before_showed(sqlite_world: World) -> None:
    """The run is joined again, and nothing of it has been shown anew when somebody says stop."""
    world = sqlite_world
    alice, room, agent, _, shown = await half_said(world)
    await world.restart(conversation__first_event_s=60.0)
    before = len(looks(world))
    await until(lambda: len(looks(world)) > before + 1, why="the run is not followed again")
    await alice.send(room, "!stop")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(r"\(stopped\)"))
    assert_ended(said(world, alice, room, agent), shown)


@pytest.mark.parametrize("how", ["stop", "redaction"])
async def test_taken_back_while_letta_is_away_after_half_an_answer(world: World, how: str) -> None:
    """The model failed in the middle, then Letta went away: the message waits to be handed over again."""
    alice, room, agent, thought, shown = await half_said(world, Behaviour(error_after=1))
    await half_failed(world, thought)
    question = next(m for m in alice.messages(room) if m.body == QUESTION)
    if how == "stop":
        await alice.send(room, "!stop")
    else:
        await alice.redact(room, question.event_id)
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(r"\(stopped\)"))
    assert_ended(said(world, alice, room, agent), shown)


async def test_stopped_while_paused_after_half_an_answer(world: World) -> None:
    """What is paused waits; an end that is asked for does not."""
    admin = await world.hs.person("admin")
    alice, room, agent, thought, shown = await half_said(world, Behaviour(error_after=1))
    await half_failed(world, thought)
    bot = await bot_room(world, admin)
    assert "Paused" in await asked(admin, bot, "pause Scout")
    await alice.send(room, "!stop")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(r"\(stopped\)"))
    assert_ended(said(world, alice, room, agent), shown)


async def half_failed(world: World, thought: Thought) -> None:
    """Let the model fail now, and Letta be gone when the turn is tried again: it waits."""
    thought.more.set()
    bridge = world.bridge
    assert bridge is not None

    async def queued(which: str) -> bool:
        return bool(await bridge.db.fetchval(f"SELECT 1 FROM turn WHERE state = 'queued' AND attempt > 0 AND {which}"))

    await until(lambda: queued("failures > 0"), why="the turn did not fail")
    world.letta.kill()
    await until(lambda: queued("wait_reason <> ''"), 20, why="the turn does not wait")


def assert_ended(spoken: list[tuple[str, str]], shown: Rendered) -> None:
    """One text, in the event that was shown, with an end."""
    [(event_id, text)] = spoken
    assert event_id == shown.event_id and text.startswith("half a thought") and "…" not in text
