"""What homeservers do differently, seen by small questions that prove nothing and can fail nothing."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ..ids import MXID, EventID
from .smoke_account import code_of
from .smoke_listener import MARK, Listener
from .smoke_run import Run

_HASH = re.compile(r"[A-Za-z0-9_-]{43}\Z")
_USUAL_QUESTIONS = 3.0
_OLD, _NEW = "the event sent first", "a new event"


def _room_path(run: Run, rest: str) -> str:
    return f"/client/v3/rooms/{quote(run.room, safe='')}/{rest}"


async def second_invitation(run: Run) -> None:
    """How the homeserver says that somebody is there already."""
    answer = await run.probe("POST", _room_path(run, "invite"), run.bot.mxid, json={"user_id": run.user})
    known = {"already in the room": "already in the room", "Auth check failed": "Auth check failed"}
    words = next((short for text, short in known.items() if text in answer.error), answer.error[:80])
    run.report.observe(
        "inviting who is there already",
        f"{code_of(answer)} ({words})",
        synapse="403 M_FORBIDDEN (already in the room)",
        tuwunel="403 M_FORBIDDEN (Auth check failed)",
    )


async def repeated_ids(run: Run, content: Mapping[str, Any]) -> None:
    """What a transaction id counts for, where no device is named."""
    path = _room_path(run, f"send/m.room.message/{run.txn('again')}")
    first = await _sent(run, path, run.user, content)
    if not first:
        return
    again = await _sent(run, path, run.user, content)
    run.report.observe("the same transaction id, no device named", _which(first, again), synapse=_OLD, tuwunel=_OLD)
    other_type = await _sent(run, _room_path(run, f"send/{MARK}/{run.txn('again')}"), run.user, content)
    topic = "the same transaction id for another kind of event"
    run.report.observe(topic, _which(first, other_type), synapse=_NEW, tuwunel=_OLD)
    other_user = await _sent(run, path, run.bot.mxid, content)
    run.report.observe("the same transaction id of another user", _which(first, other_user), synapse=_OLD, tuwunel=_NEW)


async def _sent(run: Run, path: str, user: MXID, content: Mapping[str, Any]) -> EventID:
    answer = await run.probe("PUT", path, user, json=content)
    body = answer.body if answer.status == 200 and isinstance(answer.body, dict) else {}
    return EventID(str(body.get("event_id", "")))


def _which(first: EventID, second: EventID) -> str:
    return "refused" if not second else _OLD if first == second else _NEW


async def upload_ways(run: Run) -> None:
    """How large uploads may be, and whether the old addresses of media are served."""
    answer = await run.probe("GET", "/client/v1/media/config", run.user)
    size = answer.body.get("m.upload.size") if isinstance(answer.body, dict) else None
    shown = f"{size / (1 << 20):.0f} MiB" if isinstance(size, int) else "not told"
    run.report.observe("largest upload", shown)
    answer = await run.probe("GET", "/media/v3/config", run.user)
    run.report.observe("old addresses of media", code_of(answer), synapse="200", tuwunel="403 M_FORBIDDEN")


async def asks_about_users(run: Run) -> None:
    """Whether the homeserver asks the bridge about a user of its namespace that does not exist, when it is invited."""
    listener = run.listener
    if listener is None or not run.receiving:
        return
    nobody = MXID(f"@{run.localpart}_nobody:{run.homeserver.domain}")
    answer = await run.probe("POST", _room_path(run, "invite"), run.bot.mxid, json={"user_id": nobody})
    if answer.status != 200:
        return
    came = await listener.until(lambda: _invited(listener, nobody), min(run.wait, _USUAL_QUESTIONS))
    await run.probe("POST", _room_path(run, "kick"), run.bot.mxid, json={"user_id": nobody})
    if came:
        seen = "asks" if nobody in listener.asked else "does not ask"
        topic = "asking the bridge about a user that does not exist"
        run.report.observe(topic, seen, synapse="asks", tuwunel="does not ask")


def _invited(listener: Listener, user: MXID) -> bool:
    return any(
        seen.event.get("type") == "m.room.member" and seen.event.get("state_key") == user
        for seen in listener.events.values()
    )


async def outside_the_room(run: Run) -> None:
    """How somebody who is not in a room, and has forgotten it, is told so."""
    answer = await run.probe("GET", _room_path(run, "state/m.room.name"), run.user)
    topic = "reading one state event without being in the room"
    run.report.observe(topic, code_of(answer), synapse="403 M_FORBIDDEN", tuwunel="404 M_NOT_FOUND")
    answer = await run.probe("POST", _room_path(run, "leave"), run.user, json={})
    run.report.observe("leaving a room once more", code_of(answer), synapse="403 M_FORBIDDEN", tuwunel="200")


async def versions_of_rooms(run: Run) -> None:
    """The version of rooms that nobody chose one for."""
    answer = await run.probe("GET", "/client/v3/capabilities", run.bot.mxid)
    try:
        default = answer.body["capabilities"]["m.room_versions"]["default"]
    except (KeyError, TypeError):
        default = "not told"
    run.report.observe("default room version", str(default)[:20])


def transactions(run: Run) -> None:
    """How the homeserver delivered, over the whole test."""
    listener = run.listener
    if listener is None or not listener.pushed:
        return
    pushed = listener.pushed
    places = {(one.header, one.query) for one in pushed}
    header, both = "in the header", "in the header and in the address"
    named = {(True, False): header, (True, True): both, (False, True): "in the address"}
    seen = " or ".join(sorted(named.get(place, "nowhere") for place in places))
    run.report.observe("the hs_token stands", seen, synapse="in the header", tuwunel="in the header and in the address")
    numbers, hashes = "numbers that count up", "hashes"
    run.report.observe("transaction ids are", _style(listener, numbers, hashes), synapse=numbers, tuwunel=hashes)
    _keys(run, listener)
    most = f"{max(one.events for one in pushed)} events, {max(one.edus for one in pushed)} notifications"
    run.report.observe("largest of " + f"{len(pushed)} transactions", most)
    _shape(run, listener)


def _style(listener: Listener, numbers: str, hashes: str) -> str:
    ids = [one.txn_id for one in listener.pushed]
    if all(txn.isdecimal() for txn in ids):
        values = [int(txn) for txn in ids]
        return numbers if values == sorted(values) else "numbers in no order"
    return hashes if all(_HASH.match(txn) for txn in ids) else f"such as {ids[0][:50]!r}"


def _keys(run: Run, listener: Listener) -> None:
    keys = frozenset[str]().union(*(one.keys for one in listener.pushed))
    run.report.observe("keys of transactions", ", ".join(sorted(keys)))
    if run.config.appservice.ephemeral and any(not one.edus for one in listener.pushed):
        always = any("ephemeral" in one.keys and not one.edus for one in listener.pushed)
        there, omitted = "there with an empty list", "left out"
        seen = there if always else omitted
        run.report.observe("keys for which there is nothing", seen, synapse=there, tuwunel=omitted)


def _shape(run: Run, listener: Listener) -> None:
    """What stands beside the content of a pushed message."""
    seen = listener.events.get(run.sent)
    if seen is None:
        return
    unsigned = seen.event.get("unsigned")
    found = unsigned if isinstance(unsigned, Mapping) else {}
    yes_no = {True: "yes", False: "no"}
    run.report.observe("delivered events tell their age", yes_no["age" in found], synapse="yes", tuwunel="no")
    topic = "delivered events tell their transaction id"
    run.report.observe(topic, yes_no["transaction_id" in found], synapse="no", tuwunel="yes")
