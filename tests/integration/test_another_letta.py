"""Letta says that an agent does not exist, and it is not certain that the agent is gone: its messages wait."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from letta_bridge.testing.fake_homeserver import Person

from .life_kit import ask as command
from .test_guard_http import a_pass, started, states
from .world import World, notices, until

_LATER = "(SELECT MAX(created_at) FROM turn) + 250"  # more than five minutes would be a clock gone wrong
KEPT = re.compile("cannot be found in the Letta that answers now. Your message is kept")
AWAY = re.compile("cannot reach Letta right now. Your message is kept")
GONE = re.compile("does not exist in Letta any more. Your message was not delivered")


async def chats(world: World, count: int, **overrides: Any) -> tuple[Person, dict[str, str]]:
    """Alice, and a room with each of so many agents in which she has got one answer."""
    agents = await started(world, count, **overrides)
    alice = await world.hs.person("alice")
    rooms = {agent: await world.dm(alice, agent, "first") for agent in agents}
    for agent, room in rooms.items():
        await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("first"))
    return alice, rooms


async def answered(world: World, alice: Person, rooms: dict[str, str], text: str) -> None:
    for agent, room in rooms.items():
        said = re.compile(f"echo: .*{text}", re.DOTALL)
        await alice.wait_message(room, sender=world.puppet(agent), text=said, timeout=15)


async def long_waits(world: World) -> None:
    """Every message that waits would be tried again in minutes only."""
    bridge = world.bridge
    assert bridge is not None
    waiting = "SELECT COUNT(*) FROM turn WHERE state = 'queued' AND wait_reason = 'not_ours'"
    await until(lambda: bridge.db.fetchval(waiting), why="nothing waits")
    put_off = f"UPDATE turn SET not_before = {_LATER} WHERE wait_reason = 'not_ours'"
    await bridge.db.write(lambda conn: conn.execute(put_off))


def listings(world: World) -> int:
    return sum(request == ("GET", "/v1/agents/") for request in world.letta.requests)


def told_gone(alice: Person, rooms: dict[str, str]) -> list[str]:
    return [one.body for room in rooms.values() for one in notices(alice, room) if GONE.search(one.body)]


# -- before the mirror has looked by itself


@pytest.mark.parametrize("strangers", [0, 2])
async def test_a_message_waits_although_nobody_has_seen_yet_that_it_is_another_letta(
    world: World, strangers: int
) -> None:
    """The mirror looks every minute; the message comes before that."""
    alice, rooms = await chats(world, 2)
    before = world.letta.swap_database()
    for number in range(strangers):
        world.letta.add_agent(f"Stranger {number}")
    for room in rooms.values():
        await alice.send(room, "second")
    for room in rooms.values():
        await alice.wait_message(room, text=KEPT)
    assert world.bridge is not None
    guard = world.bridge.directory.guard
    await until(lambda: guard.in_doubt(), why="administrators are not asked")
    world.letta.swap_database(before)
    assert (await a_pass(world))["frozen"] == ""
    await answered(world, alice, rooms, "second")
    assert told_gone(alice, rooms) == []
    assert len(world.letta.turns()) == 4


async def test_a_letta_that_lost_all_its_agents_is_asked_about_first(sqlite_world: World) -> None:
    world = sqlite_world
    alice, rooms = await chats(world, 3)
    agent, room = next(iter(rooms.items()))
    world.letta.empty()
    await alice.send(room, "second")
    await alice.wait_message(room, text=KEPT)
    assert agent and told_gone(alice, rooms) == []


async def test_one_that_was_deleted_is_told_at_once(world: World) -> None:
    alice, rooms = await chats(world, 3)
    agent, room = next(iter(rooms.items()))
    world.letta.remove_agent(agent)
    await alice.send(room, "second")
    await alice.wait_message(room, text=GONE)
    assert world.bridge is not None
    bridge = world.bridge

    async def missing() -> bool:
        return sorted(await states(world)) == ["active", "active", "missing"]

    await until(missing, why="the mirror did not look")
    assert not [one.body for one in notices(alice, room) if KEPT.search(one.body)]
    assert bridge.ready


@pytest.mark.parametrize(
    ("route", "status"), [(r"^/v1/admin/orgs/$", 503), (r"^/v1/agents/$", 500)], ids=["which it is", "whom it has"]
)
async def test_while_letta_does_not_say_a_message_waits_as_in_an_outage(
    sqlite_world: World, route: str, status: int
) -> None:
    world = sqlite_world
    alice, rooms = await chats(world, 2)
    before = world.letta.swap_database()
    fault = world.letta.fail_next(route, status, times=1000)
    agent, room = next(iter(rooms.items()))
    await alice.send(room, "second")
    await alice.wait_message(room, text=AWAY)
    world.letta.swap_database(before)
    fault.times = 0
    await answered(world, alice, {agent: room}, "second")
    assert told_gone(alice, rooms) == []


async def busy(world: World) -> None:
    """The mirror's lane is at work for a minute: the homeserver takes its time with a room."""
    assert world.bridge is not None
    before = len(world.hs.requests)
    world.hs.delay(r"/createRoom$", 60.0)
    world.letta.add_agent("Newest")
    await world.bridge.directory.refreshes.request()
    await until(lambda: any("/register" in one.path for one in world.hs.requests[before:]), why="nothing is being made")


