"""How Letta 0.16.8 behaves beyond its specification: the fake, with and without Redis, and the real one alike.

The real one is the server that LETTA_BRIDGE_TEST_LETTA_URL names; it must have the scripted model behind it. The
numbers are those of the table of behaviours that a fake Letta must imitate; ``test_fake_letta_faults.py`` has the rest.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator

import aiohttp
import pytest
from letta_client import AsyncLetta

from letta_bridge.testing.fake_letta import FakeLetta

from .letta_target import REACT, SEARCH, Target, answer, kinds, texts, until, user

NOBODY = "agent-00000000-0000-4000-8000-000000000000"
SDK = {"X-Stainless-Package-Version": "1.12.1"}


@pytest.fixture(params=["fake", "fake with Redis", pytest.param("real", marks=[pytest.mark.letta, pytest.mark.full])])
def which(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The kind of server, and the URL of the real one."""
    url = request.getfixturevalue("letta_server").url if request.param == "real" else ""
    return request.param, url


@pytest.fixture
async def target(which: tuple[str, str]) -> AsyncIterator[Target]:
    kind, url = which
    # the real server closes idle connections at any time
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        if kind == "real":
            target = Target(url, session)
            agent = await target.agent()
            status, _ = await target.call("POST", f"{await target.conversation(agent)}/stream", {})
            target.redis = status != 503
            yield target
            await target.clean()
            return
        async with FakeLetta(redis=kind != "fake") as letta:
            yield Target(letta.url, session, letta.redis)


async def test_1_the_user_message_is_stored_with_the_answer_and_not_at_all_after_an_error(target: Target) -> None:
    base = f"/v1/agents/{await target.agent()}/messages"
    run = await target.begin(f"{base}/stream", user("#hang 0.3"))
    assert kinds(await target.get(base)) == ["system"]
    await target.run_is(run, "completed")
    assert texts(await target.get(base)) == ["#hang 0.3", "echo: #hang 0.3"]
    status, body = await target.call("POST", base, user("#error 400"))
    assert (status, body["error"]["type"]) == (400, "llm_bad_request")
    assert len(await target.get(base)) == 3


async def test_2_otids_are_kept_and_only_background_streams_know_them_again(target: Target) -> None:
    agent = await target.agent()
    base = f"/v1/agents/{agent}/messages"
    first, second = f"$one:{uuid.uuid4()}", f"$two:{uuid.uuid4()}"
    for _ in range(2):
        await target.post(base, user("same", first))
    assert [item["otid"] for item in await target.get(base) if item["message_type"] == "user_message"] == [first] * 2

    path = f"{await target.conversation(agent)}/messages"
    both = {"messages": [*user("a", first)["messages"], *user("b", second)["messages"]], "background": True}
    if not target.redis:
        status, body = await target.call("POST", path, both)
        assert status == 503
        assert "requires Redis" in body["detail"]
        assert (await target.get("/v1/runs/", agent_id=agent))[0]["status"] == "failed"
        return
    sent = await target.stream(path, both)
    other = f"{await target.conversation(await target.agent())}/messages"
    changed = {**both, "messages": [{**both["messages"][0], "content": "never read"}, both["messages"][1]]}
    assert await target.stream(other, changed) == sent, "the key knows neither text nor conversation nor agent"
    subset = await target.stream(path, {**user("b", second), "background": True})
    assert subset[0]["run_id"] != sent[0]["run_id"]
    assert texts(await target.get(path, order="asc")) == ["a", "b", "echo: b", "b", "echo: b"]


async def test_3_a_send_whose_client_went_away_completes(target: Target) -> None:
    path = f"{await target.conversation(await target.agent())}/messages"
    run = await target.begin(path, user("#hang 0.2 hello", "$gone"))
    await target.run_is(run, "completed")
    history = await target.get(path)
    assert [(item["otid"], item["run_id"]) for item in history if item["message_type"] == "user_message"] == [
        ("$gone", run)
    ]
    assert texts(await target.get(f"/v1/runs/{run}/messages")) == ["#hang 0.2 hello", "echo: #hang 0.2 hello"]


