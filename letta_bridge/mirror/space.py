"""The space that lists every agent's portal: made once, found again, never made twice by itself."""

import logging
from collections.abc import Callable
from typing import Any

from ..db.database import Connection
from ..db.memory import Settings
from ..db.rooms import Rooms
from ..ids import RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from ..matrix.look import look
from .maker import SPACE_STATE, RoomExistsError, RoomMaker, State, find, people_in
from .names import Names, shown_topic
from .people import People, Wanted
from .rests import Rests
from .settings import MirrorSettings
from .trouble import MirrorError, unreachable
from .writer import Writer

log = logging.getLogger(__name__)

_ROOM = "space"
_NAME = "space_name"
_LOST = "space_lost"
_REPLACE = "space_replace"


async def ask_for_another(settings: Settings, room_id: RoomID) -> None:
    """An admin asks for another space in the place of this one.

    The next pass makes it if that one is proven to be gone, or the bot is not in it any more; else nothing happens.
    """
    await settings.set(_REPLACE, room_id)


async def note_found(conn: Connection, room_id: RoomID) -> bool:
    """Within a transaction: this is the space, if none is known; whether that is now so."""
    await conn.execute(
        "INSERT INTO setting AS s (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2 "
        "WHERE s.value = ''",
        _ROOM,
        room_id,
    )
    return bool(await conn.fetchval("SELECT value FROM setting WHERE name = $1", _ROOM) == room_id)


class Space:
    """One per bridge, under the alias ``#letta_space:<domain>``.

    ``room_id`` is None until it is made. Agents can be talked to without it. When it is gone no other is made before
    an admin asks for it.
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
        self._lost = False
        self.room_id: RoomID | None = None
        self.trouble = ""

    @property
    def usable(self) -> RoomID | None:
        """The space, if it is there as far as is known."""
        return None if self._lost else self.room_id

    @property
    def alias(self) -> str:
        """The alias that leads to it."""
        return self._names.alias(self._names.space_localpart)

    @property
    def name(self) -> str:
        """What it is to be called."""
        return self._name

    async def load(self) -> None:
        """Read what is known of it from the database."""
        stored = await self._settings.get(_ROOM)
        self.room_id = RoomID(stored) if stored else None
        self._shown = await self._settings.get(_NAME)
        self._lost = self.room_id is not None and await self._settings.get(_LOST) == self.room_id

    async def note_lost(self, lost: bool) -> None:
        """It is proven to be gone; or there after all."""
        if self._lost != lost and self.room_id is not None:
            await self._settings.set(_LOST, self.room_id if lost else "")
            self._lost = lost

    async def note_shown(self, name: str) -> None:
        """It is called so, whatever it should be called."""
        if self._shown != name:
            await self._settings.set(_NAME, name)
            self._shown = name

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
        if self.room_id is not None and await self._settings.get(_REPLACE) == self.room_id:
            await self._give_up(self.room_id)
        if self._lost:
            return
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

    async def _give_up(self, room_id: RoomID) -> None:
        """Another was asked for: let go of this one if it is not ours any more."""
        seen = await look(self._homeserver, room_id, self.alias, ())
        if seen.answer == "unknown":
            raise MirrorError(f"another space was asked for, but it is not certain what became of this one: {seen.why}")
        if seen.current:
            await self._settings.set(_REPLACE, "")
            log.warning("no other space is made, this one is there", extra={"action": "space_stays", "room": room_id})
            return
        bot = self._homeserver.bot
        if await bot.resolve_alias(self.alias) == room_id:
            await bot.delete_alias(self.alias)
        log.warning("the space is given up for another", extra={"action": "space_given_up", "room": room_id})
        await self._settings.set(_ROOM, "")
        await self.load()

    async def _create(self, writer: Writer) -> None:
        before = await self._settings.get(_REPLACE)
        wanted = await self._people.before_the_end(RoomID(before)) if before else Wanted(self._people.wanted, [])
        room_id, invited = await self._maker.make(await self._body(), [], wanted.invited)
        self._fresh = True

        async def note(conn: Connection) -> None:
            await self._rooms.mark_known(conn, room_id)
            await self._rooms.set_membership(conn, room_id, self._homeserver.bot_mxid, "join")
            await self._rooms.note_invited(conn, room_id, invited)
            await self._people.leave_alone(conn, room_id, wanted.left_alone)

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
        room_id, state = await self._maker.existing(self.alias, _is_space)

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
