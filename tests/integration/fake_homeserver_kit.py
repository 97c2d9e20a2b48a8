"""What the tests of FakeHomeserver share: a recording appservice, its client, and the fixtures."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from letta_bridge.testing.fake_homeserver import FakeHomeserver, Person

BOT, GHOST, OTHER = (f"@{name}:test.local" for name in ("lettabridge", "letta_a", "letta_b"))
both = pytest.mark.parametrize("hs", ["synapse", "tuwunel"], indirect=True)
synapse = pytest.mark.parametrize("hs", ["synapse"], indirect=True)
tuwunel = pytest.mark.parametrize("hs", ["tuwunel"], indirect=True)


class Bridge:
    """An appservice that records what it is given; answers with ``status`` (0: cuts) while ``gate`` is open."""

    def __init__(self) -> None:
        self.status = 200
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.bodies: list[dict[str, Any]] = []
        self.raw: list[tuple[str, dict[str, str], dict[str, str], bytes]] = []
        self.asked: list[str] = []

    async def start(self) -> str:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_put("/_matrix/app/v1/transactions/{id}", self._transaction)
        app.router.add_get("/_matrix/app/v1/{kind:users|rooms}/{name}", self._question)
        app.router.add_post("/_matrix/app/v1/ping", self._ping)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _transaction(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.arrived.set()
        await self.gate.wait()
        self.raw.append((request.match_info["id"], dict(request.headers), dict(request.query), raw))
        if self.status == 0:
            assert request.transport is not None
            request.transport.abort()
        if self.status == 200:
            self.bodies.append(json.loads(raw))
        return web.json_response({}, status=self.status or 500)

    async def _question(self, request: web.Request) -> web.Response:
        self.asked.append(request.match_info["name"])
        return web.json_response({}, status=404)

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response({}, status=self.status)

    @property
    def texts(self) -> list[str]:
        return [e["content"]["body"] for b in self.bodies for e in b["events"] if "body" in e["content"]]


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    out = Bridge()
    out.url = await out.start()  # type: ignore[attr-defined]
    yield out
    out.gate.set()
    await out.runner.cleanup()


@pytest.fixture
async def hs(request: pytest.FixtureRequest, bridge: Bridge) -> AsyncIterator[FakeHomeserver]:
    flavour = getattr(request, "param", "synapse")
    url: str = bridge.url  # type: ignore[attr-defined]
    async with FakeHomeserver(flavour=flavour, appservice_url=url, backoff_scale=0.005) as server:
        client = Client(server)
        await client.register(BOT, GHOST, OTHER)
        server.requests.clear()
        server.client = client  # type: ignore[attr-defined]
        yield server
        await client.session.close()


class Client:
    """The appservice's calls: ``await client(user, method, path parts…)`` gives (status, body)."""

    def __init__(self, hs: FakeHomeserver) -> None:
        self.hs = hs
        self.session = aiohttp.ClientSession()

    async def register(self, *users: str) -> None:
        for user in users:
            body = {"type": "m.login.application_service", "username": user[1:].split(":")[0], "inhibit_login": True}
            await self(None, "POST", "register", body=body)

    async def __call__(
        self, user: str | None, method: str, *parts: str, body: Any = None, api: str = "client/v3", **query: Any
    ) -> tuple[int, Any]:
        params = {key.rstrip("_"): str(value) for key, value in query.items()}
        if user is not None:
            params["user_id"] = user
        url = "/".join([f"{self.hs.url}/_matrix/{api}", *(quote(part, safe="") for part in parts)])
        if body is None and method != "GET":
            body = {}
        headers = {"Authorization": "Bearer test-as-token"}
        async with self.session.request(method, url, params=params, json=body, headers=headers) as answer:
            self.headers = answer.headers
            return answer.status, await answer.json()


@pytest.fixture
def client(hs: FakeHomeserver) -> Client:
    return hs.client  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
async def alice(hs: FakeHomeserver) -> Person:
    return await hs.person("alice")


async def portal(client: Client, alice: Person, *ghosts: str, **body: Any) -> str:
    """A room of Alice's in which the ghosts are joined."""
    room = await alice.create_room(invite=list(ghosts), **body)
    for ghost in ghosts:
        await client(ghost, "POST", "join", room)
    return room


def message(text: str) -> dict[str, str]:
    return {"msgtype": "m.text", "body": text}
