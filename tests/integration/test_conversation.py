"""A person talks to an agent: the way of a message, as the person sees it."""

from __future__ import annotations

from .world import World


async def test_first_text_of_a_new_dm_is_answered(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    await world.start()
    alice = await world.hs.person("alice", displayname="Alice")
    world.letta.reply = lambda texts: "Hello, **Alice**!"
    room = await alice.create_dm(world.puppet(agent), text="Hi there")
    answer = await alice.wait_message(room, sender=world.puppet(agent), text="Hello, **Alice**!")
    assert answer.formatted_body is not None and "<strong>Alice</strong>" in answer.formatted_body
    turns = world.letta.turns(agent)
    assert len(turns) == 1
    assert "| Hi there" in turns[0].texts[0]
