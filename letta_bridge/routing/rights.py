"""What one person may do with one agent or in one room: what the configuration says, refined by what was given by
command and by ownership. Pure.

The order, strongest first: an administrator of the configuration is never shut out; whom the configuration names with
``none`` by the full Matrix id is never let in; an owner may always use the own agent; then what was given on the agent
and in the room, of which ``none`` is stronger; then the configuration. Of several grants on one agent or room the most
specific one counts: full Matrix id, domain, ``*``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..db.access import Access
from ..ids import AgentID, RoomID
from .permissions import EVERYBODY, Grant, Level

LEVELS: Mapping[str, Level] = {level.name.lower(): level for level in Level}


def of_agent(agent_id: AgentID) -> str:
    """The subject under which something is given on an agent."""
    return f"agent:{agent_id}"


def of_room(room_id: RoomID) -> str:
    """The subject under which something is given in a room."""
    return f"room:{room_id}"


@dataclass(frozen=True, slots=True)
class Owned:
    """An agent as far as rights need it. ``owner`` is empty when nobody summoned it."""

    agent_id: AgentID
    owner: str = ""


def settled(whole: Grant) -> bool:
    """Whether the configuration has the last word about this person."""
    return whole.level >= Level.ADMIN or (whole.level is Level.NONE and whole.entry == whole.mxid)


def with_agent(whole: Grant, given: Iterable[Access], agent: Owned) -> Grant:
    """The level with one agent, whatever the room; ADMIN means that the agent's commands are theirs like an owner's.

    ``whole`` is what the configuration says, ``given`` what was given on anything.
    """
    if settled(whole):
        return whole
    subject = of_agent(agent.agent_id)
    if agent.owner and agent.owner == whole.mxid:
        return Grant(whole.mxid, Level.ADMIN, subject=subject, owner=True)
    return given_on(whole, given, subject) or whole


def with_room(whole: Grant, given: Iterable[Access], room_id: RoomID) -> Grant:
    """The level in one room; ADMIN means that the room's commands are theirs."""
    return whole if settled(whole) else given_on(whole, given, of_room(room_id)) or whole


def talk(whole: Grant, given: Iterable[Access], agent: Owned, room_id: RoomID) -> Grant:
    """Whether this person may talk to the agent in the room: at least USER, with what decided it."""
    given = list(given)
    on_agent = with_agent(whole, given, agent)
    if on_agent.owner or settled(whole):
        return on_agent
    decided = [g for g in (on_agent, with_room(whole, given, room_id)) if g.subject]
    if not decided:
        return whole
    refused = [g for g in decided if g.level is Level.NONE]
    return refused[0] if refused else max(decided, key=lambda g: g.level)


def bring(whole: Grant, given: Iterable[Access], agent: Owned, room_id: RoomID) -> Grant:
    """Whether this person may bring the agent into the room. That they may talk to whoever is in the room is not
    enough: they could call in every agent.
    """
    given = [access for access in given if not (access.subject == of_room(room_id) and access.level == "user")]
    return talk(whole, given, agent, room_id)


def talks(whole: Grant, given: Iterable[Access], agents: Iterable[Owned], room_id: RoomID) -> dict[AgentID, Grant]:
    """:func:`talk` for those agents of a room for which it is something else than ``whole``."""
    given = list(given)
    found = {agent.agent_id: talk(whole, given, agent, room_id) for agent in agents if given or agent.owner}
    return {agent_id: grant for agent_id, grant in found.items() if grant != whole}


def anywhere(whole: Grant, given: Iterable[Access], *, owner: bool) -> Grant:
    """What this person may do with the bot and where no agent is meant: who is let in to some agent or room, or owns
    an agent, counts as a user.

    ``given`` is what :func:`names` were given, ``owner`` whether the person owns an agent.
    """
    if settled(whole) or whole.level >= Level.USER:
        return whole
    given = list(given)
    subjects = dict.fromkeys(access.subject for access in given)
    found = (given_on(whole, given, subject) for subject in subjects)
    if owner or any(grant is not None and grant.level >= Level.USER for grant in found):
        return replace(whole, level=Level.USER)
    return whole


def counts_as_person(whole: Grant, given: Iterable[Access]) -> bool:
    """Whether somebody in a room is a person: not a bot by ``ignored_senders``, unless let in by the full Matrix id."""
    return whole.ignored_by is None or any(g.who == whole.mxid and g.level != "none" for g in given)


def given_on(whole: Grant, given: Iterable[Access], subject: str) -> Grant | None:
    """What the most specific grant on ``subject`` says. Who matches ``ignored_senders`` is met by the own id only."""
    levels = {access.who: access.level for access in given if access.subject == subject}
    for who in names(whole):
        if who in levels:
            return Grant(whole.mxid, LEVELS[levels[who]], entry=who, subject=subject)
    return None


def names(whole: Grant) -> tuple[str, ...]:
    """What a grant to this person can be given to, the most specific first."""
    localpart, colon, domain = whole.mxid.partition(":")
    if not (localpart.startswith("@") and colon and domain):
        return ()
    return (whole.mxid,) if whole.ignored_by is not None else (whole.mxid, domain, EVERYBODY)
