"""Whether somebody may use a command, and if not, why not and what would allow it."""

from collections.abc import Mapping
from typing import Any

from ..db.agents import AgentRow
from ..delivery.known import anywhere
from ..ids import RoomID
from ..routing import rights
from ..routing.permissions import Grant, Level
from .call import CTL
from .desk import Desk
from .table import Command, Need


async def refusal(desk: Desk, command: Command, who: str, level: Level, args: Mapping[str, Any]) -> str | None:
    """None when ``who`` may use the command, else one or two sentences for that person.

    A command of owners that names no agent (yet) is for whoever owns or administers anything; it asks
    :func:`refused_agent` or :func:`refused_room` itself once it knows what it is about.
    """
    if level >= Level.ADMIN:
        return None
    if command.need is Need.ADMIN:
        return _only_admins(desk, command.name, who, level)
    agent = next((value for value in args.values() if isinstance(value, AgentRow)), None)
    if command.need is Need.OWNER:
        if agent is not None:
            return await refused_agent(desk, who, level, agent, command.name)
        return None if await _has_something(desk, who, level) else _only_admins(desk, command.name, who, level)
    if level >= Level.USER and agent is None:
        return None
    if agent is not None:
        grant = await with_agent(desk, who, agent)
        if grant.level >= Level.USER:
            return None
        if level >= Level.USER:
            return (
                f"You may not use {_shown(agent)}: {grant}. Its owner or an administrator of the bridge can allow it "
                f"with `permissions grant {who} user {agent.mxid}`."
            )
    return _stranger(who)


async def refused_agent(desk: Desk, who: str, level: Level, agent: AgentRow, doing: str) -> str | None:
    """None when ``who`` may do what owners may with this agent."""
    if level >= Level.ADMIN:
        return None
    grant = await with_agent(desk, who, agent)
    if grant.level >= Level.ADMIN:
        return None
    if max(level, grant.level) < Level.USER:
        return _stranger(who)
    owner = f"Its owner is {agent.owner}" if agent.owner else "It has no owner"
    return (
        f"Only the owner of an agent and administrators may use `{doing}` on it. {owner}; an administrator can allow "
        f"you that with `permissions grant {who} admin {agent.mxid}`. ({grant}.)"
    )


async def refused_room(desk: Desk, who: str, level: Level, room_id: RoomID, doing: str) -> str | None:
    """None when ``who`` may do what administrators of the room may."""
    if level >= Level.ADMIN:
        return None
    grant = await with_room(desk, who, room_id)
    if grant.level >= Level.ADMIN:
        return None
    portal = await desk.agents.by_portal(room_id)  # an agent's own room is its owner's
    if portal is not None and (await with_agent(desk, who, portal)).level >= Level.ADMIN:
        return None
    if max(level, grant.level) < Level.USER:
        return _stranger(who)
    return (
        f"Only administrators may use `{doing}` on a room. An administrator of the bridge can allow you that for this "
        f"one with `permissions grant {who} admin {room_id}`. ({grant}.)"
    )


async def level_of(desk: Desk, who: str) -> Level:
    """What somebody may do where no agent is meant: who was let in to an agent or a room, or owns one, is a user."""
    return (await anywhere(desk.db, desk.permissions.grant(who))).level


async def with_agent(desk: Desk, who: str, agent: AgentRow) -> Grant:
    """The level of ``who`` with one agent, and what decided it."""
    if who == CTL:
        return Grant(who, Level.ADMIN, entry=CTL)
    given = await desk.access.on(rights.of_agent(agent.agent_id))
    return rights.with_agent(desk.permissions.grant(who), given, rights.Owned(agent.agent_id, agent.owner))


async def with_room(desk: Desk, who: str, room_id: RoomID) -> Grant:
    """The level of ``who`` in one room, and what decided it."""
    if who == CTL:
        return Grant(who, Level.ADMIN, entry=CTL)
    return rights.with_room(desk.permissions.grant(who), await desk.access.on(rights.of_room(room_id)), room_id)


async def _has_something(desk: Desk, who: str, level: Level) -> bool:
    """Whether this person may use agents at all, owns one, or administers an agent or a room."""
    if level >= Level.USER:
        return True
    whole = desk.permissions.grant(who)
    if rights.settled(whole):
        return False
    if any(agent.owner == who for agent in await desk.agents.all()):
        return True
    given = [access for access in await desk.access.all() if access.level == "admin"]
    return any(rights.given_on(whole, given, access.subject) for access in given)


def _only_admins(desk: Desk, doing: str, who: str, level: Level) -> str:
    if level < Level.USER:
        return _stranger(who)
    return (
        f"Only administrators of the bridge may use `{doing}`. ({desk.permissions.explain(who)}.) Whoever runs the "
        f'bridge can change that in its configuration: `permissions: "{who}": admin`.'
    )


def _stranger(who: str) -> str:
    """The same for everything, so that nobody learns what exists."""
    return (
        f"You are not allowed to use this bridge. An administrator can allow {who} in its configuration (permissions), "
        f"or with one agent or room by `permissions grant {who} user <agent or room>`."
    )


def _shown(agent: AgentRow) -> str:
    return agent.shown_name or agent.name or agent.mxid
