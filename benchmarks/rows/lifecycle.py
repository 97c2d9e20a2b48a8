"""A list of agents that does not change, and very many of them made on a real homeserver."""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from letta_bridge.testing.stack.process import StackError, free_port
from letta_bridge.testing.stack.synapse import LocalSynapse

from ..processes import BenchedBridge, Child, Watch, rss_mib
from ..proxy import Call, CountingProxy
from ..results import Line, Report
from ..stage import DOMAIN, Options, bridge_settings
from .null import NullStage, a_null_stage

_UNCHANGED = (1000, 5000)
_MANY = 1000
_FIRST = 100
_PASSES = 5


async def reconcile(options: Options, report: Report) -> None:
    """One pass over a list in which nothing changed, asked for through the control interface."""
    memory: dict[int, float] = {}
    for count in _UNCHANGED[:1] if options.quick else _UNCHANGED:
        folder = options.folder / str(count)
        folder.mkdir(parents=True, exist_ok=True)
        lag = folder / "lag.json"
        token, port = secrets.token_hex(16), free_port()
        settings = {"control.token": token, "control.port": str(port), "letta.poll_interval": "3600"}
        mine = Options(folder, options.quick, options.profile)
        async with a_null_stage(mine, agents=count, settings=settings) as stage:
            bridge = stage.bridges[0]
            await bridge.stop()  # what is measured is a bridge that has not just made them all
            bridge.watch = Watch(lag=lag)
            await bridge.start()
            seconds, asked = await _passes(stage, port, token)
            memory[count] = rss_mib(bridge.pid)
            await bridge.stop()
        _reconcile_lines(report, count, seconds, asked, lag)
    sizes = ", ".join(f"{count:,} agents {size:.0f} MiB" for count, size in memory.items())
    each = (memory[5000] - memory[1000]) / 4000 * 1024 if len(memory) == 2 else 0.0
    report.add(
        Line(
            "reconcile",
            "resident memory after it, per agent more",
            f"{each:.1f} KiB" if each else sizes,
            target="≤ 40 KiB" if each else "",
            met=each <= 40 if each else None,
            note=sizes,
        )
    )


async def _passes(stage: NullStage, port: int, token: str) -> tuple[list[float], Counter[str]]:
    """Seconds of each pass, and what the homeserver was asked meanwhile."""
    url = f"http://127.0.0.1:{port}/_letta_bridge/v1/agents/refresh?wait=1"
    headers = {"Authorization": f"Bearer {token}"}
    found: list[float] = []
    async with aiohttp.ClientSession(headers=headers) as http:
        await _refresh(http, url)  # the first one of this process reads its tables
        before = Counter((await stage.order("status"))["requests"])
        for _ in range(_PASSES):
            begun = time.monotonic()
            await _refresh(http, url)
            found.append(time.monotonic() - begun)
        after = Counter((await stage.order("status"))["requests"])
    return found, Counter({name: count for name, count in (after - before).items() if "ping" not in name})


async def _refresh(http: aiohttp.ClientSession, url: str) -> None:
    async with http.post(url) as answer:
        if answer.status >= 300:
            raise StackError(f"a refresh was answered {answer.status}: {await answer.text()}")
        await answer.read()


def _reconcile_lines(report: Report, count: int, seconds: list[float], asked: Counter[str], lag: Path) -> None:
    what = f"{count:,} unchanged agents: "
    median = statistics.median(seconds)
    each = ", ".join(f"{one:.2f}" for one in seconds)
    target = "≤ 5 s" if count > 1000 else "≤ 1 s"
    limit = 5.0 if count > 1000 else 1.0
    report.add(
        Line(
            "reconcile",
            what + "one pass, with Letta's answer",
            f"{median:.2f} s",
            target=target,
            met=median <= limit,
            note=each,
        )
    )
    report.add(
        Line(
            "reconcile",
            what + "homeserver requests",
            str(sum(asked.values())),
            target="0",
            met=not asked,
            note=", ".join(f"{n} × {name}" for name, n in asked.items()) or f"over {_PASSES} passes",
        )
    )
    gaps: list[dict[str, Any]] = json.loads(lag.read_text())
    worst = max((gap["wall"] - gap["starved"] for gap in gaps), default=0.0)
    report.add(
        Line(
            "reconcile",
            what + "longest block of the loop",
            f"{worst * 1000:.0f} ms" if gaps else "< 25 ms",
            target="≤ 50 ms",
            met=worst <= 0.05,
            note="with the start of the process",
        )
    )
    for gap in [gap for gap in gaps if gap["wall"] - gap["starved"] > 0.05][:3]:
        report.remark(f"reconcile: {(gap['wall'] - gap['starved']) * 1000:.0f} ms: {gap['where'] or 'not seen'}")


async def many(options: Options, report: Report) -> None:
    """Whether the thousandth agent costs what the first ones did, on a real Synapse."""
    count = 200 if options.quick else _MANY
    folder = options.folder
    async with AsyncExitStack() as stack:
        port = free_port()
        letta = await stack.enter_async_context(Child("benchmarks.letta", ["--agents", str(count)], folder / "letta"))
        proxy = await stack.enter_async_context(CountingProxy(f"http://127.0.0.1:{port}"))
        mine = folder / "bridge"
        bridge = BenchedBridge(mine, watch=Watch(options.profile), settings=bridge_settings(mine))
        await bridge.init(
            homeserver_url=proxy.url, domain=DOMAIN, letta_url=letta.said["url"], admin=f"@admin:{DOMAIN}"
        )
        await stack.enter_async_context(
            LocalSynapse(folder / "synapse", domain=DOMAIN, registrations=[bridge.registration], port=port)
        )
        await stack.enter_async_context(bridge)
        placed = await _all_placed(proxy, count)
    begun = proxy.calls[0].begun
    first, last = placed[_FIRST - 1] - begun, placed[-1] - begun
    ratio = ((last - first) / (count - _FIRST)) / (first / _FIRST)
    report.add(
        Line(
            "provisioning",
            f"{count:,} agents with pictures",
            f"{last:.1f} s",
            ratio=f"{ratio:.2f} × an agent of the first {_FIRST}",
            target="≤ 1.5 × (linear)",
            met=ratio <= 1.5,
            note=f"the first {_FIRST} in {first:.1f} s; "
            + f"{len([call for call in proxy.calls if not call.is_ping]) / count:.2f} requests per agent",
        )
    )


async def _all_placed(proxy: CountingProxy, count: int) -> list[float]:
    deadline = time.monotonic() + 60 + count
    while len(placed := [call.ended for call in proxy.calls if _is_place(call)]) < count:
        if time.monotonic() > deadline:
            raise StackError(f"only {len(placed)} of {count} agents were made in time")
        await asyncio.sleep(0.2)
    return sorted(placed)


def _is_place(call: Call) -> bool:
    return call.method == "PUT" and "/state/m.space.child/" in call.path and call.status == 200
