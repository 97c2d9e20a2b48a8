"""What the fake Letta answers is what the real one's specification and letta-client's types say."""

import functools
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
from letta_client import AsyncLetta

from letta_bridge.testing.fake_letta import FakeLetta

SPEC = Path(__file__).parent.parent / "data" / "openapi-0.16.8.json"
SEARCH = '#tool conversation_search {"query": "x"}'
CLIENT_TOOLS = [{"name": "react", "description": "d", "parameters": {"type": "object", "properties": {}}}]


@functools.cache
def specification() -> Any:
    return json.loads(SPEC.read_text())


@functools.cache
def validator(name: str, method: str = "") -> jsonschema.Draft202012Validator:
    """For the 200 answer of a path of the specification, or for one of its schemas."""
    spec = specification()
    if method:
        content = spec["paths"][name][method]["responses"]["200"]["content"]["application/json"]
        schema = content.get("schema", {})
    else:
        schema = spec["components"]["schemas"][name]
    return jsonschema.Draft202012Validator({**schema, "components": spec["components"]})


@functools.cache
def routes() -> list[tuple[re.Pattern[str], str]]:
    """The paths of the specification as patterns, those with fewer variables first."""
    paths = sorted(specification()["paths"], key=lambda path: path.count("{"))
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path) + r"\Z"), path) for path in paths]


