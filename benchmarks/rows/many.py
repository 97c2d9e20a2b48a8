"""Very many agents, against the null homeserver: starting again with 1,000, and taking in a list of 5,000."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ..processes import Watch
from ..results import Line, Report
from ..stage import Options
from .null import ROOMS, NullStage, a_null_stage, dms

_RESTARTED = 1000
_LISTED = 5000


async def restart(options: Options, report: Report) -> None:
    """Seconds from the start of the process until it is ready, and what it writes to the homeserver meanwhile."""
    times = 2 if options.quick else 5
    async with a_null_stage(options, agents=_RESTARTED) as stage:
        bridge = stage.bridges[0]
        await asyncio.sleep(2)
        found: list[float] = []
        writes: Counter[str] = Counter()
        for _ in range(times):
            await bridge.stop()
            before = Counter((await stage.order("status"))["writes"])
            begun = time.monotonic()
            await bridge.start()
            found.append(time.monotonic() - begun)
            await asyncio.sleep(5)  # the first look at Letta's list is in it
            writes += Counter((await stage.order("status"))["writes"]) - before
    each = ", ".join(f"{seconds:.2f}" for seconds in found)
    what = f"restart with {_RESTARTED:,} mirrored agents"
    report.add(Line("restart", f"{what}: ready", f"{max(found):.2f} s", target="≤ 3 s", met=max(found) <= 3, note=each))
    report.add(
        Line(
            "restart",
            f"{what}: homeserver writes",
            str(sum(writes.values())),
            target="0",
            met=not writes,
            note=", ".join(f"{count} × {name}" for name, count in writes.items()) or f"over {times} restarts",
        )
    )


async def lag(options: Options, report: Report) -> None:
    """For how long the event loop does nothing else, at worst."""
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lag.json"
    watch = Watch(lag=path)
    wait = 100 if options.quick else _LISTED
    async with a_null_stage(options, agents=_LISTED, watch=watch, wait=wait) as stage:
        await stage.bridges[0].stop()
        _lag_line(report, f"a list of {_LISTED:,} new agents", path)
        if options.quick:
            return
        await stage.bridges[0].start()
        await asyncio.sleep(10)
        await stage.bridges[0].stop()
        _lag_line(report, f"a list of {_LISTED:,} known agents", path)
        await stage.bridges[0].start()
        await asyncio.sleep(10)
        await _talk(stage)
        await stage.bridges[0].stop()
        _lag_line(report, f"2,000 messages to {ROOMS} of {_LISTED:,} agents", path)


async def _talk(stage: NullStage) -> None:
    await stage.order("say", rooms=await dms(stage), messages=2000)
    await stage.until(lambda s: not s["unanswered"], "answered", 300)


def _lag_line(report: Report, what: str, path: Path) -> None:
    gaps: list[dict[str, Any]] = json.loads(path.read_text())
    blocked = [(gap["wall"] - gap["starved"], gap) for gap in gaps]
    worst = max((seconds for seconds, _ in blocked), default=0.0)
    over = [(seconds, gap) for seconds, gap in blocked if seconds > 0.05]
    wall = max((gap["wall"] for gap in gaps), default=0.0)
    report.add(
        Line(
            "lag",
            f"{what}: longest block of the loop",
            f"{worst * 1000:.0f} ms" if gaps else "< 25 ms",
            target="≤ 50 ms",
            met=worst <= 0.05,
            note=f"{len(over)} over 50 ms; {wall * 1000:.0f} ms together with waiting for a processor",
        )
    )
    for seconds, gap in over[:5]:
        own = f"{gap['cpu'] * 1000:.0f} ms of it the loop's own computing"
        report.remark(f"lag: {seconds * 1000:.0f} ms, {own}: {gap['where'] or 'not seen'}")
