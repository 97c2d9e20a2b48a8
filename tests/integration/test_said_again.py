"""What is said when a turn, or a message of it, has another life: it is told anew, where people look."""

from __future__ import annotations

import re

import pytest

from letta_bridge import errors
from letta_bridge.letta.errors import Kind
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_letta import Behaviour

from .command_kit import asked, bot_room
from .growing_kit import QUESTION, TURNS, Thought, half_said, said
from .world import World, notices, until

REFUSED = errors.TROUBLES[Kind.REJECTED].sentence


async def refusals(person: Person, room: str, count: int) -> None:
    """Wait until the person was told so often that Letta refused the message."""
    await until(lambda: [m.body for m in notices(person, room)].count(REFUSED) == count, why=f"not told {count} times")


async def given_up(world: World) -> str:
    """The dead letter of the only turn that was given up."""
    bridge = world.bridge
    assert bridge is not None
    return f"t{await bridge.db.fetchval('SELECT turn_id FROM turn WHERE state = $1', 'dead')}"


async def dead_letters(world: World) -> int:
    """How many events could not be sent."""
    bridge = world.bridge
    assert bridge is not None
    return int(await bridge.db.fetchval("SELECT COUNT(*) FROM outbox WHERE state = 'dead'"))


async def test_answer_of_a_retried_turn_is_a_message_of_its_own(world: World) -> None:
    """The model failed in the middle, then Letta refused the message. What was shown then may be far up by now."""
    admin = await world.hs.person("admin")
    alice, room, agent, thought, shown = await half_said(world, Behaviour(error_after=1))
    bot = await bot_room(world, admin)
    world.letta.fail_next(TURNS, 422, method="POST")
    thought.more.set()
    await refusals(alice, room, 1)
    world.letta.script(agent, Behaviour(text="all of it"))
    assert "Tried again" in await asked(admin, bot, f"retry {await given_up(world)}")
    answer = await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("^all of it$"))
    assert said(world, alice, room, agent) == [
        (shown.event_id, "half a thought\n\n*(broken off)*"),
        (answer.event_id, "all of it"),
    ]


async def test_turn_that_is_retried_and_given_up_again_is_told_again(world: World) -> None:
    """Else the last that its sender reads may be that it is kept."""
    admin, alice = await world.hs.person("admin"), await world.hs.person("alice")
    agent = world.letta.add_agent("Scout")
    await world.start()
    bot = await bot_room(world, admin)
    room = await world.dm(alice, agent)
    for count in (1, 2, 3):
        world.letta.fail_next(TURNS, 422, method="POST")
        if count == 1:
            await alice.send(room, "may I?")
        else:
            assert "Tried again" in await asked(admin, bot, f"retry {await given_up(world)}")
        await refusals(alice, room, count)


@pytest.mark.parametrize("end", [" and its end", " and …"], ids=["plain", "looks unfinished"])
async def test_answer_whose_first_event_was_refused_is_said_whole(sqlite_world: World, end: str) -> None:
    """The agent was thrown out when its answer began, and was back before it ended."""
    world = sqlite_world
    alice = await world.hs.person("alice")
    agent = world.letta.add_agent("Scout")
    puppet = world.puppet(agent)
    await world.start(conversation__first_event_s=0.0)
    room = await alice.create_room(invite=[puppet])
    await alice.wait_joined(room, puppet)
    await alice.send(room, "hello")
    await alice.wait_message(room, sender=puppet, text=re.compile("hello$"))
    thought, began = Thought(end), world.letta.hold(agent)
    world.letta.script(agent, Behaviour(text=thought.words()))
    await alice.send(room, QUESTION)
    await began.entered()
    await alice.kick(room, puppet)
    began.release()
    await until(lambda: dead_letters(world), why="it was not refused")
    await alice.invite(room, puppet)
    await alice.wait_joined(room, puppet)
    thought.finish()
    await alice.wait_message(room, sender=puppet, text=re.compile(f"and more{end}$"))
    assert [text for _, text in said(world, alice, room, agent)] == [f"half a thought and more{end}"]

    async def settled() -> bool:
        return not await dead_letters(world)

    await until(settled, why="the beginning could be tried again, and would be said behind the whole")


async def test_beginning_that_is_refused_is_not_said_to_be_missing(world: World) -> None:
    """The homeserver does not like it, and takes the whole."""
    alice = await world.hs.person("alice")
    agent = world.letta.add_agent("Scout")
    await world.start(conversation__first_event_s=0.0)
    room = await world.dm(alice, agent, "hello")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("hello$"))
    thought = Thought()
    world.letta.script(agent, Behaviour(text=thought.words()))
    world.hs.fail_next(r"/send/m\.room\.message/", status=400, errcode="M_BAD_JSON", times=1)
    await alice.send(room, QUESTION)
    await until(lambda: dead_letters(world), why="it was not refused")
    thought.finish()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("and its end$"))
    assert notices(alice, room) == []
