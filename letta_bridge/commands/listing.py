"""Lists: ``agents``, ``agent``, ``rooms``, ``users``."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from ..db import overview
from ..db.agents import AgentRow
from ..db.overview import Work
from ..db.pauses import EVERYTHING
from ..ids import MXID, RoomID
from ..mirror.history import FAILED as HISTORY_FAILED
from ..routing import rights
from ..routing.permissions import Level
from . import allow, lookup
from .call import Call
from .desk import Desk
from .empty import advice
from .show import ago, bullets, code, count, escape, name_of, portal_link, room_link, span, user_link
from .table import Arg, Command, CommandError, Need, Option, Reply

GROUP = "Agents and rooms"
_PAGE = 50
_PAGE_OPTION = Option("page", f"which page, of {_PAGE} lines each", "number")


@dataclass(frozen=True, slots=True)
class KnownRoom:
    """A room with somebody of ours in it. ``kind``: portal, direct, group, management, space or empty."""

    room_id: RoomID
    name: str
    kind: str
    agents: tuple[AgentRow, ...]
    people: tuple[MXID, ...]


async def known_rooms(desk: Desk) -> list[KnownRoom]:
    """Every room in which somebody of ours is."""
    agents = {row.mxid: row for row in await desk.agents.all()}
    portals = {row.portal_room for row in agents.values() if row.portal_room}
    management = await desk.management.rooms()
    spaces = {row.in_space for row in agents.values() if row.in_space} | {desk.directory.space_room}
    found = []
    for look in await overview.rooms(desk.db):
        ours = [mxid for mxid in look.joined if desk.directory.is_ours(mxid)]
        if not ours:
            continue
        inside = tuple(agents[mxid] for mxid in ours if mxid in agents)
        people = tuple(mxid for mxid in look.joined if mxid not in ours)
        asked = [mxid for mxid in look.invited if not desk.directory.is_ours(mxid)]
        if look.room_id in management:
            kind = "management"
        elif look.room_id in portals:
            kind = "portal"
        elif look.room_id in spaces:
            kind = "space"
        elif not people and not asked:
            kind = "empty"
        else:
            kind = "direct" if len(people) + len(asked) == 1 and len(inside) <= 1 else "group"
        found.append(KnownRoom(look.room_id, look.name, kind, inside, people))
    return found


def paged(lines: Sequence[str], page: int | None, command: str) -> str:
    """One page of a list.

    Raises:
        CommandError: there is no such page.
    """
    pages = max(1, -(-len(lines) // _PAGE))
    number = 1 if page is None else page
    if not 1 <= number <= pages:
        raise CommandError(f"There is no page {number}; the list has {count(pages, 'page')}.")
    text = bullets(lines[(number - 1) * _PAGE : number * _PAGE])
    if pages > 1:
        following = f"; `{command} --page {number + 1}` shows the next" if number < pages else ""
        text += f"\n\nPage {number} of {pages}{following}."
    return text


# -- agents


async def _agents(call: Call) -> Reply:
    rows = [row for row in await call.desk.agents.all() if row.state != "archived" or call.args["all"]]
    if not call.admin and call.desk.permissions.level(call.who) < Level.USER:
        rows = await lookup.theirs(call.desk, rows, call.who)
        if not rows:
            return Reply("There is no agent that you may use, but for those in rooms where you were let in.", data=[])
    search = " ".join((call.args["search"] or "").split()).casefold()
    found = [row for row in rows if search in (row.shown_name or row.name).casefold() or search == row.agent_id]
    if not rows:
        return Reply(await advice(call) or "There are no agents.", data=[])
    if not found:
        return Reply(f"None of the {count(len(rows), 'agent')} has that in its name.", data=[], ok=True)
    works = await overview.work(call.desk.db)
    paused = {pause.subject for pause in await call.desk.pauses.all()}
    data = [_agent_data(row, works.get(row.agent_id, Work())) | {"paused": _pause_of(row, paused)} for row in found]
    lines = [
        _agent_line(row, works.get(row.agent_id, Work()), call.admin, paused=rights.of_agent(row.agent_id) in paused)
        for row in found
    ]
    heading = "One agent:" if len(found) == 1 else f"{len(found):,} agents:"
    if EVERYTHING in paused:
        heading = f"All agents are paused.\n\n{heading}"
    again = "agents" + (f" {search}" if search else "")
    return Reply(f"{heading}\n\n{paged(lines, call.args['page'], again)}", data=data)


def _pause_of(row: AgentRow, paused: Set[str]) -> str | None:
    """The widest pause that holds the agent up wherever it is."""
    return next((subject for subject in (EVERYTHING, rights.of_agent(row.agent_id)) if subject in paused), None)


def _agent_line(row: AgentRow, work: Work, admin: bool, *, paused: bool) -> str:
    parts = [user_link(row)]
    if row.portal_room:
        parts.append(portal_link(row))
    if row.state != "active" or row.error:
        parts.append(row.state + (" (cannot be made right now)" if row.error and row.state == "new" else ""))
    if paused:
        parts.append("paused")
    if row.owner:
        parts.append(f"of {escape(row.owner)}")
    if admin and work.waiting:
        parts.append(f"{count(work.waiting, 'message')} waiting")
    if admin and work.last is not None:
        parts.append(f"last turn {ago(work.last)}")
    return " · ".join(parts)


def _agent_data(row: AgentRow, work: Work) -> dict[str, Any]:
    return {
        "agent_id": row.agent_id,
        "name": row.shown_name or row.name,
        "mxid": row.mxid,
        "state": row.state,
        "owner": row.owner,
        "room": row.portal_room,
        "waiting": work.waiting,
        "last_turn_s": work.last,
        "error": row.error,
    }


async def _agent(call: Call) -> Reply:
    row: AgentRow = call.args["agent"]
    desk = call.desk
    work = (await overview.work(desk.db, row.agent_id)).get(row.agent_id, Work())
    pause = await desk.pauses.covering([rights.of_agent(row.agent_id)])
    missing = await _missing_for(desk, row)
    data = _agent_data(row, work) | {
        "description": row.description,
        "model": row.model,
        "tags": list(row.tags),
        "origin": row.origin,
        "missing_s": missing,
        "paused": None if pause is None else pause.subject,
    }
    state = row.state + (f" for {span(missing)}" if missing is not None else "")
    lines = [
        f"Letta id: `{row.agent_id}`",
        f"Matrix id: `{row.mxid}`",
        f"state: {state}" + (", despawned" if row.dismissed else "") + (", paused" if pause is not None else ""),
        f"model: {escape(row.model) or 'unknown'}",
        f"tags: {', '.join(escape(tag) for tag in row.tags) or 'none'}",
        f"owner: {row.owner or 'nobody'}" + (f" ({row.origin})" if row.origin != "letta" else ""),
        f"room: {portal_link(row, 'its own') or 'none yet'}",
    ]
    if pause is not None:
        what = "everything is paused" if pause.subject == EVERYTHING else "paused"
        lines.append(f"{what} by {pause.by}, {ago(pause.age)}: {escape(pause.reason) or 'no reason given'}")
    if await allow.refused_agent(desk, call.who, call.level, row, "see everything of") is not None:
        data.pop("error", None)
    elif not call.management:
        data.pop("error", None)
        lines.append(f"more in a direct chat with the bot ({desk.homeserver.bot_mxid}), where nobody else reads it")
    else:
        inside = [room for room in await known_rooms(desk) if row in room.agents]
        given = await desk.access.on(rights.of_agent(row.agent_id))
        lost = await desk.settings.get(HISTORY_FAILED + row.agent_id)
        data |= {
            "rooms": [room.room_id for room in inside],
            "last_state": work.last_state,
            "last_error": work.last_error,
            "access": [{"who": access.who, "level": access.level, "by": access.by} for access in given],
        }
        lines += [
            f"waiting: {count(work.waiting, 'message')}",
            f"last turn: {ago(work.last)}" + (f" ({work.last_state})" if work.last is not None else ""),
            *([f"its error: {escape(work.last_error)}"] if work.last_error else []),
            *([f"trouble with its mirror: {escape(row.error)}"] if row.error else []),
            *([f"its earlier conversation cannot be shown: {lost}; `import` tries again"] if lost else []),
            f"rooms: {count(len(inside), 'room')}",
            *[f"access: {access.who} has level {access.level} (by {access.by})" for access in given],
        ]
    head = f"**{name_of(row)}**" + (f": {escape(row.description)[:300]}" if row.description else "")
    return Reply(f"{head}\n\n{bullets(lines)}", data=data)


async def _missing_for(desk: Desk, row: AgentRow) -> float | None:
    if row.missing_since is None:
        return None
    return float(await desk.db.fetchval(f"SELECT {desk.db.now}")) - row.missing_since


# -- rooms and people


async def _rooms(call: Call) -> Reply:
    rooms = sorted(await known_rooms(call.desk), key=lambda room: (_ORDER.index(room.kind), room.name.casefold()))
    kind = call.args["kind"]
    chosen = [room for room in rooms if kind is None or room.kind == kind]
    data = [
        {
            "room": room.room_id,
            "name": room.name,
            "kind": room.kind,
            "agents": [row.agent_id for row in room.agents],
            "people": list(room.people),
        }
        for room in chosen
    ]
    if not chosen:
        return Reply("There are no such rooms." if kind else "There are no rooms yet.", data=data)
    lines = [_room_line(room, call.desk.homeserver.domain) for room in chosen]
    again = "rooms" + (f" --kind {kind}" if kind else "")
    return Reply(f"{count(len(chosen), 'room')}:\n\n{paged(lines, call.args['page'], again)}", data=data)


_ORDER = ("management", "portal", "direct", "group", "space", "empty")


def _room_line(room: KnownRoom, domain: str) -> str:
    label = escape(room.name) or (name_of(room.agents[0]) if room.agents else "the bot")
    people = ", ".join(map(escape, room.people[:3])) + (
        f" and {len(room.people) - 3} more" if len(room.people) > 3 else ""
    )
    agents = ", ".join(name_of(row) for row in room.agents[:3])
    agents += f" and {len(room.agents) - 3} more" if len(room.agents) > 3 else ""
    parts = [room_link(room.room_id, label, domain), room.kind, agents, people or "nobody else"]
    return " · ".join(part for part in parts if part)


async def _users(call: Call) -> Reply:
    desk = call.desk
    rooms: dict[MXID, int] = {}
    for room in await known_rooms(desk):
        for person in room.people:
            rooms[person] = rooms.get(person, 0) + 1
    last: Mapping[MXID, float] = await overview.last_words(desk.db)
    named = [MXID(who) for who in desk.config.permissions if who.startswith("@")]
    people = sorted({*rooms, *last, *named})
    levels = {person: desk.permissions.level(person).name.lower() for person in people}
    data = [
        {
            "user": person,
            "level": levels[person],
            "rooms": rooms.get(person, 0),
            "last_message_s": last.get(person),
        }
        for person in people
    ]
    lines = [
        f"{code(person)}: {levels[person]}, {count(rooms.get(person, 0), 'room')}, last message {ago(last.get(person))}"
        for person in people
    ]
    if not lines:
        return Reply("Nobody is known yet.", data=data)
    text = paged(lines, call.args["page"], "users")
    return Reply(f"{count(len(people), 'person', 'people')}:\n\n{text}", data=data)


COMMANDS = (
    Command(
        "agents",
        "lists the agents; `agents <text>` those whose name contains it",
        Need.USER,
        _agents,
        GROUP,
        args=(Arg("search", "text", "a part of the name", required=False, rest=True),),
        options=(_PAGE_OPTION, Option("all", "archived ones too", switch=True)),
        details="With links to each agent and its room, its state where that is not active, whether it is paused, "
        "its owner, and for administrators how many messages wait and when it last answered.",
        examples=("agents", "agents research", "agents --page 2"),
    ),
    Command(
        "agent",
        "shows everything about one agent",
        Need.USER,
        _agent,
        GROUP,
        args=(Arg("agent", "agent", "which agent"),),
        details="Its ids, state, model, tags and room. In a direct chat with the bot its owner and administrators also "
        "see what waits, the last error, its rooms and who has access.",
        examples=("agent Scout", "agent here"),
    ),
    Command(
        "rooms",
        "lists the rooms in which agents or the bot are",
        Need.ADMIN,
        _rooms,
        GROUP,
        options=(
            Option("kind", "only rooms of this kind", "choice", choices=_ORDER),
            _PAGE_OPTION,
        ),
        examples=("rooms", "rooms --kind direct"),
        private=True,
    ),
    Command(
        "users",
        "lists the people that the bridge knows",
        Need.ADMIN,
        _users,
        GROUP,
        options=(_PAGE_OPTION,),
        details="Who is in a room with an agent, wrote to one, or is named in `permissions`: their level, how many "
        "rooms, and when they last wrote to an agent.",
        examples=("users",),
        private=True,
    ),
)
