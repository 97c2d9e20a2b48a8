"""When the homeserver is slow, limits, fails, forgets or goes away: each answer appears once, whole and in order."""

from __future__ import annotations

import re
from typing import Any

import pytest

from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_letta import Behaviour

from .world import World, notices, settled, until

SEND = r"/send/m\.room\.message/"


async def one_room(world: World, **overrides: Any) -> tuple[str, Person, str]:
    """An agent, Alice, and a room of both in which she may throw it out, and in which one message was answered."""
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(**overrides)
    await world.mirrored()
    room = await alice.create_room(invite=[world.puppet(agent)], is_direct=True, preset="private_chat")
    await alice.wait_joined(room, world.puppet(agent))
    await alice.send(room, "hello")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("hello"))
    return agent, alice, room


def said(world: World, person: Person, room: str, agent: str) -> list[str]:
    """Everything that the agent said in the room after its first answer, as it looks now."""
    return [m.body for m in person.messages(room) if m.sender == world.puppet(agent)][1:]


def sends(world: World, room: str) -> list[float]:
    """When the bridge tried to send into the room."""
    return [r.time for r in world.hs.requests if r.method == "PUT" and room in r.path and re.search(SEND, r.path)]


async def test_a_rate_limit_is_waited_out(world: World) -> None:
    agent, alice, room = await one_room(world)
    world.hs.requests.clear()
    world.hs.fail_next(SEND, status=429, retry_after_ms=700)
    await alice.send(room, "ping")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("ping"))
    first, second = sends(world, room)
    assert second - first >= 0.7
    assert len(said(world, alice, room, agent)) == 1


@pytest.mark.parametrize("after_processing", [False, True, "disconnect"])
async def test_failures_of_the_homeserver_neither_lose_nor_double(world: World, after_processing: Any) -> None:
    agent, alice, room = await one_room(world)
    fault = world.hs.fail_next(SEND, status=502, times=2, after_processing=after_processing)
    await alice.send(room, "ping")
    await until(lambda: fault.hits == 2)
    await alice.send(room, "pong")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("pong"))
    ping, pong = said(world, alice, room, agent)
    assert "ping" in ping and "pong" in pong


async def test_a_reply_that_is_due_while_the_homeserver_is_away(world: World) -> None:
    agent, alice, room = await one_room(world)
    hold = world.letta.hold(agent)
    await alice.send(room, "ping")
    await hold.entered()
    await world.hs.stop()
    hold.release()
    bridge = world.bridge
    assert bridge is not None
    tried = "SELECT attempts FROM outbox WHERE state = 'pending'"
    await until(lambda: bridge.db.fetchval(tried), why="nothing was tried")
    await world.hs.start()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("ping"))
    await alice.send(room, "pong")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("pong"))
    assert len(said(world, alice, room, agent)) == 2


async def test_a_reply_survives_a_restart_of_the_bridge_while_the_homeserver_is_away(world: World) -> None:
    agent, alice, room = await one_room(world)
    fault = world.hs.fail_next(SEND, status=503, times=None)
    await alice.send(room, "ping")
    await until(lambda: fault.hits)
    await world.stop()
    fault.cancel()
    await world.start()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("ping"))
    assert len(said(world, alice, room, agent)) == 1
    assert len(world.letta.turns(agent)) == 2


async def test_a_homeserver_that_restarts_between_two_tries_gets_no_second_message(world: World) -> None:
    """It took the message, its answer was lost, and it forgot the transaction ids that only memory held."""
    agent, alice, room = await one_room(world)
    world.hs.fail_next(SEND, status=502, after_processing="disconnect")
    late = world.hs.fail_next(SEND, status=503, times=None)
    await alice.send(room, "ping")
    await until(lambda: late.hits)
    await world.hs.restart()
    late.cancel()
    await alice.send(room, "pong")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("pong"))
    assert len(said(world, alice, room, agent)) == 2


async def test_a_lost_device_is_made_again(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    devices = world.hs.hs.accounts.users[world.puppet(agent)].devices
    before = set(devices)
    assert before
    devices.clear()
    await alice.send(room, "ping")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("ping"))
    assert set(devices) == before
    assert len(said(world, alice, room, agent)) == 1


