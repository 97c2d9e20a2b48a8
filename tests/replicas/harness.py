"""Several bridge processes on one PostgreSQL, behind one URL, and what people and Letta saw of them."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from letta_bridge.testing.balancer import Balancer
from letta_bridge.testing.fake_homeserver import FakeHomeserver, Person
from letta_bridge.testing.fake_letta import FakeLetta

from ..crash.harness import CrashWorld, echo
from ..crash.nursery import Nursery
from ..integration.world import DOMAIN, until

FAST = {"database.lease_s": 1.5, "database.beat_s": 0.3}
DEFAULTS = {"database.lease_s": 6.0, "database.beat_s": 2.0}


class Replica(CrashWorld):
    """One of the processes. Its health, its death and its log are its own; everything else is shared."""

    name = ""

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    async def start(self, *, at: str | None = None) -> None:
        """Start it (again) and wait until it is ready. ``at``: a place at which it ends or freezes itself."""
        self.child = self.spawn(at=at)
        await self.ready()

    def said(self, text: str) -> int:
        """How often its log has this."""
        return self.log.read_text().count(text) if self.log.exists() else 0

    def when(self, text: str) -> str:
        """The time that its log names where it first has this; empty if it does not."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return next((line.split()[0] for line in lines if text in line), "")


@dataclass
class Room:
    """A direct chat of the person with an agent, and what was said in it, in order."""

    room_id: str
    agent: str
    said: list[str] = field(default_factory=list)


