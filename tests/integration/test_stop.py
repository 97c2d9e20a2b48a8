"""Stopping an agent: what the person sees, and what becomes of the run at Letta."""

from __future__ import annotations

import asyncio
import re

import pytest

from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_letta import Behaviour
from letta_bridge.testing.fake_letta.state import Turn

from .world import DOMAIN, World, a_group, notices, settled, until

STOPPED = re.compile(r"^Stopped: ")
SLOW = "#slow 400 0.02"


async def outcome(world: World, turn: Turn) -> str:
    """How a run of Letta ended, once it did."""
    await until(lambda: turn.outcome != "running", why="the run still runs")
    return turn.outcome


async def streaming(world: World, person: Person, room: str, agent: str) -> str:
    """Wait until the agent's answer shows while it is written; the event's id."""
    shown = await person.wait_message(room, sender=world.puppet(agent), text=re.compile(r"word\d+ …$"))
    return shown.event_id


async def test_stop_cancels_the_run_closes_the_answer_and_withdraws_what_waits(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(conversation__first_event_s=0.1)
    room = await world.dm(alice, agent, SLOW)
    event_id = await streaming(world, alice, room, agent)
    await alice.send(room, "and this too")
    await alice.send(room, "!stop")
    said = await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    assert said.body == "Stopped: what I was doing was cancelled, what waited for me was withdrawn."
    assert said.msgtype == "m.notice"
    closed = await alice.wait_message(room, text=re.compile(r"\(stopped\)"))
    assert closed.event_id == event_id
    assert "…" not in closed.body
    assert closed.body.startswith("word0 word1")
    [turn] = world.letta.turns(agent)
    assert await outcome(world, turn) == "cancelled"
    await alice.send(room, "still there?")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("still there"))
    assert len(world.letta.turns(agent)) == 2
    assert len([m for m in alice.messages(room) if STOPPED.search(m.body)]) == 1


@pytest.mark.parametrize("sqlite_world", [{}, {"redis": True}], indirect=True, ids=["plain", "redis"])
async def test_stop_cancels_exactly_the_run_of_this_room(sqlite_world: World) -> None:
    """Letta's cancel without a run id would hit the newest run, or every run, of the agent."""
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    hold = world.letta.hold(agent)
    room = await world.dm(alice, agent, "mine")
    await hold.entered()
    outside = asyncio.create_task(world.letta.outside_turn(agent, "somebody else's"))
    await hold.entered(2)
    await alice.send(room, "!stop")
    await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    hold.release()
    mine, other = world.letta.turns(agent)
    assert (await outcome(world, mine), await outcome(world, other)) == ("cancelled", "end_turn")
    await outside


@pytest.mark.parametrize("key", ["🛑", "⏹️"])
async def test_stop_reaction_on_the_question(sqlite_world: World, key: str) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    hold = world.letta.hold(agent)
    room = await world.dm(alice, agent)
    question = await alice.send(room, "think hard")
    await hold.entered()
    await alice.react(room, question, key)
    await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    hold.release()
    [turn] = world.letta.turns(agent)
    assert await outcome(world, turn) == "cancelled"


