"""The whole way on real parts: matrix-nio, Synapse, the bridge as a process, Letta V1 0.16.8 (scripted model)."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from letta_bridge.matrix import envelope
from letta_bridge.testing.stack.loopback import request_json
from tests.conftest import RealLetta, RealSynapse

from .world import Bridged, a_bridge, guests_of, settings_for

pytestmark = [pytest.mark.e2e, pytest.mark.letta, pytest.mark.asyncio(loop_scope="session")]

MAIN = "default"


@dataclass(kw_only=True)
class RealWorld(Bridged):
    """With a real Letta, of which the bridge mirrors the agents with one tag."""

    letta: RealLetta
    tag: str

    async def agent(self, name: str) -> str:
        """A new agent that the bridge mirrors."""
        block = {"label": "persona", "value": f"I am {name}."}
        made = {"name": name, "model": self.letta.model_handle, "memory_blocks": [block], "tags": [self.tag]}
        return str((await self._ask("/v1/agents/", made))["id"])

    async def bodies(self, agent_id: str, conversation: str = MAIN) -> list[str]:
        """What people said to the agent in a conversation, as Letta stored it."""
        path = f"/v1/conversations/{conversation}/messages?order=asc&limit=200"
        stored = await self._ask(f"{path}&agent_id={agent_id}" if conversation == MAIN else path)
        texts = [message["content"] for message in stored if message["message_type"] == "user_message"]
        return [envelope.open_(text).body for text in texts if text.startswith("[letta_bridge")]

    async def conversations(self, agent_id: str) -> dict[str, str]:
        """The agent's conversations by the last word of their summary, which is the room."""
        listed = await self._ask(f"/v1/conversations/?agent_id={agent_id}")
        return {one["summary"].rpartition(" ")[2]: one["id"] for one in listed}

    async def system_prompt(self, words: str) -> str:
        """The instructions with which the model was asked about these words last."""
        for request in reversed(await self.letta.model.requests()):
            messages = request["body"].get("messages") or []
            if messages and words in json.dumps(messages[-1]):
                return json.dumps(messages[0])
        raise AssertionError(f"the model was never asked about {words!r}")

    async def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return await asyncio.to_thread(request_json, self.letta.url + path, body)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def module_world(
    synapse: RealSynapse, letta_server: RealLetta, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RealWorld]:
    """A bridge between the session's Synapse and the session's Letta."""
    guests, tag = await guests_of(synapse.server), f"e2e-{secrets.token_hex(4)}"
    settings = settings_for(letta_server.url, synapse.domain, guests, limits__turn_attempts="2")
    settings["letta.include.tags"] = json.dumps([tag])
    bridge = a_bridge(tmp_path_factory.mktemp("bridge"), synapse, settings)
    async with bridge:
        world = RealWorld(synapse=synapse.server, bridge=bridge, guests=guests, letta=letta_server, tag=tag)
        yield world
        await world.close_clients()


async def test_dm_and_portal_are_conversations_of_their_own(world: RealWorld) -> None:
    host = await world.client(world.guests.host)
    agent = await world.agent("Ada")
    room, answer = await world.dm(host, agent, "first text of a new DM")
    assert "echo: " in answer.body
    portal = await world.portal(host, agent)
    await world.ask(host, portal, agent, "#say Said in the portal", "Said in the portal")
    await world.ask(host, room, agent, "#say **Said** in the DM", "in the DM")
    assert "<strong>Said</strong>" in (host.messages(room, world.puppet(agent))[-1].html or "")
    conversations = await world.conversations(agent)
    assert list(conversations) == [room]
    assert await world.bodies(agent) == ["#say Said in the portal"]
    said = ["first text of a new DM", "#say **Said** in the DM"]
    assert await world.bodies(agent, conversations[room]) == said


