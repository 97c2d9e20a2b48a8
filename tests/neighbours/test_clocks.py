"""The database's clock is set, or the process stands still: nothing hangs for as long as the clock was wrong.

A clock that is set back by an hour is, seen from the rows, that all their stamps lie an hour in the future.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from letta_bridge import faults
from letta_bridge.db.database import Database
from letta_bridge.lanes import Lanes
from letta_bridge.testing.fake_letta import Behaviour

from ..integration.lanes_kit import LANE, nothing, running
from ..integration.world import World, a_world, until
from .kit import ANSWER_SEND, LETTA_SEND, Scene, admin_reads, scene

HOUR = 3600.0
_STAMPS = {
    "inbox": ("received_at", "decided_at", "not_before"),
    "turn": ("not_before", "created_at", "submitted_at", "accepted_at", "replying_at", "finished_at"),
    "turn_event": ("created_at",),
    "stop_request": ("created_at",),
    "outbox": ("not_before", "created_at", "sent_at"),
    "replica": ("beat",),
    "told": ("at",),
}


async def clock_goes(db: Database, seconds: float) -> None:
    """The clock of the database is set by so much (negative: back)."""
    async with db._db.acquire_direct() as conn:
        for table, columns in _STAMPS.items():
            for column in columns:
                await conn.execute(f"UPDATE {table} SET {column} = {column} - $1 WHERE {column} > 0", seconds)
        value = await conn.fetchval("SELECT value FROM setting WHERE name = 'alive_at'")
        if value is not None:
            await conn.execute("UPDATE setting SET value = $1 WHERE name = 'alive_at'", str(float(value) - seconds))


BACK_AND_FORTH = pytest.mark.parametrize(
    "jump", [pytest.param(-HOUR, id="back"), pytest.param(HOUR, id="forward", marks=pytest.mark.full)]
)


@BACK_AND_FORTH
async def test_while_a_turn_waits_for_letta(world: World, jump: float) -> None:
    at = await scene(world)
    world.letta.kill()
    await at.say("one")
    await at.is_told("cannot reach Letta")
    await clock_goes(at.bridge.db, jump)
    await at.say("two")
    await world.letta.start()
    await at.answered("one", "two")
    at.once_in_order("one", "two")


@BACK_AND_FORTH
async def test_while_a_reply_waits_for_the_homeserver(world: World, jump: float) -> None:
    at = await scene(world)
    away = world.hs.fail_next(ANSWER_SEND, status=503, times=None)
    await at.say("one")
    await until(lambda: away.hits >= 2)
    await clock_goes(at.bridge.db, jump)
    away.cancel()
    await at.answered("one")
    await at.say("two")
    await at.answered("two")
    at.once_in_order("one", "two")


@BACK_AND_FORTH
async def test_while_an_invitation_waits(world: World, jump: float) -> None:
    at = await scene(world)
    refused = world.hs.fail_next(r"/join", status=503, times=None)
    room = await at.alice.create_dm(at.puppet, text="first")
    await until(lambda: refused.hits >= 2)
    await clock_goes(at.bridge.db, jump)
    refused.cancel()
    await world.hs.wait_until(lambda: at.puppet in at.alice.members(room), 15, "the join")
    there = Scene(world, at.alice, at.agent, room)
    await there.answered("first")


@BACK_AND_FORTH
async def test_while_a_run_is_followed(world: World, jump: float) -> None:
    at = await scene(world)
    hold = world.letta.hold(at.agent)
    await at.say("one")
    await hold.entered()
    await clock_goes(at.bridge.db, jump)
    hold.release()
    await at.say("two")
    await at.answered("one", "two")
    at.once_in_order("one", "two")
    assert at.told() == []


async def test_while_it_is_not_known_what_became_of_a_turn(world: World) -> None:
    """The turn's time is measured anew: it ends after ``turn_timeout``, not an hour later."""
    at = await scene(world, letta__turn_timeout=1.0)
    world.letta.fail_next(LETTA_SEND, "disconnect", method="POST", after_events=2)
    world.letta.fail_next(r"^/v1/runs", 500, times=1000)
    await at.say("one")
    await until(lambda: sum(path.startswith("/v1/runs") for _, path in world.letta.requests) >= 1)
    await clock_goes(at.bridge.db, -HOUR)
    await at.is_told("may not have been delivered", timeout=15)
    assert at.heard() == ["hello", "one"]


