"""A replica dies, freezes, or loses the database: the others go on with its work, and it does no harm."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator

import pytest

from letta_bridge.testing.fake_homeserver import Person

from ..crash.harness import echo
from ..integration.world import until
from .harness import DEFAULTS, Replica, ReplicaWorld, Room, puppet_of
from .pg_wire import PgWire

pytestmark = pytest.mark.postgres
WORDS = [f"word{number} " for number in range(30)]


async def slowly() -> AsyncIterator[str]:
    for word in WORDS:
        yield word
        await asyncio.sleep(0.1)


async def streaming(world: ReplicaWorld, alice: Person, room: Room) -> tuple[Replica, str]:
    """The room's agent is in the middle of a long answer: the replica that shows it, and the event that grows."""
    world.letta.reply = lambda texts: slowly()
    await alice.send(room.room_id, "tell me")
    shown = await alice.wait_message(
        room.room_id, sender=puppet_of(room.agent), text=re.compile("word0.*…$"), timeout=15
    )
    return await world.owned(f"agent:{room.agent}"), shown.event_id


async def told_once(world: ReplicaWorld, alice: Person, room: Room, event_id: str) -> None:
    """The long answer came to its end in the same event, once, and stays as it is."""
    puppet, whole = puppet_of(room.agent), "".join(WORDS).split()
    final = await alice.wait_message(
        room.room_id, sender=puppet, text=lambda body: body.split()[-1] == "word29", timeout=25
    )
    assert (final.event_id, final.body.split()) == (event_id, whole)
    world.letta.reply = echo
    await world.say(alice, room, "and now?")
    await alice.wait_message(room.room_id, sender=puppet, text=lambda body: "and now?" in body, timeout=15)
    shown = [m for m in alice.messages(room.room_id) if m.body.startswith("word")]
    assert [(m.event_id, m.body.split()) for m in shown] == [(event_id, whole)]
    assert world.heard(room) == ["tell me", "and now?"]
    assert not world.overlaps()
    assert len(world.letta.turns(room.agent)) == 2


async def test_with_default_settings_the_lanes_of_a_killed_replica_move_within_eight_seconds(
    world: ReplicaWorld,
) -> None:
    world.nursery, world.settings = None, dict(DEFAULTS)
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    rooms = await world.chats(alice, agents=5, rooms=2)
    await world.burst(alice, rooms, 3)
    await until(lambda: world.answers(alice, rooms[0], rooms[0].said[0]))
    lanes = await world.owners()
    assert lanes["one"], "the one to be killed has nothing to leave"
    world["one"].kill()
    killed = time.monotonic()
    await world.burst(alice, rooms, 3)  # work for every lane that it left

    async def none_left() -> bool:
        lanes = [lane for room in rooms for lane in (f"room:{room.room_id}", f"agent:{room.agent}")]
        return not await world.sql("SELECT 1 FROM lane WHERE owner = 'one' AND lane = ANY($1::text[])", lanes)

    await until(none_left, 12, why="lanes of the dead replica are still its own")
    took = time.monotonic() - killed
    print(f"the last lane moved after {took:.1f} s")
    assert took <= 8, f"taking over the dead replica's lanes took {took:.1f} s"
    await world.all_answered(alice)