async def test_stop_reaction_on_the_streaming_answer(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(conversation__first_event_s=0.1)
    room = await world.dm(alice, agent, SLOW)
    event_id = await streaming(world, alice, room, agent)
    await alice.react(room, event_id, "🛑")
    closed = await alice.wait_message(room, text=re.compile(r"\(stopped\)"))
    assert closed.event_id == event_id
    [turn] = world.letta.turns(agent)
    assert await outcome(world, turn) == "cancelled"


async def test_stop_reaction_on_an_answer_of_which_it_is_not_written_yet_which_event_it_became(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    bridge = await world.start(conversation__first_event_s=0.1)
    room = await world.dm(alice, agent, SLOW)
    event_id = await streaming(world, alice, room, agent)

    async def written() -> bool:
        return bool(await bridge.db.fetchval("SELECT 1 FROM outbox WHERE sent_event_id = $1", event_id))

    await until(written, why="the answer was not written down")
    forget = "UPDATE outbox SET sent_event_id = '' WHERE sent_event_id = $1"
    await bridge.db.write(lambda conn: conn.execute(forget, event_id))
    await alice.react(room, event_id, "🛑")

    async def stopped() -> bool:
        return bool(await bridge.db.fetchval("SELECT 1 FROM turn WHERE stop_by = $1", alice.mxid))

    await until(stopped, why="the reaction was not understood")


async def test_stop_reaction_withdraws_only_the_message_it_is_on(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    hold = world.letta.hold(agent)
    room = await world.dm(alice, agent, "first")
    await hold.entered()
    root = next(m for m in alice.messages(room) if m.body == "first")
    thread = {"m.relates_to": {"rel_type": "m.thread", "event_id": root.event_id}}
    waiting = await alice.send(room, "waits in a thread", **thread)
    await settled(world)
    await alice.react(room, waiting, "🛑")
    await settled(world)
    hold.release()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("first"))
    said = await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    assert said.body == "Stopped: what waited for me was withdrawn."
    [turn] = world.letta.turns(agent)
    assert turn.outcome == "end_turn"


async def test_other_reactions_and_reactions_on_what_is_over_do_nothing(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "hello")
    answer = await alice.wait_message(room, sender=world.puppet(agent))
    await alice.react(room, answer.event_id, "🛑")
    hold = world.letta.hold(agent)
    question = await alice.send(room, "go on")
    await hold.entered()
    await alice.react(room, question, "👍")
    await settled(world)
    hold.release()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("go on"))
    assert notices(alice, room) == []


async def test_stop_of_somebody_without_permission_is_refused(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice, eve = await world.hs.person("alice"), await world.hs.person("eve", auto_join=True)
    await world.start(permissions={alice.mxid: "user"})
    room = await alice.create_room(invite=[eve.mxid, world.puppet(agent)])
    await alice.wait_joined(room, world.puppet(agent))
    hold = world.letta.hold(agent)
    question = await alice.send(room, "Scout: work")
    await hold.entered()
    await eve.react(room, question, "🛑")
    await eve.send(room, "!stop")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("not allowed to stop"))
    await eve.send(room, "!stop")
    await eve.send(room, "Scout: hello")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("not allowed to talk"))
    hold.release()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("work"))
    [turn] = world.letta.turns(agent)
    assert turn.outcome == "end_turn"
    assert len(notices(alice, room)) == 2


async def test_stop_with_nothing_to_do_says_so(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "!stop")
    said = await alice.wait_message(room, sender=world.puppet(agent))
    assert said.body == "There was nothing to stop."
    assert world.letta.turns(agent) == []


async def test_stop_denies_a_pending_approval_and_the_agent_is_usable_again(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, '#approve launch {"when": "now"}')
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("“launch”.*approval"))
    await alice.send(room, "this one waits")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("waiting for somebody to approve"))
    await alice.send(room, "!stop")
    said = await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    assert "approval was denied" in said.body and "withdrawn" in said.body
    await alice.send(room, "and now?")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("and now"))
    assert all("this one waits" not in text for turn in world.letta.turns(agent) for text in turn.texts)
    returned = [row for row in world.letta.history(agent, "*") if row["message_type"] == "tool_return_message"]
    assert [row["status"] for row in returned] == ["error"]


async def test_stop_reaction_on_the_question_for_approval_denies_it(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, '#approve launch {"when": "now"}')
    asked = await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("“launch”"))
    await alice.react(room, asked.event_id, "🛑")
    said = await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    assert said.body == "Stopped: the tool call that waited for approval was denied."
    await alice.send(room, "and now?")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("and now"))


async def test_stop_in_a_group_reaches_only_the_agent_that_is_addressed(sqlite_world: World) -> None:
    world = sqlite_world
    room, ada, basil, alice, _ = await a_group(world)
    hold = world.letta.hold()
    await alice.send(room, "go", **{"m.mentions": {"user_ids": [world.puppet(ada), world.puppet(basil)]}})
    await hold.entered(2)
    await alice.send(room, "!stop", **{"m.mentions": {"user_ids": [world.puppet(basil)]}})
    await alice.wait_message(room, sender=world.puppet(basil), text=STOPPED)
    hold.release()
    await alice.wait_message(room, sender=world.puppet(ada), text=re.compile("go"))
    assert await outcome(world, world.letta.turns(basil)[0]) == "cancelled"
    assert [m.sender for m in notices(alice, room)] == [world.puppet(basil)]


