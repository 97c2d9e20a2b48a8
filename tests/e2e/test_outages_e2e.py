"""What a person notices of restarts of the bridge and the homeserver, and of rate limits: that it takes longer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from letta_bridge.ids import RoomID
from letta_bridge.testing.fake_letta import Behaviour, FakeLetta
from letta_bridge.testing.stack.bridge import LocalBridge
from letta_bridge.testing.stack.synapse import LocalSynapse
from tests.conftest import RealSynapse

from .wire import Wire
from .world import World, a_bridge, guests_of, settings_for

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

SEND = r"/send/m\.room\.message/"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wire(synapse: RealSynapse) -> AsyncIterator[Wire]:
    async with Wire(synapse.url) as wire:
        yield wire


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def module_world(
    synapse: RealSynapse, wire: Wire, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """As everywhere in this folder, with the wire between the bridge and Synapse."""
    guests = await guests_of(synapse.server)
    async with FakeLetta() as letta:
        settings = settings_for(letta.url, synapse.domain, guests, homeserver__url=wire.url)
        bridge = a_bridge(tmp_path_factory.mktemp("bridge"), synapse, settings)
        async with bridge:
            world = World(synapse=synapse.server, bridge=bridge, guests=guests, letta=letta)
            yield world
            await world.close_clients()


async def test_messages_sent_while_the_bridge_is_down_are_answered_once(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Sleeper")
    room, _ = await world.dm(alice, agent, "before")
    assert await world.bridge.stop() == 0
    for text in ("one", "two"):
        await alice.say(room, text)
    newcomer = world.letta.add_agent("Newcomer")
    fresh = await alice.create_dm(world.puppet(newcomer), "are you new?")
    await world.bridge.start()
    await alice.wait_message(room, world.puppet(agent), "two")
    await alice.wait_message(fresh, world.puppet(newcomer), "are you new?")
    await world.ask(alice, room, agent, "after", "after")
    assert world.bodies(agent) == ["before", "one", "two", "after"]
    assert world.bodies(newcomer) == ["are you new?"]
    assert len(alice.messages(room, world.puppet(agent))) == len(world.letta.turns(agent))
    assert len(alice.messages(fresh, world.puppet(newcomer))) == 1


async def test_answer_that_is_due_while_synapse_is_down_comes_once(world: World, wire: Wire) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Patient")
    puppet = world.puppet(agent)
    room, _ = await world.dm(alice, agent, "before")
    hold = world.letta.hold(agent)
    asked = await alice.say(room, "what is due?")
    await hold.entered()
    await world.synapse.stop()
    hold.release()
    await wire.seen(SEND, 0)
    await world.synapse.start()
    await alice.wait_message(room, puppet, "what is due?", after=asked, seconds=40)
    await world.ask(alice, room, agent, "after", "after")
    assert len(alice.messages(room, puppet, asked)) == 2
    assert world.bodies(agent) == ["before", "what is due?", "after"]


async def test_answer_whose_confirmation_is_lost_comes_once_though_synapse_restarts(world: World, wire: Wire) -> None:
    """Synapse took the answer, the bridge never learned it, Synapse lost its memory but for the devices'."""
    alice = await world.person("alice")
    agent = world.letta.add_agent("Twice")
    puppet = world.puppet(agent)
    room, _ = await world.dm(alice, agent, "before")
    wire.calls.clear()
    loss = wire.lose(SEND)
    asked = await alice.say(room, "once, please")
    await loss.given.wait()
    await alice.wait_message(room, puppet, "once, please", after=asked)
    await world.synapse.restart()
    loss.cut()
    await world.ask(alice, room, agent, "after", "after")
    assert len(alice.messages(room, puppet, asked)) == 2
    sent = [path for _, path, status in wire.calls if "/send/m.room.message/" in path and status == 200]
    assert len(sent) == 3  # the first one twice, under the same transaction id
    assert sent[0] == sent[1] != sent[2]


async def test_bridge_killed_while_it_sets_up_agents_makes_nothing_twice(world: World) -> None:
    host = await world.client(world.guests.host)
    await world.bridge.stop()
    for number in range(8):
        world.letta.add_agent(f"Recruit {number}")
    invited_before = len(host.client.invited_rooms)
    await world.bridge.start()
    await host.wait(lambda: len(host.client.invited_rooms) >= invited_before + 2, "the first portals")
    world.bridge.kill()
    await world.bridge.start()
    portals = {await world.portal_of(host, agent) for agent in world.letta.agents}
    space = RoomID((await host.client.room_resolve_alias(world.space_alias)).room_id)
    await host.wait_invite(space)
    await host.join(space)
    await host.wait(lambda: portals <= host.client.rooms[space].children, "all portals in the space")
    await host.wait(lambda: portals <= set(host.client.invited_rooms), "all invitations")
    assert set(host.client.invited_rooms) == portals
    agent = list(world.letta.agents)[-1]
    await world.dm(host, agent, "hello")


@pytest.mark.timeout(120)
async def test_everything_arrives_through_rate_limits(tmp_path: Path, synapse: RealSynapse) -> None:
    """A Synapse of its own, with its limits on, and without the exemption that the registration normally asks for."""
    domain, bridge = "limited.localhost", LocalBridge(tmp_path / "bridge")
    limits: dict[str, Any] = {"rc_message": {"per_second": 8, "burst_count": 2}}
    homeserver = LocalSynapse(
        tmp_path / "synapse",
        domain=domain,
        registrations=[bridge.registration],
        rate_limits=True,
        settings=limits,
    )
    await bridge.init(
        homeserver_url=homeserver.url, domain=domain, letta_url="http://127.0.0.1:9", admin=f"@a:{domain}"
    )
    exempt = bridge.registration.read_text()
    bridge.registration.write_text(exempt.replace("rate_limited: false", "rate_limited: true"))
    assert bridge.registration.read_text() != exempt
    async with FakeLetta() as letta, homeserver, Wire(homeserver.url) as wire:
        guests = await guests_of(homeserver)
        bridge.settings = settings_for(letta.url, domain, guests, homeserver__url=wire.url)
        async with bridge:
            world = World(synapse=homeserver, bridge=bridge, guests=guests, letta=letta)
            try:
                await _talk_much(world, wire)
            finally:
                await world.close_clients()


async def _talk_much(world: World, wire: Wire) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Talkative")
    puppet = world.puppet(agent)
    room, _ = await world.dm(alice, agent, "before")
    paragraphs = [f"paragraph {n} " + "word " * 2000 for n in range(6)]  # one event takes one of them
    world.letta.script(agent, Behaviour(text="\n\n".join(paragraphs)))
    asked = await alice.say(room, "tell me everything")
    await alice.wait_message(room, puppet, "paragraph 5", after=asked, seconds=40)
    shown = "\n\n".join(message.body for message in alice.messages(room, puppet, asked))
    assert [shown.count(f"paragraph {n} ") for n in range(6)] == [1] * 6

    asked = await alice.say(room, "#slow 20 0.1")
    live = await alice.wait_message(room, puppet, "word0", after=asked)
    await alice.wait_message(room, puppet, lambda m: m.body.endswith("word19"), after=asked)
    assert [m.event_id for m in alice.messages(room, puppet, asked)] == [live.event_id]
    assert wire.count("/send/", 429) > 0
