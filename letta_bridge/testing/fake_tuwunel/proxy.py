"""The proxy: the appservice's calls on their way to Synapse, and Synapse's transactions on their way to FakeTuwunel."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from aiohttp import web
from multidict import MultiDict
from yarl import URL

from ..fake_homeserver.events import JSON
from ..fake_homeserver.push import PushSettings
from . import rewrites
from .call import Answer, Call
from .events import tuwunel_form
from .fake import FakeTuwunel
from .txns import ClientTxns

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length", "host"}
_BODY_LIMIT = 256 << 20


class TuwunelProxy:
    """``async with TuwunelProxy(synapse_url, registration, domain, folder, port=…) as proxy``; see the package.

    Args:
        port: where Synapse pushes to, by the ``url`` of the registration that it knows.
        folder: keeps rows, events, and clients' transaction ids.
    """

    def __init__(
        self,
        synapse_url: str,
        registration: Mapping[str, Any],
        domain: str,
        folder: Path,
        *,
        port: int,
        settings: PushSettings | None = None,
    ) -> None:
        self.tuwunel = FakeTuwunel(registration, folder / "tuwunel.db", domain=domain, settings=settings)
        self.url = f"http://127.0.0.1:{port}"
        self.calls: list[tuple[str, str, int]] = []
        """Method, path and status of the appservice's calls, as it sees them."""
        self.user_queries: list[str] = []
        """Users that Synapse asked for; Tuwunel asks for none."""
        self._appservice = self.tuwunel.appservice
        self._synapse_url = synapse_url
        self._port = port
        self._txns = ClientTxns(self.tuwunel.pusher.rows.db)
        self._memory = rewrites.Memory(self._appservice, self._txns, self._register)
        self._http: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    @property
    def appservice_url(self) -> str:
        """Where the appservice listens."""
        return self._appservice.url

    @appservice_url.setter
    def appservice_url(self, url: str) -> None:
        self._appservice.url = url

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        app = web.Application(client_max_size=_BODY_LIMIT)
        app.router.add_put("/_matrix/app/v1/transactions/{txn}", self._pushed)
        app.router.add_get("/_matrix/app/v1/users/{user}", self._user_query)
        app.router.add_get("/_matrix/app/v1/rooms/{alias}", self._alias_query)
        app.router.add_post("/_matrix/app/v1/ping", self._pinged)
        app.router.add_post("/_matrix/client/v1/appservice/{id}/ping", self.tuwunel.answer_ping)
        app.router.add_route("*", "/{rest:.*}", self._called)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        await self.tuwunel.start()
        await self._register(self._appservice.sender)  # Tuwunel makes it when it loads the registration
        self._memory.seen.add(self._appservice.sender)
        await self._wake_synapse()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None and self._http is not None
        await self._runner.cleanup()
        await self._http.close()
        await self.tuwunel.__aexit__(kind, error, trace)

    # ---- Synapse to FakeTuwunel

    def _refused(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == f"Bearer {self._appservice.hs_token}":
            return None
        return web.json_response({"errcode": "M_FORBIDDEN", "error": "wrong hs_token"}, status=403)

    async def _pushed(self, request: web.Request) -> web.Response:
        """A transaction becomes rows: 200 as soon as they are stored."""
        if refused := self._refused(request):
            return refused
        body = await request.json()
        for event in body.get("events", ()):
            self._event(event)
        for edu in body.get("ephemeral", ()):
            self._edu(edu)
        for message in body.get("de.sorunome.msc2409.to_device", ()):
            self.tuwunel.to_device(message)
        for user_id in body.get("org.matrix.msc3202.device_lists", {}).get("changed", ()):
            self.tuwunel.device_list(user_id)
        return web.json_response({})

    def _event(self, event: JSON) -> None:
        form = tuwunel_form(event)
        if txn_id := self._txns.of_event(event["event_id"]):
            form["unsigned"]["transaction_id"] = txn_id
        redacts = event["content"].get("redacts") or event.get("redacts")
        if event["type"] == "m.room.redaction" and isinstance(redacts, str):
            self.tuwunel.redact(redacts)
        self.tuwunel.event(self.tuwunel.room(event["room_id"]), form)

    def _edu(self, edu: JSON) -> None:
        """Private receipts stay private."""
        if edu["type"] == "m.receipt":
            told = {
                event_id: {"m.read": kinds["m.read"]} for event_id, kinds in edu["content"].items() if "m.read" in kinds
            }
            if not told:
                return
            edu = {**edu, "content": told}
        self.tuwunel.edu(edu)

    async def _user_query(self, request: web.Request) -> web.Response:
        """Row 15: never delivered."""
        self.user_queries.append(request.match_info["user"])
        return self._refused(request) or web.json_response({})

    async def _alias_query(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        if await self.tuwunel.pusher.ask("rooms", request.match_info["alias"]):
            return web.json_response({})
        return web.json_response({"errcode": "M_NOT_FOUND", "error": "no such alias"}, status=404)

    async def _pinged(self, request: web.Request) -> web.Response:
        return self._refused(request) or web.json_response({})

    # ---- the appservice to Synapse

    async def _called(self, request: web.Request) -> web.StreamResponse:
        header = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        query = MultiDict(request.query)
        device = query.pop("org.matrix.msc3202.device_id", None)
        call = Call(
            request.method,
            request.raw_path.partition("?")[0],
            query,
            {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP},
            await request.read(),
            query.get("user_id") or self._appservice.sender,
            query.get("device_id") or device or "",
        )
        if device and "device_id" not in query:
            call = call.asking(device_id=device)
        ours = (header or query.get("access_token")) == self._appservice.as_token
        try:
            answer = await (rewrites.apply(call, self._onward, self._memory) if ours else self._onward(call))
        except aiohttp.ClientError:
            self.calls.append((request.method, request.path, 0))
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)
        self.calls.append((request.method, request.path, answer.status))
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    async def _onward(self, call: Call) -> Answer:
        assert self._http is not None
        url = URL(f"{self._synapse_url}{call.path}", encoded=True).with_query(call.query)
        async with self._http.request(call.method, url, data=call.body, headers=call.headers) as answer:
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP}
            return Answer(answer.status, await answer.read(), kept)

    async def _register(self, user_id: str) -> bool:
        body = {"type": "m.login.application_service", "username": user_id[1:].partition(":")[0], "inhibit_login": True}
        return (await self._ask("POST", "/_matrix/client/v3/register", body)).fine

    async def _wake_synapse(self) -> None:
        """Synapse may have found nobody here before and wait for a long time: a ping ends that."""
        answer = await self._ask("POST", f"/_matrix/client/v1/appservice/{quote(self._appservice.id)}/ping", {})
        if not answer.fine:
            raise RuntimeError(f"Synapse does not reach the proxy: {answer.status} {answer.body[:300]!r}")

    async def _ask(self, method: str, path: str, body: JSON) -> Answer:
        headers = {"Authorization": f"Bearer {self._appservice.as_token}", "Content-Type": "application/json"}
        sender = self._appservice.sender
        return await self._onward(Call(method, path, MultiDict(), headers, json.dumps(body).encode(), sender))
