"""Routes about rooms: creating, membership, state, sending, reading, notifications, spaces."""

import json
from typing import Any

from . import membership
from .client_api import Call, Route
from .creation import create_room
from .errors import bad, internal
from .events import JSON
from .reading import Reader

_RECEIPTS = ("m.read", "m.read.private", "m.fully_read")


async def create(call: Call) -> JSON:
    """POST /createRoom."""
    return {"room_id": create_room(call.hs, call.who, await call.body())}


async def join(call: Call) -> JSON:
    """POST /join/{room or alias}; the appservice is asked for unknown aliases of its namespace."""
    target, body = call.path("room"), await call.body(optional=True)
    if target.startswith("#") and target not in call.hs.aliases and call.hs.appservice.owns_alias(target):
        await call.api.pusher.ask("rooms", target)
    return {"room_id": membership.join(call.hs, call.who, target, _reason(body))}


async def join_room(call: Call) -> JSON:
    """POST /rooms/{room}/join."""
    body = await call.body(optional=True)
    room = call.path("room")
    target = room if room.startswith("!") else "!" + room
    return {"room_id": membership.join(call.hs, call.who, target, _reason(body))}


def _reason(body: JSON) -> JSON:
    return {"reason": body["reason"]} if "reason" in body else {}


def _target(body: JSON) -> str:
    if "user_id" not in body:
        raise bad("Missing params: ['user_id']", "M_MISSING_PARAM")
    return str(body["user_id"])


async def invite(call: Call) -> JSON:
    """POST /rooms/{room}/invite."""
    body = await call.body()
    membership.invite(call.hs, call.who, call.path("room"), _target(body), body.get("reason"))
    return {}


async def leave(call: Call) -> JSON:
    """POST /rooms/{room}/leave."""
    membership.leave(call.hs, call.who, call.path("room"), _reason(await call.body(optional=True)))
    return {}


async def remove(call: Call) -> JSON:
    """POST /rooms/{room}/{kick,ban,unban}."""
    body = await call.body()
    action = call.path("action")
    membership.remove(call.hs, call.who, call.path("room"), _target(body), action, _reason(body))
    return {}


async def forget(call: Call) -> JSON:
    """POST /rooms/{room}/forget."""
    membership.forget(call.hs, call.who, call.path("room"))
    return {}


async def joined_rooms(call: Call) -> JSON:
    """GET /joined_rooms."""
    user = call.who.user_id
    return {"joined_rooms": [room.room_id for room in call.hs.rooms.values() if room.membership(user) == "join"]}


# ---- writing


async def send(call: Call) -> JSON:
    """PUT /rooms/{room}/send/{type}/{txn}."""
    body = await call.body()
    event_id = call.hs.send(call.who, call.path("room"), call.path("type"), call.path("txn"), body, _time(call))
    return {"event_id": event_id}


async def redact(call: Call) -> JSON:
    """PUT /rooms/{room}/redact/{event}/{txn}, or POST without a transaction id."""
    body = await call.body(optional=True)
    txn = call.http.match_info.get("txn")
    return {"event_id": call.hs.redact(call.who, call.path("room"), call.path("event"), txn, body)}


async def put_state(call: Call) -> JSON:
    """PUT /rooms/{room}/state/{type}/{key}."""
    body = await call.body()
    key = call.http.match_info.get("key", "")
    return {"event_id": call.hs.put_state(call.who, call.path("room"), call.path("type"), key, body, _time(call))}


def _time(call: Call) -> int | None:
    """What the appservice says when it happened; of everybody else this is not even read."""
    return call.number("ts") if call.who.appservice else None


# ---- reading


async def full_state(call: Call) -> list[JSON]:
    """GET /rooms/{room}/state."""
    return Reader(call.hs, call.who).full_state(call.path("room"))


async def one_state(call: Call) -> JSON:
    """GET /rooms/{room}/state/{type}/{key}, ``format=event`` for the whole event."""
    whole = call.http.query.get("format") == "event"
    key = call.http.match_info.get("key", "")
    return Reader(call.hs, call.who).state_event(call.path("room"), call.path("type"), key, whole)


async def messages(call: Call) -> JSON:
    """GET /rooms/{room}/messages; of the filter only ``types`` is honoured."""
    query: dict[str, Any] = {
        "dir": call.direction("f"),
        "limit": call.number("limit", 10),
        "from": call.http.query.get("from"),
        "to": call.http.query.get("to"),
    }
    if text := call.http.query.get("filter"):
        try:
            query["types"] = json.loads(text).get("types")
        except ValueError as broken:
            raise bad("Content not JSON.", "M_NOT_JSON") from broken
    return Reader(call.hs, call.who).messages(call.path("room"), query)


async def event(call: Call) -> JSON:
    """GET /rooms/{room}/event/{event}."""
    return Reader(call.hs, call.who).event(call.path("room"), call.path("event"))


async def context(call: Call) -> JSON:
    """GET /rooms/{room}/context/{event}."""
    limit = call.number("limit", 10) or 0
    return Reader(call.hs, call.who).context(call.path("room"), call.path("event"), limit)


async def relations(call: Call) -> JSON:
    """GET /client/v1/rooms/{room}/relations/{event}/{rel_type}/{type}."""
    query = {"dir": call.direction("b"), "limit": call.number("limit"), "from": call.http.query.get("from")}
    parts = call.http.match_info
    reader = Reader(call.hs, call.who)
    return reader.relations(call.path("room"), call.path("event"), parts.get("kind"), parts.get("type"), query)


