"""A look at the space: its name, its mark and its list of portals. What it lists beside those is left alone."""

from collections.abc import Sequence
from typing import Any

from ..db.agents import AgentRow
from ..db.past_rooms import PastRooms
from ..ids import RoomID
from ..matrix.homeserver import Homeserver, HomeserverError
from ..matrix.look import look
from .fights import Fights
from .levels import may_set
from .maker import SPACE_STATE, State, find
from .outcome import Outcome
from .space import Space
from .target import in_force, target_of


class SpaceMender:
    """Looks at the space. A space that is gone is never made again unasked."""

    def __init__(self, homeserver: Homeserver, past: PastRooms, fights: Fights, space: Space) -> None:
        self._homeserver = homeserver
        self._past = past
        self._fights = fights
        self._space = space

    async def look(self, room_id: RoomID, rows: Sequence[AgentRow]) -> Outcome:
        """Look, and set right what no row remembers. Raises HomeserverError: not now."""
        seen = await look(self._homeserver, room_id, self._space.alias, ())
        if seen.answer == "unknown":
            return Outcome(unclear=seen.why)
        await self._space.note_lost(not seen.current)
        if seen.answer == "gone":
            text = f"The space {room_id} is gone. Agents work without it; `!letta sync --new-space` makes another."
            return Outcome(troubles=[text])
        outcome = Outcome()
        if not seen.current or seen.state is None:
            bot = self._homeserver.bot_mxid
            outcome.troubles.append(
                f"The bridge's bot is not in the space {room_id} any more. Invite {bot} to it, or have another made "
                "with `!letta sync --new-space`."
            )
            return outcome
        if seen.successor is not None:
            outcome.troubles.append(
                f"The space {room_id} was closed in favour of {seen.successor}. The bridge does not follow; it goes on "
                "with the old one."
            )
        await self._mend(room_id, seen.state, rows, outcome)
        return outcome

    async def _mend(self, room_id: RoomID, state: State, rows: Sequence[AgentRow], outcome: Outcome) -> None:
        bot = self._homeserver.bot
        name = find(state, "m.room.name").get("name")
        if name != self._space.name and self._may_set(room_id, state, "m.room.name", outcome):
            await self._space.note_shown(name if isinstance(name, str) else "")
        if find(state, SPACE_STATE).get("version") != 1 and self._may_set(room_id, state, SPACE_STATE, outcome):
            await self._set(room_id, SPACE_STATE, "", {"version": 1}, outcome)
        alias = find(state, "m.room.canonical_alias")
        if alias.get("alias") != self._space.alias:
            await self._look_at_alias(room_id, state, dict(alias), outcome)
        self._look_at_children(room_id, state, rows, outcome)
        portals = {row.portal_room for row in rows}
        for child in sorted(await self._past.ids() - portals):
            if in_force(find(state, "m.space.child", child)):
                await bot.set_state(room_id, "m.space.child", child, {})

    def _look_at_children(self, room_id: RoomID, state: State, rows: Sequence[AgentRow], outcome: Outcome) -> None:
        children = {
            event.get("state_key"): event.get("content") or {}
            for event in state
            if event.get("type") == "m.space.child"
        }
        for row in rows:
            listed = in_force(children.get(row.portal_room, {}))
            if row.portal_room is None or listed == (row.in_space == room_id):
                continue
            wanted = target_of(row).listed
            if listed == wanted or self._may_set(room_id, state, "m.space.child", outcome, row.portal_room):
                outcome.changes.append((row, {"in_space": room_id if listed else ""}))

    async def _look_at_alias(self, room_id: RoomID, state: State, content: dict[str, Any], outcome: Outcome) -> None:
        bot, alias = self._homeserver.bot, self._space.alias
        led = await bot.resolve_alias(alias)
        if led is None:
            await bot.set_alias(alias, room_id)
        elif led != room_id:
            outcome.troubles.append(f"The alias {alias} leads to {led}, not to the bridge's space {room_id}.")
            return
        if self._may_set(room_id, state, "m.room.canonical_alias", outcome):
            await self._set(room_id, "m.room.canonical_alias", "", {**content, "alias": alias}, outcome)

    async def _set(self, room_id: RoomID, kind: str, key: str, content: dict[str, Any], outcome: Outcome) -> None:
        try:
            await self._homeserver.bot.set_state(room_id, kind, key, content)
        except HomeserverError as error:
            if not error.forbidden:
                raise
            outcome.troubles.append(f"The homeserver does not let the bridge's bot set `{kind}` in the space: {error}")

    def _may_set(self, room_id: RoomID, state: State, kind: str, outcome: Outcome, key: str = "") -> bool:
        if not may_set(state, self._homeserver.bot_mxid, kind):
            text = f"In the space {room_id} the bridge's bot has lost its power. Give it level 100."
            outcome.troubles.append(text)
            return False
        if self._fights.may_mend(room_id, f"{kind} {key}"):
            return True
        outcome.troubles.append(f"Somebody keeps changing `{kind}` in the space {room_id}. It is left so for an hour.")
        outcome.again = True
        return False
