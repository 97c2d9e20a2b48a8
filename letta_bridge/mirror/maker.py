"""What is common to the rooms that the bot makes: the alias as create-once lock, adoption, the version's rules."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mautrix.api import Method, Path

from ..ids import MXID, PREFIX, AgentID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from .rests import Rests
from .trouble import MirrorError

log = logging.getLogger(__name__)

State = list[dict[str, Any]]

PORTAL_STATE = PREFIX + ".portal"
SPACE_STATE = PREFIX + ".space"
CREATOR_LISTED = frozenset(str(number) for number in range(1, 12))
_OLDEST_DEFAULT = "11"
_PEOPLE = "people"


def find(state: Iterable[Mapping[str, Any]], kind: str, key: str = "") -> Mapping[str, Any]:
    """The content of one event of a room's state; empty when there is none."""
    for event in state:
        if event.get("type") == kind and event.get("state_key") == key:
            content = event.get("content")
            return content if isinstance(content, Mapping) else {}
    return {}


def portal_agent(state: Iterable[Mapping[str, Any]], bot: MXID) -> AgentID | None:
    """The agent whose portal the room is, if the bot itself has said so in its state."""
    for event in state:
        if event.get("type") == PORTAL_STATE and event.get("state_key") == "" and event.get("sender") == bot:
            content = event.get("content")
            agent_id = content.get("agent_id") if isinstance(content, Mapping) else None
            return AgentID(agent_id) if isinstance(agent_id, str) and agent_id else None
    return None


def people_in(state: Iterable[Mapping[str, Any]], people: Iterable[MXID]) -> list[MXID]:
    """Those of ``people`` who were invited once already, whatever they did then."""
    known = {event.get("state_key") for event in state if event.get("type") == "m.room.member"}
    return [person for person in people if person in known]


class RoomMaker:
    """Creates a room under an alias of ours, or finds the one that was created before.

    The alias is in a namespace that only the bridge may use, and the homeserver gives it to one room only: whatever was
    interrupted, the second attempt is refused and leads to the first one's room.
    """

    def __init__(self, homeserver: Homeserver, room_version: str | None, clock: Callable[[], float]) -> None:
        self._homeserver = homeserver
        self._rests: Rests[str] = Rests(600.0, 3600.0, clock)
        self._configured = room_version
        self._version: str | None = None

    def ask_again(self) -> None:
        """Forget the homeserver's default version; it may have been upgraded since."""
        self._version = None

    async def version(self) -> str:
        """The version that a new room will have."""
        if self._configured:
            return self._configured
        if self._version is None:
            answer = await self._homeserver.bot.patiently(Method.GET, Path.v3.capabilities)
            self._version = _default_version(answer)
        return self._version

    async def power(self, users: Mapping[MXID, int], **levels: Any) -> dict[str, Any]:
        """Power levels in which the bot can do everything: from version 12 on that goes without saying, and saying it
        is an error."""
        listed = await self.version() in CREATOR_LISTED
        bot = {self._homeserver.bot_mxid: 100} if listed else {}
        events = {
            "m.room.name": 50,
            "m.room.topic": 50,
            "m.room.avatar": 50,
            "m.room.canonical_alias": 100,
            "m.room.encryption": 100,
            "m.room.history_visibility": 100,
            "m.room.join_rules": 100,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": 100 if listed else 150,
            PORTAL_STATE: 100,
            SPACE_STATE: 100,
        }
        return {
            "users": {**bot, **users},
            "users_default": 0,
            "events": events,
            "events_default": 0,
            "state_default": 50,
            "invite": 50,
            "kick": 50,
            "ban": 50,
            "redact": 50,
            "notifications": {"room": 100},  # an agent that writes @room rings nobody
            **levels,
        }

    async def make(self, body: Mapping[str, Any], must: list[MXID], people: list[MXID]) -> tuple[RoomID, list[MXID]]:
        """Create a room; returns it and those of ``people`` whose invitations went with it.

        A person who cannot be invited must not keep rooms from coming into being: after a failure that may be a
        person's, rooms are made without people for a while.

        Raises:
            RoomExistsError: the alias has a room already.
            HomeserverError: not created, as far as is known.
        """
        if self._rests.resting(_PEOPLE):
            people = []
        request = {**body, **({"room_version": self._configured} if self._configured else {})}
        try:
            made = await self._create({**request, "invite": [*must, *people]})
        except HomeserverError as error:
            if not people or error.status in (0, 401, 429) or error.unknown_device:
                raise
            log.warning(
                "room not created together with its invitations, inviting later",
                extra={"action": "create_without_people", "error": str(error)},
            )
            self._rests.failed(_PEOPLE)
            if error.passing:  # it may exist by now, or be half made: look again in a moment
                raise MirrorError(f"the room could not be created: {error}") from None
            return await self._create({**request, "invite": must}), []
        if people:
            self._rests.recovered(_PEOPLE)
        return made, people

    async def _create(self, request: Mapping[str, Any]) -> RoomID:
        try:
            return await self._homeserver.bot.create_room(request)
        except HomeserverError as error:
            if error.errcode == "M_ROOM_IN_USE":
                raise RoomExistsError from None
            raise

    async def existing(self, alias: str, ours: Callable[[State], bool]) -> tuple[RoomID, State]:
        """The room that has the alias, with its state, if it is proven to be ours.

        Raises:
            MirrorError: it is somebody else's, or not ours any more; or nothing can be said.
            HomeserverError: it cannot be known now.
        """
        bot = self._homeserver.bot
        room_id = await bot.resolve_alias(alias)
        if room_id is None:
            raise MirrorError(f"{alias} is said to be in use, and to lead nowhere")
        try:
            state = await bot.state(room_id)
        except HomeserverError as error:
            if error.status not in (403, 404):
                raise
            text = f"{alias} leads to {room_id}, and the bridge's bot is not in that room"
            raise MirrorError(text, conflict=True) from None
        joined = find(state, "m.room.member", self._homeserver.bot_mxid).get("membership") == "join"
        if not joined or not ours(state):
            raise MirrorError(f"{alias} leads to {room_id}, which is not the room it should be", conflict=True)
        return room_id, state


class RoomExistsError(Exception):
    """The alias is taken: the room was created before, by us or somebody."""


def _default_version(answer: Any) -> str:
    """``default`` of the capability ``m.room_versions``."""
    try:
        default = answer["capabilities"]["m.room_versions"]["default"]
    except (KeyError, TypeError):
        return _OLDEST_DEFAULT
    return default if isinstance(default, str) else _OLDEST_DEFAULT
