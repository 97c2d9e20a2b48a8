"""Creating, comparing and reading back agents over a Letta that fails: the fake one, over real HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from letta_bridge.ids import AgentID
from letta_bridge.letta.backend import CREATION_KEY, NewAgent
from letta_bridge.letta.errors import Delivery, Kind, LettaError
from letta_bridge.letta.v1 import V1Backend
from letta_bridge.testing.fake_letta import FakeLetta
from letta_bridge.testing.fake_letta.faults import How

AGENTS = r"/v1/agents/$"
ONE = r"/v1/agents/agent-[^/]+$"
ORGANISATIONS = r"/v1/admin/orgs/$"
BLOCKS = r"/v1/blocks/$"
NEW = NewAgent("Scout", persona="I am Scout", model="openai-proxy/gpt-4o")
OWL = NewAgent("🦉", model="openai-proxy/gpt-4o")
UNCLEAR: list[How] = [500, 502, 503, 504, "disconnect", "truncate"]


@pytest.fixture
async def fake() -> AsyncIterator[FakeLetta]:
    async with FakeLetta() as fake:
        yield fake


@pytest.fixture
async def backend(fake: FakeLetta) -> AsyncIterator[V1Backend]:
    backend = V1Backend(fake.url, None, request_timeout=5)
    yield backend
    await backend.close()


async def failure(call: Awaitable[Any]) -> LettaError:
    with pytest.raises(LettaError) as caught:
        await call
    return caught.value


def calls(fake: FakeLetta, method: str, path: str) -> int:
    return sum(one == method and re.search(path, where) is not None for one, where in fake.requests)


@pytest.mark.parametrize("after_processing", [False, True], ids=["not taken", "taken"])
@pytest.mark.parametrize("how", UNCLEAR)
async def test_a_creation_of_unknown_outcome_is_repeated_without_a_second_agent(
    fake: FakeLetta, backend: V1Backend, how: How, after_processing: bool
) -> None:
    fake.fail_next(AGENTS, how, method="POST", after_processing=after_processing)
    error = await failure(backend.create_agent(NEW, key="k"))
    assert error.delivery is Delivery.UNKNOWN or error.kind is Kind.INTERNAL
    agent = await backend.create_agent(NEW, key="k")
    assert await backend.create_agent(NEW, key="k") == agent
    assert list(fake.agents) == [agent.id]


@pytest.mark.parametrize("after_processing", [False, True], ids=["not taken", "taken"])
async def test_a_creation_that_takes_too_long_is_repeated_without_a_second_agent(
    fake: FakeLetta, backend: V1Backend, after_processing: bool
) -> None:
    impatient = V1Backend(fake.url, None, request_timeout=1)
    fake.fail_next(AGENTS, "hang", method="POST", after_processing=after_processing)
    error = await failure(impatient.create_agent(NEW, key="k"))
    await impatient.close()
    assert (error.kind, error.delivery) == (Kind.UNREACHABLE, Delivery.UNKNOWN)
    agent = await backend.create_agent(NEW, key="k")
    assert list(fake.agents) == [agent.id]


@pytest.mark.parametrize("late", [False, True], ids=["not renamed", "renamed"])
async def test_a_name_that_cannot_be_created_with_survives_a_failure_before_it_is_given(
    fake: FakeLetta, backend: V1Backend, late: bool
) -> None:
    fake.fail_next(ONE, 503, method="PATCH", after_processing=late)
    await failure(backend.create_agent(OWL, key="k"))
    agent = await backend.create_agent(OWL, key="k")
    assert agent.name == "🦉" and list(fake.agents) == [agent.id]
    assert calls(fake, "POST", AGENTS) == 1


async def test_nothing_is_created_while_the_list_cannot_be_had(fake: FakeLetta, backend: V1Backend) -> None:
    agent = await backend.create_agent(NEW, key="k")
    hows: list[How] = [500, 503, "disconnect", "truncate"]
    for how in hows:
        fake.fail_next(AGENTS, how, method="GET")
        await failure(backend.create_agent(NEW, key="k"))
    fake.fail_next(AGENTS, 401, method="GET")
    assert (await failure(backend.create_agent(NEW, key="k"))).kind is Kind.BAD_KEY
    assert list(fake.agents) == [agent.id] and calls(fake, "POST", AGENTS) == 1


async def test_an_agent_is_found_among_many_of_its_name_also_behind_a_capped_page(
    fake: FakeLetta, backend: V1Backend
) -> None:
    twins = [fake.add_agent("Scout") for _ in range(5)]
    agent = await backend.create_agent(NEW, key="k")
    twins += [fake.add_agent("Scout", metadata={CREATION_KEY: "other"}) for _ in range(5)]
    fake.settings.page_cap = 2
    assert (await backend.create_agent(NEW, key="k")).id == agent.id
    assert len(fake.agents) == 11


async def test_of_two_creations_under_way_one_stays(fake: FakeLetta, backend: V1Backend) -> None:
    hold = fake.hold_next(AGENTS, method="POST")
    slow = asyncio.create_task(backend.create_agent(NEW, key="k"))
    async with asyncio.timeout(5):
        await hold.entered()
    quick = await backend.create_agent(NEW, key="k")
    hold.release()
    assert await slow == quick and list(fake.agents) == [quick.id]


async def test_somebody_elses_copy_with_the_key_is_left_alone(fake: FakeLetta, backend: V1Backend) -> None:
    agent = await backend.create_agent(NEW, key="k")
    copy = fake.add_agent("Scout", metadata={CREATION_KEY: "k"})
    assert (await backend.create_agent(NEW, key="k")).id == agent.id, "the oldest"
    assert list(fake.agents) == [agent.id, copy]


async def test_the_model_of_most_of_the_newest_agents_is_taken(fake: FakeLetta, backend: V1Backend) -> None:
    unset = NewAgent("Scout")
    assert (await backend.create_agent(unset, key="0")).model == "openai-proxy/gpt-4.1", "the first that works alone"
    for _ in range(2):
        fake.add_agent("old hand", model="openai-proxy/gpt-4o-mini", sleeptime=True)
    for _ in range(3):
        fake.add_agent("orphan", model="gone/model")
    fake.add_agent("lone")
    assert (await backend.create_agent(unset, key="1")).model == "openai-proxy/gpt-4o-mini"
    for _ in range(9):
        fake.add_agent("online", model="letta/letta-free")
    assert (await backend.create_agent(unset, key="3")).model == "letta/letta-free", "as everybody does"
    fake.fail_next(r"/v1/models/$", 503)
    assert (await failure(backend.create_agent(unset, key="2"))).kind is Kind.UNREACHABLE


async def test_an_unknown_model_is_told_apart_from_a_letta_that_fails(fake: FakeLetta, backend: V1Backend) -> None:
    wrong = NewAgent("Scout", model="no/such")
    error = await failure(backend.create_agent(wrong, key="k"))
    assert error.kind is Kind.NO_MODEL and "no/such" in error.detail and "openai-proxy/gpt-4o" in error.detail
    assert "no/such" not in str(error)
    fake.fail_next(r"/v1/models/$", 503)
    assert (await failure(backend.create_agent(wrong, key="k"))).kind is Kind.UNREACHABLE
    assert not fake.agents


@pytest.mark.parametrize("how", [500, 502, 503, 404, "disconnect"])
async def test_only_letta_itself_says_that_a_deleted_agent_is_gone(
    fake: FakeLetta, backend: V1Backend, how: How
) -> None:
    agent = AgentID(fake.add_agent("Scout"))
    fake.fail_next(ONE, how, method="DELETE")
    await failure(backend.delete_agent(agent))
    assert agent in fake.agents
    fake.fail_next(ONE, "disconnect", method="DELETE", after_processing=True)
    await failure(backend.delete_agent(agent))
    await backend.delete_agent(agent)
    assert agent not in fake.agents


async def test_the_fingerprint_is_of_the_database_and_nothing_else(fake: FakeLetta, backend: V1Backend) -> None:
    first = await backend.fingerprint()
    agent = fake.add_agent("Scout")
    await fake.stop()
    await fake.start()
    assert await backend.fingerprint() == first, "a restart"
    fake.empty()
    assert await backend.fingerprint() == first and not (await backend.list_agents()).agents, "all deleted"
    old = fake.swap_database()
    assert await backend.fingerprint() not in (first, None), "another instance"
    fake.add_agent("Scout", agent_id=agent)
    assert [one.id for one in (await backend.list_agents()).agents] == [agent], "the same ids in another instance"
    fake.swap_database(old)
    assert await backend.fingerprint() == first
    fake.wipe()
    assert await backend.fingerprint() != first


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_server_that_keeps_its_organisations_to_itself_has_no_fingerprint(
    fake: FakeLetta, backend: V1Backend, status: int
) -> None:
    fake.fail_next(ORGANISATIONS, status)
    assert await backend.fingerprint() is None
    fake.fail_next(r"/v1/", status, 2)
    assert (await failure(backend.fingerprint())).kind in (Kind.BAD_KEY, Kind.UNREACHABLE, Kind.REJECTED)


@pytest.mark.parametrize("how", [500, 502, 503, 429, "disconnect", "truncate"])
async def test_an_outage_is_no_fingerprint(fake: FakeLetta, backend: V1Backend, how: How) -> None:
    fake.fail_next(ORGANISATIONS, how)
    await failure(backend.fingerprint())
    fake.fail_next(BLOCKS, how)
    await failure(backend.read_marker())


@pytest.mark.parametrize("how", [503, "disconnect"])
@pytest.mark.parametrize("after_processing", [False, True])
async def test_a_marker_is_written_once(fake: FakeLetta, backend: V1Backend, how: How, after_processing: bool) -> None:
    fake.fail_next(BLOCKS, how, method="POST", after_processing=after_processing)
    await failure(backend.write_marker("mine"))
    await backend.write_marker("mine")
    assert await backend.read_marker() == "mine"
    async with aiohttp.ClientSession() as session, session.get(f"{fake.url}/v1/blocks/") as answer:
        assert [block["value"] for block in await answer.json()] == ["mine"]
    fake.wipe()
    assert await backend.read_marker() is None


async def test_a_long_history_is_read_back_as_far_as_needed(fake: FakeLetta, backend: V1Backend) -> None:
    agent = AgentID(fake.add_agent("Scout", agent_type="memgpt_v2_agent"))
    room = fake.add_conversation(agent, "room")
    at = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    spoken = [(("user", "assistant")[n % 2], f"line {n}") for n in range(450)]
    fake.seed_history(agent, spoken, at=at)
    fake.seed_history(agent, [("user", "secret")] * 300, room)
    for limit in (1, 199, 200, 201, 399, 449, 450, 451, 10_000):
        got = [(item.kind, item.text) for item in await backend.history(agent, limit)]
        assert got == spoken[-limit:]
    assert (await backend.history(agent, 1))[0].at == at
    before = len(fake.requests)
    await backend.history(agent, 50)
    assert len(fake.requests) == before + 1


@pytest.mark.parametrize("how", [500, 503, "disconnect", "truncate"])
async def test_a_history_that_breaks_off_is_an_error(fake: FakeLetta, backend: V1Backend, how: How) -> None:
    agent = AgentID(fake.add_agent("Scout"))
    ids = fake.seed_history(agent, [("user", f"line {n}") for n in range(250)])
    assert len(await backend.history(agent, 250)) == len(ids)
    fake.fail_next(r"/messages$", how, method="GET", skip=1)
    await failure(backend.history(agent, 250))


async def test_lists_that_are_cut_are_never_complete(fake: FakeLetta, backend: V1Backend) -> None:
    ids = [fake.add_agent(f"agent {n}") for n in range(7)]
    whole = await backend.list_agents()
    assert whole.complete and [agent.id for agent in whole.agents] == ids
    fake.fail_next(AGENTS, "truncate")
    await failure(backend.list_agents())
    fake.settings.page_cap = 3
    cut = await backend.list_agents()
    assert not cut.complete and [agent.id for agent in cut.agents] == ids[:3]


async def test_an_agent_that_hides_is_not_gone(fake: FakeLetta, backend: V1Backend) -> None:
    agent = AgentID(fake.add_agent("Scout"))
    fake.hide_agent(agent)
    assert not (await backend.list_agents()).agents
    assert (await backend.get_agent(agent)).name == "Scout"
    fake.hide_agent(agent, False)
    removed = fake.remove_agent(agent)
    assert (await failure(backend.get_agent(agent))).kind is Kind.AGENT_GONE
    fake.restore_agent(removed)
    assert [one.id for one in (await backend.list_agents()).agents] == [agent]
