"""The portal of an agent: its room with the bot, the puppet and the configured people."""

import logging
from collections.abc import Mapping
from typing import Any

from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.past_rooms import PastRooms
from ..db.rooms import Rooms
from ..ids import RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from .maker import PORTAL_STATE, RoomExistsError, RoomMaker, State, find, people_in, portal_agent
from .names import Names
from .people import People, Wanted
from .target import (
    BRIDGE_STATE,
    bridge_content,
    bridge_key,
    marks_dismissal,
    parent_content,
    portal_content,
    target_of,
    told_by_mark,
)
from .writer import Writer

log = logging.getLogger(__name__)


class SpaceRefusedError(HomeserverError):
    """It is the space that refused, not the portal."""


class Portals:
    """Makes portals and keeps their name, topic and place. Methods return the agent's row as it is then."""

    def __init__(
        self,
        homeserver: Homeserver,
        names: Names,
        rooms: Rooms,
        past: PastRooms,
        maker: RoomMaker,
        people: People,
    ) -> None:
        self._homeserver = homeserver
        self._names = names
        self._rooms = rooms
        self._past = past
        self._maker = maker
        self._people = people

    async def open(
        self, row: AgentRow, writer: Writer, space: RoomID | None, *, wanted_back: bool = False
    ) -> tuple[AgentRow, bool]:
        """Create the portal, or adopt the one that is there; and whether it names ``space`` as its parent.

        A portal that is adopted tells whose agent it is, and whether the agent was dismissed: then it is archived
        again, unless it is ``wanted_back``.

        Raises:
            MirrorError: another room has the portal's alias.
            HomeserverError: not now.
        """
        target, wanted = target_of(row), await self._people.for_portal(row.agent_id)
        try:
            room_id, invited = await self._maker.make(await self._body(row, space), [row.mxid], wanted.invited)
        except RoomExistsError:
            return await self._adopt(row, writer, wanted, wanted_back), False

        async def note(conn: Connection) -> None:
            await self._rooms.mark_known(conn, room_id)
            await self._rooms.set_membership(conn, room_id, self._homeserver.bot_mxid, "join")
            await self._rooms.note_invited(conn, room_id, invited)
            await self._people.leave_alone(conn, room_id, wanted.left_alone)
            await self._past.point(conn, row.agent_id, room_id)

        row = await writer.save(
            row,
            note,
            portal_room=room_id,
            portal_name=target.portal_name,
            portal_topic=target.portal_topic,
            portal_bridge=target.bridge,
        )
        return row, space is not None

    async def _body(self, row: AgentRow, space: RoomID | None) -> dict[str, Any]:
        target = target_of(row)
        bridge = bridge_content(row, self._homeserver.bot_mxid)
        state: list[dict[str, Any]] = [
            {"type": PORTAL_STATE, "state_key": "", "content": portal_content(row)},
            {"type": BRIDGE_STATE, "state_key": bridge_key(row), "content": bridge},
            {"type": "m.room.guest_access", "state_key": "", "content": {"guest_access": "forbidden"}},
        ]
        if space is not None:
            parent = parent_content(self._names.domain)
            state.append({"type": "m.space.parent", "state_key": space, "content": parent})
        return {
            "preset": "private_chat",  # by invitation only; who is invited reads what was said before
            "room_alias_name": self._names.portal_localpart(row.mxid),
            "name": target.portal_name,
            **({"topic": target.portal_topic} if target.portal_topic else {}),
            "initial_state": state,
            "power_level_content_override": await self._maker.power({row.mxid: 50}),
        }

    async def _adopt(self, row: AgentRow, writer: Writer, wanted: Wanted, wanted_back: bool) -> AgentRow:
        def ours(state: State) -> bool:
            return portal_agent(state, self._homeserver.bot_mxid) == row.agent_id

        alias = self._names.portal_alias(row.mxid)
        room_id, state = await self._maker.existing(alias, ours)

        async def note(conn: Connection) -> None:
            await self._rooms.snapshot(conn, room_id, state)
            invited = people_in(state, self._people.wanted)
            await self._rooms.note_invited(conn, room_id, invited)
            await self._people.leave_alone(conn, room_id, wanted.left_alone)
            await self._past.point(conn, row.agent_id, room_id)

        log.info("portal found again", extra={"action": "portal_adopted", "agent": row.agent_id, "room": room_id})
        bridged = find(state, BRIDGE_STATE, bridge_key(row)) == bridge_content(row, self._homeserver.bot_mxid)
        told = told_by_mark(row, find(state, PORTAL_STATE))
        if wanted_back and told.pop("dismissed", False):
            del told["state"]
        return await writer.save(
            row,
            note,
            **told,
            portal_room=room_id,
            portal_name=_text(find(state, "m.room.name"), "name"),
            portal_topic=_text(find(state, "m.room.topic"), "topic"),
            portal_bridge=target_of(row).bridge if bridged else None,
            portal_joined=find(state, "m.room.member", row.mxid).get("membership") == "join",
        )

    async def join(self, row: AgentRow, writer: Writer) -> AgentRow:
        """Let the puppet join its portal; invited again by the bot if the first invitation failed."""
        assert row.portal_room is not None
        room_id = row.portal_room
        puppet = self._homeserver.intent(row.mxid)
        try:
            await puppet.join(room_id)
        except HomeserverError as error:
            if not error.forbidden:
                raise
            await self._homeserver.bot.invite(room_id, row.mxid)
            await puppet.join(room_id)
            extra = {"action": "agent_asked_back", "agent": row.agent_id, "room": room_id}
            log.info("an agent that was not in its room is back", extra=extra)
        return await writer.save(
            row, lambda conn: self._rooms.set_membership(conn, room_id, row.mxid, "join"), portal_joined=True
        )

    async def dress(self, row: AgentRow, writer: Writer) -> AgentRow:
        """Let name, topic and what clients read of the bridge follow the agent."""
        assert row.portal_room is not None
        bot, room_id, target = self._homeserver.bot, row.portal_room, target_of(row)
        if row.portal_name != target.portal_name:
            await bot.set_state(room_id, "m.room.name", "", {"name": target.portal_name})
            row = await writer.save(row, portal_name=target.portal_name)
        if row.portal_topic != target.portal_topic:
            await bot.set_state(room_id, "m.room.topic", "", {"topic": target.portal_topic})
            row = await writer.save(row, portal_topic=target.portal_topic)
        if row.portal_bridge != target.bridge:
            if row.portal_bridge is not None and (row.dismissed or marks_dismissal(row)):
                # a row that never knew of a dismissal believes its mark: see told_by_mark
                row = await writer.save(row, portal_bridge="")
                await bot.set_state(room_id, PORTAL_STATE, "", portal_content(row))
            await bot.set_state(room_id, BRIDGE_STATE, bridge_key(row), bridge_content(row, bot.mxid))
            row = await writer.save(row, portal_bridge=target.bridge)
        return row

    async def place(self, row: AgentRow, writer: Writer, space: RoomID, *, parent_told: bool) -> AgentRow:
        """Make the portal a child of the space, and the space its only parent."""
        assert row.portal_room is not None
        bot = self._homeserver.bot
        if row.in_space and row.in_space != space:  # a space before this one
            await bot.set_state(row.portal_room, "m.space.parent", row.in_space, {})
        if not parent_told:
            await bot.set_state(row.portal_room, "m.space.parent", space, parent_content(self._names.domain))
        await self._list(space, row.portal_room, {"via": [self._names.domain]})
        return await writer.save(row, in_space=space)

    async def displace(self, row: AgentRow, writer: Writer, space: RoomID) -> AgentRow:
        """Take the portal out of the space: not its child any more, and without a parent, which alone would list it."""
        assert row.portal_room is not None
        bot = self._homeserver.bot
        if row.in_space == space:
            await self._list(space, row.portal_room, {})
        await bot.set_state(row.portal_room, "m.space.parent", row.in_space, {})
        return await writer.save(row, in_space="")

    async def _list(self, space: RoomID, room_id: RoomID, content: Mapping[str, Any]) -> None:
        try:
            await self._homeserver.bot.set_state(space, "m.space.child", room_id, content)
        except HomeserverError as error:
            if error.forbidden or error.not_found:
                raise SpaceRefusedError(error.status, error.errcode, error.message) from None
            raise


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    return value if isinstance(value, str) else ""
