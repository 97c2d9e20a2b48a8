"""The running bridge of the tests in this folder: one per module, because the session's Synapse knows one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.conftest import RealSynapse

from .world import World, a_world


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def module_world(
    request: pytest.FixtureRequest, synapse: RealSynapse, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A bridge with FakeLetta for all tests of the module, configured further by the module's ``SETTINGS``."""
    settings = getattr(request.module, "SETTINGS", {})
    async with a_world(tmp_path_factory.mktemp("bridge"), synapse, **settings) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="session")
async def world(module_world: World) -> AsyncIterator[World]:
    """The module's bridge; the test's clients end with the test."""
    yield module_world
    await module_world.close_clients()
