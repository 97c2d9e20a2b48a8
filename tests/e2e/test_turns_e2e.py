"""An agent at work, as the person sees it: live answers, typing, receipts, stopping, and what waits meanwhile."""

from __future__ import annotations

import pytest

from letta_bridge.testing.fake_letta import Behaviour

from .world import World

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]


async def test_long_answer_is_shown_while_it_is_written_and_ends_complete(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Slow")
    puppet = world.puppet(agent)
    room, _ = await world.dm(alice, agent, "hello")
    asked = await alice.say(room, "#slow 40 0.1")
    early = await alice.wait_message(room, puppet, "word0", after=asked)
    assert early.body.endswith("…")
    assert "word39" not in early.body
    await alice.wait(lambda: alice.typing(room) == [puppet], "typing")
    await alice.wait(lambda: alice.has_read(room, puppet) == asked, "the read receipt")

    final = await alice.wait_message(room, puppet, lambda m: m.body.endswith("word39"), after=asked)
    assert final.event_id == early.event_id
    assert final.body == " ".join(f"word{n}" for n in range(40))
    assert 2 <= final.edits <= 6
    await alice.wait(lambda: alice.typing(room) == [], "the end of typing")
    assert len(alice.messages(room, puppet, asked)) == 1


async def test_quick_answer_is_one_event_without_typing(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Quick")
    room, answer = await world.dm(alice, agent, "hello")
    asked = alice.messages(room, alice.user_id)[0].event_id
    await alice.wait(lambda: alice.has_read(room, world.puppet(agent)) == asked, "the read receipt")
    assert answer.edits == 0
    assert alice.has_typed == set()


async def test_stop_ends_the_answer_and_the_next_message_is_answered(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Endless")
    puppet = world.puppet(agent)
    room, _ = await world.dm(alice, agent, "hello")
    asked = await alice.say(room, "#slow 600 0.1")
    await alice.wait_message(room, puppet, "word3", after=asked)
    await alice.say(room, "this waits")
    await alice.say(room, "!stop")
    notice = await alice.wait_message(room, puppet, "Stopped: ")
    assert notice.msgtype == "m.notice"
    assert "cancelled" in notice.body
    assert "withdrawn" in notice.body
    shown = await alice.wait_message(room, puppet, "(stopped)", after=asked)
    assert "word3" in shown.body
    await alice.wait(lambda: alice.typing(room) == [], "the end of typing")
    answer = await world.ask(alice, room, agent, "and now?", "and now?")
    assert "word" not in answer.body
    assert world.bodies(agent) == ["hello", "#slow 600 0.1", "and now?"]


async def test_stop_reaction_on_the_answer_stops_it(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Reactive")
    puppet = world.puppet(agent)
    room, _ = await world.dm(alice, agent, "hello")
    asked = await alice.say(room, "#slow 600 0.1")
    live = await alice.wait_message(room, puppet, "word3", after=asked)
    await alice.react(room, live.event_id, "🛑")
    await alice.wait_message(room, puppet, "(stopped)", after=asked)
    await world.ask(alice, room, agent, "and now?", "and now?")


async def test_messages_sent_meanwhile_go_together_as_they_are_then(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Busy")
    puppet = world.puppet(agent)
    hold = world.letta.hold(agent)
    room = await alice.create_dm(puppet, "first")
    await hold.entered()
    two = await alice.say(room, "two")
    three = await alice.say(room, "three")
    await alice.say(room, "four")
    await alice.edit(room, two, "two, corrected")
    await alice.redact(room, three)
    # its notice does not wait for the agent, and is dispatched behind all that
    await alice.send(room, "m.sticker", {"body": "a cat", "info": {}, "url": f"mxc://{world.domain}/cat"})
    await alice.wait_message(room, puppet, "stickers")
    hold.release()
    await alice.wait_message(room, puppet, "four")
    assert [len(turn.texts) for turn in world.letta.turns(agent)] == [1, 2]
    assert world.bodies(agent) == ["first", "two, corrected", "four"]


async def test_edit_of_an_answered_message_is_refused_once(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Final")
    room, _ = await world.dm(alice, agent, "tpyo")
    [said] = alice.messages(room, alice.user_id)
    await alice.edit(room, said.event_id, "typo")
    await alice.edit(room, said.event_id, "a typo")
    await world.ask(alice, room, agent, "the end", "the end")
    notices = [m for m in alice.messages(room, world.puppet(agent)) if m.msgtype == "m.notice"]
    assert len(notices) == 1
    assert "already read" in notices[0].body
    assert world.bodies(agent) == ["tpyo", "the end"]


async def test_model_that_fails_is_named_once_and_the_next_message_works(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Sick")
    puppet = world.puppet(agent)
    room, _ = await world.dm(alice, agent, "hello")
    world.letta.script(agent, Behaviour(error=401))
    asked = await alice.say(room, "does it work?")
    notice = await alice.wait_message(room, puppet, "refused the request")
    assert notice.reply_to == asked
    assert len(alice.messages(room, puppet, asked)) == 1
    await world.ask(alice, room, agent, "and now?", "and now?")
