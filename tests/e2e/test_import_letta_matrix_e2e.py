"""``import-letta-matrix`` on a real Synapse: what Letta-Matrix leaves behind there, and the way over to this bridge."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nio import RoomPreset

from letta_bridge.ids import RoomID
from letta_bridge.mirror.maker import PORTAL_STATE
from tests.conftest import RealSynapse

from .command_kit import follow, links, resolve
from .nio_person import NioPerson
from .upkeep_kit import Overseer, answers, typed
from .world import World, a_world, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

PASSWORD = "old-secret-9f8e"
IMPORT = "import-letta-matrix"


@dataclass
class Old:
    """What Letta-Matrix left: accounts with passwords, a room for each agent, a space, and its file."""

    world: World
    overseer: Overseer
    file: Path
    service: NioPerson
    alice: NioPerson
    agents: dict[str, str] = field(default_factory=dict)
    users: dict[str, NioPerson] = field(default_factory=dict)
    rooms: dict[str, RoomID] = field(default_factory=dict)
    space: str = ""
    entries: dict[str, Any] = field(default_factory=dict)

    async def add(self, name: str, **room: Any) -> None:
        """An agent as Letta-Matrix shows it: its user makes a room, and its people come."""
        agent = self.agents[name] = self.world.letta.add_agent(name)
        localpart = agent.replace("-", "_")
        account = await self.world.synapse.register(localpart, password=PASSWORD)
        user = self.users[name] = await self.world.client(account)
        people = [self.alice.user_id, self.service.user_id]
        room = {"preset": RoomPreset.trusted_private_chat, "name": f"{name} - Letta Agent Chat", **room}
        self.rooms[name] = await user.create_room(people, **room)
        for person in (self.alice, self.service):
            await person.wait_invite(self.rooms[name])
            await person.join(self.rooms[name])
        child = {"via": [self.world.domain], "suggested": True}
        await self.service.client.room_put_state(self.space, "m.space.child", child, state_key=self.rooms[name])
        self.entries[agent] = {
            "agent_id": agent,
            "agent_name": name,
            "matrix_user_id": account.user_id,
            "matrix_password": PASSWORD,
            "created": True,
            "room_id": self.rooms[name],
            "room_created": True,
            "invitation_status": {self.service.user_id: "joined", self.world.guests.host.user_id: "invited"},
        }

    def write(self) -> None:
        self.file.write_text(json.dumps(self.entries, indent=2))

    async def pictures(self) -> dict[str, set[str]]:
        """What old rooms and new ones look like."""
        portals = [await self.world.portal_of(self.alice, agent) for agent in self.agents.values()]
        return await self.overseer.pictures([*self.rooms.values(), self.space, *portals])

    async def marked(self) -> bool:
        """Whether every new room says that its agent was adopted, which the mirror's next look writes there."""
        portals = [await self.world.portal_of(self.alice, agent) for agent in self.agents.values()]
        marks = [
            e["content"] for portal in portals for e in await self.overseer.state(portal) if e["type"] == PORTAL_STATE
        ]
        return [mark["origin"] for mark in marks] == ["adopted"] * len(portals)

    def pointers(self, name: str) -> list[str]:
        return answers(self.alice, self.rooms[name], self.world.bot, "another room now")


@pytest_asyncio.fixture(loop_scope="session")
async def old(synapse: RealSynapse, tmp_path: Path) -> AsyncIterator[Old]:
    async with a_world(tmp_path, synapse, mirror__invite="[]") as world:
        service = await world.client(await synapse.server.register("letta"))
        overseer, alice = await Overseer.of(synapse.server), await world.person("alice")
        old = Old(world, overseer, tmp_path / "agent_user_mappings.json", service, alice)
        old.space = await service.create_room([], name="Letta Agents", space=True)
        await old.add("Ada")
        await old.add("Basil", preset=RoomPreset.public_chat)
        await old.add("Cora")
        gone = {"agent_id": "agent-99999999-0000-4000-8000-000000000000", "room_id": None, "matrix_password": PASSWORD}
        old.entries[gone["agent_id"] or ""] = {**gone, "agent_name": "Gone", "matrix_user_id": "@agent_gone:x"}
        old.write()
        yield old


async def test_the_way_over(old: Old) -> None:
    world, alice, rooms = old.world, old.alice, old.rooms
    ada = old.agents["Ada"]
    await old.overseer.mirrored(world, *old.agents.values())
    await alice.invite(rooms["Ada"], world.bot)
    await alice.wait_joined(rooms["Ada"], world.bot)
    before = await old.pictures()

    dry = await typed(world, IMPORT, str(old.file))
    assert "3 agents would be adopted" in dry and "Letta has no such agent" in dry
    assert f"invite {world.bot} to the old room {rooms['Cora']}" in dry
    assert await old.pictures() == before, "a look changes nothing"

    done = await typed(world, IMPORT, str(old.file), "--apply")
    assert "3 agents adopted" in done and "2 old rooms told" in done, done
    assert f"invite {world.bot} to the old room {rooms['Cora']}" in done
    assert PASSWORD not in dry + done
    for name in ("Ada", "Basil"):
        told = await alice.wait_message(rooms[name], world.bot, "another room now")
        link = next(link for link in links(told) if link[0] in "#!")
        assert await resolve(alice, link) == await world.portal_of(alice, old.agents[name])
        assert await old.overseer.inside(rooms[name]) == {
            alice.user_id,
            old.service.user_id,
            old.users[name].user_id,
        }, "the bot has left again"
    invited = {
        name: {who for who, state in (await old.overseer.members(room)).items() if state == "invite"}
        for name, room in [(name, await world.portal_of(alice, agent)) for name, agent in old.agents.items()]
    }
    host = world.guests.host.user_id
    assert invited == {"Ada": {alice.user_id, host}, "Basil": {alice.user_id, host}, "Cora": {host}}

    portal = await follow(alice, await alice.wait_message(rooms["Ada"], world.bot, "another room now"))
    await world.ask(alice, portal, ada, "hello in the new room", "hello in the new room")
    await alice.say(rooms["Ada"], "hello in the old room")
    await world.ask(alice, portal, ada, "and again", "and again")
    assert len(answers(alice, portal, world.puppet(ada), "hello in the new room")) == 1
    assert world.bodies(ada) == ["hello in the new room", "and again"]
    assert [m.body for m in alice.messages(rooms["Ada"]) if m.sender not in (alice.user_id, world.bot)] == []

    await until(old.marked, "a room does not say that its agent was adopted")
    basil = await world.portal(alice, old.agents["Basil"])
    await alice.leave(basil)
    before = await old.pictures()
    again = await typed(world, IMPORT, str(old.file), "--apply")
    assert "3 agents adopted, 0 invitations sent, 0 old rooms told" in again, again
    assert await old.pictures() == before, "a second time changes nothing"
    assert [len(old.pointers(name)) for name in old.rooms] == [1, 1, 0]

    await alice.invite(rooms["Cora"], world.bot)
    await alice.wait_joined(rooms["Cora"], world.bot)
    late = await typed(world, IMPORT, str(old.file), "--apply")
    assert "1 invitation sent, 1 old room told" in late, late
    assert [len(old.pointers(name)) for name in old.rooms] == [1, 1, 1]
    await world.portal(alice, old.agents["Cora"])
    stored = [path for path in world.bridge.folder.iterdir() if path.is_file() and path != old.file]
    assert not [path for path in stored if PASSWORD.encode() in path.read_bytes()]
