"""A turn found ``running`` at a restart: what each state of Letta leads to, row by row, and what cannot be known.

The bridge is killed at a chosen place, something happens at Letta meanwhile, and the next bridge has to find out. What
nobody can know ends in one sentence, "may not have been delivered", and in no second try.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from letta_bridge import errors
from letta_bridge.ids import AgentID, ConversationID, EventID, make_otid
from letta_bridge.letta.errors import Kind
from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_letta import Behaviour

from ..integration.world import until
from .harness import CrashWorld, crash_world, echo
from .nursery import Nursery

_SETTLE = 0.3
_LETTA_SEND = r"/v1/conversations/[^/]+/messages$"
WITHOUT_REDIS = pytest.param(False, id="without-redis")
WITH_REDIS = pytest.param(True, id="with-redis")
ALSO_WITH_REDIS = pytest.param(True, id="with-redis", marks=pytest.mark.full)
"""Where Redis makes no difference."""


@dataclass
class Case:
    """A DM in which ``hello`` was answered."""

    world: CrashWorld
    agent: str
    alice: Person
    room: str

    async def kill_at(self, at: str, text: str = "one") -> str:
        """Say something, and let the bridge die on it; the event's id."""
        self.world.arm(f"{at}:kill")
        event_id = await self.alice.send(self.room, text)
        await self.world.died()
        return event_id

    async def answered(self, *texts: str) -> None:
        await self.world.answered(self.alice, self.room, self.agent, *texts)

    def notices(self) -> list[str]:
        return [m.body for m in self.alice.messages(self.room) if m.msgtype == "m.notice"]

    async def told(self, sentence: str, seconds: float = 20.0) -> None:
        """Wait until Alice reads ``sentence``, and hold that it is said once and nothing beside it."""
        await self.world.hs.wait_until(lambda: sentence in self.notices(), seconds, sentence)
        assert self.notices() == [sentence]

    def turns_of(self, text: str) -> list[str]:
        """How every turn ended in which the agent was told ``text``."""
        turns = self.world.letta.turns(self.agent)
        return [turn.outcome for turn in turns if any(envelope.open_(one).body == text for one in turn.texts)]

    def otids_of(self, text: str) -> list[str]:
        turns = self.world.letta.turns(self.agent)
        return [otid for turn in turns for one, otid in zip(turn.texts, turn.otids, strict=True) if f"| {text}" in one]

    async def goes_on(self, text: str = "what now?") -> None:
        """The lane is free: the next message is answered, and nothing came of the last one after all."""
        before = self.notices()
        await self.alice.send(self.room, text)
        await self.answered(text)
        assert self.notices() == before

    async def letta(self, method: str, path: str, **keys: Any) -> None:
        """Do something at Letta as another client of it."""
        url = f"{self.world.letta.url}{path}"
        async with ClientSession() as session, session.request(method, url, **keys) as answer:
            assert answer.status == 200, await answer.text()

    async def cancel_in_letta(self) -> None:
        run_id = self.world.letta.turns(self.agent)[-1].run_id
        await self.letta("POST", f"/v1/agents/{self.agent}/messages/cancel", json={"run_ids": [run_id]})

    async def requested(self, path: str, times: int = 1) -> None:
        """Wait until the bridge has asked Letta for something, counted from the last ``requests.clear()``."""
        requests = self.world.letta.requests
        await until(lambda: sum(path in asked for _, asked in requests) >= times, why=f"never asked for {path}")


Open = Callable[..., Awaitable[Case]]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.full])])
def uri(request: pytest.FixtureRequest) -> str:
    """SQLite; PostgreSQL in the full run: what is decided here does not depend on it."""
    return "sqlite:bridge.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest_asyncio.fixture
async def a_case(tmp_path: Path, uri: str, processes: Nursery) -> AsyncIterator[Open]:
    """Opens the DM: ``await a_case(redis=True)``."""
    async with AsyncExitStack() as stack:

        async def opened(*, redis: bool = False, turn_timeout: float = 60.0) -> Case:
            world = await stack.enter_async_context(crash_world(tmp_path, uri, redis=redis, nursery=processes))
            world.settings = {"letta.request_timeout": _SETTLE, "letta.turn_timeout": turn_timeout}
            agent = world.letta.add_agent("Scout")
            alice = await world.hs.person("alice")
            await world.start()
            return Case(world, agent, alice, await world.dm(alice, agent, "hello"))

        yield opened


# -- the run is known


