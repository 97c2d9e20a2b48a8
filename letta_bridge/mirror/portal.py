"""The portal of an agent: its room with the bot, the puppet and the configured people."""

import logging
from collections.abc import Mapping
from typing import Any

from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.rooms import Rooms
from ..ids import RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from .maker import PORTAL_STATE, RoomExistsError, RoomMaker, State, find, people_in, portal_agent
from .names import Names, shown_name, shown_topic
from .people import People
from .writer import Writer

log = logging.getLogger(__name__)


class Portals:
    """Makes portals and keeps their name, topic and place. Methods return the agent's row as it is then."""

    def __init__(self, homeserver: Homeserver, names: Names, rooms: Rooms, maker: RoomMaker, people: People) -> None:
        self._homeserver = homeserver
        self._names = names
        self._rooms = rooms
        self._maker = maker
        self._people = people

    async def open(self, row: AgentRow, writer: Writer, space: RoomID | None) -> tuple[AgentRow, bool]:
        """Create the portal, or adopt the one that is there; and whether it names ``space`` as its parent.

        Raises:
            MirrorError: another room has the portal's alias.
            HomeserverError: not now.
        """
        name, topic = shown_name(row.name, row.agent_id), shown_topic(row.description)
        body = await self._body(row, name, topic, space)
        try:
            room_id, invited = await self._maker.make(body, [row.mxid], self._people.wanted)
        except RoomExistsError:
            return await self._adopt(row, writer), False

        async def note(conn: Connection) -> None:
            await self._rooms.mark_known(conn, room_id)
            await self._rooms.set_membership(conn, room_id, self._homeserver.bot_mxid, "join")
            await self._rooms.note_invited(conn, room_id, invited)

        row = await writer.save(row, note, portal_room=room_id, portal_name=name, portal_topic=topic)
        return row, space is not None

    async def _body(self, row: AgentRow, name: str, topic: str, space: RoomID | None) -> dict[str, Any]:
        state: list[dict[str, Any]] = [
            {"type": PORTAL_STATE, "state_key": "", "content": {"version": 1, "agent_id": row.agent_id}},
            {"type": "m.room.guest_access", "state_key": "", "content": {"guest_access": "forbidden"}},
        ]
        if space is not None:
            state.append({"type": "m.space.parent", "state_key": space, "content": self._parent()})
        return {
            "preset": "private_chat",  # by invitation only; who is invited reads what was said before
            "room_alias_name": self._names.localpart(row.agent_id),
            "name": name,
            **({"topic": topic} if topic else {}),
            "initial_state": state,
            "power_level_content_override": await self._maker.power({row.mxid: 50}),
        }

    def _parent(self) -> Mapping[str, Any]:
        return {"via": [self._names.domain], "canonical": True}

    async def _adopt(self, row: AgentRow, writer: Writer) -> AgentRow:
        def ours(state: State) -> bool:
            return portal_agent(state, self._homeserver.bot_mxid) == row.agent_id

        alias = self._names.alias(self._names.localpart(row.agent_id))
        room_id, state = await self._maker.existing(alias, ours)

        async def note(conn: Connection) -> None:
            await self._rooms.snapshot(conn, room_id, state)
            await self._rooms.note_invited(conn, room_id, people_in(state, self._people.wanted))

        log.info("portal found again", extra={"action": "portal_adopted", "agent": row.agent_id, "room": room_id})
        return await writer.save(
            row,
            note,
            portal_room=room_id,
            portal_name=_text(find(state, "m.room.name"), "name"),
            portal_topic=_text(find(state, "m.room.topic"), "topic"),
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
        return await writer.save(
            row, lambda conn: self._rooms.set_membership(conn, room_id, row.mxid, "join"), portal_joined=True
        )

    async def dress(self, row: AgentRow, writer: Writer) -> AgentRow:
        """Let name and topic follow the agent."""
        assert row.portal_room is not None
        room_id = row.portal_room
        name, topic = shown_name(row.name, row.agent_id), shown_topic(row.description)
        if row.portal_name != name:
            await self._homeserver.bot.set_state(room_id, "m.room.name", "", {"name": name})
            row = await writer.save(row, portal_name=name)
        if row.portal_topic != topic:
            await self._homeserver.bot.set_state(room_id, "m.room.topic", "", {"topic": topic})
            row = await writer.save(row, portal_topic=topic)
        return row

    async def place(self, row: AgentRow, writer: Writer, space: RoomID, *, parent_told: bool) -> AgentRow:
        """Make the portal a child of the space, and the space its parent."""
        assert row.portal_room is not None
        bot = self._homeserver.bot
        if not parent_told:
            await bot.set_state(row.portal_room, "m.space.parent", space, self._parent())
        await bot.set_state(space, "m.space.child", row.portal_room, {"via": [self._names.domain]})
        return await writer.save(row, in_space=space)


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    return value if isinstance(value, str) else ""
