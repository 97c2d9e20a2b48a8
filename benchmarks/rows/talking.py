"""Latency, burst and what both cost the processor: the bridge and the two floors in turn, in short rounds."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from letta_bridge.ids import CONTENT_KEY

from ..results import Line, Report, Rounds
from ..stage import Stage

BURST_ROOMS = 20
BURST_MESSAGES = 20
_WARM = 10
_AFTERMATH = 0.3


@dataclass
class Cpu:
    """Processor seconds and messages of each side, over the rounds in which it had the floor."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    homeserver: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """What Synapse took meanwhile."""
    messages: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @asynccontextmanager
    async def measured(self, stage: Stage, side: str, messages: int) -> AsyncIterator[None]:
        """Count what the block takes, and what follows its last answer: confirmations and receipts belong to it."""
        own, homeserver = stage.cpu(side), stage.synapse.cpu()
        yield
        await asyncio.sleep(_AFTERMATH)
        self.seconds[side] += stage.cpu(side) - own
        self.homeserver[side] += stage.synapse.cpu() - homeserver
        self.messages[side] += messages


async def latency(stage: Stage, report: Report, cpu: Cpu) -> None:
    """One person, one room, one message after the other."""
    rounds, count = (8, 5) if stage.options.quick else (40, 5)
    found = {side: Rounds() for side in stage.sides}
    for side in stage.sides:
        room = await stage.dm(side, 0)
        for number in range(_WARM):
            await stage.people[side].ask(room, stage.puppet(side, 0), f"w-{number}")
    for number in range(rounds):
        for side in stage.sides:
            room, puppet, person = stage.rooms[side, 0], stage.puppet(side, 0), stage.people[side]
            async with cpu.measured(stage, side, count):
                values = [await person.ask(room, puppet, f"l-{number}-{index}") * 1000 for index in range(count)]
            found[side].rounds.append(values)
    for name, target in (("median", 1.25), ("p95", 1.35)):
        ms = {side: float(getattr(found[side], name)) for side in stage.sides}
        ratio = ms["bridge"] / ms["naive"]
        report.add(
            Line(
                "latency",
                f"reply, {name}",
                f"{ms['bridge']:.1f} ms",
                f"{ms['naive']:.1f} ms",
                f"{ms['echo']:.1f} ms",
                f"{ratio:.2f}",
                f"{ms['bridge'] / ms['echo']:.2f}",
                f"≤ {target}",
                ratio <= target,
                f"n = {rounds * count} each",
            )
        )
    pairs = zip(found["bridge"].rounds, found["naive"].rounds, strict=True)
    spreads = ", ".join(f"{side} {found[side].spread()} ms" for side in stage.sides)
    ratios = sorted(statistics.median(mine) / statistics.median(its) for mine, its in pairs)
    report.remark(
        f"latency: the medians of the {rounds} rounds: {spreads}; ratio to the naive floor round by round: "
        f"{ratios[0]:.2f}–{ratios[-1]:.2f}, median {statistics.median(ratios):.2f}"
    )


@dataclass
class Burst:
    """What one burst led to."""

    sent: float
    """Seconds from the first send to the last one's answer by the homeserver."""
    answered: float
    """Seconds from the first send until the last answer was seen."""
    lost: int
    answers: int