@pytest.mark.parametrize("redis", [WITHOUT_REDIS, ALSO_WITH_REDIS])
async def test_known_run_that_ended_meanwhile(a_case: Open, redis: bool) -> None:
    case = await a_case(redis=redis)
    hold = case.world.letta.hold(case.agent)
    await case.kill_at("turn.accepted:1")
    hold.release()
    await until(lambda: case.turns_of("one") == ["end_turn"])
    await case.world.start()
    await case.answered("one")
    assert case.turns_of("one") == ["end_turn"]
    await case.goes_on()


@pytest.mark.parametrize("redis", [WITHOUT_REDIS, WITH_REDIS])
async def test_known_run_that_still_works(a_case: Open, redis: bool) -> None:
    """With Redis its stream is taken up again, from its beginning; without, the run is asked until it is over."""
    case = await a_case(redis=redis)
    world, go_on = case.world, asyncio.Event()

    async def in_two(texts: list[str]) -> AsyncIterator[str]:
        yield "first half, "
        yield "then "
        await go_on.wait()
        yield echo(texts)

    world.letta.reply = in_two
    await case.kill_at("turn.accepted:1")
    world.letta.requests.clear()
    await world.start()
    await case.requested("/stream" if redis else "/v1/runs/run-", 1 if redis else 3)
    go_on.set()
    whole = "first half, then re: <one>"
    await case.alice.wait_message(case.room, sender=world.puppet(case.agent), text=whole, timeout=20)
    await case.answered("one")
    assert case.turns_of("one") == ["end_turn"]
    world.letta.reply = echo
    await case.goes_on()


async def test_known_run_that_failed_meanwhile_is_tried_again(a_case: Open) -> None:
    """Letta keeps nothing of a turn whose model failed, so the agent hears the message once."""
    case = await a_case()
    world = case.world
    world.letta.script(case.agent, Behaviour(hang=0.3, error=500))
    await case.kill_at("turn.accepted:1")
    await until(lambda: case.turns_of("one") not in ([], ["running"]))
    await world.start()
    await case.answered("one")
    assert case.turns_of("one")[1:] == ["end_turn"]
    assert len(set(case.otids_of("one"))) == 2, "another attempt has other otids"
    conversation = world.letta.conversations(case.agent)[0]
    heard = [x for x in world.letta.history(case.agent, conversation) if "| one" in str(x.get("content"))]
    assert len(heard) == 1
    await case.goes_on()


async def test_known_run_that_failed_after_its_first_step_is_not_repeated(a_case: Open) -> None:
    case = await a_case()
    world = case.world
    inside = world.letta.hold("nobody yet")

    def once(_: dict[str, Any]) -> str:
        inside.agent_id = case.agent  # from here on the model hangs
        return "done"

    world.letta.tool("conversation_search", once)
    world.letta.script(case.agent, Behaviour(tool=("conversation_search", {"query": "x"})))
    await case.kill_at("turn.accepted:1")
    await inside.entered()
    await case.cancel_in_letta()
    inside.release()
    await until(lambda: case.turns_of("one") == ["cancelled"])
    await world.start()
    await case.told(errors.FAILED_MIDWAY)
    await case.goes_on()
    assert case.turns_of("one") == ["cancelled"]


async def test_known_run_that_somebody_cancelled_is_not_repeated(a_case: Open) -> None:
    case = await a_case()
    hold = case.world.letta.hold(case.agent)
    await case.kill_at("turn.accepted:1")
    await hold.entered()
    await case.cancel_in_letta()
    hold.release()
    await until(lambda: case.turns_of("one") == ["cancelled"])
    await case.world.start()
    await case.told(errors.STOPPED_EARLY.format(reason=errors.CANCELLED_IN_LETTA))
    await case.goes_on()
    assert case.turns_of("one") == ["cancelled"]


@pytest.mark.parametrize("redis", [WITHOUT_REDIS, ALSO_WITH_REDIS])
async def test_known_run_that_died_with_letta_is_handed_over_again(a_case: Open, redis: bool) -> None:
    """Letta calls it running for ever; that Letta went away meanwhile was seen, so the run is known to be dead."""
    case = await a_case(redis=redis)
    world = case.world
    hold = world.letta.hold(case.agent)
    await case.kill_at("turn.accepted:1")
    await hold.entered()
    world.letta.kill()
    hold.release()
    await world.start()
    await case.told(errors.TROUBLES[Kind.UNREACHABLE].sentence)
    await world.letta.start()
    await case.answered("one")
    assert case.turns_of("one") == ["lost", "end_turn"]
    assert len(set(case.otids_of("one"))) == 2
    await case.goes_on()


