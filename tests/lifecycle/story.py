"""What may happen in the life of a mirror, one thing after the other; the acts of a story.

An act is a name and two small numbers, so that a story can be printed, shrunk and played again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from letta_bridge.mirror.maker import PORTAL_STATE
from letta_bridge.mirror.space import ask_for_another
from letta_bridge.testing.fake_letta.state import Database as LettaDatabase
from letta_bridge.testing.fake_letta.state import Removed

from ..integration.test_mirror_resume import Point
from .places import Refused, content_of, membership
from .rig import Rig

NAMES = ("Ada", "Ada", "", "\U0001f98a\u200d\U0001f680", "x" * 300, "@room", " \u200b ", "Line\nbreak", "Bob", "Ñandú")
LETTA_FAULTS = (500, 502, 401, "disconnect", "truncate", 503, 404, 429)
LETTA_PATHS = (r"/v1/agents/$", r"/v1/agents/agent-", r"/v1/admin/orgs", r"/v1/")
MATRIX_FAULTS = ((503, ""), (403, "M_FORBIDDEN"), (429, ""), (500, ""), (404, "M_NOT_FOUND"), (0, ""), (502, ""))
MATRIX_PATHS = (
    "/createRoom",
    "/state$",
    "/state/m.room",
    "/state/m.space",
    "/join",
    "/profile/",
    "/register",
    "/directory/",
    "/invite",
    "/joined_rooms",
    "/upload",
    "/devices",
    "/",
)
POINTS: tuple[Point, ...] = ("request lost", "answer lost", "write lost", "after write")

# how often an act happens, compared with the others
ACTS: dict[str, int] = {
    "add": 5,
    "add_many": 3,
    "rename": 3,
    "describe": 2,
    "retag": 1,
    "picture": 1,
    "remove": 4,
    "remove_many": 2,
    "bring_back": 3,
    "hide": 1,
    "empty": 1,
    "other_letta": 2,
    "our_letta": 3,
    "letta_fault": 4,
    "letta_short": 2,
    "matrix_fault": 6,
    "rename_room": 2,
    "retopic_room": 1,
    "kick_puppet": 3,
    "unmark_room": 1,
    "unname_room": 1,
    "take_power": 2,
    "join": 2,
    "leave": 2,
    "kick": 2,
    "unlist": 2,
    "rename_space": 1,
    "purge": 2,
    "purge_space": 1,
    "upgrade": 1,
    "restart": 2,
    "kill": 5,
    "day": 3,
    "day_alone": 1,
    "confirm": 3,
    "pass": 4,
}
_WEIGHTED = [name for name, weight in ACTS.items() for _ in range(weight)]


@dataclass(frozen=True)
class Act:
    """``name`` of :data:`ACTS`; what ``a`` and ``b`` choose depends on it. ``then``: a pass follows."""

    name: str
    a: int = 0
    b: int = 0
    then: bool = True

    def __str__(self) -> str:
        return f"Act({self.name!r}, {self.a}, {self.b}, {self.then})"


def random_story(seed: int, length: int, without: Iterable[str] = ()) -> list[Act]:
    """The story of this seed."""
    chance = random.Random(seed)
    names = [name for name in _WEIGHTED if name not in set(without)]
    return [
        Act(chance.choice(names), chance.randrange(10), chance.randrange(10), chance.random() < 0.7)
        for _ in range(length)
    ]


def weighted() -> list[str]:
    """Names, the frequent ones several times."""
    return list(_WEIGHTED)


class Stage:
    """Where the acts happen: what is on it besides the mirror itself.

    Args:
        rig: the mirror and its neighbours.
        tag: makes the agents' ids differ from those of other tests at the same homeserver.
    """

    def __init__(self, rig: Rig, tag: int = 0) -> None:
        self.rig = rig
        self.letta = rig.letta
        self.place = rig.place
        self._tag = tag
        self._made = 0
        self._removed: list[tuple[LettaDatabase, Removed]] = []
        self.ours: LettaDatabase | None = None
        """The database of the first day, while another is in its place."""
        self.other: LettaDatabase | None = None
        self.purged: dict[str, int] = {}
        """How many portals of an agent the homeserver's admin deleted."""
        self.spaces_gone = 0
        self.left: list[tuple[str, str, int]] = []
        """Room, person, and how many events the room had when they left or were put out of it."""
        self.left_alone: dict[str, set[str]] = {}
        """By agent: who was out of its room when that was deleted, and everybody knew."""
        self.faults: list[Any] = []

    async def play(self, act: Act) -> None:
        """Let it happen. What cannot happen now does not."""
        try:
            await getattr(self, f"_{act.name}")(act.a, act.b)
        except Refused:
            return

    def calm(self) -> None:
        """Nothing fails any more."""
        for fault in self.faults:
            fault.times = 0
        self.faults.clear()
        self.letta.settings.page_cap = None
        self.place.calm()

    @property
    def current(self) -> LettaDatabase:
        """The database behind Letta's URL."""
        return self.letta._core.db

    # -- Letta

    def add(self, name: str, **more: Any) -> str:
        self._made += 1
        agent_id = f"agent-{self._tag:08x}-0000-4000-8000-{self._made:012d}"
        return self.letta.add_agent(name, agent_id=agent_id, **more)

    def _one(self, a: int) -> str | None:
        ids = sorted(self.letta.agents)
        return ids[a % len(ids)] if ids else None

    async def _add(self, a: int, b: int) -> None:
        self.add(NAMES[b], description="d" * a, tags=["t"] if a % 2 else [])

    async def _add_many(self, a: int, b: int) -> None:
        for number in range(2 + a):
            self.add(NAMES[(b + number) % 10])

    def _change(self, a: int, **fields: Any) -> None:
        if (agent_id := self._one(a)) is not None:
            self.letta.change_agent(agent_id, **fields)

    async def _rename(self, a: int, b: int) -> None:
        self._change(a, name=NAMES[b])

    async def _describe(self, a: int, b: int) -> None:
        self._change(a, description=f"about {b}" * (b + 1) if b else "")

    async def _retag(self, a: int, b: int) -> None:
        self._change(a, tags=[f"tag{number}" for number in range(b)])

    async def _picture(self, a: int, b: int) -> None:
        self._change(a, metadata={"avatar": f"mxc://{self.place.domain}/picture{b}"} if b else {})

    async def _remove(self, a: int, b: int) -> None:
        if (agent_id := self._one(a)) is not None:
            self._removed.append((self.current, self.letta.remove_agent(agent_id)))

    async def _remove_many(self, a: int, b: int) -> None:
        for number in range(2 + b):
            await self._remove(a + number, 0)

    async def _bring_back(self, a: int, b: int) -> None:
        for entry in list(reversed(self._removed))[: 1 + b]:
            if entry[0] is self.current:
                self._removed.remove(entry)
                self.letta.restore_agent(entry[1])

    async def _hide(self, a: int, b: int) -> None:
        if (agent_id := self._one(a)) is not None:
            self.letta.hide_agent(agent_id, hidden=b % 2 == 0)

    async def _empty(self, a: int, b: int) -> None:
        self._removed += [(self.current, self.letta.remove_agent(agent_id)) for agent_id in sorted(self.letta.agents)]

    async def _other_letta(self, a: int, b: int) -> None:
        if self.ours is not None:
            return
        self.ours = self.letta.swap_database(self.other)
        if self.other is None:
            self.other = self.current
            for _ in range(b % 5):
                self.add("of another Letta")

    async def _our_letta(self, a: int, b: int) -> None:
        if self.ours is not None:
            self.letta.swap_database(self.ours)
            self.ours = None

    async def _letta_fault(self, a: int, b: int) -> None:
        how, path = LETTA_FAULTS[b % len(LETTA_FAULTS)], LETTA_PATHS[a % len(LETTA_PATHS)]
        if how == 404:
            path = LETTA_PATHS[0]  # of one agent it would be Letta's word that there is none
        self.faults.append(self.letta.fail_next(path, how, times=1 + a % 3))  # type: ignore[arg-type]

    async def _letta_short(self, a: int, b: int) -> None:
        self.letta.settings.page_cap = None if b % 2 else 1 + a

    # -- the homeserver

    async def _matrix_fault(self, a: int, b: int) -> None:
        status, errcode = MATRIX_FAULTS[(a + b) % len(MATRIX_FAULTS)]
        path = MATRIX_PATHS[(a * 10 + b) % len(MATRIX_PATHS)]
        self.place.fault(path, status, errcode, 1 + a % 3, b % 2 == 0)

    async def _portal(self, a: int) -> tuple[str, str, str]:
        """Agent, puppet and room of somebody who has one."""
        rows = [row for row in (await self.rig.rows()).values() if row.portal_room]
        if not rows:
            raise Refused
        row = sorted(rows, key=lambda row: row.agent_id)[a % len(rows)]
        assert row.portal_room is not None
        if await self.place.state(row.portal_room) is None:
            raise Refused
        return str(row.agent_id), row.mxid, row.portal_room

    async def moderated(self, room: str) -> str:
        """Let Alice be in the room, with the power of an admin."""
        state, alice = await self.place.state(room), self.place.person("alice")
        assert state is not None
        if membership(state, alice) != "join":
            if membership(state, alice) != "invite":
                raise Refused
            await self.place.join("alice", room)
        levels = content_of(state, "m.room.power_levels")
        if levels.get("users", {}).get(alice) != 100:
            users = {**levels.get("users", {}), alice: 100}
            await self.place.put("bot", room, "m.room.power_levels", {**levels, "users": users})
        return room

    async def _as_alice(self, a: int, kind: str, content: dict[str, Any]) -> None:
        room = await self.moderated((await self._portal(a))[2])
        await self.place.put("alice", room, kind, content)

    async def _rename_room(self, a: int, b: int) -> None:
        await self._as_alice(a, "m.room.name", {"name": f"renamed {b}"})

    async def _retopic_room(self, a: int, b: int) -> None:
        await self._as_alice(a, "m.room.topic", {"topic": f"another {b}"})

    async def _unmark_room(self, a: int, b: int) -> None:
        await self._as_alice(a, PORTAL_STATE, {"version": 1, "agent_id": "another"} if b % 2 else {})

    async def _unname_room(self, a: int, b: int) -> None:
        await self._as_alice(a, "m.room.canonical_alias", {})

    async def _kick_puppet(self, a: int, b: int) -> None:
        _, puppet, room = await self._portal(a)
        await self.place.kick("alice", await self.moderated(room), puppet)

    async def _take_power(self, a: int, b: int) -> None:
        _, puppet, room = await self._portal(a)
        state = await self.place.state(await self.moderated(room))
        assert state is not None
        levels = content_of(state, "m.room.power_levels")
        users = {user: level for user, level in levels.get("users", {}).items() if user != puppet}
        await self.place.put("alice", room, "m.room.power_levels", {**levels, "users": users, "notifications": {}})

    async def _somewhere(self, a: int) -> str:
        space = self.rig.directory.space_room
        if a >= 8 and space is not None and await self.place.state(space) is not None:
            return space
        return (await self._portal(a))[2]

    async def _join(self, a: int, b: int) -> None:
        await self.place.join(("alice", "bob")[b % 2], await self._somewhere(a))

    async def _gone_from(self, room: str, name: str) -> None:
        self.left.append((room, self.place.person(name), len(await self.place.timeline(room))))

    async def _leave(self, a: int, b: int) -> None:
        room, name = await self._somewhere(a), ("alice", "bob")[b % 2]
        state = await self.place.state(room)
        if state is None or membership(state, self.place.person(name)) not in ("join", "invite"):
            raise Refused
        await self.place.leave(name, room)
        await self._gone_from(room, name)

    async def _kick(self, a: int, b: int) -> None:
        room = await self.moderated(await self._somewhere(a))
        state = await self.place.state(room)
        if state is None or membership(state, self.place.person("bob")) not in ("join", "invite"):
            raise Refused
        await self.place.kick("alice", room, self.place.person("bob"))
        await self._gone_from(room, "bob")

    async def _unlist(self, a: int, b: int) -> None:
        space, (_, _, room) = self.rig.directory.space_room, await self._portal(a)
        if space is None or await self.place.state(space) is None:
            raise Refused
        await self.place.put("alice", await self.moderated(space), "m.space.child", {}, room)

    async def _rename_space(self, a: int, b: int) -> None:
        space = self.rig.directory.space_room
        if space is None or await self.place.state(space) is None:
            raise Refused
        await self.place.put("alice", await self.moderated(space), "m.room.name", {"name": f"space {b}"})

    async def _purge(self, a: int, b: int) -> None:
        agent_id, _, room = await self._portal(a)
        state = await self.place.state(room)
        assert state is not None
        told = b % 2 == 0
        await self.rig.take_in()
        if b < 8:
            people = (self.place.person("alice"), self.place.person("bob"))
            gone = {person for person in people if membership(state, person) in ("leave", "ban")}
            self.left_alone.setdefault(agent_id, set()).update(gone)
        await self.place.purge(room, told=told)
        self.purged[agent_id] = self.purged.get(agent_id, 0) + 1
        self.left = [entry for entry in self.left if entry[0] != room]

    async def _purge_space(self, a: int, b: int) -> None:
        space = self.rig.directory.space_room
        if space is None or a > 4 or await self.place.state(space) is None:
            raise Refused
        await self.place.purge(space, told=b % 2 == 0)
        self.spaces_gone += 1
        self.left = [entry for entry in self.left if entry[0] != space]

    async def another_space(self) -> None:
        """What an admin asks for with ``sync --new-space``."""
        assert self.rig.directory.space_room is not None
        await ask_for_another(self.rig.memory, self.rig.directory.space_room)

    async def _upgrade(self, a: int, b: int) -> None:
        """As a client does it: a new room that names the old one, then the tombstone in the old one."""
        _, puppet, old = await self._portal(a)
        await self.moderated(old)
        state = await self.place.state(old)
        assert state is not None
        if content_of(state, "m.room.create").get("room_version", "1") not in ("9", "10", "11"):
            raise Refused  # only its creator, the bot, can close one of version 12
        alice = self.place.person("alice")
        body = {
            "room_version": "11",
            "creation_content": {"predecessor": {"room_id": old, "event_id": "$x"}},
            "power_level_content_override": {"users": {alice: 100, self.place.bot: 100, puppet: 50}},
            "invite": [self.place.bot],
        }
        new = await self.place.create("alice", body)
        await self.place.put("alice", old, "m.room.tombstone", {"body": "upgraded", "replacement_room": new})

    # -- the bridge, time, admins

    async def _restart(self, a: int, b: int) -> None:
        await self.rig.restart()

    async def _kill(self, a: int, b: int) -> None:
        await self.rig.killed_pass(POINTS[b % 4], 1 + a * 3 + b)

    async def _day(self, a: int, b: int) -> None:
        raise NotImplementedError("the model decides whether it was watched")

    async def _pass(self, a: int, b: int) -> None:
        """Nothing but the pass that follows."""