async def test_answer_is_shown_while_the_model_writes(world: RealWorld) -> None:
    alice = await world.person("alice")
    agent = await world.agent("Slow")
    puppet = world.puppet(agent)
    room = await alice.create_dm(puppet, "#slow 30 0.1")
    live = await alice.wait_message(room, puppet, "word0")
    assert live.body.endswith("…")
    await alice.wait(lambda: alice.typing(room) == [puppet], "typing")
    final = await alice.wait_message(room, puppet, lambda m: m.body.endswith("word29"))
    assert final.body == " ".join(f"word{n}" for n in range(30))
    assert [m.event_id for m in alice.messages(room, puppet)] == [live.event_id]
    await alice.wait(lambda: alice.typing(room) == [], "the end of typing")


async def test_model_error_is_told_and_the_next_message_is_answered(world: RealWorld) -> None:
    alice = await world.person("alice")
    agent = await world.agent("Sick")
    puppet = world.puppet(agent)
    room = await alice.create_dm(puppet)
    asked = await alice.say(room, "#error 500")
    notice = await alice.wait_message(room, puppet, "failed several times", seconds=40)
    assert (notice.msgtype, notice.reply_to) == ("m.notice", asked)
    await world.ask(alice, room, agent, "#say Better now", "Better now")
    assert len(alice.messages(room, puppet)) == 2


async def test_stop_ends_the_run_and_frees_the_agent(world: RealWorld) -> None:
    alice = await world.person("alice")
    agent = await world.agent("Endless")
    puppet = world.puppet(agent)
    room = await alice.create_dm(puppet, "#slow 900 0.1")
    await alice.wait_message(room, puppet, "word3")
    await alice.say(room, "!stop")
    await alice.wait_message(room, puppet, "Stopped: ")
    await alice.wait_message(room, puppet, "(stopped)")
    await world.ask(alice, room, agent, "#say Free again", "Free again")


@pytest.mark.parametrize("directive", ["#slow 30 0.1", "#hang 2 #say Late but once"])
async def test_bridge_killed_in_mid_turn_answers_exactly_once(world: RealWorld, directive: str) -> None:
    alice = await world.person("alice")
    agent = await world.agent("Survivor")
    puppet = world.puppet(agent)
    room = await alice.create_dm(puppet, "#say Ready")
    await alice.wait_message(room, puppet, "Ready")
    asked = await alice.say(room, directive)
    if "#slow" in directive:
        await alice.wait_message(room, puppet, "word0", after=asked)
    else:
        await alice.wait(lambda: alice.has_read(room, puppet) == asked, "the read receipt")
    world.bridge.kill()
    await alice.say(room, "#say Said meanwhile")
    await world.bridge.start()
    await alice.wait_message(room, puppet, "Said meanwhile", after=asked, seconds=40)
    answers = [m.body for m in alice.messages(room, puppet, asked)]
    complete = " ".join(f"word{n}" for n in range(30)) if "#slow" in directive else "Late but once"
    assert answers == [complete, "Said meanwhile"]
    conversation = (await world.conversations(agent))[room]
    assert await world.bodies(agent, conversation) == ["#say Ready", directive, "#say Said meanwhile"]
    await alice.wait(lambda: alice.typing(room) == [], "the end of typing")


async def test_what_the_agent_learns_in_one_room_it_knows_in_the_other(world: RealWorld) -> None:
    alice = await world.person("alice")
    agent = await world.agent("Learner")
    puppet = world.puppet(agent)
    one, two = await alice.create_dm(puppet, "#say One"), await alice.create_dm(puppet, "#say Two")
    await alice.wait_message(one, puppet, "One")
    await alice.wait_message(two, puppet, "Two")
    fact = f"Alice's cat is called {secrets.token_hex(4)}"
    learn = json.dumps({"label": "persona", "new_string": fact})
    await world.ask(alice, one, agent, f"#tool memory_insert {learn}", "tool said")
    await world.ask(alice, two, agent, "#say What I know", "What I know")
    assert fact in await world.system_prompt("#say What I know")