async def test_4_parallel_turns_of_one_thread_lose_one_or_are_refused(target: Target) -> None:
    agent = await target.agent()
    base = f"/v1/agents/{agent}/messages"
    slow = asyncio.create_task(target.post(base, user("#hang 0.5")))

    async def began() -> bool:
        return len(await target.get("/v1/runs/", agent_id=agent)) == 1

    await until(began)
    await target.post(base, user("quick"))
    await slow
    kept = (await target.get(f"/v1/agents/{agent}"))["message_ids"]
    shown = await target.get(base)
    assert (len(shown), len(kept)) == (5, 3)
    assert texts([item for item in shown if item["id"] in kept]) == ["#hang 0.5", "echo: #hang 0.5"]

    path = f"{await target.conversation(agent)}/messages"
    run = await target.begin(path, user("#hang 0.4"))
    if target.redis:
        status, body = await target.call("POST", path, user("quick"))
        assert (status, body["run_id"]) == (409, run)
    else:
        await target.stream(path, user("quick"))
    await target.run_is(run, "completed")
    kept = (await target.get(path.removesuffix("/messages")))["in_context_message_ids"]
    assert (len(await target.get(path)), len(kept)) == ((3, 3) if target.redis else (5, 3))


async def test_6_the_first_event_names_the_run_and_deltas_belong_together(target: Target) -> None:
    path = f"{await target.conversation(await target.agent())}/messages"
    events = await target.stream(path, user("#reason think #say two words", stream_tokens=True))
    assert kinds(events) == ["ping", "reasoning", "assistant", "assistant", "stop_reason", "usage_statistics", "DONE"]
    run = events[0]["run_id"]
    assert {event["run_id"] for event in events[:4]} == {run}
    assert len({event["id"] for event in events[1:4]}) == 1
    assert events[2]["otid"] == events[3]["otid"] != events[1]["otid"]
    assert [event["content"] for event in events[2:4]] == ["two ", "words"]
    whole = await target.stream(path, user("no tokens", include_pings=False))
    assert kinds(whole) == ["assistant", "stop_reason", "usage_statistics", "DONE"]


@pytest.mark.parametrize(("code", "kind"), [(400, "llm_error"), (401, "llm_authentication"), (402, "llm_error")])
async def test_7_errors_of_the_model_come_as_events(target: Target, code: int, kind: str) -> None:
    path = f"{await target.conversation(await target.agent())}/messages"
    events = await target.stream(path, user(f"#error {code}"))
    assert kinds(events) == ["ping", "stop_reason", "error", "DONE"]
    assert (events[1]["stop_reason"], events[2]["error_type"]) == ("llm_api_error", kind)
    run = await target.get(f"/v1/runs/{events[0]['run_id']}")
    assert (run["status"], run["metadata"]["error"]["error_type"]) == ("failed", kind)


async def test_7_a_broken_answer_has_two_stop_reasons_and_no_end_mark(target: Target) -> None:
    path = f"{await target.conversation(await target.agent())}/messages"
    events = await target.stream(path, user("#errorafter 1 a b c", stream_tokens=True))
    assert kinds(events) == ["ping", "assistant", "stop_reason", "stop_reason", "error"]
    run = await target.get(f"/v1/runs/{events[0]['run_id']}")
    assert (run["status"], run["stop_reason"]) == ("completed", "llm_api_error")
    assert kinds(await target.get(path)) == ["system"]


