"""What is never pushed is read back: after every join to its invitation, after a gap to the last event handled."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from letta_bridge.db.database import Database
from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person

from .world import World, a_world, until


@pytest_asyncio.fixture(params=["synapse", "tuwunel"])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Both homeservers, on SQLite."""
    async with a_world(tmp_path, "sqlite:bridge.db", flavour=request.param) as made:
        yield made


def heard(world: World, agent: str, room: str | None = None) -> list[str]:
    """What an agent was told (in one room), in order."""
    read = [envelope.open_(text) for turn in world.letta.turns(agent) for text in turn.texts]
    return [message.body for message in read if room in (None, message.room.id)]


async def told(world: World, agent: str, *texts: str, room: str | None = None) -> None:
    """Wait until the agent has heard the last of ``texts``; it heard exactly them, in this order."""
    await until(lambda: texts[-1] in heard(world, agent, room), why=f"{texts[-1]!r} was never heard")
    await settled(world)
    assert heard(world, agent, room) == list(texts)


async def settled(world: World) -> None:
    """Everything pushed is decided and every turn has ended."""
    bridge = world.bridge
    assert bridge is not None
    await world.hs.wait_pushed()
    await until(bridge.inbox_is_empty)

    async def no_turns() -> bool:
        return await bridge.turns.open_lanes() == []

    await until(no_turns)


async def join_as(world: World, agent: str, room: str) -> None:
    """The puppet joins without the bridge's doing, as an admin can make it."""
    url = f"{world.hs.url}/_matrix/client/v3/join/{room}"
    headers = {"Authorization": f"Bearer {world.hs.appservice.as_token}"}
    async with (
        ClientSession() as session,
        session.post(url, headers=headers, params={"user_id": world.puppet(agent)}, json={}) as answer,
    ):
        assert answer.status == 200, await answer.text()


async def ready(world: World, **overrides: object) -> tuple[str, Person]:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(**overrides)
    await world.mirrored()
    return agent, alice


# -- after a join


async def test_all_texts_between_invitation_and_join_come_first_and_in_order(world: World) -> None:
    agent, alice = await ready(world)
    joining = world.hs.delay(r"/join", 0.3)
    room = await alice.create_dm(world.puppet(agent), text="text 0")
    sent = ["text 0"]
    for number in range(1, 40):  # across the join, which comes somewhere among them
        sent.append(f"text {number}")
        await alice.send(room, sent[-1])
        await asyncio.sleep(0.01)
    await alice.wait_joined(room, world.puppet(agent))
    joining.cancel()
    sent.append("the last")
    await alice.send(room, sent[-1])
    await told(world, agent, *sent, room=room)


async def test_first_text_on_both_homeservers(either: World) -> None:
    agent, alice = await ready(either)
    room = await alice.create_dm(either.puppet(agent), text="first")
    await alice.send(room, "second")
    await alice.wait_message(room, sender=either.puppet(agent), text=re.compile("second"))
    await told(either, agent, "first", "second")


async def test_what_was_said_before_the_invitation_is_not_read(world: World) -> None:
    agent, alice = await ready(world)
    room = await alice.create_room(preset="private_chat")
    await alice.send(room, "not for the agent")
    await alice.invite(room, world.puppet(agent))
    await alice.send(room, "for the agent")
    await told(world, agent, "for the agent")


async def test_after_a_kick_only_what_followed_the_new_invitation_is_read(either: World) -> None:
    agent, alice = await ready(either)
    room = await alice.create_dm(either.puppet(agent), preset="private_chat", text="one")
    await told(either, agent, "one")
    await alice.kick(room, either.puppet(agent))
    await alice.send(room, "behind its back")
    await alice.invite(room, either.puppet(agent))
    await alice.send(room, "two")
    await alice.wait_joined(room, either.puppet(agent))
    await alice.send(room, "three")
    await told(either, agent, "one", "two", "three")


