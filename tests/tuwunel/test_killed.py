"""``kill -9`` of the bridge on Tuwunel, which tries nothing again by itself and keeps what it was told to show."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from letta_bridge.testing.fake_homeserver import FakeHomeserver
from letta_bridge.testing.fake_letta import Behaviour, FakeLetta

from ..crash.harness import CrashWorld, echo


@pytest_asyncio.fixture
async def killable(tmp_path: Path) -> AsyncIterator[CrashWorld]:
    """The bridge as a process of its own, between FakeHomeserver as Tuwunel and FakeLetta."""
    async with FakeHomeserver(flavour="tuwunel") as hs, FakeLetta() as letta:
        letta.reply = echo
        world = CrashWorld(hs, letta, tmp_path, "sqlite:bridge.db")
        try:
            yield world
        finally:
            for child in world.others:
                child.kill()


async def test_killed_between_the_commit_and_the_200_and_in_mid_answer(killable: CrashWorld) -> None:
    """Rows 1, 4 and 32."""
    world = killable
    agent = world.letta.add_agent("Scout")
    puppet = world.puppet(agent)
    alice = await world.hs.person("alice")
    await world.start(at="send.after:1000:kill")
    room = await world.dm(alice, agent, "hello")
    await world.hs.wait_pushed()
    world.arm("intake.committed:1:kill")
    await alice.send(room, "stored")
    await world.died()
    await world.start()  # nothing is said meanwhile: its ping must do
    await world.answered(alice, room, agent, "stored")

    slow = " ".join(f"word{number}" for number in range(30))
    world.letta.script(agent, Behaviour(text=slow, delay=0.1))
    await alice.send(room, "slowly")
    await world.hs.wait_until(lambda: alice.typing(room) == [puppet], 10, "typing")
    world.kill()
    await world.start()
    await alice.wait_message(room, sender=puppet, text=re.compile("word29"), timeout=20)
    await world.hs.wait_until(lambda: alice.typing(room) == [], 5, "the end of typing")
    await world.hs.wait_pushed(10)
    assert world.heard(agent) == ["hello", "stored", "slowly"]
