"""Rooms as people make them: groups, threads, encrypted ones; who is let in, who is refused."""

from __future__ import annotations

import pytest

from letta_bridge import errors
from letta_bridge.ids import RoomID

from .nio_person import NioPerson
from .world import World

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]
SETTINGS = {"mirror__room_version": "11"}

ENCRYPTION = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


async def a_group(world: World, *agents: str) -> tuple[RoomID, NioPerson, NioPerson]:
    """A room of Alice, Bob and these agents."""
    alice, bob = await world.person("alice"), await world.person("bob")
    puppets = [world.puppet(agent) for agent in agents]
    room = await alice.create_room([bob.user_id, *puppets], name="Kitchen")
    await bob.wait_invite(room)
    await bob.join(room)
    await alice.wait_joined(room, bob.user_id, *puppets)
    return room, alice, bob


async def test_portal_has_the_configured_room_version(world: World) -> None:
    host = await world.client(world.guests.host)
    agent = world.letta.add_agent("Traditional")
    portal = await world.portal(host, agent)
    assert host.client.rooms[portal].room_version == "11"
    await world.ask(host, portal, agent, "in an old room", "in an old room")
    assert world.letta.turns(agent)[0].conversation_id == "default"


async def test_in_a_group_only_agents_that_are_meant_answer(world: World) -> None:
    ada, basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    room, alice, bob = await a_group(world, ada, basil)
    await alice.say(room, "nobody is meant by this")

    asked = await bob.say(room, "Ada: by name")
    answer = await alice.wait_message(room, world.puppet(ada), "by name")
    assert answer.reply_to == asked
    assert answer.mentions == {"user_ids": [bob.user_id]}
    assert world.told(ada)[0].room.name == "Kitchen"
    assert world.told(ada)[0].room.kind == "group"

    pill = f'<a href="https://matrix.to/#/{world.puppet(basil)}">Basil</a>: by pill'
    await alice.say(room, "Basil: by pill", format="org.matrix.custom.html", formatted_body=pill)
    await alice.wait_message(room, world.puppet(basil), "by pill")

    await bob.reply(room, answer.event_id, "by reply")
    await alice.wait_message(room, world.puppet(ada), "by reply")
    assert world.told(ada)[-1].reply is not None
    assert world.told(ada)[-1].reply.author == "you"

    both = {"m.mentions": {"user_ids": [world.puppet(ada), world.puppet(basil)]}}
    asked = await alice.say(room, "both of you", **both)
    for agent in (ada, basil):
        answer = await bob.wait_message(room, world.puppet(agent), "both of you")
        assert answer.reply_to == asked
        assert answer.mentions == {"user_ids": [alice.user_id]}
    assert world.bodies(ada) == ["Ada: by name", "by reply", "both of you"]
    assert [body.rpartition(" ")[2] for body in world.bodies(basil)] == ["pill", "you"]