async def test_kicked_before_it_could_look_around(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = await ready(world)
    looking = world.hs.delay(r"/state$", 0.3)
    room = await alice.create_dm(world.puppet(agent), preset="private_chat", text="one")
    await world.hs.wait_until(lambda: bool(looking.hits), what="the look around")
    await alice.kick(room, world.puppet(agent))
    looking.cancel()
    await alice.invite(room, world.puppet(agent))
    await alice.send(room, "two")
    await told(world, agent, "two")


async def test_two_agents_invited_at_once_hear_each_text_once(world: World) -> None:
    ada, basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    alice = await world.hs.person("alice")
    await world.start()
    await world.mirrored()
    room = await alice.create_room(preset="private_chat", invite=[world.puppet(ada), world.puppet(basil)])
    both = {"m.mentions": {"user_ids": [world.puppet(ada), world.puppet(basil)]}}
    await alice.send(room, "hello both", **both)
    for agent in (ada, basil):
        await alice.wait_joined(room, world.puppet(agent))
    await alice.send(room, "and again", **both)
    await until(lambda: heard(world, ada)[-1:] == heard(world, basil)[-1:] == ["and again"])
    await settled(world)
    # whoever joined second was no member yet when the first text was dispatched
    assert sorted([heard(world, ada), heard(world, basil)], key=len)[1] == ["hello both", "and again"]
    for agent in (ada, basil):
        assert len(heard(world, agent)) == len(set(heard(world, agent)))


async def test_a_join_without_invitation_reads_no_history_but_learns_the_room(world: World) -> None:
    agent, alice = await ready(world)
    bob = await world.hs.person("bob")
    room = await alice.create_room(preset="public_chat")
    await bob.join(room)
    await alice.send(room, f"{world.puppet(agent)} long ago")
    await join_as(world, agent, room)
    await alice.send(room, "nobody is meant: two people are here")
    await bob.send(room, f"{world.puppet(agent)} now")
    await told(world, agent, f"{world.puppet(agent)} now")
    assert envelope.open_(world.letta.turns(agent)[0].texts[0]).room.people == 3


async def test_members_are_learnt_anew_when_it_comes_back_to_a_room(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = await ready(world)
    bob = await world.hs.person("bob")
    room = await alice.create_room(preset="public_chat", invite=[world.puppet(agent)])
    await alice.wait_joined(room, world.puppet(agent))
    await alice.send(room, "we are alone")
    await told(world, agent, "we are alone")
    await alice.kick(room, world.puppet(agent))
    await world.hs.wait_pushed()
    await bob.join(room)  # not pushed: none of ours is in
    await join_as(world, agent, room)
    await alice.send(room, "nobody is meant")
    await alice.send(room, f"{world.puppet(agent)} you are")
    await told(world, agent, "we are alone", f"{world.puppet(agent)} you are")


async def test_history_that_it_may_not_read_costs_only_that(world: World) -> None:
    agent, alice = await ready(world)
    joined_only = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": "joined"},
    }
    room = await alice.create_dm(world.puppet(agent), text="unreadable", initial_state=[joined_only])
    await alice.wait_joined(room, world.puppet(agent))
    await alice.send(room, "readable")
    await told(world, agent, "readable")


async def test_the_limit_keeps_the_newest(sqlite_world: World, caplog: pytest.LogCaptureFixture) -> None:
    world = sqlite_world
    agent, alice = await ready(world, limits__catchup_events=3)
    joining = world.hs.delay(r"/join", 0.2)
    room = await alice.create_dm(world.puppet(agent), text="text 0")
    for number in range(1, 8):
        await alice.send(room, f"text {number}")
    await alice.wait_joined(room, world.puppet(agent))
    joining.cancel()
    await told(world, agent, "text 6", "text 7")  # and the join itself
    assert "reading back ended at its limit" in [record.message for record in caplog.records]


async def test_edits_and_redactions_among_what_is_read_back_are_heeded(world: World) -> None:
    agent, alice = await ready(world)
    bob = await world.hs.person("bob")
    hold = world.letta.hold(agent)
    other = await world.dm(bob, agent, "keeps the agent busy")
    await hold.entered()
    room = await alice.create_dm(world.puppet(agent), text="typpo")
    typo = alice.messages(room)[0].event_id
    gone = await alice.send(room, "gone")
    await alice.redact(room, gone)
    await alice.edit(room, typo, "typo, corrected")
    await alice.send(room, "last")
    await alice.wait_joined(room, world.puppet(agent))
    assert world.bridge is not None
    await world.hs.wait_pushed()
    await until(world.bridge.inbox_is_empty)
    hold.release()
    await told(world, agent, "typo, corrected", "last", room=room)
    assert heard(world, agent, other) == ["keeps the agent busy"]
    said = [m for m in alice.messages(room) if m.sender == world.puppet(agent)]
    assert all(m.msgtype != "m.notice" for m in said), "a redacted message needs no notice"


async def test_reading_back_that_fails_at_first_is_tried_again(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = await ready(world)
    fault = world.hs.fail_next(r"/messages", status=502)
    room = await alice.create_dm(world.puppet(agent), text="first")
    await until(lambda: fault.hits)
    await alice.send(room, "second")
    await told(world, agent, "first", "second")


async def test_a_join_whose_answer_was_lost_keeps_the_order(world: World) -> None:
    agent, alice = await ready(world)
    world.hs.fail_next(r"/join", after_processing="disconnect")
    room = await alice.create_dm(world.puppet(agent), text="first")
    await alice.wait_joined(room, world.puppet(agent))
    await alice.send(room, "second")
    await told(world, agent, "first", "second")


async def test_more_than_a_page_is_read(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = await ready(world, limits__messages_per_minute=1000)
    joining = world.hs.delay(r"/join", 0.5)
    room = await alice.create_dm(world.puppet(agent), text="0")
    for number in range(1, 250):
        await alice.send(room, str(number))
    await alice.wait_joined(room, world.puppet(agent))
    joining.cancel()
    await alice.send(room, "end")
    await told(world, agent, *(str(number) for number in range(250)), "end")


# -- after a gap


async def long_ago(world: World, seconds: float) -> None:
    """Stopped: make it look as if the bridge had been away for ``seconds``."""
    db = Database(world.database, world.folder)
    await db.open()
    value = float(await db.fetchval("SELECT value FROM setting WHERE name = 'alive_at'"))
    await db.write(
        lambda conn: conn.execute("UPDATE setting SET value = $1 WHERE name = 'alive_at'", str(value - seconds))
    )
    await db.close()


async def homeserver_forgets(world: World, keep: int) -> None:
    """Restarted while it could not reach the bridge: of what is queued it keeps ``keep`` events (Tuwunel)."""
    world.hs.push_settings.netburst_keep = keep
    world.hs.hold_push()
    await world.hs.restart()


@pytest.mark.parametrize("keep", [0, 2, 1000])
async def test_a_gap_is_closed_in_order_and_without_repeats(tmp_path: Path, database_uri: str, keep: int) -> None:
    async with a_world(tmp_path, database_uri, flavour="tuwunel") as world:
        agent, alice = await ready(world)
        room = await world.dm(alice, agent, "before")
        await told(world, agent, "before")
        await world.stop()
        missed = [f"missed {number}" for number in range(6)]
        world.hs.hold_push()
        for text in missed:
            await alice.send(room, text)
        await homeserver_forgets(world, keep)
        await long_ago(world, 3600)
        world.hs.release_push()
        await world.start()
        await alice.send(room, "after")
        await told(world, agent, "before", *missed, "after")
        await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("after"))


async def test_a_short_stop_is_no_gap(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = await ready(world)
    room = await world.dm(alice, agent, "before")
    await told(world, agent, "before")
    await world.stop()
    await alice.send(room, "meanwhile")
    world.hs.requests.clear()
    await world.start()
    await told(world, agent, "before", "meanwhile")
    assert world.hs.count(r"/messages") == 0


async def test_a_gap_of_rooms_that_can_no_longer_be_read_is_given_up(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = await ready(world)
    left = await alice.create_dm(world.puppet(agent), preset="private_chat", text="leave me")
    kept = await world.dm(alice, agent, "keep me")
    await told(world, agent, "leave me", room=left)
    await told(world, agent, "keep me", room=kept)
    await world.stop()
    await alice.kick(left, world.puppet(agent))
    await alice.send(kept, "missed")
    await long_ago(world, 3600)
    refused = world.hs.fail_next(rf"{left}/messages", status=403, errcode="M_FORBIDDEN", times=None)
    await world.start()
    await told(world, agent, "keep me", "missed", room=kept)
    assert world.bridge is not None
    gaps = world.bridge.rooms.gaps

    async def closed() -> bool:
        return await gaps() == []

    await until(closed, why="a gap that cannot be closed is tried for ever")
    refused.cancel()


async def test_a_gap_waits_for_a_homeserver_that_is_away(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = await ready(world)
    room = await world.dm(alice, agent, "before")
    await told(world, agent, "before")
    await world.stop()
    world.hs.hold_push()
    await alice.send(room, "missed")
    await long_ago(world, 3600)
    fault = world.hs.fail_next(r"/messages", status=503)
    await world.start()
    await until(lambda: fault.hits)
    world.hs.release_push()
    await told(world, agent, "before", "missed")