async def test_a_lost_device_that_cannot_be_made_again_costs_no_message(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    world.hs.hs.accounts.users[world.puppet(agent)].devices.clear()
    world.hs.fail_next(r"/devices/", status=404, errcode="M_NOT_FOUND", method="PUT", times=None)
    await alice.send(room, "ping")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("ping"))


@pytest.mark.parametrize("how", ["kick", "ban"])
async def test_a_puppet_that_was_thrown_out_goes_on_elsewhere(world: World, how: str) -> None:
    agent, alice, room = await one_room(world)
    hold = world.letta.hold(agent)
    await alice.send(room, "ping")
    await hold.entered()
    await getattr(alice, how)(room, world.puppet(agent), "enough")
    hold.release()
    other = await world.dm(alice, agent, "here?")
    await alice.wait_message(other, sender=world.puppet(agent), text=re.compile("here"))
    bridge = world.bridge
    assert bridge is not None
    await until(lambda: bridge.db.fetchval("SELECT error FROM outbox WHERE state = 'dead'"))
    assert said(world, alice, room, agent) == []
    assert world.puppet(agent) not in alice.members(room)
    left = "SELECT COUNT(*) FROM turn WHERE state IN ('queued', 'running', 'replying')"
    await until(lambda: zero(bridge.db.fetchval(left)), why="a turn stays open")


async def zero(value: Any) -> bool:
    return int(await value) == 0


async def test_a_puppet_that_is_invited_back_before_its_answer_is_due_says_it(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    hold = world.letta.hold(agent)
    await alice.send(room, "ping")
    await hold.entered()
    await alice.kick(room, world.puppet(agent))
    await alice.invite(room, world.puppet(agent))
    hold.release()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("ping"))


async def test_an_answer_that_the_homeserver_refuses_for_good_is_said_to_be_missing(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    world.hs.fail_next(SEND, status=400, errcode="M_BAD_JSON")
    await alice.send(room, "ping")
    notice = await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("did not take my answer"))
    assert notice.msgtype == "m.notice"
    await alice.send(room, "pong")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("pong"))


async def test_a_streamed_answer_that_is_refused_is_said_to_be_missing_once(sqlite_world: World) -> None:
    """Its beginning, and then all of it."""
    world = sqlite_world
    agent, alice, room = await one_room(world, conversation__first_event_s=0.05)
    world.hs.fail_next(SEND, status=400, errcode="M_BAD_JSON", times=2)
    await alice.send(room, "#slow 20 0.02")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("did not take my answer"))
    await alice.send(room, "pong")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("pong"))
    assert len(notices(alice, room)) == 1


async def test_parts_stay_in_order_while_single_sends_fail(world: World) -> None:
    agent, alice, room = await one_room(world, limits__reply_part_kib=1)
    paragraphs = [f"Part {n}: " + "lorem ipsum " * 60 for n in range(6)]
    world.letta.script(agent, Behaviour(text="\n\n".join(paragraphs)))
    world.hs.fail_next(SEND, status=429, retry_after_ms=200)
    world.hs.fail_next(SEND, status=502, after_processing="disconnect")
    await alice.send(room, "tell me")
    await until(lambda: said(world, alice, room, agent))
    await alice.send(room, "more")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("more"), timeout=8)
    bodies = said(world, alice, room, agent)
    assert [int(n) for body in bodies for n in re.findall(r"Part (\d):", body)] == list(range(6))
    assert "more" in bodies[-1]


async def test_live_edits_are_shed_when_limited_and_the_final_lands(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world, conversation__first_event_s=0.05)
    await alice.send(room, "#slow 80 0.02")
    shown = await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("word0.*…"))
    fault = world.hs.fail_next(SEND, status=429, retry_after_ms=30_000)
    final = await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("word79$"), timeout=8)
    assert fault.hits == 1
    assert final.event_id == shown.event_id
    assert final.body == " ".join(f"word{n}" for n in range(80))
    assert final.edits_count == 1


async def test_one_room_that_is_limited_does_not_hold_up_another(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    other = await world.dm(alice, agent)
    fault = world.hs.fail_next(re.escape(room) + ".*" + SEND, status=503, times=None)
    await alice.send(room, "stuck")
    await until(lambda: fault.hits)
    await alice.send(other, "free")
    await alice.wait_message(other, sender=world.puppet(agent), text=re.compile("free"))
    assert said(world, alice, room, agent) == []
    fault.cancel()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("stuck"))
    await settled(world)
