"""Two replicas behind a load balancer, as a real Synapse and a real client see them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from letta_bridge.testing.balancer import Balancer
from letta_bridge.testing.fake_letta import FakeLetta
from letta_bridge.testing.stack.bridge import LocalBridge
from letta_bridge.testing.stack.process import free_port
from tests.conftest import RealSynapse

from .world import World, guests_of, settings_for

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.postgres, pytest.mark.asyncio(loop_scope="session")]


async def test_a_killed_replica_is_not_missed(tmp_path: Path, synapse: RealSynapse, postgres_url: str) -> None:
    guests = await guests_of(synapse.server)
    async with FakeLetta() as letta, Balancer(synapse.appservice_port) as balancer:
        shared = settings_for(letta.url, synapse.domain, guests, appservice__ping_interval="2")
        shared |= {"database.uri": postgres_url, "database.lease_s": "2", "database.beat_s": "0.5"}
        replicas = [_replica(tmp_path / name, synapse, shared) for name in ("one", "two")]
        balancer.peers += [replica.url for replica in replicas]
        try:
            await asyncio.gather(*(replica.start() for replica in replicas))
            await _talk(World(synapse=synapse.server, bridge=replicas[0], guests=guests, letta=letta), balancer)
        finally:
            for replica in replicas:
                await replica.stop()


def _replica(folder: Path, synapse: RealSynapse, settings: dict[str, str]) -> LocalBridge:
    folder.mkdir()
    port = free_port()
    own = {"appservice.port": str(port), "database.replica_id": folder.name}
    replica = LocalBridge(folder, port=port, settings={**settings, **own})
    replica.config = synapse.config
    return replica


async def _talk(world: World, balancer: Balancer) -> None:
    try:
        alice = await world.person("alice")
        agents = [world.letta.add_agent(name) for name in ("First", "Second", "Third")]
        rooms = {agent: (await world.dm(alice, agent, "hello"))[0] for agent in agents}
        for agent, room in rooms.items():
            await world.ask(alice, room, agent, "with two", "with two")
        assert len(balancer.answers("/transactions/")) == 2, "only one of them was given anything"
        hold = world.letta.hold()
        for room in rooms.values():
            await alice.say(room, "in the middle")
        await hold.entered(len(agents))
        world.bridge.kill()
        hold.release()
        for agent, room in rooms.items():
            await alice.wait_message(room, world.puppet(agent), "in the middle", seconds=30)
            await world.ask(alice, room, agent, "with one", "with one")
            assert world.bodies(agent) == ["hello", "with two", "in the middle", "with one"]
            assert len(alice.messages(room, world.puppet(agent))) == 4
    finally:
        await world.close_clients()
