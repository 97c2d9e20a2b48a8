"""What Prometheus gets: true numbers of what happened, from an address of its own, at no cost to the messages."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.web.metrics import MetricsServer

from .world import World, a_world, free_port, until

P = "letta_bridge_"
Labels = frozenset[tuple[str, str]]


class Scraped:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def get(self, name: str, **labels: str) -> float | None:
        return self.samples.get(P + name, {}).get(frozenset(labels.items()))


async def scrape(world: World, accept: str = "") -> Scraped:
    url = f"http://127.0.0.1:{world.overrides['metrics.port']}/metrics"
    headers = {"Accept": accept} if accept else {}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("application/openmetrics" if accept else "text/plain")
        return Scraped(await answer.text())


async def measured(world: World, **overrides: Any) -> tuple[str, Person, str]:
    """Alice has asked one thing and got its answer."""
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(metrics__enabled=True, metrics__port=free_port(), **overrides)
    await world.mirrored()
    room = await world.dm(alice, agent, "hello")
    await answered(world, alice, room, agent, "hello")
    return agent, alice, room


async def answered(world: World, person: Person, room: str, agent: str, text: str) -> None:
    await person.wait_message(room, sender=world.puppet(agent), text=re.compile(f"echo: (?s:.*){text}"), timeout=15)


async def reads(world: World, value: float | None, name: str, timeout: float = 10.0, **labels: str) -> None:
    """Wait until a metric has this value."""
    seen: list[float | None] = []

    async def there() -> bool:
        seen[:] = [(await scrape(world)).get(name, **labels)]
        return seen[0] == value

    await until(there, timeout, why=f"{name} {labels} is not {value} but {seen}")


async def test_one_message_is_counted_on_its_way(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("letta_bridge.web.metrics._DEPTHS_LAST", 0.0)
    await measured(world, database__replica_id="left")
    await reads(world, 1, "turns_total", end="done")
    await reads(world, 0, "inbox_open")  # the other events of the room too
    now = await scrape(world)
    assert now.get("events_decided_total", action="answer") == 1
    assert (now.get("intake_transactions_total", result="stored") or 0) >= 1
    assert now.get("intake_transactions_total", result="failed") == 0
    assert now.get("intake_seconds_count") == now.get("intake_transactions_total", result="stored")
    assert (now.get("intake_events_total", kind="new") or 0) >= 2
    assert now.get("outbox_sent_total", kind="answer") == 1
    for phase in ("queued", "accepted", "first_shown", "total"):
        assert now.get("turn_seconds_count", phase=phase) == 1, phase
    assert now.get("turn_seconds_sum", phase="total") >= now.get("turn_seconds_sum", phase="first_shown")  # type: ignore
    assert now.get("letta_calls_total", call="send", result="ok") == 1
    assert now.get("letta_calls_total", call="stream", result="ok") == 1
    assert now.get("homeserver_requests_total", call="send", status="200") == 1
    assert now.get("homeserver_request_seconds_count", call="send") == 1
    assert (now.get("lane_claims_total", kind="agent") or 0) == 1
    assert (now.get("lanes_held", kind="room") or 0) >= 1
    for kind in ("room", "agent", "send", "mirror"):
        assert now.get("lanes_running", kind=kind) is not None, "0 when none is at work, not missing"
    assert (now.get("database_write_seconds_count") or 0) > 5
    assert [now.get("agents", state=state) for state in ("new", "active", "missing")] == [0, 1, 0]
    assert [now.get(name) for name in ("ready", "degraded", "self_fenced_total", "agents_failing")] == [1, 0, 0, 0]
    for check in ("database", "homeserver_out", "homeserver_in", "letta"):
        assert now.get("check", check=check) == 1
    assert [now.get(name) for name in ("inbox_open", "inbox_oldest_seconds", "outbox_pending")] == [0, 0, 0]
    assert "replica=left" in str([f"{k}={v}" for labels in now.samples[P + "build_info"] for k, v in labels])
    assert now.samples["process_resident_memory_bytes"]
    await until(lambda: _lagged(world))


async def _lagged(world: World) -> bool:
    return ((await scrape(world)).get("loop_lag_seconds_count") or 0) > 0


async def test_trouble_is_counted_where_it_is(sqlite_world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("letta_bridge.web.metrics._DEPTHS_LAST", 0.0)
    world = sqlite_world
    agent, alice, room = await measured(world)
    hs_token = world.hs.appservice.hs_token
    assert (await world.hs.push_raw(b'{"events": []}', token="x" * len(hs_token)))[0] == 403
    assert (await world.hs.push_raw(b'{"events": [{"no": "event"}]}'))[0] == 200
    await reads(world, 1, "intake_transactions_total", result="unauthorized")
    await reads(world, 1, "intake_events_total", kind="malformed")
    await reads(world, 1, "dead_letters", stage="inbox")

    world.letta.kill()
    await alice.send(room, "anybody?")
    await reads(world, 1, "degraded")
    now = await scrape(world)
    assert (now.get("ready"), now.get("check", check="letta")) == (1, 0)
    assert (now.get("retries_total", stage="turn") or 0) >= 1
    unreachable = [
        v for labels, v in now.samples[P + "letta_calls_total"].items() if ("result", "unreachable") in labels
    ]
    assert sum(unreachable) >= 1
    await reads(world, 1, "turns_open", state="queued")
    assert ((await scrape(world)).get("turn_oldest_seconds") or 0) > 0
    await world.letta.start()
    await answered(world, alice, room, agent, "anybody")
    await reads(world, 0, "degraded")
    await reads(world, 0, "turns_open", state="queued")

    fault = world.hs.fail_next(r"/send/m\.room\.message/", status=502, errcode="", times=None)
    await alice.send(room, "who sees this?")
    await reads(world, 1, "outbox_pending")
    now = await scrape(world)
    assert (now.get("retries_total", stage="send") or 0) >= 1
    assert (now.get("homeserver_requests_total", call="send", status="502") or 0) >= 1
    await until(lambda: _older(world, "outbox_oldest_seconds"))
    fault.cancel()
    await answered(world, alice, room, agent, "who sees this")
    await reads(world, 0, "outbox_pending")

    world.hs.fail_next(r"/send/m\.room\.message/", status=413, errcode="M_TOO_LARGE")
    await alice.send(room, "too large an answer")
    await reads(world, 1, "buried_total", stage="outbox")
    await reads(world, 1, "dead_letters", stage="outbox")
    await alice.send(room, "!stop")
    await reads(world, 1, "events_decided_total", action="stop")


async def _older(world: World, name: str) -> bool:
    return ((await scrape(world)).get(name) or 0) > 0


async def test_live_edits_are_counted_as_sent_or_shed(sqlite_world: World) -> None:
    world = sqlite_world
    _, alice, room = await measured(world, conversation__first_event_s=0.05)
    await alice.send(room, "#slow 45 0.05")
    await until(lambda: _edited(world, "sent"), 15)
    fault = world.hs.fail_next(r"/send/m\.room\.message/", status=429, retry_after_ms=100, times=None)
    await until(lambda: _edited(world, "shed"), 15)
    fault.cancel()
    await reads(world, 2, "turns_total", end="done", timeout=20)
    assert ((await scrape(world)).get("outbox_sent_total", kind="edit") or 0) >= 1


async def _edited(world: World, result: str) -> bool:
    return ((await scrape(world)).get("live_edits_total", result=result) or 0) > 0


async def test_no_label_grows_with_rooms_people_or_events(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, _ = await measured(world)
    before = await scrape(world)
    for number in range(3):
        room = await world.dm(alice, agent, f"room {number}")
        await answered(world, alice, room, agent, f"room {number}")
    after = await scrape(world)
    for name, series in after.samples.items():
        assert len(series) <= max(len(before.samples.get(name, {})), 400), name
        for labels in series:
            for key, value in labels:
                assert not re.search(r"[!@$#]|agent-|[0-9a-f]{8}-", value) or key == "version", (name, key, value)


async def test_everything_served_is_in_the_catalogue_with_its_labels(sqlite_world: World) -> None:
    world = sqlite_world
    await measured(world)
    catalogue = await asyncio.to_thread(lambda: MetricsServer("127.0.0.1", 0, "x").catalogue())
    known = {one.name: one for one in catalogue}
    for name, series in (await scrape(world)).samples.items():
        base = name if name in known else re.sub(r"_(bucket|sum|count)$", "", name)
        assert base in known, name
        for labels in series:
            assert {key for key, _ in labels} - {"le"} == set(known[base].labels), name


async def test_openmetrics_is_served_to_those_who_ask_for_it(sqlite_world: World) -> None:
    world = sqlite_world
    await measured(world)
    url = f"http://127.0.0.1:{world.overrides['metrics.port']}"
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/metrics", headers=accept) as answer:
            assert (await answer.text()).endswith("# EOF\n")
        async with session.get(f"http://127.0.0.1:{world.port}/metrics") as answer:
            assert answer.status == 404, "not on the homeserver's port"


async def test_two_bridges_in_one_process_count_for_themselves(sqlite_world: World, tmp_path: Path) -> None:
    await measured(sqlite_world)
    folder = tmp_path / "other"
    folder.mkdir()
    async with a_world(folder, "sqlite:bridge.db") as other:
        await other.start(metrics__enabled=True, metrics__port=free_port())
        await reads(sqlite_world, 1, "turns_total", end="done")
        await reads(other, 0, "turns_total", end="done")


async def test_a_database_that_hangs_leaves_its_series_out_and_the_others_in(
    sqlite_world: World, monkeypatch: Any
) -> None:
    monkeypatch.setattr("letta_bridge.web.metrics._DEPTHS_LAST", 0.0)
    world = sqlite_world
    await measured(world)
    await reads(world, 0, "inbox_open")
    with closing(sqlite3.connect(world.folder / "bridge.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert world.bridge is not None
        began = time.monotonic()
        await reads(world, 0, "ready")
        now = await scrape(world)
        assert time.monotonic() - began < 8
        assert (now.get("check", check="database"), now.get("check", check="homeserver_out")) == (0, 1)
        assert now.get("inbox_open") is None
        assert now.get("turns_total", end="done") == 1
        other.execute("ROLLBACK")
    await reads(world, 1, "ready", timeout=20)
    await reads(world, 0, "inbox_open")


async def test_nothing_listens_unless_it_is_enabled(sqlite_world: World) -> None:
    await sqlite_world.start(metrics__port=(port := free_port()))
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0


async def test_a_port_that_is_taken_is_said_and_stops_nothing(sqlite_world: World) -> None:
    world = sqlite_world
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(_Fields())
    log = logging.getLogger("letta_bridge.web.metrics")
    log.addHandler(handler)
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            port = taken.getsockname()[1]
            await world.start(metrics__enabled=True, metrics__port=port)
            room = await world.dm(alice, agent, "hello")
            await answered(world, alice, room, agent, "hello")
            await world.stop()
    finally:
        log.removeHandler(handler)
    (line,) = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert (line["action"], line["address"]) == ("metrics_failed", f"127.0.0.1:{port}")
    assert "in use" in line["why"]


class _Fields(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({key: getattr(record, key, None) for key in ("action", "address", "why")})


@pytest.mark.parametrize("concurrent", [8])
async def test_many_who_scrape_at_once_get_the_same(sqlite_world: World, concurrent: int) -> None:
    world = sqlite_world
    await measured(world)
    await reads(world, 1, "turns_total", end="done")
    for one in await asyncio.gather(*(scrape(world) for _ in range(concurrent))):
        assert one.get("turns_total", end="done") == 1
        assert one.get("inbox_open") is not None
