"""Commands about the bridge as a whole: ``ping``, ``version``, ``status``."""

import asyncio
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .. import __version__
from ..db.depths import Depths, depths
from ..db.letters import Letters
from ..letta.errors import LettaError
from ..matrix.homeserver import HomeserverError
from .call import Call
from .doctor import examine
from .empty import advice
from .help import GROUP, HELP
from .listing import known_rooms
from .pausing import paused
from .show import bullets, count, escape, one_line, span
from .table import Command, Need, Option, Reply

_ASK_SECONDS = 5.0
_GUARD = ("guard", "letta.another")
"""How topics of alarms begin that say that the mirror removes (or adds) nothing until an admin has looked."""


async def _timed(what: Any) -> tuple[float | None, str]:
    """Seconds that a question took, or None and why it was not answered."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            await what
    except TimeoutError:
        return None, f"no answer within {_ASK_SECONDS:.0f} s"
    except HomeserverError as error:
        return None, "cannot be reached" if not error.status else f"answers {error}"
    except LettaError as error:
        return None, error.kind.value
    return time.monotonic() - begun, ""


async def _ping(call: Call) -> Reply:
    desk = call.desk
    (homeserver, letta, database) = await asyncio.gather(
        _timed(desk.homeserver.versions()), _timed(desk.backend.health()), _timed(desk.db.fetchval("SELECT 1"))
    )
    age = await desk.inbox.age_of(call.key) if call.via == "room" else None
    found: dict[str, tuple[float | None, str]] = {"homeserver": homeserver, "Letta": letta, "database": database}
    lines = [] if age is None else [f"your message: came here {span(age)} ago"]
    lines += [f"{name}: {why or span(seconds or 0.0)}" for name, (seconds, why) in found.items()]
    data: dict[str, Any] = {
        name.casefold(): {"ok": not why, "seconds": seconds, "trouble": why} for name, (seconds, why) in found.items()
    }
    data["event_age"] = age
    return Reply("Pong.\n\n" + bullets(lines), data=data)


async def _letta_version(call: Call) -> str:
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            return (await call.desk.backend.health()).version
    except (LettaError, TimeoutError):
        return ""


async def _version(call: Call) -> Reply:
    letta = await _letta_version(call)
    python = platform.python_version()
    text = f"letta-bridge {__version__}, Letta {letta or 'unknown (it does not answer)'}, Python {python}."
    return Reply(text, data={"bridge": __version__, "letta": letta or None, "python": python})


async def _status(call: Call) -> Reply:
    desk = call.desk
    report, tables, letta = await asyncio.gather(desk.health.report(), depths(desk.db), _letta_version(call))
    alarms = [alarm for alarm in await desk.alarms.all() if not alarm.cleared]
    pauses = await desk.pauses.all()
    jobs = await desk.jobs.newest(1000, only_open=True)
    rooms = await _rooms(call)
    replicas = await desk.lanes.replicas()
    dead = {**tables.dead, "turns": await Letters(desk.db).dead_turns()}
    data: dict[str, Any] = {
        **report,
        "uptime": time.monotonic() - desk.began,
        "version": __version__,
        "letta": letta or None,
        "replicas": replicas,
        "agents": {**tables.agents, "failing": tables.agents_failing},
        "rooms": rooms,
        "queues": {
            "inbox": tables.inbox_open,
            "inbox_age": tables.inbox_age,
            "turns": tables.turns,
            "turn_age": tables.turn_age,
            "outbox": tables.outbox_pending,
            "outbox_age": tables.outbox_age,
        },
        "dead_letters": dead,
        "jobs": len(jobs),
        "alarms": [{"topic": alarm.topic, "text": alarm.text, "since_s": alarm.age} for alarm in alarms],
        "paused": [{"subject": pause.subject, "by": pause.by, "reason": pause.reason} for pause in pauses],
        "frozen": [alarm.topic for alarm in alarms if alarm.topic.startswith(_GUARD)],
    }
    lines = [_head(data), "", *_checks(report["checks"]), *_tables(tables, data)]
    if alarms:
        wrong = [f"- {one_line(alarm.text)} (for {span(alarm.age)})" for alarm in alarms]
        lines += ["", "**What is wrong now**", "", *wrong]
    if data["frozen"]:
        lines += ["", "The guard is frozen: nothing is removed before an admin has looked (`guard` shows why)."]
    if pauses:
        lines += ["", *[f"**Paused**: {await paused(call, pause)}" for pause in pauses]]
    lines += ["", await advice(call)]
    return Reply("\n".join(lines).strip(), data=data)


def _head(data: Mapping[str, Any]) -> str:
    state = "ready" if data["ready"] else "**not ready**"
    if data["ready"] and data["degraded"]:
        state = "ready, but **Letta does not work**"
    letta = f"Letta {data['letta']}." if data["letta"] else "Letta does not say its version."
    return f"letta-bridge {data['version']} is {state}; up for {span(data['uptime'])}. {letta}"


def _checks(checks: Mapping[str, Any]) -> list[str]:
    marks = {True: "✅", False: "❌", None: "❔"}
    names = {
        "homeserver_out": "homeserver, from here",
        "homeserver_in": "homeserver, to here",
        "letta": "Letta",
        "database": "database",
    }
    return [
        f"- {marks[state['ok']]} {names.get(name, name)}: {state['detail']}{_since(state['since'])}"
        for name, state in checks.items()
    ]


def _since(at: str) -> str:
    return f" (for {span((datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds())})" if at else ""


def _tables(tables: Depths, data: Mapping[str, Any]) -> list[str]:
    agents = ", ".join(f"{number} {state}" for state, number in tables.agents.items() if number) or "none"
    failing = f"; {tables.agents_failing} cannot be made right now" if tables.agents_failing else ""
    waiting = [
        (tables.inbox_open, "to be decided", tables.inbox_age),
        (sum(tables.turns.values()), "turns to be answered", tables.turn_age),
        (tables.outbox_pending, "to be sent", tables.outbox_age),
    ]
    queue = ", ".join(
        f"{number} {name}" + (f" (oldest {span(age)})" if number else "") for number, name, age in waiting
    )
    rooms = ", ".join(f"{number} {kind}" for kind, number in data["rooms"].items())
    dead = sum(data["dead_letters"].values())
    lines = [
        "",
        f"- agents: {agents}{failing}",
        f"- rooms: {rooms}",
        f"- waiting: {queue}",
        f"- jobs: {count(data['jobs'], 'open job')}" + ("; `jobs` shows them" if data["jobs"] else ""),
        f"- dead letters: {dead}" + ("; `dead` shows them" if dead else ""),
    ]
    if len(data["replicas"]) > 1:
        lines.append(f"- replicas: {', '.join(escape(name) for name in data['replicas'])}")
    return lines


async def _rooms(call: Call) -> dict[str, int]:
    found = dict.fromkeys(("portal", "direct", "group", "management"), 0)
    for room in await known_rooms(call.desk):
        if room.kind in found:
            found[room.kind] += 1
    return found


async def _doctor(call: Call) -> Reply:
    return await examine(call)


COMMANDS = (
    HELP,
    Command("ping", "says how fast everything answers", Need.USER, _ping, GROUP, examples=("ping",)),
    Command("version", "says which versions run", Need.USER, _version, GROUP, examples=("version",)),
    Command(
        "status",
        "shows in one screen how the bridge is",
        Need.ADMIN,
        _status,
        GROUP,
        details="What `/_matrix/mau/ready` and the metrics say, and what is wrong, paused or waiting.",
        examples=("status",),
        private=True,
    ),
    Command(
        "doctor",
        "looks for what is wrong and says what to do about it",
        Need.ADMIN,
        _doctor,
        GROUP,
        details="The checks of `letta-bridge check` that make sense while the bridge runs, and what only the running "
        "bridge knows: agents that cannot be made, open alarms, rooms of nobody, dead letters.",
        examples=("doctor",),
        options=(Option("all", "show what is in order too", switch=True),),
        private=True,
    ),
)
