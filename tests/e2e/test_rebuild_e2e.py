"""The database is lost, on a real Synapse: the bridge goes on in the same rooms, and says nothing a second time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.ids import RoomID
from letta_bridge.testing.fake_letta import FakeLetta
from tests.conftest import RealSynapse

from .nio_person import NioPerson
from .upkeep_kit import Overseer, a_new_synapse, answers, ctl, ctl_json
from .world import World, a_bridge, guests_of, settings_for, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]


@dataclass
class Life:
    """A bridge with a past: a DM, an agent's room, a group, a person who left, an owner, a despawned agent."""

    world: World
    overseer: Overseer
    chief: NioPerson
    alice: NioPerson
    bob: NioPerson
    ada: str
    basil: str
    scout: str
    sent_away: str
    dm: RoomID
    portal: RoomID
    group: RoomID

    @property
    def agents(self) -> tuple[str, ...]:
        return self.ada, self.basil, self.scout, self.sent_away

    async def lose_the_database(self) -> None:
        """Stop the bridge and delete its database."""
        await self.world.bridge.stop()
        for path in self.world.bridge.folder.glob("bridge.db*"):
            path.unlink()

    async def goes_on(self, word: str) -> None:
        """In every room a word is answered once, by the one who always answered there."""
        alice, world = self.alice, self.world
        for room, agent in ((self.dm, self.basil), (self.portal, self.ada)):
            await world.ask(alice, room, agent, word, word)
        mention = {"m.mentions": {"user_ids": [world.puppet(self.basil)]}}
        said = await alice.say(self.group, f"{word} all", **mention)
        await alice.wait_message(self.group, world.puppet(self.basil), f"{word} all", after=said)

    def heard(self) -> list[str]:
        """Everything that any agent was told."""
        return sorted(body for agent in self.agents for body in self.world.bodies(agent))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def life(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Life]:
    folder = tmp_path_factory.mktemp("life")
    async with a_new_synapse(folder) as synapse, FakeLetta() as letta, _lived(synapse, letta, folder) as life:
        yield life


@asynccontextmanager
async def _lived(synapse: RealSynapse, letta: FakeLetta, folder: Path) -> AsyncIterator[Life]:
    guests = await guests_of(synapse.server)
    account, bobs = await synapse.server.register("chief"), await synapse.server.register("bob")
    ada, basil = letta.add_agent("Ada"), letta.add_agent("Basil")
    settings = settings_for(letta.url, synapse.domain, guests)
    settings["permissions"] = json.dumps({synapse.domain: "user", account.user_id: "admin"})
    settings["mirror.invite"] = json.dumps([guests.host.user_id, bobs.user_id])
    async with a_bridge(folder / "own", synapse, settings) as bridge:
        world = World(synapse=synapse.server, bridge=bridge, guests=guests, letta=letta)
        try:
            alice, chief, bob = [await world.client(one) for one in (guests.host, account, bobs)]
            overseer = await Overseer.of(synapse.server)
            for name in ("Scout", "Sent-away"):
                await ctl(world, "summon", name, "--owner", alice.user_id)
            scout, away = [next(a.id for a in letta.agents.values() if a.name == n) for n in ("Scout", "Sent-away")]
            await ctl(world, "despawn", away)
            await overseer.mirrored(world, ada, basil, scout)
            portal, dm = await world.portal(alice, ada), (await world.dm(alice, basil, "first in the DM"))[0]
            await world.portal(bob, ada)
            await bob.leave(portal)
            group = await alice.create_room([world.puppet(ada), world.puppet(basil)])
            await alice.wait_joined(group, world.puppet(ada), world.puppet(basil))
            life = Life(world, overseer, chief, alice, bob, ada, basil, scout, away, dm, portal, group)
            await chief.wait(lambda: chief.client.invited_rooms, "an invitation to a management room")
            management = next(iter(chief.client.invited_rooms))
            await chief.join(management)
            await chief.wait_message(management, world.bot, "this is your management room")
            await life.goes_on("before")
            yield life
        finally:
            await world.close_clients()


async def test_a_bridge_without_its_database_goes_on_in_the_same_rooms(life: Life) -> None:
    world, see = life.world, life.overseer
    rooms, heard = await see.rooms(), life.heard()
    members = {room: await see.members(room) for room in rooms}
    invited = dict(life.bob.client.invited_rooms)
    await life.lose_the_database()
    said = await life.alice.say(life.dm, "meanwhile")
    await world.bridge.start()
    seen = await ctl_json(world, "rebuild", "--dry-run")
    assert seen["dry_run"] and not seen["conflicts"] and not seen["unreadable"]
    told = await ctl_json(world, "rebuild")
    assert not told["conflicts"] and not told["unreadable"]
    assert "lacks nothing" in await ctl(world, "rebuild")
    await life.alice.wait_message(life.dm, world.puppet(life.basil), "meanwhile", after=said)
    await life.goes_on("after")
    assert await see.rooms() == rooms, "no second room, no second space"
    assert {room: await see.members(room) for room in rooms} == members, "nobody was asked back, nobody came in"
    assert dict(life.bob.client.invited_rooms) == invited
    assert life.heard() == sorted([*heard, "meanwhile", "after", "after", "after all"]), "nothing was handed over again"
    for room, agent in ((life.dm, life.basil), (life.portal, life.ada)):
        assert len(answers(life.alice, room, world.puppet(agent), "before")) == 1
        assert len(answers(life.alice, room, world.puppet(agent), "after")) == 1
    shown = await ctl(world, "agent", life.scout)
    assert life.alice.user_id in shown, "who owns it"
    assert "despawned" in await ctl(world, "agent", life.sent_away)


async def test_rebuilt_before_letta_names_its_agents(life: Life) -> None:
    """The mirror finds nothing by itself while Letta is away; the rooms tell all of it."""
    world, see = life.world, life.overseer
    rooms = await see.rooms()
    members = {room: await see.members(room) for room in rooms}
    await life.lose_the_database()
    await world.letta.stop()
    await world.bridge.start()
    seen, told = await ctl_json(world, "rebuild", "--dry-run"), await ctl_json(world, "rebuild")
    assert sorted(seen["agents"]) == sorted(told["agents"]) == sorted(life.agents)
    assert told["portals"][life.ada] == life.portal and not told["conflicts"] and not told["unreadable"]
    asked = await life.alice.say(life.dm, "while Letta is away")
    await world.letta.start()
    await life.alice.wait_message(life.dm, world.puppet(life.basil), "while Letta is away", after=asked, seconds=30)
    await life.goes_on("later")
    await see.mirrored(world, life.ada, life.basil, life.scout)
    assert await see.rooms() == rooms, "no second room, no second space"
    assert {room: await see.members(room) for room in rooms} == members

    async def stays_away() -> bool:
        return "despawned" in await ctl(world, "agent", life.sent_away)

    await until(stays_away, "it was despawned, and came back")
    assert life.alice.user_id in await ctl(world, "agent", life.scout)