@dataclass
class ReplicaWorld:
    """The fakes, the balancer, and as many replicas as the test starts."""

    hs: FakeHomeserver
    letta: FakeLetta
    balancer: Balancer
    folder: Path
    database: str
    settings: dict[str, Any] = field(default_factory=lambda: dict(FAST))
    nursery: Nursery | None = None
    """Where processes come from; None: each from ``python -m letta_bridge``."""
    replicas: dict[str, Replica] = field(default_factory=dict)
    rooms: list[Room] = field(default_factory=list)

    def __getitem__(self, name: str) -> Replica:
        return self.replicas[name]

    def made(self, name: str, **settings: Any) -> Replica:
        """A replica that is not started; ``settings`` are keys of its configuration with ``__`` for a dot."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        own = {key.replace("__", "."): value for key, value in settings.items()}
        values = {"database.replica_id": name, "appservice.url": self.balancer.url, **self.settings, **own}
        replica = Replica(self.hs, self.letta, folder, self.database, values, nursery=self.nursery)
        replica.name = name
        self.replicas[name] = replica
        return replica

    async def start(self, *names: str, **settings: Any) -> None:
        """Start replicas at the same time and wait until all are ready."""
        self.hs.appservice_url = self.balancer.url
        started = [self.replicas.get(name) or self.made(name, **settings) for name in names]
        for replica in started:
            if replica.url not in self.balancer.peers:
                self.balancer.peers.append(replica.url)
        await asyncio.gather(*(replica.start() for replica in started))

    # -- talking

    async def chats(self, person: Person, agents: int, rooms: int) -> list[Room]:
        """New agents, each with so many direct chats that its puppet is in."""
        ids = [self.letta.add_agent(f"Agent {len(self.letta.agents)}") for _ in range(agents)]
        made = [Room(await person.create_dm(puppet_of(agent)), agent) for agent in ids for _ in range(rooms)]
        for room in made:
            await person.wait_joined(room.room_id, puppet_of(room.agent), timeout=20)
        self.rooms += made
        return made

    async def say(self, person: Person, room: Room, text: str) -> str:
        """Say something that will have to be answered."""
        room.said.append(text)
        return await person.send(room.room_id, text)

    async def burst(self, person: Person, rooms: Iterable[Room], messages: int, pause: float = 0.0) -> None:
        """So many messages into each room, in turn."""
        chosen = list(rooms)
        for _ in range(messages):
            for room in chosen:
                await self.say(person, room, f"{self.rooms.index(room)}.{len(room.said)}")
                if pause:
                    await asyncio.sleep(pause)

    # -- what came of it

    async def all_answered(self, person: Person, seconds: float = 30.0) -> None:
        """Everything that was said is answered, and everything counted from outside is as it should be."""

        def missing() -> list[str]:
            return [
                f"{room.room_id} {text}"
                for room in self.rooms
                for text in room.said
                if not self.answers(person, room, text)
            ]

        try:
            await self.hs.wait_until(lambda: not missing(), seconds, "an answer to every message")
        except AssertionError as late:
            raise AssertionError(
                f"{late}\nwithout answer: {missing()[:5]} of {len(missing())}\n{self.report()}"
            ) from late
        await self.check(person)

    def _half_said(self, person: Person) -> list[str]:
        """Answers that still grow; all of their text can be there before their end is."""
        shown = (m for room in self.rooms for m in person.messages(room.room_id) if m.sender == puppet_of(room.agent))
        return [m.body for m in shown if m.body.endswith("…")]

    async def check(self, person: Person) -> None:
        """The invariants: nothing twice, in order, one turn of an agent at a time, nothing left half said."""
        await self.hs.wait_pushed(20)
        await self.hs.wait_until(lambda: not self._half_said(person), 20, "the end of every answer")
        for room in self.rooms:
            shown = [m for m in person.messages(room.room_id) if m.sender == puppet_of(room.agent)]
            answers = [text for m in shown for text in re.findall(r"<([^>]*)>", m.body)]
            if answers != room.said:
                story = await self.story(room)
                raise AssertionError(f"answered: {answers}, said: {room.said}\n{story}\n{self.report()}")
            heard = self.heard(room)
            assert heard == room.said, f"heard in {room.room_id}: {heard}, said: {room.said}\n{self.report()}"
        assert not self.overlaps(), f"turns of one agent at the same time: {self.overlaps()}"

    def answers(self, person: Person, room: Room, text: str) -> int:
        """How many messages of the room's agent answer ``text``."""
        puppet = puppet_of(room.agent)
        return sum(f"<{text}>" in m.body for m in person.messages(room.room_id) if m.sender == puppet)

    def heard(self, room: Room) -> list[str]:
        """What the agent was told in the room, in order; a message in two turns stands twice."""
        return any_replica(self).heard(room.agent, room.room_id)

    def overlaps(self) -> list[tuple[Any, Any]]:
        """Pairs of turns of one agent that ran at the same time."""
        return [
            (one, other)
            for agent in self.letta.agents
            for one, other in itertools.combinations(self.letta.turns(agent), 2)
            if one.overlaps(other)
        ]

    async def story(self, room: Room) -> str:
        """What the database says of a room, for a failed check."""
        events = await self.sql(
            "SELECT seq, before_seq, origin, type, state, decision, round(received_at::numeric % 1000, 3) AS at, "
            'round(decided_at::numeric % 1000, 3) AS decided, substring(body FROM \'body": ?"([^"]*)\') AS text '
            "FROM inbox WHERE room_id = $1 ORDER BY seq",
            room.room_id,
        )
        turns = await self.sql(
            "SELECT t.turn_id, t.state, t.attempt, round(t.created_at::numeric % 1000, 3) AS created, "
            "round(t.submitted_at::numeric % 1000, 3) AS submitted, e.position, right(e.text, 8) AS text "
            "FROM turn t JOIN turn_event e USING (turn_id) WHERE t.room_id = $1 ORDER BY t.turn_id, e.position",
            room.room_id,
        )
        return "\n".join(str(dict(row)) for row in [*events, *turns])

    def report(self) -> str:
        """The ends of all logs."""
        return "\n".join(replica.child.log_tail(30) for replica in self.replicas.values() if replica.child)

    # -- looking into the database

    async def sql(self, query: str, *args: Any) -> list[Any]:
        """Rows of a query on the bridge's database, asked from outside."""
        conn = await asyncpg.connect(self.database)
        try:
            return list(await conn.fetch(query, *args))
        finally:
            await conn.close()

    async def owners(self, prefix: str = "") -> Counter[str]:
        """How many lanes each replica owns."""
        rows = await self.sql("SELECT owner FROM lane WHERE owner IS NOT NULL AND lane LIKE $1", f"{prefix}%")
        return Counter(row["owner"] for row in rows)

    async def owner(self, lane: str) -> str | None:
        """Who owns a lane."""
        rows = await self.sql("SELECT owner FROM lane WHERE lane = $1", lane)
        return rows[0]["owner"] if rows else None

    async def owned(self, lane: str, seconds: float = 10.0) -> Replica:
        """The replica that owns a lane, once one does."""

        async def known() -> Replica | None:
            return self.replicas.get(await self.owner(lane) or "")

        found: Replica = await until(known, seconds, why=f"nobody owns {lane}")
        return found

    def others(self, replica: Replica) -> list[Replica]:
        """The other replicas."""
        return [one for one in self.replicas.values() if one is not replica]


def any_replica(world: ReplicaWorld) -> Replica:
    """Whichever: for what all of them know alike."""
    return next(iter(world.replicas.values()))


def puppet_of(agent: str) -> str:
    """The agent's Matrix id."""
    return f"@letta_{agent.removeprefix('agent-')}:{DOMAIN}"


@asynccontextmanager
async def replica_world(folder: Path, database: str, processes: Nursery | None = None) -> AsyncIterator[ReplicaWorld]:
    """Nothing is started yet: ``await world.start("one", "two")``."""
    async with FakeHomeserver(backoff_scale=0.05) as hs, FakeLetta() as letta, Balancer() as balancer:
        letta.reply = echo
        world = ReplicaWorld(hs, letta, balancer, folder, database, nursery=processes)
        try:
            yield world
        finally:
            for replica in world.replicas.values():
                for child in replica.others:
                    child.kill()
