"""Permissions for one agent or one room: who is let in, who is shut out, and who may change that."""

from __future__ import annotations

import re

import pytest

from letta_bridge.testing.fake_homeserver import Person

from .admin_kit import answered, ask, dm_with_bot, own, texts_of
from .world import BOT, DOMAIN, World, a_group, settled

EVE = "@eve:evil.example"
REFUSED = re.compile("not allowed to talk")


async def an_admin(world: World) -> tuple[Person, str]:
    """The administrator in a direct chat with the bot."""
    admin = await world.hs.person("admin")
    return admin, await dm_with_bot(admin)


async def a_stranger(world: World, alice: Person, room: str) -> Person:
    """Eve of another server, in a room of Alice's."""
    eve = await world.hs.person(EVE, auto_join=True)
    await alice.invite(room, eve.mxid)
    return eve


async def test_what_is_given_on_one_agent_lets_in_to_that_one(world: World) -> None:
    room, ada, basil, alice, _ = await a_group(world)
    admin, bot = await an_admin(world)
    eve = await a_stranger(world, alice, room)
    assert "may talk to" in await ask(admin, bot, f"permissions grant {EVE} user Ada")
    await eve.send(room, "Ada: let me in")
    await answered(world, alice, room, ada, "let me in")
    await eve.send(room, "Basil: and you?")
    await alice.wait_message(room, text=REFUSED)
    both = {"user_ids": [world.puppet(ada), world.puppet(basil)]}
    await eve.send(room, "both of you", **{"m.mentions": both})
    await answered(world, alice, room, ada, "both of you")
    assert [turn.agent_id for turn in world.letta.turns()] == [ada, ada]
    assert "Taken back" in await ask(admin, bot, f"permissions revoke {EVE} Ada")
    await eve.send(room, "Ada: still?")
    await settled(world)
    assert len(world.letta.turns()) == 2


async def test_who_is_shut_out_of_one_agent_is_told_what_would_allow_it(world: World) -> None:
    room, ada, basil, alice, _ = await a_group(world)
    admin, bot = await an_admin(world)
    await ask(admin, bot, "permissions grant * none Ada")
    await alice.send(room, "Ada: hello")
    said = await alice.wait_message(room, sender=world.puppet(ada), text=REFUSED)
    assert f"permissions grant {alice.mxid} user {world.puppet(ada)}" in said.body
    await alice.send(room, "Basil: hello")
    await answered(world, alice, room, basil, "hello")
    await ask(admin, bot, f"permissions grant {alice.mxid} user Ada")
    await alice.send(room, "Ada: and now")
    await answered(world, alice, room, ada, "and now")
    dm = await admin.create_dm(world.puppet(ada), text="never shut out")
    await answered(world, admin, dm, ada, "never shut out")


async def test_what_is_given_in_a_room_holds_there_and_brings_nobody_in(sqlite_world: World) -> None:
    world = sqlite_world
    room, ada, _, alice, _ = await a_group(world)
    carol = world.letta.add_agent("Carol")
    assert world.bridge is not None
    await world.restart()
    await world.mirrored()
    admin, bot = await an_admin(world)
    eve = await a_stranger(world, alice, room)
    await ask(admin, bot, f'permissions grant {EVE} user "{room}"')
    await eve.send(room, "Ada: here I may")
    await answered(world, alice, room, ada, "here I may")
    await eve.invite(room, world.puppet(carol))
    await alice.wait_for(room, lambda timeline: any(_left(event, world.puppet(carol)) for event in timeline))
    await eve.create_dm(world.puppet(ada), text="elsewhere not")
    await settled(world)
    assert [turn.agent_id for turn in world.letta.turns()] == [ada]
    await ask(admin, bot, f'permissions grant {alice.mxid} none "{room}"')
    await alice.send(room, "Ada: and I?")
    said = await alice.wait_message(room, sender=world.puppet(ada), text=REFUSED)
    assert "agents in this room" in said.body


def _left(event: dict[str, object], user: str) -> bool:
    content = event["content"]
    return event.get("state_key") == user and isinstance(content, dict) and content.get("membership") == "leave"


async def test_owners_may_always_use_their_agents_and_no_others(world: World) -> None:
    ada, basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    eve = await world.hs.person(EVE)
    await world.start()
    await own(world, ada, EVE)
    room = await world.dm(eve, ada, "mine")
    await answered(world, eve, room, ada, "mine")
    await eve.create_dm(world.puppet(basil), text="not mine")
    await settled(world)
    assert [turn.agent_id for turn in world.letta.turns()] == [ada]


