"""When Letta fails: what the person is told, and that every message is answered exactly once or said to be lost."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import aiohttp
import pytest

from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_letta import Behaviour

from .world import World, notices, settled, until

BOTH = pytest.mark.parametrize("sqlite_world", [{}, {"redis": True}], indirect=True, ids=["plain", "redis"])
REDIS = pytest.mark.parametrize("sqlite_world", [{"redis": True}], indirect=True, ids=["redis"])
SEND = r"/v1/conversations/[^/]+/messages$"
SLOW = "#slow 20 0.02"
WHOLE = " ".join(f"word{n}" for n in range(20))


async def one_room(world: World, **overrides: Any) -> tuple[str, Person, str]:
    """An agent, Alice, and their DM in which one message was answered."""
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(**overrides)
    return agent, alice, await dm(world, alice, agent)


async def dm(world: World, person: Person, agent: str) -> str:
    room = await world.dm(person, agent, "hello")
    await answered(world, person, room, agent, "hello")
    return room


async def answered(world: World, person: Person, room: str, agent: str, text: str, timeout: float = 8.0) -> None:
    await person.wait_message(
        room, sender=world.puppet(agent), text=re.compile(f"echo: (?s:.*){text}"), timeout=timeout
    )


async def told(world: World, person: Person, room: str, pattern: str, timeout: float = 5.0) -> str:
    """Wait until the bridge said this in the room; its text."""
    said = await person.wait_message(room, text=re.compile(pattern), timeout=timeout)
    assert said.msgtype == "m.notice"
    return said.body


def read(world: World, agent: str) -> list[str]:
    """Every message that the agent was given, in order, each as often as it was given."""
    return [envelope.open_(text).body for turn in world.letta.turns(agent) for text in turn.texts if text[:1] == "["]


async def test_letta_down_is_told_once_per_room_and_everything_answered_afterwards(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob")
    await world.start()
    hers, his = await dm(world, alice, agent), await dm(world, bob, agent)
    world.letta.kill()
    await alice.send(hers, "one")
    await told(world, alice, hers, "cannot reach Letta")
    await alice.send(hers, "two")
    await bob.send(his, "three")
    await told(world, bob, his, "cannot reach Letta")
    await alice.send(hers, "four")
    await settled(world)
    await world.letta.start()
    await told(world, alice, hers, "^Letta is back")
    await told(world, bob, his, "^Letta is back")
    await answered(world, alice, hers, agent, "four")
    await answered(world, bob, his, agent, "three")
    assert read(world, agent) == ["hello", "hello", "one", "two", "four", "three"]
    assert [len(notices(alice, hers)), len(notices(bob, his))] == [2, 2]


async def test_a_second_outage_is_told_again_also_after_a_stop(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    world.letta.kill()
    await alice.send(room, "one")
    await told(world, alice, room, "cannot reach Letta")
    await alice.send(room, "!stop")
    await told(world, alice, room, "Stopped: what waited for me was withdrawn")
    await alice.send(room, "two")
    await until(lambda: len([m for m in notices(alice, room) if "cannot reach" in m.body]) == 2)
    await world.letta.start()
    await told(world, alice, room, "^Letta is back")
    await answered(world, alice, room, agent, "two")
    world.letta.kill()
    await alice.send(room, "three")
    await until(lambda: len([m for m in notices(alice, room) if "cannot reach" in m.body]) == 3)
    await world.letta.start()
    await answered(world, alice, room, agent, "three")
    assert read(world, agent) == ["hello", "two", "three"]
    assert len([m for m in notices(alice, room) if m.body.startswith("Letta is back")]) == 2


@pytest.mark.parametrize("sqlite_world", [{"password": "right"}], indirect=True)
async def test_a_wrong_key_is_told_and_the_message_answered_once_it_is_corrected(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world, letta__api_key="right")
    await world.restart(letta__api_key="wrong")
    await alice.send(room, "anybody?")
    await told(world, alice, room, "does not accept the bridge's key")
    await alice.send(room, "still nobody?")
    await settled(world)
    await world.restart(letta__api_key="right")
    await told(world, alice, room, "accepts the bridge's key again")
    await answered(world, alice, room, agent, "still nobody")
    assert read(world, agent) == ["hello", "anybody?", "still nobody?"]
    assert len(notices(alice, room)) == 2


async def test_a_model_that_fails_for_good_is_told_after_the_last_try(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world, limits__turn_attempts=2)
    world.letta.script(agent, Behaviour(error=500), Behaviour(error=500))
    await alice.send(room, "try this")
    await told(world, alice, room, "model behind me failed several times")
    assert len(world.letta.turns(agent)) == 3
    await alice.send(room, "and now")
    await answered(world, alice, room, agent, "and now")
    assert len(notices(alice, room)) == 1


@pytest.mark.parametrize("error", [500, 429])
async def test_a_model_that_fails_once_is_tried_again_in_silence(sqlite_world: World, error: int) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    world.letta.script(agent, Behaviour(error=error))
    await alice.send(room, "try this")
    await answered(world, alice, room, agent, "try this")
    assert notices(alice, room) == []


async def test_a_provider_that_refuses_is_told_at_once(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    world.letta.script(agent, Behaviour(error=401))
    await alice.send(room, "try this")
    await told(world, alice, room, "provider of my model refused")
    assert len(world.letta.turns(agent)) == 2


async def test_a_full_context_is_told(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    world.letta.script(agent, Behaviour(error=413))
    await alice.send(room, "too much")
    await told(world, alice, room, "no longer fits into the model's context")
    await alice.send(room, "short")
    await answered(world, alice, room, agent, "short")


async def test_what_was_shown_of_an_answer_that_breaks_off_is_marked(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world, limits__turn_attempts=1, conversation__first_event_s=0.1)
    world.letta.script(agent, Behaviour(text=WHOLE, delay=0.05, error_after=10))
    await alice.send(room, "tell me")
    await told(world, alice, room, "model behind me failed")
    shown = next(m for m in alice.messages(room) if m.body.startswith("word0"))
    assert "…" not in shown.body and "word9" in shown.body and "word10" not in shown.body


async def test_an_answer_that_breaks_off_once_ends_complete_in_the_same_message(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world, conversation__first_event_s=0.1)
    world.letta.script(
        agent, Behaviour(text=WHOLE, delay=0.05, error_after=10), Behaviour(text="Now whole.", delay=0.01)
    )
    await alice.send(room, "tell me")
    await alice.wait_message(room, sender=world.puppet(agent), text="Now whole.")
    assert [m.body for m in alice.messages(room) if m.sender == world.puppet(agent)][1:] == ["Now whole."]


async def test_a_run_that_fails_after_a_tool_was_used_is_not_started_again(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    calls: list[object] = []

    def search(arguments: dict[str, Any]) -> str:
        calls.append(arguments)
        return "found"

    world.letta.tool("conversation_search", search)
    world.letta.script(agent, Behaviour(tool=("conversation_search", {"query": "x"}), error_after=1))
    await alice.send(room, "look it up")
    await told(world, alice, room, "something failed in the middle")
    assert len(calls) == 1
    assert read(world, agent) == ["hello", "look it up"]


@REDIS
async def test_an_agent_that_is_busy_elsewhere_says_so_once_and_answers_afterwards(
    sqlite_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "letta_bridge")
    world = sqlite_world
    world.pace["busy_pause"] = 0.2
    agent, alice, room = await one_room(world)
    [conversation] = world.letta.conversations(agent)
    hold = world.letta.hold(agent)
    outside = asyncio.create_task(world.letta.outside_turn(agent, "another client", conversation_id=conversation))
    await hold.entered()
    await alice.send(room, "are you there?")
    await told(world, alice, room, "busy")
    await alice.send(room, "hm?")
    await settled(world)
    tries = len(world.letta.requests)
    await until(lambda: len(world.letta.requests) > tries)
    hold.release()
    await answered(world, alice, room, agent, "hm")
    await outside
    assert read(world, agent) == ["hello", "are you there?", "hm?"]
    assert len(notices(alice, room)) == 1
    said = [action for record in caplog.records if (action := getattr(record, "action", "")).startswith("turn_")]
    assert said == ["turn_failed", "turn_goes_on"], "an admin is told of a wait and of its end, not of every try"


@BOTH
async def test_an_approval_holds_up_its_room_alone_and_is_told_once(sqlite_world: World) -> None:
    world = sqlite_world
    world.pace["approval_pause"] = 0.3
    agent, alice, room = await one_room(world)
    bob = await world.hs.person("bob")
    his = await dm(world, bob, agent)
    await alice.send(room, '#approve launch {"when": "now"}')
    said = await told(world, alice, room, "I want to use the tool")
    assert "“launch”" in said
    await alice.send(room, "waits")
    await told(world, alice, room, "waiting for somebody to approve")
    await alice.send(room, "waits too")
    await bob.send(his, "me as well?")
    await answered(world, bob, his, agent, "me as well")
    assert notices(bob, his) == []
    await approve(world, agent)
    await answered(world, alice, room, agent, "waits too")
    assert read(world, agent)[-3:] == ["me as well?", "waits", "waits too"]
    assert len(notices(alice, room)) == 2


async def approve(world: World, agent: str) -> None:
    """Approve what waits in the agent's first conversation, as another client would."""
    conversation = world.letta.conversations(agent)[0]
    request = world.letta.history(agent, conversation)[-1]
    answer = {"type": "approval", "approve": True, "tool_call_id": request["tool_call"]["tool_call_id"]}
    body = {"messages": [{"type": "approval", "approvals": [answer]}], "streaming": True}
    url = f"{world.letta.url}/v1/conversations/{conversation}/messages"
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        assert "stop_reason" in await response.text()


