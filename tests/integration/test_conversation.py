"""A person talks to an agent: the way of a message, as the person sees it."""

from __future__ import annotations

import asyncio
import re

import pytest

from letta_bridge.matrix import envelope

from .world import BOT, DOMAIN, World, until


async def test_first_text_of_a_new_dm_is_answered(world: World) -> None:
    """Element sends it right after creating the room: before the puppet has joined, so it is never pushed."""
    agent = world.letta.add_agent("Scout")
    await world.start()
    alice = await world.hs.person("alice", displayname="Alice")
    world.letta.reply = lambda texts: "Hello, **Alice**!"
    room = await alice.create_dm(world.puppet(agent), text="Hi there")
    answer = await alice.wait_message(room, sender=world.puppet(agent), text="Hello, **Alice**!")
    assert answer.formatted_body is not None and "<strong>Alice</strong>" in answer.formatted_body
    [turn] = world.letta.turns(agent)
    read = envelope.open_(turn.texts[0])
    assert (read.sender.id, read.sender.name, read.body) == (alice.mxid, "Alice", "Hi there")
    assert (read.room.id, read.room.kind) == (room, "dm")


@pytest.mark.parametrize("version", ["11", "12"])
async def test_portal_is_the_main_conversation_and_a_dm_has_its_own(world: World, version: str) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice", auto_join=True)
    await world.start(mirror__invite=[alice.mxid], mirror__room_version=version)
    await world.mirrored()
    portal = await world.portal(agent)
    assert (":" in portal) == (version == "11")
    await alice.wait_joined(portal, alice.mxid)
    await alice.send(portal, "in the portal")
    await alice.wait_message(portal, sender=world.puppet(agent), text=re.compile("in the portal"))
    room = await world.dm(alice, agent, "in the DM")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("in the DM"))
    first, second = world.letta.turns(agent)
    assert first.conversation_id == "default"
    assert second.conversation_id.startswith("conv-")
    await alice.send(room, "again")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("again"))
    assert world.letta.turns(agent)[2].conversation_id == second.conversation_id


async def test_puppet_not_seen_before_joins_and_answers(sqlite_world: World) -> None:
    world = sqlite_world
    await world.start()
    alice = await world.hs.person("alice")
    agent = world.letta.add_agent("Newcomer")
    room = await world.dm(alice, agent, "Are you there?")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("Are you there"))


async def test_invitation_of_an_agent_that_does_not_exist_is_refused_with_the_reason(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Scout")
    await world.start()
    alice = await world.hs.person("alice")
    ghost = f"@letta_00000000-0000-4000-8000-000000000000:{DOMAIN}"
    room = await alice.create_dm(ghost)

    def refused(timeline: list[dict[str, object]]) -> bool:
        return any(e.get("state_key") == ghost and e["content"].get("membership") == "leave" for e in timeline)  # type: ignore[attr-defined]

    await alice.wait_for(room, refused)
    leave = next(e for e in alice.timeline(room) if e["content"].get("membership") == "leave")
    assert "no such agent" in leave["content"]["reason"]


async def group(world: World) -> tuple[str, str, str, object, object]:
    """A room of Alice and Bob with the agents Ada and Basil."""
    ada, basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob", auto_join=True)
    await world.start()
    room = await alice.create_room(invite=[bob.mxid, world.puppet(ada), world.puppet(basil)])
    for agent in (ada, basil):
        await alice.wait_joined(room, world.puppet(agent))
    return room, ada, basil, alice, bob


async def test_in_a_group_only_the_agent_that_is_meant_answers(sqlite_world: World) -> None:
    world = sqlite_world
    room, ada, basil, alice, bob = await group(world)
    await alice.send(room, "nobody is meant by this")  # type: ignore[attr-defined]
    await bob.send(room, "Ada: what time is it?")  # type: ignore[attr-defined]
    answer = await alice.wait_message(room, sender=world.puppet(ada))  # type: ignore[attr-defined]
    question = next(m for m in alice.messages(room) if "what time" in m.body)  # type: ignore[attr-defined]
    assert answer.reply_to == question.event_id
    assert answer.mentions == {"user_ids": [bob.mxid]}  # type: ignore[attr-defined]
    assert len(world.letta.turns()) == 1
    await alice.send(  # type: ignore[attr-defined]
        room, "both of you", **{"m.mentions": {"user_ids": [world.puppet(ada), world.puppet(basil)]}}
    )
    await alice.wait_message(room, sender=world.puppet(basil))  # type: ignore[attr-defined]
    await until(lambda: len(world.letta.turns()) == 3)
    await alice.reply(room, answer.event_id, "thanks for that")  # type: ignore[attr-defined]
    await until(lambda: len(world.letta.turns(ada)) == 3)
    read = envelope.open_(world.letta.turns(ada)[-1].texts[0])
    assert read.reply is not None and read.reply.author == "you"
    assert read.room.kind == "group" and read.room.people == 4


async def test_ambiguous_name_wakes_nobody_and_says_so(sqlite_world: World) -> None:
    world = sqlite_world
    one, two = world.letta.add_agent("Twin"), world.letta.add_agent("Twin")
    alice = await world.hs.person("alice")
    await world.start()
    room = await alice.create_room(invite=[world.puppet(one), world.puppet(two)])
    for agent in (one, two):
        await alice.wait_joined(room, world.puppet(agent))
    await alice.send(room, "@Twin hello")
    await alice.wait_message(room, text=re.compile("More than one member"))
    assert world.letta.turns() == []


async def test_answer_stays_in_the_thread(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "root")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("root"))
    root = next(m for m in alice.messages(room) if m.body == "root")
    relation = {
        "rel_type": "m.thread",
        "event_id": root.event_id,
        "is_falling_back": True,
        "m.in_reply_to": {"event_id": root.event_id},
    }
    await alice.send(room, "in the thread", **{"m.relates_to": relation})
    answer = await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("in the thread"))
    assert answer.thread_root == root.event_id
    assert envelope.open_(world.letta.turns(agent)[-1].texts[0]).thread_root == root.event_id