async def test_an_ignored_sender_is_let_in_by_its_own_id_only(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Ada")
    helper = await world.hs.person("helperbot")
    await world.start()
    admin, bot = await an_admin(world)
    await ask(admin, bot, "permissions grant * user Ada")
    await helper.create_dm(world.puppet(agent), text="by all")
    await settled(world)
    assert world.letta.turns() == []
    await ask(admin, bot, f"permissions grant {helper.mxid} user Ada")
    room = await world.dm(helper, agent, "by my name")
    await answered(world, helper, room, agent, "by my name")


async def test_owners_give_on_their_agents_and_only_administrators_more(world: World) -> None:
    ada, _basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    alice = await world.hs.person("alice")
    await world.start(permissions={DOMAIN: "user", f"@admin:{DOMAIN}": "admin", f"@mallory:{DOMAIN}": "none"})
    await own(world, ada, alice.mxid)
    room = await dm_with_bot(alice)
    refused = await ask(alice, room, f"permissions grant {EVE} user Basil")
    assert "Only the owner" in refused and f"permissions grant {alice.mxid} admin" in refused
    assert "may talk to" in await ask(alice, room, f"permissions grant {EVE} user Ada")
    assert "only administrators" in await ask(alice, room, "permissions grant evil.example user Ada")
    assert "last word" in await ask(alice, room, f"permissions grant @mallory:{DOMAIN} user Ada")
    assert "last word" in await ask(alice, room, f"permissions grant @admin:{DOMAIN} none Ada")
    assert "owns" in await ask(alice, room, f"permissions grant {alice.mxid} none Ada")
    assert "full Matrix id" in await ask(alice, room, "permissions grant bob user Ada")
    assert "Taken back" in await ask(alice, room, f"permissions revoke {EVE} Ada")
    assert "Nothing was given" in await ask(alice, room, f"permissions revoke {EVE} Ada")
    assert "may look at" in await ask(alice, room, f"permissions {EVE}")
    assert "owner" in await ask(alice, room, "permissions")


async def test_administrators_see_everything_that_decides(sqlite_world: World) -> None:
    world = sqlite_world
    ada = world.letta.add_agent("Ada")
    await world.start()
    await own(world, ada, "@owner:far.example")
    admin, bot = await an_admin(world)
    await ask(admin, bot, f"permissions grant {EVE} user Ada")
    await ask(admin, bot, "permissions grant evil.example none Ada")
    shown = await ask(admin, bot, "permissions")
    for words in (f"@admin:{DOMAIN}", EVE, "evil.example", "@owner:far.example", "Ada"):
        assert words in shown
    explained = await ask(admin, bot, f"permissions {EVE}")
    assert "no entry of permissions matches" in explained and f'user, by what was given to "{EVE}"' in explained
    assert "as its owner" in await ask(admin, bot, "permissions @owner:far.example")


async def test_invite_brings_back_who_has_left_and_says_what_is_missing(world: World) -> None:
    ada = world.letta.add_agent("Ada")
    alice, eve = await world.hs.person("alice", auto_join=True), await world.hs.person(EVE, auto_join=True)
    await world.start(**{"mirror__invite": [alice.mxid]})
    await world.mirrored()
    portal = await world.portal(ada)
    await alice.wait_joined(portal, alice.mxid)
    await alice.leave(portal)
    await settled(world)
    admin, bot = await an_admin(world)
    reply = await ask(admin, bot, f"invite {alice.mxid} Ada")
    assert "Invited" in reply and "may not talk" not in reply
    await alice.wait_joined(portal, alice.mxid)
    assert "already" in await ask(admin, bot, f"invite {alice.mxid} Ada")
    reply = await ask(admin, bot, f"invite {EVE} Ada")
    assert "may not talk to it yet" in reply and f"permissions grant {EVE} user Ada" in reply
    await eve.wait_joined(portal, EVE)
    assert "bridge's own user" in await ask(admin, bot, f"invite {world.puppet(ada)} Ada")
    room = await dm_with_bot(alice)
    assert "Only the owner" in await ask(alice, room, f"invite {EVE} Ada")


@pytest.mark.parametrize("command", ["permissions", "pause all", "invite @a:b.c Ada", "permissions grant * user Ada"])
async def test_strangers_learn_nothing(sqlite_world: World, command: str) -> None:
    world = sqlite_world
    room, ada, _, alice, _ = await a_group(world)
    await alice.invite(room, BOT)
    await alice.wait_joined(room, BOT)
    eve = await a_stranger(world, alice, room)
    await own(world, ada, alice.mxid)
    await eve.send(room, f"!letta {command}")
    await settled(world)
    said = " ".join(texts_of(alice, room))
    assert alice.mxid not in said and "Ada" not in said
