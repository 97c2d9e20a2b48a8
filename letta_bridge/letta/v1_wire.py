"""The two requests that every message costs, straight over aiohttp.

letta-client builds, copies and validates so much around each request that these two would take half of the bridge's
processor time. Their paths and fields are held to Letta's OpenAPI document by the tests, as everything else is.
"""

import asyncio
import io
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from .. import __version__
from .errors import Delivery, Kind, LettaError
from .v1_errors import clean, from_answer
from .v1_stream import Json, read_sse

_LARGE = 200_000
"""Bytes of JSON above which parsing leaves the event loop."""
_ERROR_BYTES = 65_536
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
T = TypeVar("T")


async def parsed(body: bytes) -> Any:
    """The JSON value of a body; raises ``ValueError``."""
    return json.loads(body) if len(body) < _LARGE else await asyncio.to_thread(json.loads, body)


def elements(body: bytes, take: Callable[[Any], T]) -> list[T]:
    """What ``take`` makes of each element of a JSON array. Raises ``ValueError`` when it is none.

    One by one: parsing megabytes at once would hold the interpreter, and with it the event loop, from any thread.
    """
    text = body.decode()
    taken: list[T] = []
    at = _blank(text, 0)
    if text[at : at + 1] != "[":
        raise ValueError("not a JSON array")
    if text.startswith("]", _blank(text, at + 1)):
        return taken
    while text[at : at + 1] in ("[", ","):
        value, at = _DECODER.raw_decode(text, _blank(text, at + 1))
        taken.append(take(value))
        at = _blank(text, at)
    if text[at : at + 1] != "]":
        raise ValueError("not a JSON array")
    return taken


def _blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None
    return match.end()


def _proxy_for(address: str) -> URL | None:
    """The proxy that the environment names for an address."""
    url = URL(address)
    proxy = getproxies().get(url.scheme)
    return None if not proxy or proxy_bypass(url.host or "") else URL(proxy if "://" in proxy else f"http://{proxy}")


class Wire:
    """Requests to one Letta V1 server. Raises :class:`LettaError` for everything that goes wrong, and repeats nothing
    that Letta may have taken.

    Args:
        url: base URL without ``/v1``.
        api_key: password or key, or None.
        request_timeout: seconds for an answer that is no stream.
        connect_timeout: seconds to establish a connection.
        silence: seconds without a byte after which a stream counts as broken.
        connections: how many may be open at once.
        idle: seconds for which an unused connection is kept.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        request_timeout: float,
        connect_timeout: float,
        silence: float,
        connections: int,
        idle: float,
    ) -> None:
        self._base = f"{url.rstrip('/')}/v1/"
        self._key = api_key
        self._headers = {"User-Agent": f"letta-bridge/{__version__}"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=request_timeout, sock_connect=connect_timeout)
        self._patience = aiohttp.ClientTimeout(
            total=None, connect=request_timeout, sock_connect=connect_timeout, sock_read=silence
        )
        self._connections = connections
        self._idle = idle
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close every connection, those of open streams included."""
        if self._session is not None:
            await self._session.close()

    async def get(self, *path: str, query: Mapping[str, str]) -> Any:
        """The JSON that a ``GET`` is answered with."""
        async with self._request("GET", path, timeout=self._timeout, params=query) as response:
            try:
                return await parsed(await response.read())
            except (ValueError, RecursionError) as error:
                raise LettaError(Kind.INTERNAL, "the answer is no JSON") from error

    async def stream(self, *path: str, body: Mapping[str, Any]) -> AsyncGenerator[Json, None]:
        """The messages of the event stream that a ``POST`` is answered with."""
        # compressed by a proxy, a stream would come in lumps
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        # as a file: aiohttp sends that in pieces, so that megabytes do not hold up the loop
        data = io.BytesIO(json.dumps(body).encode())
        async with (
            self._request("POST", path, timeout=self._patience, data=data, headers=headers) as response,
            aclosing(read_sse(response.content.iter_any())) as messages,
        ):
            try:
                async for message in messages:
                    yield message
            except ValueError as error:
                raise LettaError(Kind.INTERRUPTED, "the stream holds something that is no JSON") from error

    @asynccontextmanager
    async def _request(self, method: str, path: tuple[str, ...], **options: Any) -> AsyncGenerator[Any, None]:
        url = self._base + "/".join(quote(part, safe="") for part in path)
        try:
            # a redirect would lose the key, or turn the POST into a GET
            async with self._opened().request(method, url, allow_redirects=False, **options) as response:
                if 300 <= response.status < 400:
                    detail = f"HTTP {response.status}: letta.url is redirected; set it to where it leads"
                    raise LettaError(Kind.UNREACHABLE, detail, delivery=Delivery.NO)
                if response.status >= 400:
                    raise await self._refusal(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failure(error) from error

    def _opened(self) -> aiohttp.ClientSession:
        """The session, made within the running loop."""
        if self._session is None:
            # not trust_env: that looks for a proxy anew for every request, and refuses a key beside a netrc file
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=self._idle),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                proxy=_proxy_for(self._base),
            )
        return self._session

    async def _refusal(self, response: aiohttp.ClientResponse) -> LettaError:
        raw = b""
        while len(raw) < _ERROR_BYTES and (more := await response.content.read(_ERROR_BYTES - len(raw))):
            raw += more
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = raw.decode("utf-8", "replace")
        return from_answer(response.status, body, response.headers.get("Retry-After", ""), self._key)

    def _failure(self, error: Exception) -> LettaError:
        """Only what happens before there is a connection proves that Letta has nothing."""
        name = type(error).__name__
        if isinstance(error, aiohttp.ClientConnectorError):
            detail = clean(f"{name}: {error}", self._key)
            return LettaError(Kind.UNREACHABLE, detail, delivery=Delivery.NO, refused=True)
        if isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
            return LettaError(Kind.UNREACHABLE, name, delivery=Delivery.NO)
        return LettaError(Kind.UNREACHABLE, name, delivery=Delivery.UNKNOWN)