async def test_set_back_while_a_run_that_never_ends_is_found_again(world: World) -> None:
    at = await scene(world, letta__turn_timeout=1.5, shutdown__drain_s=0.0)
    hold = world.letta.hold(at.agent)
    await at.say("one")
    await hold.entered()
    await clock_goes(at.bridge.db, -HOUR)
    await world.restart()
    await at.is_told("did not finish", timeout=15)
    hold.release()


async def test_set_back_after_many_messages_nobody_is_called_too_fast(world: World) -> None:
    at = await scene(world, limits__messages_per_minute=5)
    await at.say("one", "two", "three")
    await at.answered("one", "two", "three")
    async with at.bridge.db._db.acquire_direct() as conn:  # a minute passes
        await conn.execute("UPDATE turn_event SET created_at = created_at - 61")
    await clock_goes(at.bridge.db, -HOUR)
    await at.say("four", "five", "six")
    await at.answered("four", "five", "six")
    at.once_in_order("one", "two", "three", "four", "five", "six")
    assert at.told() == []


async def test_set_back_over_a_restart(world: World) -> None:
    at = await scene(world, shutdown__drain_s=0.0)
    hold = world.letta.hold(at.agent)
    await at.say("one")
    await hold.entered()
    await clock_goes(at.bridge.db, -HOUR)
    await world.stop()
    await at.say("two")
    await world.start()
    hold.release()
    await at.answered("one", "two")
    at.once_in_order("one", "two")


# -- replicas: PostgreSQL's clock, which all of them share


def die(lanes: Lanes) -> None:
    """From now on it gives no signs of life, as after ``kill -9``."""
    assert lanes._beats is not None
    lanes._beats.cancel()


@pytest.mark.postgres
async def test_set_back_a_dead_replicas_lanes_are_taken_over_all_the_same(tmp_path: Path, postgres_url: str) -> None:
    dead, heir = Database(postgres_url, tmp_path), Database(postgres_url, tmp_path)
    await dead.open()
    await heir.open()
    took: list[str] = []

    async def work(_: object) -> None:
        took.append("heir")

    try:
        async with running(dead, nothing, lanes=Lanes(dead, "dead", lease=0.8, beat=0.2)) as lanes:
            lanes.wake(LANE)
            await until(lambda: lanes._held)
            die(lanes)
            await clock_goes(dead, -HOUR)  # its last beat lies an hour ahead, and no other comes
            async with running(heir, work, lanes=Lanes(heir, "heir", lease=0.8, beat=0.2), open_lanes=(LANE,)):
                await until(lambda: took, 6, why="lanes are kept by a replica that is dead")
    finally:
        await dead.close()
        await heir.close()


@pytest.mark.postgres
async def test_set_back_a_replica_that_was_killed_starts_again(tmp_path: Path, postgres_url: str) -> None:
    killed, again = Database(postgres_url, tmp_path), Database(postgres_url, tmp_path)
    await killed.open()
    await again.open()
    try:
        async with running(killed, nothing, lanes=Lanes(killed, "same", lease=0.8, beat=0.2)) as first:
            die(first)
            await clock_goes(killed, -HOUR)
            async with running(again, nothing, lanes=Lanes(again, "same", lease=0.8, beat=0.2)) as lanes:
                assert lanes.alive
    finally:
        await killed.close()
        await again.close()


# -- the process stands still


@pytest.mark.postgres
@pytest.mark.parametrize("point", ["turn.accepted", pytest.param("send.after", marks=pytest.mark.full)])
async def test_the_event_loop_is_blocked_longer_than_the_lease(
    tmp_path: Path, postgres_url: str, point: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bridge lets go of what it held before it beats again, then finds its way back to what it was doing."""

    def block(reached: str) -> None:
        if reached == point:
            monkeypatch.setattr(faults, "hook", None)
            time.sleep(1.3)

    async with a_world(tmp_path, postgres_url) as world:
        at = await scene(world, database__lease_s=1.0, database__beat_s=0.3)
        world.letta.script(at.agent, Behaviour(text="re: <one>", delay=0.3))
        monkeypatch.setattr(faults, "hook", block)
        await at.say("one")
        assert (await admin_reads(caplog, "self_fenced")).levelname == "ERROR"
        await at.say("two")
        await at.answered("one", "two")
        at.once_in_order("one", "two")
        assert at.told() == []
        await at.settled()
