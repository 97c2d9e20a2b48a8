"""What the mirror does not believe: another Letta, an empty one, half a list, many gone at once; and how that ends."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from letta_bridge.db.database import Database
from letta_bridge.ids import MXID
from letta_bridge.letta.errors import Kind, LettaError
from letta_bridge.mirror.settings import MirrorSettings

from .mirror_world import World, agent, agent_id, new_world, open_database, puppet


@pytest.fixture
async def database(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    """An open, empty one; on both engines."""
    async with open_database(tmp_path, database_uri) as opened:
        yield opened


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with new_world(database) as made:
        yield made


async def mirrored(world: World, count: int) -> None:
    world.letta.set(agent(number) for number in range(1, count + 1))
    await world.settle()


async def states(world: World) -> dict[str, str]:
    """The state of each agent by the beginning of its id."""
    return {row.agent_id[6:14].lstrip("0"): row.state for row in await world.agents.all()}


async def nonce(world: World) -> str:
    """The word that the one alarm asks for."""
    (text,) = await world.alarms()
    (found,) = re.findall(r"`!letta guard confirm (\w{4})`", text)
    return str(found)


async def confirm(world: World, word: str) -> bool:
    return await world.db.write(lambda conn: world.directory.guard.confirm(conn, word))


def all_active(numbers: Iterable[int]) -> dict[str, str]:
    return dict.fromkeys(map(str, numbers), "active")


# -- another or an empty Letta


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
@pytest.mark.parametrize("strangers", [[], [21, 22, 23]])
@pytest.mark.parametrize("told", [True, False])
async def test_a_wrong_letta_changes_nothing_and_says_so_once(world: World, strangers: list[int], told: bool) -> None:
    if not told:
        world.letta.fingerprint_ = None
    await mirrored(world, 4)
    since = len(world.fake.requests)
    world.letta.fingerprint_ = "org-1 of another day" if told else None
    ours, world.letta.agents = world.letta.agents, [agent(number) for number in strangers]
    for _ in range(3):
        await world.run_pass()
    word = await nonce(world)
    await world.restart()
    for _ in range(3):
        await world.run_pass()
    assert await states(world) == all_active(range(1, 5))
    assert [line for line in world.requests(since) if "/register" not in line] == []
    assert await nonce(world) == word, "a restart asks nothing anew"
    world.letta.agents, world.letta.fingerprint_ = ours, "org-1 of the first day" if told else None
    await world.run_pass()
    assert await world.alarms() == []
    assert (await world.directory.guard.read()).frozen is None


async def test_another_letta_is_taken_over_when_that_is_confirmed(world: World) -> None:
    await mirrored(world, 4)
    world.letta.fingerprint_ = "org-1 of another day"
    world.letta.set([agent(21), agent(22)])
    await world.run_pass()
    assert not await confirm(world, "0000")
    word = await nonce(world)
    assert await confirm(world, word) and await confirm(world, word), "confirmed twice is confirmed once"
    await world.settle()
    assert await states(world) == dict.fromkeys("1234", "missing") | all_active([21, 22])
    assert await world.alarms() == []
    # it is ours now; the old one is the other
    world.letta.fingerprint_ = "org-1 of the first day"
    world.letta.set(agent(number) for number in range(1, 5))
    await world.run_pass()
    assert (await states(world))["21"] == "active"
    await nonce(world)


async def test_a_moved_database_with_the_same_agents_is_the_same_letta(world: World) -> None:
    await mirrored(world, 4)
    world.letta.fingerprint_ = "org-1 of another day"
    world.letta.set([agent(1), agent(2), agent(3), agent(4), agent(5)])
    await world.settle()
    assert await states(world) == all_active(range(1, 6))
    (text,) = await world.alarms()
    assert "Nothing has to be done" in text
    world.letta.set([agent(1), agent(2), agent(3), agent(4)])  # the new fingerprint is ours: one may go
    await world.run_pass()
    assert (await states(world))["5"] == "missing"


async def test_a_marker_of_our_own_where_letta_has_no_fingerprint(database: Database) -> None:
    async with new_world(database, marker=True) as world:
        world.letta.fingerprint_ = None
        await mirrored(world, 4)
        ours = world.letta.marker
        assert ours is not None and len(ours) >= 32
        agents, world.letta.agents, world.letta.marker = world.letta.agents, [agent(4)], None
        await world.run_pass()
        assert "another Letta" in (await world.alarms())[0]
        assert world.letta.marker is None, "nothing is written into a Letta that is not ours"
        world.letta.agents = agents  # the block was deleted by somebody; the agents are ours
        await world.run_pass()
        assert world.letta.marker == ours
        assert await states(world) == all_active(range(1, 5))


async def test_no_marker_without_consent(world: World) -> None:
    world.letta.fingerprint_ = None
    await mirrored(world, 2)
    assert world.letta.marker is None


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
async def test_a_letta_that_cannot_say_who_it_is_takes_nobody_away(world: World) -> None:
    await mirrored(world, 4)
    world.letta.fingerprint_ = LettaError(Kind.UNREACHABLE, "gone in the middle")
    world.letta.set([agent(1), agent(2), agent(3), agent(5)])
    await world.run_pass()
    assert (await states(world))["4"] == "active" and (await states(world))["5"] == "active"
    assert await world.alarms() == []
    world.letta.fingerprint_ = "org-1 of the first day"
    await world.run_pass()
    assert (await states(world))["4"] == "missing"


# -- lists that are too short


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
async def test_half_a_list_only_adds(world: World) -> None:
    """F-23: a default page is no list."""
    await mirrored(world, 60)
    world.letta.complete = False
    world.letta.set(agent(number) for number in (*range(1, 51), 70))
    for _ in range(3):
        await world.run_pass()
    assert await states(world) == all_active((*range(1, 61), 70))
    world.letta.set([agent(80)])  # nobody of ours: perhaps not our Letta
    await world.run_pass()
    assert "80" not in await states(world)
    assert await world.alarms() == []


async def test_many_gone_at_once_are_kept_until_that_is_confirmed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await mirrored(world, 12)
    since = len(world.fake.requests)
    world.letta.set(agent(number) for number in range(1, 8))
    for _ in range(2):
        await world.run_pass()
    assert await states(world) == all_active(range(1, 13))
    assert world.requests(since) == []
    word = await nonce(world)
    world.letta.set([*(agent(number) for number in range(1, 7)), agent(8), agent(20)])  # 7 went too, 8 came back
    await world.run_pass()
    assert (await states(world))["20"] == "active", "who is new is not held up"
    assert await nonce(world) == word
    assert await confirm(world, word)
    await world.run_pass()
    gone = {number for number, state in (await states(world)).items() if state == "missing"}
    assert gone == {"9", "10", "11", "12", "7"}, "what was shown, and one more, which is few enough"
    warned = {
        record.__dict__["agent"]
        for record in caplog.records
        if record.__dict__.get("action") == "agent_missing" and record.levelno >= logging.WARNING
    }
    assert warned == {agent_id(7)}, "the log warns of nobody whose absence an administrator has just confirmed"
    assert await world.alarms() == []


async def test_who_is_gone_after_the_question_was_asked_is_asked_about_anew(world: World) -> None:
    await mirrored(world, 12)
    world.letta.set(agent(number) for number in range(1, 9))
    await world.run_pass()
    first = await nonce(world)
    world.letta.set(agent(number) for number in range(1, 5))
    await world.run_pass()
    assert await confirm(world, first)
    await world.run_pass()
    assert {n for n, state in (await states(world)).items() if state == "missing"} == {"9", "10", "11", "12"}
    second = await nonce(world)
    assert second != first
    assert await confirm(world, second)
    await world.run_pass()
    assert {n for n, state in (await states(world)).items() if state == "active"} == {"1", "2", "3", "4"}


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
async def test_it_ends_by_itself_when_the_agents_are_back(world: World) -> None:
    await mirrored(world, 6)
    world.letta.set([agent(1), agent(2)])
    await world.run_pass()
    word = await nonce(world)
    world.letta.set(agent(number) for number in range(1, 7))
    await world.run_pass()
    assert await world.alarms() == []
    assert not await confirm(world, word), "an old word confirms nothing"
    assert await states(world) == all_active(range(1, 7))


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
async def test_agents_cannot_be_drained_away_pass_by_pass(world: World) -> None:
    await mirrored(world, 10)
    for left in (9, 8, 7, 6, 5):
        world.letta.set(agent(number) for number in range(1, left + 1))
        await world.run_pass()
    assert {n for n, state in (await states(world)).items() if state == "missing"} == {"10", "9"}
    assert await confirm(world, await nonce(world))
    await world.run_pass()
    assert {n for n, state in (await states(world)).items() if state == "active"} == {"1", "2", "3", "4", "5"}
    world.letta.set(agent(number) for number in range(1, 5))  # with 6 and 7, of whom nobody was asked: three in a day
    await world.run_pass()
    assert (await states(world))["5"] == "active"
    await nonce(world)


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
async def test_who_is_confirmed_gone_and_comes_back_is_asked_about_again(world: World) -> None:
    await mirrored(world, 5)
    world.letta.set([agent(1)])
    await world.run_pass()
    assert await confirm(world, await nonce(world))
    await world.run_pass()
    world.letta.set(agent(number) for number in range(1, 6))
    await world.run_pass()
    assert await states(world) == all_active(range(1, 6))
    world.letta.set([agent(1)])
    await world.run_pass()
    assert await states(world) == all_active(range(1, 6))
    await nonce(world)


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
async def test_an_agent_that_letta_only_hides_is_not_gone(world: World) -> None:
    await mirrored(world, 3)
    world.letta.hidden, world.letta.agents = world.letta.agents[2:], world.letta.agents[:2]
    for _ in range(2):
        await world.run_pass()
    assert await states(world) == all_active(range(1, 4))
    world.letta.hidden = []
    world.clock.now += 3700
    await world.run_pass()
    assert (await states(world))["3"] == "missing"


# -- the configuration


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
async def test_whom_the_configuration_leaves_out_is_no_question(world: World) -> None:
    await mirrored(world, 10)
    few = MirrorSettings(wants=lambda agent_id, name, tags: name in ("Agent 1", "Agent 2"), filter_id="few")
    await world.restart(few)
    await world.run_pass()
    assert await world.alarms() == []
    assert {n for n, state in (await states(world)).items() if state == "active"} == {"1", "2"}
    await world.restart(MirrorSettings())
    await world.run_pass()
    assert await states(world) == all_active(range(1, 11))


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
async def test_agents_that_lose_the_tag_of_an_unchanged_configuration_are_asked_about(database: Database) -> None:
    async with new_world(database, wants=lambda agent_id, name, tags: "team" in tags, filter_id="team") as world:
        world.letta.set(agent(number, tags=("team",)) for number in range(1, 6))
        await world.settle()
        world.letta.set(agent(number) for number in range(1, 6))  # as from a server that forgets to list tags
        await world.run_pass()
        assert await states(world) == all_active(range(1, 6))
        await nonce(world)


# -- asked for one agent


async def test_nobody_of_another_letta_is_made_because_somebody_invites_it(world: World) -> None:
    await mirrored(world, 3)
    world.letta.set([agent(7)])
    with pytest.raises(LettaError):
        await world.directory.resolve(puppet(7))
    assert await world.agents.get(agent_id(7)) is None
    world.letta.set([agent(1), agent(7)])
    row = await world.directory.resolve(puppet(7))
    assert row is not None and row.registered
    assert await world.directory.resolve(MXID("@letta_unknown:test.local")) is None
