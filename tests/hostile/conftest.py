"""The world of the integration tests, and an eye on the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..integration.conftest import database_uri, sqlite_world, world  # noqa: F401
from .kit import LogWatch, watched_log


@pytest.fixture
def log_watch() -> Iterator[LogWatch]:
    """What is logged from here on."""
    with watched_log() as watch:
        yield watch
