"""Without a homeserver's limits: how much the bridge takes in and answers, on each database."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from letta_bridge import registration
from letta_bridge.testing.stack.postgres import LocalPostgres
from letta_bridge.testing.stack.process import StackError

from ..null_homeserver import DOMAIN
from ..processes import BenchedBridge, Child, Watch, cpu_seconds, tree_cpu_seconds
from ..results import Line, Report
from ..stage import Options

ROOMS = 20
VARIANTS = {"null-sqlite": "SQLite", "null-postgres": "PostgreSQL", "null-replicas": "two replicas on one PostgreSQL"}

Rates = tuple[float, float, float]
"""Per second: events taken in, messages answered, and messages answered when none waits in its room."""


@dataclass
class NullStage:
    """A null homeserver, a FakeLetta, and bridges between them."""

    options: Options
    null: Child
    letta: Child
    bridges: list[BenchedBridge]
    http: aiohttp.ClientSession
    hs_token: str
    postgres: LocalPostgres | None = None

    async def order(self, what: str, **data: Any) -> dict[str, Any]:
        """Tell the null homeserver something; returns how far it is."""
        async with self.http.post(f"{self.null.said['url']}/_bench/{what}", data=json.dumps(data)) as answer:
            return dict(json.loads(await answer.read()))

    async def until(self, look: Any, what: str, seconds: float = 120) -> dict[str, Any]:
        """The first status that satisfies; StackError with the last one when it is late."""
        deadline = time.monotonic() + seconds
        while not look(status := await self.order("status")):
            if time.monotonic() > deadline:
                raise StackError(f"not {what}: {status}\n{self.bridges[0].log_tail(20)}")
            await asyncio.sleep(0.05)
        return status

    def cpu(self) -> dict[str, float]:
        """Processor seconds of each process so far."""
        names = ["bridge"] if len(self.bridges) == 1 else [f"replica {n + 1}" for n in range(len(self.bridges))]
        found = {name: cpu_seconds(bridge.pid) for name, bridge in zip(names, self.bridges, strict=True)}
        found |= {"null homeserver": cpu_seconds(self.null.pid), "FakeLetta": cpu_seconds(self.letta.pid)}
        if self.postgres is not None:
            found["PostgreSQL"] = tree_cpu_seconds(self.postgres.pid)
        return found


@asynccontextmanager
async def a_null_stage(
    options: Options,
    *,
    agents: int,
    database: str = "",
    replicas: int = 1,
    watch: Watch | None = None,
    wait: int = -1,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[NullStage]:
    """Everything running, and ``wait`` agents (all by default) mirrored. ``database`` is PostgreSQL's URL, if any."""
    folder = options.folder
    async with AsyncExitStack() as stack:
        letta = await stack.enter_async_context(Child("benchmarks.letta", ["--agents", str(agents)], folder / "letta"))
        null = await stack.enter_async_context(Child("benchmarks.null_homeserver", [], folder / "null"))
        first = BenchedBridge(folder / "bridge")
        await first.init(
            homeserver_url=null.said["url"], domain=DOMAIN, letta_url=letta.said["url"], admin=f"@admin:{DOMAIN}"
        )
        bridges = []
        for number in range(replicas):
            bridge = BenchedBridge(folder / "bridge", watch=watch or Watch(options.profile))
            bridge.log = folder / "bridge" / f"bridge-{number}.log"
            bridge.settings = {
                "appservice.url": bridge.url,
                "appservice.port": str(bridge.port),
                "database.uri": database or f"sqlite:{folder / 'bridge' / 'bridge.db'}",
                "database.replica_id": f"replica-{number}",
                "permissions": json.dumps({DOMAIN: "user"}),
                "limits.messages_per_minute": "1000000",
                "mirror.invite": "[]",
                **(settings or {}),
            }
            bridges.append(await stack.enter_async_context(bridge))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        token = str((await asyncio.to_thread(registration.read, first.registration))["hs_token"])
        made = NullStage(options, null, letta, bridges, http, token)
        count = agents if wait < 0 else wait
        await made.until(lambda s: s["events"].get("m.space.child", 0) >= count, "mirrored", 60 + agents)
        yield made


