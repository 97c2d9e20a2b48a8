"""A backup while people talk, put back into the other kind of database, on a real Synapse: each word answered once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.ids import RoomID
from tests.conftest import RealSynapse

from .nio_person import NioPerson
from .upkeep_kit import Overseer, answers, ctl
from .world import World, a_world

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.postgres,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(120),
]

PAUSE = 0.15
"""Seconds between two words of a talk: it lasts longer than a backup."""


@dataclass
class Place:
    """A talk in a DM and one in an agent's room, and where the databases are."""

    world: World
    overseer: Overseer
    alice: NioPerson
    rooms: dict[RoomID, str]
    postgres: str
    said: dict[str, RoomID] = field(default_factory=dict)

    @asynccontextmanager
    async def talking(self, name: str) -> AsyncIterator[None]:
        """Somebody writes in both rooms all the time while the block runs."""
        over, begun = asyncio.Event(), asyncio.Event()

        async def talk() -> None:
            number = 0
            while not over.is_set():
                for room in self.rooms:
                    word = f"{name}-{number}-{len(self.said)}."
                    self.said[word] = room
                    await self.alice.say(room, word)
                number += 1
                if number == 3:
                    begun.set()
                await asyncio.sleep(PAUSE)

        task = asyncio.create_task(talk())
        try:
            await begun.wait()
            yield
        finally:
            over.set()
            await task

    async def moved(self, file: Path, uri: str) -> None:
        """The backup put back into another database, and the bridge started with that."""
        self.world.bridge.settings["database.uri"] = uri
        assert "Restored" in await ctl(self.world, "restore", str(file))
        await self.world.bridge.start()

    async def everything_is_answered_once(self) -> None:
        """Every word was heard once and answered once in its room; nobody was told that something failed."""
        alice, world = self.alice, self.world
        for room, agent in self.rooms.items():
            last = f"last-{len(self.said)}."  # what an agent answers comes in order: nothing comes after this
            self.said[last] = room
            await alice.say(room, last)
            await alice.wait_message(room, world.puppet(agent), last, seconds=40)
        answers = Counter(
            word
            for room, agent in self.rooms.items()
            for message in alice.messages(room, world.puppet(agent))
            for word in message.body.split()
            if word in self.said
        )
        assert answers == dict.fromkeys(self.said, 1)
        heard = Counter(word for agent in self.rooms.values() for body in world.bodies(agent) for word in body.split())
        assert heard == dict.fromkeys(self.said, 1)
        for room in self.rooms:
            assert {m.sender for m in alice.messages(room)} == {alice.user_id, world.puppet(self.rooms[room])}
            assert all(m.msgtype == "m.text" for m in alice.messages(room))


@pytest_asyncio.fixture(loop_scope="session")
async def place(synapse: RealSynapse, postgres_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with a_world(tmp_path, synapse) as world:
        ada, basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
        overseer = await Overseer.of(synapse.server)
        await overseer.mirrored(world, ada, basil)
        alice = await world.client(world.guests.host)
        portal = await world.portal(alice, ada)
        dm = await alice.create_dm(world.puppet(basil))
        await alice.wait_joined(dm, world.puppet(basil))
        yield Place(world, overseer, alice, {dm: basil, portal: ada}, postgres_url)


async def test_there_and_back_with_people_talking(place: Place, tmp_path: Path) -> None:
    world, sqlite = place.world, place.world.bridge.settings["database.uri"]
    rooms = await place.overseer.rooms()
    first, second = tmp_path / "first.backup", tmp_path / "second.backup"

    async with place.talking("one"):
        await ctl(world, "backup", str(first))
    async with place.talking("two"):
        await world.bridge.stop()
    await place.moved(first, place.postgres)
    await place.everything_is_answered_once()

    async with place.talking("three"):
        await ctl(world, "backup", str(second))
        world.bridge.kill()
    assert "not empty" in await ctl_refused(place, second, sqlite)
    (world.bridge.folder / "bridge.db").unlink()
    await place.moved(second, sqlite)
    await place.everything_is_answered_once()
    assert await place.overseer.rooms() == rooms, "no second room, no second space"


async def test_what_came_after_the_backup_is_found_in_the_rooms(place: Place, tmp_path: Path) -> None:
    """An agent summoned since, one despawned since, a chat begun since: none is made, shown or answered anew."""
    world, alice, overseer = place.world, place.alice, place.overseer
    (dm, basil), (_, ada) = place.rooms.items()
    async with place.talking("before"):
        pass
    gone = world.letta.add_agent("Gone-since")
    await overseer.mirrored(world, gone)
    file = tmp_path / "old.backup"
    await ctl(world, "backup", str(file))

    await ctl(world, "summon", "Late", "--owner", alice.user_id)
    late = next(agent.id for agent in world.letta.agents.values() if agent.name == "Late")
    await ctl(world, "despawn", gone)
    chat = await alice.create_dm(world.puppet(ada))
    await alice.wait_joined(chat, world.puppet(ada))
    portal = await world.portal(alice, late)
    for room, agent in ((chat, ada), (portal, late), (dm, basil)):
        await world.ask(alice, room, agent, f"since-{agent}.", f"since-{agent}.")
    group = await alice.create_room([world.puppet(ada), world.puppet(late)])
    await alice.wait_joined(group, world.puppet(ada), world.puppet(late))
    await world.bridge.stop()
    rooms, heard = await overseer.rooms(), Counter(body for agent in world.letta.agents for body in world.bodies(agent))
    members = {room: await overseer.members(room) for room in rooms}

    assert "Restored" in await ctl(world, "restore", "--replace", str(file))
    await world.bridge.start()
    for room, agent in ((chat, ada), (portal, late), (dm, basil)):
        await world.ask(alice, room, agent, f"now-{agent}.", f"now-{agent}.")
        assert len(answers(alice, room, world.puppet(agent), f"since-{agent}.")) == 1
        heard[f"now-{agent}."] += 1
    assert Counter(body for agent in world.letta.agents for body in world.bodies(agent)) == heard
    assert await overseer.rooms() == rooms, "no second room, no second space"
    assert {room: await overseer.members(room) for room in rooms} == members, "nobody was asked back"
    assert alice.user_id in await ctl(world, "agent", late), "who owns it"
    assert "despawned" in await ctl(world, "agent", gone)


async def ctl_refused(place: Place, file: Path, uri: str) -> str:
    """What is said of a restore where something is."""
    place.world.bridge.settings["database.uri"] = uri
    return await ctl(place.world, "restore", str(file), ok=False)
