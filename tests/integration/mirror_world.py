"""A homeserver, a Letta, a database, and a mirror between them: what the tests of the mirror share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from letta_bridge.db.agents import AgentRow, Agents
from letta_bridge.db.alarms import Alarms
from letta_bridge.db.database import Connection, Database
from letta_bridge.db.memory import Settings
from letta_bridge.db.rooms import Rooms
from letta_bridge.ids import MXID, AgentID, RoomID
from letta_bridge.lanes import Fence, Lanes
from letta_bridge.letta.backend import Agent, AgentListing, Backend
from letta_bridge.letta.errors import Kind, LettaError
from letta_bridge.matrix.homeserver import Homeserver
from letta_bridge.mirror.directory import LANE, Directory
from letta_bridge.mirror.maker import PORTAL_STATE, SPACE_STATE
from letta_bridge.mirror.settings import MirrorSettings
from letta_bridge.testing.fake_homeserver import FakeHomeserver

DOMAIN = "test.local"
BOT = MXID(f"@lettabridge:{DOMAIN}")
ALICE = MXID(f"@alice:{DOMAIN}")


def agent_id(number: int) -> AgentID:
    return AgentID(f"agent-{number:08d}-0000-4000-8000-000000000000")


def puppet(number: int) -> MXID:
    return MXID(f"@letta_{number:08d}-0000-4000-8000-000000000000:{DOMAIN}")


def alias(number: int) -> str:
    return f"#letta_{number:08d}-0000-4000-8000-000000000000:{DOMAIN}"


def agent(number: int, name: str | None = None, **more: Any) -> Agent:
    return Agent(agent_id(number), f"Agent {number}" if name is None else name, **more)


class ListedLetta:
    """A Letta that lists what a test puts into it. It gives every fact of an agent that is in none of its lists when
    asked by id, if the test has it in ``hidden``.
    """

    def __init__(self) -> None:
        self.agents: list[Agent] = []
        self.hidden: list[Agent] = []
        self.fingerprint_: str | LettaError | None = "org-1 of the first day"
        self.marker: str | None = None
        self.complete = True
        self.error: LettaError | None = None
        self.listings = 0

    async def list_agents(self) -> AgentListing:
        self.listings += 1
        if self.error is not None:
            raise self.error
        return AgentListing(tuple(self.agents), self.complete)

    async def get_agent(self, agent_id: AgentID) -> Agent:
        if self.error is not None:
            raise self.error
        for one in (*self.agents, *self.hidden):
            if one.id == agent_id:
                return one
        raise LettaError(Kind.AGENT_GONE, "no such agent")

    async def fingerprint(self) -> str | None:
        if isinstance(self.fingerprint_, LettaError):
            raise self.fingerprint_
        return self.fingerprint_

    async def read_marker(self) -> str | None:
        return self.marker

    async def write_marker(self, value: str) -> None:
        self.marker = value

    def set(self, agents: Iterable[Agent]) -> None:
        self.agents = list(agents)


class QuietLanes(Lanes):
    """Lanes that write down who was woken and do nothing about it: the tests make the passes."""

    def __init__(self, db: Database) -> None:
        super().__init__(db, "test")
        self.woken: list[str] = []

    def wake(self, lane: str) -> None:
        self.woken.append(lane)


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """All parts; ``directory`` is of the process that runs now."""

    fake: FakeHomeserver
    db: Database
    homeserver: Homeserver
    settings: MirrorSettings
    lanes: QuietLanes
    letta: ListedLetta = field(default_factory=ListedLetta)
    clock: Clock = field(default_factory=Clock)
    epoch: int = 0
    directory: Directory = field(init=False)

    def __post_init__(self) -> None:
        self.agents, self.rooms, self.memory = Agents(self.db), Rooms(self.db), Settings(self.db)
        self._build()

    def _build(self) -> None:
        self.directory = Directory(
            self.db,
            self.agents,
            self.rooms,
            self.memory,
            self.homeserver,
            cast(Backend, self.letta),
            self.settings,
            self.lanes,
            Alarms(self.db),
            clock=self.clock,
        )

    async def restart(self, settings: MirrorSettings | None = None) -> None:
        """A new process over the same database: only what was written down is known."""
        await self.homeserver.close()
        self.homeserver = open_homeserver(self.fake)
        self.settings = settings or self.settings
        self._build()

    async def claim(self) -> Fence:
        """Own the mirror's lane, as a replica that has just taken it."""
        self.epoch += 1

        async def work(conn: Connection) -> None:
            await conn.execute(
                "INSERT INTO lane (lane, owner, epoch) VALUES ($1, 'test', $2) "
                "ON CONFLICT (lane) DO UPDATE SET owner = 'test', epoch = $2",
                LANE,
                self.epoch,
            )

        await self.db.write(work)
        return Fence(LANE, "test", self.epoch)

    async def run_pass(self) -> float:
        """One pass; the seconds until the next."""
        delay = await self.directory.handle(await self.claim())
        assert delay is not None
        return delay

    async def settle(self, passes: int = 8) -> None:
        """Passes, with time going by and the homeserver's pushes coming in, until one asks the homeserver nothing."""
        for _ in range(passes):
            before = len(self.fake.requests)
            await self.run_pass()
            await self.push()
            if len(self.fake.requests) == before:
                return
            self.clock.now += 700.0
        raise AssertionError([f"{r.method} {r.path} {r.status}" for r in self.fake.requests[before:]])

    async def push(self) -> None:
        """Take in the state of the bot's rooms, as intake does with what the homeserver pushes."""
        for room in self.fake.hs.rooms.values():
            if room.membership(BOT) != "join":
                continue

            async def work(conn: Connection, room: Any = room) -> None:
                for event in room.state.values():
                    raw = {"type": event.type, "state_key": event.state_key, "content": event.content}
                    await self.rooms.apply(conn, RoomID(room.room_id), raw)

            await self.db.write(work)

    async def alarms(self) -> list[str]:
        """What the admins are told to be wrong, or will be, oldest first."""
        return [
            alarm.text
            for alarm in await Alarms(self.db).all()
            if not alarm.cleared and not alarm.topic.startswith("room.news")
        ]

    async def news(self) -> list[str]:
        """What the admins are told once about rooms, and were not told yet; a line each."""
        alarms = [alarm for alarm in await Alarms(self.db).all() if alarm.topic == "room.news"]
        return [line for alarm in alarms if not alarm.told for line in alarm.text.split("\n")]

    async def row(self, number: int) -> AgentRow:
        row = await self.agents.get(agent_id(number))
        assert row is not None
        return row

    # -- what people see

    def state(self, room_id: str | None, kind: str, key: str = "") -> dict[str, Any]:
        """The content of a state event on the homeserver; ``{}`` when there is none."""
        assert room_id is not None
        return self.fake.hs.rooms[room_id].content(kind, key)

    def profile(self, number: int) -> dict[str, Any]:
        return self.fake.hs.accounts.users[puppet(number)].profile

    def portals(self, number: int) -> list[str]:
        """Rooms that say they are this agent's portal."""
        return [
            room for room in self.fake.hs.rooms if self.state(room, PORTAL_STATE).get("agent_id") == agent_id(number)
        ]

    def spaces(self) -> list[str]:
        return [room for room in self.fake.hs.rooms if self.state(room, SPACE_STATE)]

    def children(self) -> set[str]:
        (space,) = self.spaces()
        return {
            key
            for (kind, key), event in self.fake.hs.rooms[space].state.items()
            if kind == "m.space.child" and event.content.get("via") == [DOMAIN]
        }

    def requests(self, since: int = 0) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.fake.requests[since:]]

    def check_complete(self, numbers: Iterable[int], people: Iterable[str] = ()) -> None:
        """Everything that an agent is to have, exactly once, as the homeserver sees it."""
        (space,) = self.spaces()
        assert self.fake.hs.aliases[f"#letta_space:{DOMAIN}"][0] == space == self.directory.space_room
        for number in numbers:
            (portal,) = self.portals(number)
            room = self.fake.hs.rooms[portal]
            assert self.fake.hs.aliases[alias(number)][0] == portal
            assert room.membership(BOT) == room.membership(puppet(number)) == "join"
            assert all(room.membership(person) in ("invite", "join") for person in people)
            assert self.state(portal, "m.room.name") == {"name": self.profile(number)["displayname"]}
            assert self.profile(number)["avatar_url"].startswith("mxc://")
            assert len(self.fake.hs.accounts.users[puppet(number)].devices) == 1
            assert self.state(portal, "m.space.parent", space) == {"via": [DOMAIN], "canonical": True}
            assert portal in self.children()


@contextlib.asynccontextmanager
async def open_database(folder: Path, uri: str) -> AsyncIterator[Database]:
    """An open database; a relative SQLite path starts from ``folder``."""
    database = Database(uri, base=folder)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def open_homeserver(fake: FakeHomeserver) -> Homeserver:
    return Homeserver(fake.url, DOMAIN, fake.appservice.as_token, BOT, timeout=10.0)


@contextlib.asynccontextmanager
async def new_world(
    database: Database, flavour: Literal["synapse", "tuwunel"] = "synapse", **settings: Any
) -> AsyncIterator[World]:
    """A world over an open database."""
    async with FakeHomeserver(flavour=flavour, domain=DOMAIN) as fake:
        fake.hold_push()
        await fake.person("alice")
        world = World(fake, database, open_homeserver(fake), MirrorSettings(**settings), QuietLanes(database))
        try:
            yield world
        finally:
            await world.homeserver.close()
