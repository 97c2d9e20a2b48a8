"""The database made again from what the rooms say of themselves: what it lacks, never against what it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..commands.desk import Desk
from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.lifecycle import Lifecycle, NewRow
from ..ids import MXID, AgentID, RoomID
from ..matrix.homeserver import HomeserverError
from .bot import new_device_id
from .maker import PORTAL_STATE, SPACE_STATE, State, find, portal_agent
from .space import note_found
from .target import ARCHIVED, BRIDGE_STATE, bridge_content, bridge_key, in_force, target_of, told_by_mark


@dataclass(slots=True)
class RebuildReport:
    """What was written, or with ``dry_run`` would be.

    Attributes:
        agents: agents that the database did not know.
        portals: portals that it did not know, by agent.
        told: agents of which it did not know the owner, the origin, or that they were despawned.
        space: the space, if it did not know it.
        past: former portals that it did not know.
        rooms: other rooms whose members it did not know.
        invitations: people who are remembered as invited to a portal or the space, and so never invited again.
        conflicts: what the rooms say and the database says differently; nothing is changed there.
        unreadable: rooms that could not be read now.
        looked: rooms that were looked at.
    """

    dry_run: bool
    looked: int = 0
    agents: list[AgentID] = field(default_factory=list)
    portals: dict[AgentID, RoomID] = field(default_factory=dict)
    told: list[AgentID] = field(default_factory=list)
    space: RoomID | None = None
    past: list[RoomID] = field(default_factory=list)
    rooms: list[RoomID] = field(default_factory=list)
    invitations: int = 0
    conflicts: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


async def rebuild(desk: Desk, *, dry_run: bool) -> RebuildReport:
    """Read every room that the bot is in. May be repeated; a repeat finds nothing more to do.

    Raises:
        HomeserverError: the homeserver does not say which rooms the bot is in.
    """
    return await _Rebuild(desk, RebuildReport(dry_run)).run()


class _Rebuild:
    def __init__(self, desk: Desk, report: RebuildReport) -> None:
        self._desk = desk
        self._report = report
        self._bot = desk.homeserver.bot_mxid
        self._space: RoomID | None = None
        self._children: set[str] = set()

    async def run(self) -> RebuildReport:
        portals: dict[AgentID, list[tuple[RoomID, State]]] = {}
        spaces: list[tuple[RoomID, State]] = []
        others: list[tuple[RoomID, State]] = []
        for room_id in sorted(await self._desk.homeserver.bot.joined_rooms()):
            state = await self._read(room_id)
            if state is None:
                continue
            agent_id = portal_agent(state, self._bot)
            if find(state, "m.room.create").get("type") == "m.space" and _said_by(state, SPACE_STATE, self._bot):
                spaces.append((room_id, state))
            elif agent_id is None:
                others.append((room_id, state))
            elif (successor := _successor(state)) is not None:
                await self._past(room_id, agent_id, successor, state)
            else:
                portals.setdefault(agent_id, []).append((room_id, state))
        await self._find_space(spaces)
        for agent_id, rooms in portals.items():
            await self._portal(agent_id, rooms)
        for room_id, state in others:
            await self._other(room_id, state)
        if not self._report.dry_run:
            await self._desk.directory.start()
        return self._report

    async def _read(self, room_id: RoomID) -> State | None:
        self._report.looked += 1
        try:
            return await self._desk.homeserver.bot.state(room_id)
        except HomeserverError as error:
            self._report.unreadable.append(f"{room_id}: {error}")
            return None

    # -- the space

    async def _find_space(self, spaces: list[tuple[RoomID, State]]) -> None:
        known = self._desk.directory.space_room
        if not spaces:
            return
        found = await self._chosen("the space", self._alias_in(spaces), spaces)
        if found is None:
            return
        room_id, state = found
        self._space = known or room_id
        listing = state if self._space == room_id else []
        self._children = {
            str(event.get("state_key"))
            for event in listing
            if event.get("type") == "m.space.child" and in_force(event.get("content") or {})
        }
        if known is not None:
            if known != room_id:
                self._report.conflicts.append(f"{room_id} says it is the space; the database has {known}")
            return
        self._report.space = room_id

        async def work(conn: Connection) -> None:
            if await note_found(conn, room_id):
                await self._desk.rooms.snapshot(conn, room_id, state)
                await self._desk.rooms.note_invited(conn, room_id, self._people(state))

        await self._write(work)
        self._report.invitations += len(self._people(state))

    def _alias_in(self, rooms: list[tuple[RoomID, State]]) -> str | None:
        aliases = {find(state, "m.room.canonical_alias").get("alias") for _, state in rooms}
        named = [alias for alias in aliases if isinstance(alias, str)]
        return named[0] if len(named) == 1 else None

    async def _chosen(
        self, what: str, alias: str | None, rooms: list[tuple[RoomID, State]]
    ) -> tuple[RoomID, State] | None:
        """The one room, or of several the one that the alias leads to."""
        if len(rooms) == 1:
            return rooms[0]
        led: RoomID | None = None
        if alias is not None:
            try:
                led = await self._desk.homeserver.bot.resolve_alias(alias)
            except HomeserverError as error:
                self._report.unreadable.append(f"{alias}: {error}")
                return None
        for room in rooms:
            if room[0] == led:
                return room
        listed = ", ".join(room_id for room_id, _ in rooms)
        self._report.conflicts.append(f"several rooms say they are {what}, and no alias decides: {listed}")
        return None

    # -- portals

    async def _portal(self, agent_id: AgentID, rooms: list[tuple[RoomID, State]]) -> None:
        desk, report = self._desk, self._report
        row = await desk.agents.get(agent_id)
        puppet = row.mxid if row is not None else self._puppet(agent_id, rooms[0][1])
        if puppet is None:
            report.conflicts.append(f"{rooms[0][0]} names a puppet that is none of the bridge's")
            return
        found = await self._chosen(f"the portal of {agent_id}", "#" + puppet[1:], rooms)
        if found is None:
            return
        room_id, state = found
        if row is not None and row.portal_room is not None:
            if row.portal_room != room_id:
                report.conflicts.append(
                    f"{room_id} says it is the portal of {agent_id}; the database has {row.portal_room}"
                )
            else:
                await self._lacking(row, room_id, find(state, PORTAL_STATE))
            return
        other = await desk.agents.by_portal(room_id) or (await desk.agents.by_mxid(puppet) if row is None else None)
        if other is not None:
            report.conflicts.append(f"{room_id} says it is the portal of {agent_id}; the database has {other.agent_id}")
            return
        if row is None:
            report.agents.append(agent_id)
        report.portals[agent_id] = room_id
        report.invitations += len(self._people(state))
        await self._write(lambda conn: self._write_portal(conn, agent_id, puppet, room_id, state))

    async def _lacking(self, row: AgentRow, room_id: RoomID, mark: Mapping[str, Any]) -> None:
        """What the row of a known portal does not say, and the portal's mark does."""
        owner = mark.get("owner")
        if row.owner and isinstance(owner, str) and owner != row.owner:
            what = f"{owner} owns {row.agent_id}; the database has {row.owner}"
            self._report.conflicts.append(f"{room_id} says that {what}")
        if not told_by_mark(row, mark):
            return
        self._report.told.append(row.agent_id)

        async def work(conn: Connection) -> None:
            now = await self._desk.agents.get(row.agent_id, conn)
            if now is not None and now.portal_room == room_id and (told := told_by_mark(now, mark)):
                await self._desk.agents.update_in(conn, row.agent_id, **told)

        await self._write(work)

    def _puppet(self, agent_id: AgentID, state: State) -> MXID | None:
        named = find(state, PORTAL_STATE).get("puppet")
        puppet = MXID(named) if isinstance(named, str) else self._desk.directory.mxid_of(agent_id)
        return puppet if self._desk.directory.is_ours(puppet) and puppet != self._bot else None

    async def _write_portal(
        self, conn: Connection, agent_id: AgentID, puppet: MXID, room_id: RoomID, state: State
    ) -> None:
        agents = self._desk.agents
        row = await agents.get(agent_id, conn)
        member = find(state, "m.room.member", puppet)
        name = _text(find(state, "m.room.name"), "name")
        archived = name.endswith(ARCHIVED) and room_id not in self._children
        if row is None:
            called = name.removesuffix(ARCHIVED) or _text(member, "displayname")
            new = NewRow(agent_id, puppet, new_device_id(), called, "", "", (), "", "done")
            await Lifecycle(self._desk.db, agents).add(conn, [new])
            row = await agents.get(agent_id, conn)
            if row is None:
                return  # its user became somebody else's meanwhile
            await agents.update_in(conn, agent_id, **_facts(member, archived))
        if row.portal_room is not None or await agents.by_portal(room_id, conn) is not None:
            return
        joined = member.get("membership") == "join"
        told = told_by_mark(row, find(state, PORTAL_STATE))
        row = replace(row, **told)
        columns: dict[str, Any] = {
            **told,
            "portal_room": room_id,
            "portal_name": name,
            "portal_topic": _text(find(state, "m.room.topic"), "topic"),
            "portal_joined": joined,
            "portal_bridge": self._bridge(row, state),
            "in_space": (self._space or "") if room_id in self._children else "",
        }
        await agents.update_in(conn, agent_id, **columns)
        await self._desk.rooms.snapshot(conn, room_id, state)
        await self._desk.rooms.note_invited(conn, room_id, self._people(state))

    def _bridge(self, row: AgentRow, state: State) -> str | None:
        told = find(state, BRIDGE_STATE, bridge_key(row)) == bridge_content(row, self._bot)
        return target_of(row).bridge if told else None

    # -- what is left

    async def _past(self, room_id: RoomID, agent_id: AgentID, successor: RoomID, state: State) -> None:
        if room_id in await self._desk.past_rooms.ids() or await self._desk.agents.by_portal(room_id) is not None:
            return
        self._report.past.append(room_id)

        async def work(conn: Connection) -> None:
            await self._desk.past_rooms.add(conn, room_id, agent_id, "upgraded")
            await self._desk.past_rooms.point(conn, agent_id, successor)
            await self._desk.rooms.snapshot(conn, room_id, state)

        await self._write(work)

    async def _other(self, room_id: RoomID, state: State) -> None:
        if (await self._desk.rooms.info(room_id)).known:
            return
        self._report.rooms.append(room_id)
        await self._write(lambda conn: self._desk.rooms.snapshot(conn, room_id, state))

    async def _write(self, work: Any) -> None:
        if not self._report.dry_run:
            await self._desk.db.write(work)

    def _people(self, state: State) -> list[MXID]:
        """Everybody who ever was invited or in, but ours."""
        about = [event.get("state_key") for event in state if event.get("type") == "m.room.member"]
        return [MXID(key) for key in about if isinstance(key, str) and not self._desk.directory.is_ours(MXID(key))]


def _successor(state: State) -> RoomID | None:
    named = find(state, "m.room.tombstone").get("replacement_room") or find(state, PORTAL_STATE).get("replaced_by")
    return RoomID(named) if isinstance(named, str) and named else None


def _facts(member: Mapping[str, Any], archived: bool) -> dict[str, Any]:
    """What is known of an agent that Letta has not named yet."""
    joined = member.get("membership") == "join"
    return {
        "state": "archived" if archived else "active" if joined else "new",
        "registered": joined,
        "shown_name": _text(member, "displayname") if joined else None,
    }


def _said_by(state: State, kind: str, user: MXID) -> bool:
    """Whether it was this user who said so: in a room of their own, people can say anything."""
    return any(event.get("type") == kind and event.get("sender") == user and event.get("content") for event in state)


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    return value if isinstance(value, str) else ""
