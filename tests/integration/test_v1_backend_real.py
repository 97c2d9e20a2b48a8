"""The V1 backend against a real Letta V1 server that uses the scripted model (words in the prompt direct its answers).

Runs when ``LETTA_BRIDGE_TEST_LETTA_URL`` names such a server, with or without Redis; ``LETTA_BRIDGE_TEST_LETTA_MODEL``
overrides the model's handle.
"""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from letta_bridge.ids import MAIN_CONVERSATION, AgentID, ConversationID, Otid, RunID
from letta_bridge.letta.backend import (
    Alive,
    ApprovalRequest,
    Finished,
    Live,
    NotDelivered,
    Outcome,
    Prompt,
    RunEnded,
    RunFailed,
    RunStarted,
    Text,
    ToolCall,
    ToolReturn,
    TurnEvent,
    Unknown,
)
from letta_bridge.letta.errors import Delivery, Kind, LettaError
from letta_bridge.letta.v1 import V1Backend

URL = ""
MODEL = os.environ.get("LETTA_BRIDGE_TEST_LETTA_MODEL", "openai-proxy/gpt-4o")
pytestmark = [pytest.mark.letta, pytest.mark.full]


@pytest.fixture(autouse=True)
def _url(letta_server: Any) -> None:
    global URL
    URL = letta_server.url


NOWHERE = AgentID("agent-11111111-1111-4111-8111-111111111111")
DANGER = '''
def danger(x: str) -> str:
    """Do something dangerous.

    Args:
        x (str): what
    """
    return "done"
'''


