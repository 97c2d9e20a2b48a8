"""Who may do what, shown and changed (``permissions``), and bringing people into rooms (``invite``)."""

import re

from ..db.access import Access
from ..db.agents import AgentRow
from ..db.database import Connection
from ..ids import MXID, AgentID, RoomID
from ..matrix.homeserver import HomeserverError
from ..routing import rights
from ..routing.permissions import EVERYBODY, Grant, Level
from . import lookup
from .call import CTL, Call
from .show import bullets, name_of
from .table import Arg, Command, CommandError, Need, Reply
from .targets import Target, handle, target

_DOMAIN = re.compile(r"(?=.{1,255}\Z)(?:[a-z0-9][a-z0-9.-]*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.I)
_GROUP = "Permissions"
_MOST = 100

# -- permissions


async def _show(call: Call) -> Reply:
    person = call.args.get("user")
    if person is not None and call.level < Level.ADMIN and person != call.who:
        raise CommandError("Only administrators of the bridge may look at what others may do.")
    if person is not None or call.level < Level.ADMIN:
        return await _explain(call, MXID(person or call.who))
    desk = call.desk
    agents = {agent.agent_id: agent for agent in await desk.agents.all()}
    given = await desk.access.all()
    parts = ["**In the configuration** (`permissions`)"]
    parts.append(bullets(f"`{who}`: {level.name.lower()}" for who, level in desk.permissions.entries.items()) or "none")
    if desk.permissions.ignored:
        parts.append("Never let in by `*` or a domain: " + ", ".join(f"`{glob}`" for glob in desk.permissions.ignored))
    parts.append("**Given by command**")
    lines = [f"{_subject(access.subject, agents)}: `{access.who}`: {access.level}, by {access.by}" for access in given]
    parts.append(_list(lines) or "Nothing. `permissions grant <user|domain|*> <user|admin|none> <agent|room>` gives.")
    owners = [f"{name_of(agent)}: {agent.owner}" for agent in agents.values() if agent.owner]
    if owners:
        parts += ["**Owners**", _list(owners)]
    data = {
        "configuration": {who: level.name.lower() for who, level in desk.permissions.entries.items()},
        "ignored": list(desk.permissions.ignored),
        "given": [{"on": a.subject, "who": a.who, "level": a.level, "by": a.by} for a in given],
        "owners": {agent.agent_id: agent.owner for agent in agents.values() if agent.owner},
    }
    return Reply("\n\n".join(parts), data=data)


async def _explain(call: Call, person: MXID) -> Reply:
    """Everything that decides what a person may do."""
    desk = call.desk
    whole = desk.permissions.grant(person)
    agents = {agent.agent_id: agent for agent in await desk.agents.all()}
    given = await desk.access.all()
    found: list[tuple[str, Grant]] = []
    for agent in agents.values():
        grant = rights.with_agent(whole, given, rights.Owned(agent.agent_id, agent.owner))
        if grant.subject:
            found.append((name_of(agent), grant))
    rooms = dict.fromkeys(access.subject[5:] for access in given if access.subject.startswith("room:"))
    for room in rooms:
        grant = rights.with_room(whole, given, RoomID(room))
        if grant.subject:
            found.append((f"the room `{room}`", grant))
    parts = [f"{whole}."]
    if found:
        parts.append(_list([f"with {name}: {_why(grant)}" for name, grant in found]))
    elif whole.level is Level.NONE:
        parts.append("Nothing was given to them on an agent or a room either.")
    data = {
        "user": person,
        "level": whole.level.name.lower(),
        "because": str(whole),
        "on": [{"on": g.subject, "level": g.level.name.lower(), "because": str(g)} for _, g in found],
    }
    return Reply("\n\n".join(parts), data=data)


async def _grant(call: Call) -> Reply:
    who, level = _who(call.args["who"], call.desk.homeserver.domain), str(call.args["level"])
    where = await target(call, call.args["target"])
    await where.demand(call)
    _check(call, who, level, where)
    _not_shut_out(call, await _given(call, where, who))
    access = Access(where.subject, who, level, call.who)
    await call.desk.db.write(lambda conn: call.desk.access.set(conn, access))
    may = {"none": "may not use", "user": "may talk to", "admin": "may do what owners may with"}[level]
    if where.agent is None:
        may = {"none": "may not talk to agents in", "user": "may talk to agents in", "admin": "administers"}[level]
    back = f"permissions revoke {who} {await handle(call, where)}"
    return Reply(
        f"`{who}` {may} {where.shown} from now on. `{back}` takes that back.",
        data={"on": where.subject, "who": who, "level": level},
    )


async def _revoke(call: Call) -> Reply:
    who = _who(call.args["who"], call.desk.homeserver.domain)
    where = await target(call, call.args["target"])
    await where.demand(call)
    if who == call.who and call.level < Level.ADMIN:
        raise CommandError("What was given to yourself you cannot take back; ask an administrator of the bridge.")
    known = await _given(call, where, who)
    if known is not None and call.level < Level.ADMIN and not who.startswith("@"):
        raise CommandError(f"What was given to `{who}` only administrators of the bridge may take back.")
    _not_shut_out(call, known)
    if not await call.desk.db.write(lambda conn: call.desk.access.take_back(conn, where.subject, who)):
        raise CommandError(f"Nothing was given to `{who}` on {where.shown}. `permissions` shows what was.")
    after = ""
    if who.startswith("@"):
        after = f" Now: {await _may(call, MXID(who), where)}."
    return Reply(
        f"Taken back from `{who}` on {where.shown}.{after}", data={"on": where.subject, "who": who, "level": None}
    )


async def _given(call: Call, where: Target, who: str) -> Access | None:
    """What was given to exactly these."""
    return next((access for access in await call.desk.access.on(where.subject) if access.who == who), None)


def _not_shut_out(call: Call, known: Access | None) -> None:
    """Whom an administrator of the bridge shut out, no owner lets in again.

    Raises:
        CommandError: this is such a case.
    """
    if known is None or known.level != "none" or call.level >= Level.ADMIN:
        return
    if known.by == CTL or call.desk.permissions.level(known.by) >= Level.ADMIN:
        raise CommandError(
            f"`{known.who}` was shut out by an administrator of the bridge; only administrators can change that."
        )


def _who(text: str, own: str) -> str:
    """A full Matrix id, a domain, or ``*``.

    Raises:
        CommandError: it is none of them.
    """
    text = text.strip()
    if text == EVERYBODY:
        return text
    if _DOMAIN.fullmatch(text) and ("." in text or ":" in text or text == own):
        return text
    return lookup.user(text, own)


def _check(call: Call, who: str, level: str, where: Target) -> None:
    """Refuse what would have no effect, or a wider one than who asks may give.

    Raises:
        CommandError: says why.
    """
    desk = call.desk
    if not who.startswith("@"):
        if call.level < Level.ADMIN:
            raise CommandError(
                "To a domain or to everybody (`*`) only administrators of the bridge may give something; you may give "
                "it to people by their full Matrix id."
            )
        if level == "admin":
            raise CommandError("`admin` is given to people by their full Matrix id only.")
        return
    if desk.directory.is_ours(MXID(who)):
        raise CommandError(f"{who} is the bridge's own user; permissions are for people.")
    whole = desk.permissions.grant(who)
    if rights.settled(whole):
        raise CommandError(f"That would change nothing: {whole}, and the configuration has the last word about that.")
    if level == "none" and where.agent is not None and where.agent.owner == who:
        raise CommandError(f"{who} owns {where.shown}, and owners may always use their agents.")


# -- invite


async def _invite(call: Call) -> Reply:
    desk, person = call.desk, MXID(call.args["user"])
    where = await target(call, call.args["target"])
    await where.demand(call)
    if desk.directory.is_ours(person):
        raise CommandError(f"{person} is the bridge's own user. Agents are invited from your client, like anybody.")
    room_id = where.room_id or (where.agent.portal_room if where.agent is not None else None)
    if not room_id:
        raise CommandError(f"{where.shown} has no room yet; `agent {await handle(call, where)}` shows what is missing.")
    known = {"join": "is in", "invite": "is invited to"}.get(await desk.rooms.membership(room_id, person) or "")
    if known:
        return Reply(f"{person} {known} {_its_room(where)} already.{await _hint(call, person, where)}")
    await _ask_in(call, room_id, person)

    async def note(conn: Connection) -> None:
        await desk.rooms.note_invited(conn, room_id, [person])

    await desk.db.write(note)
    return Reply(
        f"Invited {person} to {_its_room(where)}.{await _hint(call, person, where)}",
        data={"room_id": room_id, "user": person},
    )


async def _ask_in(call: Call, room_id: RoomID, person: MXID) -> None:
    """Invite as whoever of ours is in the room and may."""
    desk = call.desk
    joined = [member.mxid for member in (await desk.rooms.info(room_id)).joined]
    bot = desk.homeserver.bot_mxid
    ours = sorted((mxid for mxid in joined if desk.directory.is_ours(mxid)), key=lambda mxid: mxid != bot)
    refused: HomeserverError | None = None
    for mxid in ours or [bot]:
        try:
            await desk.homeserver.intent(mxid).invite(room_id, person)
            return
        except HomeserverError as error:
            if not error.forbidden:
                raise
            refused = error
    raise CommandError(
        f"The homeserver does not let me invite {person} there ({refused}). In rooms that are not the bridge's own, "
        "give an agent or the bot the right to invite, or invite them yourself; somebody banned must be unbanned first."
    )


async def _hint(call: Call, person: MXID, where: Target) -> str:
    """What else they need to be answered."""
    grant = await _may(call, person, where)
    if grant.level >= Level.USER:
        return ""
    if rights.settled(call.desk.permissions.grant(person)):
        return f" They may not talk to agents: {grant}. Only the configuration can change that."
    return (
        f" They may not talk {'to it' if where.agent is not None else 'there'} yet: {grant}. "
        f"`permissions grant {person} user {await handle(call, where)}` lets them."
    )


async def _may(call: Call, person: MXID, where: Target) -> Grant:
    whole = call.desk.permissions.grant(person)
    if where.agent is None:
        return rights.with_room(whole, await call.desk.access.on(where.subject), where.room_id)
    agent = rights.Owned(where.agent.agent_id, where.agent.owner)
    portal = where.agent.portal_room
    ids = [where.agent.agent_id]
    if not portal:
        return rights.with_agent(whole, await call.desk.access.on(where.subject), agent)
    return rights.talk(whole, await call.desk.access.in_room(portal, ids), agent, portal)


# -- small things


def _its_room(where: Target) -> str:
    return f"the room of {where.shown}" if where.agent is not None else where.shown


def _why(grant: Grant) -> str:
    level = grant.level.name.lower()
    return f"{level}, as its owner" if grant.owner else f'{level}, by what was given to "{grant.entry}"'


def _subject(subject: str, agents: dict[AgentID, AgentRow]) -> str:
    kind, _, name = subject.partition(":")
    if kind == "agent" and (agent := agents.get(AgentID(name))) is not None:
        return name_of(agent)
    return f"the room `{name}`" if kind == "room" else f"`{name}` (not there any more)"


def _list(lines: list[str]) -> str:
    more = [f"… and {len(lines) - _MOST} more; `letta-bridge ctl permissions --json` has all"] if lines[_MOST:] else []
    return bullets([*lines[:_MOST], *more])


_WHO = Arg("who", "text", "a person by full Matrix id, a domain, or `*` for everybody")
_TARGET = Arg("target", "text", "an agent, or a room by its id, alias, or `here`", rest=True)
_DETAILS = (
    "`user` lets somebody talk to that agent (or to the agents in that room), `none` shuts them out of it, `admin` "
    "lets them use its commands as its owner does. Of several grants the most specific counts: full Matrix id, domain, "
    "`*`. Owners may give `user`, `none` and `admin` on their agents to people by their full Matrix id, but not let in "
    "again whom an administrator shut out with `none`. Administrators of the configuration are never shut out, and "
    "whom it names with `none` by full id is never let in. Who owns an agent is said when it is made: "
    "`summon <name> --owner <user>`."
)
COMMANDS = (
    Command(
        "permissions",
        "shows who may do what and why; `permissions <user>` explains one person",
        Need.USER,
        _show,
        _GROUP,
        args=(Arg("user", "user", "the person to be explained", required=False),),
        details="Who is no administrator sees what was decided for them.",
        examples=("permissions", "permissions @alice:example.org"),
        private=True,
    ),
    Command(
        "permissions grant",
        "gives somebody a level with one agent or in one room",
        Need.OWNER,
        _grant,
        _GROUP,
        args=(_WHO, Arg("level", "choice", "what they may", choices=("user", "admin", "none")), _TARGET),
        details=_DETAILS,
        examples=("permissions grant @bob:example.org user Scout", "permissions grant * none Scout"),
        changes=True,
    ),
    Command(
        "permissions revoke",
        "takes back what `permissions grant` gave",
        Need.OWNER,
        _revoke,
        _GROUP,
        args=(_WHO, _TARGET),
        examples=("permissions revoke @bob:example.org Scout",),
        changes=True,
    ),
    Command(
        "invite",
        "invites a person to an agent's own room or to another room of ours",
        Need.OWNER,
        _invite,
        _GROUP,
        args=(Arg("user", "user", "the person"), _TARGET),
        details="Also somebody who has left: then it is asked for. Being invited gives no permission to talk.",
        examples=("invite @bob:example.org Scout",),
        changes=True,
    ),
)
