"""A person, an agent that names every message it answers, and what person and admin see when a neighbour fails."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from letta_bridge.bridge import LettaBridge
from letta_bridge.db.database import Database
from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person

from ..crash.harness import echo
from ..integration.world import World, notices, until

ANSWER_SEND = r"/send/m\.room\.message/"
"""Where the bridge puts a message, on the homeserver."""
LETTA_SEND = r"/v1/conversations/[^/]+/messages$"
"""Where the bridge hands messages over, on Letta."""


@dataclass
class Scene:
    """A DM of Alice and an agent in which ``hello`` was answered."""

    world: World
    alice: Person
    agent: str
    room: str

    @property
    def puppet(self) -> str:
        return self.world.puppet(self.agent)

    @property
    def bridge(self) -> LettaBridge:
        assert self.world.bridge is not None
        return self.world.bridge

    async def say(self, *texts: str) -> None:
        for text in texts:
            await self.alice.send(self.room, text)

    async def answered(self, *texts: str, timeout: float = 15.0) -> None:
        """Wait until Alice sees an answer to each of ``texts``."""

        def all_there() -> bool:
            shown = " ".join(self.shown())
            return all(f"<{text}>" in shown for text in texts)

        try:
            await until(all_there, timeout)
        except AssertionError as late:
            seen = "\n".join(map(str, self.alice.messages(self.room)))
            raise AssertionError(f"no answer to each of {texts}; Alice sees\n{seen}") from late

    def shown(self) -> list[str]:
        """The agent's own messages as Alice sees them now, without what the bridge says."""
        mine = [m for m in self.alice.messages(self.room) if m.sender == self.puppet]
        return [m.body for m in mine if m.msgtype != "m.notice"]

    def told(self) -> list[str]:
        """What the bridge says in the room."""
        return [message.body for message in notices(self.alice, self.room)]

    async def is_told(self, pattern: str, timeout: float = 10.0) -> None:
        """Wait until the bridge says so in the room."""
        await self.alice.wait_message(self.room, text=re.compile(pattern), timeout=timeout)
        assert any(re.search(pattern, text) for text in self.told()), "said, but not as a notice"

    def heard(self) -> list[str]:
        """What the agent was told in this room, in order, each as often as it was told."""
        read = [envelope.open_(text) for turn in self.world.letta.turns(self.agent) for text in turn.texts]
        return [message.body for message in read if message.room.id == self.room]

    def once_in_order(self, *texts: str) -> None:
        """Nothing lost, nothing twice, in order: on Letta's side and in the person's client."""
        assert self.heard() == ["hello", *texts]
        assert re.findall(r"<([^>]*)>", " ".join(self.shown())) == ["hello", *texts]

    async def settled(self, timeout: float = 10.0) -> None:
        """Nothing is under way any more: no turn is open, nothing waits to be sent."""
        open_rows = (
            "SELECT (SELECT COUNT(*) FROM turn WHERE state IN ('queued', 'running', 'replying')) + "
            "(SELECT COUNT(*) FROM outbox WHERE state = 'pending') + (SELECT COUNT(*) FROM inbox WHERE state = 'new')"
        )

        async def none() -> bool:
            return not await self.bridge.db.fetchval(open_rows)

        await until(none, timeout, why="something stays open")


async def scene(world: World, **overrides: Any) -> Scene:
    """Start the bridge and have Alice greet an agent."""
    world.letta.reply = echo
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(**overrides)
    await world.mirrored()
    return await another_room(Scene(world, alice, agent, ""))


async def another_room(at: Scene) -> Scene:
    """A further DM of the same two."""
    made = Scene(at.world, at.alice, at.agent, await at.world.dm(at.alice, at.agent, "hello"))
    await made.answered("hello")
    return made


async def on_disk(world: World, statement: str) -> Any:
    """One statement on the database of a bridge that is stopped; the first value of a SELECT."""
    db = Database(world.database, world.folder)
    await db.open()
    try:
        if statement.startswith("SELECT"):
            return await db.fetchval(statement)
        await db.write(lambda conn: conn.execute(statement))
    finally:
        await db.close()
    return None


def said(caplog: pytest.LogCaptureFixture, action: str) -> list[Any]:
    """The log lines of one ``action``, as an admin would search for them."""
    return [record for record in caplog.records if getattr(record, "action", "") == action]


async def admin_reads(caplog: pytest.LogCaptureFixture, action: str, timeout: float = 10.0) -> Any:
    """Wait for the log line; it must not be a harmless one that nobody would see."""
    await until(lambda: said(caplog, action), timeout, why=f"the log has no action={action}")
    assert said(caplog, action)[0].levelno >= logging.INFO
    return said(caplog, action)[0]


async def ready(world: World) -> int:
    """Status of the readiness route; 0 when nobody listens."""
    try:
        url = f"http://127.0.0.1:{world.port}/_matrix/mau/ready"
        async with ClientSession() as session, session.get(url) as answer:
            return answer.status
    except (ClientError, OSError):
        return 0


async def is_ready(world: World, status: int, timeout: float = 10.0) -> None:
    """Wait until readiness answers this status."""

    async def so() -> bool:
        return await ready(world) == status

    await until(so, timeout, why=f"/ready does not become {status}")


@asynccontextmanager
async def in_background(work: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that is ended with the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
