"""``doctor``: what is wrong, and what to do about it."""

import logging
from collections.abc import Mapping
from typing import Any

from ..db.letters import Letters
from ..matrix.homeserver import HomeserverError
from .call import Call
from .empty import advice
from .listing import known_rooms
from .show import count, escape, name_of, one_line, span
from .table import Reply
from .words import homeserver_words

log = logging.getLogger(__name__)

_OLD = 86400.0
"""Seconds after which a dead letter is worth a word."""
_MARKS = {"ok": "✅", "warn": "⚠️", "fail": "❌", "skip": "❔"}
_NAMED = 5

Finding = Mapping[str, Any]


def _finding(check: str, status: str, text: str, remedy: str = "") -> Finding:
    return {"check": check, "status": status, "text": text, "remedy": remedy}


async def examine(call: Call) -> Reply:
    """Look everywhere."""
    findings: list[Finding] = []
    if call.desk.check_up is not None:
        known = [row for row in await call.desk.agents.all() if row.state != "archived"]
        findings += await call.desk.check_up(len(known))
    findings += await _agents(call)
    findings += await _alarms(call)
    findings += await _rooms(call)
    findings += await _letters(call)
    wrong = [finding for finding in findings if finding["status"] in ("warn", "fail")]
    shown = findings if call.args["all"] else [finding for finding in findings if finding["status"] != "ok"]
    head = f"{count(len(wrong), 'finding')}." if wrong else "Everything is in order."
    parts = [head, "\n".join(_line(finding) for finding in shown), await advice(call)]
    data = {"ok": not wrong, "findings": findings}
    return Reply("\n\n".join(part for part in parts if part), data=data)


def _line(finding: Finding) -> str:
    remedy = f" → {finding['remedy']}" if finding.get("remedy") else ""
    return f"- {_MARKS.get(finding['status'], '')} {finding['check']}: {finding['text']}{remedy}"


async def _agents(call: Call) -> list[Finding]:
    rows = await call.desk.agents.all()
    failing = [row for row in rows if row.error and row.state in ("new", "active")]
    missing = [row for row in rows if row.state == "missing"]
    found = []
    for row in failing[:_NAMED]:
        text = f"{name_of(row)} cannot be mirrored: {escape(row.error)}"
        found.append(
            _finding("agents", "fail", text, f"`agent {row.agent_id}` tells more; it is tried again by itself")
        )
    if len(failing) > _NAMED:
        found.append(
            _finding("agents", "fail", f"{len(failing) - _NAMED} more cannot be mirrored", "`agents` lists them")
        )
    if missing:
        names = ", ".join(name_of(row) for row in missing[:_NAMED])
        text = f"{count(len(missing), 'agent')} missing in Letta ({names})"
        remedy = "they are archived after the grace period; if Letta was replaced, see `guard` and `rebind`"
        found.append(_finding("agents", "warn", text, remedy))
    return found or [_finding("agents", "ok", f"{count(len(rows), 'agent')}, none in trouble")]


async def _alarms(call: Call) -> list[Finding]:
    up = [alarm for alarm in await call.desk.alarms.all() if not alarm.cleared]
    return [
        _finding("alarm", "warn", f"{one_line(alarm.text)} (for {span(alarm.age)})", "see docs/troubleshooting.md")
        for alarm in up
    ]


async def _rooms(call: Call) -> list[Finding]:
    rooms = await known_rooms(call.desk)
    empty = [room for room in rooms if room.kind == "empty"]
    found = []
    if empty:
        text = f"{count(len(empty), 'room')} with nobody but the bridge's own users"
        found.append(_finding("rooms", "warn", text, "`rooms --kind empty` lists them, `cleanup` leaves them"))
    try:
        joined = await call.desk.homeserver.bot.joined_rooms()
    except HomeserverError as error:
        return [*found, _finding("rooms", "skip", f"the bot's rooms cannot be listed: {homeserver_words(error)}")]
    known = {room.room_id for room in rooms}
    unknown = [room_id for room_id in joined if room_id not in known]
    if unknown:
        text = f"the bot is in {count(len(unknown), 'room')} that the database does not know: " + ", ".join(
            f"`{room_id}`" for room_id in unknown[:_NAMED]
        )
        found.append(_finding("rooms", "warn", text, "after a lost database: `letta-bridge ctl rebuild --dry-run`"))
    return found or [_finding("rooms", "ok", f"{count(len(rooms), 'room')}, all known")]


async def _letters(call: Call) -> list[Finding]:
    letters = [letter for letter in await Letters(call.desk.db).all(1000) if letter.age > _OLD]
    if not letters:
        return [_finding("dead letters", "ok", "no old ones")]
    text = f"{count(len(letters), 'dead letter')} older than a day"
    return [_finding("dead letters", "warn", text, "`dead` lists them; `retry` or `drop` them")]
