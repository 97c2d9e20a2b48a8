"""What must hold whatever happens: the laws of the mirror, checked after every pass and when all is quiet.

The laws are about what people see and what the bridge can have known; how it decides is none of their business.
"""

from __future__ import annotations

from letta_bridge.db.agents import AgentRow
from letta_bridge.ids import AgentID
from letta_bridge.mirror.maker import PORTAL_STATE
from letta_bridge.mirror.names import shown_name, shown_topic
from letta_bridge.testing.fake_letta.state import Database as LettaDatabase

from .places import PEOPLE, content_of, membership
from .rig import Rig
from .story import Act, Stage

Rows = dict[str, AgentRow]
_GONE = ("missing", "archived")


class Model:
    """Follows a story and knows what may follow from it."""

    def __init__(self, rig: Rig, tag: int = 0) -> None:
        self.rig = rig
        self.stage = Stage(rig, tag)
        self.home: LettaDatabase | None = None
        """The Letta that is ours, once the bridge has seen its agents."""
        self._confirmed: set[str] = set()
        """Agents whose absence an admin confirmed."""
        self._believed: set[str] = set()
        """Fingerprints of other Lettas that an admin confirmed."""
        self._today: set[str] = set()
        """Who went missing within the last day, unconfirmed."""
        self._days: dict[str, int] = {}
        """How many days the bridge has watched an agent be missing."""
        self.plausible = False
        """Whether the newest pass saw a complete and credible list."""

    # -- playing

    async def tell(self, acts: list[Act]) -> None:
        """The whole story, with every law."""
        for act in acts:
            await self._act(act)
        await self._end()

    async def _act(self, act: Act) -> None:
        before = await self.rig.rows()
        seen = len(self.rig.witness.complete)
        if act.name in ("day", "day_alone"):
            await self.day(act.name == "day")
        elif act.name == "confirm":
            await self._confirm()
        else:
            await self.stage.play(act)
        if act.name == "kill":  # there was a part of a pass in it
            await self._judge(before, seen)
        if act.then:
            await self.look()

    async def _confirm(self) -> None:
        said = await self.rig.confirm()
        if said is not None:
            gone, fingerprint = said
            self._confirmed |= gone
            self._today -= gone  # who went before was counted in the question
            if fingerprint is not None:
                self._believed.add(fingerprint)

    async def day(self, watched: bool) -> None:
        if watched:
            before, seen = await self.rig.rows(), len(self.rig.witness.complete)
            await self.rig.run_pass()
            await self._judge(before, seen)
            watched = self.plausible
        if watched:
            for agent_id, row in (await self.rig.rows()).items():
                if row.state == "missing":
                    self._days[agent_id] = self._days.get(agent_id, 0) + 1
        self._today.clear()
        await self.rig.days_pass(watched=watched)

    async def look(self) -> None:
        """One pass, judged."""
        before, seen = await self.rig.rows(), len(self.rig.witness.complete)
        await self.rig.run_pass()
        await self._judge(before, seen)

    # -- the laws of every pass

    async def _judge(self, before: Rows, seen: int) -> None:
        after = await self.rig.rows()
        complete = any(self.rig.witness.complete[seen:])
        current, there = self.stage.current, set(self.rig.letta.agents)
        listed = {agent_id for agent_id, agent in self.rig.letta.agents.items() if not agent.hidden}
        known = {key for key, row in before.items() if row.state != "archived"} - self._confirmed
        foreign = self._is_foreign(current, known, listed)
        added = set(after) - set(before)
        assert set(before) <= set(after), "a row is gone"
        assert added <= there, "somebody was mirrored who is not in Letta"
        if foreign:
            assert not added, f"agents of another Letta are mirrored: {added}"
        await self._judge_gone(before, after, known, there, foreign, complete)
        back = {key for key in before if before[key].state in _GONE and after[key].state not in _GONE}
        assert back <= there, "somebody is back who is not in Letta"
        if complete and not foreign and (known & listed or not known):
            self.home = current
        if len(self.rig.witness.complete) > seen:
            self._confirmed -= self.rig.witness.shown
        for key in set(self._days) & listed:
            if after[key].state not in _GONE:
                del self._days[key]
        frozen = (await self.rig.directory.guard.read()).frozen
        self.plausible = complete and not foreign and frozen is None

    def _is_foreign(self, current: LettaDatabase, known: set[str], listed: set[str]) -> bool:
        """Whether nothing says that this Letta is ours: another database, with too few of our agents, unconfirmed."""
        if self.home is None or current is self.home or not known:
            return False
        if any(fingerprint.endswith(_born(current)) for fingerprint in self._believed):
            return False
        return len(known & listed) < 0.5 * len(known)

    async def _judge_gone(
        self, before: Rows, after: Rows, known: set[str], there: set[str], foreign: bool, complete: bool
    ) -> None:
        missed = {key for key in before if before[key].state not in _GONE and after[key].state in _GONE}
        archived = {key for key in before if before[key].state != "archived" and after[key].state == "archived"}
        assert not missed & there, f"agents that Letta has are taken away: {missed & there}"
        assert not archived & there, f"agents that Letta has are archived: {archived & there}"
        if missed or archived:
            assert complete, "something was taken away without a complete list"
        for key in archived:
            assert before[key].state == "missing", "archived without having been missing"
            assert self._days.get(key, 0) >= 1, "archived before its time"
        unasked = missed - self._confirmed
        if unasked:
            assert not foreign, "another Letta took agents away"
            assert known & there, "all agents were taken away unasked"
            self._today |= unasked
            limit = max(2.0, 0.2 * len(known | self._today))
            assert len(self._today) <= limit, f"{len(self._today)} agents were taken away unasked of {len(known)}"
        self._today -= {key for key in self._today if after[key].state not in _GONE}

    # -- the end

    async def _end(self) -> None:
        """All faults are over. First nobody decides anything, then the admin says yes to whatever is asked."""
        self.stage.calm()
        await self.rig.take_in()
        await self.day(watched=False)
        await self._rest()
        for _ in range(4):
            if (await self.rig.directory.guard.read()).frozen is None:
                break
            await self._confirm()
            await self._rest()
        assert (await self.rig.directory.guard.read()).frozen is None, "confirmed, and still frozen"
        if self.stage.spaces_gone:
            await self._space_again()
        await self.check()
        await self._nothing_to_do()

    async def _rest(self) -> None:
        await self.look()
        await self.rig.full_check()  # of what the homeserver's admin did nobody need have been told
        await self.look()
        await self.rig.quiet()

    async def _space_again(self) -> None:
        """Another only when it is asked for, and only if there is none."""
        made = await self.spaces()
        if not made:
            await self.stage.another_space()
            await self._rest()
            made = await self.spaces()
        assert len(made) == 1, "asked for another space once"

    async def spaces(self) -> list[str]:
        spaces = []
        for room in await self.rig.place.made():
            state = await self.rig.place.state(room)
            if state is not None and content_of(state, "m.room.create").get("type") == "m.space":
                spaces.append(room)
        return spaces

    async def _nothing_to_do(self) -> None:
        calls = len(self.rig.sight.calls)
        for _ in range(2):
            await self.rig.run_pass()
        assert self.rig.sight.calls[calls:] == [], "nothing has changed, and the homeserver is asked"

    async def check(self) -> None:
        """The mirror equals Letta, and everything is there once."""
        rows = await self.rig.rows()
        letta = self.rig.letta.agents
        listed = {key for key, agent in letta.items() if not agent.hidden}
        assert listed <= set(rows), f"not mirrored: {listed - set(rows)}"
        children: set[str] = set()
        for key, row in rows.items():
            if key in listed:
                await self._check_present(row)
            elif key not in letta:
                assert row.state in _GONE, f"{key} is not in Letta and is {row.state}"
                await self._check_gone(row)
            if row.portal_room and row.state != "archived":
                children.add(row.portal_room)
        await self._check_rooms(rows, children)
        await self._check_people(rows)

    async def _check_present(self, row: AgentRow) -> None:
        agent, place = self.rig.letta.agents[row.agent_id], self.rig.place
        assert (row.state, row.error) == ("active", ""), f"{row.agent_id} is {row.state} {row.error}"
        assert set(row.tags) == set(agent.tags)
        assert row.portal_room is not None
        name = shown_name(agent.name, AgentID(row.agent_id))
        profile, state = await place.profile(row.mxid), await place.state(row.portal_room)
        assert state is not None, "its room is gone"
        assert profile.get("displayname") == name
        assert str(profile.get("avatar_url")).startswith("mxc://")
        if picture := agent.metadata.get("avatar"):
            assert profile["avatar_url"] == picture
        assert content_of(state, "m.room.name").get("name") == name
        assert content_of(state, "m.room.topic").get("topic", "") == shown_topic(agent.description or "")
        assert content_of(state, PORTAL_STATE).get("agent_id") == row.agent_id
        assert membership(state, row.mxid) == "join", "the puppet is not in its room"
        assert membership(state, place.bot) == "join"
        assert content_of(state, "m.room.power_levels")["users"].get(row.mxid, 0) >= 50
        alias = "#" + row.mxid[1:]
        assert await place.alias(alias) == row.portal_room
        assert content_of(state, "m.room.canonical_alias").get("alias") == alias

    async def _check_gone(self, row: AgentRow) -> None:
        profile = await self.rig.place.profile(row.mxid)
        if row.state == "archived":
            assert not profile.get("displayname"), "archived, and its puppet still has a name"
        elif row.registered:
            assert profile.get("displayname", " (offline)").endswith(" (offline)")
        state = None if row.portal_room is None else await self.rig.place.state(row.portal_room)
        if state is not None and row.state == "archived":
            assert content_of(state, "m.room.name")["name"].endswith(" (archived)")

    async def _check_rooms(self, rows: Rows, children: set[str]) -> None:
        place = self.rig.place
        portals: dict[str, list[str]] = {}
        spaces = []
        for room in await place.made():
            state = await place.state(room)
            assert state is not None
            if content_of(state, "m.room.create").get("type") == "m.space":
                spaces.append(room)
                continue
            if content_of(state, "m.room.tombstone"):
                continue  # people have upgraded it
            marks = [event for event in await place.timeline(room) if event["type"] == PORTAL_STATE]
            agent_id = marks[0]["content"].get("agent_id")  # people may have changed it since
            assert agent_id in rows, f"a room of nobody: {room}"
            portals.setdefault(str(agent_id), []).append(room)
        twice = {agent_id: rooms for agent_id, rooms in portals.items() if len(rooms) > 1}
        assert not twice, f"rooms were made twice: {twice}"
        if not rows:
            return
        (space,) = spaces
        assert self.rig.directory.space_room == space
        assert await place.alias(f"#letta_space:{place.domain}") == space
        state = await place.state(space)
        assert state is not None
        listed = {event["state_key"] for event in state if event["type"] == "m.space.child" and event["content"]}
        assert listed == children, "the space does not list what it should"
        assert content_of(state, "m.room.name") == {"name": "Letta Agents"}

    async def _check_people(self, rows: Rows) -> None:
        """Whoever left or was put out was not invited again, neither there nor to what came after it."""
        place = self.rig.place
        for room, person, since in self.stage.left:
            if await place.state(room) is None:
                continue
            again = [
                event
                for event in (await place.timeline(room))[since:]
                if event["type"] == "m.room.member"
                and event["state_key"] == person
                and event["content"]["membership"] == "invite"
            ]
            assert not again, f"{person} left {room} and was invited again"
        for agent_id, gone in self.stage.left_alone.items():
            room_id = rows[agent_id].portal_room
            state = None if room_id is None else await place.state(room_id)
            for person in gone if state is not None else ():
                assert not membership(state or [], person), f"{person} left the room before and was invited to the next"
        for room in await place.made():
            for person in map(place.person, PEOPLE):
                events = [event for event in await place.timeline(room) if event.get("state_key") == person]
                invited = [event for event in events if event["content"].get("membership") == "invite"]
                assert len(invited) <= 1, f"{person} was invited to {room} {len(invited)} times"


def _born(database: LettaDatabase) -> str:
    """How the fingerprint of a Letta ends: with the moment at which its database was made."""
    stamp = database.created_at.isoformat()
    return stamp.removesuffix("+00:00")[-15:]