async def null(options: Options, wanted: set[str], report: Report) -> None:
    """All three databases, or those that are asked for."""
    rates: dict[str, Rates] = {}
    variants = [name for name in VARIANTS if name in wanted or "null" in wanted]
    async with AsyncExitStack() as stack:
        postgres = None
        if {"null-postgres", "null-replicas"} & {*variants}:
            postgres = await stack.enter_async_context(LocalPostgres(synced=True))
        for name in variants:
            url = ""
            if name != "null-sqlite":
                assert postgres is not None
                url = await postgres.create_database(name.replace("-", "_"))
            mine = Options(options.folder / name, options.quick, options.profile)
            replicas = 2 if name == "null-replicas" else 1
            async with a_null_stage(mine, agents=ROOMS, database=url, replicas=replicas) as made:
                made.postgres = postgres if url else None
                messages = 2000 if options.quick else 6000
                rates[name] = await measure(made, name, messages, report, rates)


async def dms(stage: NullStage) -> list[dict[str, str]]:
    """A DM with each of the first agents, joined by its puppet."""
    agents = stage.letta.said["agents"]
    rooms = [
        {"room": f"!dm{n}:{DOMAIN}", "person": f"@p{n}:{DOMAIN}", "puppet": f"@letta_{agents[n][6:]}:{DOMAIN}"}
        for n in range(ROOMS)
    ]
    await stage.order("targets", targets=[bridge.url for bridge in stage.bridges], hs_token=stage.hs_token)
    await stage.order("dms", rooms=rooms)
    await stage.until(lambda s: s["joined"] >= ROOMS, "joined")
    return rooms


async def measure(stage: NullStage, name: str, messages: int, report: Report, rates: dict[str, Rates]) -> Rates:
    """So many messages that are there at once, then a quarter as many of which each waits for the last one's answer."""
    rooms = await dms(stage)
    await stage.order("say", rooms=rooms, messages=ROOMS * 5)  # warm: everything is known and made
    await stage.until(lambda s: not s["unanswered"] and not s["queued"], "warm")
    backlog = await _round(stage, rooms, messages, f"{name}, all at once", report)
    pace = await _round(stage, rooms, messages // 4, f"{name}, one at a time in each room", report, in_turn=True)
    _lines(name, report, rates, (*backlog, pace[1]))
    return (*backlog, pace[1])


async def _round(
    stage: NullStage, rooms: list[dict[str, str]], messages: int, what: str, report: Report, *, in_turn: bool = False
) -> tuple[float, float]:
    """Events taken in and messages answered per second."""
    await asyncio.sleep(0.5)
    before, sent = stage.cpu(), (await stage.order("status"))["requests"].get("PUT send", 0)
    await stage.order("say", rooms=rooms, messages=messages, in_turn=in_turn)
    status = await stage.until(lambda s: not s["unanswered"] and s["taken_s"], "answered", 300)
    cpu = {who: seconds - before[who] for who, seconds in stage.cpu().items()}
    wall = status["answered_s"]
    parts = ", ".join(f"{who} {seconds:.1f} s" for who, seconds in cpu.items())
    own = sum(seconds for who, seconds in cpu.items() if who.startswith(("bridge", "replica")))
    harness = cpu["null homeserver"] + cpu["FakeLetta"]
    answers = status["requests"].get("PUT send", 0) - sent
    report.remark(
        f"{what}: {messages} messages with {answers} answers in {wall:.1f} s; processor: {parts}: "
        f"{sum(cpu.values()) / wall / (os.cpu_count() or 1):.0%} of the machine, the harness {harness / wall:.0%} of a "
        f"core; {own / messages * 1000:.2f} ms of the bridge per message"
    )
    return status["pushed"]["events_when_taken"] / status["taken_s"], messages / wall


def _lines(name: str, report: Report, rates: dict[str, Rates], mine: Rates) -> None:
    one = rates.get("null-postgres")
    for number, what in enumerate(("events taken in", "messages answered", "messages answered one at a time")):
        ratio, target = "", "≥ 300/s"
        met: bool | None = mine[number] >= 300
        if name == "null-replicas":
            target, met = "≥ 1.6 × one replica", None
            if one is not None:
                ratio, met = f"{mine[number] / one[number]:.2f} of one", mine[number] / one[number] >= 1.6
        elif number == 2:  # nothing is promised of it; it is what no merging of messages can help
            target, met = "", None
        what = f"{what}, {VARIANTS[name]}"
        report.add(Line(name, what, f"{mine[number]:.0f}/s", "", "", ratio, "", target, met))
