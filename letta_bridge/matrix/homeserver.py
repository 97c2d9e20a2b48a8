"""The homeserver's client-server API, as the bridge's bot and puppets use it.

Built on mautrix's appservice API for masquerading; what is added is one error type with the homeserver's wish to wait
(mautrix drops ``Retry-After``), a deadline on every call, and no cached beliefs: mautrix's intents refuse sends on
cached power levels and never correct a stale membership.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import aiohttp
from mautrix.api import HTTPAPI, MediaPath, Method, Path, PathBuilder
from mautrix.errors import MatrixConnectionError, MatrixRequestError
from mautrix.util.logging import TraceLogger

from ..ids import MXID, EventID, RoomID
from ..sight import BLIND, Sight

log = logging.getLogger(__name__)

T = TypeVar("T")
Content = Mapping[str, Any]

_LONGEST_WAIT = 300.0
_LONGEST_PATIENCE = 30.0
_WAITS = 6
_MAY_QUOTE = frozenset(("", "M_BAD_JSON", "M_NOT_JSON"))
"""Error codes whose words may repeat what was sent: a proxy's page, a parser's complaint."""
_IN_ROOMS = {
    "send": "send",
    "state": "state",
    "join": "join",
    "leave": "leave",
    "invite": "invite",
    "typing": "typing",
    "receipt": "receipt",
    "messages": "read",
    "event": "read",
    "joined_members": "read",
}
_ELSEWHERE = {
    "createRoom": "create_room",
    "register": "register",
    "profile": "profile",
    "devices": "device",
    "upload": "upload",
    "directory": "read",
    "versions": "read",
    "appservice": "ping",
}
CALLS = frozenset((*_IN_ROOMS.values(), *_ELSEWHERE.values(), "other"))
"""What :func:`call_of` can say."""


def call_of(path: str) -> str:
    """What a request asks of the homeserver, as one word of :data:`CALLS`."""
    parts = path.split("/", 7)  # "", "_matrix", "client", "v3", "rooms", id, "send", …
    if len(parts) > 6 and parts[4] == "rooms":
        return _IN_ROOMS.get(parts[6], "other")
    return _ELSEWHERE.get(parts[4] if len(parts) > 4 else parts[-1], "other")


class HomeserverError(Exception):
    """A call that the homeserver refused or did not answer.

    Args:
        status: HTTP status; 0 when there was no answer at all.
        errcode: Matrix error code, or ``""``.
        message: the homeserver's own words; left out of the error's text where they may quote what was sent.
        retry_after: seconds it asked to wait (429), or None.
    """

    def __init__(self, status: int, errcode: str, message: str, retry_after: float | None = None) -> None:
        words = "" if status and errcode in _MAY_QUOTE else message
        super().__init__(" ".join(part for part in (str(status or "no answer"), errcode, words) if part))
        self.status = status
        self.errcode = errcode
        self.message = message
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """The same call may succeed later: nothing is known about what was asked.

        So is a refusal of the token (a registration that is being reloaded), and any answer without a Matrix error
        code: it is not the homeserver's but that of a proxy in front of it.
        """
        if self.status in (0, 401, 408, 429) or self.status >= 500:
            return True
        return not self.errcode and self.status != 413

    @property
    def forbidden(self) -> bool:
        """Refused by the room's or the server's rules."""
        return self.status == 403 or self.errcode in ("M_FORBIDDEN", "M_EXCLUSIVE")

    @property
    def unknown_device(self) -> bool:
        """The masqueraded device does not exist (Synapse and Tuwunel say it differently)."""
        return self.errcode == "M_UNKNOWN_DEVICE" or (
            self.errcode == "M_INVALID_PARAM" and "device" in self.message.lower()
        )


class _LimitedError(Exception):
    """Carries a 429 with its wish through mautrix, which would drop the wish."""

    def __init__(self, retry_after: float, message: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after


async def _keep_retry_after(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    response = await handler(request)
    if response.status == 429:
        raise _LimitedError(_wish(response.headers.get("Retry-After"), await response.read()), "rate limited")
    return response


def _wish(header: str | None, body: bytes) -> float:
    """Seconds to wait: the header (spec v1.10), else ``retry_after_ms``, else one second; bounded."""
    value = 1.0
    with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
        value = json.loads(body)["retry_after_ms"] / 1000
    with contextlib.suppress(ValueError, TypeError):  # no header, or one with a date
        value = float(cast(str, header))
    return min(max(value, 0.05), _LONGEST_WAIT) if value == value else 1.0


def _mapping(answer: Any) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {}


def _part(answer: Any, key: str, kind: type[T]) -> T:
    """What the specification says is in an answer. Without it somebody else answered: nothing is known then."""
    value = _mapping(answer).get(key)
    if not isinstance(value, kind):
        raise HomeserverError(502, "", f"an answer without {key}")
    return value


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
            middlewares=(self._watch, _keep_retry_after),
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
        except _LimitedError:
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
        return _mapping(await self.bot.request(Method.GET, Path.versions))

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


class Intent:
    """Calls made as one of the appservice's users. All raise :class:`HomeserverError`."""

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
        except _LimitedError as error:
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

    # -- accounts

    async def register(self) -> None:
        """Make this user exist (``m.login.application_service``); no error when it does already."""
        body = {
            "type": "m.login.application_service",
            "username": self.mxid[1:].partition(":")[0],
            "inhibit_login": True,  # MSC4190: no device is made, and Tuwunel refuses without
        }
        api = HTTPAPI(self._api.base_url, self._api.token, client_session=self._api.session, log=self._api.log)
        try:
            await Intent(self.mxid, api).patiently(Method.POST, Path.v3.register, body)
        except HomeserverError as error:
            if error.errcode != "M_USER_IN_USE":
                raise

    async def make_device(self, device_id: str, name: str) -> None:
        """Create or update a device without login (MSC4190)."""
        self.forget_device()
        await self.patiently(Method.PUT, Path.v3.devices[device_id], {"display_name": name})
        self.use_device(device_id)

    async def set_displayname(self, name: str) -> None:
        """Show ``name`` everywhere."""
        await self.patiently(Method.PUT, Path.v3.profile[self.mxid].displayname, {"displayname": name})

    async def set_avatar(self, mxc: str) -> None:
        """Show the picture ``mxc`` everywhere; ``""`` shows none."""
        await self.patiently(Method.PUT, Path.v3.profile[self.mxid].avatar_url, {"avatar_url": mxc})

    async def upload(self, data: bytes, content_type: str, name: str) -> str:
        """Upload media; returns its ``mxc://`` URI."""
        headers = {"Content-Type": content_type}
        answer = await self.patiently(Method.POST, MediaPath.v3.upload, data, headers, {"filename": name})
        return str(answer.get("content_uri", ""))

    # -- rooms

    async def create_room(self, body: Content) -> RoomID:
        """``POST /createRoom``."""
        answer = await self.patiently(Method.POST, Path.v3.createRoom, dict(body))
        return RoomID(_part(answer, "room_id", str))

    async def resolve_alias(self, alias: str) -> RoomID | None:
        """The room behind an alias; None only when the homeserver says for certain that there is none."""
        try:
            answer = await self.patiently(Method.GET, Path.v3.directory.room[alias])
        except HomeserverError as error:
            if error.status == 404 and error.errcode == "M_NOT_FOUND":
                return None
            raise
        return RoomID(_part(answer, "room_id", str))

    async def join(self, room_id: RoomID) -> None:
        """Join; being joined already is no error."""
        _part(await self.patiently(Method.POST, Path.v3.rooms[room_id].join), "room_id", str)

    async def leave(self, room_id: RoomID, reason: str = "") -> None:
        """Leave, or refuse an invitation; not being there is no error."""
        try:
            await self.patiently(Method.POST, Path.v3.rooms[room_id].leave, {"reason": reason} if reason else {})
        except HomeserverError as error:
            if error.status not in (403, 404):
                raise

    async def invite(self, room_id: RoomID, user: MXID, reason: str = "") -> None:
        """Invite; whoever is joined or invited already is no error."""
        body = {"user_id": user, **({"reason": reason} if reason else {})}
        try:
            await self.patiently(Method.POST, Path.v3.rooms[room_id].invite, body)
        except HomeserverError as error:
            if not error.forbidden or await self.membership(room_id, user) not in ("join", "invite"):
                raise

    async def membership(self, room_id: RoomID, user: MXID) -> str | None:
        """What the room's state says of ``user``; None when that cannot be read."""
        try:
            answer = await self.request(Method.GET, Path.v3.rooms[room_id].state["m.room.member"][user])
        except HomeserverError:
            return None
        value = _mapping(answer).get("membership")
        return value if isinstance(value, str) else None

    async def state(self, room_id: RoomID) -> list[dict[str, Any]]:
        """The whole present state of a room this user is in."""
        events = await self.patiently(Method.GET, Path.v3.rooms[room_id].state)
        if not isinstance(events, list):
            raise HomeserverError(502, "", "a state that is no list")
        return [event for event in events if isinstance(event, dict)]

    async def joined_members(self, room_id: RoomID) -> list[MXID]:
        """Who is in a room, asked as somebody who is in it."""
        answer = await self.request(Method.GET, Path.v3.rooms[room_id].joined_members)
        return [MXID(mxid) for mxid in _part(answer, "joined", dict)]

    async def set_state(self, room_id: RoomID, kind: str, key: str, content: Content) -> EventID:
        """Set one state event."""
        path = Path.v3.rooms[room_id].state[kind] if not key else Path.v3.rooms[room_id].state[kind][key]
        return EventID(_part(await self.patiently(Method.PUT, path, dict(content)), "event_id", str))

    # -- events

    async def send(self, room_id: RoomID, kind: str, content: Content, txn_id: str) -> EventID:
        """Send once under ``txn_id``; no waiting: the outbox decides about repeats."""
        path = Path.v3.rooms[room_id].send[kind][txn_id]
        return EventID(_part(await self.request(Method.PUT, path, dict(content)), "event_id", str))

    async def event(self, room_id: RoomID, event_id: EventID) -> dict[str, Any]:
        """One event of a room."""
        return _mapping(await self.request(Method.GET, Path.v3.rooms[room_id].event[event_id]))

    async def messages_back(self, room_id: RoomID, start: str | None, limit: int) -> dict[str, Any]:
        """A page of a room's timeline, newest first, from ``start`` (None: the newest)."""
        query = {"dir": "b", "limit": str(limit), **({"from": start} if start else {})}
        page = await self.request(Method.GET, Path.v3.rooms[room_id].messages, query=query)
        _part(page, "chunk", list)  # "nothing there" must be said, not concluded
        return _mapping(page)

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