async def burst(stage: Stage, report: Report, cpu: Cpu) -> None:
    """Twenty rooms, twenty messages in each, as fast as the homeserver takes them."""
    rounds = 1 if stage.options.quick else 4
    found: dict[str, list[Burst]] = {side: [] for side in stage.sides}
    for side in stage.sides:
        for number in range(BURST_ROOMS):
            await stage.dm(side, number)
    for number in range(rounds):
        for side in stage.sides:
            async with cpu.measured(stage, side, BURST_ROOMS * BURST_MESSAGES):
                found[side].append(await _one_burst(stage, side, number))
    total = BURST_ROOMS * BURST_MESSAGES
    rate = {side: total * rounds / sum(one.answered for one in found[side]) for side in stage.sides}
    lost = {side: sum(one.lost for one in found[side]) for side in stage.sides}
    answers = sum(one.answers for one in found["bridge"])
    ratio = rate["bridge"] / rate["naive"]
    report.add(
        Line(
            "burst",
            f"{BURST_ROOMS} rooms × {BURST_MESSAGES} messages, answered",
            f"{rate['bridge']:.0f}/s",
            f"{rate['naive']:.0f}/s",
            f"{rate['echo']:.0f}/s",
            f"{ratio:.2f}",
            f"{rate['bridge'] / rate['echo']:.2f}",
            "≥ 0.9, none lost",
            ratio >= 0.9 and not lost["bridge"],
            f"{rounds} rounds each; lost {lost['bridge']} / {lost['naive']} / {lost['echo']}; the bridge's "
            f"{total * rounds} messages had {answers} answers",
        )
    )
    for side in stage.sides:
        each = ", ".join(f"{total / one.answered:.0f}/s (sent in {one.sent:.1f} s)" for one in found[side])
        report.remark(f"burst: {side}: {each}")


async def _one_burst(stage: Stage, side: str, number: int, seconds: float = 60) -> Burst:
    person = stage.people[side]
    puppets = {stage.rooms[side, room]: stage.puppet(side, room) for room in range(BURST_ROOMS)}
    waiting: dict[str, set[str]] = {}
    named: dict[str, set[str]] = defaultdict(set)
    done = asyncio.Event()
    last = [0.0]
    answers = [0]

    def look(at: float, room: str, event: dict[str, Any]) -> None:
        if event.get("type") != "m.room.message" or event.get("sender") != puppets.get(room):
            return
        words = set(str(event["content"].get("body", "")).split())
        if not words & waiting[room]:
            return
        answers[0] += 1
        named[room].update(event["content"].get(CONTENT_KEY, {}).get("answers", ()))
        waiting[room] -= words
        last[0] = at
        if not any(waiting.values()):
            done.set()

    async def talk(room: str, texts: list[str]) -> list[str]:
        return [await person.say(room, text) for text in texts]

    texts = {room: [f"b-{number}-{index}" for index in range(BURST_MESSAGES)] for room in puppets}
    waiting.update({room: set(mine) for room, mine in texts.items()})
    with person.listening(look):
        begun = time.monotonic()
        sent = await asyncio.gather(*(talk(room, mine) for room, mine in texts.items()))
        sending = time.monotonic() - begun
        try:
            async with asyncio.timeout(seconds):
                await done.wait()
        except TimeoutError:
            last[0] = time.monotonic()
    lost = sum(map(len, waiting.values()))
    if side == "bridge":  # the content names what it answers
        lost = max(lost, sum(len(set(ids) - named[room]) for room, ids in zip(puppets, sent, strict=True)))
    return Burst(sending, last[0] - begun, lost, answers[0])


def cpu_line(stage: Stage, report: Report, cpu: Cpu) -> None:
    """What the rounds above cost."""
    ms = {side: cpu.seconds[side] / cpu.messages[side] * 1000 for side in stage.sides}
    synapse = ", ".join(f"{side} {cpu.homeserver[side] / cpu.messages[side] * 1000:.0f} ms" for side in stage.sides)
    ratio = ms["bridge"] / ms["naive"]
    report.add(
        Line(
            "cpu",
            "processor time per message",
            f"{ms['bridge']:.1f} ms",
            f"{ms['naive']:.1f} ms",
            f"{ms['echo']:.1f} ms",
            f"{ratio:.2f}",
            f"{ms['bridge'] / ms['echo']:.2f}",
            "≤ 2.5",
            ratio <= 2.5,
            f"over {cpu.messages['bridge']} messages each; Synapse took meanwhile, per message: {synapse}",
        )
    )
