"""The world of the integration tests, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from .world import World, a_world


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_uri(request: pytest.FixtureRequest) -> str:
    """Both databases, one after the other."""
    if request.param == "sqlite":
        return "sqlite:bridge.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest_asyncio.fixture
async def world(tmp_path: Path, database_uri: str) -> AsyncIterator[World]:
    """Not started yet: a test adds agents and people first, then ``await world.start()``."""
    async with a_world(tmp_path, database_uri) as made:
        yield made


@pytest_asyncio.fixture
async def sqlite_world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The same on SQLite alone, for what does not depend on the database. Its parameter goes to FakeLetta."""
    async with a_world(tmp_path, "sqlite:bridge.db", **getattr(request, "param", {})) as made:
        yield made
