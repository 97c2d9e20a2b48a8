"""An answer of which half is shown, and what becomes of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from letta_bridge.testing.fake_homeserver import Person, Rendered
from letta_bridge.testing.fake_letta import Behaviour

from .world import World, until

QUESTION = "what do you think?"
GROWING = re.compile(r"^half a thought …$")
TURNS = r"/v1/conversations/[^/]+/messages$"


class Thought:
    """An answer that says its first half, then a little more, and then its end, each when it is told to."""

    def __init__(self, last: str = " and its end") -> None:
        self._last = last
        self.more = asyncio.Event()
        self.end = asyncio.Event()

    async def words(self) -> AsyncIterator[str]:
        yield "half a thought"
        await self.more.wait()
        yield " and more"
        await self.end.wait()
        yield self._last

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