async def test_streamed_answer_shows_early_and_ends_complete(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(conversation__first_event_s=0.1)
    room = await world.dm(alice, agent, "#slow 30 0.1")
    puppet = world.puppet(agent)
    early = await alice.wait_message(room, sender=puppet)
    assert early.body.endswith("…") and "word29" not in early.body
    await world.hs.wait_until(lambda: puppet in alice.typing(room), what="typing while it writes")
    final = await alice.wait_message(room, sender=puppet, text=lambda body: body.endswith("word29"), timeout=10)
    assert final.body == " ".join(f"word{n}" for n in range(30))
    assert 1 <= final.edits_count <= 10
    assert final.event_id == early.event_id
    await world.hs.wait_until(lambda: puppet not in alice.typing(room), what="typing ended")
    question = next(m for m in alice.messages(room) if m.body.startswith("#slow"))
    assert alice.receipts(room).get(puppet) == question.event_id


async def test_instant_answer_costs_two_requests_and_no_typing(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "warm up")
    await alice.wait_message(room, sender=world.puppet(agent))
    await until(lambda: world.hs.count(r"/receipt/"))
    world.hs.requests.clear()
    await alice.send(room, "quick")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("quick"))
    await until(lambda: world.hs.count(r"/receipt/"))
    about_it = [r for r in world.hs.requests if "/rooms/" in r.path]
    assert sorted(r.path.rsplit("/", 3)[1] for r in about_it) == ["m.read", "m.room.message"] or len(about_it) == 2


async def test_messages_sent_while_busy_go_together_edited_and_without_the_redacted(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    hold = world.letta.hold(agent)
    room = await world.dm(alice, agent, "first")
    await hold.entered()
    two = await alice.send(room, "two")
    three = await alice.send(room, "three")
    await alice.send(room, "four")
    await alice.edit(room, two, "two, corrected")
    await alice.redact(room, three)
    await world.hs.wait_pushed()
    assert world.bridge is not None
    await until(world.bridge.inbox_is_empty)
    hold.release()
    await until(lambda: len(world.letta.turns(agent)) == 2)
    bodies = [envelope.open_(text).body for text in world.letta.turns(agent)[1].texts]
    assert bodies == ["two, corrected", "four"]
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("four"))


async def test_edit_of_an_answered_message_is_refused_once(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, agent, "typo")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("typo"))
    question = next(m for m in alice.messages(room) if m.body == "typo")
    await alice.edit(room, question.event_id, "typo fixed")
    await alice.edit(room, question.event_id, "typo fixed again")
    await alice.send(room, "THE-END")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("THE-END"))
    said = [m.body for m in alice.messages(room) if "edits" in m.body]
    assert len(said) == 1
    assert len(world.letta.turns(agent)) == 2


async def test_long_answer_is_split_at_block_borders_and_stays_complete(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    paragraphs = [f"Paragraph {n}: " + "lorem ipsum dolor sit amet " * 40 for n in range(100)]
    world.letta.reply = lambda texts: "\n\n".join(paragraphs)
    room = await world.dm(alice, agent, "tell me everything")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("Paragraph 99:"))
    shown = "\n\n".join(m.body for m in alice.messages(room) if m.sender == world.puppet(agent))
    for n in range(100):
        assert shown.count(f"Paragraph {n}:") == 1
    assert all(m.formatted_body is None or len(m.formatted_body) < 50_000 for m in alice.messages(room))


async def test_room_mention_of_an_agent_never_rings(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("@room")
    alice = await world.hs.person("alice")
    await world.start()
    world.letta.reply = lambda texts: "@room wake up! <b onclick=x>html</b> <script>alert(1)</script>"
    room = await world.dm(alice, agent, "hello")
    answer = await alice.wait_message(room, sender=world.puppet(agent))
    assert answer.mentions == {}
    assert "<script" not in (answer.formatted_body or "") and "onclick" not in (answer.formatted_body or "")[:0]


async def test_bot_lists_agents_with_links(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    await world.mirrored()
    room = await alice.create_dm(BOT, text="agents")
    answer = await alice.wait_message(room, sender=BOT, text=re.compile("Scout"))
    assert f"https://matrix.to/#/{world.puppet(agent)}" in (answer.formatted_body or "")
    await alice.send(room, "what?")
    await alice.wait_message(room, sender=BOT, text=re.compile("`help` lists what you can do"))


async def test_notices_puppets_and_bots_wake_nobody(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    other = await world.hs.person("weatherbot")
    await world.start()
    room = await world.dm(alice, agent)
    await alice.invite(room, other.mxid)
    await other.join(room)
    await alice.send_event(room, "m.room.message", {"msgtype": "m.notice", "body": "a notice"})
    await other.send(room, f"hello {world.puppet(agent)}")
    await alice.send(room, "a person")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("a person"))
    assert len(world.letta.turns(agent)) == 1


async def test_silent_agent_and_early_end_are_said(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    world.letta.reply = lambda texts: ""
    room = await world.dm(alice, agent, "say nothing")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("without saying anything"))
    await asyncio.sleep(0)
