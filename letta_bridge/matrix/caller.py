"""One request as one of the appservice's users, with the homeserver's wish to wait."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any, cast

import aiohttp
from mautrix.api import HTTPAPI, Method, PathBuilder
from mautrix.errors import MatrixConnectionError, MatrixRequestError

from ..ids import MXID
from .answers import HomeserverError

log = logging.getLogger(__name__)

_LONGEST_WAIT = 300.0
_LONGEST_PATIENCE = 30.0
_WAITS = 6


class LimitedError(Exception):
    """Carries a 429 with its wish through mautrix, which would drop the wish."""

    def __init__(self, retry_after: float, message: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after


async def keep_retry_after(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """The middleware of the session: a 429 leaves mautrix as :class:`LimitedError`."""
    response = await handler(request)
    if response.status == 429:
        raise LimitedError(_wish(response.headers.get("Retry-After"), await response.read()), "rate limited")
    return response


def _wish(header: str | None, body: bytes) -> float:
    """Seconds to wait: the header (spec v1.10), else ``retry_after_ms``, else one second; bounded."""
    value = 1.0
    with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
        value = json.loads(body)["retry_after_ms"] / 1000
    with contextlib.suppress(ValueError, TypeError):  # no header, or one with a date
        value = float(cast(str, header))
    return min(max(value, 0.05), _LONGEST_WAIT) if value == value else 1.0


class Caller:
    """Makes requests as one of the appservice's users. All raise :class:`HomeserverError`."""

    def __init__(self, mxid: MXID, api: HTTPAPI) -> None:
        self.mxid = mxid
        self._api = api

    def use_device(self, device_id: str) -> None:
        """Send this device's id with every call: Synapse then remembers transaction ids over its restarts."""
        self._api.as_device_id = cast(Any, device_id)

    @property
    def has_device(self) -> bool:
        """Whether calls name a device."""
        return self._api.as_device_id is not None

    def forget_device(self) -> None:
        """Stop naming a device (it does not exist yet, or any more)."""
        self._api.as_device_id = None

    async def request(
        self,
        method: Method,
        path: PathBuilder | str,
        content: Any = None,
        query: Mapping[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """One call, made once; returns the parsed JSON."""
        try:
            answer = await self._api.request(method, path, content, headers, dict(query or {}), retry_count=0)
        except LimitedError as error:
            raise HomeserverError(429, "M_LIMIT_EXCEEDED", str(error), error.retry_after) from None
        except MatrixRequestError as error:
            message = error.message or getattr(error, "text", "") or ""
            log.debug("what the homeserver said", extra={"action": "homeserver_said", "text": message[:300]})
            raise HomeserverError(error.http_status, error.errcode or "", message[:300]) from None
        except (MatrixConnectionError, aiohttp.ClientError, TimeoutError, OSError) as error:
            raise HomeserverError(0, "", f"{type(error).__name__}: {error}") from None
        except (ValueError, TypeError, AttributeError) as error:  # no JSON, or no object where mautrix expects one
            raise HomeserverError(502, "", f"not a Matrix answer: {error}") from None
        return cast(Any, answer)

    async def patiently(
        self,
        method: Method,
        path: PathBuilder | str,
        content: Any = None,
        headers: dict[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Any:
        """One call for work that nobody waits for: a rate limit is waited out, a few times."""
        for _ in range(_WAITS):
            try:
                return await self.request(method, path, content, query, headers)
            except HomeserverError as error:
                if error.status != 429:
                    raise
                await asyncio.sleep(min(error.retry_after or 1.0, _LONGEST_PATIENCE))
        return await self.request(method, path, content, query, headers)
