"""A restore from yesterday: what was answered since is not answered again, and nothing of what was not is lost.

The homeserver has forgotten all transaction ids by then: a repetition would be seen by everybody.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from letta_bridge import errors
from letta_bridge.db.backup import backup
from letta_bridge.db.restore import restore, target, whose
from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_homeserver.transactions import ClientTransactions
from letta_bridge.testing.fake_letta import Behaviour

from .world import World, notices, until


def heard(world: World, agent: str, room: str | None = None) -> list[str]:
    """What an agent was told, in order."""
    read = [envelope.open_(text) for turn in world.letta.turns(agent) for text in turn.texts]
    return [message.body for message in read if room in (None, message.room.id)]


def said(world: World, person: Person, room: str, agent: str) -> list[str]:
    """What the agent said in the room, without notices."""
    return [m.body for m in person.messages(room) if m.sender == world.puppet(agent) and m.msgtype == "m.text"]


async def quiet(world: World) -> None:
    """Everything that happened is decided, every turn has ended, everything was sent."""
    bridge = world.bridge
    assert bridge is not None
    await world.hs.wait_pushed()

    async def done() -> bool:
        gaps = await bridge.rooms.gaps()
        lanes = [*await bridge.inbox.open_lanes(), *await bridge.turns.open_lanes(), *await bridge.outbox.open_lanes()]
        return not gaps and not lanes

    await until(done, 20.0, why="the bridge does not come to rest")


async def saved(world: World) -> Path:
    """A backup, made while the bridge runs."""
    assert world.bridge is not None
    path = world.folder / "yesterday.backup"
    await backup(world.bridge.db, path, whose(world.config()))
    return path


async def lose_all(world: World, path: Path) -> None:
    """The bridge is gone with its database, and comes back with the backup, a long time later."""
    await world.stop()
    world.hs.hs.transactions = ClientTransactions(world.hs.flavour)
    await restore(target(world.config()), path, replace=True)


async def talk(world: World) -> tuple[str, Person, str]:
    agent = world.letta.add_agent("Scout")
    world.letta.reply = None
    alice = await world.hs.person("alice")
    await world.start()
    await world.mirrored()
    room = await world.dm(alice, agent, "before")
    await until(lambda: said(world, alice, room, agent), why="no answer")
    await quiet(world)
    return agent, alice, room


async def accepted_and_lost(world: World, person: Person, room: str, texts: list[str]) -> None:
    """Messages that the homeserver handed over for good, to a bridge that does not come to answer them."""
    assert world.bridge is not None
    for text in texts:
        await person.send(room, text)
    await world.hs.wait_pushed()
    await until(world.bridge.inbox_is_empty)


def nothing_twice(texts: list[str]) -> None:
    assert [text for text, count in Counter(texts).items() if count > 1] == []


async def test_what_was_answered_since_is_not_answered_again_and_the_rest_is(world: World) -> None:
    agent, alice, room = await talk(world)
    path = await saved(world)
    for number in range(12):
        await alice.send(room, f"since {number}")
        await until(lambda number=number: len(said(world, alice, room, agent)) == number + 2)  # type: ignore[misc]
    await quiet(world)
    hold = world.letta.hold(agent)
    await accepted_and_lost(world, alice, room, [f"open {number}" for number in range(3)])
    await hold.entered()  # the first of them is in Letta's hands
    before = said(world, alice, room, agent)
    await lose_all(world, path)
    await world.start(limits__messages_per_minute=5)  # what was said yesterday is not counted as said now
    hold.release()
    await until(lambda: "open 2" in heard(world, agent))
    await quiet(world)
    assert heard(world, agent, room) == ["before", *(f"since {n}" for n in range(12)), *(f"open {n}" for n in range(3))]
    after = said(world, alice, room, agent)
    assert after[: len(before)] == before
    assert 1 <= len(after) - len(before) <= 3
    assert notices(alice, room) == []
    # and it goes on as ever
    await alice.send(room, "after")
    await until(lambda: len(said(world, alice, room, agent)) == len(after) + 1)
    assert heard(world, agent, room)[-1] == "after"


async def test_an_answer_that_waited_to_be_sent_and_was_sent_since_is_not_sent_again(world: World) -> None:
    agent, alice, room = await talk(world)
    fault = world.hs.fail_next(r"/send/", status=503, times=None)
    await alice.send(room, "slow to be shown")
    await until(lambda: fault.hits)
    assert world.bridge is not None
    path = await saved(world)
    fault.cancel()
    await until(lambda: len(said(world, alice, room, agent)) == 2)
    await quiet(world)
    before = said(world, alice, room, agent)
    await lose_all(world, path)
    await world.start()
    await quiet(world)
    assert said(world, alice, room, agent) == before
    assert heard(world, agent, room) == ["before", "slow to be shown"]


async def test_a_turn_that_was_queued_and_answered_since_is_not_run_again(world: World) -> None:
    agent, alice, room = await talk(world)
    hold = world.letta.hold(agent)
    await alice.send(room, "runs")
    await hold.entered()
    await alice.send(room, "waits")
    await world.hs.wait_pushed()
    assert world.bridge is not None
    await until(world.bridge.inbox_is_empty)
    path = await saved(world)  # one turn is running, one is queued
    hold.release()
    await until(lambda: len(said(world, alice, room, agent)) == 3)
    await quiet(world)
    before = said(world, alice, room, agent)
    await lose_all(world, path)
    await world.start()
    await quiet(world)
    assert heard(world, agent, room) == ["before", "runs", "waits"]
    assert said(world, alice, room, agent) == before
    assert notices(alice, room) == []


async def test_what_letta_has_answered_and_nobody_has_seen_is_shown_without_asking_again(world: World) -> None:
    agent, alice, room = await talk(world)
    path = await saved(world)
    fault = world.hs.fail_next(r"/send/", status=503, times=None)
    await alice.send(room, "answered in Letta only")
    await until(lambda: len(world.letta.turns(agent)) == 2 and world.letta.turns(agent)[1].outcome != "running")
    await until(lambda: fault.hits)
    await lose_all(world, path)
    fault.cancel()
    await world.start()
    await until(lambda: len(said(world, alice, room, agent)) == 2)
    await quiet(world)
    assert heard(world, agent, room) == ["before", "answered in Letta only"]
    assert len(said(world, alice, room, agent)) == 2
    assert notices(alice, room) == []


async def test_a_direct_chat_that_the_backup_does_not_know(world: World) -> None:
    agent, alice, _ = await talk(world)
    path = await saved(world)
    new = await world.dm(alice, agent, "a new room")
    await until(lambda: said(world, alice, new, agent))
    await quiet(world)
    hold = world.letta.hold(agent)
    await accepted_and_lost(world, alice, new, ["unanswered"])
    await hold.entered()
    await lose_all(world, path)
    hold.release()
    await world.start()
    await until(lambda: len(said(world, alice, new, agent)) == 2, 20.0)
    await quiet(world)
    assert heard(world, agent, new) == ["a new room", "unanswered"]
    assert len(said(world, alice, new, agent)) == 2


async def test_more_than_the_limit_is_told_not_forgotten(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await talk(world)
    path = await saved(world)
    hold = world.letta.hold(agent)
    await alice.send(room, "held")
    await hold.entered()
    await accepted_and_lost(world, alice, room, [f"open {number}" for number in range(11)])
    await lose_all(world, path)
    hold.release()
    await world.start(limits__catchup_events=5)
    await alice.wait_message(room, text=re.compile("restored from a backup"))
    await quiet(world)
    assert heard(world, agent, room) == ["before", "held", *(f"open {number}" for number in range(6, 11))]
    assert [n.body for n in notices(alice, room)] == [errors.RESTORED_LIMIT.format(limit=5)]


async def test_a_second_restore_of_the_same_backup_repeats_nothing_either(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await talk(world)
    path = await saved(world)
    await alice.send(room, "once")
    await until(lambda: len(said(world, alice, room, agent)) == 2)
    await lose_all(world, path)
    await world.start()
    await alice.send(room, "twice")
    await until(lambda: len(said(world, alice, room, agent)) == 3)
    await quiet(world)
    await lose_all(world, path)
    await world.start()
    await alice.send(room, "thrice")
    await until(lambda: len(said(world, alice, room, agent)) == 4)
    await quiet(world)
    assert heard(world, agent, room) == ["before", "once", "twice", "thrice"]
    nothing_twice(said(world, alice, room, agent))


async def test_the_rest_of_an_answer_is_shown_and_its_beginning_not_again(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await talk(world)
    await world.restart(limits__reply_part_kib=1)
    path = await saved(world)
    parts = [f"{word} " * 150 for word in ("one", "two", "three")]
    world.letta.script(agent, Behaviour(text="\n\n".join(parts)))
    await alice.send(room, "in parts")
    await until(lambda: any("three" in text for text in said(world, alice, room, agent)))
    await quiet(world)
    before = Counter(said(world, alice, room, agent))
    last = [m for m in alice.messages(room) if m.sender == world.puppet(agent)][-1]
    assert len(before) > 2
    world.hs.hs.purge(last.event_id)  # as if it had not been sent before all was lost
    await lose_all(world, path)
    await world.start()
    await until(lambda: any(m.body == last.body and m.event_id != last.event_id for m in alice.messages(room)))
    await quiet(world)
    assert heard(world, agent, room) == ["before", "in parts"]
    again = Counter(m.body for m in alice.messages(room) if m.sender == world.puppet(agent))
    assert again - before in (Counter(), Counter([last.body])), "something else was said again"


async def test_what_was_told_as_undeliverable_is_not_handed_over_again(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await talk(world)
    path = await saved(world)
    world.letta.script(agent, Behaviour(error=400))
    await alice.send(room, "fails")
    await until(lambda: notices(alice, room))
    await quiet(world)
    turns = len(world.letta.turns(agent))
    before = [notice.body for notice in notices(alice, room)]
    await lose_all(world, path)
    await world.start()
    await quiet(world)
    assert len(world.letta.turns(agent)) == turns
    assert [notice.body for notice in notices(alice, room)] == before


async def test_commands_are_not_repeated_and_that_is_said_once(sqlite_world: World) -> None:
    world = sqlite_world
    _, alice, _ = await talk(world)
    bot = world.config().bot_mxid
    chat = await alice.create_dm(bot)
    await alice.wait_joined(chat, bot)
    path = await saved(world)
    for text in ("!help", "!agents"):
        await alice.send(chat, text)
    await until(lambda: len(notices(alice, chat)) == 2)
    await quiet(world)
    await lose_all(world, path)
    await world.start()
    await quiet(world)
    assert [notice.body for notice in notices(alice, chat)][2:] == [errors.RESTORED_COMMAND]


async def test_letta_is_asked_as_far_back_as_the_backup(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await talk(world)
    path = await saved(world)
    fault = world.hs.fail_next(r"/send/", status=503, times=None)
    await alice.send(room, "long ago")
    await until(lambda: fault.hits)
    conversation = world.letta.conversations(agent)[-1]
    for number in range(160):  # more than is looked at for a turn that was just under way
        await world.letta.outside_turn(agent, f"noise {number}", conversation_id=conversation)
    assert len(world.letta.history(agent, conversation)) > 310
    await lose_all(world, path)
    fault.cancel()
    await world.start()
    await until(lambda: len(said(world, alice, room, agent)) == 2, why="the answer is not shown")
    await quiet(world)
    own = [text for turn in world.letta.turns(agent) for text in turn.texts if "long ago" in text]
    assert len(own) == 1, "handed over twice"