@pytest.mark.full
async def test_killed_in_mid_burst(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one", "two", "three")
    rooms = await world.chats(alice, agents=5, rooms=2)
    burst = asyncio.create_task(world.burst(alice, rooms, 10, 0.02))
    await until(lambda: sum(len(room.said) for room in rooms) > 40)
    world["one"].kill()
    await burst
    await world.all_answered(alice)
    await world["one"].start()
    await world.burst(alice, rooms, 2)
    await world.all_answered(alice)


@pytest.mark.full
async def test_all_killed_and_started_again(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    rooms = await world.chats(alice, agents=3, rooms=2)
    burst = asyncio.create_task(world.burst(alice, rooms, 10, 0.02))
    await until(lambda: sum(len(room.said) for room in rooms) > 30)
    for name in ("one", "two"):
        world[name].kill()
    await burst
    await world.start("one", "two")
    await world.all_answered(alice)


@pytest.mark.full
async def test_killed_in_mid_stream_another_goes_on_in_the_same_event(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    (room,) = await world.chats(alice, agents=1, rooms=1)
    owner, event_id = await streaming(world, alice, room)
    puppet = puppet_of(room.agent)
    await world.hs.wait_until(lambda: puppet in alice.typing(room.room_id), 5, "typing")
    owner.kill()
    await told_once(world, alice, room, event_id)
    await world.hs.wait_until(lambda: puppet not in alice.typing(room.room_id), 5, "the end of typing")


@pytest.mark.full
async def test_typing_that_a_killed_replica_showed_is_ended(world: ReplicaWorld) -> None:
    """The run ends while nobody follows it: the heir finds the answer, and never shows typing itself."""
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    (room,) = await world.chats(alice, agents=1, rooms=1)
    hold = world.letta.hold(room.agent)
    await world.say(alice, room, "hello")
    await hold.entered()
    puppet = puppet_of(room.agent)
    await world.hs.wait_until(lambda: puppet in alice.typing(room.room_id), 5, "typing")
    (await world.owned(f"agent:{room.agent}")).kill()
    hold.release()
    await world.all_answered(alice)
    await world.hs.wait_until(lambda: puppet not in alice.typing(room.room_id), 5, "the end of typing")


async def test_frozen_in_mid_stream_longer_than_its_lease(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    (room,) = await world.chats(alice, agents=1, rooms=1)
    owner, event_id = await streaming(world, alice, room)
    (heir,) = world.others(owner)
    assert owner.child is not None
    owner.child.send_signal(signal.SIGSTOP)
    try:
        taken = await until(lambda: world.owner(f"agent:{room.agent}"), 10)
        while taken != heir.name:
            taken = await world.owner(f"agent:{room.agent}")
        await alice.wait_message(room.room_id, text=lambda body: body.split()[-1] == "word29", timeout=25)
    finally:
        owner.child.send_signal(signal.SIGCONT)
    await until(lambda: owner.said("self_fenced"), 10, why="the thawed replica did not notice")
    await told_once(world, alice, room, event_id)
    await world.hs.wait_until(lambda: owner.url in world.balancer.healthy, 10, "the thawed one serves again")
    rooms = await world.chats(alice, agents=3, rooms=2)
    await world.burst(alice, rooms, 3)
    room.said.insert(0, "tell me")
    world.rooms.remove(room)
    await world.all_answered(alice)
    assert (await world.owners("room:"))[owner.name], "the thawed replica does nothing"


@pytest.mark.full
async def test_frozen_with_an_edit_under_way_that_lands_on_the_final(world: ReplicaWorld) -> None:
    """The homeserver takes the edit late, after its heir's final: thawed, the replica shows the final again."""
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    (room,) = await world.chats(alice, agents=1, rooms=1)
    owner, event_id = await streaming(world, alice, room)
    assert owner.child is not None
    late = world.hs.delay(r"/send/m\.room\.message/", 12.0, times=1, method="PUT")
    await until(lambda: late.hits, 10, why="no edit under way")
    owner.child.send_signal(signal.SIGSTOP)
    try:
        await alice.wait_message(room.room_id, text=lambda body: body.split()[-1] == "word29", timeout=11)
        await alice.wait_message(room.room_id, text=lambda body: body.endswith("…"), timeout=15)
    finally:
        owner.child.send_signal(signal.SIGCONT)
    await told_once(world, alice, room, event_id)


async def test_cut_off_from_the_database_it_stops_before_others_take_over(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    async with PgWire(world.database) as wire:
        await world.start("one", database__uri=wire.url)
        rooms = await world.chats(alice, agents=5, rooms=2)
        await world.burst(alice, rooms, 4)
        await world.all_answered(alice)
        await world.start("two")  # comes later, and gets its share of the agents little by little
        assert not await _none_left(world, "one"), "the one to be cut off has no agent to leave"
        hold = world.letta.hold()
        await world.burst(alice, rooms, 1)
        await hold.entered(len(world.letta.agents))
        wire.cut()
        await until(lambda: _none_left(world, "one"), 15, why="its lanes are not taken over")
        taken = await until(lambda: world["two"].when("turn_found"), 10, why="its turns are not taken up")
        assert world["one"].when("self_fenced") < taken, "others took over first"
        hold.release()
        await world.burst(alice, rooms, 3)
        await world.all_answered(alice)
        wire.mend()
        await until(lambda: world["one"].url in world.balancer.healthy, 20, why="it does not come back")
        await world.burst(alice, rooms, 3)
        more = await world.chats(alice, agents=5, rooms=2)
        await world.burst(alice, more, 3)
        await world.all_answered(alice)
        assert (await world.owners())["one"], "it does nothing any more"


async def _none_left(world: ReplicaWorld, name: str) -> bool:
    return not (await world.owners("agent:")).get(name)
