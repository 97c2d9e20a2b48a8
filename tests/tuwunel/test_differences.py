"""Where the two homeservers answer the bridge differently, it does the same on both."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from letta_bridge import errors
from letta_bridge.ids import MXID, RoomID
from letta_bridge.matrix.homeserver import HomeserverError
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_letta import Behaviour

from ..integration.intake_kit import heard, scene
from ..integration.world import DOMAIN, World, a_group, settled, until

SEND = re.compile(r"/rooms/([^/]+)/send/[^/]+/(.+)$")


def bridge_of(world: World) -> Any:
    assert world.bridge is not None
    return world.bridge


async def test_everything_is_registered_and_named_by_the_bridge_itself(either: World) -> None:
    """Rows 16, 18, 26, 28, 33 to 35, 42: nothing hangs on what only one homeserver does by itself, or serves."""
    world = either
    agents = [world.letta.add_agent(name) for name in ("Ada", "Basil")]
    await world.start()
    await world.mirrored()
    assert world.hs.count("/register$", method="POST") >= 3
    for agent in agents:
        alice = await world.hs.person("alice")
        room = await world.dm(alice, agent, "hello")
        await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("hello"))
    users = world.hs.hs.accounts.users
    shown = [users[user].profile["displayname"] for user in map(world.puppet, agents)]
    assert shown == ["Ada", "Basil"]
    assert "💕" not in users[f"@lettabridge:{DOMAIN}"].profile["displayname"]
    unused = r"/whoami|/media/v1/create|/redact/|/hierarchy|/_matrix/media/(v3|r0)/(config|download|thumbnail)|msc4140"
    assert [r.path for r in world.hs.requests if re.search(unused, r.path)] == []
    assert all(r.status not in (401, 404, 405) for r in world.hs.requests if "/profile/" in r.path)


async def test_an_invited_puppet_that_does_not_exist_yet_joins_on_the_event_alone(tuwunel_world: World) -> None:
    """Row 15: Tuwunel asks for no user, so the invitation itself must do."""
    world = tuwunel_world
    await world.start()
    alice = await world.hs.person("alice")
    agent = world.letta.add_agent("Newcomer")
    room = await world.dm(alice, agent, "Are you there?")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("Are you there"))
    nobody = f"@letta_00000000-0000-4000-8000-000000000000:{DOMAIN}"
    refused = await alice.create_dm(nobody, text="hello?")

    def reason(timeline: list[dict[str, Any]]) -> Any:
        return [e["content"].get("reason") for e in timeline if e.get("state_key") == nobody][1:]

    assert await alice.wait_for(refused, reason) == [errors.NO_SUCH_AGENT]


async def test_refusals_mean_the_same(either: World) -> None:
    """Rows 17, 20, 21, 22, 31: other words, other codes, one meaning."""
    world = either
    at = await scene(world)
    homeserver = bridge_of(world).homeserver
    bot, puppet = homeserver.bot, homeserver.intent(MXID(world.puppet(at.agent)))
    room, stranger = RoomID(at.room), MXID(at.alice.mxid)
    with pytest.raises(HomeserverError) as refusal:
        await homeserver.intent(stranger).set_displayname("not mine")
    assert refusal.value.forbidden and not refusal.value.passing

    await puppet.invite(room, stranger)  # is in the room already
    bob = await world.hs.person("bob")
    await at.alice.ban(at.room, bob.mxid)
    with pytest.raises(HomeserverError) as refusal:
        await puppet.invite(room, MXID(bob.mxid))
    assert refusal.value.forbidden

    assert await bot.membership(room, stranger) is None  # cannot be read: says nothing about the room
    assert await puppet.membership(room, stranger) == "join"
    with pytest.raises(HomeserverError):
        await bot.state(room)

    await bot.leave(room)  # was never there
    await bot.leave(RoomID(f"!nowhere:{DOMAIN}"))
    await bot.leave(room)
    assert (world.puppet(at.agent) in await puppet.joined_members(room)) is True


async def test_a_device_that_is_gone_is_made_again(either: World) -> None:
    """Row 19."""
    world = either
    at = await scene(world)
    await world.mirrored()
    devices = world.hs.hs.accounts.users[world.puppet(at.agent)].devices
    before = set(devices)
    devices.clear()
    await at.alice.send(at.room, "ping")
    await at.answered("ping")
    assert before and set(devices) == before
    assert heard(at) == ["hello", "ping"]


async def test_transaction_ids_name_room_and_user(either: World) -> None:
    """Rows 23 and 24: one homeserver forgets the room of an id, the other one its user."""
    world = either
    room, ada, basil, alice, _ = await a_group(world)
    rooms = [room, await world.dm(alice, ada, "hello"), await world.dm(alice, basil, "hello")]
    for number in range(2):
        for agent, name in ((ada, "Ada"), (basil, "Basil")):
            await alice.send(room, f"{name}: again")
            await alice.wait_for(room, lambda t, a=agent, n=number: len(said(world, t, a)) == n + 1)
    for one in rooms[1:]:
        for _ in range(2):
            before = len(alice.messages(one))
            await alice.send(one, "again")
            await alice.wait_for(one, lambda _, o=one, b=before: len(alice.messages(o)) == b + 2)
    await settled(world)
    sends = [
        (request.user_id, *match.groups()) for request in world.hs.requests if (match := SEND.search(request.path))
    ]
    users = Counter(txn_id for _, _, txn_id in set(sends))
    assert len(users) >= 8 and set(users.values()) == {1}


def said(world: World, timeline: list[dict[str, Any]], agent: str) -> list[Any]:
    return [e for e in timeline if e["sender"] == world.puppet(agent) and e["type"] == "m.room.message"]


async def test_a_send_whose_answer_was_lost_is_not_shown_twice(either: World) -> None:
    """Row 25, with a restart of the homeserver between the two tries."""
    world = either
    at = await scene(world)
    await world.mirrored()
    world.hs.fail_next(r"/send/m\.room\.message/", status=502, after_processing="disconnect")
    late = world.hs.fail_next(r"/send/m\.room\.message/", status=503, times=None)
    await at.alice.send(at.room, "ping")
    await until(lambda: late.hits)
    await world.hs.restart()
    late.cancel()
    await at.answered("ping")
    await at.alice.send(at.room, "pong")
    await at.answered("pong")
    assert len(said(world, at.alice.timeline(at.room), at.agent)) == 3


async def test_who_is_in_a_room_is_asked_of_somebody_who_is_in_it(either: World) -> None:
    """Row 31: the database is gone, and of many agents only the last one is in the room."""
    world = either
    agents = [world.letta.add_agent(f"Agent {number}") for number in range(6)]
    alice = await world.hs.person("alice")
    await world.start()
    await world.mirrored()
    room = await world.dm(alice, agents[-1], "before")
    await alice.wait_message(room, sender=world.puppet(agents[-1]), text=re.compile("before"))
    await world.stop()
    for file in world.folder.glob("bridge.db*"):
        file.unlink()
    await world.start()
    await alice.send(room, "after")
    await alice.wait_message(room, sender=world.puppet(agents[-1]), text=re.compile("after"), timeout=15)


async def test_typing_ends_with_the_answer(either: World) -> None:
    """Row 32: Tuwunel would show it for 15 seconds and more."""
    world = either
    at = await scene(world)
    puppet = world.puppet(at.agent)
    world.letta.script(at.agent, Behaviour(text=" ".join(f"word{n}" for n in range(20)), delay=0.1))
    await at.alice.send(at.room, "slowly")
    await world.hs.wait_until(lambda: at.alice.typing(at.room) == [puppet], 10, "typing")
    await at.alice.wait_message(at.room, sender=puppet, text=re.compile("word19"), timeout=10)
    await world.hs.wait_until(lambda: at.alice.typing(at.room) == [], 5, "the end of typing")


@pytest.mark.full
@pytest.mark.parametrize("version", ["11", "12"])
async def test_rooms_of_both_versions(either: World, version: str) -> None:
    """Row 43."""
    world = either
    agent = world.letta.add_agent("Versed")
    alice: Person = await world.hs.person("alice")
    await world.start(mirror__room_version=version)
    await world.mirrored()
    assert (":" in await world.portal(agent)) == (version == "11")
    room = await alice.create_dm(world.puppet(agent), text="first", room_version=version)
    assert (":" in room) == (version == "11")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("first"))
