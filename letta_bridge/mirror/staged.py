"""One agent made in stages, and taken back: for jobs that show and record each stage, beside the mirror's passes.

Both meet in the agent's row: whoever works on an agent holds its lock, reads the row, and writes every finished step
down. Between replicas, where there is no common lock, the portal's alias decides.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from ..db.agents import AgentRow, Agents
from ..db.database import Connection, Database, clean
from ..db.lifecycle import Lifecycle
from ..db.rooms import Rooms, doubt
from ..ids import MXID, AgentID, RoomID
from ..lanes import Fence, Lanes
from ..letta.backend import Agent
from ..matrix.homeserver import Homeserver, HomeserverError
from .avatar import avatar_source
from .bot import Bot, new_device_id
from .maker import find, portal_agent
from .names import Names
from .portal import Portals
from .provision import Provisioner
from .space import Space
from .target import forgotten_portal
from .trouble import MirrorError
from .writer import Writer

WITHDRAWN = "This room was made for an agent that does not exist after all."


class Staged:
    """Methods take the fence of the caller's lane (None for what is harmless to repeat), may be repeated, and return
    the agent's row as it is then.

    They raise HomeserverError and MirrorError with every finished step written.
    """

    def __init__(
        self,
        *,
        db: Database,
        agents: Agents,
        rooms: Rooms,
        lanes: Lanes,
        homeserver: Homeserver,
        names: Names,
        bot: Bot,
        provisioner: Provisioner,
        portals: Portals,
        space: Space,
        lock: Callable[[AgentID], AbstractAsyncContextManager[Any]],
    ) -> None:
        self._db = db
        self._agents = agents
        self._lifecycle = Lifecycle(db, agents)
        self._rooms = rooms
        self._lanes = lanes
        self._homeserver = homeserver
        self._names = names
        self._bot = bot
        self._provisioner = provisioner
        self._portals = portals
        self._space = space
        self._lock = lock

    # -- forward

    async def write_down(self, fence: Fence | None, agent: Agent, *, recalled: bool = False, **facts: Any) -> AgentRow:
        """The agent's row with what Letta has just said of it and with ``facts``, whoever wrote it first.

        One that was missing or archived is back. One that was despawned by a command stays so, unless ``recalled``.
        """
        name = clean(agent.name)
        async with self._lock(agent.id):
            await self._agents.add(agent.id, self._names.mxid(agent.id), new_device_id(), name)
            row = await self._read(agent.id)
            columns: dict[str, Any] = {"name": name, "description": clean(agent.description), "model": agent.model}
            columns["tags"] = tuple(map(clean, agent.tags))
            if row.avatar != (avatar := avatar_source(agent.metadata)):
                columns |= {"avatar": avatar, "avatar_mxc": ""}
            if recalled:
                columns["dismissed"] = False

            async def back(conn: Connection) -> None:
                await self._lifecycle.bring_back(conn, [agent.id])
                if row.portal_room and any(getattr(row, name) != value for name, value in facts.items()):
                    await doubt(conn, row.portal_room)  # a pass made the room first: it says whose it was until now

            await self._writer(fence).save(row, back, **columns, **facts)
            return await self._read(agent.id)

    async def puppet(self, fence: Fence | None, agent_id: AgentID) -> AgentRow:
        """The user: registered, named, with its device."""
        async with self._working(agent_id, fence) as (row, writer):
            return await self._provisioner.puppet(row, writer)

    async def picture(self, fence: Fence | None, agent_id: AgentID) -> AgentRow:
        """The picture; its trouble never holds up the rest."""
        async with self._working(agent_id, fence) as (row, writer):
            return await self._provisioner.picture(row, writer)

    async def room(self, fence: Fence | None, agent_id: AgentID) -> AgentRow:
        """The portal, made or found again, with the puppet in it."""
        async with self._working(agent_id, fence) as (row, writer):
            if row.portal_room is None:
                row, _ = await self._portals.open(row, writer, self._space.usable, wanted_back=True)
            if not row.portal_joined:
                row = await self._portals.join(row, writer)
            return row

    async def place(self, fence: Fence | None, agent_id: AgentID) -> AgentRow:
        """The portal's place in the space, if the space is there and lets us; else a pass sees to it."""
        async with self._working(agent_id, fence) as (row, writer):
            space = self._space.usable
            if space is not None and row.in_space != space:
                try:
                    return await self._portals.place(row, writer, space, parent_told=False)
                except HomeserverError as error:
                    if not error.forbidden:
                        raise  # a space that refuses holds up no agent; the mirror looks at it
            return row

    async def rest(self, fence: Fence | None, agent_id: AgentID) -> AgentRow:
        """Whatever else a pass would do; of an archived agent, that its room and its user say so."""
        async with self._working(agent_id, fence) as (row, writer):
            return await self._provisioner.everything(row, writer, self._space.usable)

    # -- back

    async def unplace(self, fence: Fence | None, agent_id: AgentID) -> None:
        """Out of the space."""
        async with self._withdrawing(agent_id, fence) as found:
            if found is not None:
                await self._unplace(*found)

    async def close_room(self, fence: Fence | None, agent_id: AgentID) -> None:
        """The portal that was made is left by everybody, and its alias leads nowhere."""
        async with self._withdrawing(agent_id, fence) as found:
            if found is not None:
                await self._close_room(*found)

    async def withdraw(self, fence: Fence | None, agent_id: AgentID) -> None:
        """Nothing of the agent is to be seen any more: place, room and profile, also what a pass made meanwhile."""
        async with self._withdrawing(agent_id, fence) as found:
            if found is None:
                return
            row, writer = found
            row = await self._close_room(await self._unplace(row, writer), writer)
            if row.registered:
                await self._homeserver.intent(row.mxid).clear_profile()
                await writer.save(row, shown_name="", shown_avatar=None)

    async def _unplace(self, row: AgentRow, writer: Writer) -> AgentRow:
        if row.in_space and row.portal_room:
            await self._homeserver.bot.set_state(RoomID(row.in_space), "m.space.child", row.portal_room, {})
        return await writer.save(row, in_space="")

    async def _close_room(self, row: AgentRow, writer: Writer) -> AgentRow:
        bot, alias = self._homeserver.bot, self._names.portal_alias(row.mxid)
        room_id = row.portal_room or await bot.resolve_alias(alias)
        if room_id is None:
            return row
        state = await self._state(room_id)
        if portal_agent(state, self._homeserver.bot_mxid) == row.agent_id:
            row = await writer.save(row, portal_room=room_id)  # so that it is found again when the alias is gone
            await bot.delete_alias(alias)
            for event in state:
                who, content = event.get("state_key"), event.get("content") or {}
                inside = event.get("type") == "m.room.member" and content.get("membership") in ("join", "invite")
                if inside and isinstance(who, str) and not self._names.is_ours(who):
                    await bot.kick(room_id, MXID(who), WITHDRAWN)
            await self._homeserver.intent(row.mxid).leave(room_id)
            await bot.leave(room_id)

        async def note(conn: Connection) -> None:
            for mxid in (row.mxid, self._homeserver.bot_mxid):
                await self._rooms.set_membership(conn, room_id, mxid, "leave")
            await self._rooms.mark_known(conn, room_id, False)

        return await writer.save(row, note, **forgotten_portal())

    async def _state(self, room_id: RoomID) -> list[dict[str, Any]]:
        """The room's state while the bot is in it; empty once it certainly is not."""
        try:
            state = await self._homeserver.bot.state(room_id)
        except HomeserverError as error:
            if error.status not in (403, 404) or not error.errcode:
                raise
            return []
        joined = find(state, "m.room.member", self._homeserver.bot_mxid).get("membership") == "join"
        return state if joined else []

    # -- common

    def _writer(self, fence: Fence | None) -> Writer:
        return Writer(self._db, self._agents, self._lanes, fence)

    async def _read(self, agent_id: AgentID) -> AgentRow:
        row = await self._agents.get(agent_id)
        if row is None:
            raise MirrorError("the agent is not known any more", conflict=True)
        return row

    @asynccontextmanager
    async def _working(self, agent_id: AgentID, fence: Fence | None) -> AsyncIterator[tuple[AgentRow, Writer]]:
        """The agent's row under its lock; devices that the homeserver has forgotten are made again the next time."""
        writer = self._writer(fence)
        await self._bot.ready()
        async with self._lock(agent_id):
            row = await self._read(agent_id)
            try:
                yield row, writer
            except HomeserverError as error:
                if error.unknown_device:
                    await self._provisioner.lost_device(row, writer)
                    await self._bot.remake_device()
                raise

    @asynccontextmanager
    async def _withdrawing(
        self, agent_id: AgentID, fence: Fence | None
    ) -> AsyncIterator[tuple[AgentRow, Writer] | None]:
        """The same for what is to go: no pass makes it anew from now on. None when nothing was ever written down."""
        if await self._agents.get(agent_id) is None:
            yield None
            return
        async with self._working(agent_id, fence) as (row, writer):
            if not row.dismissed:
                row = await writer.save(row, dismissed=True, state="archived")
            yield row, writer
