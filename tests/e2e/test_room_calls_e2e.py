"""The bridge's calls about rooms against a real Synapse: the imitation passes the very same tests."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from ruamel.yaml import YAML

from letta_bridge.ids import MXID, RoomID
from letta_bridge.matrix.homeserver import Homeserver
from letta_bridge.testing.stack.synapse import Account
from tests.conftest import RealSynapse
from tests.integration.room_calls import ELSEWHERE, ROOMS, Place

from .honesty_kit import Inbox
from .world import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]


@dataclass
class Client:
    """An account's requests."""

    url: str
    session: aiohttp.ClientSession
    account: Account

    @property
    def user_id(self) -> str:
        return self.account.user_id

    async def call(self, method: str, *path: str, body: Any = None) -> Any:
        return await self.ask(method, "_matrix", "client", "v3", *path, body=body)

    async def ask(self, method: str, *path: str, body: Any = None) -> Any:
        """A request below the root."""
        url = "/".join([self.url, *(quote(part, safe="") for part in path)])
        headers = {"Authorization": f"Bearer {self.account.access_token}"}
        async with self.session.request(method, url, json=body or {}, headers=headers) as answer:
            text = await answer.text()
            assert answer.status == 200, text
            return await answer.json()


@pytest_asyncio.fixture(loop_scope="session")
async def at(request: pytest.FixtureRequest, synapse: RealSynapse) -> AsyncIterator[Place]:
    registration = YAML(typ="safe").load(synapse.registration.read_text())
    inbox, tag, domain = Inbox(), secrets.token_hex(4), synapse.domain
    await inbox.start(synapse.appservice_port)
    bot = MXID(f"@{registration['sender_localpart']}:{domain}")
    homeserver = Homeserver(synapse.url, domain, registration["as_token"], bot)
    try:
        async with aiohttp.ClientSession() as session:
            alice = Client(synapse.url, session, await synapse.server.register(f"alice{tag}"))
            admin = Client(synapse.url, session, await synapse.server.register(f"root{tag}", admin=True))

            async def pushed(fits: Callable[[dict[str, Any]], bool]) -> Any:
                async def look() -> Any:
                    return next((event for event in inbox.events if fits(event)), None)

                return await until(look, "a push")

            await homeserver.bot.register()
            # Synapse may have found nobody here and wait: a ping ends that
            await homeserver.bot.ping(registration["id"], tag)
            place = Place(
                homeserver=homeserver,
                flavour="synapse",
                version=getattr(request, "param", "11"),
                tag=tag,
                alice=alice,
                purge=lambda room: _purge(admin, room),
                pushed=pushed,
            )
            for name in "pq":
                await place.puppet(name).register()
            yield place
    finally:
        await homeserver.close()
        await inbox.stop()


async def _purge(admin: Client, room: RoomID) -> None:
    """``DELETE /_synapse/admin/v2/rooms``, which goes on after its answer."""
    path = ("_synapse", "admin", "v2", "rooms")
    deleting = (await admin.ask("DELETE", *path, room, body={"block": False, "purge": True}))["delete_id"]

    async def finished() -> bool:
        state = await admin.ask("GET", *path, "delete_status", deleting)
        assert state["status"] != "failed", state
        return bool(state["status"] == "complete")

    async with asyncio.timeout(30):
        await until(finished, "the room is not deleted")


@pytest.mark.parametrize("at", ["11", "12"], indirect=True)
@pytest.mark.parametrize("case", ROOMS, ids=lambda case: case.__name__)
async def test_rooms(at: Place, case: Callable[[Place], Awaitable[None]]) -> None:
    await case(at)


@pytest.mark.parametrize("case", ELSEWHERE, ids=lambda case: case.__name__)
async def test_elsewhere(at: Place, case: Callable[[Place], Awaitable[None]]) -> None:
    await case(at)
