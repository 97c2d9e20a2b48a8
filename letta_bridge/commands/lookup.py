"""From what somebody calls an agent, a room or a person to the thing itself."""

import contextlib
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from ..db.agents import AgentRow
from ..ids import MXID, AgentID, RoomID
from ..routing import rights
from ..routing.permissions import Level
from .call import CTL
from .desk import Desk
from .parse import Given, did_you_mean, linked, of_text, shown, things
from .show import escape
from .table import CommandError

_MXID = re.compile(r"@[^\s:@]+:[^\s@]+")
_LONGEST_ID = 255
_LISTED = 10
_WORDS = ("all", "here")
"""What means something else where an agent is named."""


async def look_up(desk: Desk, given: Given, room_id: RoomID, who: str) -> dict[str, Any]:
    """The values of a command with its agents (AgentRow), rooms (RoomID) and people (MXID) in the place of their names.

    Args:
        room_id: what ``here`` means; empty on the command line.
        who: who asks; learns of no agent that is none of theirs.

    Raises:
        CommandError: one of them is not there, or could be several.
        HomeserverError: an alias could not be looked up.
    """
    values: dict[str, Any] = dict(given.values)
    for thing in things(given.command):
        text = values.get(thing.name)
        if not isinstance(text, str):
            continue
        if thing.kind == "agent":
            values[thing.name] = await agent(desk, text, room_id, who)
        elif thing.kind == "room":
            values[thing.name] = await room(desk, text, room_id)
        elif thing.kind == "user":
            values[thing.name] = user(text, desk.homeserver.domain)
    return values


def user(text: str, domain: str) -> MXID:
    """A person by Matrix id or link.

    Raises:
        CommandError: it is neither.
    """
    text = linked(text.strip()) or text.strip()
    if _MXID.fullmatch(text) and len(text.encode()) <= _LONGEST_ID:
        return MXID(text)
    name = re.sub(r"[^a-z0-9._=/+-]", "", text.lstrip("@").partition(":")[0].casefold()) or "name"
    raise CommandError(f"{shown(text)} is no full Matrix id; write it as in `@{name[:60]}:{domain}`.")


async def agent(desk: Desk, text: str, room_id: RoomID, who: str) -> AgentRow:
    """An agent by id, Matrix id, link, alias, name, or the beginning of its name; ``here``: the one of this room.

    Somebody who may not use agents in general learns only of those that were given to them.

    Raises:
        CommandError: there is none, or there are several.
    """
    rows = await desk.agents.all()
    text = linked(text.strip()) or text.strip()
    if who != CTL and desk.permissions.level(who) < Level.USER:
        rows = await theirs(desk, rows, who)
        if not rows:
            raise CommandError(f"There is no agent {shown(text)} that you may use.")
    if text.casefold() == "here" and room_id:
        return await _agent_here(desk, room_id, {row.agent_id for row in rows})
    return choose(rows, text)


async def theirs(desk: Desk, rows: Sequence[AgentRow], who: str) -> list[AgentRow]:
    """Those of the agents that somebody may use, and so may know of."""
    if who == CTL:
        return list(rows)
    whole, given = desk.permissions.grant(who), await desk.access.all()
    return [
        row
        for row in rows
        if rights.with_agent(whole, given, rights.Owned(row.agent_id, row.owner)).level >= Level.USER
    ]


async def _agent_here(desk: Desk, room_id: RoomID, known: Set[AgentID]) -> AgentRow:
    portal = await desk.agents.by_portal(room_id)
    if portal is not None and portal.agent_id in known:
        return portal
    inside = [row for row in await desk.agents.in_room(room_id) if row.agent_id in known]
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise CommandError("Several agents are in this room:\n\n" + _listed(inside))
    raise CommandError("No agent is in this room; name one (`agents` lists them).")


def choose(rows: Sequence[AgentRow], text: str) -> AgentRow:
    """The one agent that ``text`` names.

    Raises:
        CommandError: there is none, or there are several.
    """
    for row in rows:
        if text in (row.agent_id, row.mxid, "#" + row.mxid[1:]):
            return row
    key = " ".join(text.split()).casefold().removeprefix("@")
    names = {row.agent_id: [" ".join(name.split()).casefold() for name in _names(row)] for row in rows}
    if key:
        exact = [row for row in rows if key in names[row.agent_id]]
        begun = [row for row in rows if any(name.startswith(key) for name in names[row.agent_id])]
        begun += [row for row in rows if row.agent_id.startswith(key) and row not in begun and len(key) > 8]
        for found in (exact, begun):
            living = [row for row in found if row.state != "archived"] or found
            if len(living) == 1:
                return living[0]
            if living:
                raise CommandError(f"{len(living)} agents fit {shown(text)}; use an id:\n\n{_listed(living)}")
    if not rows:
        raise CommandError("There are no agents yet; `agents` says what to do.")
    meant = did_you_mean(text, (name for row in rows for name in _names(row) if name.strip()))
    raise CommandError(f"There is no agent {shown(text)}.{meant} `agents` lists them.")


def handle(rows: Sequence[AgentRow], row: AgentRow) -> str:
    """What people type for the agent: its name where that names nobody else and can be typed, else its id."""
    name = row.shown_name or row.name
    typed = f'"{name}"' if " " in name else name
    if re.fullmatch(r"[^\W_][\w. -]*", name) and name.casefold() not in _WORDS:
        with contextlib.suppress(CommandError):
            if choose(rows, name).agent_id == row.agent_id and [word.text for word in of_text(typed).words] == [name]:
                return typed
    return row.agent_id


def _names(row: AgentRow) -> tuple[str, ...]:
    return tuple(dict.fromkeys((row.shown_name or row.name, row.name)))


def _listed(rows: Sequence[AgentRow]) -> str:
    lines = [f"- {escape(row.shown_name or row.name)}: `{row.agent_id}` ({row.state})" for row in rows[:_LISTED]]
    more = [f"- … and {len(rows) - _LISTED} more"] if len(rows) > _LISTED else []
    return "\n".join(lines + more)


async def room(desk: Desk, text: str, room_id: RoomID) -> RoomID:
    """A room by id, alias, link, ``here``, or the name of the agent whose own room it is.

    Raises:
        CommandError: there is none that the bridge knows.
        HomeserverError: the alias could not be looked up.
    """
    text = linked(text.strip()) or text.strip()
    if text.casefold() == "here":
        if not room_id:
            raise CommandError("`here` means something in a room only; name the room by its id or alias.")
        return room_id
    if text.startswith("!"):
        if not await desk.rooms.heard_of(RoomID(text)):
            raise CommandError(f"None of the bridge's users was ever in the room {shown(text)}. `rooms` lists them.")
        return RoomID(text)
    if text.startswith("#"):
        found = None
        if 1 < len(text.encode()) <= _LONGEST_ID and ":" in text:
            found = await desk.homeserver.intent(desk.homeserver.bot_mxid).resolve_alias(text)
        if found is None:
            raise CommandError(f"There is no room {shown(text)}. `rooms` lists those that the bridge knows.")
        return found
    row = choose(await desk.agents.all(), text)
    if row.portal_room is None:
        raise CommandError(f"{escape(row.shown_name or row.name)} has no room yet.")
    return row.portal_room


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Looked-up values as what identifies them, for fingerprints."""
    return {name: value.agent_id if isinstance(value, AgentRow) else value for name, value in values.items()}
