"""Real servers for the tests that ask for them, started once, when first needed; and a watch on the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from blockbuster import blockbuster_ctx

from letta_bridge.testing.stack.bridge import LocalBridge
from letta_bridge.testing.stack.install import NotPossibleHere, ensure
from letta_bridge.testing.stack.letta_server import LocalLetta
from letta_bridge.testing.stack.models import ModelServer
from letta_bridge.testing.stack.postgres import LocalPostgres
from letta_bridge.testing.stack.process import StackError
from letta_bridge.testing.stack.synapse import LocalSynapse

DOMAIN = "test.localhost"
ADMIN = f"@admin:{DOMAIN}"
# By the fixture and by the marker of tests that ask for it indirectly: the place in the order, and seconds for a test,
# because starting a server counts as a part of the first test that needs it. The real Letta takes half a minute.
_SERVERS = {
    "postgres_server": ("postgres", 1, 180),
    "synapse": ("e2e", 2, 180),
    "letta_server": ("letta", 4, 300),
}
_WATCHED = ("integration", "lifecycle", "crash", "hostile", "tuwunel")
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without servers first, real Letta last; the time to start a server is added where one is needed."""
    for item in items:
        seconds = max((time for _, time in _needed(item)), default=None)
        if seconds and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(seconds))
    items.sort(key=lambda item: sum(place for place, _ in _needed(item)))


def _needed(item: pytest.Item) -> list[tuple[int, int]]:
    names = getattr(item, "fixturenames", ())
    return [
        (place, seconds)
        for fixture, (marker, place, seconds) in _SERVERS.items()
        if fixture in names or item.get_closest_marker(marker)
    ]


@pytest.fixture(autouse=True)
def loop_watch(request: pytest.FixtureRequest) -> Iterator[None]:
    """The bridge's own code must not block the loop; integration tests fail when it does."""
    if not {*_WATCHED} & {*Path(request.node.path).parts}:
        yield
        return
    with blockbuster_ctx("letta_bridge", excluded_modules=["letta_bridge.testing"]) as watch:
        for function in watch.functions.values():  # opening files once, before any work, is no harm
            function.can_block_in("letta_bridge/db/database.py", {"open", "_take_lock", "__init__"})
            # asyncpg looks for its certificate files whenever it connects
            function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_dsn_and_args"})
        yield


def _installed(*names: str) -> None:
    try:
        ensure(*names)
    except NotPossibleHere as reason:
        pytest.skip(str(reason))
    except StackError as reason:
        pytest.fail(str(reason), pytrace=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server() -> AsyncIterator[LocalPostgres]:
    """PostgreSQL 16, empty, for the session."""
    await asyncio.to_thread(_installed, "postgres")
    async with LocalPostgres() as postgres:
        yield postgres


@pytest_asyncio.fixture
async def postgres_url(postgres_server: LocalPostgres) -> AsyncIterator[str]:
    """A fresh database of the test's own; dropped afterwards, also when the test left connections open."""
    name = f"test_{next(_numbers)}"
    yield await postgres_server.create_database(name)
    await postgres_server.drop_database(name)


@dataclass(frozen=True)
class RealSynapse:
    """The session's homeserver and the files of ``letta-bridge init`` whose registration it knows."""

    server: LocalSynapse
    appservice_port: int
    config: Path
    registration: Path

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def domain(self) -> str:
        return self.server.domain


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def synapse(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealSynapse]:
    """A real Synapse for the session. Rooms, people and agents of all tests live in it: give them unique names.

    It knows one application service: a bridge on ``appservice_port`` with the tokens in ``config``. Its Letta is none
    (override ``letta.url``), its admin is ``@admin``.
    """
    await asyncio.to_thread(_installed, "synapse")
    folder = tmp_path_factory.mktemp("synapse")
    bridge = LocalBridge(folder / "bridge")
    server = LocalSynapse(folder / "synapse", domain=DOMAIN, registrations=[bridge.registration])
    await bridge.init(homeserver_url=server.url, domain=DOMAIN, letta_url="http://127.0.0.1:9", admin=ADMIN)
    async with server:
        yield RealSynapse(server, bridge.port, bridge.config, bridge.registration)


@dataclass(frozen=True)
class RealLetta:
    """The session's Letta, and the scripted model behind it. Its agents' model is ``model_handle``."""

    server: LocalLetta
    model: ModelServer
    model_handle: str = "openai-proxy/gpt-4o"

    @property
    def url(self) -> str:
        return self.server.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def letta_server(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: LocalPostgres
) -> AsyncIterator[RealLetta]:
    """A real Letta V1 0.16.8 for the session, without password and without Redis. Name agents uniquely."""
    await asyncio.to_thread(_installed, "letta")
    folder = tmp_path_factory.mktemp("letta")
    async with (
        ModelServer(folder / "model") as model,
        LocalLetta(folder / "letta", postgres_server, model.provider) as letta,
    ):
        yield RealLetta(letta, model)
