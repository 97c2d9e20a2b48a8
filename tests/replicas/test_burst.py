"""Several replicas share the work: every message is answered once and in order, whoever takes it."""

from __future__ import annotations

import pytest

from .harness import ReplicaWorld

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize(
    "names",
    [pytest.param(("one", "two"), marks=pytest.mark.full, id="2"), pytest.param(("one", "two", "three"), id="3")],
)
async def test_a_burst_is_shared(world: ReplicaWorld, names: tuple[str, ...]) -> None:
    alice = await world.hs.person("alice")
    await world.start(*names)
    rooms = await world.chats(alice, agents=5, rooms=2)
    await world.burst(alice, rooms, 10)
    await world.all_answered(alice)
    assert set(world.balancer.answers("/transactions/")) == {world[name].url for name in names}
    assert set(await world.owners()) == set(names), "a replica had nothing to do"