async def test_answer_stays_in_the_thread(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Threader")
    room, _ = await world.dm(alice, agent, "the root")
    [root] = alice.messages(room, alice.user_id)
    thread = {
        "rel_type": "m.thread",
        "event_id": root.event_id,
        "is_falling_back": True,
        "m.in_reply_to": {"event_id": root.event_id},
    }
    await alice.say(room, "in the thread", **{"m.relates_to": thread})
    answer = await alice.wait_message(room, world.puppet(agent), "in the thread")
    assert answer.thread == root.event_id
    assert world.told(agent)[-1].thread_root == root.event_id
    outside = await world.ask(alice, room, agent, "outside again", "outside again")
    assert outside.thread is None


async def test_what_cannot_be_received_is_said_once(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Blind")
    room, _ = await world.dm(alice, agent, "hello")
    image = {"msgtype": "m.image", "body": "cat.png", "url": f"mxc://{world.domain}/cat"}
    first = await alice.send(room, "m.room.message", image)
    await alice.send(room, "m.room.message", image)
    await alice.send(room, "m.sticker", {"body": "a cat", "info": {}, "url": f"mxc://{world.domain}/cat"})
    await alice.wait_message(room, world.puppet(agent), "stickers")
    notices = [m for m in alice.messages(room, world.puppet(agent)) if m.msgtype == "m.notice"]
    assert [m.body for m in notices] == [errors.UNSUPPORTED.format(things=thing) for thing in ("images", "stickers")]
    assert notices[0].reply_to == first
    assert world.bodies(agent) == ["hello"]


async def test_encrypted_room_gets_one_plain_notice(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Deaf")
    room = await alice.create_dm(world.puppet(agent), initial_state=[ENCRYPTION])
    await alice.wait_message(room, world.puppet(agent), errors.ENCRYPTED)
    sealed = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "A", "session_id": "S", "sender_key": "K"}
    for _ in range(2):
        await alice.send(room, "m.room.encrypted", {**sealed, "device_id": alice.client.device_id})
    await alice.say(room, "in plain text all the same")  # dispatched behind the encrypted ones
    await alice.wait_message(room, world.puppet(agent), "in plain text all the same")
    notices = [m for m in alice.messages(room, world.puppet(agent)) if m.msgtype == "m.notice"]
    assert [m.body for m in notices] == [errors.ENCRYPTED]


async def test_room_that_is_encrypted_later_gets_the_notice_too(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Sealed")
    room, _ = await world.dm(alice, agent, "hello")
    await alice.client.room_put_state(room, "m.room.encryption", ENCRYPTION["content"])
    notice = await alice.wait_message(room, world.puppet(agent), errors.ENCRYPTED)
    assert notice.msgtype == "m.notice"


async def test_stranger_is_told_why_the_invitation_is_refused(world: World) -> None:
    agent = world.letta.add_agent("Choosy")
    alice = await world.person("alice")
    await world.dm(alice, agent, "hello")
    stranger = await world.client(world.guests.stranger)
    puppet = world.puppet(agent)
    room = await stranger.create_dm(puppet, "let me in")
    who = stranger.user_id
    sentence = errors.MAY_NOT_INVITE.format(who=who, or_else="")  # shut out by name: no grant would help
    notice = await stranger.wait_message(room, puppet, sentence)
    assert notice.msgtype == "m.notice"

    def refusals() -> list[str]:
        return [c["reason"] for c in stranger.memberships(room, puppet) if c["membership"] == "leave"]

    await stranger.wait(refusals, "the refusal")
    assert refusals() == [sentence]
    assert world.bodies(agent) == ["hello"]


async def test_stranger_in_a_group_is_told_once_and_wakes_nobody(world: World) -> None:
    agent = world.letta.add_agent("Guarded")
    alice, stranger = await world.person("alice"), await world.client(world.guests.stranger)
    puppet = world.puppet(agent)
    room = await alice.create_room([stranger.user_id, puppet])
    await stranger.wait_invite(room)
    await stranger.join(room)
    await alice.wait_joined(room, puppet, stranger.user_id)
    await stranger.say(room, "not for anybody")
    asked = await stranger.say(room, "Guarded: hello")
    for text in ("Guarded: hello again", "!stop", "!stop"):
        await stranger.say(room, text)
    await alice.say(room, "Guarded: what did they want?")
    await alice.wait_message(room, puppet, "what did they want?")
    notices = [m for m in alice.messages(room, puppet) if m.msgtype == "m.notice"]
    assert [m.body for m in notices] == [
        errors.MAY_NOT_TALK.format(who=stranger.user_id, or_else=""),
        errors.MAY_NOT_STOP.format(or_else=""),
    ]
    assert notices[0].reply_to == asked
    assert world.bodies(agent) == ["Guarded: what did they want?"]


async def test_kicked_puppet_comes_back_when_invited_again(world: World) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Boomerang")
    puppet = world.puppet(agent)
    room = await alice.create_room([puppet])  # not a DM, where everybody has the same power
    await alice.say(room, "before")
    await alice.wait_message(room, puppet, "before")
    await alice.kick(room, puppet)
    await alice.wait(lambda: not alice.joined(room, puppet), "the puppet gone")
    await alice.say(room, "while it is away")
    await alice.invite(room, puppet)
    await alice.say(room, "right behind the invitation")
    await alice.wait_message(room, puppet, "right behind the invitation")
    await world.ask(alice, room, agent, "and on", "and on")
    assert world.bodies(agent) == ["before", "right behind the invitation", "and on"]


async def test_invitation_of_an_agent_that_does_not_exist_is_answered_with_the_reason(world: World) -> None:
    alice = await world.person("alice")
    nobody = world.puppet("agent-00000000-0000-4000-8000-000000000000")
    room = await alice.create_dm(nobody, "hello?")

    def reasons() -> list[str]:
        return [content.get("reason", "") for content in alice.memberships(room, nobody)[1:]]

    await alice.wait(reasons, "the refusal")
    assert reasons() == [errors.NO_SUCH_AGENT]
