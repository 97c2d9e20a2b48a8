"""A person in a DM with an agent, and raw events of that person, for the tests of intake."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from letta_bridge.bridge import LettaBridge
from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person

from .world import World, until

_numbers = itertools.count(1)


@dataclass
class Scene:
    """A DM in which ``hello`` was answered. The agent answers with what it was told."""

    world: World
    alice: Person
    agent: str
    room: str

    @property
    def bridge(self) -> LettaBridge:
        assert self.world.bridge is not None
        return self.world.bridge

    async def answered(self, text: str, timeout: float = 10.0) -> None:
        """Wait until the agent heard ``text`` and Alice sees an answer that repeats it."""
        puppet = self.world.puppet(self.agent)
        await until(lambda: text in heard(self), timeout, why=f"the agent never heard {text!r}")
        await self.alice.wait_message(self.room, sender=puppet, text=lambda body: text in body, timeout=timeout)


async def scene(world: World, **overrides: Any) -> Scene:
    """Start the bridge and have Alice greet an agent."""
    agent = world.letta.add_agent("Scout")
    world.letta.reply = lambda texts: " / ".join(envelope.open_(text).body[:40] for text in texts)
    alice = await world.hs.person("alice")
    await world.start(limits__messages_per_minute=100_000, **overrides)
    room = await world.dm(alice, agent, "hello")
    made = Scene(world, alice, agent, room)
    await made.answered("hello")
    return made


def heard(at: Scene) -> list[str]:
    """What the agent was told, in order."""
    return [envelope.open_(text).body for turn in at.world.letta.turns(at.agent) for text in turn.texts]


def event_of(at: Scene, body: str) -> dict[str, Any]:
    """A message of Alice as a homeserver pushes it, which the homeserver itself does not know."""
    return {
        "event_id": f"$raw{next(_numbers)}",
        "room_id": at.room,
        "sender": at.alice.mxid,
        "type": "m.room.message",
        "origin_server_ts": int(time.time() * 1000),
        "unsigned": {"age": 5},
        "content": {"msgtype": "m.text", "body": body},
    }


def nested(depth: int) -> str:
    """JSON of ``depth`` lists in each other."""
    return "[" * depth + "]" * depth
