"""The V1 backend against the fake server: what cannot be ordered from a real one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from letta_bridge.ids import MAIN_CONVERSATION, AgentID, ConversationID, Otid, RunID
from letta_bridge.letta.backend import (
    Finished,
    Live,
    NotDelivered,
    Prompt,
    RunEnded,
    RunFailed,
    RunStarted,
    Text,
    TurnEvent,
    Unknown,
)
from letta_bridge.letta.errors import Delivery, Kind, LettaError
from letta_bridge.letta.v1 import V1Backend
from letta_bridge.testing.fake_letta.faults import How
from letta_bridge.testing.fake_letta.server import FakeLetta

SEND = r"/v1/conversations/[^/]+/messages$"


@pytest.fixture(params=["redis", "no redis"])
async def fake(request: pytest.FixtureRequest) -> AsyncIterator[FakeLetta]:
    async with FakeLetta(redis=request.param == "redis") as fake:
        yield fake


@pytest.fixture
async def backend(fake: FakeLetta) -> AsyncIterator[V1Backend]:
    backend = V1Backend(fake.url, None, request_timeout=5)
    yield backend
    await backend.close()


@pytest.fixture
def agent(fake: FakeLetta) -> AgentID:
    return AgentID(fake.add_agent("Ada"))


@pytest.fixture(params=["main", "conversation"])
def thread(request: pytest.FixtureRequest, fake: FakeLetta, agent: AgentID) -> ConversationID:
    return MAIN_CONVERSATION if request.param == "main" else ConversationID(fake.add_conversation(agent, "room"))


def prompt(text: str, otid: str = "otid-1") -> Prompt:
    return Prompt(Otid(otid), text)


async def turn(backend: V1Backend, agent: AgentID, thread: ConversationID, *prompts: Prompt) -> list[TurnEvent]:
    return [event async for event in backend.send(agent, thread, prompts, deadline=10)]


def said(events: list[TurnEvent] | tuple[TurnEvent, ...]) -> str:
    return "".join(event.delta for event in events if isinstance(event, Text))


async def failure(events: AsyncIterator[TurnEvent]) -> LettaError:
    with pytest.raises(LettaError) as caught:
        async for _ in events:
            pass
    return caught.value


def sends(fake: FakeLetta) -> int:
    return sum(method == "POST" and path.endswith("/messages") for method, path in fake.requests)


async def start(backend: V1Backend, agent: AgentID, thread: ConversationID, message: Prompt) -> RunID:
    async with aclosing(backend.send(agent, thread, [message], deadline=10)) as events:
        async for event in events:
            assert isinstance(event, RunStarted)
            return event.run_id
    raise AssertionError("no run")


async def test_the_missing_redis_is_found_out_once(
    fake: FakeLetta, backend: V1Backend, agent: AgentID, thread: ConversationID
) -> None:
    assert said(await turn(backend, agent, thread, prompt("one"))) == "echo: one"
    first = sends(fake)
    assert said(await turn(backend, agent, thread, prompt("two", "otid-2"))) == "echo: two"
    assert sends(fake) == first + 1
    assert len(fake.turns(agent)) == 2, "every message was answered once"


@pytest.mark.parametrize(
    ("how", "kind", "delivery"),
    [
        (500, Kind.INTERNAL, Delivery.UNKNOWN),
        (502, Kind.UNREACHABLE, Delivery.UNKNOWN),
        (503, Kind.UNREACHABLE, Delivery.UNKNOWN),
        (429, Kind.UNREACHABLE, Delivery.NO),
        (401, Kind.BAD_KEY, Delivery.NO),
        ("disconnect", Kind.UNREACHABLE, Delivery.UNKNOWN),
    ],
)
async def test_a_send_is_never_repeated(
    fake: FakeLetta, backend: V1Backend, agent: AgentID, how: How, kind: Kind, delivery: Delivery
) -> None:
    fake.fail_next(SEND, how, method="POST")
    error = await failure(backend.send(agent, MAIN_CONVERSATION, [prompt("x")], deadline=10))
    assert (error.kind, error.delivery) == (kind, delivery)
    assert sends(fake) == 1


async def test_an_answer_that_got_lost_is_found(
    fake: FakeLetta, backend: V1Backend, agent: AgentID, thread: ConversationID
) -> None:
    await turn(backend, agent, thread, prompt("first", "otid-0"))
    fake.fail_next(SEND, "disconnect", after_processing=True, method="POST")
    error = await failure(backend.send(agent, thread, [prompt("x")], deadline=10))
    assert error.delivery is Delivery.UNKNOWN
    found = await backend.find(agent, thread, run_id=error.run_id, otids=[Otid("otid-1")], settle=0.1)
    assert isinstance(found, Finished) and said(found.events) == "echo: x"


async def test_letta_is_killed_in_mid_run(
    fake: FakeLetta, backend: V1Backend, agent: AgentID, thread: ConversationID
) -> None:
    await turn(backend, agent, thread, prompt("first", "otid-0"))
    hold = fake.hold(agent)
    sending = asyncio.ensure_future(failure(backend.send(agent, thread, [prompt("x")], deadline=10)))
    await asyncio.wait_for(hold.entered(), 5)
    fake.kill()
    error = await sending
    assert (error.kind, error.delivery) == (Kind.INTERRUPTED, Delivery.UNKNOWN)
    run_id = error.run_id
    assert run_id is not None
    with pytest.raises(LettaError) as caught:
        await backend.find(agent, thread, run_id=run_id, otids=[Otid("otid-1")], settle=0)
    assert caught.value.kind is Kind.UNREACHABLE
    assert caught.value.delivery is Delivery.UNKNOWN, "not asked is not the same as not delivered"
    await fake.start()
    hold.release()
    assert await backend.find(agent, thread, run_id=run_id, otids=[Otid("otid-1")], settle=0) == Live(run_id)
    blind = await backend.find(agent, thread, run_id=None, otids=[Otid("otid-1")], settle=0)
    assert isinstance(blind, Live | Unknown), "a dead run looks like a live one"
    error = await failure(backend.resume(agent, thread, run_id, deadline=0.5))
    assert (error.kind, error.delivery) == (Kind.TIMEOUT, Delivery.YES)
    await backend.cancel(agent, run_id)
    gone = await backend.find(agent, thread, run_id=run_id, otids=[Otid("otid-1")], settle=0)
    assert isinstance(gone, RunFailed) and gone.cancelled and not gone.stored
    assert await backend.find(agent, thread, run_id=None, otids=[Otid("otid-1")], settle=0.05) == NotDelivered()


async def test_a_model_that_hangs_is_left_at_the_deadline(
    fake: FakeLetta, backend: V1Backend, agent: AgentID, thread: ConversationID
) -> None:
    fake.settings.ping_every = 0.05
    hold = fake.hold(agent)
    error = await failure(backend.send(agent, thread, [prompt("x")], deadline=0.5))
    assert (error.kind, error.delivery) == (Kind.TIMEOUT, Delivery.YES)
    assert error.run_id is not None
    hold.release()
    events = [event async for event in backend.resume(agent, thread, error.run_id, deadline=10)]
    assert said(events) == "echo: x" and events[-1] == RunEnded("end_turn")


async def test_cancel_names_its_run_and_leaves_others_alone(
    fake: FakeLetta, backend: V1Backend, agent: AgentID
) -> None:
    here, there = (ConversationID(fake.add_conversation(agent, name)) for name in ("here", "there"))
    hold = fake.hold(agent)
    mine = await start(backend, agent, here, prompt("x", "otid-1"))
    other = await start(backend, agent, there, prompt("y", "otid-2"))
    await asyncio.wait_for(hold.entered(2), 5)
    await backend.cancel(agent, mine)
    assert await backend.find(agent, there, run_id=other, otids=[Otid("otid-2")], settle=0) == Live(other)
    hold.release()
    events = [event async for event in backend.resume(agent, there, other, deadline=10)]
    assert said(events) == "echo: y"


async def test_two_denials_at_once_answer_once(
    fake: FakeLetta, backend: V1Backend, agent: AgentID, thread: ConversationID
) -> None:
    events = await turn(backend, agent, thread, prompt('#approve danger {"x": 1}'))
    assert events[-1] == RunEnded("requires_approval")
    before = len(fake.turns(agent))
    answers = await asyncio.gather(*(backend.deny_approval(agent, thread, "no") for _ in range(3)))
    assert sorted(answers) == [False, False, True]
    assert len(fake.turns(agent)) == before + 1
    assert not any("system-alert" in str(item.get("content")) for item in fake.history(agent, thread))


async def test_a_wrong_key(fake: FakeLetta) -> None:
    async with FakeLetta(password="right") as secured:
        agent = AgentID(secured.add_agent("Ada"))
        wrong, right = V1Backend(secured.url, "wrong"), V1Backend(secured.url, "right")
        await wrong.health()
        with pytest.raises(LettaError) as caught:
            await wrong.list_agents()
        assert caught.value.kind is Kind.BAD_KEY
        error = await failure(wrong.send(agent, MAIN_CONVERSATION, [prompt("x")], deadline=5))
        assert (error.kind, error.delivery) == (Kind.BAD_KEY, Delivery.NO)
        assert said(await turn(right, agent, MAIN_CONVERSATION, prompt("x"))) == "echo: x"
        await wrong.close()
        await right.close()


@pytest.mark.parametrize("how", [500, 502, 503, "disconnect"])
async def test_a_failing_server_is_no_missing_agent(
    fake: FakeLetta, backend: V1Backend, agent: AgentID, how: How
) -> None:
    fake.fail_next(r"/v1/agents/agent-", how)
    with pytest.raises(LettaError) as caught:
        await backend.get_agent(agent)
    assert caught.value.kind in (Kind.INTERNAL, Kind.UNREACHABLE)


async def test_a_listing_is_whole_without_duplicates_and_marks_companions(fake: FakeLetta, backend: V1Backend) -> None:
    names = [f"a{number % 40}" for number in range(120)]
    for name in names:
        fake.add_agent(name, tags=["t"])
    fake.add_agent("sleepy", sleeptime=True)
    listing = await backend.list_agents()
    assert listing.complete
    assert [agent.name for agent in listing.agents if not agent.companion] == [*names, "sleepy"]
    assert [agent.name for agent in listing.agents if agent.companion] == ["sleepy-sleeptime"]
    assert listing.agents[0].tags == ("t",)