async def test_8_listing_agents(target: Target) -> None:
    name = f"listed {uuid.uuid4()}"
    ids = [await target.agent(name, tags=["bridge"]) for _ in range(3)]
    listed = await target.get("/v1/agents/", name=name)
    assert [agent["id"] for agent in listed] == ids[::-1]
    after = await target.get("/v1/agents/", name=name, limit=2, after=ids[2])
    assert [agent["id"] for agent in after] == ids[1::-1]
    lost = await target.get("/v1/agents/", name=name, limit=2, after=NOBODY)
    assert [agent["id"] for agent in lost] == ids[:0:-1], "an unknown cursor starts again"
    target.session.headers.update(SDK)  # letta-client gets relations only when it asks for them
    assert [agent["tags"] for agent in await target.get("/v1/agents/", name=name)] == [[]] * 3
    assert (await target.get(f"/v1/agents/{ids[0]}"))["tags"] == []
    tagged = await target.get("/v1/agents/", name=name, include="agent.tags")
    assert [(agent["tags"], agent["tools"]) for agent in tagged] == [(["bridge"], [])] * 3
    assert (await target.call("GET", "/v1/agents/", order_by="name"))[0] == 422


async def test_9_histories_and_their_cursors(target: Target) -> None:
    agent = await target.agent()
    base = f"/v1/agents/{agent}/messages"
    await target.post(base, user("#reason why #say a"))
    path = f"{await target.conversation(agent)}/messages"
    await target.stream(path, user("#say b"))
    everything = await target.get(base)
    assert kinds(everything)[:4] == ["system", "user", "reasoning", "assistant"]
    assert everything[2]["id"] == everything[3]["id"], "one message, two items"
    assert everything[2]["otid"] != everything[3]["otid"]
    assert len(everything[0]["date"]) == len("2026-01-01T00:00:00+00:00"), "whole seconds"
    assert kinds(await target.get(base, limit=2)) == ["user", "assistant"], "the newest, in ascending order"
    assert kinds(await target.get(base, before=everything[3]["id"], order="asc")) == ["system", "user"]
    assert (await target.call("GET", base, after="message-unknown"))[0] == 404
    assert kinds(await target.get(base, conversation_id="default")) == ["system", "user", "reasoning", "assistant"]
    thread = await target.get(path)
    assert kinds(thread) == ["assistant", "user", "system"], "the other route lists the newest first"
    assert await target.get(path, after="message-unknown") == thread, "and ignores an unknown cursor"
    assert kinds(await target.get(path, order="asc", after=thread[2]["id"])) == ["user", "assistant"]


async def test_10_paging_through_runs_goes_in_circles(target: Target) -> None:
    agent = await target.agent()
    for number in range(5):
        await target.post(f"/v1/agents/{agent}/messages", user(str(number)))
    ids = [run["id"] for run in await target.get("/v1/runs/", agent_id=agent)]
    async with AsyncLetta(base_url=target.url, api_key="none", max_retries=0) as letta:
        assert [run.id async for run in letta.runs.list(agent_id=agent, limit=2)] == [ids[0], ids[1], ids[0]]
    newer = await target.get("/v1/runs/", agent_id=agent, order="asc", before=ids[2])
    assert [run["id"] for run in newer] == [ids[1], ids[0]]


async def test_11_approvals(target: Target) -> None:
    agent = await target.agent()
    base, path = f"/v1/agents/{agent}/messages", f"{await target.conversation(agent)}/messages"
    await target.call("PATCH", f"/v1/agents/{agent}/tools/approval/conversation_search", {"requires_approval": True})
    asked = await target.post(base, user(SEARCH))
    assert asked["stop_reason"]["stop_reason"] == "requires_approval"
    request = asked["messages"][-1]
    status, body = await target.call("POST", base, user("x"))
    assert (status, body["detail"]["code"], body["detail"]["pending_request_id"]) == (
        409,
        "PENDING_APPROVAL",
        request["id"],
    )
    blocked = await target.stream(f"{base}/stream", user("x"))
    assert kinds(blocked) == ["ping", "stop_reason", "error", "DONE"]
    assert "waiting for approval" in blocked[2]["message"]
    shown = await target.get(f"/v1/agents/{agent}", include="agent.pending_approval")
    assert shown["pending_approval"]["id"] == request["id"]
    assert texts((await target.post(path, user("elsewhere", streaming=False)))["messages"]) == ["echo: elsewhere"]

    denied = answer(request, type="approval", approve=False, reason="no way")
    said = (await target.post(base, denied))["messages"]
    assert said[0]["tool_return"] == "Error: request to call tool denied. User reason: no way"
    again = (await target.post(base, denied))["messages"]
    assert again[-1]["content"].startswith("echo: <system-alert>"), "answering twice costs a turn"

    request = (await target.post(base, user(SEARCH)))["messages"][-1]
    await target.post(f"{base}/cancel", {"run_ids": [request["run_id"]]})
    assert kinds(await target.get(base, limit=2, conversation_id="default")) == ["approval_response", "tool_return"]
    assert texts((await target.post(base, user("free again")))["messages"]) == ["echo: free again"]


