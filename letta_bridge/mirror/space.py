"""The space that lists every agent's portal: made once, found again, never made twice."""

import logging
from collections.abc import Callable
from typing import Any

from ..db.database import Connection
from ..db.memory import Settings
from ..db.rooms import Rooms
from ..ids import RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from .maker import SPACE_STATE, RoomExistsError, RoomMaker, State, find, people_in
from .names import Names, shown_topic
from .people import People
from .rests import Rests
from .settings import MirrorSettings
from .trouble import MirrorError, unreachable
from .writer import Writer

log = logging.getLogger(__name__)

_ROOM = "space"
_NAME = "space_name"


class Space:
    """One per bridge, under the alias ``#letta_space:<domain>``.

    ``room_id`` is None until it is made. Agents can be talked to without it.
    """

    def __init__(
        self,
        homeserver: Homeserver,
        names: Names,
        rooms: Rooms,
        settings: Settings,
        mirror: MirrorSettings,
        maker: RoomMaker,
        people: People,
        clock: Callable[[], float],
    ) -> None:
        self._homeserver = homeserver
        self._names = names
        self._rooms = rooms
        self._settings = settings
        self._name = shown_topic(mirror.space_name) or "Letta Agents"
        self._maker = maker
        self._people = people
        self._rests: Rests[str] = Rests(5.0, 3600.0, clock)
        self._shown: str | None = None
        self._fresh = False
        self.room_id: RoomID | None = None
        self.trouble = ""

    async def load(self) -> None:
        """Read what is known of it from the database."""
        stored = await self._settings.get(_ROOM)
        self.room_id = RoomID(stored) if stored else None
        self._shown = await self._settings.get(_NAME)

    async def ensure(self, writer: Writer) -> None:
        """Make it, name it, invite the people; trouble of its own is noted in ``trouble`` and tried again later.

        Raises:
            HomeserverError: the homeserver does nothing for us now.
        """
        if self._rests.resting(_ROOM):
            return
        try:
            await self._ensure(writer)
        except (HomeserverError, MirrorError) as error:
            if isinstance(error, HomeserverError) and (unreachable(error) or error.unknown_device):
                raise
            self._rests.failed(_ROOM)
            if self.trouble != str(error):
                self.trouble = str(error)
                log.warning("the space is not as it should be", extra={"action": "space_failed", "error": str(error)})
        else:
            self.trouble = ""
            self._rests.recovered(_ROOM)

    async def _ensure(self, writer: Writer) -> None:
        if self.room_id is None:
            try:
                await self._create(writer)
            except RoomExistsError:
                await self._adopt(writer)
        assert self.room_id is not None
        if self._shown != self._name:
            await self._homeserver.bot.set_state(self.room_id, "m.room.name", "", {"name": self._name})
            await self._remember_name()
        if not self._people.settled(self.room_id):
            await self._people.settle(self.room_id, writer, verify=not self._fresh)
            self._fresh = False

    async def _create(self, writer: Writer) -> None:
        room_id, invited = await self._maker.make(await self._body(), [], self._people.wanted)
        self._fresh = True

        async def note(conn: Connection) -> None:
            await self._rooms.mark_known(conn, room_id)
            await self._rooms.set_membership(conn, room_id, self._homeserver.bot_mxid, "join")
            await self._rooms.note_invited(conn, room_id, invited)

        await writer.run(note)
        await self._remember(room_id)
        await self._remember_name()
        log.info("space created", extra={"action": "space_created", "room": room_id})

    async def _body(self) -> dict[str, Any]:
        return {
            "preset": "private_chat",
            "room_alias_name": self._names.space_localpart,
            "name": self._name,
            "creation_content": {"type": "m.space"},
            "initial_state": [
                {"type": SPACE_STATE, "state_key": "", "content": {"version": 1}},
                {"type": "m.room.guest_access", "state_key": "", "content": {"guest_access": "forbidden"}},
            ],
            "power_level_content_override": await self._maker.power({}, events_default=100),
        }

    async def _adopt(self, writer: Writer) -> None:
        room_id, state = await self._maker.existing(self._names.alias(self._names.space_localpart), _is_space)

        async def note(conn: Connection) -> None:
            await self._rooms.snapshot(conn, room_id, state)
            await self._rooms.note_invited(conn, room_id, people_in(state, self._people.wanted))

        await writer.run(note)
        await self._remember(room_id)
        name = find(state, "m.room.name").get("name")
        self._shown = name if isinstance(name, str) else None
        log.info("space found again", extra={"action": "space_adopted", "room": room_id})

    async def _remember(self, room_id: RoomID) -> None:
        await self._settings.set(_ROOM, room_id)
        self.room_id = room_id

    async def _remember_name(self) -> None:
        await self._settings.set(_NAME, self._name)
        self._shown = self._name


def _is_space(state: State) -> bool:
    return find(state, "m.room.create").get("type") == "m.space" and find(state, SPACE_STATE).get("version") == 1
