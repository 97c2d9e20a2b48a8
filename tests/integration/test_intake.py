"""What homeservers push: kept before it is answered 200, once, whatever it looks like."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from letta_bridge.ids import RoomID
from letta_bridge.matrix import envelope
from letta_bridge.matrix.intake import Intake
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.stack.postgres import LocalPostgres

from .intake_kit import Scene, event_of, heard, scene
from .world import World, a_world, until

TRANSACTIONS = "/_matrix/app/v1/transactions/"


async def ask(world: World, method: str, path: str, **more: Any) -> tuple[int, Any]:
    """Any request to the bridge; status and parsed answer."""
    async with (
        ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{world.port}{path}", **more) as answer,
    ):
        return answer.status, await answer.json()


# -- who may push


@pytest.mark.parametrize(
    ("headers", "query", "status", "errcode"),
    [
        ([], "", 401, "M_MISSING_TOKEN"),
        (["Bearer wrong"], "", 403, "M_FORBIDDEN"),
        (["Bearer "], "", 403, "M_FORBIDDEN"),
        (["RIGHT"], "", 403, "M_FORBIDDEN"),
        (["Basic RIGHT"], "", 403, "M_FORBIDDEN"),
        (["Bearer RIGHTx"], "", 403, "M_FORBIDDEN"),
        (["Bearer \u00fc\u00e4"], "", 403, "M_FORBIDDEN"),
        ([], "?access_token=wrong", 403, "M_FORBIDDEN"),
        ([], "?access_token=", 403, "M_FORBIDDEN"),
        (["Bearer wrong"], "?access_token=RIGHT", 403, "M_FORBIDDEN"),
        (["Bearer RIGHT"], "?access_token=wrong", 403, "M_FORBIDDEN"),
        (["Bearer RIGHT"], "?access_token=RIGHT&access_token=wrong", 403, "M_FORBIDDEN"),
        (["Bearer RIGHT", "Bearer wrong"], "", 403, "M_FORBIDDEN"),
        (["Bearer RIGHT"], "", 200, None),
        (["bearer RIGHT"], "", 200, None),
        ([], "?access_token=RIGHT", 200, None),
        (["Bearer RIGHT"], "?access_token=RIGHT", 200, None),
    ],
)
async def test_every_token_presented_must_be_right(
    sqlite_world: World, headers: list[str], query: str, status: int, errcode: str | None
) -> None:
    world = sqlite_world
    at = await scene(world)
    right = world.hs.appservice.hs_token
    sent = [("Authorization", header.replace("RIGHT", right)) for header in headers]
    body = {"events": [event_of(at, "may I?")]}
    path = f"{TRANSACTIONS}1{query.replace('RIGHT', right)}"
    code, answer = await ask(world, "PUT", path, headers=sent, json=body)
    assert (code, answer.get("errcode")) == (status, errcode)
    assert errcode is None or answer["error"]
    stored = await at.bridge.db.fetchval("SELECT COUNT(*) FROM inbox WHERE body LIKE '%may I?%'")
    assert stored == (1 if status == 200 else 0)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/_matrix/app/v1/users/@letta_x:test.local"),
        ("GET", "/_matrix/app/v1/rooms/%23letta_x:test.local"),
        ("POST", "/_matrix/app/v1/ping"),
        ("PUT", "/transactions/1"),
    ],
)
async def test_all_the_homeservers_routes_ask_for_the_token(sqlite_world: World, method: str, path: str) -> None:
    await sqlite_world.start()
    code, answer = await ask(sqlite_world, method, path, json={})
    assert (code, answer["errcode"]) == (401, "M_MISSING_TOKEN")
    code, answer = await ask(sqlite_world, method, path, json={}, headers={"Authorization": "Bearer wrong"})
    assert (code, answer["errcode"]) == (403, "M_FORBIDDEN")


async def test_unknown_routes_are_matrix_404s_and_health_needs_no_token(sqlite_world: World) -> None:
    world = sqlite_world
    await world.start()
    for method, path in [
        ("GET", "/"),
        ("GET", "/_matrix/client/versions"),
        ("POST", "/_matrix/app/unstable/fi.mau.msc2659/ping"),
        ("PUT", TRANSACTIONS),
        ("GET", "/%00/..%2f..%2fetc/passwd"),
        ("PROPFIND", "/"),
    ]:
        code, answer = await ask(world, method, path)
        assert (code, answer["errcode"]) == (404, "M_UNRECOGNIZED"), path
    assert await ask(world, "GET", "/_matrix/mau/live") == (200, {"live": True})
    status, health = await ask(world, "GET", "/_matrix/mau/ready")
    assert (status, health["ready"]) == (200, True)
    await world.hs.stop()
    assert await ask(world, "GET", "/_matrix/mau/live") == (200, {"live": True})

    async def unready() -> bool:
        status, health = await ask(world, "GET", "/_matrix/mau/ready")
        return (status, health["ready"]) == (503, False)

    await until(unready, why="ready although the homeserver is away")
    await world.hs.start()


async def test_the_path_of_old_homeservers_works(sqlite_world: World) -> None:
    world = sqlite_world
    at = await scene(world)
    right = world.hs.appservice.hs_token
    body = {"events": [event_of(at, "by the old path")]}
    assert await ask(world, "PUT", f"/transactions/7?access_token={right}", json=body) == (200, {})
    await at.answered("by the old path")


# -- once


async def test_an_event_counts_once_however_often_it_is_pushed(world: World) -> None:
    at = await scene(world)
    twice, other = event_of(at, "twice"), event_of(at, "other")
    assert (await world.hs.push_raw(json.dumps({"events": [twice, twice]}).encode(), txn_id="1"))[0] == 200
    assert (await world.hs.push_raw(json.dumps({"events": [twice]}).encode(), txn_id="2"))[0] == 200
    # Tuwunel repeats transaction ids, Synapse counts from one again after a reset: other events are other events
    assert (await world.hs.push_raw(json.dumps({"events": [other]}).encode(), txn_id="1"))[0] == 200
    await at.answered("other")
    logged = list(world.hs.transactions)
    for transaction in logged:
        assert await world.hs.push_again(transaction)
        assert await world.hs.push_again(transaction, txn_id="99")
    await world.restart()
    for transaction in logged:
        assert await world.hs.push_again(transaction)
    await at.alice.send(at.room, "the end")
    await at.answered("the end")
    assert heard(at) == ["hello", "twice", "other", "the end"]


async def test_the_same_events_pushed_many_times_at_once(world: World) -> None:
    at = await scene(world)
    body = json.dumps({"events": [event_of(at, f"message {n}") for n in range(20)]}).encode()
    answers = await asyncio.gather(*(world.hs.push_raw(body, txn_id=str(n)) for n in range(8)))
    assert {status for status, _ in answers} == {200}
    await at.answered("message 19")
    assert heard(at) == ["hello", *(f"message {n}" for n in range(20))]


# -- when it cannot be kept


async def test_full_disk_is_a_500_and_the_retry_is_taken(sqlite_world: World) -> None:
    world = sqlite_world
    at = await scene(world)
    pages = await at.bridge.db.fetchval("PRAGMA page_count")
    await at.bridge.db.fetchval(f"PRAGMA max_page_count = {pages}")
    body = json.dumps({"events": [event_of(at, "small"), event_of(at, "b" * 60_000)]}).encode()
    status, text = await world.hs.push_raw(body)
    assert (status, json.loads(text)["errcode"]) == (500, "M_UNKNOWN")
    assert await at.bridge.db.fetchval("SELECT COUNT(*) FROM inbox WHERE body LIKE '%small%'") == 0, "half a batch"
    await at.bridge.db.fetchval("PRAGMA max_page_count = 1000000")
    assert (await world.hs.push_raw(body))[0] == 200
    await until(lambda: len(heard(at)) == 3)
    assert heard(at) == ["hello", "small", "b" * 60_000]


@pytest.mark.postgres
async def test_a_database_that_goes_away_is_a_500_and_work_goes_on_when_it_is_back(
    tmp_path: Path, postgres_url: str, postgres_server: LocalPostgres
) -> None:
    async with a_world(tmp_path, postgres_url) as world:
        await _away_and_back(world, postgres_server)


async def _away_and_back(world: World, postgres_server: LocalPostgres) -> None:
    at = await scene(world)
    name = world.database.rpartition("/")[2]
    await postgres_server.run_sql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    await postgres_server.run_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    status, text = await world.hs.push_raw(json.dumps({"events": [event_of(at, "by hand")]}).encode())
    assert (status, json.loads(text)["errcode"]) == (500, "M_UNKNOWN")
    await at.alice.send(at.room, "sent while the database was away")
    await world.hs.wait_until(lambda: any(t.status == 500 for t in world.hs.transactions), what="a refused push")
    await postgres_server.run_sql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    await at.answered("sent while the database was away", timeout=15)
    assert heard(at) == ["hello", "sent while the database was away"]


async def test_503_while_draining_and_the_homeserver_keeps_it(world: World) -> None:
    at = await scene(world, shutdown__drain_s=5.0)
    hold = world.letta.hold(at.agent)
    await at.alice.send(at.room, "slow one")
    await hold.entered()
    stopping = asyncio.create_task(world.stop())
    await until(lambda: not at.bridge.ready)
    status, text = await world.hs.push_raw(json.dumps({"events": [event_of(at, "refused")]}).encode())
    assert (status, json.loads(text)["errcode"]) == (503, "M_UNKNOWN")
    assert (await ask(world, "GET", "/_matrix/mau/ready"))[0] == 503
    await at.alice.send(at.room, "kept by the homeserver")
    hold.release()
    await stopping
    await world.start()
    await at.answered("kept by the homeserver")
    assert heard(at) == ["hello", "slow one", "kept by the homeserver"]


# -- speed


async def test_intake_answers_at_once_while_rooms_are_busy(world: World) -> None:
    at = await scene(world)
    hold = world.letta.hold(at.agent)
    world.hs.delay(r"/join|/messages|/send/", 60.0)
    invited: list[tuple[Person, str]] = []
    for number in range(3):  # their lanes hang in the join
        person = await world.hs.person(f"person{number}")
        invited.append((person, await person.create_dm(world.puppet(at.agent), text="hi")))
    await at.alice.send(at.room, "busy")
    await hold.entered()
    slowest = 0.0
    for number in range(40):
        begun = time.monotonic()
        status, _ = await world.hs.push_raw(json.dumps({"events": [event_of(at, f"more {number}")]}).encode())
        slowest = max(slowest, time.monotonic() - begun)
        assert status == 200
    assert slowest < 1.0
    hold.release()
    await until(lambda: len(heard(at)) == 42, why="what was taken in meanwhile was lost")
    assert heard(at) == ["hello", "busy", *(f"more {number}" for number in range(40))]
    world.hs.faults.slow.clear()


async def test_the_envelope_of_a_raw_event_names_its_sender(sqlite_world: World) -> None:
    at: Scene = await scene(sqlite_world)
    await at.alice.send(at.room, "who am I?")
    await at.alice.wait_message(at.room, text=re.compile("who am I"), sender=sqlite_world.puppet(at.agent))
    assert envelope.open_(sqlite_world.letta.turns(at.agent)[-1].texts[-1]).sender.id == at.alice.mxid


async def test_what_is_stored_after_the_homeserver_was_told_to_try_again_is_worked_on(aiohttp_client: Any) -> None:
    """The second try finds everything known already, so the first one has to wake the room."""
    release, woken = asyncio.Event(), []

    async def record(_: Any) -> set[RoomID]:
        await release.wait()
        return {RoomID("!room:test.local")}

    async def nobody(_: Any) -> bool:
        return False

    async def health() -> dict[str, Any]:
        return {"ready": True}

    intake = Intake(
        hs_token="token",
        record=record,
        wake=woken.append,
        user_exists=nobody,
        is_ours=lambda _: False,
        health=health,
        body_limit=1 << 20,
        store_seconds=0.05,
    )
    client = await aiohttp_client(intake.app)
    answer = await client.put(TRANSACTIONS + "1", headers={"Authorization": "Bearer token"}, json={"events": []})
    assert answer.status == 500
    release.set()
    await until(lambda: woken == ["!room:test.local"])
