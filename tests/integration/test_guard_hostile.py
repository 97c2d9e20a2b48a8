"""Answers to the guard's question that come at an awkward moment, or about agents that are there all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letta_bridge.db.database import Database

from .mirror_world import World, agent, new_world, open_database
from .test_guard import all_active, confirm, mirrored, nonce, states


@pytest.fixture
async def database(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    async with open_database(tmp_path, database_uri) as opened:
        yield opened


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with new_world(database) as made:
        yield made


async def test_an_answer_that_comes_during_a_pass_is_not_forgotten_by_it(world: World) -> None:
    """The pass takes note that somebody of an earlier answer is back."""
    await mirrored(world, 12)
    world.letta.set(agent(number) for number in range(5, 13))
    await world.run_pass()
    assert await confirm(world, await nonce(world))
    await world.settle()
    world.letta.set(agent(number) for number in range(9, 13))
    await world.run_pass()
    word = await nonce(world)
    told = world.letta.fingerprint

    async def answered_meanwhile() -> str | None:
        assert await confirm(world, word)
        return await told()

    world.letta.fingerprint = answered_meanwhile  # type: ignore[method-assign]
    world.letta.set(agent(number) for number in (1, *range(9, 13)))
    await world.run_pass()
    world.letta.fingerprint = told  # type: ignore[method-assign]
    await world.run_pass()
    assert await world.alarms() == []
    there = [1, *range(9, 13)]
    gone = dict.fromkeys(map(str, range(2, 9)), "missing")
    assert await states(world) == all_active(there) | gone


@pytest.mark.parametrize("database_uri", ["sqlite"], indirect=True)
async def test_who_was_confirmed_gone_and_is_only_hidden_is_asked_about_again(world: World) -> None:
    await mirrored(world, 6)
    lost = [agent(number) for number in range(3, 7)]
    world.letta.set([agent(1), agent(2)])
    await world.run_pass()
    world.letta.hidden = lost  # they are there again, and Letta does not list them
    assert await confirm(world, await nonce(world))
    await world.run_pass()
    await world.run_pass()
    assert await states(world) == all_active(range(1, 7))
    assert await world.alarms() == []
    world.letta.hidden = []
    world.clock.now += 3700
    await world.run_pass()
    assert await states(world) == all_active(range(1, 7))
    await nonce(world)
