"""What one replica knows and another needs: pings, stops, the mirror, the bot's device, one turn per agent."""

from __future__ import annotations

import asyncio

import pytest

from letta_bridge.testing.fake_homeserver.client_api import Request

from ..integration.world import BOT, until
from .harness import Replica, ReplicaWorld, puppet_of

pytestmark = pytest.mark.postgres


async def pushed_to(world: ReplicaWorld, replica: Replica) -> None:
    """From now on the homeserver reaches this replica alone."""
    world.hs.appservice_url = replica.url


@pytest.mark.full
async def test_pings_that_arrive_at_another_replica_leave_both_ready(world: ReplicaWorld) -> None:
    await world.start("one", "two", appservice__ping_interval=0.3)
    begun = len(world.balancer.passed)
    await until(lambda: all(_pings(world, begun)[world[name].url] > 4 for name in ("one", "two")), 20)
    await pushed_to(world, world["one"])
    asked = len(world.hs.requests)
    await until(lambda: sum(r.path.endswith("/ping") for r in world.hs.requests[asked:]) > 6, 20)
    assert [await world[name].health("ready") for name in ("one", "two")] == [200, 200]
    assert world["two"].said("ping_ok") == 1, "its way was said to be broken and well again"


def _pings(world: ReplicaWorld, begun: int) -> dict[str, int]:
    found = [one.peer for one in world.balancer.passed[begun:] if one.path.endswith("/ping") and one.status == 200]
    return {replica.url: found.count(replica.url) for replica in world.replicas.values()}


