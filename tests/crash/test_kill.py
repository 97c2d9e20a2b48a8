"""``kill -9`` at bad moments: after the restart everything is answered, once and in order."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator

import pytest

from letta_bridge.testing.fake_homeserver import Person

from ..integration.world import until
from .harness import CrashWorld, echo


async def scene(world: CrashWorld) -> tuple[str, Person, str]:
    """Agent, person, and their DM in which something was answered."""
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    return agent, alice, await world.dm(alice, agent, "hello")


@pytest.mark.parametrize("ends", ["while down", "after the restart"])
async def test_killed_in_mid_turn(world: CrashWorld, ends: str) -> None:
    agent, alice, room = await scene(world)
    hold = world.letta.hold(agent)
    await alice.send(room, "one")
    await hold.entered()
    world.kill()
    if ends == "while down":
        hold.release()
        await until(lambda: world.letta.turns(agent)[-1].outcome != "running")
    await world.start()
    hold.release()
    await world.answered(alice, room, agent, "one")
    await alice.send(room, "two")
    await world.answered(alice, room, agent, "hello", "one", "two")
    assert world.heard(agent) == ["hello", "one", "two"]
    assert len(world.letta.turns(agent)) == 3


async def test_killed_in_mid_stream(world: CrashWorld) -> None:
    agent, alice, room = await scene(world)
    words = [f"word{number} " for number in range(20)]

    async def slowly() -> AsyncIterator[str]:
        for word in words:
            yield word
            await asyncio.sleep(0.1)

    world.letta.reply = lambda texts: slowly()
    await alice.send(room, "tell me")
    puppet = world.puppet(agent)
    early = await alice.wait_message(room, sender=puppet, text=re.compile("word0.*…$"), timeout=10)
    world.kill()
    await world.start()
    final = await alice.wait_message(room, sender=puppet, text=lambda body: "word19" in body, timeout=15)
    assert (final.event_id, final.body.split()) == (early.event_id, "".join(words).split())
    world.letta.reply = echo
    await alice.send(room, "and now?")
    await world.answered(alice, room, agent, "and now?")
    assert [m.body for m in alice.messages(room) if m.body.startswith("word")] == [final.body]
    assert world.heard(agent) == ["hello", "tell me", "and now?"]


@pytest.mark.parametrize("homeserver", ["stays", "restarts"])
async def test_killed_after_the_homeserver_took_the_answer(world: CrashWorld, homeserver: str) -> None:
    """The bridge never learnt that its message was taken; the homeserver recognises the second try."""
    agent, alice, room = await scene(world)
    lost = world.hs.fail_next(r"/send/m\.room\.message", times=None, after_processing="disconnect")
    await alice.send(room, "one")
    await world.answered(alice, room, agent, "one")
    world.kill()
    lost.cancel()
    if homeserver == "restarts":
        await world.hs.restart()
    world.hs.requests.clear()
    await world.start()
    await world.hs.wait_until(lambda: world.hs.count(r"/send/m\.room\.message") > 0, 10, "the second try")
    await alice.send(room, "two")
    await world.answered(alice, room, agent, "one", "two")
    assert world.heard(agent) == ["hello", "one", "two"]


async def test_killed_with_messages_queued_behind(world: CrashWorld) -> None:
    agent, alice, room = await scene(world)
    hold = world.letta.hold(agent)
    await alice.send(room, "one")
    await hold.entered()
    for text in ("two", "three", "four"):
        await alice.send(room, text)
    await world.hs.wait_pushed()
    world.kill()
    await alice.send(room, "five")  # while nobody listens
    await world.start()
    await world.hs.wait_pushed()
    hold.release()
    await world.answered(alice, room, agent, "one", "two", "three", "four", "five")
    assert world.heard(agent) == ["hello", "one", "two", "three", "four", "five"]


async def test_killed_between_invitation_and_first_answer(world: CrashWorld) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    world.hs.delay(r"/join", 30.0, times=1)
    room = await alice.create_dm(world.puppet(agent), text="first")
    await alice.send(room, "second")
    await world.hs.wait_until(lambda: world.hs.count(r"/join") > 0, 10, "the puppet on its way")
    world.kill()
    await world.start()
    await world.answered(alice, room, agent, "first", "second")
    assert world.heard(agent) == ["first", "second"]


async def test_killed_at_random_moments_of_a_burst(world: CrashWorld) -> None:
    """Three rooms, two agents, kills in the middle of everything: nothing lost, nothing twice, order kept."""
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    dice = random.Random(seed)

    async def slowly(texts: list[str]) -> AsyncIterator[str]:
        await asyncio.sleep(dice.uniform(0, 0.15))
        yield echo(texts)

    world.letta.reply = slowly
    agents = [world.letta.add_agent("Ada"), world.letta.add_agent("Basil")]
    alice = await world.hs.person("alice")
    await world.start()
    rooms = [(await world.dm(alice, agent, "hello"), agent) for agent in [*agents, agents[0]]]
    said: dict[str, list[str]] = {room: ["hello"] for room, _ in rooms}
    for burst in range(4):
        for number in range(12):
            room, _ = dice.choice(rooms)
            said[room].append(f"{burst}.{number}")
            await alice.send(room, said[room][-1])
            await asyncio.sleep(dice.uniform(0, 0.04))
        world.kill()
        room, _ = dice.choice(rooms)
        said[room].append(f"{burst}.down")
        await alice.send(room, said[room][-1])
        await world.start()
    for room, agent in rooms:
        await world.answered(alice, room, agent, *said[room], seconds=30)
        assert world.heard(agent, room) == said[room], f"seed {seed}"
        shown = " ".join(m.body for m in alice.messages(room) if m.sender == world.puppet(agent))
        assert re.findall(r"<([^>]*)>", shown) == said[room], f"seed {seed}"
    turns = [world.letta.turns(agent) for agent in agents]
    assert not any(one.overlaps(two) for own in turns for at, one in enumerate(own) for two in own[:at]), f"seed {seed}"


async def test_killed_while_agents_are_set_up(world: CrashWorld) -> None:
    agents = [world.letta.add_agent(f"Agent {number}") for number in range(6)]
    world.hs.appservice_url = world.url
    world.hs.delay(r"/createRoom|/join|/state/|/register|/profile", 0.03)
    for after in (3, 8, 15, 30):  # requests that change something
        world.hs.requests.clear()
        world.child = world.spawn()
        await world.hs.wait_until(
            lambda n=after: sum(r.method in ("PUT", "POST") for r in world.hs.requests) >= n,  # type: ignore[misc]
            15,
            "the mirror at work",
        )
        world.kill()
    await world.start()
    rooms = world.hs.hs.rooms
    portals = {agent: f"#letta_{agent.removeprefix('agent-')}:{world.hs.domain}" for agent in agents}

    def complete() -> bool:
        known = {alias: room for alias, (room, _) in world.hs.hs.aliases.items()}
        space = rooms.get(known.get(f"#letta_space:{world.hs.domain}", ""))
        return space is not None and all(
            alias in known
            and world.puppet(agent) in rooms[known[alias]].members()
            and space.content("m.space.child", known[alias]).get("via")
            for agent, alias in portals.items()
        )

    await world.hs.wait_until(complete, 20, "every agent with its portal in the space")
    assert len(rooms) == len(agents) + 1, [room.content("m.room.name") for room in rooms.values()]


async def test_killed_while_the_database_is_made(world: CrashWorld) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    for wait in (0.0, 0.005, 0.01, 0.02):  # after the first sign of the process; nobody sees the migration itself
        world.log.unlink(missing_ok=True)
        world.child = world.spawn()
        await until(lambda: (world.folder / "bridge.db.lock").exists() or "listening" in world.log.read_text())
        await asyncio.sleep(wait)
        world.kill()
        (world.folder / "bridge.db.lock").unlink(missing_ok=True)
    await world.start()
    await world.dm(alice, agent, "hello")
