"""The world of the crash tests, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from .harness import CrashWorld, crash_world
from .nursery import Nursery, nursery


@pytest.fixture(scope="session")
def processes() -> Iterator[Nursery]:
    """Where bridge processes come from that need not each be started by an interpreter of its own."""
    with nursery() as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_uri(request: pytest.FixtureRequest) -> str:
    """Both databases, one after the other."""
    if request.param == "sqlite":
        return "sqlite:bridge.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest_asyncio.fixture
async def world(tmp_path: Path, database_uri: str) -> AsyncIterator[CrashWorld]:
    """Not started yet: a test adds agents and people first, then ``await world.start()``."""
    async with crash_world(tmp_path, database_uri) as made:
        yield made


@pytest_asyncio.fixture
async def postgres_world(tmp_path: Path, postgres_url: str) -> AsyncIterator[CrashWorld]:
    """The same on PostgreSQL alone."""
    async with crash_world(tmp_path, postgres_url) as made:
        yield made


@pytest_asyncio.fixture
async def sqlite_world(tmp_path: Path) -> AsyncIterator[CrashWorld]:
    """The same on SQLite alone, for what does not depend on the database."""
    async with crash_world(tmp_path, "sqlite:bridge.db") as made:
        yield made
