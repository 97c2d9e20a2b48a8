"""``python -m benchmarks [ROW …]``: measures, prints the table, and writes it down if asked."""

from __future__ import annotations

import argparse
import asyncio
import json
import pstats
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from letta_bridge.testing.stack.process import StackError

from .page import conditions, page
from .results import Line, Report, table
from .rows.lifecycle import many, reconcile
from .rows.many import lag, restart
from .rows.mirror import mirror
from .rows.null import VARIANTS, null
from .rows.summon import summon
from .rows.talking import Cpu, burst, cpu_line, latency
from .rows.wire import requests, stream
from .stage import Options, a_stage

_TALKING = ("latency", "burst", "cpu", "requests", "stream")
_MIRROR = ("provisioning", "idle")
_NULL = ("null", *VARIANTS)
ROWS = (*_TALKING, *_MIRROR, "many", "summon", "restart", "reconcile", *_NULL, "lag")


async def _talking(options: Options, rows: set[str], report: Report) -> None:
    cpu = Cpu()
    async with a_stage(options, 20) as stage:
        if rows & {"latency", "cpu"}:
            await latency(stage, report, cpu)
        if rows & {"burst", "cpu"}:
            await burst(stage, report, cpu)
        if cpu.messages:
            cpu_line(stage, report, cpu)
        if "stream" in rows:
            await stream(stage, report)
        if "requests" in rows:
            await requests(stage, report)


async def _restart(options: Options, _: set[str], report: Report) -> None:
    await restart(options, report)


async def _reconcile(options: Options, _: set[str], report: Report) -> None:
    await reconcile(options, report)


async def _many(options: Options, _: set[str], report: Report) -> None:
    await many(options, report)


async def _summon(options: Options, _: set[str], report: Report) -> None:
    await summon(options, report)


async def _lag(options: Options, _: set[str], report: Report) -> None:
    await lag(options, report)


_GROUPS: tuple[tuple[tuple[str, ...], Callable[[Options, set[str], Report], Awaitable[None]]], ...] = (
    (_TALKING, _talking),
    (_MIRROR, mirror),
    (("many",), _many),
    (("summon",), _summon),
    (("restart",), _restart),
    (("reconcile",), _reconcile),
    (_NULL, null),
    (("lag",), _lag),
)


async def _run(options: Options, rows: set[str], report: Report) -> None:
    for number, (members, measure) in enumerate(_GROUPS):
        if wanted := rows & set(members):
            folder = options.folder / str(number)
            try:
                await measure(Options(folder, options.quick, options.profile), wanted, report)
            except (StackError, TimeoutError, aiohttp.ClientError, OSError) as error:  # the other rows still count
                names = ", ".join(sorted(wanted))
                why = (str(error) or type(error).__name__).partition("\n")[0]
                report.add(Line(names, "could not be measured to its end", "–", target="figures", met=False, note=why))


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which ones; all of them if none: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a first impression")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page with the table")
    parser.add_argument("--profile", action="store_true", help="run the bridge under cProfile and print what it says")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this folder and leave it there")
    choice = parser.parse_args()
    if unknown := set(choice.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}")
    if choice.keep and choice.keep.exists() and any(choice.keep.iterdir()):
        parser.error(f"{choice.keep} is not empty")
    rows = set(choice.rows) or set(ROWS)
    report = Report(conditions(choice.quick))
    with tempfile.TemporaryDirectory(prefix="letta-bridge-bench-") as scratch:
        folder = choice.keep.absolute() if choice.keep else Path(scratch)
        profile = folder / "bridge.prof" if choice.profile else None
        asyncio.run(_run(Options(folder, choice.quick, profile), rows, report))
        if profile:
            _print_profile(profile)
    print("\n" + table(report.lines))
    if choice.write:
        choice.write.write_text(page(report), encoding="utf-8")
    if choice.json:
        choice.json.write_text(json.dumps(report.json(), indent=1, ensure_ascii=False))
    return 0


def _print_profile(path: Path) -> None:
    for order in ("tottime", "cumulative"):
        pstats.Stats(str(path), stream=sys.stdout).strip_dirs().sort_stats(order).print_stats(45)


if __name__ == "__main__":
    sys.exit(main())
