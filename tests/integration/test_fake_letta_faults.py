"""What only a fake Letta can be made to do: to die, to hang, to lose connections, to be emptied."""

import asyncio
import math
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from letta_bridge.testing.fake_letta import Behaviour, FakeLetta

from .letta_target import Target, kinds, texts, until, user

BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)


@pytest.fixture(params=[False, True], ids=["without Redis", "with Redis"])
async def letta(request: pytest.FixtureRequest) -> AsyncIterator[FakeLetta]:
    async with FakeLetta(redis=request.param) as fake:
        yield fake


@pytest.fixture
async def with_redis() -> AsyncIterator[FakeLetta]:
    async with FakeLetta(redis=True) as fake:
        yield fake


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_5_what_runs_when_the_server_dies_is_lost(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout")
    base = f"/v1/agents/{agent}/messages"
    conversation = f"/v1/conversations/{letta.add_conversation(agent)}"
    await client.post(base, user("before"))
    hold = letta.hold(agent)
    accepted = (await client.post(f"{base}/async", user("accepted")))["id"]
    waiting = asyncio.create_task(client.stream(f"{conversation}/messages", user("streamed", "$lost")))
    await hold.entered(2)
    letta.kill()
    with pytest.raises(BROKEN):
        await waiting
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get("/v1/health/")
    assert [turn.outcome for turn in letta.turns(agent)] == ["end_turn", "lost", "lost"]

    url = letta.url
    await letta.start()
    hold.release()
    assert letta.url == url
    assert texts(await client.get(base)) == ["before", "echo: before"]
    assert (await client.get(f"/v1/runs/{accepted}"))["status"] == "created"
    stale = letta.turns(agent)[-1].run_id
    assert (await client.get(f"/v1/runs/{stale}"))["status"] == "running"
    assert (await client.post(base, user("after")))["stop_reason"]["stop_reason"] == "end_turn"
    if letta.redis:
        status, body = await client.call("POST", f"{conversation}/messages", user("again"))
        assert (status, body["run_id"]) == (409, stale)
        assert await client.post(f"{conversation}/cancel") == {stale: "cancelled"}, "the cure"
    assert kinds(await client.stream(f"{conversation}/messages", user("again")))[1] == "assistant"


async def test_5_a_dead_background_run_is_replayed_and_then_hangs(
    with_redis: FakeLetta, session: aiohttp.ClientSession
) -> None:
    letta, client = with_redis, Target(with_redis.url, session, True)
    agent = letta.add_agent("Scout")
    path = f"/v1/conversations/{letta.add_conversation(agent)}/messages"
    letta.script(agent, Behaviour(text="one two three", error_after=2, silent=True))
    body = user("x", "$otid", background=True, stream_tokens=True)
    async with client.open(path, body) as events:
        assert kinds([await anext(events) for _ in range(3)]) == ["ping", "assistant", "assistant"]
    letta.kill()
    await letta.start()
    letta.settings.ping_every = 0.01
    for again, asked in ((path, body), (path.replace("/messages", "/stream"), {"otid": "$otid"})):
        async with client.open(again, asked) as events:
            seen = [await anext(events) for _ in range(5)]
        assert kinds(seen) == ["ping", "assistant", "assistant", "ping", "ping"]
        assert seen[3]["seq_id"] == 3
    letta.settings.lock_ttl = 0.0
    assert kinds(await client.stream(path, user("new", "$new")))[-1] == "DONE", "the lock has run out"
    assert len(letta.turns(agent)) == 2


async def test_2_a_foreground_run_cannot_be_followed_again(
    with_redis: FakeLetta, session: aiohttp.ClientSession
) -> None:
    letta, client = with_redis, Target(with_redis.url, session, True)
    path = f"/v1/conversations/{letta.add_conversation(letta.add_agent('Scout'))}/messages"
    await client.stream(path, user("x", "$fore"))
    letta.settings.ping_every = 0.01
    async with client.open(path, user("x", "$fore", background=True)) as events:
        assert kinds([await anext(events) for _ in range(3)]) == ["ping"] * 3
    letta.settings.silence = 0.0
    assert kinds(await client.stream(path, user("x", "$fore", background=True))) == [], "it ends without a word"


async def test_6_a_hanging_model_is_only_pinged_and_cancelling_waits_for_it(
    letta: FakeLetta, session: aiohttp.ClientSession
) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout")
    path = f"/v1/conversations/{letta.add_conversation(agent)}/messages"
    letta.settings.ping_every = 0.01
    hold = letta.hold(agent)
    async with client.open(path, user("x")) as events:
        pings = [await anext(events) for _ in range(4)]
        assert len({ping["run_id"] for ping in pings}) == 1
        assert kinds(pings) == ["ping"] * 4
        await hold.entered()
        run = pings[0]["run_id"]
        await client.post(f"/v1/agents/{agent}/messages/cancel", {"run_ids": [run]})
        assert kinds([await anext(events) for _ in range(2)]) == ["ping"] * 2, "the model has not answered yet"
        hold.release()
        assert [event async for event in events][-1]["stop_reason"] == "cancelled"
    assert letta.history(agent) == []


async def test_7_a_broken_answer_that_letta_does_not_notice(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout")
    letta.settings.ping_every = 0.01
    letta.script(agent, Behaviour(text="a b c", error_after=1, silent=True), Behaviour(hang=math.inf))
    async with client.open(f"/v1/agents/{agent}/messages/stream", user("x", stream_tokens=True)) as events:
        assert kinds([await anext(events) for _ in range(4)]) == ["ping", "assistant", "ping", "ping"]
    async with client.open(f"/v1/agents/{agent}/messages/stream", user("x")) as events:
        assert kinds([await anext(events) for _ in range(3)]) == ["ping"] * 3


async def test_8_a_page_of_agents_has_fifty(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session)
    for number in range(60):
        letta.add_agent(f"agent {number}")
    assert len(await client.get("/v1/agents/")) == 50
    assert len(await client.get("/v1/agents/", limit=1000)) == 60


async def test_14_the_password(session: aiohttp.ClientSession) -> None:
    async with FakeLetta(password="secret") as letta:
        client = Target(letta.url, session)
        await client.get("/v1/health/")
        assert await client.call("GET", "/v1/agents/") == (401, {"detail": "Unauthorized"})
        for headers in ({"Authorization": "Bearer secret"}, {"X-BARE-PASSWORD": "password secret"}):
            async with session.get(f"{letta.url}/v1/agents/", headers=headers) as response:
                assert response.status == 200
        async with session.get(f"{letta.url}/v1/agents/", headers={"Authorization": "Bearer wrong"}) as response:
            assert response.status == 401


async def test_16_an_empty_database_behind_the_same_url(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session)
    agent = letta.add_agent("Scout")
    before = await client.get("/v1/admin/orgs/"), await client.get("/v1/tools/", name="conversation_search")
    letta.wipe()
    after = await client.get("/v1/admin/orgs/"), await client.get("/v1/tools/", name="conversation_search")
    assert await client.get("/v1/agents/") == []
    assert (await client.get("/v1/health/"))["status"] == "ok"
    assert (await client.call("GET", f"/v1/agents/{agent}"))[0] == 404
    assert before[0][0]["id"] == after[0][0]["id"]
    assert before[0][0]["created_at"] != after[0][0]["created_at"]
    assert before[1][0]["id"] != after[1][0]["id"]


async def test_17_faults_of_the_transport(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout")
    path = f"/v1/agents/{agent}/messages"
    letta.fail_next("/messages$", 502, times=2, method="POST")
    assert [(await client.call("POST", path, user("x")))[0] for _ in range(3)] == [502, 502, 200]
    letta.fail_next("/messages$", "disconnect")
    with pytest.raises(BROKEN):
        await client.post(path, user("x"))
    letta.fail_next("/health/", "hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.get("/v1/health/")
    assert len(letta.turns(agent)) == 1
    assert letta.requests.count(("POST", path)) == 4


@pytest.mark.parametrize("way", ["", "/stream"])
async def test_17_work_that_is_done_although_the_client_never_learns(
    letta: FakeLetta, session: aiohttp.ClientSession, way: str
) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout")
    path = f"/v1/agents/{agent}/messages{way}"
    letta.fail_next("/messages", "disconnect", after_processing=True)
    with pytest.raises(BROKEN):
        await client.stream(path, user("heard"))
    letta.fail_next("/messages", 504, after_processing=True)
    assert (await client.call("POST", path, user("heard too")))[0] == 504
    assert texts(letta.history(agent)) == ["heard", "echo: heard", "heard too", "echo: heard too"]


async def test_17_a_stream_that_breaks_off(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout")
    letta.fail_next("/stream", "disconnect", after_events=2)
    async with client.open(f"/v1/agents/{agent}/messages/stream", user("a b c", stream_tokens=True)) as events:
        assert kinds([await anext(events) for _ in range(2)]) == ["ping", "assistant"]
        with pytest.raises(BROKEN):
            await anext(events)
    await client.run_is(letta.turns(agent)[0].run_id, "completed")


async def test_18_messages_of_other_origin(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    steps: asyncio.Queue[str] = asyncio.Queue()

    async def sink(request: web.Request) -> web.Response:
        steps.put_nowait((await request.json())["step_id"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", sink)
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout")
    async with TestServer(app) as server:
        letta.settings.webhook = str(server.make_url("/hook"))
        text = "[Incoming message from agent with ID 'agent-x' - your response will be delivered to the sender] hey"
        run = await letta.outside_turn(agent, text, role="system")
        step = await client.get(f"/v1/steps/{await asyncio.wait_for(steps.get(), 5)}")
    assert (step["run_id"], step["agent_id"]) == (run, agent)
    assert kinds(await client.get(f"/v1/runs/{run}/messages")) == ["system", "assistant"]
    assert await letta.outside_turn(agent, "hi", conversation_id=letta.add_conversation(agent)) != run


async def test_memory_written_by_two_turns_at_once_is_lost(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout", blocks={"persona": "I am"})
    hold = letta.hold(agent)
    slow = asyncio.create_task(
        client.stream(
            f"/v1/conversations/{letta.add_conversation(agent)}/messages",
            user('#tool memory_insert {"label": "persona", "new_string": "A"}'),
        )
    )
    await hold.entered()
    letta.set_block(agent, "persona", "I am\nB")
    hold.release()
    await slow
    assert letta.agents[agent].memory() == {"persona": "I am\nA"}
    later = letta.add_conversation(agent)
    letta.set_block(agent, "persona", "C")
    for _ in range(2):
        await client.stream(f"/v1/conversations/{later}/messages", user("x"))
        await client.post(f"/v1/conversations/{later}/recompile")
    assert [turn.memory["persona"] for turn in letta.turns(agent)] == ["I am", "I am\nA", "C"]


async def test_how_a_test_directs_the_model(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout", tools=["dice"])
    path = f"/v1/agents/{agent}/messages"

    async def said(text: str) -> list[str]:
        return texts((await client.post(path, user(text)))["messages"])

    sealed = '[letta_bridge v1] channel: Matrix\nreply_to: "#error 500"\nmessage:\n| #say quite another thing\n| more'
    assert await said(sealed) == ["quite another thing"]
    letta.reply = lambda texts: f"<{texts[-1]}>"
    letta.script(None, Behaviour(text="scripted"))
    assert [await said("a"), await said("b"), await said("#say c")] == [["scripted"], ["<b>"], ["c"]]
    letta.tool("dice", lambda arguments: f"rolled {arguments['sides']}")
    assert "rolled 6" in (await said('#tool dice {"sides": 6}'))[0]

    gate = asyncio.Event()

    async def slowly() -> AsyncIterator[str]:
        yield "first "
        await gate.wait()
        yield "second"

    letta.reply = lambda texts: slowly()
    async with client.open(f"{path}/stream", user("x", stream_tokens=True)) as events:
        assert [(await anext(events)).get("content") for _ in range(2)] == [None, "first "]
        gate.set()
        assert (await anext(events))["content"] == "second"
        assert kinds([event async for event in events])[-1] == "DONE"
    turns = letta.turns(agent)
    assert [turn.texts for turn in turns][1:4] == [["a"], ["b"], ["#say c"]]
    assert not any(one.overlaps(other) for one in turns for other in turns if one is not other)


async def test_turns_that_overlap_are_seen(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout")
    hold = letta.hold()
    both = [asyncio.create_task(client.post(f"/v1/agents/{agent}/messages", user("x"))) for _ in range(2)]
    await hold.entered(2)
    hold.release()
    await asyncio.gather(*both)
    one, other = letta.turns(agent)
    assert one.overlaps(other)
    assert hold.waiting == 0


async def test_what_fails_inside_the_fake_is_not_hidden(session: aiohttp.ClientSession) -> None:
    def broken(texts: list[str]) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with FakeLetta() as letta:
            letta.reply = broken
            client = Target(letta.url, session)
            status, _ = await client.call("POST", f"/v1/agents/{letta.add_agent('x')}/messages", user("x"))
            assert status == 500


async def test_stopping_leaves_nothing_behind(letta: FakeLetta, session: aiohttp.ClientSession) -> None:
    client = Target(letta.url, session, letta.redis)
    agent = letta.add_agent("Scout")
    before = asyncio.all_tasks()
    hold = letta.hold(agent)
    hanging = [asyncio.create_task(client.stream(f"/v1/agents/{agent}/messages/stream", user("x"))) for _ in range(3)]
    await hold.entered(3)
    await letta.stop()
    for result in await asyncio.gather(*hanging, return_exceptions=True):
        assert isinstance(result, BROKEN)

    async def quiet() -> bool:
        return not asyncio.all_tasks() - before - {asyncio.current_task()}

    await until(quiet)
