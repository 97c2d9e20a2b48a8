"""The worlds of the tests of failing neighbours: those of the integration tests."""

from __future__ import annotations

import pytest

from ..integration.conftest import sqlite_world, world

__all__ = ["sqlite_world", "world"]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.full])])
def database_uri(request: pytest.FixtureRequest) -> str:
    """SQLite; PostgreSQL in the full run: what a neighbour does to the bridge seldom depends on it."""
    if request.param == "sqlite":
        return "sqlite:bridge.db"
    return str(request.getfixturevalue("postgres_url"))
