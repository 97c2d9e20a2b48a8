"""The bridge's own HTTP interface, for webhooks and scripts: on an address of its own, with a token of its own.

``POST /_letta_bridge/v1/agents/refresh`` asks for a comparison with Letta's list now. Requests made while one runs
share the next; on several replicas any may be asked.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ..db.database import DATABASE_ERRORS
from ..mirror.refresh import PassResult, Refreshes

log = logging.getLogger(__name__)

REFRESH = "/_letta_bridge/v1/agents/refresh"
_LONGEST_BODY = 16 * 1024
_WAIT_SECONDS = 30.0
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ControlServer:
    """Serves the interface. A port that cannot be had is said in the log and keeps no message waiting.

    Args:
        token: what callers send as ``Authorization: Bearer``; None: nothing is served.
        host: the address to listen on.
        port: the port; 0 takes a free one.
        refreshes: takes the requests.
        wait_seconds: the longest that ``?wait=1`` waits.
    """

    def __init__(
        self, token: str | None, host: str, port: int, refreshes: Refreshes, wait_seconds: float = _WAIT_SECONDS
    ) -> None:
        self._token = None if token is None else token.encode()
        self._host = host
        self._port = port
        self._refreshes = refreshes
        self._wait_seconds = wait_seconds
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port listened on; 0 while nobody listens."""
        return int(self._runner.addresses[0][1]) if self._runner is not None and self._runner.addresses else 0

    async def start(self) -> None:
        """Begin to serve, if there is a token."""
        if self._token is None:
            return
        app = web.Application(client_max_size=_LONGEST_BODY, middlewares=[self._guarded])
        app.router.add_post(REFRESH, self._refresh)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            extra = {"action": "control_failed", "address": f"{self._host}:{self._port}", "why": error.strerror}
            log.error("the control interface cannot be served", extra=extra)

    async def stop(self) -> None:
        """Serve no more; whoever waits for a pass is cut off."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Who has no token learns nothing, not even which paths there are."""
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.casefold() != "bearer" or not given.strip():
            return _error(401, "the token of control.token is needed, as 'Authorization: Bearer …'")
        assert self._token is not None
        if not hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token):
            return _error(403, "that is not the token of control.token")
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _error(error.status, error.reason)
        except DATABASE_ERRORS:
            log.warning("a refresh could not be noted", exc_info=True, extra={"action": "control_database"})
            return _error(503, "the database does not answer; try again")

    async def _refresh(self, request: web.Request) -> web.Response:
        await request.read()  # what a webhook sends along means nothing here; too much is refused
        number = await self._refreshes.request()
        if request.query.get("wait") not in ("1", "true"):
            return web.json_response({"pass": number}, status=202)
        result = await self._refreshes.wait(number, self._wait_seconds)
        if result is None:
            return web.json_response({"pass": number}, status=202)
        return web.json_response(_shown(result))


def _shown(result: PassResult) -> dict[str, Any]:
    return {"pass": result.number, **result.changes, "trouble": result.trouble}


def _error(status: int, text: str) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return web.json_response({"error": text}, status=status, headers=headers)