class Letta:
    """Direct access to the server, for what the bridge itself never does."""

    def __init__(self) -> None:
        self.http = httpx.AsyncClient(base_url=URL, timeout=60, trust_env=False)
        self._made: list[str] = []

    async def agent(self, **fields: Any) -> AgentID:
        answer = await self.http.post("/v1/agents/", json={"name": "v1-test", "model": MODEL, **fields})
        assert answer.status_code == 200, answer.text
        self._made.append(answer.json()["id"])
        return AgentID(self._made[-1])

    async def danger_tool(self) -> str:
        answer = await self.http.put("/v1/tools/", json={"source_code": DANGER, "default_requires_approval": True})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def texts(self, agent: AgentID, conversation: ConversationID) -> list[str]:
        """What people said in the conversation, as Letta stored it."""
        path = f"/v1/conversations/{conversation}/messages"
        answer = await self.http.get(path, params=self.main(agent, conversation))
        return [row["content"] for row in answer.json() if row["message_type"] == "user_message"]

    async def run(self, run_id: RunID | None) -> dict[str, Any]:
        answer = await self.http.get(f"/v1/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def has_redis(self) -> bool:
        answer = await self.http.post("/v1/conversations/default/stream", json={"otid": "no such otid"})
        return answer.status_code != 503

    @staticmethod
    def main(agent: AgentID, conversation: ConversationID) -> dict[str, str]:
        return {"agent_id": agent} if conversation == MAIN_CONVERSATION else {}

    async def close(self) -> None:
        for agent in self._made:
            await self.http.delete(f"/v1/agents/{agent}")
        await self.http.aclose()


@pytest.fixture
async def letta() -> AsyncIterator[Letta]:
    letta = Letta()
    yield letta
    await letta.close()


@pytest.fixture
async def backend() -> AsyncIterator[V1Backend]:
    backend = V1Backend(URL, None)
    yield backend
    await backend.close()


@pytest.fixture
async def agent(letta: Letta) -> AgentID:
    return await letta.agent()


@pytest.fixture(params=["main", "conversation"])
async def thread(request: pytest.FixtureRequest, backend: V1Backend, agent: AgentID) -> ConversationID:
    if request.param == "main":
        return MAIN_CONVERSATION
    return await backend.open_conversation(agent, "!room:example.org")


def prompt(text: str) -> Prompt:
    return Prompt(Otid(f"lb-test-{uuid.uuid4()}"), text)


async def turn(
    backend: V1Backend, agent: AgentID, conversation: ConversationID, *prompts: Prompt, deadline: float = 30
) -> list[TurnEvent]:
    return [event async for event in backend.send(agent, conversation, prompts, deadline=deadline)]


def said(events: list[TurnEvent] | tuple[TurnEvent, ...]) -> list[str]:
    """The assistant messages that the pieces make up, in order."""
    messages: dict[str, str] = {}
    for event in events:
        if isinstance(event, Text):
            messages[event.message_id] = messages.get(event.message_id, "") + event.delta
    return list(messages.values())


def run_of(events: list[TurnEvent]) -> RunID:
    assert isinstance(events[0], RunStarted), events
    return events[0].run_id


async def failure(events: AsyncIterator[TurnEvent], seen: list[TurnEvent] | None = None) -> LettaError:
    with pytest.raises(LettaError) as caught:
        async for event in events:
            if seen is not None:
                seen.append(event)
    return caught.value


async def start(
    backend: V1Backend, agent: AgentID, conversation: ConversationID, text: Prompt, *, until: type = RunStarted
) -> RunID:
    """Begin a turn and go away as soon as an event of the given type came; the run goes on."""
    run_id: RunID | None = None
    async with aclosing(backend.send(agent, conversation, [text], deadline=30)) as events:
        async for event in events:
            run_id = event.run_id if isinstance(event, RunStarted) else run_id
            if isinstance(event, until):
                break
    assert run_id is not None
    return run_id


async def find(
    backend: V1Backend, agent: AgentID, conversation: ConversationID, *, run: RunID | None = None, otids: Any = ()
) -> Outcome:
    return await backend.find(agent, conversation, run_id=run, otids=list(otids), settle=0.2)


async def settled(look: Callable[[], Any], seconds: float = 20) -> Outcome:
    """What ``look`` finds once it is neither live nor unknown."""
    until = time.monotonic() + seconds
    while isinstance(outcome := await look(), Live | Unknown):
        assert time.monotonic() < until, outcome
        await asyncio.sleep(0.1)
    return outcome


# --- what is there


async def test_health(backend: V1Backend) -> None:
    assert (await backend.health()).version.startswith("0.16")


async def test_agents_are_listed_whole_with_tags_and_companions_marked(letta: Letta, backend: V1Backend) -> None:
    first = await letta.agent(name="", description="d", tags=["a", "b"], metadata={"k": 1})
    with_companion = await letta.agent(name="sleepy", enable_sleeptime=True, embedding="openai/text-embedding-3-small")
    listing = await backend.list_agents()
    assert listing.complete
    assert len({agent.id for agent in listing.agents}) == len(listing.agents)
    agents = {agent.id: agent for agent in listing.agents}
    assert agents[first].name == "" and agents[first].description == "d"
    assert set(agents[first].tags) == {"a", "b"} and agents[first].metadata["k"] == 1
    assert not agents[with_companion].companion
    twins = [agent for agent in listing.agents if agent.name == "sleepy-sleeptime"]
    assert twins and all(twin.companion for twin in twins)
    assert await backend.get_agent(first) == agents[first]
    for twin in twins:
        await letta.http.delete(f"/v1/agents/{twin.id}")


async def test_missing_agent(backend: V1Backend) -> None:
    with pytest.raises(LettaError) as caught:
        await backend.get_agent(NOWHERE)
    assert caught.value.kind is Kind.AGENT_GONE


@pytest.mark.parametrize("label", ["!room:example.org", "100%_\\a\\b 'q' ü", ""])
async def test_a_conversation_is_found_again(backend: V1Backend, agent: AgentID, letta: Letta, label: str) -> None:
    await backend.open_conversation(agent, label + "x")
    made = await backend.open_conversation(agent, label)
    await letta.http.post("/v1/conversations/", params={"agent_id": agent}, json={"summary": label})
    assert await backend.open_conversation(agent, label) == made


async def test_a_conversation_of_a_missing_agent(backend: V1Backend) -> None:
    with pytest.raises(LettaError) as caught:
        await backend.open_conversation(NOWHERE, "!room:example.org")
    assert caught.value.kind is Kind.AGENT_GONE


async def test_a_conversation_sees_memory_only_when_refreshed(letta: Letta, backend: V1Backend) -> None:
    agent = await letta.agent(memory_blocks=[{"label": "human", "value": "likes tea"}])
    conversation = await backend.open_conversation(agent, "!room:example.org")
    known = await backend.refresh_memory(agent, conversation, "")
    assert known and await backend.refresh_memory(agent, conversation, known) == known
    await letta.http.patch(f"/v1/agents/{agent}/core-memory/blocks/human", json={"value": "likes coffee"})
    fresh = await backend.refresh_memory(agent, conversation, known)
    assert fresh != known
    history = (await letta.http.get(f"/v1/conversations/{conversation}/messages")).json()
    assert "likes coffee" in history[-1]["content"]
    assert await backend.refresh_memory(agent, MAIN_CONVERSATION, "kept") == "kept"


# --- turns


async def test_a_turn_and_what_is_found_of_it_later(
    backend: V1Backend, letta: Letta, agent: AgentID, thread: ConversationID
) -> None:
    first, second = prompt("one"), prompt("two\u2028three")
    events = await turn(backend, agent, thread, first, second)
    assert said(events) == ["echo: two\u2028three"]
    assert sum(isinstance(event, RunStarted) for event in events) == 1
    assert events[-1] == RunEnded("end_turn")
    assert sum(isinstance(event, Text) for event in events) > 1, "tokens, not one piece"
    assert sorted(await letta.texts(agent, thread)) == ["one", "two\u2028three"]
    by_run = await find(backend, agent, thread, run=run_of(events), otids=[first.otid])
    assert isinstance(by_run, Finished)
    assert [e.message_id for e in by_run.events if isinstance(e, Text)] == [
        next(e.message_id for e in events if isinstance(e, Text))
    ], "history and stream name the message alike"
    assert said(by_run.events) == said(events)
    assert by_run.events[0] == events[0] and by_run.events[-1] == events[-1]
    assert await find(backend, agent, thread, otids=[second.otid]) == by_run
    assert [event async for event in backend.resume(agent, thread, run_of(events), deadline=10)] == list(by_run.events)


async def test_tools_of_letta_are_reported(backend: V1Backend, agent: AgentID, thread: ConversationID) -> None:
    events = await turn(backend, agent, thread, prompt('#tool memory_insert {"label":"none","new_string":"x"}'))
    call = next(event for event in events if isinstance(event, ToolCall))
    assert call.name == "memory_insert"
    assert [event for event in events if isinstance(event, ToolCall | ToolReturn)] == [
        call,
        ToolReturn(call.call_id, ok=False),
    ]
    assert said(events)[0].startswith("tool said:")
    found = await find(backend, agent, thread, run=run_of(events))
    assert isinstance(found, Finished) and call in found.events


@pytest.mark.parametrize(
    ("directive", "kind"),
    [
        ("#error 400", Kind.MODEL_REFUSED),
        ("#error 401", Kind.MODEL_REFUSED),
        ("#error 402", Kind.MODEL_REFUSED),
        ("#error 413", Kind.CONTEXT_FULL),
        ("#error 429", Kind.MODEL),
        ("#error 500", Kind.MODEL),
        ("#errorafter 2 #slow 5 0.01", Kind.MODEL),
    ],
)
async def test_model_errors(
    backend: V1Backend, letta: Letta, agent: AgentID, thread: ConversationID, directive: str, kind: Kind
) -> None:
    message, seen = prompt(directive), list[TurnEvent]()
    error = await failure(backend.send(agent, thread, [message], deadline=30), seen)
    assert (error.kind, error.delivery, error.run_id) == (kind, Delivery.NO, run_of(seen))
    assert directive not in await letta.texts(agent, thread)
    found = await settled(lambda: find(backend, agent, thread, run=error.run_id, otids=[message.otid]))
    assert isinstance(found, RunFailed) and not found.stored and not found.cancelled
    # a foreground run that broke in mid-stream keeps no more than a stop reason
    assert found.kind in (kind, Kind.INTERNAL)
    assert isinstance(await find(backend, agent, thread, otids=[message.otid]), NotDelivered)


async def test_a_model_error_after_a_tool_call_keeps_the_message(
    backend: V1Backend, letta: Letta, agent: AgentID, thread: ConversationID
) -> None:
    message = prompt('#errorafter 1 #tool memory_insert {"label":"none","new_string":"x"}')
    error = await failure(backend.send(agent, thread, [message], deadline=30))
    assert (error.kind, error.delivery) == (Kind.MODEL, Delivery.YES)
    assert await letta.texts(agent, thread) == [message.text]
    for known in (error.run_id, None):
        found = await settled(lambda run=known: find(backend, agent, thread, run=run, otids=[message.otid]))
        assert isinstance(found, RunFailed) and found.stored


async def test_what_is_missing_is_named(backend: V1Backend, letta: Letta, agent: AgentID) -> None:
    gone = await backend.open_conversation(agent, "!gone:example.org")
    await letta.http.delete(f"/v1/conversations/{gone}")
    error = await failure(backend.send(agent, gone, [prompt("x")], deadline=10))
    assert (error.kind, error.delivery) == (Kind.CONVERSATION_GONE, Delivery.NO)
    with pytest.raises(LettaError) as caught:
        await find(backend, agent, gone, otids=[Otid("x")])
    assert caught.value.kind is Kind.CONVERSATION_GONE
    for conversation in (MAIN_CONVERSATION, gone):
        error = await failure(backend.send(NOWHERE, conversation, [prompt("x")], deadline=10))
        assert (error.kind, error.delivery) == (Kind.AGENT_GONE, Delivery.NO)


async def test_a_busy_conversation(backend: V1Backend, letta: Letta, agent: AgentID, thread: ConversationID) -> None:
    if not await letta.has_redis():
        pytest.skip("without Redis Letta has no lock")
    run_id = await start(backend, agent, thread, prompt("#slow 10 0.2"))
    error = await failure(backend.send(agent, thread, [prompt("x")], deadline=10))
    assert (error.kind, error.delivery, error.run_id) == (Kind.BUSY, Delivery.NO, run_id)


async def test_cancel(backend: V1Backend, letta: Letta, agent: AgentID, thread: ConversationID) -> None:
    message, events = prompt("#slow 100 0.1"), list[TurnEvent]()
    async for event in backend.send(agent, thread, [message], deadline=30):
        events.append(event)
        if sum(isinstance(e, Text) for e in events) == 3 and isinstance(event, Text):
            await backend.cancel(agent, run_of(events))
    assert events[-1] == RunEnded("cancelled")
    found = await find(backend, agent, thread, run=run_of(events), otids=[message.otid])
    assert isinstance(found, RunFailed) and found.cancelled and not found.stored
    assert await letta.texts(agent, thread) == []
    await backend.cancel(agent, run_of(events))
    assert said(await turn(backend, agent, thread, prompt("after"))) == ["echo: after"]


async def test_several_turns_in_a_row(backend: V1Backend, agent: AgentID, thread: ConversationID) -> None:
    for number in range(5):
        assert said(await turn(backend, agent, thread, prompt(f"n{number}"))) == [f"echo: n{number}"]


# --- approvals


async def test_approval_is_reported_blocks_and_is_denied(backend: V1Backend, letta: Letta) -> None:
    agent = await letta.agent(tool_ids=[await letta.danger_tool()])
    for thread in (MAIN_CONVERSATION, await backend.open_conversation(agent, "!room:example.org")):
        assert not await backend.deny_approval(agent, thread, "no")
        events = await turn(backend, agent, thread, prompt('#tool danger {"x": "boom here"}'))
        request = events[-2]
        assert isinstance(request, ApprovalRequest)
        assert (request.name, request.arguments) == ("danger", '{"x": "boom here"}')
        assert events[-1] == RunEnded("requires_approval")
        found = await find(backend, agent, thread, run=run_of(events))
        assert isinstance(found, Finished) and found.events[-2:] == (request, events[-1])
        blocked = prompt("blocked")
        error = await failure(backend.send(agent, thread, [blocked], deadline=10))
        assert (error.kind, error.delivery) == (Kind.APPROVAL, Delivery.NO)
        assert await backend.deny_approval(agent, thread, "not in this room")
        assert not await backend.deny_approval(agent, thread, "not in this room")
        assert said(await turn(backend, agent, thread, prompt("after"))) == ["echo: after"]
        texts = await letta.texts(agent, thread)
        assert "blocked" not in texts and not any("system-alert" in text for text in texts)


# --- interruptions


async def test_the_deadline_leaves_the_run_going_and_resume_follows_it(
    backend: V1Backend, agent: AgentID, thread: ConversationID
) -> None:
    began = time.monotonic()
    error = await failure(backend.send(agent, thread, [prompt("#slow 20 0.1")], deadline=1))
    assert time.monotonic() - began < 1.5
    assert (error.kind, error.delivery) == (Kind.TIMEOUT, Delivery.YES)
    assert error.run_id is not None
    late = await failure(backend.resume(agent, thread, error.run_id, deadline=0.3))
    assert (late.kind, late.delivery, late.run_id) == (Kind.TIMEOUT, Delivery.YES, error.run_id)
    events = [event async for event in backend.resume(agent, thread, error.run_id, deadline=20)]
    assert run_of(events) == error.run_id
    assert said(events) == [" ".join(f"word{n}" for n in range(20))]
    assert events[-1] == RunEnded("end_turn")


async def test_a_turn_that_nobody_reads_any_more_is_found(
    backend: V1Backend, letta: Letta, agent: AgentID, thread: ConversationID
) -> None:
    message = prompt("#slow 12 0.1")
    run_id = await start(backend, agent, thread, message)
    assert await find(backend, agent, thread, run=run_id, otids=[message.otid]) == Live(run_id)
    early = await find(backend, agent, thread, otids=[message.otid])
    assert isinstance(early, Live if await letta.has_redis() else Unknown), "the history has nothing yet"
    found = await settled(lambda: find(backend, agent, thread, otids=[message.otid]))
    assert isinstance(found, Finished)
    assert said(found.events) == [" ".join(f"word{n}" for n in range(12))]
    assert await letta.texts(agent, thread) == [message.text]


async def test_what_was_never_sent_is_not_delivered(backend: V1Backend, agent: AgentID, thread: ConversationID) -> None:
    assert await find(backend, agent, thread, otids=[Otid("lb-never")]) == NotDelivered()
    await turn(backend, agent, thread, prompt("x"))
    assert await find(backend, agent, thread, otids=[Otid("lb-never")]) == NotDelivered()
    vanished = RunID("run-11111111-1111-4111-8111-111111111111")
    assert await find(backend, agent, thread, run=vanished, otids=[Otid("lb-never")]) == NotDelivered()


async def test_a_message_far_back_in_the_history_is_found(
    backend: V1Backend, letta: Letta, agent: AgentID, thread: ConversationID
) -> None:
    message = prompt("the one")
    await turn(backend, agent, thread, message)
    await turn(backend, agent, thread, *(prompt(f"filler {n}") for n in range(130)))
    found = await find(backend, agent, thread, otids=[message.otid])
    assert isinstance(found, Finished) and said(found.events) == ["echo: the one"]


async def test_nobody_listens(agent: AgentID) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        backend = V1Backend(f"http://127.0.0.1:{unused.getsockname()[1]}", "secret-key")
        error = await failure(backend.send(agent, MAIN_CONVERSATION, [prompt("x")], deadline=10))
        assert (error.kind, error.delivery) == (Kind.UNREACHABLE, Delivery.NO)
        with pytest.raises(LettaError) as caught:
            await backend.health()
        assert caught.value.kind is Kind.UNREACHABLE and "secret-key" not in str(caught.value)
        await backend.close()


class Wire:
    """A TCP relay to the server that can be cut, and counts what is open."""

    def __init__(self) -> None:
        self.cut_before_answer = False
        self.cut_at: bytes | None = None
        self.open = 0
        self.url = ""

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = urlsplit(URL)
        upstream_reader, upstream_writer = await asyncio.open_connection(target.hostname, target.port)
        self.open += 1
        requests = asyncio.ensure_future(self._pump(reader, upstream_writer, lambda data: False))
        answers = asyncio.ensure_future(self._pump(upstream_reader, writer, self._cuts))
        await asyncio.wait({requests, answers}, return_when=asyncio.FIRST_COMPLETED)
        for task in (requests, answers):
            task.cancel()
        await asyncio.gather(requests, answers, return_exceptions=True)
        for side in (writer, upstream_writer):
            side.close()
        self.open -= 1

    def _cuts(self, data: bytes) -> bool:
        return self.cut_before_answer or (self.cut_at is not None and self.cut_at in data)

    @staticmethod
    async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, cuts: Callable[[bytes], bool]) -> None:
        while data := await source.read(65536):
            if cuts(data):
                return
            target.write(data)
            await target.drain()


