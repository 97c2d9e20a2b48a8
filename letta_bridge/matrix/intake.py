"""The appservice's HTTP side: transactions, queries, pings, and health.

A transaction is answered 200 after its events are committed, and work starts after that. Only a failing store is
answered 5xx: any other error would make the homeserver send the same batch for ever (on Tuwunel it never splits or
drops one). Transaction ids are not used: Tuwunel's repeat, and Synapse's start again after a reset.
"""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from aiohttp import web

from .. import faults
from ..db.inbox import ECHO, Arrival, arrival
from ..ids import CONTENT_KEY, MXID, RoomID
from ..sight import BLIND, Sight
from .salvage import salvage
from .server import matrix_error as _error

log = logging.getLogger(__name__)

_NAME = re.compile(r'"txn":"(lb[A-Za-z0-9_-]{22})"')

T = TypeVar("T")
Record = Callable[[Sequence[Arrival]], Awaitable[set[RoomID]]]
UserQuery = Callable[[MXID], Awaitable[bool]]

_SPOKEN = frozenset(("m.room.message", "m.room.encrypted", "m.room.redaction", "m.reaction", "m.sticker"))
_PARSE_IN_THREAD = 256 * 1024
_QUERY_SECONDS = 20.0
_MALFORMED_KEPT = 100
"""Dead letters of one transaction: homeservers push at most a hundred events at once."""


