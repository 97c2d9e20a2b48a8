"""The HTTP server under the appservice's routes: what cannot become a request is refused as Matrix refuses."""

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

log = logging.getLogger(__name__)

_KEEPALIVE = 330.0
"""Seconds; Tuwunel uses an idle connection for 300, and one that is just being closed would swallow a transaction."""


def matrix_error(status: int, errcode: str, message: str) -> web.Response:
    """A refusal: a Matrix error object."""
    return web.json_response({"errcode": errcode, "error": message}, status=status)


class AppserviceRunner(web.AppRunner):
    """Runs an application so that what never reaches its handlers is answered with a Matrix error object, too.

    Bodies arrive as they were sent: nothing is unpacked, so that a small one cannot become a large one.
    """

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(
            _refusing(plain.request_handler),
            request_factory=plain.request_factory,
            access_log=None,
            keepalive_timeout=_KEEPALIVE,
            auto_decompress=False,
        )


def _refusing(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:  # raised before any middleware: an expectation that nobody meets
            return matrix_error(error.status, "M_UNRECOGNIZED", error.reason)

    return handle


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read as a request, or what a handler failed on."""
        if isinstance(exc, HttpProcessingError | web.RequestPayloadError):
            status = 400
        extra = {"action": "bad_request", "status": status, "why": type(exc).__name__}
        if status < 500:
            log.info("not a request", extra=extra)
        else:
            log.error("request not handled", exc_info=exc, extra=extra)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        refusal = matrix_error(status, "M_UNKNOWN", "bad request" if status < 500 else "not handled")
        refusal.force_close()
        return refusal