async def test_a_burst_costs_one_look(sqlite_world: World) -> None:
    """Also while the mirror cannot write down what was found."""
    world = sqlite_world
    alice, rooms = await chats(world, 25)
    await busy(world)
    world.letta.swap_database()
    since = listings(world)
    await asyncio.gather(*(alice.send(room, "second") for room in rooms.values()))
    for room in rooms.values():
        await alice.wait_message(room, text=KEPT, timeout=20)
    assert 1 <= listings(world) - since <= 3, "it is one where the machine is not slow"
    assert told_gone(alice, rooms) == []


async def test_the_mirror_being_busy_holds_up_no_message(sqlite_world: World) -> None:
    """Its lane may be at work for minutes, here or in another replica; nobody waits for it."""
    world = sqlite_world
    alice, rooms = await chats(world, 3)
    await busy(world)
    (gone, room), (_, other), *_ = rooms.items()
    world.letta.remove_agent(gone)
    await alice.send(room, "second")
    await alice.wait_message(room, text=GONE)
    world.letta.swap_database()
    await alice.send(other, "second")
    await alice.wait_message(other, text=KEPT)


async def test_an_answer_from_the_wrong_letta_that_is_over_already_counts_for_nothing(sqlite_world: World) -> None:
    """It is ours again before anybody looks: the agent is listed, and the message is tried again."""
    world = sqlite_world
    alice, rooms = await chats(world, 2)
    agent, room = next(iter(rooms.items()))
    before = world.letta.swap_database()
    look = world.letta.hold_next(r"^/v1/agents/$", method="GET")
    await alice.send(room, "second")
    async with asyncio.timeout(10):
        await look.entered()
    world.letta.swap_database(before)
    look.release()
    await answered(world, alice, {agent: room}, "second")
    assert told_gone(alice, rooms) == []
    assert not notices(alice, room)


# -- the end of the doubt


async def test_what_waits_goes_on_as_soon_as_the_agents_are_listed_again(world: World) -> None:
    alice, rooms = await chats(world, 2)
    before = world.letta.swap_database()
    assert (await a_pass(world))["frozen"] == "another"
    for room in rooms.values():
        await alice.send(room, "second")
        await alice.wait_message(room, text=KEPT)
    await long_waits(world)
    world.letta.swap_database(before)
    assert (await a_pass(world))["frozen"] == ""
    await answered(world, alice, rooms, "second")


async def test_what_waits_is_told_as_soon_as_it_was_confirmed(world: World) -> None:
    alice, rooms = await chats(world, 2)
    world.letta.empty()
    assert (await a_pass(world))["frozen"] == "empty"
    agent, room = next(iter(rooms.items()))
    await alice.send(room, "second")
    await alice.wait_message(room, text=KEPT)
    await long_waits(world)
    assert agent and world.bridge is not None
    frozen = (await world.bridge.directory.guard.read()).frozen
    assert frozen is not None
    assert (await command(world, f"guard confirm {frozen.nonce}")).ok
    await alice.wait_message(room, text=GONE)
    assert await states(world) == ["missing"] * 2


# -- many gone at once


@pytest.mark.parametrize("looked", [True, False])
async def test_while_it_is_undecided_whether_many_may_go_their_messages_wait(sqlite_world: World, looked: bool) -> None:
    """Whether or not the mirror has seen it yet."""
    world = sqlite_world
    alice, rooms = await chats(world, 6)
    lost = dict(list(rooms.items())[2:])
    for agent in lost:
        world.letta.remove_agent(agent)
    if looked:
        assert (await a_pass(world))["frozen"] == "shrunk"
    for room in rooms.values():
        await alice.send(room, "second")
    for room in lost.values():
        await alice.wait_message(room, text=KEPT)
    await answered(world, alice, dict(list(rooms.items())[:2]), "second")
    assert told_gone(alice, rooms) == []
    assert world.bridge is not None
    guard = world.bridge.directory.guard
    await until(lambda: guard.in_doubt(), why="administrators are not asked")
    frozen = (await guard.read()).frozen
    assert frozen is not None and frozen.why == "shrunk"
    await long_waits(world)
    assert (await command(world, f"guard confirm {frozen.nonce}")).ok
    for room in lost.values():
        await alice.wait_message(room, text=GONE)
    assert len(told_gone(alice, rooms)) == 4
