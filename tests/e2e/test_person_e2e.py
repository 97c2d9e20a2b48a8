"""A person with matrix-nio, a real Synapse, the bridge as a process, FakeLetta: agents that appear and talk."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import pytest

from letta_bridge.testing.fake_letta import Behaviour

from .world import World, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]


async def test_first_text_of_a_dm_with_a_puppet_nobody_has_seen_is_answered(world: World) -> None:
    """The text is sent right behind the invitation, before the puppet is there, so Synapse never pushes it."""
    alice = await world.person("alice")
    agent = world.letta.add_agent("Newcomer")
    room, answer = await world.dm(alice, agent, "Anybody there?")
    assert [message.body for message in world.told(agent)] == ["Anybody there?"]
    assert world.told(agent)[0].sender.id == alice.user_id
    assert world.told(agent)[0].room.kind == "dm"
    assert alice.client.rooms[room].user_name(world.puppet(agent)) == "Newcomer"
    assert answer.mentions == {}
    await world.ask(alice, room, agent, "And now?", "And now?")
    assert world.bodies(agent) == ["Anybody there?", "And now?"]


async def test_new_agent_gets_puppet_picture_portal_and_its_place_in_the_space(world: World) -> None:
    host = await world.client(world.guests.host)
    agent = world.letta.add_agent("Ada", description="Knows numbers")
    async with asyncio.timeout(5):  # the list of agents is looked at every second
        portal = await world.portal(host, agent)
    room = host.client.rooms[portal]
    assert (room.name, room.topic, room.join_rule) == ("Ada", "Knows numbers", "invite")

    profile = await host.client.get_profile(world.puppet(agent))
    assert profile.displayname == "Ada"
    picture = await host.client.download(profile.avatar_url)
    assert picture.body.startswith(b"\x89PNG")
    assert picture.content_type == "image/png"

    space = (await host.client.room_resolve_alias(world.space_alias)).room_id
    await host.wait_invite(space)
    await host.join(space)
    await host.wait(lambda: portal in host.client.rooms[space].children, "the portal in the space")
    assert host.client.rooms[space].name == "Letta Agents"
    assert space in room.parents


async def test_whoever_declines_is_not_invited_again(world: World) -> None:
    host = await world.client(world.guests.host)
    agent = world.letta.add_agent("Basil")
    portal = await world.portal_of(host, agent)
    await host.wait_invite(portal)
    await host.leave(portal)
    await host.wait(lambda: portal not in host.client.invited_rooms, "the invitation to go")
    world.letta.rename_agent(agent, "Basil the Great")

    async def renamed() -> bool:
        return (await host.client.get_profile(world.puppet(agent))).displayname == "Basil the Great"

    await until(renamed, "the puppet's name does not follow the agent's")
    other = world.letta.add_agent("Later")  # when its portal is there, a whole look at Letta has passed
    await host.wait_invite(await world.portal_of(host, other))
    assert portal not in host.client.invited_rooms


async def test_portal_is_the_main_conversation_and_a_dm_has_its_own(world: World) -> None:
    host = await world.client(world.guests.host)
    agent = world.letta.add_agent("Cleo")
    portal = await world.portal(host, agent)
    await world.ask(host, portal, agent, "in the portal", "in the portal")
    await world.dm(host, agent, "in the DM")
    main, own = world.letta.turns(agent)
    assert main.conversation_id == "default"
    assert own.conversation_id.startswith("conv-")
    assert [(message.room.kind, message.body) for message in world.told(agent)] == [
        ("portal", "in the portal"),
        ("dm", "in the DM"),
    ]


@pytest.mark.parametrize("version", ["11", "12"])
async def test_rooms_of_both_versions(world: World, version: str) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent(f"Versed {version}")
    room = await alice.create_dm(world.puppet(agent), "first", room_version=version)
    await alice.wait_message(room, world.puppet(agent), "first")
    assert (":" in room) == (version == "11")
    assert alice.client.rooms[room].room_version == version
    await world.ask(alice, room, agent, "second", "second")
    assert world.bodies(agent) == ["first", "second"]


async def test_markdown_both_ways(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Styled")
    room, _ = await world.dm(alice, agent, "hello")
    said = "# Plan\n\n- **bold** and `code`\n- <script>alert(1)</script> @room\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    world.letta.script(agent, Behaviour(text=said))
    await alice.say(
        room,
        "a bold word and a list",
        format="org.matrix.custom.html",
        formatted_body="<p>a <strong>bold</strong> word and</p><ul><li>a list</li></ul>",
    )
    answer = await alice.wait_message(room, world.puppet(agent), "Plan")
    assert world.bodies(agent)[-1] == "a **bold** word and\n\n- a list"
    html = answer.html or ""
    for part in ("<h1>Plan</h1>", "<strong>bold</strong>", "<code>code</code>", "<li>", "<table>"):
        assert part in html
    assert "<script" not in html
    assert "**bold**" in answer.body
    assert "| 1 | 2 |" in answer.body
    assert answer.mentions == {}
    assert answer.msgtype == "m.text"


async def test_bot_helps_and_lists_agents_with_links(world: World) -> None:
    host = await world.client(world.guests.host)
    agent = world.letta.add_agent("Dora *the* explorer")
    portal = await world.portal(host, agent)
    room = await host.create_dm(world.bot, "help")
    await host.wait_message(room, world.bot, "I understand")
    await host.say(room, "agents dora")
    answer = await host.wait_message(room, world.bot, "One agent")
    html = answer.html or ""
    assert f'href="https://matrix.to/#/{world.puppet(agent)}"' in html
    assert ">Dora *the* explorer</a>" in html
    alias = "#" + world.puppet(agent)[1:]
    assert f'href="https://matrix.to/#/{quote(alias, safe=":")}"' in html
    resolved = await host.client.room_resolve_alias(alias)
    assert resolved.room_id == portal
    assert answer.msgtype == "m.notice"