async def members(call: Call) -> JSON:
    """GET /rooms/{room}/members."""
    query = call.http.query
    reader = Reader(call.hs, call.who)
    return reader.members(call.path("room"), query.get("membership"), query.get("not_membership"))


async def joined_members(call: Call) -> JSON:
    """GET /rooms/{room}/joined_members."""
    return Reader(call.hs, call.who).joined_members(call.path("room"))


async def aliases(call: Call) -> JSON:
    """GET /rooms/{room}/aliases."""
    room = call.hs.readable_room(call.who, call.path("room"))
    return {"aliases": [alias for alias, (target, _) in call.hs.aliases.items() if target == room.room_id]}


async def hierarchy(call: Call) -> JSON:
    """GET /client/v1/rooms/{room}/hierarchy."""
    limit = call.number("limit", call.hs.flavour.hierarchy_page) or 0
    token = call.http.query.get("from")
    rooms = None
    if token is None:
        suggested = call.http.query.get("suggested_only") == "true"
        depth = call.number("max_depth")
        rooms = Reader(call.hs, call.who).hierarchy(call.path("room"), depth, suggested)
    return call.api.hierarchy.page(rooms, token, limit)


# ---- notifications


async def typing(call: Call) -> JSON:
    """PUT /rooms/{room}/typing/{user}."""
    body = await call.body()
    timeout = body.get("timeout", 30_000)
    if "typing" not in body or type(timeout) is not int:
        raise internal() if call.hs.flavour.name == "synapse" else bad("Invalid typing request", "M_BAD_JSON")
    call.hs.set_typing(call.who, call.path("room"), call.path("user"), timeout if body["typing"] else None)
    return {}


async def receipt(call: Call) -> JSON:
    """POST /rooms/{room}/receipt/{type}/{event}."""
    body = await call.body(optional=True)
    kind, thread = call.path("kind"), body.get("thread_id")
    if kind not in _RECEIPTS:
        raise bad("Receipt type must be m.fully_read, m.read, m.read.private")
    if thread is not None and (not isinstance(thread, str) or not thread):
        raise bad("thread_id field must be a non-empty string", "M_INVALID_PARAM")
    if thread not in (None, "main"):
        _check_thread(call, call.path("event"), str(thread))
    if kind != "m.fully_read":
        call.hs.set_receipt(call.who, call.path("room"), kind, call.path("event"), thread)
    return {}


def _check_thread(call: Call, event_id: str, thread: str) -> None:
    found = call.hs.events.get(event_id)
    relation = found.relation() if found else None
    if relation is None or relation[1] != thread:
        raise bad(f"event_id {event_id} is not related to thread {thread}", "M_INVALID_PARAM")


async def read_markers(call: Call) -> JSON:
    """POST /rooms/{room}/read_markers."""
    body = await call.body()
    for kind in ("m.read", "m.read.private"):
        if isinstance(body.get(kind), str):
            call.hs.set_receipt(call.who, call.path("room"), kind, body[kind], None)
    if isinstance(body.get("m.fully_read"), str):
        data = call.hs.accounts.account_data(call.who, call.who.user_id)
        data[(call.path("room"), "m.fully_read")] = {"event_id": body["m.fully_read"]}
    return {}


_V3 = "/client/{api:v3|r0}"
_ROOM = _V3 + "/rooms/{room}"
_V1_ROOM = "/client/v1/rooms/{room}"

ROUTES = [
    Route("POST", _V3 + "/createRoom", create),
    Route("POST", _V3 + "/join/{room}", join),
    Route("GET", _V3 + "/joined_rooms", joined_rooms),
    Route("POST", _ROOM + "/join", join_room),
    Route("POST", _ROOM + "/invite", invite),
    Route("POST", _ROOM + "/leave", leave),
    Route("POST", _ROOM + "/{action:kick|ban|unban}", remove),
    Route("POST", _ROOM + "/forget", forget),
    Route("PUT", _ROOM + "/send/{type}/{txn}", send),
    Route("PUT", _ROOM + "/redact/{event}/{txn}", redact),
    Route("POST", _ROOM + "/redact/{event}", redact),
    Route("GET", _ROOM + "/state", full_state),
    Route("GET", _ROOM + "/state/{type}", one_state),
    Route("GET", _ROOM + "/state/{type}/{key:.*}", one_state),
    Route("PUT", _ROOM + "/state/{type}", put_state),
    Route("PUT", _ROOM + "/state/{type}/{key:.*}", put_state),
    Route("GET", _ROOM + "/messages", messages),
    Route("GET", _ROOM + "/event/{event}", event),
    Route("GET", _ROOM + "/context/{event}", context),
    Route("GET", _ROOM + "/members", members),
    Route("GET", _ROOM + "/joined_members", joined_members),
    Route("GET", _ROOM + "/aliases", aliases),
    Route("GET", _V1_ROOM + "/relations/{event}", relations),
    Route("GET", _V1_ROOM + "/relations/{event}/{kind}", relations),
    Route("GET", _V1_ROOM + "/relations/{event}/{kind}/{type}", relations),
    Route("GET", _V1_ROOM + "/hierarchy", hierarchy),
    Route("PUT", _ROOM + "/typing/{user}", typing),
    Route("POST", _ROOM + "/receipt/{kind}/{event}", receipt),
    Route("POST", _ROOM + "/read_markers", read_markers),
]
