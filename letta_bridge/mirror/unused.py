"""Finds what the bridge has left behind: rooms that it does not use, and users without an agent.

Nothing is concluded from what could not be read. What is found is looked at once more right before it is given up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..db.agents import AgentRow
from ..ids import MXID, PREFIX, AgentID, RoomID, puppet_suffix
from ..letta.errors import Kind, LettaError
from ..matrix.homeserver import HomeserverError
from .guard import Guard
from .maker import SPACE_STATE, State, find, portal_agent

if TYPE_CHECKING:
    from ..commands.desk import Desk

T = TypeVar("T")
ROOM_STATE = f"{PREFIX}.room"
CLEARED, ENDED = "cleanup.cleared|", "cleanup.ended|"
"""Told rows, with a user's id behind them: it shows nothing any more; its account was ended, or cannot be."""
_AT_ONCE = 12
_UUID_LENGTH = 36
_MANY = 1000
_KEPT = ""

SECOND, FORMER, ORPHAN, SPACE, EMPTY = "second", "former", "orphan", "space", "empty"
WHY: Mapping[str, str] = {
    SECOND: "a second room of an agent that has its room",
    FORMER: "the former room of an agent that has another now",
    ORPHAN: "the room of an agent that Letta does not have any more, and the bridge does not know",
    SPACE: "a second space",
    EMPTY: "nobody is left in it but the bridge's own users",
}
"""Why a room is not used."""


class NotNowError(Exception):
    """It cannot be said for certain what is used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Unused:
    """A room that is not used.

    Attributes:
        why: a key of :data:`WHY`.
        ours: our users in it, or invited to it; the bot last.
        people: how many others are in it or invited.
        aliases: names of ours that may lead to it.
        seen_by: who of ours is in it.
    """

    room_id: RoomID
    why: str
    ours: tuple[MXID, ...]
    people: int
    aliases: tuple[str, ...]
    seen_by: MXID


@dataclass(slots=True)
class Findings:
    """What was found. ``unclear`` rooms could not be read; ``unasked`` counts users and rooms that were not looked at
    in time. ``deleted`` are users that show nothing any more and whose accounts could be ended: of agents that were
    dismissed and that Letta does not have any more, and of those that were cleaned up before.
    """

    rooms: list[Unused] = field(default_factory=list)
    users: list[MXID] = field(default_factory=list)
    deleted: list[MXID] = field(default_factory=list)
    used: int = 0
    unclear: list[RoomID] = field(default_factory=list)
    unasked: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What is used, as of now."""

    rows: Mapping[AgentID, AgentRow]
    puppets: frozenset[MXID]
    rooms: frozenset[RoomID]
    past: frozenset[RoomID]
    listed: frozenset[AgentID]
    space: RoomID | None
    rooms_are_made: bool
    """A command is making a room, which is empty for a moment."""


