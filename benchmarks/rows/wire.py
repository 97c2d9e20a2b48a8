"""What goes over the wire for one answer, and how a streamed answer appears. The bridge only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import aiohttp

from ..proxy import CountingProxy, counted
from ..results import Line, Report
from ..stage import Stage

_WORDS = 2000
_PACE = 0.005
_LATE_TOKEN = 3.0


async def requests(stage: Stage, report: Report) -> None:
    """Homeserver requests for an answer that comes at once, counted on the wire of a restarted bridge."""
    count = 10 if stage.options.quick else 40
    room, puppet, person = await stage.dm("bridge", 0), stage.puppet("bridge", 0), stage.people["bridge"]
    async with CountingProxy(stage.synapse.url) as proxy:
        await stage.bridge.stop()
        stage.bridge.settings["homeserver.url"] = proxy.url
        await stage.bridge.start()
        await person.ask(room, puppet, "r-warm")
        await asyncio.sleep(2)
        begun = time.monotonic()
        for number in range(count):
            await person.ask(room, puppet, f"r-{number}")
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)  # what comes late counts
        calls = proxy.since(begun)
        await stage.bridge.stop()
        del stage.bridge.settings["homeserver.url"]
    await stage.bridge.start()
    each = len(calls) / count
    report.add(
        Line(
            "requests",
            "homeserver requests per instant answer",
            f"{each:.2f}",
            target="≤ 2",
            met=each <= 2,
            note=f"{count} answers: {counted(calls)}",
        )
    )


async def stream(stage: Stage, report: Report) -> None:
    """A reply of 2,000 tokens, streamed: when it first shows, and by how many events."""
    times = 1 if stage.options.quick else 3
    await stage.dm("bridge", 1)
    early = [await _one_stream(stage, f"#slow {_WORDS} {_PACE}", 1.0) for _ in range(times)]
    late = [await _one_stream(stage, f"#hang {_LATE_TOKEN} #slow {_WORDS} {_PACE}", _LATE_TOKEN) for _ in range(times)]
    _first(report, "first token at once: first event after acceptance", early, 1.0, "≤ 1.15 s")
    _first(report, f"first token after {_LATE_TOKEN:.0f} s: first event after it", late, 0.0, "≤ 0.15 s")
    most = max(edits for _, edits, _ in (*early, *late))
    report.add(
        Line(
            "stream",
            f"edits of an answer of {_WORDS:,} tokens",
            str(most),
            target="≤ 50",
            met=most <= 50,
            note=f"most of {len(early) + len(late)}; it was written for {max(s for _, _, s in early):.0f} s",
        )
    )


def _first(report: Report, what: str, found: Sequence[tuple[float, int, float]], due: float, target: str) -> None:
    worst = max(late for late, _, _ in found)
    each = ", ".join(f"{due + late:.2f}" for late, _, _ in found)
    report.add(Line("stream", what, f"{due + worst:.2f} s", target=target, met=worst <= 0.15, note=f"worst of {each}"))


async def _one_stream(stage: Stage, text: str, due: float) -> tuple[float, int, float]:
    """Seconds by which the first event was seen after it was due, edits, and seconds until the last of them."""
    room, puppet, person = stage.rooms["bridge", 1], stage.puppet("bridge", 1), stage.people["bridge"]
    events: list[tuple[float, bool]] = []
    complete = asyncio.Event()

    def look(at: float, where: str, event: dict[str, Any]) -> None:
        if where != room or event.get("sender") != puppet or event.get("type") != "m.room.message":
            return
        edit = event["content"].get("m.relates_to", {}).get("rel_type") == "m.replace"
        events.append((at, edit))
        shown = event["content"].get("m.new_content", event["content"]).get("body", "")
        if str(shown).endswith(f"word{_WORDS - 1}"):
            complete.set()

    with person.listening(look):
        await person.say(room, text)
        async with asyncio.timeout(90):
            await complete.wait()
        await asyncio.sleep(0.5)
    async with aiohttp.ClientSession() as http, http.get(f"{stage.letta.said['control']}/turns") as answer:
        started = (await answer.json())[-1]["started"]
    return events[0][0] - (started + due), sum(edit for _, edit in events), events[-1][0] - started