@asynccontextmanager
async def wired() -> AsyncIterator[tuple[Wire, V1Backend]]:
    wire = Wire()
    server = await asyncio.start_server(wire.relay, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    backend = V1Backend(wire.url, None)
    try:
        yield wire, backend
    finally:
        await backend.close()
        server.close()
        await server.wait_closed()


async def test_the_wire_breaks_after_the_request(
    backend: V1Backend, letta: Letta, agent: AgentID, thread: ConversationID
) -> None:
    async with wired() as (wire, through):
        await turn(through, agent, thread, prompt("first"))  # settles whether there is Redis
        wire.cut_before_answer = True
        message = prompt("second")
        error = await failure(through.send(agent, thread, [message], deadline=10))
        assert (error.kind, error.delivery, error.run_id) == (Kind.UNREACHABLE, Delivery.UNKNOWN, None)
    found = await settled(lambda: find(backend, agent, thread, otids=[message.otid]))
    assert isinstance(found, Finished) and said(found.events) == ["echo: second"]
    assert (await letta.texts(agent, thread)).count("second") == 1


async def test_the_wire_breaks_in_mid_answer(backend: V1Backend, agent: AgentID, thread: ConversationID) -> None:
    async with wired() as (wire, through):
        wire.cut_at = b"word5"
        message = prompt("#slow 10 0.05")
        error = await failure(through.send(agent, thread, [message], deadline=10))
        assert (error.kind, error.delivery) == (Kind.INTERRUPTED, Delivery.UNKNOWN)
        assert error.run_id is not None
    found = await settled(lambda: find(backend, agent, thread, run=error.run_id, otids=[message.otid]))
    assert isinstance(found, Finished) and said(found.events)[0].endswith("word9")


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_going_away_closes_the_connection(agent: AgentID, thread: ConversationID, how: str) -> None:
    async with wired() as (wire, through):
        began = asyncio.Event()

        async def read() -> None:
            async with aclosing(through.send(agent, thread, [prompt("#slow 30 0.1")], deadline=30)) as events:
                async for event in events:
                    if isinstance(event, Text | Alive):
                        began.set()
                        if how == "close":
                            return

        task = asyncio.ensure_future(read())
        await asyncio.wait_for(began.wait(), 10)
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await task if how == "close" else None
        until = time.monotonic() + 2
        while wire.open:
            assert time.monotonic() < until, "a connection is still open"
            await asyncio.sleep(0.02)