class Search:
    """Looks for it."""

    def __init__(self, desk: "Desk") -> None:
        self._desk = desk
        self._hs = desk.homeserver
        self._bot = desk.homeserver.bot_mxid
        self._gone: dict[AgentID, bool] = {}
        self._nobody: set[MXID] = set()
        """Names that somebody invited, and that no user has."""

    async def known(self) -> Known:
        """What is used now.

        Raises:
            NotNowError: Letta's list is not complete, or not believed.
            LettaError: Letta cannot be asked.
        """
        desk = self._desk
        if (await Guard(desk.db, desk.alarms).read()).frozen is not None:
            raise NotNowError(
                "Letta's list of agents is not believed at the moment (`guard` says why), so nothing is called unused"
            )
        listing = await desk.backend.list_agents()
        if not listing.complete:
            raise NotNowError("Letta's list of agents could not be read to its end; try again later")
        rows = {row.agent_id: row for row in await desk.agents.all()}
        rooms = {row.portal_room for row in rows.values() if row.portal_room}
        space = desk.directory.space_room
        rooms |= await desk.management.rooms()
        return Known(
            rows,
            frozenset(row.mxid for row in rows.values()),
            frozenset(rooms | ({space} if space else set())),
            frozenset(await desk.past_rooms.ids()),
            frozenset(agent.id for agent in listing.agents),
            space,
            any(job.kind == "room" for job in await desk.jobs.newest(_MANY, only_open=True)),
        )

    async def run(self, seconds: float) -> Findings:
        """Everything that can be found in ``seconds``."""
        known = await self.known()
        found, limit = Findings(used=len(known.rooms)), asyncio.get_running_loop().time() + seconds
        places: dict[RoomID, MXID] = {}

        async def ask(user: MXID) -> None:
            try:
                for room_id in await self._hs.intent(user).joined_rooms():
                    places.setdefault(room_id, user)
            except HomeserverError as error:
                if (error.status, error.errcode) == (403, "M_FORBIDDEN") and user not in known.puppets | {self._bot}:
                    self._nobody.add(user)  # so Synapse refuses to act as somebody who was never registered
                else:
                    found.unasked += 1

        users = await self._users(known)
        late = await _several([self._bot], ask, limit)
        late += await _several([user for user in users if user != self._bot], ask, limit)

        async def look(room_id: RoomID) -> None:
            try:
                unused = await self.judge(known, room_id, places[room_id])
            except (HomeserverError, LettaError):
                found.unclear.append(room_id)
                return
            if unused is not None:
                found.rooms.append(unused)
            else:
                found.used += 1

        late += await _several([room for room in places if room not in known.rooms], look, limit)
        found.unasked += late
        found.rooms.sort(key=lambda room: (room.why, room.room_id))
        await self._lonely(known, found, users, limit)
        return found

    async def _users(self, known: Known) -> list[MXID]:
        """Our users, as far as anything here knows of them."""
        rows = await self._desk.db.fetch("SELECT DISTINCT user_id FROM member")
        heard = {MXID(row["user_id"]) for row in rows if self._desk.directory.is_ours(row["user_id"])}
        made = {row.mxid for row in known.rows.values() if row.registered}
        return [self._bot, *sorted((heard | made) - {self._bot})]

    async def _lonely(self, known: Known, found: Findings, users: Iterable[MXID], limit: float) -> None:
        """Users without an agent."""
        told = self._desk.told
        seen = {*users, *(mxid for room in found.rooms for mxid in room.ours)}

        async def look(mxid: MXID) -> None:
            try:
                if await told.was_told(ENDED + mxid) or not await self.is_lonely(known, mxid):
                    return
                cleared = await told.was_told(CLEARED + mxid)
                (found.deleted if cleared else found.users).append(mxid)
            except LettaError:
                found.unasked += 1

        late = await _several(sorted(seen - known.puppets - self._nobody - {self._bot}), look, limit)
        found.unasked += late
        found.users.sort()
        for row in known.rows.values():
            if row.state == "archived" and row.dismissed and row.registered and row.agent_id not in known.listed:
                try:
                    if not await told.was_told(ENDED + row.mxid) and await self._is_gone(known, row.agent_id):
                        found.deleted.append(row.mxid)
                except LettaError:
                    found.unasked += 1

    # -- one thing

    async def is_lonely(self, known: Known, mxid: MXID) -> bool:
        """Whether the user is an agent's, and there certainly is no such agent. Raises LettaError."""
        if mxid in known.puppets or mxid == self._bot or not self._desk.directory.is_ours(mxid):
            return False
        if any(self._desk.directory.mxid_of(agent_id) == mxid for agent_id in known.listed):
            return False
        agent_id = _agent_of(mxid, self._desk.config.appservice.puppet_prefix)
        return agent_id is None or await self._is_gone(known, agent_id)

    async def _is_gone(self, known: Known, agent_id: AgentID) -> bool:
        """Whether Letta certainly does not have it: listings leave hidden agents out."""
        if agent_id in known.listed:
            return False
        if agent_id not in self._gone:
            try:
                await self._desk.backend.get_agent(agent_id)
                self._gone[agent_id] = False
            except LettaError as error:
                if error.kind not in (Kind.AGENT_GONE, Kind.REJECTED):  # refused: no agent can have such an id
                    raise
                self._gone[agent_id] = True
        return self._gone[agent_id]

    async def judge(self, known: Known, room_id: RoomID, seen_by: MXID) -> Unused | None:
        """Why a room is not used; None when it is, or may be.

        Raises:
            HomeserverError: it cannot be read.
            LettaError: it is not known whether its agent exists.
        """
        if room_id in known.rooms:
            return None
        state = await self._hs.intent(seen_by).state(room_id)
        if find(state, "m.room.member", seen_by).get("membership") != "join":
            raise HomeserverError(403, "M_FORBIDDEN", f"{seen_by} is not in the room any more")
        ours, people = self._inside(state)
        why = await self._why(known, room_id, state)
        if why is None and not people:
            why = EMPTY
        if not why:
            return None
        return Unused(room_id, why, tuple(ours), people, tuple(aliases_in(self._desk, state)), seen_by)

    async def _why(self, known: Known, room_id: RoomID, state: State) -> str | None:
        """What the room says of itself that cannot be (any more). None: it says nothing; empty: it is, or may be about
        to be used.
        """
        if room_id in known.past:
            return FORMER
        if _says(state, SPACE_STATE, self._bot):
            return _KEPT if known.space is None else SPACE
        if known.rooms_are_made and _says(state, ROOM_STATE, self._bot):
            return _KEPT
        agent_id = portal_agent(state, self._bot)
        if agent_id is None:
            return None
        row = known.rows.get(agent_id)
        if row is not None:
            return _KEPT if row.portal_room is None else SECOND
        return ORPHAN if await self._is_gone(known, agent_id) else _KEPT

    def _inside(self, state: State) -> tuple[list[MXID], int]:
        ours: list[MXID] = []
        people = 0
        for event in state:
            who, content = event.get("state_key"), event.get("content")
            if event.get("type") != "m.room.member" or not isinstance(who, str) or not isinstance(content, Mapping):
                continue
            if content.get("membership") not in ("join", "invite"):
                continue
            if self._desk.directory.is_ours(MXID(who)):
                ours.append(MXID(who))
            else:
                people += 1
        return sorted(ours, key=lambda mxid: (mxid == self._bot, mxid)), people


