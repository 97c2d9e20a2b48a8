"""The HTTP side: finding the handler, who asks, faults, the request log, and errors as JSON."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from .accounts import Requester
from .errors import MatrixError, bad
from .events import JSON
from .faults import Faults
from .homeserver import Homeserver
from .push import BasePusher
from .reading import HierarchyPages

logger = logging.getLogger(__name__)

_BEARER = re.compile(r"Bearer\s+(\S+)\Z")


@dataclass(slots=True)
class Request:
    """One request that a client made. ``status`` is None while it runs and 0 when the answer was cut off."""

    method: str
    path: str
    user_id: str | None
    status: int | None
    time: float


@dataclass(slots=True)
class Call:
    """What a handler needs to know of its request."""

    http: web.Request
    api: "ClientApi"
    who: Requester

    @property
    def hs(self) -> Homeserver:
        """The homeserver behind the API."""
        return self.api.hs

    def path(self, name: str) -> str:
        """A percent-decoded part of the path."""
        return self.http.match_info[name]

    async def body(self, *, optional: bool = False) -> JSON:
        """The JSON object in the body; with ``optional`` an empty body counts as ``{}``."""
        raw = await self.http.read()
        if not raw and optional:
            return {}
        try:
            value = json.loads(raw)
        except ValueError as broken:
            raise bad("Content not JSON.", "M_NOT_JSON") from broken
        if not isinstance(value, dict):
            raise bad("Content must be a JSON object.", "M_BAD_JSON")
        return value

    def number(self, name: str, default: int | None = None) -> int | None:
        """An integer query parameter that is not negative."""
        text = self.http.query.get(name)
        if text is None:
            return default
        try:
            value = int(text)
        except ValueError as broken:
            raise bad(f"Query parameter {name} must be an integer", "M_INVALID_PARAM") from broken
        if value < 0:
            raise bad(f"Query parameter {name} must be a positive integer.", "M_INVALID_PARAM")
        return value

    def direction(self, default: str) -> str:
        """The ``dir`` parameter."""
        value = self.http.query.get("dir", default)
        if value not in ("b", "f"):
            raise bad("Query parameter 'dir' must be one of ['b', 'f']", "M_INVALID_PARAM")
        return value


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and path template, relative to ``/_matrix``, with its handler."""

    method: str
    path: str
    handler: Handler
    public: bool = False


class ClientApi:
    """Serves the client-server API over a Homeserver. ``crashes`` collects bugs of the fake itself."""

    def __init__(self, hs: Homeserver, pusher: BasePusher, faults: Faults, routes: list[Route]) -> None:
        self.hs = hs
        self.pusher = pusher
        self.faults = faults
        self.hierarchy = HierarchyPages()
        self.media: dict[str, tuple[bytes, str, str | None]] = {}
        self.requests: list[Request] = []
        self.crashes = pusher.crashes
        self._routes = routes

    def application(self) -> web.Application:
        """A fresh aiohttp application: one is needed for every start."""
        app = web.Application(middlewares=[self._middleware], client_max_size=4 * self.hs.flavour.upload_limit)
        for route in self._routes:
            app.router.add_route(route.method, "/_matrix" + route.path, self._endpoint(route))
        return app

    def _endpoint(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def endpoint(request: web.Request) -> web.StreamResponse:
            who = Requester("") if route.public else self._identify(request)
            result = await route.handler(Call(request, self, who))
            if isinstance(result, web.StreamResponse):
                return result
            status, content = result if isinstance(result, tuple) else (200, result)
            return web.json_response(content, status=status)

        return endpoint

    def _identify(self, request: web.Request) -> Requester:
        match = _BEARER.match(request.headers.get("Authorization", ""))
        token = match.group(1) if match else request.query.get("access_token")
        device = request.query.get("device_id")
        if device is None and self.hs.flavour.name == "tuwunel":  # Synapse 1.163 ignores the unstable name
            device = request.query.get("org.matrix.msc3202.device_id")
        return self.hs.accounts.identify(token, request.query.get("user_id"), device)

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        entry = Request(request.method, request.path, self._acting(request), None, time.monotonic())
        self.requests.append(entry)
        if delay := self.faults.delay_of(request.method, request.path):
            await asyncio.sleep(delay)
        fault = self.faults.failure_of(request.method, request.path)
        response: web.StreamResponse | None = None
        if fault is None or fault.after_processing:
            response = await self._answer(request, handler)
        if fault is not None and fault.after_processing == "disconnect":
            entry.status = 0
            self.hs.notify()
            return _cut(request)
        if fault is not None:
            response = web.json_response(fault.body(), status=fault.status, headers=fault.headers())
        assert response is not None
        entry.status = response.status
        self.hs.notify()
        return response

    def _acting(self, request: web.Request) -> str | None:
        try:
            return self._identify(request).user_id
        except MatrixError:
            return None

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except MatrixError as refusal:
            return web.json_response(refusal.body(), status=refusal.status)
        except web.HTTPRequestEntityTooLarge:
            return _error(413, "M_TOO_LARGE", "Request content is too large")
        except web.HTTPMethodNotAllowed:
            return _error(405, "M_UNRECOGNIZED", "Unrecognized request")
        except web.HTTPNotFound:
            return _error(404, "M_UNRECOGNIZED", "Unrecognized request")
        except ConnectionError:  # the client went away before its request was complete: nobody reads the answer
            return _error(400, "M_UNKNOWN", "Client disconnected")
        except Exception as bug:  # the boundary: a bug of the fake, raised when it closes
            logger.exception("the fake homeserver failed", extra={"method": request.method, "path": request.path})
            self.crashes.append(bug)
            return _error(500, "M_UNKNOWN", "Internal server error")


def _error(status: int, errcode: str, text: str) -> web.Response:
    return web.json_response({"errcode": errcode, "error": text}, status=status)


def _cut(request: web.Request) -> web.StreamResponse:
    """Close the connection instead of answering."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