async def test_an_answer_that_takes_too_long_is_cancelled_and_told(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world, letta__turn_timeout=1.0, conversation__first_event_s=0.1)
    await alice.send(room, "#slow 400 0.02")
    await told(world, alice, room, "did not finish within a minute and was stopped")
    shown = next(m for m in alice.messages(room) if m.body.startswith("word0"))
    assert "…" not in shown.body
    await until(lambda: world.letta.turns(agent)[1].outcome == "cancelled")
    await alice.send(room, "next")
    await answered(world, alice, room, agent, "next")


async def test_a_run_without_a_name_that_takes_too_long_is_found_and_cancelled(sqlite_world: World) -> None:
    """Letta took the message and hangs before the first byte of its answer."""
    world = sqlite_world
    agent, alice, room = await one_room(world, letta__turn_timeout=0.5)
    hold = world.letta.hold(agent)
    world.letta.fail_next(SEND, "hang", method="POST", after_events=0)
    await alice.send(room, "anybody?")
    await told(world, alice, room, "did not finish|may not have been delivered", timeout=10)
    hold.release()
    await until(lambda: world.letta.turns(agent)[1].outcome != "running")
    await alice.send(room, "next")
    await answered(world, alice, room, agent, "next")
    assert len(notices(alice, room)) == 1


