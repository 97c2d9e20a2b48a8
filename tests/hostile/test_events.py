"""Events with something wrong in them, by the hundred: each is decided, and none holds up what people say."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest

from ..integration.intake_kit import Scene, event_of, heard, scene
from ..integration.world import BOT, World, until
from .events import Place, hostile_events, to_bytes
from .kit import SEED, LogWatch, samples

LONG_SEED = SEED or random.SystemRandom().randrange(1, 2**31)


async def _place(at: Scene) -> Place:
    known = await at.alice.send(at.room, "something to refer to")
    await at.answered("something to refer to")
    return Place(at.room, at.alice.mxid, at.world.puppet(at.agent), BOT, known)


def _event_id(event: Any) -> str:
    return str(event.get("event_id")) if isinstance(event, dict) else ""


async def _told(at: Scene, other: Scene, number: int) -> None:
    """What people say after a batch is answered in both rooms."""
    for scene_ in (at, other):
        puppet = at.world.puppet(scene_.agent)
        await scene_.alice.send(scene_.room, f"neighbour {number}", **{"m.mentions": {"user_ids": [puppet]}})
    for scene_ in (at, other):
        await scene_.answered(f"neighbour {number}", timeout=30)


async def attack(world: World, log_watch: LogWatch, count: int, seed: int) -> None:
    agent = world.letta.add_agent("Bystander")
    at = await scene(world)
    other = Scene(world, at.alice, agent, await world.dm(at.alice, agent, "hello"))
    await other.answered("hello")
    place = await _place(at)
    events = await asyncio.to_thread(samples, hostile_events(place), count, seed)
    batch = 40
    for start in range(0, len(events), batch):
        beside = event_of(at, f"beside {start}")
        beside["content"]["m.mentions"] = {"user_ids": [place.puppet]}
        assert await world.hs.push_raw(to_bytes([*events[start : start + batch], beside])) == (200, "{}")
        await _told(at, other, start)
        await at.answered(f"beside {start}", timeout=30)
    await until(at.bridge.inbox_is_empty, timeout=30, why=f"undecided: {await _undecided(at)} (seed {seed})")
    failed = await at.bridge.db.fetch("SELECT event_id FROM inbox WHERE decision LIKE 'could not be dispatched%'")
    bad = {row["event_id"] for row in failed}
    assert not bad, [event for event in events if _event_id(event) in bad]
    for scene_ in (at, other):
        said = [text for text in heard(scene_) if text.startswith("neighbour")]
        assert len(said) == len(set(said)) == -(-len(events) // batch), said
    # what is said into a thread or a room that does not exist is refused by the homeserver
    dead = await at.bridge.db.fetch("SELECT error FROM outbox WHERE state = 'dead'")
    assert all(row["error"].startswith(("400 M_UNKNOWN", "403 M_FORBIDDEN")) for row in dead)
    assert not log_watch.unexpected("intake_garbage", "dead_letter"), seed
    assert "lane_error" not in log_watch.actions()


async def _undecided(at: Scene) -> list[tuple[str, str]]:
    rows = await at.bridge.db.fetch("SELECT event_id, body FROM inbox WHERE state = 'new'")
    return [(row["event_id"], row["body"][:500]) for row in rows]


@pytest.mark.timeout(240)
async def test_each_is_decided_and_none_holds_up_the_others(world: World, log_watch: LogWatch) -> None:
    await attack(world, log_watch, 320, SEED)


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_each_of_thousands_is_decided(world: World, log_watch: LogWatch) -> None:
    await attack(world, log_watch, int(os.environ.get("LETTA_BRIDGE_FUZZ_EVENTS") or 6000), LONG_SEED)
