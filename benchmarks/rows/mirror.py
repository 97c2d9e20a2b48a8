"""Many agents: making them, and doing nothing with them."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from letta_bridge.mirror.picture import make_picture
from letta_bridge.testing.stack.process import StackError, free_port
from letta_bridge.testing.stack.synapse import LocalSynapse

from ..processes import BenchedBridge, Child, Watch, cpu_seconds, rss_mib
from ..proxy import Call, CountingProxy, counted
from ..results import Line, Report
from ..stage import DOMAIN, FLOORS, Floor, Options, a_floor, bridge_settings

AGENTS = 100
_CONCURRENCY = 10


@dataclass(frozen=True)
class _Provisioned:
    """Seconds that it took, and the requests that were made for agents."""

    seconds: float
    calls: list[Call]


@dataclass
class _Sides:
    """Who is measured: its wire and its process."""

    proxies: dict[str, CountingProxy]
    bridge: BenchedBridge
    floors: dict[str, Floor]
    children: dict[str, Child]
    agents: list[str]

    def pid(self, side: str) -> int:
        return self.bridge.pid if side == "bridge" else self.children[side].pid


async def mirror(options: Options, rows: set[str], report: Report) -> None:
    """Provisioning (always, it comes before the rest) and idling; in full, provisioning on two fresh homeservers."""
    # a floor before the bridge and a floor after it: both make exactly the same
    orders = (("echo", "bridge", "naive"), ("naive", "bridge", "echo"))
    found: list[dict[str, _Provisioned]] = []
    for number, order in enumerate(orders[:1] if options.quick or "provisioning" not in rows else orders):
        folder = options.folder / f"mirror-{number}"
        async with AsyncExitStack() as stack:
            sides, picture = await _open(stack, folder, options)
            found.append({side: await _provision(side, sides, stack, picture) for side in order})
            if "idle" in rows and not number:
                await _idle(sides, 15 if options.quick else 60, report)
    _provisioning_lines(found, report)


async def _open(stack: AsyncExitStack, folder: Path, options: Options) -> tuple[_Sides, Path]:
    """A Synapse and a FakeLetta that run, and the sides, which do not run yet."""
    port = free_port()
    homeserver = f"http://127.0.0.1:{port}"
    letta = Child("benchmarks.letta", ["--agents", str(AGENTS)], folder / "letta")
    await stack.enter_async_context(letta)
    agents = letta.said["agents"]
    picture = folder / "picture.png"
    picture.write_bytes(make_picture(agents[0]))
    proxies = {side: await stack.enter_async_context(CountingProxy(homeserver)) for side in ("bridge", *FLOORS)}
    floors = {kind: a_floor(kind, folder / kind, proxies[kind].url, letta.said["url"]) for kind in FLOORS}
    for floor in floors.values():
        floor.write_registration()
    mine = folder / "bridge"
    bridge = BenchedBridge(mine, watch=Watch(options.profile), settings=bridge_settings(mine))
    await bridge.init(
        homeserver_url=proxies["bridge"].url, domain=DOMAIN, letta_url=letta.said["url"], admin=f"@admin:{DOMAIN}"
    )
    files = [bridge.registration, *(floor.registration for floor in floors.values())]
    await stack.enter_async_context(LocalSynapse(folder / "synapse", domain=DOMAIN, registrations=files, port=port))
    return _Sides(proxies, bridge, floors, {}, agents), picture


async def _provision(side: str, sides: _Sides, stack: AsyncExitStack, picture: Path) -> _Provisioned:
    """From the first request to the last place in the space."""
    if side == "bridge":
        await stack.enter_async_context(sides.bridge)
    else:
        child = sides.floors[side].child(provision=sides.agents, concurrency=_CONCURRENCY, picture=str(picture))
        sides.children[side] = await stack.enter_async_context(child)
    proxy = sides.proxies[side]
    deadline = time.monotonic() + 300
    while len([call for call in proxy.calls if _is_place(call)]) < AGENTS:
        if time.monotonic() > deadline:
            raise StackError(f"{side} did not provision its agents: {counted(proxy.calls)}")
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    calls = [call for call in proxy.calls if not call.is_ping and not call.path.endswith("/versions")]
    last = max(call.ended for call in calls if _is_place(call))
    # everything up to the creation of the space is not an agent's
    space = min(call.ended for call in calls if call.path.endswith("/createRoom"))
    return _Provisioned(last - calls[0].begun, [call for call in calls if call.begun > space])


def _is_place(call: Call) -> bool:
    return call.method == "PUT" and "/state/m.space.child/" in call.path and call.status == 200


def _provisioning_lines(found: list[dict[str, _Provisioned]], report: Report) -> None:
    seconds = {side: statistics.mean(one[side].seconds for one in found) for side in ("bridge", *FLOORS)}
    ratio = seconds["bridge"] / ((seconds["naive"] + seconds["echo"]) / 2)
    each = "; ".join(", ".join(f"{side} {made.seconds:.1f} s" for side, made in one.items()) for one in found)
    report.add(
        Line(
            "provisioning",
            f"{AGENTS} agents with pictures",
            f"{seconds['bridge']:.1f} s",
            f"{seconds['naive']:.1f} s",
            f"{seconds['echo']:.1f} s",
            f"{ratio:.2f}",
            "",
            "≤ 1.5",
            ratio <= 1.5,
            f"{_CONCURRENCY} at a time on both sides; ratio to the mean of a floor before and a floor after: {each}",
        )
    )
    calls = {side: [call for one in found for call in one[side].calls] for side in seconds}
    per_agent = {side: len(calls[side]) / AGENTS / len(found) for side in seconds}
    refused = sum(call.status >= 400 for call in calls["bridge"])
    report.add(
        Line(
            "provisioning",
            "homeserver requests per agent",
            f"{per_agent['bridge']:.2f}",
            f"{per_agent['naive']:.2f}",
            f"{per_agent['echo']:.2f}",
            target="≤ 8",
            met=per_agent["bridge"] <= 8,
            note=counted(calls["bridge"]) + (f"; {refused} refused" if refused else ""),
        )
    )


async def _idle(sides: _Sides, seconds: int, report: Report) -> None:
    await asyncio.sleep(5)
    who = ("bridge", *FLOORS)
    begun, before = time.monotonic(), {side: cpu_seconds(sides.pid(side)) for side in who}
    await asyncio.sleep(seconds)
    took = time.monotonic() - begun
    cpu = {side: (cpu_seconds(sides.pid(side)) - before[side]) / took * 100 for side in who}
    rss = {side: rss_mib(sides.pid(side)) for side in who}
    proxy = sides.proxies["bridge"]
    calls = proxy.since(begun)
    pings = sum(call.is_ping and call.begun >= begun for call in proxy.calls)
    what = f"{AGENTS} agents, {seconds} s: "
    report.add(
        Line(
            "idle",
            what + "homeserver requests besides the ping",
            str(len(calls)),
            target="0",
            met=not calls,
            note=counted(calls) or f"{pings} pings",
        )
    )
    report.add(
        Line(
            "idle",
            what + "of a core",
            f"{cpu['bridge']:.2f} %",
            f"{cpu['naive']:.2f} %",
            f"{cpu['echo']:.2f} %",
            target="≤ 0.3 %",
            met=cpu["bridge"] <= 0.3,
        )
    )
    more = rss["bridge"] - rss["naive"]
    report.add(
        Line(
            "idle",
            f"{AGENTS} agents: resident memory",
            f"{rss['bridge']:.0f} MiB",
            f"{rss['naive']:.0f} MiB",
            f"{rss['echo']:.0f} MiB",
            f"+{more:.0f} MiB",
            f"+{rss['bridge'] - rss['echo']:.0f} MiB",
            "≤ floor + 40 MiB",
            more <= 40,
        )
    )