async def test_12_tools_of_the_client_come_back_as_approval_requests(target: Target) -> None:
    path = f"{await target.conversation(await target.agent())}/messages"
    call = user('#tool react {"emoji": "x"}', stream_tokens=True, **REACT)
    events = await target.stream(path, call)
    parts = [event["tool_call"] for event in events if event["message_type"] == "approval_request_message"]
    assert [part["name"] for part in parts] == ["react", None, None]
    assert json.loads("".join(part["arguments"] or "" for part in parts)) == {"emoji": "x"}
    assert (await target.call("POST", path, user("x", streaming=False)))[0] == 409
    request = (await target.get(path, limit=1))[0]
    done = answer(request, type="tool", tool_return="reacted", status="success")
    events = await target.stream(path, {**done, "stream_tokens": True})
    assert "tool_return_message" not in [event["message_type"] for event in events]
    shown = kinds(await target.get(path))
    assert shown[:4] == ["assistant", "tool_return", "approval_response", "approval_request"]


async def test_13_cancelling(target: Target) -> None:
    agent = await target.agent()
    base, path = f"/v1/agents/{agent}/messages", f"{await target.conversation(agent)}/messages"
    async with target.open(path, user("#slow 200 0.05", stream_tokens=True)) as events:
        run = (await anext(events))["run_id"]
        await anext(events)
        assert await target.post(f"{base}/cancel", {"run_ids": [run]}) == {run: "cancelled"}
        rest = [event async for event in events]
    assert rest[-1] == {"message_type": "stop_reason", "stop_reason": "cancelled"}, "and no end mark"
    assert kinds(await target.get(path)) == ["system"]
    assert (await target.get(f"/v1/runs/{run}"))["status"] == "cancelled"

    sending = asyncio.create_task(target.post(base, user("#hang 0.4")))

    async def began() -> bool:
        return (await target.get("/v1/runs/", agent_id=agent))[0]["id"] != run

    await until(began)
    run = (await target.get("/v1/runs/", agent_id=agent))[0]["id"]
    assert await target.post(f"{base}/cancel", {"run_ids": [run]}) == {run: "cancelled"}
    assert texts((await sending)["messages"]) == ["echo: #hang 0.4"]
    assert (await target.get(f"/v1/runs/{run}"))["status"] == "completed"
    status, _ = await target.call("POST", f"{base}/cancel", {})
    assert status == (200 if target.redis else 409)
    assert (await target.call("POST", f"{path.removesuffix('/messages')}/cancel"))[0] == 409


async def test_13_cancelling_a_foreground_stream_of_the_main_thread_leaves_its_lock(target: Target) -> None:
    agent = await target.agent()
    path = "/v1/conversations/default/messages"
    async with target.open(path, user("#slow 200 0.05", agent_id=agent, stream_tokens=True)) as events:
        run = (await anext(events))["run_id"]
        await anext(events)
        await target.post(f"/v1/agents/{agent}/messages/cancel", {"run_ids": [run]})
        assert [event async for event in events][-1]["stop_reason"] == "cancelled"
    status, body = await target.call("POST", path, user("next", agent_id=agent, streaming=False))
    assert status == (409 if target.redis else 200)
    assert body.get("run_id") == (run if target.redis else None)


