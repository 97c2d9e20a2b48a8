"""The homeserver's client-server API, as the bridge's bot and puppets use it.

Built on mautrix's appservice API for masquerading; what is added is one error type with the homeserver's wish to wait
(mautrix drops ``Retry-After``), a deadline on every call, and no cached beliefs: mautrix's intents refuse sends on
cached power levels and never correct a stale membership.
"""

import logging
import time
from typing import Any, cast

import aiohttp
from mautrix.api import HTTPAPI, Method, Path
from mautrix.util.logging import TraceLogger

from ..ids import MXID, EventID, RoomID
from ..sight import BLIND, Sight
from .accounts import AccountCalls
from .answers import HomeserverError, mapping, part
from .caller import LimitedError, keep_retry_after
from .calls import CALLS, call_of
from .roomadmin import Content, RoomCalls

__all__ = ["CALLS", "Homeserver", "HomeserverError", "Intent", "call_of"]


class Homeserver:
    """One homeserver and the appservice's token for it.

    Args:
        url: base URL of the client-server API.
        domain: server name in user ids and aliases.
        token: the as_token.
        bot: the bot's user id (the registration's sender).
        timeout: seconds for one request.
        sight: is told of every request.
    """

    def __init__(
        self, url: str, domain: str, token: str, bot: MXID, *, timeout: float = 60.0, sight: Sight = BLIND
    ) -> None:
        self._sight = sight
        self.url = url
        self.domain = domain
        self.bot_mxid = bot
        self._token = token
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout, connect=10),
            connector=aiohttp.TCPConnector(limit=64),
            headers={"User-Agent": f"letta-bridge {HTTPAPI.default_ua}"},
            middlewares=(self._watch, keep_retry_after),
        )
        self._intents: dict[MXID, Intent] = {}
        self.bot = self.intent(bot)

    async def _watch(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Tell what every request came to."""
        began, status = time.monotonic(), 0
        try:
            response = await handler(request)
            status = response.status
            return response
        except LimitedError:
            status = 429
            raise
        finally:
            self._sight.homeserver(call_of(request.url.raw_path), status, time.monotonic() - began)

    def intent(self, mxid: MXID, device_id: str | None = None) -> "Intent":
        """The hands of one of our users. ``device_id``, once given, goes with all its later calls."""
        intent = self._intents.get(mxid)
        if intent is None:
            api = HTTPAPI(
                self.url,
                self._token,
                client_session=self._session,
                log=cast(TraceLogger, logging.getLogger("mau.http")),
            )
            api.as_user_id = cast(Any, mxid)
            intent = self._intents[mxid] = Intent(mxid, api)
        if device_id:
            intent.use_device(device_id)
        return intent

    async def versions(self) -> dict[str, Any]:
        """``GET /_matrix/client/versions``: whether it is there at all."""
        return mapping(await self.bot.request(Method.GET, Path.versions))

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


class Intent(AccountCalls, RoomCalls):
    """Calls made as one of the appservice's users. All raise :class:`HomeserverError`."""

    async def send(self, room_id: RoomID, kind: str, content: Content, txn_id: str, ts: int | None = None) -> EventID:
        """Send once under ``txn_id``; no waiting: the outbox decides about repeats.

        Args:
            ts: when it was said, in milliseconds since 1970, instead of now. For application services only
                ("Timestamp massaging" of their specification); the event's place in the room stays the newest.
        """
        path = Path.v3.rooms[room_id].send[kind][txn_id]
        query = {} if ts is None else {"ts": str(ts)}
        return EventID(part(await self.request(Method.PUT, path, dict(content), query), "event_id", str))

    async def event(self, room_id: RoomID, event_id: EventID) -> dict[str, Any]:
        """One event of a room."""
        return mapping(await self.request(Method.GET, Path.v3.rooms[room_id].event[event_id]))

    async def messages_back(self, room_id: RoomID, start: str | None, limit: int) -> dict[str, Any]:
        """A page of a room's timeline, newest first, from ``start`` (None: the newest)."""
        query = {"dir": "b", "limit": str(limit), **({"from": start} if start else {})}
        page = await self.request(Method.GET, Path.v3.rooms[room_id].messages, query=query)
        part(page, "chunk", list)  # "nothing there" must be said, not concluded
        return mapping(page)

    async def typing(self, room_id: RoomID, seconds: float) -> None:
        """Show or (with 0) end the typing notice."""
        body: dict[str, Any] = {"typing": seconds > 0}
        if seconds > 0:
            body["timeout"] = int(seconds * 1000)
        await self.request(Method.PUT, Path.v3.rooms[room_id].typing[self.mxid], body)

    async def read_receipt(self, room_id: RoomID, event_id: EventID) -> None:
        """Mark everything up to ``event_id`` as read."""
        await self.request(Method.POST, Path.v3.rooms[room_id].receipt["m.read"][event_id], {})

    async def ping(self, appservice_id: str, txn_id: str) -> None:
        """Have the homeserver call our ping endpoint; on Tuwunel also the only way out of a failed push."""
        path = Path.v1.appservice[appservice_id].ping
        await self.request(Method.POST, path, {"transaction_id": txn_id})
