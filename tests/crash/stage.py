"""Two agents, three rooms and one person around a bridge that is killed at chosen places, and the count afterwards."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count

from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person, Rendered
from letta_bridge.testing.fake_letta import Hold

from ..integration.world import BOT
from .harness import CrashWorld, echo

_MARK = re.compile(r"\bp\d+x\d+\b")
_NAME = re.compile(r"<(m\d+)>")


@dataclass
class Stage:
    """Everything said gets a name (``m7``); every piece of an answer gets a mark (``p3x0``), so that a piece that is
    missing or shown twice is seen as well as an answer that is.
    """

    world: CrashWorld
    alice: Person = field(init=False)
    ada: str = field(init=False)
    basil: str = field(init=False)
    rooms: dict[str, str] = field(default_factory=dict)
    """Room -> the agent in it. The first two have the same agent."""
    said: dict[str, list[str]] = field(default_factory=dict)
    spoken: list[str] = field(default_factory=list)
    """Marks of what the model said."""
    style: str = "short"
    """Of the next answer: ``short``: at once. ``slow``: streamed, long enough for a live edit. ``long``: more than one
    Matrix event holds.
    """
    held: Hold | None = None
    """A model that hangs until everything is to be answered."""
    bot_room: str = ""
    """Where Alice commands the bridge."""
    summoned: list[str] = field(default_factory=list)
    """Names of agents that were asked for."""
    intact: bool = False
    """Whether everything that was said so far was found to be in order."""
    _numbers: count[int] = field(default_factory=count)

    async def set(self) -> None:
        """Start the bridge and let every room have its first answer."""
        world = self.world
        world.letta.reply = self._reply
        self.ada, self.basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
        self.alice = await world.hs.person("alice")
        await world.start()
        for agent in (self.ada, self.ada, self.basil):
            name = f"m{next(self._numbers)}"
            room = await self.alice.create_dm(world.puppet(agent), text=name)
            self.rooms[room], self.said[room] = agent, [name]
        self.bot_room = await self.alice.create_dm(BOT)
        await self.alice.wait_joined(self.bot_room, BOT)
        await self.settled()

    async def summon(self) -> None:
        """Ask for a new agent, and do not wait for it."""
        self.summoned.append(f"Agent {len(self.summoned)}")
        await self.alice.send(self.bot_room, f"!letta summon {self.summoned[-1]}")

    def _summoned(self, name: str) -> str:
        """How the job of an agent that was asked for ended; empty before that."""
        reports = [m.body for m in self.alice.messages(self.bot_room) if f"Summoning {name}*" in m.body]
        assert len(reports) < 2, "one job has two reports"
        ends = ("open its room", "It was not done")
        return next((end for report in reports for end in ends if end in report), "")

    def _reply(self, texts: list[str]) -> str | AsyncIterator[str]:
        number = len(self.spoken)
        style, self.style = self.style, "short"
        if style == "slow":
            return self._slowly(texts, [f"p{number}x{part}" for part in range(14)])
        parts = 12 if style == "long" else 1
        marks = [f"p{number}x{part}" for part in range(parts)]
        self.spoken += marks
        filler = "word " * 50 if parts > 1 else ""
        return "\n\n".join([echo(texts), *(f"{mark} {filler}".rstrip() for mark in marks)])

    async def _slowly(self, texts: list[str], marks: list[str]) -> AsyncIterator[str]:
        self.spoken += marks
        yield echo(texts)
        for mark in marks:
            yield f" {mark}"
            await asyncio.sleep(0.1)

    async def say(self, *places: int) -> None:
        """Say something in the rooms with these numbers, one after the other."""
        rooms = list(self.rooms)
        for place in places:
            name = f"m{next(self._numbers)}"
            self.said[rooms[place]].append(name)
            await self.alice.send(rooms[place], name)

    def shown(self, room: str) -> list[Rendered]:
        """What the agent of the room has said there, as Alice's client shows it now."""
        return [m for m in self.alice.messages(room) if m.sender == self.world.puppet(self.rooms[room])]

    def answered(self, room: str) -> list[str]:
        """The names that were answered, in the order in which Alice reads them."""
        return _NAME.findall(" ".join(message.body for message in self.shown(room)))

    def _marks(self) -> Counter[str]:
        return Counter(_MARK.findall(" ".join(m.body for room in self.rooms for m in self.shown(room))))

    async def settled(self, seconds: float = 25.0) -> None:
        """Wait until everything is answered to the last piece, then hold the promises."""
        hs = self.world.hs
        self.intact = False
        if self.held is not None:
            self.held.release()
            self.held = None

        def done() -> bool:
            answers = all(set(self.said[room]) <= set(self.answered(room)) for room in self.rooms)
            answers = answers and set(self.spoken) <= set(self._marks())
            return answers and all(map(self._summoned, self.summoned))

        try:
            await hs.wait_until(done, seconds, "an answer to every message, to the last piece")
            await hs.wait_pushed(seconds)
            self.check()
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.story()}") from late
        self.intact = True

    def check(self) -> None:
        """Nothing is lost, nothing is shown twice or out of order, and Letta was asked once for each message."""
        letta = self.world.letta
        for room, agent in self.rooms.items():
            assert self.answered(room) == self.said[room], "an answer is missing, doubled or out of order"
            assert self.world.heard(agent, room) == self.said[room], "Letta was not told everything once and in order"
            unfinished = [m.body for m in self.shown(room) if m.body.endswith(" …")]
            assert not unfinished, f"an answer stays unfinished: {unfinished}"
        assert self._marks() == Counter(self.spoken), "a piece of an answer is missing or doubled"
        names = [agent.name for agent in letta.agents.values()]
        for name in self.summoned:
            assert names.count(name) == (self._summoned(name) == "open its room"), (
                f"{name} is there {names.count(name)} times"
            )
        for agent in (self.ada, self.basil):
            turns = letta.turns(agent)
            assert {turn.outcome for turn in turns} == {"end_turn"}
            assert not any(one.overlaps(two) for at, one in enumerate(turns) for two in turns[:at]), "two turns at once"

    def story(self) -> str:
        """What happened, for a failed check."""
        parts = []
        for room, agent in self.rooms.items():
            parts += [
                f"said: {self.said[room]}",
                *map(str, self.shown(room)),
                f"heard: {self.world.heard(agent, room)}",
            ]
        pushes = [(t.txn_id, t.attempt, t.status) for t in self.world.hs.transactions[-10:]]
        runs = [(t.outcome, [envelope.open_(x).body for x in t.texts]) for t in self.world.letta.turns()[-8:]]
        tail = self.world.child.log_tail(40) if self.world.child else ""
        return "\n".join([*parts[-40:], f"pushes: {pushes}", f"turns: {runs}", tail])
