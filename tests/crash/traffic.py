"""The people, the model and the weather of a soak."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_letta import Behaviour
from letta_bridge.testing.fake_letta import Fault as LettaFault

from ..integration.world import DOMAIN
from .harness import CrashWorld
from .ledger import END, Ledger, Said, reply_names

_LONGEST_ROOM = 120
"""Messages after which a DM is left for a new one: rooms are opened all the time, and no timeline grows without end."""
_MOST_OPEN = 30
"""Answers still to come at which people wait before they say more."""


@dataclass(eq=False)
class Place:
    """A room, who speaks there, and which agents are in it."""

    people: list[Person]
    room: str
    agents: list[str]
    said: list[Said] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    passing: bool = False
    """A DM, which is left one day for a new one."""

    @property
    def crowd(self) -> bool:
        return len(self.people) + len(self.agents) > 2


class Traffic:
    """People who talk in DMs, in a portal, in a group with two agents, and in threads; who change their minds, take
    things back and say stop.
    """

    def __init__(self, world: CrashWorld, dice: random.Random) -> None:
        self._world = world
        self._dice = dice
        self._model = random.Random(dice.random())
        self.places: list[Place] = []
        self.ledger = Ledger(world.letta, {})
        self.paused = False
        self._number = 0

    async def set(self) -> None:
        """Start the bridge, and let every kind of room have its first message."""
        world = self._world
        world.letta.reply = self._reply
        agents = [world.letta.add_agent(name) for name in ("Ada", "Basil", "Cleo", "Dora")]
        self.ledger = Ledger(world.letta, {world.puppet(agent): agent for agent in agents})
        alice = await world.hs.person("alice", auto_join=True)
        bob = await world.hs.person("bob", auto_join=True)
        world.settings |= {"mirror.invite": [alice.mxid], "letta.turn_timeout": 60.0}
        await world.start()
        aliases = world.hs.hs.aliases
        portal_of_dora = f"#letta_{agents[3].removeprefix('agent-')}:{DOMAIN}"
        await world.hs.wait_until(lambda: portal_of_dora in aliases, 20, "the portals")
        portal = aliases[portal_of_dora][0]
        await alice.wait_joined(portal, alice.mxid, 20)
        self.places.append(Place([alice], portal, [agents[3]]))
        ada, basil = agents[0], agents[1]
        group = await alice.create_room(invite=[bob.mxid, world.puppet(ada), world.puppet(basil)])
        for agent in (ada, basil):
            await alice.wait_joined(group, world.puppet(agent), 20)
        self.places.append(Place([alice, bob], group, [ada, basil]))
        for person, agent in ((alice, ada), (bob, basil), (alice, agents[2]), (bob, agents[2])):
            await self._open_dm(person, agent)

    # -- the model

    def _reply(self, texts: list[str]) -> str | AsyncIterator[str]:
        roll = self._model.random()
        said = f"re: {reply_names(texts)}"
        if roll < 0.4:
            return f"{said} {END}"
        # most take a moment; some are streamed for long enough to be shown while they grow
        words, pause = (3, self._model.uniform(0, 0.1)) if roll < 0.85 else (10, 0.15)
        return self._slowly(said, words, pause)

    async def _slowly(self, said: str, words: int, pause: float) -> AsyncIterator[str]:
        yield said
        for number in range(words):
            await asyncio.sleep(pause)
            yield f" word{number}"
        yield f" {END}"

    # -- people

    async def talk(self, enough: asyncio.Event, pace: float) -> None:
        """Say things until ``enough``, on average one in ``pace`` seconds."""
        while not enough.is_set():
            await asyncio.sleep(self._dice.uniform(0, 2 * pace))
            while self.paused or not self._world.hs.up or self.ledger.open() > _MOST_OPEN:
                await asyncio.sleep(0.1)
                if enough.is_set():
                    return
            if not enough.is_set():
                with suppress(ConnectionRefusedError):  # the homeserver went away; people try again later
                    await self.once()

    async def once(self) -> None:
        """One thing that somebody does."""
        roll, place = self._dice.random(), self._dice.choice(self.places)
        if roll < 0.84 or not place.said:
            await self._say(place)
        elif roll < 0.89:
            for _ in range(4):
                await self._say(place)
        elif roll < 0.94:
            last = place.said[-1]
            await last.person.edit(last.room, last.event_id, f"{last.name} edited")
        elif roll < 0.98:
            last = place.said[-1]
            if last in self.ledger.waiting(place.room):
                last.excused = "redacted"
            await last.person.redact(last.room, last.event_id)
        else:
            for one in self.ledger.waiting(place.room):  # may be withdrawn, or answered all the same
                one.excused = one.excused or "stopped"
            await self._dice.choice(place.people).send(place.room, "!stop")

    async def _say(self, place: Place) -> None:
        person, agents = self._dice.choice(place.people), place.agents
        extra: dict[str, Any] = {}
        if place.crowd:
            agents = self._dice.choice([place.agents, place.agents[:1], place.agents[1:]])
            extra["m.mentions"] = {"user_ids": [self._world.puppet(agent) for agent in agents]}
        thread = self._dice.choice(place.threads) if place.threads and self._dice.random() < 0.3 else ""
        if thread:
            extra["m.relates_to"] = {"rel_type": "m.thread", "event_id": thread}
        said = self._next(person, place.room, thread, agents)
        self.ledger.write(said, await person.send(place.room, said.name, **extra))
        place.said.append(said)
        if not thread and len(place.threads) < 3 and self._dice.random() < 0.1:
            place.threads.append(said.event_id)
        if place.passing and len(place.said) >= _LONGEST_ROOM and place in self.places:
            self.places.remove(place)
            await self._open_dm(person, place.agents[0])

    async def _open_dm(self, person: Person, agent: str) -> None:
        said = self._next(person, "", "", [agent])
        said.room = await person.create_dm(self._world.puppet(agent))
        self.ledger.write(said, await person.send(said.room, said.name))
        self.places.append(Place([person], said.room, [agent], [said], passing=True))

    def _next(self, person: Person, room: str, thread: str, agents: list[str]) -> Said:
        self._number += 1
        return Said(f"m{self._number}", person, room, thread, tuple(agents))


class Weather:
    """What goes wrong around the bridge, a little all the time. Nothing of it is for ever."""

    def __init__(self, world: CrashWorld, dice: random.Random) -> None:
        self._world = world
        self._dice = dice
        self._pending: list[LettaFault] = []
        self.seen: dict[str, int] = {}
        self.calm = False

    async def blow(self, enough: asyncio.Event) -> None:
        """One thing in about a second until ``enough``; at Letta not the next before the last has struck."""
        while not enough.is_set():
            await asyncio.sleep(self._dice.uniform(0, 2))
            if not self.calm:
                self._pending = [fault for fault in self._pending if fault.times > 0]
                name = self._dice.choice(list(_HICCUPS))
                if self._pending and name.startswith(("letta", "model")):
                    continue
                self.seen[name] = self.seen.get(name, 0) + 1
                await self._one(name)

    async def _one(self, name: str) -> None:
        hs, letta, dice = self._world.hs, self._world.letta, self._dice
        kind, keys = _HICCUPS[name]
        if kind == "homeserver":
            hs.fail_next(r"/send/", times=dice.randint(1, 3), **keys)
        elif kind == "letta":
            self._pending.append(letta.fail_next(times=1, **keys))
        elif kind == "model":
            letta.script(None, Behaviour(**keys))
        elif kind == "slow":
            hs.delay(r"/send/|/read_markers|/receipt", dice.uniform(0.1, 0.6), times=dice.randint(1, 4))
        elif await self._nothing_in_flight():
            await hs.stop()
            if kind == "down":
                await asyncio.sleep(dice.uniform(0.2, 1.0))
                await hs.start()
            else:  # its memory of transaction ids is gone, and it may count its own anew
                await hs.restart(reset_txn_counter=dice.random() < 0.5)

    async def _nothing_in_flight(self) -> bool:
        """Wait for a moment at which the homeserver can go away. Synapse forgets, until the bridge next fails, what it
        was just pushing when it is stopped, and pushes what comes later first: that is not the bridge's to repair.
        """
        hs = self._world.hs

        def harmless() -> bool:
            pushed = hs.transactions
            return hs.up and (hs.pusher.idle or bool(pushed and pushed[-1].status == 0))

        with suppress(AssertionError):
            await hs.wait_until(harmless, 3.0)
            return True
        return False


_TURNS = r"/v1/conversations/[^/]+/messages$"
_HICCUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "homeserver 500": ("homeserver", {"status": 500}),
    "homeserver 502 after taking it": ("homeserver", {"status": 502, "after_processing": True}),
    "homeserver cuts after taking it": ("homeserver", {"after_processing": "disconnect"}),
    "homeserver 429": ("homeserver", {"status": 429, "retry_after_ms": 300}),
    "homeserver slow": ("slow", {}),
    "homeserver down": ("down", {}),
    "homeserver restarts": ("restart", {}),
    "letta 503": ("letta", {"path_regex": _TURNS, "how": 503, "method": "POST"}),
    "letta 500 while looked at": ("letta", {"path_regex": r"/v1/runs", "how": 500}),
    "letta cuts before it begins": ("letta", {"path_regex": _TURNS, "how": "disconnect", "method": "POST"}),
    "letta cuts the stream": (
        "letta",
        {"path_regex": _TURNS, "how": "disconnect", "method": "POST", "after_events": 2},
    ),
    "letta cuts after the end": (
        "letta",
        {"path_regex": _TURNS, "how": "disconnect", "method": "POST", "after_processing": True},
    ),
    "model fails": ("model", {"error": 500}),
}