async def test_stop_in_a_group_as_a_reply_reaches_the_author(sqlite_world: World) -> None:
    world = sqlite_world
    room, ada, basil, alice, _ = await a_group(world)
    await alice.send(room, "Ada: hello")
    answer = await alice.wait_message(room, sender=world.puppet(ada))
    hold = world.letta.hold()
    await alice.send(room, "go", **{"m.mentions": {"user_ids": [world.puppet(ada), world.puppet(basil)]}})
    await hold.entered(2)
    await alice.reply(room, answer.event_id, "!stop")
    await alice.wait_message(room, sender=world.puppet(ada), text=STOPPED)
    hold.release()
    await alice.wait_message(room, sender=world.puppet(basil), text=re.compile("go"))
    assert await outcome(world, world.letta.turns(ada)[1]) == "cancelled"


async def test_stop_in_a_group_for_nobody_in_particular_reaches_all(sqlite_world: World) -> None:
    world = sqlite_world
    room, ada, basil, alice, _ = await a_group(world)
    hold = world.letta.hold()
    await alice.send(room, "go", **{"m.mentions": {"user_ids": [world.puppet(ada), world.puppet(basil)]}})
    await hold.entered(2)
    await alice.send(room, "!stop")
    for agent in (ada, basil):
        await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    hold.release()
    assert [await outcome(world, turn) for turn in world.letta.turns()] == ["cancelled", "cancelled"]
    await alice.send(room, "!stop")
    await alice.wait_message(room, text=re.compile("nothing to stop"))
    assert len([m for m in notices(alice, room) if "nothing" in m.body]) == 1


async def test_stop_in_one_room_leaves_the_turn_of_another_alone(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob")
    await world.start()
    hold = world.letta.hold(agent)
    busy = await world.dm(alice, agent, "long work for Alice")
    await hold.entered()
    other = await world.dm(bob, agent, "Bob waits")
    await settled(world)
    await bob.send(other, "!stop")
    said = await bob.wait_message(other, sender=world.puppet(agent))  # at once: Alice's turn may take minutes
    assert said.body == "Stopped: what waited for me was withdrawn."
    hold.release()
    await alice.wait_message(busy, sender=world.puppet(agent), text=re.compile("long work"))
    await alice.send(busy, "next")
    await alice.wait_message(busy, sender=world.puppet(agent), text=re.compile("next"))
    assert [turn.outcome for turn in world.letta.turns(agent)] == ["end_turn", "end_turn"]
    assert len(notices(bob, other)) == 1


async def test_stop_before_the_run_has_a_name(sqlite_world: World) -> None:
    """The request is under way, its first event not here yet: the run is cancelled as soon as it is named."""
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "warm up")
    await alice.wait_message(room, sender=world.puppet(agent))
    gate = world.letta.hold_next(r"/messages$", method="POST")
    hold = world.letta.hold(agent)
    await alice.send(room, "never mind")
    await gate.entered()
    await alice.send(room, "!stop")
    await settled(world)
    gate.release()
    await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    hold.release()
    assert await outcome(world, world.letta.turns(agent)[1]) == "cancelled"
    await alice.send(room, "hello again")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("hello again"))


async def test_stop_that_letta_does_not_confirm_is_told_honestly(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    hold = world.letta.hold(agent)
    room = await world.dm(alice, agent, "work")
    await hold.entered()
    world.letta.fail_next(r"/messages/cancel$", 500, times=100)
    await alice.send(room, "!stop")
    said = await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("did not confirm"), timeout=8)
    assert said.msgtype == "m.notice"
    hold.release()


async def test_a_passing_failure_of_the_cancel_is_tried_again(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    hold = world.letta.hold(agent)
    room = await world.dm(alice, agent, "work")
    await hold.entered()
    world.letta.fail_next(r"/messages/cancel$", 500)
    await alice.send(room, "!stop")
    await alice.wait_message(room, sender=world.puppet(agent), text=STOPPED)
    hold.release()
    [turn] = world.letta.turns(agent)
    assert await outcome(world, turn) == "cancelled"


async def test_stop_word_has_to_stand_alone_at_the_beginning(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    world.letta.script(agent, Behaviour(text="I do not stop."))
    room = await world.dm(alice, agent, "how does !stop work? !stopping?")
    await alice.wait_message(room, sender=world.puppet(agent), text="I do not stop.")
    assert world.puppet(agent).endswith(DOMAIN)