def aliases_in(desk: "Desk", state: State) -> list[str]:
    """Names in our namespace under which a room may be known."""
    canonical = find(state, "m.room.canonical_alias")
    names: list[Any] = [canonical.get("alias"), find(state, ROOM_STATE).get("job")]
    if isinstance(canonical.get("alt_aliases"), list):
        names += canonical["alt_aliases"]
    agent_id = portal_agent(state, desk.homeserver.bot_mxid)
    if agent_id is not None:
        names.append(f"#{desk.directory.mxid_of(agent_id)[1:]}")
    start, end = f"#{desk.config.appservice.puppet_prefix}", f":{desk.homeserver.domain}"
    texts = [name for name in dict.fromkeys(names) if isinstance(name, str)]
    return [name for name in texts if name.startswith(start) and name.endswith(end)]


def _says(state: State, kind: str, bot: MXID) -> bool:
    return any(
        event.get("type") == kind and event.get("state_key") == "" and event.get("sender") == bot for event in state
    )


def _agent_of(mxid: MXID, prefix: str) -> AgentID | None:
    """The agent whose user this is, where that can be read from the id."""
    agent_id = AgentID("agent-" + mxid[1 + len(prefix) :].partition(":")[0][:_UUID_LENGTH])
    return agent_id if mxid.startswith(f"@{prefix}{puppet_suffix(agent_id)}:") else None


async def _several(items: Sequence[T], work: Callable[[T], Awaitable[None]], limit: float) -> int:
    """Do the work for every item, several at a time, until ``limit``; how many were left out."""
    queue = iter(items)
    left = len(items)

    async def hand() -> None:
        nonlocal left
        for item in queue:
            if asyncio.get_running_loop().time() > limit:
                return
            await work(item)
            left -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_AT_ONCE, len(items))):
            group.create_task(hand())
    return left
