"""Worlds on Tuwunel: FakeHomeserver in its flavour, and a real Synapse behind the rewriting proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from ruamel.yaml import YAML

from letta_bridge.testing.fake_letta import FakeLetta
from letta_bridge.testing.fake_tuwunel import TuwunelProxy
from letta_bridge.testing.stack.bridge import LocalBridge
from tests.conftest import RealSynapse

from ..e2e import world as e2e
from ..e2e.wire import Wire
from ..integration.fake_homeserver_kit import bridge
from ..integration.world import World, a_world

__all__ = ["bridge"]


@pytest_asyncio.fixture
async def tuwunel_world(tmp_path: Path) -> AsyncIterator[World]:
    """A bridge in this process between FakeHomeserver as Tuwunel and FakeLetta, on SQLite; not started yet."""
    async with a_world(tmp_path, "sqlite:bridge.db", flavour="tuwunel") as made:
        yield made


@pytest_asyncio.fixture(params=["synapse", "tuwunel"])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """The same on both homeservers, one after the other."""
    async with a_world(tmp_path, "sqlite:bridge.db", flavour=request.param) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def proxy(synapse: RealSynapse, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TuwunelProxy]:
    """The session's Synapse behaves like Tuwunel: it pushes to the proxy, which has the bridge's port."""
    registration = YAML(typ="safe", pure=True).load(synapse.registration)
    folder = tmp_path_factory.mktemp("proxy")
    port = synapse.appservice_port
    async with TuwunelProxy(synapse.url, registration, synapse.domain, folder, port=port) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wire(proxy: TuwunelProxy) -> AsyncIterator[Wire]:
    """Between the bridge and the proxy."""
    async with Wire(proxy.url) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def module_world(
    synapse: RealSynapse, proxy: TuwunelProxy, wire: Wire, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[e2e.World]:
    """A running bridge behind the proxy, with FakeLetta, for all tests of the module."""
    guests = await e2e.guests_of(synapse.server)
    async with FakeLetta() as letta:
        folder = tmp_path_factory.mktemp("bridge")
        bridge = LocalBridge(folder)
        bridge.config = synapse.config
        bridge.settings = e2e.settings_for(
            letta.url,
            synapse.domain,
            guests,
            homeserver__url=wire.url,
            appservice__url=bridge.url,
            appservice__port=str(bridge.port),
            appservice__ping_interval="2",
            database__uri=f"sqlite:{folder / 'bridge.db'}",
        )
        proxy.appservice_url = bridge.url
        async with bridge:
            world = e2e.World(synapse=synapse.server, bridge=bridge, guests=guests, letta=letta)
            try:
                yield world
            finally:
                await world.close_clients()


@pytest_asyncio.fixture(loop_scope="session")
async def world(module_world: e2e.World) -> AsyncIterator[e2e.World]:
    """The module's bridge behind the proxy; the test's clients end with the test."""
    yield module_world
    await module_world.close_clients()