async def test_known_run_that_died_with_letta_unseen_ends_at_the_deadline(a_case: Open) -> None:
    """Limit: nobody saw Letta's restart, and its word is that the run works."""
    case = await a_case(turn_timeout=1.5)
    world = case.world
    hold = world.letta.hold(case.agent)
    await case.kill_at("turn.accepted:1")
    await hold.entered()
    world.letta.kill()
    hold.release()
    await world.letta.start()
    await world.start()
    await case.told(errors.TROUBLES[Kind.TIMEOUT].sentence.format(minutes="a minute"))
    await case.goes_on()
    assert case.turns_of("one") == ["lost"]


# -- the run is not known


@pytest.mark.parametrize("redis", [WITHOUT_REDIS, ALSO_WITH_REDIS])
async def test_unknown_run_whose_message_is_in_the_history(a_case: Open, redis: bool) -> None:
    case = await a_case(redis=redis)
    await case.kill_at("turn.named:1")
    await until(lambda: case.turns_of("one") == ["end_turn"])
    await case.world.start()
    await case.answered("one")
    assert case.turns_of("one") == ["end_turn"]
    await case.goes_on()


@pytest.mark.parametrize("redis", [WITHOUT_REDIS, WITH_REDIS])
async def test_unknown_run_that_still_works(a_case: Open, redis: bool) -> None:
    """The message is in no history before the model answers. Redis knows its otid; without, the run is waited for."""
    case = await a_case(redis=redis)
    world = case.world
    hold = world.letta.hold(case.agent)
    await case.kill_at("turn.named:1")
    await hold.entered()
    world.letta.requests.clear()
    await world.start()
    await case.requested("/stream" if redis else "/messages")
    assert case.turns_of("one") == ["running"]
    hold.release()
    await case.answered("one")
    assert case.turns_of("one") == ["end_turn"]
    assert case.notices() == []
    await case.goes_on()


@pytest.mark.parametrize("redis", [WITHOUT_REDIS, ALSO_WITH_REDIS])
async def test_message_that_letta_proves_not_to_have_is_handed_over_again(a_case: Open, redis: bool) -> None:
    """Not in the history and no run of the conversation open, seen twice: sent again, as another attempt."""
    case = await a_case(redis=redis)
    event_id = await case.kill_at("turn.begun:1")
    case.world.letta.requests.clear()
    await case.world.start()
    await case.answered("one")
    assert case.turns_of("one") == ["end_turn"]
    conversation = ConversationID(case.world.letta.conversations(case.agent)[0])
    assert case.otids_of("one") == [make_otid(AgentID(case.agent), conversation, EventID(event_id), 2)]
    assert sum(path == "/v1/runs/" for _, path in case.world.letta.requests) >= 2, "looked only once"
    await case.goes_on()


# -- what cannot be known


async def test_unknown_run_that_never_ends_may_not_have_been_delivered(a_case: Open) -> None:
    """Letta died under a run of this conversation that nobody saw the name of, and calls it running for ever."""
    case = await a_case(turn_timeout=1.5)
    world = case.world
    hold = world.letta.hold(case.agent)
    await case.kill_at("turn.named:1")
    await hold.entered()
    world.letta.kill()
    hold.release()
    await world.letta.start()
    await world.start()
    await case.told(errors.MAY_NOT_HAVE_BEEN_DELIVERED)
    world.kill()
    await world.start()
    await case.goes_on()
    assert case.notices() == [errors.MAY_NOT_HAVE_BEEN_DELIVERED]
    assert case.turns_of("one") == ["lost"], "it was sent again"


async def test_conversation_that_is_gone_may_not_have_been_delivered(a_case: Open) -> None:
    case = await a_case()
    [conversation] = case.world.letta.conversations(case.agent)
    await case.kill_at("turn.begun:1")
    await case.letta("DELETE", f"/v1/conversations/{conversation}")
    await case.world.start()
    await case.told(errors.MAY_NOT_HAVE_BEEN_DELIVERED)
    await case.goes_on()
    assert case.turns_of("one") == []


async def test_request_that_reaches_letta_after_both_looks_is_heard_twice_and_answered_once(a_case: Open) -> None:
    """Limit: what is still under way when Letta is asked, twice, cannot be seen. The person sees one answer."""
    case = await a_case()
    event_id = await case.kill_at("turn.begun:1")
    await case.world.start()
    await case.answered("one")
    [conversation] = case.world.letta.conversations(case.agent)
    late = make_otid(AgentID(case.agent), ConversationID(conversation), EventID(event_id), 1)
    [text] = [x for turn in case.world.letta.turns(case.agent) for x in turn.texts if "| one" in x]
    body = {"messages": [{"role": "user", "content": text, "otid": late}], "streaming": True}
    await case.letta("POST", f"/v1/conversations/{conversation}/messages", json=body)
    await until(lambda: case.turns_of("one") == ["end_turn", "end_turn"])
    await case.goes_on()
    await case.answered("hello", "one")
