"""Around the moment of the hand-over: what is said until then counts, and what goes wrong then is noticed at once."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

import pytest

from letta_bridge.matrix import envelope

from .world import World, settled, until

BLOCKS = r"/core-memory/blocks$"
STOPPED = re.compile(r"^Stopped: ")


def heard(world: World, agent: str) -> list[str]:
    """What the agent was told, in its order."""
    return [envelope.open_(text).body for turn in world.letta.turns(agent) for text in turn.texts]


async def test_a_stop_before_the_hand_over_keeps_the_message_from_the_agent(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "hello")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("hello"))
    looking = world.letta.hold_next(BLOCKS)
    await alice.send(room, "do something dangerous")
    await looking.entered()
    await alice.send(room, "!stop")
    await settled(world)
    looking.release()
    await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    await alice.send(room, "still there?")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("still there"))
    assert heard(world, agent) == ["hello", "still there?"]


async def test_what_is_withdrawn_or_corrected_while_letta_is_tried_again_counts(sqlite_world: World) -> None:
    """Letta was away, and takes its time when it is asked again: nothing was handed over yet."""
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "hello")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("hello"))
    away = world.letta.fail_next(BLOCKS, 503)
    secret = await alice.send(room, "my password")
    wrong = await alice.send(room, "see you at five")
    await until(lambda: not away.times)
    hold = world.letta.hold_next(BLOCKS)
    await hold.entered()
    await alice.redact(room, secret)
    await alice.edit(room, wrong, "see you at six")
    await settled(world)
    hold.release()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("see you at"))
    assert heard(world, agent) == ["hello", "see you at six"]


async def test_a_run_whose_name_cannot_be_noted_can_be_stopped(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed at once, not at the end of the answer."""
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    bridge = await world.start()
    room = await world.dm(alice, agent)
    accepted, tries = bridge.turns.accepted, 0

    async def failing(*args: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise sqlite3.OperationalError("disk I/O error")
        return await accepted(*args)

    monkeypatch.setattr(bridge.turns, "accepted", failing)
    hold = world.letta.hold(agent)
    await alice.send(room, "think hard")
    await hold.entered()
    await until(lambda: tries)
    await alice.send(room, "!stop")
    await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED, timeout=15)
    hold.release()
    [turn] = world.letta.turns(agent)
    await until(lambda: turn.outcome != "running")
    assert turn.outcome == "cancelled"


async def test_what_is_withdrawn_during_a_try_that_fails_is_not_handed_over_again(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "hello")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("hello"))
    world.letta.fail_next(BLOCKS, 503)
    hold = world.letta.hold_next(BLOCKS)
    secret = await alice.send(room, "my password")
    await hold.entered()
    await alice.redact(room, secret)
    await settled(world)
    hold.release()
    await alice.send(room, "what a day")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("what a day"))
    assert heard(world, agent) == ["hello", "what a day"]