async def test_an_agent_deleted_in_letta_is_told(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Another")  # an empty Letta would be no proof
    agent, alice, room = await one_room(world)
    world.letta.remove_agent(agent)
    await alice.send(room, "still there?")
    # which of the two depends on whether the mirror has seen it already
    await told(world, alice, room, "does not exist in Letta any more|I am not in Letta at the moment")


async def test_a_conversation_deleted_in_letta_is_replaced(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    [conversation] = world.letta.conversations(agent)
    async with aiohttp.ClientSession() as session:
        await session.delete(f"{world.letta.url}/v1/conversations/{conversation}")
    await alice.send(room, "still there?")
    await answered(world, alice, room, agent, "still there")
    assert notices(alice, room) == []


@BOTH
@pytest.mark.parametrize("events", [1, 4, 12])
async def test_a_stream_that_is_cut_gives_one_turn_and_one_whole_answer(sqlite_world: World, events: int) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world, conversation__first_event_s=0.1)
    world.letta.fail_next(SEND, "disconnect", method="POST", after_events=events)
    await alice.send(room, SLOW)
    await alice.wait_message(room, sender=world.puppet(agent), text=WHOLE)
    await alice.send(room, "next")
    await answered(world, alice, room, agent, "next")
    assert read(world, agent) == ["hello", SLOW, "next"]
    assert [m.body for m in alice.messages(room) if m.body.startswith("word")] == [WHOLE]
    assert notices(alice, room) == []


@BOTH
async def test_a_send_whose_answer_never_comes_is_found_by_its_otid(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    world.letta.fail_next(SEND, "disconnect", method="POST", after_processing=True)
    await alice.send(room, "exactly once")
    await answered(world, alice, room, agent, "exactly once")
    assert read(world, agent) == ["hello", "exactly once"]
    assert notices(alice, room) == []


@BOTH
async def test_a_send_that_letta_never_saw_is_sent_again(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world)
    world.letta.fail_next(SEND, "disconnect", method="POST")
    await alice.send(room, "exactly once")
    await answered(world, alice, room, agent, "exactly once")
    assert read(world, agent) == ["hello", "exactly once"]


@BOTH
@pytest.mark.parametrize("place", ["dm", "portal"])
async def test_letta_killed_in_mid_run_and_started_again(sqlite_world: World, place: str) -> None:
    """The run stays "running" for ever and its message is lost there; with Redis the main thread stays locked."""
    world = sqlite_world
    world.pace["busy_pause"] = 0.2
    world.letta.settings.lock_ttl = 1.0
    alice = await world.hs.person("alice", auto_join=True)
    agent, alice, room = await one_room(world, conversation__first_event_s=0.1, mirror__invite=[alice.mxid])
    if place == "portal":
        await world.mirrored()
        room = await world.portal(agent)
        await alice.wait_joined(room, alice.mxid)
    world.letta.script(agent, Behaviour(text="lost in the crash " * 30, delay=0.05), Behaviour(text="Here I am."))
    await alice.send(room, "important")
    await alice.wait_message(room, text=re.compile("lost in the crash"))
    world.letta.kill()
    await told(world, alice, room, "cannot reach Letta")
    await world.letta.start()
    await alice.wait_message(room, sender=world.puppet(agent), text="Here I am.", timeout=10)
    assert read(world, agent).count("important") == 2
    assert [turn.outcome for turn in world.letta.turns(agent)][-2:] == ["lost", "end_turn"]
    await told(world, alice, room, "^Letta is back")
    assert len([m for m in alice.messages(room) if "lost in the crash" in m.body]) == 0
    assert [m.body for m in alice.messages(room)].count("Here I am.") == 1


async def test_when_letta_cannot_say_what_became_of_a_message_this_is_said(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await one_room(world, letta__turn_timeout=1.0)
    world.letta.fail_next(SEND, "disconnect", method="POST", after_events=2)
    world.letta.fail_next(r"^/v1/runs", 500, times=1000)
    await alice.send(room, "who knows")
    await told(world, alice, room, "may not have been delivered", timeout=10)
    assert read(world, agent) == ["hello", "who knows"]