class Checked:
    """A client that validates every answer it gets."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.seen: set[tuple[str, str]] = set()

    async def call(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        route = next(name for pattern, name in routes() if pattern.match(path))
        async with self._session.request(method, self._url + path, json=body, params=params) as response:
            assert response.status == 200, await response.text()
            value = await response.json()
        validator(route, method.lower()).validate(value)
        self.seen.add((method, route))
        return value

    async def stream(self, path: str, body: Any) -> list[Any]:
        """The events of a stream, each valid."""
        async with self._session.post(self._url + path, json=body) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            text = await response.text()
        events = []
        for line in text.splitlines():
            if line.startswith("data: ") and line != "data: [DONE]":
                event = json.loads(line.removeprefix("data: "))
                events.append(event)
                if event["message_type"] == "error_message" and event["seq_id"] is None:
                    # here the real server breaks its own specification, which has no null
                    event = {key: value for key, value in event.items() if key != "seq_id"}
                validator("LettaStreamingResponse").validate(event)
        assert events
        return events


@pytest.fixture
async def letta() -> AsyncIterator[FakeLetta]:
    async with FakeLetta(redis=True) as fake:
        yield fake


@pytest.fixture
async def checked(letta: FakeLetta) -> AsyncIterator[Checked]:
    async with aiohttp.ClientSession() as session:
        yield Checked(session, letta.url)


def user(text: str, otid: str | None = None) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text, **({"otid": otid} if otid else {})}]}


def answering(request: dict[str, Any], **answer: Any) -> dict[str, Any]:
    call_id = request["tool_call"]["tool_call_id"]
    return {"messages": [{"type": "approval", "approvals": [{"tool_call_id": call_id, **answer}]}]}


async def test_agents_blocks_and_the_rest_are_valid(checked: Checked) -> None:
    made = {
        "name": "Scout",
        "model": "openai-proxy/gpt-4o",
        "tags": ["a"],
        "metadata": {"x": 1},
        "memory_blocks": [{"label": "persona", "value": "I am"}],
        "enable_sleeptime": True,
    }
    agent = (await checked.call("POST", "/v1/agents/", made))["id"]
    one = f"/v1/agents/{agent}"
    await checked.call("GET", "/v1/agents/")
    await checked.call("GET", "/v1/agents/", include="agent.tags")
    assert await checked.call("GET", "/v1/agents/count") == 2
    await checked.call("GET", one)
    await checked.call("PATCH", one, {"name": "", "description": "d", "tags": []})
    await checked.call("GET", f"{one}/tools")
    await checked.call("PATCH", f"{one}/tools/approval/conversation_search", {"requires_approval": True})
    blocks = await checked.call("GET", f"{one}/core-memory/blocks")
    await checked.call("GET", f"{one}/core-memory/blocks/persona")
    await checked.call("PATCH", f"{one}/core-memory/blocks/persona", {"value": "v"})
    block = await checked.call("POST", "/v1/blocks/", {"label": "marker", "value": "1"})
    await checked.call("PATCH", f"{one}/core-memory/blocks/attach/{block['id']}")
    await checked.call("PATCH", f"{one}/core-memory/blocks/detach/{block['id']}")
    await checked.call("PATCH", f"/v1/blocks/{block['id']}", {"value": "2"})
    assert (await checked.call("GET", f"/v1/blocks/{block['id']}"))["value"] == "2"
    assert await checked.call("GET", "/v1/blocks/", label="marker") != blocks
    await checked.call("DELETE", f"/v1/blocks/{block['id']}")
    for path in ("/v1/health/", "/v1/admin/orgs/", "/v1/models/", "/v1/tools/"):
        await checked.call("GET", path)
    await checked.call("DELETE", one)


async def test_hidden_agents_old_types_and_base_tools_are_valid(letta: FakeLetta, checked: Checked) -> None:
    hidden = letta.add_agent("Hidden", hidden=True, model="letta/letta-free")
    old = letta.add_agent("Old", agent_type="memgpt_v2_agent")
    assert (await checked.call("GET", f"/v1/agents/{hidden}"))["hidden"] is True
    assert [row["id"] for row in await checked.call("GET", "/v1/agents/")] == [old]
    letta.seed_history(old, [("user", "hi"), ("assistant", "hello")])
    assert len(await checked.call("GET", f"/v1/agents/{old}/messages", conversation_id="default")) == 6
    await checked.call("POST", f"/v1/agents/{old}/messages", user('{"type": "user_message", "message": "inner"}'))
    assert letta.history(old)[-2]["content"] == "inner"
    assert len(await checked.call("GET", "/v1/tools/", name="conversation_search", limit=1)) == 1


async def test_messages_runs_and_steps_are_valid(letta: FakeLetta, checked: Checked) -> None:
    agent = letta.add_agent("Scout")
    base = f"/v1/agents/{agent}/messages"
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    await checked.call("POST", base, user("#reason because"))
    await checked.call("POST", base, {"input": "hello"})
    await checked.call(
        "POST", base, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, image]}]}
    )
    await checked.call("POST", base, user(SEARCH))
    run = await checked.call("POST", f"{base}/async", user("later"))
    for body in (user("plain"), user("#error 429"), user("#error 413"), user(SEARCH), user("#errorafter 1 a b c")):
        await checked.stream(f"{base}/stream", body)
        await checked.stream(f"{base}/stream", {**body, "stream_tokens": True})
    for params in ({}, {"order": "asc", "limit": 3}, {"conversation_id": "default"}):
        await checked.call("GET", base, **params)
    await checked.call("GET", "/v1/messages/")
    await checked.call("GET", f"/v1/messages/{letta.history(agent)[-1]['id']}")
    runs = await checked.call("GET", "/v1/runs/", agent_id=agent)
    await checked.call("GET", "/v1/runs/active")
    for one in (run, *runs):
        path = f"/v1/runs/{one['id']}"
        await checked.call("GET", path)
        await checked.call("GET", f"{path}/messages")
        await checked.call("GET", f"{path}/usage")
        for step in await checked.call("GET", f"{path}/steps"):
            await checked.call("GET", f"/v1/steps/{step['id']}")
    await checked.call("POST", f"{base}/cancel", {"run_ids": [run["id"]]})


async def test_approvals_and_client_tools_are_valid(letta: FakeLetta, checked: Checked) -> None:
    agent = letta.add_agent("Scout")
    base = f"/v1/agents/{agent}/messages"
    answer = await checked.call("POST", base, user('#approve danger {"x": 1}'))
    pending = await checked.call("GET", f"/v1/agents/{agent}", include="agent.pending_approval")
    assert pending["pending_approval"]["id"] == answer["messages"][-1]["id"]
    await checked.call("POST", base, answering(answer["messages"][-1], type="approval", approve=True))
    tools = {"client_tools": CLIENT_TOOLS, "stream_tokens": True}
    await checked.stream(f"{base}/stream", {**user('#tool react {"emoji": "x"}'), **tools})
    request = (await checked.call("GET", base))[-1]
    done = {"type": "tool", "tool_return": "reacted", "status": "success"}
    await checked.stream(f"{base}/stream", {**answering(request, **done), "client_tools": CLIENT_TOOLS})
    await checked.stream(f"{base}/stream", {**user('#approve danger {"x": 1}'), "stream_tokens": True})
    request = (await checked.call("GET", base))[-1]
    denied = answering(request, type="approval", approve=False, reason="no")
    await checked.stream(f"{base}/stream", denied)
    await checked.stream(f"{base}/stream", denied)
    await checked.call("GET", base)


async def test_conversations_are_valid(letta: FakeLetta, checked: Checked) -> None:
    agent = letta.add_agent("Scout")
    conversation = (await checked.call("POST", "/v1/conversations/", {"summary": "s"}, agent_id=agent))["id"]
    one = f"/v1/conversations/{conversation}"
    background = {"background": True, "stream_tokens": True}
    await checked.stream(f"{one}/messages", {**user("hello", "o1"), **background})
    await checked.stream(f"{one}/messages", {**user("#error 400", "o2"), **background})
    await checked.stream(f"{one}/stream", {"otid": "o1"})
    await checked.call("POST", f"{one}/messages", {**user("whole"), "streaming": False})
    await checked.call("GET", f"{one}/messages")
    await checked.call("GET", "/v1/conversations/default/messages", agent_id=agent)
    await checked.call("GET", "/v1/conversations/", agent_id=agent)
    await checked.call("GET", one)
    await checked.call("PATCH", one, {"summary": "t"})
    await checked.call("POST", f"{one}/recompile")
    await checked.call("DELETE", one)


async def test_letta_client_understands_it(letta: FakeLetta) -> None:
    agent = letta.add_agent("Scout", tags=["bridge"], metadata={"room": "!x"}, description="d")
    client = AsyncLetta(base_url=letta.url, api_key="none", max_retries=0, timeout=10)
    try:
        assert (await client.health()).version == "0.16.8"
        listed = (await client.agents.list(limit=1000, include=["agent.tags"])).items
        assert [(one.name, one.tags, one.metadata) for one in listed] == [("Scout", ["bridge"], {"room": "!x"})]
        assert (await client.agents.retrieve(agent)).description == "d"
        assert (await client.agents.update(agent, name="Other")).name == "Other"

        stream = await client.agents.messages.create(
            agent, messages=[{"role": "user", "content": "hi there"}], streaming=True, stream_tokens=True
        )
        events = [event async for event in stream]
        assert [event.message_type for event in events] == [
            "ping",
            *["assistant_message"] * 3,
            "stop_reason",
            "usage_statistics",
        ]
        assert "".join(str(event.content) for event in events[1:4]) == "echo: hi there"  # type: ignore[union-attr]

        run = (await client.runs.list(agent_id=agent)).items[0]
        assert (run.status, run.stop_reason) == ("completed", "end_turn")
        said = (await client.runs.messages.list(run.id)).items
        assert [message.message_type for message in said] == ["user_message", "assistant_message"]
        history = (await client.agents.messages.list(agent)).items
        assert [message.message_type for message in history[1:]] == ["user_message", "assistant_message"]

        conversation = await client.conversations.create(agent_id=agent)
        replies = await client.conversations.messages.create(
            conversation.id, messages=[{"role": "user", "content": "hello"}], background=True
        )
        assert [event.message_type async for event in replies][1] == "assistant_message"
        assert len((await client.conversations.messages.list(conversation.id)).items) == 3
        await client.agents.blocks.update("persona", agent_id=agent, value="new")
        assert (await client.agents.blocks.retrieve("persona", agent_id=agent)).value == "new"
        await client.agents.delete(agent)
        assert (await client.agents.list()).items == []
    finally:
        await client.close()
