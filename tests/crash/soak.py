"""A bridge is killed hundreds of times while people talk to it: ``python -m tests.crash.soak``.

    python -m tests.crash.soak --kills 200 --messages 2000 --seed 42

Two worlds at once, one on SQLite and one on PostgreSQL, each with half of the kills and messages. Kills and freezes
come at named places and at any moment, with trouble at the homeserver and at Letta beside them. Everything is counted
from outside: by what people's own clients show, and by the turns that Letta ran. The exit code is 1 when anything was
lost, answered twice or out of order, or when Letta did anything twice that it could have told of. The seed decides
what happens, and is printed; how fast the processes run remains their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from letta_bridge.testing.stack.postgres import LocalPostgres

from ..integration.world import until
from .autopsy import autopsy
from .harness import crash_world
from .killer import Killer, Toll
from .ledger import Ledger, Verdict
from .nursery import Nursery, nursery
from .traffic import Traffic, Weather

_PACE = 0.16
"""Seconds between two things that people do, on average."""
_ROUNDS_TO_A_COUNT = 10
"""Kills and freezes after which everything comes to rest and is counted."""
_REST = 90.0
"""Seconds that everything may take to be answered when nobody says more."""


@dataclass
class Outcome:
    """What came of one world."""

    database: str
    seed: int
    messages: int
    seconds: float
    toll: Toll
    verdict: Verdict
    weather: dict[str, int]
    trouble: str = ""
    """Why it ended early."""

    @property
    def good(self) -> bool:
        return not self.trouble and not self.verdict.violations

    def as_json(self) -> dict[str, Any]:
        verdict, toll = self.verdict, self.toll
        times = toll.recoveries
        return {
            "database": self.database,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "messages": self.messages,
            "kills": toll.killed,
            "freezes": toll.freezes.total(),
            "orderly_stops": toll.stops,
            "replaced_while_frozen": toll.replaced,
            "lost": len(verdict.lost),
            "twice": len(verdict.twice),
            "out_of_order": len(verdict.disorder),
            "unfinished": len(verdict.unfinished),
            "turns_repeated": len(verdict.repeated),
            "turns_repeated_unavoidably": verdict.unavoidable,
            "turns_overlapping": len(verdict.overlapping),
            "turns_ordered_again_after_a_failure": verdict.retried,
            "honest_sentences_instead_of_an_answer": dict(verdict.honest),
            "recovery_median_s": round(median(times), 2) if times else None,
            "recovery_p95_s": round(quantiles(times, n=20)[-1], 2) if len(times) > 1 else None,
            "kills_at": dict(sorted(toll.kills.items())),
            "freezes_at": dict(sorted(toll.freezes.items())),
            "hiccups": dict(sorted(self.weather.items())),
            "violations": verdict.violations,
            "trouble": self.trouble,
        }


async def soak(
    folder: Path, database: str, processes: Nursery, *, seed: int, kills: int, messages: int, pace: float = _PACE
) -> Outcome:
    """Kill one bridge ``kills`` times over ``messages`` messages, then count."""
    dice = random.Random(f"{seed} {database.partition(':')[0]}")
    begun = time.monotonic()
    async with crash_world(folder, database, redis=dice.random() < 0.5, nursery=processes) as world:
        world.hs.push_settings.timeout = 2.0
        traffic = Traffic(world, random.Random(dice.random()))
        killer = Killer(world, random.Random(dice.random()))
        weather = Weather(world, random.Random(dice.random()))
        await traffic.set()
        enough, trouble = asyncio.Event(), ""
        tasks = [
            asyncio.create_task(traffic.talk(enough, pace)),
            asyncio.create_task(weather.blow(enough)),
        ]
        try:
            await _rounds(killer, traffic, weather, tasks, kills, messages)
        except AssertionError as stuck:
            trouble = str(stuck)
        enough.set()
        broken = [one for one in await asyncio.gather(*tasks, return_exceptions=True) if one is not None]
        trouble = "\n".join([trouble, *("".join(traceback.format_exception(one)) for one in broken)]).strip()
        if not trouble:
            try:
                await _rest(traffic.ledger, weather)
            except AssertionError as stuck:
                trouble = str(stuck)
        verdict, spent = traffic.ledger.judge(), time.monotonic() - begun
        if verdict.missing:
            trouble = "\n".join([trouble, *await autopsy(folder, database, verdict.missing[:20])])
        name, counted = database.partition(":")[0], traffic.ledger.counted
        return Outcome(name, seed, counted, spent, killer.toll, verdict, weather.seen, trouble)


async def _rounds(
    killer: Killer, traffic: Traffic, weather: Weather, tasks: list[asyncio.Task[None]], kills: int, messages: int
) -> None:
    """Kill until it is enough, and count again and again on the way."""
    rounds = counted = 0
    while killer.toll.killed < kills or traffic.ledger.counted < messages:
        for task in tasks:
            if task.done():
                task.result()  # what went wrong there
        behind = killer.toll.killed * messages > traffic.ledger.counted * kills
        if killer.toll.killed >= kills or behind:  # people come first: each kill is to hit somebody's message
            counted = await _said_more(traffic.ledger, counted)
            continue
        await killer.round()
        rounds += 1
        if rounds % _ROUNDS_TO_A_COUNT == 0:
            traffic.paused = True
            await _rest(traffic.ledger, weather)
            assert not (found := traffic.ledger.judge().violations), f"after {rounds} rounds: {found}"
            traffic.paused = False


async def _said_more(ledger: Ledger, counted: int) -> int:
    """Wait until people said more than ``counted`` messages: how many they are then."""
    await until(lambda: ledger.counted > counted, _REST, why="people cannot go on: too many answers are missing")
    return ledger.counted


async def _rest(ledger: Ledger, weather: Weather) -> None:
    weather.calm = True
    await until(lambda: ledger.open() == 0, _REST, why="answers are missing although nothing is going on any more")
    with suppress(AssertionError):  # the count tells of what never ends
        await until(lambda: not ledger.growing(), _REST)
    weather.calm = False


# -- the command


async def both(options: argparse.Namespace, folder: Path) -> list[Outcome]:
    """Both databases at once, or the one that was asked for."""
    wanted = ["sqlite", "postgres"] if options.database == "both" else [options.database]
    share = len(wanted)
    async with AsyncExitStack() as stack:
        processes = stack.enter_context(nursery())
        runs = []
        for name in wanted:
            own, uri = folder / name, "sqlite:bridge.db"
            own.mkdir(parents=True)
            if name == "postgres":
                postgres = await stack.enter_async_context(LocalPostgres())
                uri = await postgres.create_database("soak")
            kills, messages = -(-options.kills // share), -(-options.messages // share)
            runs.append(soak(own, uri, processes, seed=options.seed, kills=kills, messages=messages, pace=options.pace))
        return list(await asyncio.gather(*runs))


def table(outcomes: list[Outcome]) -> str:
    """The summary, one column per database."""
    rows = [outcome.as_json() for outcome in outcomes]
    lines = []
    for key, first in rows[0].items():
        if isinstance(first, dict):
            for name in sorted({name for row in rows for name in row[key]}):
                lines.append((f"{key}: {name}", *(str(row[key].get(name, 0)) for row in rows)))
        elif not isinstance(first, list) and key != "trouble":
            lines.append((key.replace("_", " "), *(str(row[key]) for row in rows)))
    width = max(len(line[0]) for line in lines)
    return "\n".join(f"{line[0]:<{width}}  " + "".join(f"{cell:>12}" for cell in line[1:]) for line in lines)


def main() -> int:
    """Run, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs in all (200)")
    parser.add_argument("--messages", type=int, default=2000, help="messages that have to be answered, in all (2000)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="repeat what was decided by dice")
    parser.add_argument("--database", choices=("both", "sqlite", "postgres"), default="both")
    parser.add_argument("--pace", type=float, default=_PACE, help=f"seconds between two messages on average ({_PACE})")
    parser.add_argument("--json", type=Path, help="write the summary there, too")
    parser.add_argument("--folder", type=Path, help="keep configuration, database and log of the bridges there")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="letta-bridge-soak-"))
    outcomes = asyncio.run(both(options, folder))
    summary = {"good": all(one.good for one in outcomes), "worlds": [one.as_json() for one in outcomes]}
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")
    print(table(outcomes))
    total = Counter[str]()
    for one in outcomes:
        total.update({"messages": one.messages, "kills": one.toll.killed})
    print(f"{total['kills']} kills over {total['messages']} messages: {'nothing amiss' if summary['good'] else 'BAD'}")
    if summary["good"]:
        if not options.folder:
            shutil.rmtree(folder)
        return 0
    for one in outcomes:
        print(f"\n{one.database}: {one.trouble}", *one.verdict.violations, sep="\n  ")
    again = f"--kills {options.kills} --messages {options.messages} --database {options.database} --pace {options.pace}"
    print(f"\nlogs: {folder}\nagain: python -m tests.crash.soak --seed {options.seed} {again}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
