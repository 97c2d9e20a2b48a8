"""Kills and freezes a bridge, at named places and at any moment, and starts it again."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from letta_bridge import faults
from letta_bridge.testing.stack.process import free_port

from .harness import CrashWorld

_DRAIN = tuple(point for point in faults.POINTS if point.startswith("drain."))
_LIVE = tuple(point for point in faults.POINTS if not point.startswith("drain."))
_PATIENCE = 3.0
"""Seconds in which an armed place is to be passed; then the bridge dies wherever it is."""


@dataclass
class Toll:
    """What was done to the bridge, and how long it took to come back."""

    kills: Counter[str] = field(default_factory=Counter)
    freezes: Counter[str] = field(default_factory=Counter)
    stops: int = 0
    """Orderly stops between the kills."""
    replaced: int = 0
    """Times that a second process took the place of a frozen one, which was thawed afterwards."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the start of a process to the next answer that a person saw."""

    @property
    def killed(self) -> int:
        return self.kills.total()


class Killer:
    """One round is one kill or freeze, and the bridge alive again."""

    def __init__(self, world: CrashWorld, dice: random.Random) -> None:
        self._world = world
        self._dice = dice
        self.toll = Toll()
        self._started = 0.0
        self._deck: list[str] = []
        world.hs.hs.listeners.append(self._watch)

    def _watch(self) -> None:
        """Something changed on the homeserver: the first answer after a start ends the time of a recovery."""
        events = self._world.hs.hs.events
        newest = next(reversed(events.values()), None)
        if not self._started or newest is None or newest.content.get("msgtype") != "m.text":
            return
        if newest.sender.startswith("@letta_"):
            self.toll.recoveries.append(asyncio.get_running_loop().time() - self._started)
            self._started = 0.0

    async def round(self) -> None:
        """One kill or freeze."""
        roll = self._dice.random()
        if roll < 0.45:
            await self._at_a_place()
        elif roll < 0.55:
            await self._while_stopping()
        elif roll < 0.75:
            await self._at_any_moment()
        elif roll < 0.85:
            await self._at_a_place_of_the_recovery()
        elif roll < 0.97 or not self._world.database.startswith("postgres"):
            await self._freeze()
        else:
            await self._replace_while_frozen()

    def _next(self) -> str:
        """A place, each once before any comes again."""
        if not self._deck:
            self._deck = self._dice.sample(_LIVE, len(_LIVE))
        return self._deck.pop()

    # -- ways to die

    async def _at_a_place(self) -> None:
        point = self._next()
        count = self._dice.choice((1, 1, 1, 2, 3, 5))
        self._world.arm(f"{point}:{count}:kill")
        await self._dead_soon(point)
        await self._start()

    async def _while_stopping(self) -> None:
        """At a place of the drain, or of the last work that is done there; or it is allowed to end in order."""
        point = self._dice.choice((*_DRAIN, *_DRAIN, "send.before", "send.after", "turn.ended", ""))
        self._world.arm(f"{point}:1:kill" if point else None)
        assert self._world.child is not None
        child = self._world.child
        child.send_signal(signal.SIGTERM)
        await child.wait_exit(20)
        if self._world.struck:
            self.toll.kills[point] += 1
        else:
            self.toll.stops += 1
        await self._start()

    async def _at_any_moment(self) -> None:
        await asyncio.sleep(self._dice.uniform(0, 0.8))
        self._kill("any moment")
        await self._start()

    async def _at_a_place_of_the_recovery(self) -> None:
        """Killed, and killed again while the next process takes up what was left."""
        self._kill("any moment")
        await asyncio.sleep(self._dice.uniform(0, 0.2))
        point = self._next()
        self._spawn(at=f"{point}:1:kill")
        await self._dead_soon(point, self._dice.choice((0.3, _PATIENCE)))
        await self._start()

    async def _freeze(self) -> None:
        world, loop = self._world, asyncio.get_running_loop()
        assert world.child is not None
        child = world.child
        point = self._dice.choice(("any moment", self._next()))
        if point == "any moment":
            await asyncio.sleep(self._dice.uniform(0, 0.5))
            child.send_signal(signal.SIGSTOP)
        else:
            world.arm(f"{point}:1:stop")
            deadline = loop.time() + _PATIENCE
            while not world.struck and loop.time() < deadline:
                await asyncio.sleep(0.01)
            if not world.struck:
                point = "any moment"
                world.arm(None)
                child.send_signal(signal.SIGSTOP)
        self.toll.freezes[point] += 1
        await asyncio.sleep(self._dice.uniform(0.1, 1.5))
        if self._dice.random() < 0.2:
            self._kill("frozen")
            await self._start()
        else:
            child.send_signal(signal.SIGCONT)
            await world.ready(30)

    async def _replace_while_frozen(self) -> None:
        """A supervisor that takes a frozen process for dead starts another under the same name; then it thaws."""
        world = self._world
        assert world.child is not None
        frozen = world.child
        frozen.send_signal(signal.SIGSTOP)
        self.toll.freezes["any moment"] += 1
        world.port = free_port()
        await self._start()
        frozen.send_signal(signal.SIGCONT)
        await asyncio.sleep(self._dice.uniform(0, 1.0))
        frozen.kill()
        self.toll.kills["replaced"] += 1
        self.toll.replaced += 1

    # -- one process after the other

    async def _dead_soon(self, point: str, patience: float = _PATIENCE) -> None:
        """Wait for the bridge to die at its place; late ones die where they are."""
        child, loop = self._world.child, asyncio.get_running_loop()
        assert child is not None
        deadline = loop.time() + patience
        while child.running and loop.time() < deadline:
            await asyncio.sleep(0.01)
        if child.running:
            self._kill("any moment")
        else:
            assert self._world.struck, f"the bridge ended by itself\n{child.log_tail(60)}"
            self.toll.kills[point] += 1

    def _kill(self, where: str) -> None:
        child = self._world.child
        assert child is not None and child.running, "the bridge ended by itself"
        child.kill()
        self.toll.kills[where] += 1

    def _spawn(self, at: str | None = None) -> None:
        self._world.hs.appservice_url = self._world.url
        self._world.child = self._world.spawn(at=at)

    async def _start(self) -> None:
        await asyncio.sleep(self._dice.choice((0.0, 0.0, self._dice.uniform(0, 0.5))))
        self._started = asyncio.get_running_loop().time()
        self._spawn()
        with suppress(AssertionError):  # the homeserver may be away for the moment
            await self._world.ready(5)
        assert self._world.child is not None
        assert self._world.child.running, f"the bridge ended by itself\n{self._world.child.log_tail(60)}"
