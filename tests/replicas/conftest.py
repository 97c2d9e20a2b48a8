"""The world of the tests with several processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from ..crash.nursery import Nursery, nursery
from .harness import ReplicaWorld, replica_world


@pytest.fixture(scope="session")
def processes() -> Iterator[Nursery]:
    """Where bridge processes come from that need not each be started by an interpreter of its own."""
    with nursery() as made:
        yield made


@pytest_asyncio.fixture
async def world(tmp_path: Path, postgres_url: str, processes: Nursery) -> AsyncIterator[ReplicaWorld]:
    """Fakes, a balancer and an empty database; a test starts its replicas by name."""
    async with replica_world(tmp_path, postgres_url, processes) as made:
        yield made