async def test_14_refusals(target: Target) -> None:
    agent = await target.agent()
    status, body = await target.call("POST", f"/v1/agents/{agent}/messages", user("#error 401"))
    assert (status, body["error"]["type"]) == (401, "llm_authentication")
    status, body = await target.call("GET", f"/v1/agents/{NOBODY}")
    assert (status, body) == (404, {"detail": f"Agent with ID {NOBODY} not found"})
    assert await target.call("GET", f"/v1/agents/{NOBODY}/messages") == (404, {"detail": "Agent not found"})
    status, body = await target.call("DELETE", f"/v1/agents/{NOBODY}")
    assert (status, body["detail"].split("=")[0]) == (404, "Agent not found with id")
    for path in ("/v1/agents/bogus", "/v1/conversations/default"):
        assert (await target.call("GET", path))[0] == 422
    assert (await target.call("POST", f"/v1/agents/{agent}/messages", user("x", streaming=True)))[0] == 422
    assert (await target.call("POST", f"/v1/agents/{agent}/messages", {"messages": []}))[0] == 422
    assert (await target.call("POST", f"/v1/agents/{agent}/messages", user("")))[0] == 400
    expected = 400 if target.redis else 503
    assert (await target.call("POST", f"{await target.conversation(agent)}/stream", {}))[0] == expected


async def test_15_names_and_the_date_of_the_last_change(target: Target) -> None:
    agent = await target.agent("twin", enable_sleeptime=True, embedding="openai/text-embedding-3-small")
    companion = (await target.get(f"/v1/agents/{agent}"))["managed_group"]["agent_ids"][0]
    assert (await target.get(f"/v1/agents/{companion}"))["name"] == "twin-sleeptime"
    plain = await target.agent("twin")
    changed = (await target.call("PATCH", f"/v1/agents/{plain}", {"name": ""}))[1]
    assert changed["name"] == ""
    await target.stream(f"{await target.conversation(plain)}/messages", user("x"))
    assert (await target.get(f"/v1/agents/{plain}"))["updated_at"] > changed["updated_at"]


async def test_a_tools_answer_is_another_message(target: Target) -> None:
    path = f"{await target.conversation(await target.agent())}/messages"
    call = '#tool memory_insert {"label": "persona", "new_string": "FACT"}'
    events = await target.stream(path, user(call, stream_tokens=True))
    shown = [event for event in events if event["message_type"].endswith("_message")]
    assert [kind for kind in dict.fromkeys(kinds(shown))] == ["tool_call", "tool_return", "assistant"]
    assert len({event["id"] for event in shown}) == 3
    returned = next(event for event in shown if event["message_type"] == "tool_return_message")
    assert (returned["status"], returned["tool_return"]) == ("success", "I am\nFACT")


async def test_a_conversations_memory_is_frozen_until_it_is_recompiled(target: Target) -> None:
    agent = await target.agent()
    conversation = await target.conversation(agent)
    await target.call("PATCH", f"/v1/agents/{agent}/core-memory/blocks/persona", {"value": "EDITED"})

    async def prompt() -> str:
        return str((await target.get(f"{conversation}/messages", order="asc", limit=1))[0]["content"])

    await target.stream(f"{conversation}/messages", user("x"))
    assert "EDITED" not in await prompt()
    assert "EDITED" in await target.post(f"{conversation}/recompile")
    assert "EDITED" in await prompt()


async def test_the_life_of_a_conversation(target: Target) -> None:
    agent = await target.agent()
    conversation = await target.conversation(agent)
    await target.stream(f"{conversation}/messages", user("x"))
    await target.call("PATCH", conversation, {"summary": "!room", "archived": True})
    found = await target.get("/v1/conversations/", agent_id=agent, summary_search="!room")
    assert [f"/v1/conversations/{one['id']}" for one in found] == [conversation]
    assert await target.call("DELETE", conversation) == (200, None)
    assert (await target.call("GET", conversation))[0] == 404
    assert (await target.call("POST", f"{conversation}/messages", user("x")))[0] == 404
    assert await target.get(f"{conversation}/messages") == []
    assert texts(await target.get(f"/v1/agents/{agent}/messages")) == []
