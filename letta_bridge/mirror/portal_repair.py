"""A look at one portal: what is damaged, what is set right, and what is said about the rest."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..commands.show import count
from ..db.agents import AgentRow
from ..db.memory import Settings
from ..db.past_rooms import PastRooms
from ..db.rooms import Rooms
from ..ids import MXID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from ..matrix.look import Look, look
from .fights import Fights
from .levels import may_set, mended_levels
from .maker import PORTAL_STATE, State, find, portal_agent
from .names import Names
from .outcome import Outcome
from .people import People
from .replace import Replacement
from .settling import Settling
from .swept import swept_out
from .target import BRIDGE_STATE, Target, bridge_content, bridge_key, in_force, portal_content, target_of, told_by_mark

_POWERLESS = "The bridge's bot has lost its power there and cannot set things right. Give {bot} level 100."


class PortalMender:
    """Looks at portals. One state read each; more only where something is wrong."""

    def __init__(
        self,
        homeserver: Homeserver,
        names: Names,
        rooms: Rooms,
        past: PastRooms,
        settings: Settings,
        fights: Fights,
        space: Callable[[], RoomID | None],
        people: People,
        settling: Settling,
        history: bool,
    ) -> None:
        self._homeserver = homeserver
        self._names = names
        self._fights = fights
        self._space = space
        self._past = past
        self._people = people
        self._settling = settling
        self._replacement = Replacement(homeserver, rooms, past, settings, space, people, history)

    async def look(self, row: AgentRow) -> Outcome:
        """Look, and set right what no row remembers. Raises HomeserverError: not now."""
        assert row.portal_room is not None
        alias = self._names.portal_alias(row.mxid)
        seen = await look(self._homeserver, row.portal_room, alias, [row.mxid] if row.registered else [])
        if seen.answer == "unknown":
            return Outcome(unclear=seen.why)
        if seen.answer == "gone":
            self._settling.ended(row.portal_room)
            return await self._replacement.gone(row, seen.why)
        if seen.successor is not None:
            return await self._replacement.upgraded(row, seen.successor)
        if self._settling.wait(row.portal_room, seen.state or [], (self._homeserver.bot_mxid, row.mxid)):
            return Outcome(unclear="the bridge's users were put out as if the room is being deleted", soon=True)
        case = _Case(self._homeserver, self._past, self._fights, self._people, row, seen, alias)
        return await case.judge(self._space())


class _Case:
    """One portal with its state."""

    def __init__(
        self,
        homeserver: Homeserver,
        past: PastRooms,
        fights: Fights,
        people: People,
        row: AgentRow,
        seen: Look,
        alias: str,
    ) -> None:
        assert row.portal_room is not None and seen.state is not None
        self._homeserver = homeserver
        self._bot = homeserver.bot_mxid
        self._past = past
        self._fights = fights
        self._people = people
        self._row = row
        self._room: RoomID = row.portal_room
        self._seen = seen
        self._state: State = seen.state
        self._alias = alias
        self._target: Target = target_of(row)
        self._columns: dict[str, Any] = {}
        self._outcome = Outcome(changes=[(row, self._columns)])

    async def judge(self, space: RoomID | None) -> Outcome:
        if not self._seen.current:
            self._trouble(f"Nobody of the bridge is in it any more. Invite {self._bot} to have it used again.")
            return self._outcome
        await self._ask_back()
        if await self._bot_is_in():
            self._learn_from_mark()
            self._look_for_puppet()
            self._look_at_beliefs(space)
            await self._look_at_mark()
            await self._look_at_power()
            await self._look_at_alias()
        return self._outcome

    # -- who is in

    async def _ask_back(self) -> None:
        """Who was put out by a deletion that has failed did not leave. Before ours are back, by whom that is known."""
        ours = (self._bot, self._row.mxid)
        members = [event for event in self._state if event.get("type") == "m.room.member"]
        swept = swept_out(members, lambda user: user in ours, self._homeserver.domain)
        inside = next((one for one in ours if self._membership(one) == "join"), None)
        if not swept or inside is None or not self._may_mend("people", "puts everybody out"):
            return
        asked = await self._people.ask_back(self._homeserver.intent(inside), self._room, swept)
        self._outcome.news.append(
            f"Everybody was put out of the room {self._room} of {self._target.portal_name}, as when it is deleted, but "
            f"the room is still there: {count(asked, 'person', 'people')} invited again. To have it gone, delete it "
            "again."
        )

    async def _bot_is_in(self) -> bool:
        membership = self._membership(self._bot)
        if membership == "join":
            return True
        if membership != "ban" and self._may_mend("bot", "puts the bridge's bot out"):
            try:
                await self._homeserver.intent(self._row.mxid).invite(self._room, self._bot)
                await self._homeserver.bot.join(self._room)
                return True
            except HomeserverError as error:
                if error.passing:
                    raise
        self._trouble(f"The bridge's bot was put out. Invite {self._bot}, or its name and picture will not follow.")
        return False

    def _look_for_puppet(self) -> None:
        membership = self._membership(self._row.mxid)
        if membership == "ban":
            self._trouble(f"The agent {self._row.mxid} is banned from it. Lift the ban to hear from it there.")
        elif (membership == "join") != self._row.portal_joined:
            joined = membership == "join"
            if joined or not self._row.portal_joined or self._may_mend("puppet", "puts the agent out"):
                self._columns["portal_joined"] = joined

    def _membership(self, user: MXID) -> str:
        return str(find(self._state, "m.room.member", user).get("membership", "leave"))

    # -- what the row remembers

    def _look_at_beliefs(self, space: RoomID | None) -> None:
        row, target = self._row, self._target
        told = find(self._state, BRIDGE_STATE, bridge_key(row)) == bridge_content(row, self._bot)
        self._believe("m.room.name", "portal_name", self._text("m.room.name", "name"), target.portal_name)
        self._believe("m.room.topic", "portal_topic", self._text("m.room.topic", "topic"), target.portal_topic)
        self._believe(BRIDGE_STATE, "portal_bridge", target.bridge if told else None, target.bridge)
        if space is not None:
            wanted = space if target.listed else ""
            named = in_force(find(self._state, "m.space.parent", space))
            if named != target.listed:  # the other half of it stands in the space
                self._believe("m.space.parent", "in_space", space if named else "", wanted)

    def _believe(self, kind: str, column: str, shown: str | None, wanted: str) -> None:
        """Let the row say what is shown, so that it is made right; unless that led to nothing several times."""
        believed = getattr(self._row, column)
        if shown == believed:
            return
        if shown == wanted or believed != wanted or self._may_set(kind):
            self._columns[column] = shown

    # -- what only the room remembers

    def _learn_from_mark(self) -> None:
        """The row may be of a backup from before the agent was summoned or despawned."""
        if portal_agent(self._state, self._bot) != self._row.agent_id:
            return
        if told := told_by_mark(self._row, find(self._state, PORTAL_STATE)):
            self._columns.update(told)
            self._row = dataclasses.replace(self._row, **told)
            self._target = target_of(self._row)

    async def _look_at_mark(self) -> None:
        content = portal_content(self._row)
        ours = portal_agent(self._state, self._bot) == self._row.agent_id
        if ours and (successor := find(self._state, PORTAL_STATE).get("replaced_by")):
            content["replaced_by"] = successor  # said when the agent was rebound; no row remembers it
        if self._row.dismissed and not find(self._state, PORTAL_STATE).get("dismissed"):
            self._columns["portal_bridge"] = ""  # the row may be of somebody who is recalled before it says so itself
        if (not ours or find(self._state, PORTAL_STATE) != content) and self._may_set(PORTAL_STATE):
            await self._set(PORTAL_STATE, content)

    async def _look_at_power(self) -> None:
        if not may_set(self._state, self._bot, "m.room.power_levels"):
            self._trouble(_POWERLESS.format(bot=self._bot))
            return
        levels = mended_levels(self._state, self._row.mxid)
        if levels is not None and self._may_set("m.room.power_levels"):
            await self._set("m.room.power_levels", levels)

    async def _look_at_alias(self) -> None:
        content = find(self._state, "m.room.canonical_alias")
        if content.get("alias") == self._alias:
            return
        bot = self._homeserver.bot
        led = await bot.resolve_alias(self._alias)
        if led is not None and led in [room.room_id for room in await self._past.of(self._row.agent_id)]:
            await bot.delete_alias(self._alias)  # it was upgraded: the name goes with it
            led = None
        if led is None:
            await bot.set_alias(self._alias, self._room)
        elif led != self._room:
            self._trouble(f"Its alias {self._alias} leads to {led}. Let it lead here again, or remove it.")
            return
        if self._may_set("m.room.canonical_alias"):
            await self._set("m.room.canonical_alias", {**content, "alias": self._alias})

    async def _set(self, kind: str, content: Mapping[str, Any]) -> None:
        try:
            await self._homeserver.bot.set_state(self._room, kind, "", content)
        except HomeserverError as error:
            if not error.forbidden:
                raise
            self._trouble(f"The homeserver does not let the bridge's bot set `{kind}` there: {error}")

    # -- may it

    def _may_set(self, kind: str) -> bool:
        if not may_set(self._state, self._bot, kind):
            self._trouble(_POWERLESS.format(bot=self._bot))
            return False
        return self._may_mend(kind, f"changes `{kind}`")

    def _may_mend(self, thing: str, what: str) -> bool:
        if self._fights.may_mend(self._room, thing):
            return True
        self._trouble(f"Somebody keeps changing it: {what} again and again. It is left so for an hour.")
        self._outcome.again = True
        return False

    def _trouble(self, text: str) -> None:
        whole = f"The room {self._room} of {self._target.portal_name}: {text}"
        if whole not in self._outcome.troubles:
            self._outcome.troubles.append(whole)

    def _text(self, kind: str, key: str) -> str:
        value = find(self._state, kind).get(key)
        return value if isinstance(value, str) else ""
