"""What managing agents stands on, asserted alike of the fake Letta and of a real 0.16.8: raw, then as a backend."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator

import aiohttp
import pytest

from letta_bridge.ids import MAIN_CONVERSATION, AgentID, Otid
from letta_bridge.letta.backend import CREATION_KEY, NewAgent, Prompt
from letta_bridge.letta.errors import Kind, LettaError
from letta_bridge.letta.v1 import V1Backend
from letta_bridge.letta.v1_manage import MARKER
from letta_bridge.testing.fake_letta import FakeLetta
from tests.integration.letta_target import SEARCH, Target, kinds, user

MODEL = "openai-proxy/gpt-4o"
NOBODY = AgentID("agent-00000000-0000-4000-8000-000000000000")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
FORBIDDEN = ["a/b:c*?", "🦉 owl", "two\nlines"]


@pytest.fixture(params=["fake", pytest.param("real", marks=[pytest.mark.e2e, pytest.mark.letta])])
def url(request: pytest.FixtureRequest) -> str:
    """Where the real server is; empty for the fake one."""
    return str(request.getfixturevalue("letta_server").url) if request.param == "real" else ""


@pytest.fixture
async def target(url: str) -> AsyncIterator[Target]:
    # the real server closes idle connections at any time
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        if url:
            target = Target(url, session)
            yield target
            await target.clean()
            return
        async with FakeLetta() as letta:
            yield Target(letta.url, session)


@pytest.fixture
async def backend(target: Target) -> AsyncIterator[V1Backend]:
    backend = V1Backend(target.url, None)
    yield backend
    await backend.close()


@pytest.fixture
def name() -> str:
    """A name that no other agent of the server has."""
    return f"contract {uuid.uuid4().hex}"


async def made(backend: V1Backend, name: str, **fields: object) -> AgentID:
    agent = await backend.create_agent(NewAgent(name, model=MODEL, **fields), key=uuid.uuid4().hex)  # type: ignore[arg-type]
    return agent.id


async def kind_of(call: object) -> Kind:
    with pytest.raises(LettaError) as caught:
        await call  # type: ignore[misc]
    return caught.value.kind


def lines(items: object) -> list[tuple[str, str]]:
    return [(item.kind, item.text) for item in items]  # type: ignore[attr-defined]


# the server, raw


async def test_creating_refuses_names_that_renaming_takes(target: Target, name: str) -> None:
    for wrong in FORBIDDEN:
        status, body = await target.call("POST", "/v1/agents/", {"name": wrong, "model": MODEL})
        assert status == 500 and "invalid characters" in body["detail"]
    agent = await target.agent(name)
    for new in (*FORBIDDEN, "", "x" * 3000):
        status, body = await target.call("PATCH", f"/v1/agents/{agent}", {"name": new})
        assert (status, body["name"]) == (200, new)
    status, _ = await target.call("PATCH", f"/v1/agents/{agent}", {"name": "a\x00b"})
    assert status == 500
    await target.agent("")
    assert (await target.agent(" ")) != agent


async def test_a_name_may_be_had_twice_and_filters_exactly_unless_it_is_empty(target: Target, name: str) -> None:
    twins = [await target.agent(name), await target.agent(name)]
    assert [row["id"] for row in await target.get("/v1/agents/", name=name, order="asc")] == twins
    assert await target.get("/v1/agents/", name=name, order="asc", after=twins[1]) == []
    assert [row["id"] for row in await target.get("/v1/agents/", name=name, order="asc", after=NOBODY)] == twins
    assert await target.get("/v1/agents/", name=name.upper()) == []
    assert len(await target.get("/v1/agents/", name="", limit=1000)) >= 2


async def test_what_hides_is_not_listed_but_there(target: Target, name: str) -> None:
    before = await target.get("/v1/agents/count")
    agent = await target.agent(name, hidden=True)
    assert await target.get("/v1/agents/", name=name) == []
    assert await target.get("/v1/agents/count") == before
    await target.call("PATCH", f"/v1/agents/{agent}", {"hidden": False})
    assert (await target.get(f"/v1/agents/{agent}"))["hidden"] is True


async def test_models_that_are_not_there(target: Target, name: str) -> None:
    wrong = {"openai-proxy/nope": 404, "no/such": 404, "nope": 400, "": 404}
    for model, expected in wrong.items():
        status, body = await target.call("POST", "/v1/agents/", {"name": name, "model": model})
        assert (status, body["detail"].split(":")[0]) == (
            expected,
            "NOT_FOUND" if expected == 404 else "INVALID_ARGUMENT",
        )
    status, _ = await target.call("POST", "/v1/agents/", {"name": name})
    assert status == 400
    listed = await target.get("/v1/models/")
    assert listed[0]["handle"] == "letta/letta-free"
    assert {row["model_type"] for row in listed} == {"llm"}


async def test_deleting_takes_the_conversations_and_leaves_blocks_of_others(target: Target, name: str) -> None:
    block = await target.post("/v1/blocks/", {"label": "of nobody", "value": "x"})
    agent = await target.agent(name)
    conversation = await target.conversation(agent)
    await target.call("DELETE", f"/v1/agents/{agent}")
    for method, path in (("GET", ""), ("DELETE", ""), ("PATCH", ""), ("GET", "/messages")):
        status, _ = await target.call(method, f"/v1/agents/{agent}{path}", {} if method == "PATCH" else None)
        assert status == 404
    status, _ = await target.call("GET", conversation)
    assert status == 404
    assert (await target.get(f"/v1/blocks/{block['id']}"))["value"] == "x"
    for expected in (200, 404):
        status, _ = await target.call("DELETE", f"/v1/blocks/{block['id']}")
        assert status == expected


async def test_blocks_are_listed_by_label_oldest_first(target: Target) -> None:
    label = f"label-{uuid.uuid4().hex[:8]}"
    for value in ("1", "2", "3"):
        await target.post("/v1/blocks/", {"label": label, "value": value})
    listed = await target.get("/v1/blocks/", label=label)
    assert [row["value"] for row in listed] == ["1", "2", "3"]
    assert [row["value"] for row in await target.get("/v1/blocks/", label=label, order="desc")] == ["3", "2", "1"]
    assert await target.get("/v1/blocks/", label=label[:-1]) == []
    assert (await target.call("POST", "/v1/blocks/", {"value": "x"}))[0] == 422
    for row in listed:
        await target.call("DELETE", f"/v1/blocks/{row['id']}")


async def test_older_types_begin_with_a_greeting_and_a_login(target: Target, name: str) -> None:
    agent = await target.agent(name, agent_type="memgpt_v2_agent")
    items = await target.get(f"/v1/agents/{agent}/messages", conversation_id="default")
    assert kinds(items) == ["system", "reasoning", "assistant", "user"]
    assert items[1]["id"] == items[2]["id"] and items[1]["otid"] != items[2]["otid"]
    assert all(item["run_id"] is None for item in items)
    assert json.loads(items[3]["content"])["type"] == "login"


async def test_a_message_that_spoils_the_history(target: Target, name: str) -> None:
    agent = await target.agent(name)
    await target.post(f"/v1/agents/{agent}/messages", user(json.dumps({"type": "user_message", "message": {"x": 1}})))
    status, _ = await target.call("GET", f"/v1/agents/{agent}/messages", conversation_id="default")
    assert status == 400


async def test_the_organisation_and_the_base_tools(target: Target) -> None:
    organisations = await target.get("/v1/admin/orgs/")
    assert [row["id"] for row in organisations] == ["org-00000000-0000-4000-8000-000000000000"]
    assert organisations == await target.get("/v1/admin/orgs/")
    assert [row["name"] for row in await target.get("/v1/tools/", name="conversation_search")] == [
        "conversation_search"
    ]
    assert await target.get("/v1/tools/", name="no_such_tool") == []


# the same as the bridge sees it


@pytest.mark.parametrize("raw", ["Scout {}", "🦉 {}/*?", "{}\nnext", "  {}  ", "{}\x00"])
async def test_an_agent_is_created_once_for_its_key(target: Target, backend: V1Backend, name: str, raw: str) -> None:
    full = raw.format(name)
    key = uuid.uuid4().hex
    new = NewAgent(
        full, "I am\x00 P", "You are H", "does things", ("a", "b"), MODEL, {"owner": "@o:x", "n": {"x": [1]}}
    )
    agent = await backend.create_agent(new, key=key)
    assert (agent.name, agent.description, agent.tags, agent.model) == (
        full.replace("\x00", ""),
        "does things",
        ("a", "b"),
        MODEL,
    )
    assert agent.metadata == {"owner": "@o:x", "n": {"x": [1]}, CREATION_KEY: key}
    assert await backend.create_agent(new, key=key) == agent
    assert await backend.get_agent(agent.id) == agent
    other = await backend.create_agent(new, key=key + "2")
    assert other.id != agent.id and other.name == agent.name
    blocks = await target.get(f"/v1/agents/{agent.id}/core-memory/blocks")
    assert {block["label"]: block["value"] for block in blocks} == {"persona": "I am P", "human": "You are H"}
    tools = {tool["name"] for tool in await target.get(f"/v1/agents/{agent.id}/tools")}
    assert tools == {"conversation_search", "memory_insert", "memory_replace"}
    for one in (agent, other):
        await backend.delete_agent(one.id)


async def test_without_a_model_one_that_works_is_taken(backend: V1Backend, name: str) -> None:
    assert MODEL in await backend.models()
    agent = await backend.create_agent(NewAgent(name), key=name)
    assert agent.model in await backend.models() and agent.model.startswith("openai-proxy/")
    for wrong in ("openai-proxy/nope", "nope", ""):
        with pytest.raises(LettaError) as caught:
            await backend.create_agent(NewAgent(name, model=wrong), key="other")
        assert caught.value.kind is Kind.NO_MODEL and MODEL in caught.value.detail
    await backend.delete_agent(agent.id)


async def test_an_agent_is_renamed_and_deleted(backend: V1Backend, name: str) -> None:
    agent = await made(backend, name, tags=("t",))
    for new in ("🦉/", "", name):
        renamed = await backend.rename_agent(agent, new)
        assert (renamed.id, renamed.name, renamed.tags) == (agent, new, ("t",))
    await backend.delete_agent(agent)
    await backend.delete_agent(agent)
    assert await kind_of(backend.get_agent(agent)) is Kind.AGENT_GONE
    assert await kind_of(backend.rename_agent(agent, "x")) is Kind.AGENT_GONE
    assert await kind_of(backend.history(agent, 5)) is Kind.AGENT_GONE


async def test_the_history_is_what_was_said_in_the_main_conversation(
    target: Target, backend: V1Backend, name: str
) -> None:
    agent = await made(backend, name)
    assert await backend.history(agent, 10) == []
    room = await backend.open_conversation(agent, "!room")
    for thread, otid, text in (
        (MAIN_CONVERSATION, "lb-1-" + name, "one"),
        (room, "lb-2-" + name, "in the room"),
        (MAIN_CONVERSATION, "lb-3-" + name, "#reason because"),
    ):
        async for _ in backend.send(agent, thread, [Prompt(Otid(otid), text)], deadline=30):
            pass
    base = f"/v1/agents/{agent}/messages"
    for content in (
        [{"type": "text", "text": "look"}, IMAGE, {"type": "text", "text": "here"}],
        SEARCH,
        json.dumps({"type": "user_message", "message": "wrapped"}),
        json.dumps({"type": "heartbeat", "reason": "r", "time": "t"}),
        json.dumps({"type": "user_message", "message": ""}),
        json.dumps({"a": 1}),
        "#say bye",
    ):
        await target.post(base, {"messages": [{"role": "user", "content": content}]})
    seeded = [{"role": "system", "content": "hush"}, {"role": "assistant", "content": "seeded"}]
    await target.post(base, {"messages": [*seeded, {"role": "user", "content": "last", "name": "alice"}]})
    items = await backend.history(agent, 100)
    people = [item.text for item in items if item.kind == "user"]
    assert people == [
        "one",
        "#reason because",
        "look\n[image]\nhere",
        SEARCH,
        "wrapped",
        '{"a": 1}',
        "#say bye",
        "last",
    ]
    said = lines(items)
    assert said[:4] == [
        ("user", "one"),
        ("assistant", "echo: one"),
        ("user", "#reason because"),
        ("assistant", "echo: #reason because"),
    ]
    assert said[-4:] == [("assistant", "bye"), ("assistant", "seeded"), ("user", "last"), ("assistant", "echo: last")]
    assert [item.otid for item in items if item.otid.startswith("lb-")] == ["lb-1-" + name, "lb-3-" + name]
    assert len({(item.id, item.part) for item in items}) == len(items)
    assert all(item.at is not None and item.at.microsecond == 0 for item in items)
    assert [item.at for item in items] == sorted(item.at for item in items if item.at)
    for limit in (1, 3, len(items)):
        assert list(await backend.history(agent, limit)) == items[-limit:]
    assert await backend.history(agent, 0) == []
    await backend.delete_agent(agent)


async def test_what_an_old_agent_was_born_with_is_not_history(target: Target, backend: V1Backend, name: str) -> None:
    agent = AgentID(await target.agent(name, agent_type="memgpt_v2_agent"))
    assert await backend.history(agent, 10) == []
    await target.post(f"/v1/agents/{agent}/messages", user("hello"))
    expected = [("user", "hello"), ("assistant", "echo: hello")]
    for limit in (2, 10):
        assert lines(await backend.history(agent, limit)) == expected


async def test_a_spoilt_history_is_an_error_not_an_empty_one(target: Target, backend: V1Backend, name: str) -> None:
    agent = AgentID(await target.agent(name))
    await target.post(f"/v1/agents/{agent}/messages", user(json.dumps({"type": "user_message", "message": {"x": 1}})))
    assert await kind_of(backend.history(agent, 10)) is Kind.REJECTED


async def test_fingerprint_and_marker(target: Target, backend: V1Backend) -> None:
    fingerprint = await backend.fingerprint()
    assert fingerprint and fingerprint == await backend.fingerprint()
    assert await backend.read_marker() is None
    for value in ("this one", "this one", "that one", ""):
        await backend.write_marker(value)
        assert await backend.read_marker() == value
    blocks = await target.get("/v1/blocks/", label=MARKER)
    assert len(blocks) == 1
    await target.call("DELETE", f"/v1/blocks/{blocks[0]['id']}")
    assert await backend.fingerprint() == fingerprint