class Intake:
    """Serves the homeserver.

    Args:
        hs_token: the token that the homeserver must present.
        record: stores a batch in one commit; raises when it could not.
        wake: called with the rooms that got something new, after the commit.
        user_exists: whether a user id of ours belongs to an agent; it is made ready before the answer.
        is_ours: whether a user id is the bot's or a puppet's.
        health: what is known of the bridge's health, with whether it is ``ready``.
        body_limit: bytes that a transaction may have.
        serving: whether this process can do work now (for load balancers).
        store_seconds: what storing may take before the homeserver is let try again, perhaps with a replica that has a
            database. If the first try is stored in the end after all, the events of the second are known already.
        sight: is told of every transaction.
    """

    def __init__(
        self,
        *,
        hs_token: str,
        record: Record,
        wake: Callable[[RoomID], None],
        user_exists: UserQuery,
        is_ours: Callable[[MXID], bool],
        health: Callable[[], Awaitable[Mapping[str, Any]]],
        body_limit: int,
        serving: Callable[[], bool] = lambda: True,
        store_seconds: float = 10.0,
        sight: Sight = BLIND,
    ) -> None:
        self._token = hs_token.encode()
        self._record = record
        self._wake = wake
        self._user_exists = user_exists
        self._is_ours = is_ours
        self._health = health
        self._serving = serving
        self._store_seconds = store_seconds
        self._sight = sight
        self._refusing = False
        self._pings: dict[str, asyncio.Event] = {}
        self.app = web.Application(client_max_size=body_limit, middlewares=[self._watch, _matrix_errors])
        self._add_routes(self.app.router)

    def _add_routes(self, router: web.UrlDispatcher) -> None:
        for prefix in ("/_matrix/app/v1", ""):  # the second: homeservers older than spec v1.4
            router.add_put(prefix + "/transactions/{txn}", self._transaction)
            router.add_get(prefix + "/users/{user}", self._user)
            router.add_get(prefix + "/rooms/{alias}", self._alias)
        router.add_post("/_matrix/app/v1/ping", self._ping)
        router.add_get("/_matrix/mau/live", self._live)
        router.add_get("/_matrix/mau/ready", self._is_ready)
        router.add_get("/_matrix/mau/serving", self._is_serving)
        for prefix in ("/_matrix/app/v1/thirdparty", "/_matrix/app/unstable/thirdparty"):
            for route in ("/protocol/{protocol}", "/user/{protocol}", "/location/{protocol}", "/user", "/location"):
                router.add_get(prefix + route, self._thirdparty)

    def refuse(self) -> None:
        """From now on (shutdown) answer transactions 503: the homeserver keeps them."""
        self._refusing = True

    def expect_ping(self, txn_id: str) -> asyncio.Event:
        """An event that is set when the homeserver's ping with this transaction id arrives here."""
        return self._pings.setdefault(txn_id, asyncio.Event())

    def forget_ping(self, txn_id: str) -> None:
        """No longer wait for it."""
        self._pings.pop(txn_id, None)

    @web.middleware
    async def _watch(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if "txn" not in request.match_info:
            return await handler(request)
        began = time.monotonic()
        response = await handler(request)
        self._sight.transaction(response.status, time.monotonic() - began)
        return response

    # -- routes

    async def _transaction(self, request: web.Request) -> web.Response:
        self._authorize(request)
        if self._refusing:
            return _error(503, "M_UNKNOWN", "shutting down")
        arrivals = [self._echo(one) for one in await _parsed(request, _arrivals)]
        faults.reach("intake.read")
        storing = asyncio.ensure_future(self._record(arrivals))
        try:
            async with asyncio.timeout(self._store_seconds):
                rooms = await asyncio.shield(storing)
        except Exception:  # whatever the store says, the homeserver must keep the batch
            log.exception("transaction not stored", extra={"action": "intake_failed", "events": len(arrivals)})
            storing.add_done_callback(self._stored_late)
            return _error(500, "M_UNKNOWN", "not stored, send again")
        faults.reach("intake.committed")
        self._sight.arrived(one.state for one in arrivals)
        for room in rooms:
            self._wake(room)
        faults.reach("intake.woken")
        return web.json_response({})

    def _stored_late(self, storing: "asyncio.Future[set[RoomID]]") -> None:
        """What was given up may have been stored in the end: the next try will find nothing new."""
        if not storing.cancelled() and storing.exception() is None:
            for room in storing.result():
                self._wake(room)

    def _echo(self, one: Arrival) -> Arrival:
        """What our users said comes back to us: it is remembered, and starts nothing. Only its name in the outbox is
        kept: somebody may react to it before it stands there which event it became.
        """
        if one.state == "new" and one.type in _SPOKEN and self._is_ours(one.sender):
            named = _NAME.search(one.body)
            body = json.dumps({"content": {CONTENT_KEY: {"txn": named[1]}}}) if named else ""
            return replace(one, state="skipped", decision=ECHO, body=body)
        return one

    async def _user(self, request: web.Request) -> web.Response:
        self._authorize(request)
        user = MXID(request.match_info["user"])
        if self._is_ours(user):
            try:
                async with asyncio.timeout(_QUERY_SECONDS):
                    if await self._user_exists(user):
                        return web.json_response({})
            except Exception:  # the homeserver only needs a no; the invitation itself is handled later
                log.warning("user query failed", exc_info=True, extra={"action": "user_query_failed"})
        return _error(404, "M_NOT_FOUND", "no such agent")

    async def _alias(self, request: web.Request) -> web.Response:
        self._authorize(request)
        return _error(404, "M_NOT_FOUND", "aliases are made with their rooms")

    async def _thirdparty(self, request: web.Request) -> web.Response:
        self._authorize(request)
        return _error(404, "M_NOT_FOUND", "no other network is bridged")

    async def _ping(self, request: web.Request) -> web.Response:
        self._authorize(request)
        body = await _parsed(request, _json)
        txn_id = body.get("transaction_id") if isinstance(body, Mapping) else None
        if isinstance(txn_id, str) and (waiting := self._pings.get(txn_id)):
            waiting.set()
        return web.json_response({})

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _is_ready(self, _: web.Request) -> web.Response:
        report = await self._health()
        return web.json_response(report, status=200 if report["ready"] else 503)

    async def _is_serving(self, _: web.Request) -> web.Response:
        """For whoever decides which replica gets requests. Not the same as ready: readiness is proven by the
        homeserver's ping, which comes through the balancer, so a balancer that waited for it would wait for ever.
        """
        serving = self._serving() and not self._refusing
        return web.json_response({"serving": serving}, status=200 if serving else 503)

    def _authorize(self, request: web.Request) -> None:
        """Every token that is presented must be right; compared in constant time."""
        headers = request.headers.getall("Authorization", [])
        presented = list(request.query.getall("access_token", []))
        if not headers and not presented:
            raise _Refused(401, "M_MISSING_TOKEN", "no hs_token")
        for header in headers:
            scheme, _, token = header.partition(" ")
            presented.append(token.strip() if scheme.lower() == "bearer" else "")
        results = [hmac.compare_digest(token.encode("utf-8", "replace"), self._token) for token in presented]
        if not all(results):
            raise _Refused(403, "M_FORBIDDEN", "wrong hs_token")


class _Refused(Exception):
    def __init__(self, status: int, errcode: str, message: str) -> None:
        super().__init__(message)
        self.response = _error(status, errcode, message)


@web.middleware
async def _matrix_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every refusal is a Matrix error object."""
    try:
        return await handler(request)
    except _Refused as refusal:
        return refusal.response
    except web.HTTPRequestEntityTooLarge:
        # a poison answer on both homeservers, hence the alarm: the batch comes again until the limit is raised
        log.critical("transaction over the body limit", extra={"action": "intake_too_large"})
        return _error(413, "M_TOO_LARGE", "over appservice.body_limit_mib")
    except web.HTTPException as error:  # no such path, or not with this method
        answer = _error(error.status, "M_UNRECOGNIZED", error.reason)
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = error.headers["Allow"]
        return answer


async def _parsed(request: web.Request, parse: Callable[[bytes], T]) -> T:
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise _Refused(415, "M_NOT_JSON", "bodies are not taken compressed")  # no homeserver compresses
    raw = await request.read()
    if len(raw) > _PARSE_IN_THREAD:
        return await asyncio.to_thread(parse, raw)
    return parse(raw)


def _json(raw: bytes) -> object:
    """The body, or None when it is no JSON."""
    try:
        return json.loads(raw) if raw else None
    except (ValueError, RecursionError):
        return None


def _events(raw: bytes) -> list[Any]:
    """What is to be stored. Garbage counts as empty: a homeserver that is told of it would send it for ever."""
    body = _json(raw)
    if body is None:
        events = salvage(raw)
        log.error("body is no JSON", extra={"action": "intake_garbage", "bytes": len(raw), "events": len(events)})
        return events
    found = body.get("events") if isinstance(body, Mapping) else None
    return found if isinstance(found, list) else []


def _arrivals(raw: bytes) -> list[Arrival]:
    """The rows of a transaction. Of what is no event only so much is kept as shows what was wrong."""
    found: list[Arrival] = []
    malformed = dropped = 0
    for event in _events(raw):
        no_event = not isinstance(event, dict) or not isinstance(event.get("event_id"), str)
        if no_event and malformed >= _MALFORMED_KEPT:
            dropped += 1
            continue
        malformed += no_event
        found.append(arrival(event))
    if dropped:
        log.error("a transaction holds more rubbish than is kept", extra={"action": "intake_rubbish", "count": dropped})
    return found