async def test_the_same_transaction_at_two_replicas_at_once(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    rooms = await world.chats(alice, agents=2, rooms=2)
    await world.hs.wait_pushed()
    world.hs.hold_push()
    for number in range(5):
        await world.burst(alice, rooms, 1)
        world.hs.release_push()
        await world.hs.wait_pushed(20)
        world.hs.hold_push()
        last = world.hs.transactions[-1]
        taken = await asyncio.gather(*(world.hs.push_again(last, txn_id=f"again-{number}-{n}") for n in range(4)))
        assert all(taken)
    world.hs.release_push()
    await world.burst(alice, rooms, 1)
    await world.all_answered(alice)


async def test_stop_reaches_the_replica_that_has_the_agent(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    (room,) = await world.chats(alice, agents=1, rooms=1)
    await world.say(alice, room, "hello")
    await world.all_answered(alice)
    owner = await world.owned(f"agent:{room.agent}")
    (other,) = world.others(owner)
    hold = world.letta.hold(room.agent)
    await alice.send(room.room_id, "think for ever")
    await hold.entered()
    await world.sql("UPDATE lane SET owner = $1, epoch = epoch + 1 WHERE lane = $2", other.name, f"room:{room.room_id}")
    await pushed_to(world, other)
    await alice.send(room.room_id, "!stop")
    await alice.wait_message(room.room_id, text=lambda body: "topped" in body, timeout=2)
    hold.release()
    await until(lambda: world.letta.turns(room.agent)[-1].outcome == "cancelled")


@pytest.mark.full
async def test_stop_is_noticed_although_its_signal_was_lost(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one")
    (room,) = await world.chats(alice, agents=1, rooms=1)
    hold = world.letta.hold(room.agent)
    await alice.send(room.room_id, "think for ever")
    await hold.entered()
    await until(lambda: _accepted(world), 10)
    # what another replica writes, without its notification
    await world.sql("UPDATE turn SET stop_by = $1 WHERE state = 'running'", alice.mxid)
    await until(lambda: ("POST", f"/v1/agents/{room.agent}/messages/cancel") in world.letta.requests, 10)
    hold.release()


async def _accepted(world: ReplicaWorld) -> bool:
    return bool(await world.sql("SELECT 1 FROM turn WHERE state = 'running' AND run_id <> ''"))


@pytest.mark.full
async def test_two_rooms_of_one_agent_on_two_replicas_take_turns(world: ReplicaWorld) -> None:
    alice = await world.hs.person("alice")
    await world.start("one", "two")
    rooms = await world.chats(alice, agents=1, rooms=4)
    await world.burst(alice, rooms, 1)
    await world.all_answered(alice)
    for room, name in zip(rooms, ("one", "two", "one", "two"), strict=True):
        await world.sql("UPDATE lane SET owner = $1, epoch = epoch + 1 WHERE lane = $2", name, f"room:{room.room_id}")
    await world.burst(alice, rooms, 6)
    await world.all_answered(alice)


async def test_the_mirror_goes_on_when_its_replica_is_killed(world: ReplicaWorld) -> None:
    """Everything is made once, whoever makes it."""
    world.settings["letta.poll_interval"] = 1.0
    world.settings["mirror.concurrency"] = 2
    slow = world.hs.delay(r"/createRoom|/profile/", 0.1)
    await world.start("one", "two")
    agents = [world.letta.add_agent(f"Agent {number}") for number in range(12)]
    owner = await world.owned("mirror")
    (heir,) = world.others(owner)
    await until(lambda: 2 < len(_rooms_made(world)) < 11, 20)
    owner.kill()
    await until(lambda: _all_mirrored(world, len(agents)), 25, why="not all agents are mirrored")
    slow.cancel()
    assert await world.owner("mirror") == heir.name
    portals = [
        room.state for room in world.hs.hs.rooms.values() if any(kind.endswith(".portal") for kind, _ in room.state)
    ]
    named = [state[("m.room.canonical_alias", "")].content["alias"] for state in portals]
    assert sorted(named) == sorted(f"#letta_{agent.removeprefix('agent-')}:test.local" for agent in agents)
    # who came second knows what the first one made
    alice = await world.hs.person("alice")
    late = world.letta.add_agent("Late")
    await until(lambda: _all_mirrored(world, len(agents) + 1), 25, why="the mirror stands still")
    await alice.create_dm(puppet_of(late))


def _rooms_made(world: ReplicaWorld) -> list[Request]:
    return [r for r in world.hs.requests if r.path.endswith("/createRoom") and r.status == 200]


async def _all_mirrored(world: ReplicaWorld, count: int) -> bool:
    rows = await world.sql("SELECT COUNT(*) AS n FROM agent WHERE in_space <> '' AND portal_joined <> 0")
    return bool(rows[0]["n"] >= count)


async def test_all_replicas_learn_the_bots_device_and_tell_the_mirror_of_new_agents(world: ReplicaWorld) -> None:
    """A bot's event that one replica sent is known to the homeserver when another repeats it, only by its device."""
    await world.start("one", "two")
    alice = await world.hs.person("alice")
    for name in ("one", "two"):
        await pushed_to(world, world[name])
        room = await alice.create_dm(BOT)
        await alice.wait_joined(room, BOT, timeout=10)
        await world.sql("UPDATE lane SET owner = $1, epoch = epoch + 1 WHERE lane = $2", name, f"send:{room}")
        await alice.send(room, "help")
        await alice.wait_message(room, sender=BOT, text=lambda body: "I am the bridge" in body, timeout=10)
    sends = [event for event in world.hs.hs.events.values() if event.sender == BOT and event.type == "m.room.message"]
    devices = {event.transaction[1] for event in sends if event.transaction}
    assert len(sends) == 2
    assert len(devices) == 1
    assert None not in devices
    mirror = await world.owned("mirror")
    (other,) = world.others(mirror)
    await pushed_to(world, other)
    agent = world.letta.add_agent("New")  # the next look at Letta's list is a minute away
    await alice.create_dm(puppet_of(agent))
    await until(lambda: _all_mirrored(world, 1), 10, why="the replica with the mirror was not told")


@pytest.mark.full
async def test_two_processes_under_one_name(world: ReplicaWorld) -> None:
    world.nursery = None
    alice = await world.hs.person("alice")
    await world.start("one")
    (room,) = await world.chats(alice, agents=1, rooms=1)
    hold = world.letta.hold(room.agent)
    await world.say(alice, room, "in the middle")
    await hold.entered()
    twin = world.made("twin", database__replica_id="one")
    del world.replicas["twin"]
    code, said = await twin.ended(twin.spawn())
    assert code == 21
    assert "another letta-bridge runs as replica 'one'" in said
    hold.release()
    await world.all_answered(alice)
    assert not world["one"].said("lane_fenced")
    assert await world["one"].terminate() == 0


@pytest.mark.full
async def test_a_run_that_could_not_be_cancelled_is_waited_for_by_whoever_goes_on(world: ReplicaWorld) -> None:
    """For a while: a second run of the conversation beside it would spoil both."""
    alice = await world.hs.person("alice")
    await world.start("one", letta__request_timeout=8.0)
    (room,) = await world.chats(alice, agents=1, rooms=1)
    await world.start("two", letta__request_timeout=8.0)
    hold = world.letta.hold(room.agent)
    await alice.send(room.room_id, "think for ever")
    await hold.entered()
    await until(lambda: _accepted(world), 10)
    world.letta.fail_next(r"/messages/cancel", 500, times=3)
    await alice.send(room.room_id, "!stop")
    await alice.wait_message(room.room_id, text=lambda body: "topped" in body, timeout=10)
    world["one"].kill()
    run = ("GET", f"/v1/runs/{world.letta.turns(room.agent)[0].run_id}")
    looked = world.letta.requests.count(run)
    await world.say(alice, room, "and now?")
    await until(lambda: _owned_by(world, f"agent:{room.agent}", "two"), 10)
    await until(lambda: world.letta.requests.count(run) > looked, 5, why="the heir does not look for the run's end")
    assert len(world.letta.turns(room.agent)) == 1
    hold.release()
    await until(lambda: world.answers(alice, room, "and now?"), 10)
    assert not world.overlaps()


async def _owned_by(world: ReplicaWorld, lane: str, name: str) -> bool:
    return await world.owner(lane) == name


@pytest.mark.full
async def test_a_run_that_letta_forgot_is_known_as_such_to_who_did_not_see_letta_away(world: ReplicaWorld) -> None:
    """Letta calls such a run running for ever; only who knows that Letta was away does not wait for it."""
    alice = await world.hs.person("alice")
    await world.start("one")
    (room,) = await world.chats(alice, agents=1, rooms=1)
    await world.start("two")
    hold = world.letta.hold(room.agent)
    await world.say(alice, room, "hello")
    await hold.entered()
    await until(lambda: _accepted(world), 10)
    world.letta.kill()
    await until(lambda: world.sql("SELECT 1 FROM setting WHERE name = 'letta_refused_at'"), 10)
    world["one"].kill()
    hold.release()
    await world.letta.start()
    await until(lambda: world.answers(alice, room, "hello"), 20, why="the heir waits for a run that is no more")
    assert world["two"].said("turn_found") >= 1
