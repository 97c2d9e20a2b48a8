"""What Tuwunel's way of pushing can do to the bridge: nothing is lost, nothing answered twice, no room stands still."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from letta_bridge.testing.fake_homeserver import PushFault, Transaction
from letta_bridge.testing.fake_homeserver.tuwunel_push import TuwunelPusher

from ..integration.intake_kit import Scene, event_of, heard, scene
from ..integration.world import World, until

JSON = dict[str, Any]


def pusher(world: World) -> TuwunelPusher:
    assert isinstance(world.hs.pusher, TuwunelPusher)
    return world.hs.pusher


async def told_once(at: Scene, *texts: str, timeout: float = 15.0) -> None:
    """The agent heard ``hello`` and exactly these, in order, and Alice has an answer for each; nothing more comes."""
    for text in texts:
        await at.answered(text, timeout)
    await at.world.hs.wait_pushed(timeout)
    await until(at.bridge.inbox_is_empty, why="events wait to be decided")
    await until(lambda: quiet(at), why="turns or answers are still open")
    assert heard(at) == ["hello", *texts]
    answers = [message for message in at.alice.messages(at.room) if message.sender == at.world.puppet(at.agent)]
    assert len(answers) == len(at.world.letta.turns(at.agent)), [m.body for m in answers]


async def quiet(at: Scene) -> bool:
    waiting = await at.bridge.db.fetchval("SELECT COUNT(*) FROM outbox WHERE state = 'pending'")
    return waiting == 0 and await at.bridge.turns.open_lanes() == []


def sent(world: World, since: int) -> list[Transaction]:
    """Attempts to push from then on that carried events of Alice's."""
    alice = "@alice:test.local"
    return [one for one in world.hs.transactions[since:] if any(event["sender"] == alice for event in one.events)]


# -- attempts that fail: only a ping, or something new, makes Tuwunel try again


@pytest.mark.parametrize(
    "fault",
    [
        {"lost": True},
        {"cut": True},
        {"status": 502},
        {"header_token": "wrong"},
        {"query_token": "wrong"},
        {"before": 1.5},
    ],
    ids=["lost", "cut", "answer lost", "wrong header", "wrong query", "body too late"],
)
async def test_a_push_that_fails_is_recovered_by_our_ping_in_silence(tuwunel_world: World, fault: JSON) -> None:
    at = await scene(tuwunel_world, appservice__ping_interval=0.5)
    await tuwunel_world.hs.wait_pushed()
    since = len(tuwunel_world.hs.transactions)
    tuwunel_world.hs.push_settings.timeout = 1.0
    struck = tuwunel_world.hs.fail_push(PushFault(**fault))
    await at.alice.send(at.room, "only this")
    await until(lambda: struck.hits)
    await told_once(at, "only this")
    first, *again = sent(tuwunel_world, since)
    assert first.status not in (200, None)
    assert {one.txn_id for one in again} == {first.txn_id} and again[-1].status == 200


async def test_several_lost_pushes_in_a_row_are_recovered_too(tuwunel_world: World) -> None:
    at = await scene(tuwunel_world, appservice__ping_interval=0.2)
    for _ in range(3):
        tuwunel_world.hs.fail_push(PushFault(lost=True))
    await at.alice.send(at.room, "first")
    await at.alice.send(at.room, "second")
    await told_once(at, "first", "second")


async def test_a_push_that_was_taken_and_counts_as_failed_survives_a_restart_of_the_bridge(
    tuwunel_world: World,
) -> None:
    at = await scene(tuwunel_world, appservice__ping_interval=60.0)
    await tuwunel_world.hs.wait_pushed()
    tuwunel_world.hs.fail_push(PushFault(status=502))
    await at.alice.send(at.room, "taken")
    await until(lambda: "taken" in heard(at))
    await tuwunel_world.restart()
    await told_once(at, "taken")


async def test_a_request_that_overlaps_the_first_is_stored_once(tuwunel_world: World) -> None:
    """The store takes longer than Tuwunel waits: it sends again while the first request is still being worked on."""
    world = tuwunel_world
    at = await scene(world)
    await world.hs.wait_pushed()
    since = len(world.hs.transactions)
    world.hs.push_settings.timeout = 0.4
    lock = sqlite3.connect(world.folder / "bridge.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        await at.alice.send(at.room, "slow")
        await world.hs.wait_until(lambda: any(one.status == 0 for one in sent(world, since)), what="a timeout")
        await at.alice.set_typing(at.room)
        await world.hs.wait_until(lambda: len(sent(world, since)) >= 2, what="an overlapping request")
        world.hs.push_settings.timeout = 35.0
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    await told_once(at, "slow")


async def test_what_is_redacted_or_purged_before_the_next_try_is_not_told(tuwunel_world: World) -> None:
    world = tuwunel_world
    at = await scene(world, appservice__ping_interval=60.0)
    await world.hs.wait_pushed()
    since = len(world.hs.transactions)
    world.hs.fail_push(PushFault(lost=True))
    regretted = await at.alice.send(at.room, "regretted")
    await world.hs.wait_until(lambda: bool(sent(world, since)), what="the lost push")
    world.hs.hold_push()
    purged = await at.alice.send(at.room, "purged")
    await at.alice.set_typing(at.room)  # is told hours later
    await at.alice.redact(at.room, regretted)
    world.hs.hs.purge(purged)
    world.hs.release_push()
    await at.alice.send(at.room, "still there?")
    await told_once(at, "still there?")
    again = sent(world, since)[1]
    assert again.txn_id == sent(world, since)[0].txn_id and again.events[0]["content"] == {}
    assert any(one.rows > len(one.events) + len(one.ephemeral) for one in sent(world, since))


async def test_what_is_redacted_after_it_was_taken_and_before_the_next_try_is_told_once(tuwunel_world: World) -> None:
    world = tuwunel_world
    at = await scene(world, appservice__ping_interval=60.0)
    hold = world.letta.hold(at.agent)
    await at.alice.send(at.room, "busy")
    await hold.entered()
    await world.hs.wait_pushed()
    world.hs.fail_push(PushFault(status=502))
    regretted = await at.alice.send(at.room, "regretted")
    await world.hs.wait_until(lambda: world.hs.transactions[-1].status == 502, what="the failed push")
    await at.alice.redact(at.room, regretted)
    await world.hs.wait_pushed()
    await until(at.bridge.inbox_is_empty)
    hold.release()
    await at.alice.send(at.room, "still there?")
    await told_once(at, "busy", "still there?")


# -- ids and repetitions


async def test_a_finished_transaction_that_comes_again_changes_nothing(tuwunel_world: World) -> None:
    at = await scene(tuwunel_world)
    await at.alice.send(at.room, "once")
    await at.answered("once")
    for transaction in list(tuwunel_world.hs.transactions):
        assert await tuwunel_world.hs.push_again(transaction)
    await told_once(at, "once")


async def test_an_event_in_two_transactions_is_told_once(tuwunel_world: World) -> None:
    at = await scene(tuwunel_world)
    event_id = await at.alice.send(at.room, "once")
    await at.answered("once")
    rows = pusher(tuwunel_world).rows
    pusher(tuwunel_world).queue_event(event_id, rows.room(at.room))
    await at.alice.send(at.room, "and on")
    await told_once(at, "once", "and on")


async def test_a_transaction_id_that_comes_with_a_new_event_is_taken(tuwunel_world: World) -> None:
    world = tuwunel_world
    at = await scene(world)
    for text in ("one", "two", "three"):
        await world.hs.wait_pushed()
        world.hs.fail_push(PushFault(txn_id="again"))
        await at.alice.send(at.room, text)
    await told_once(at, "one", "two", "three")
    assert sum(one.txn_id == "again" and one.status == 200 for one in world.hs.transactions) == 3


async def test_equal_notifications_have_equal_ids_and_hold_up_nothing(tuwunel_world: World) -> None:
    world = tuwunel_world
    at = await scene(world)
    await world.hs.wait_pushed()
    for _ in range(2):
        for timeout in (30_000, None):
            await at.alice.set_typing(at.room, timeout)
            await world.hs.wait_pushed()
    typing = [one.txn_id for one in world.hs.transactions if one.ephemeral and not one.events]
    assert len(typing) >= 4 > len(set(typing))
    await at.alice.send(at.room, "after all that")
    await told_once(at, "after all that")


# -- sizes and order


async def test_a_batch_of_48_events_of_64_kb(tuwunel_world: World) -> None:
    world = tuwunel_world
    at = await scene(world)
    await world.hs.wait_pushed()
    since = len(world.hs.transactions)
    filler = "x" * 60_000
    texts = [f"{number} {filler}" for number in range(49)]
    world.hs.hold_push()
    for text in texts:
        await at.alice.send(at.room, text)
    world.hs.release_push()
    await until(lambda: texts[-1] in heard(at), timeout=40, why="the last one was never heard")
    assert heard(at) == ["hello", *texts]
    first, batch = sent(world, since)[:2]
    assert (first.rows, batch.rows, batch.status) == (1, 48, 200)
    assert len(json.dumps(batch.body)) > 48 * 60_000


async def test_a_burst_of_transactions_of_one_event_each(tuwunel_world: World) -> None:
    world = tuwunel_world
    at = await scene(world)
    await world.hs.wait_pushed()
    since = len(world.hs.transactions)
    texts = [f"message {number}" for number in range(40)]
    for text in texts:
        await at.alice.send(at.room, text)
        await world.hs.wait_until(lambda text=text: _carries(sent(world, since), text), what=text)
    await until(lambda: texts[-1] in heard(at), timeout=20)
    assert heard(at) == ["hello", *texts]
    assert max(sum(event["sender"] == at.alice.mxid for event in one.events) for one in sent(world, since)) <= 2


def _carries(transactions: list[Transaction], text: str) -> bool:
    return any(event["content"].get("body") == text for one in transactions for event in one.events)


async def test_rooms_in_any_order_and_notifications_behind_them(tuwunel_world: World) -> None:
    """Rooms come by age: what was said last, in the old room, comes before the invitation to the new one."""
    world = tuwunel_world
    at = await scene(world)
    other = await world.dm(at.alice, at.agent, "second room")
    await at.alice.wait_message(other, text=lambda body: "second room" in body, sender=world.puppet(at.agent))
    await world.hs.wait_pushed()
    since = len(world.hs.transactions)
    world.hs.hold_push()
    await at.alice.set_typing(other)
    fresh = await at.alice.create_dm(world.puppet(at.agent))
    for number in range(5):
        await at.alice.send(other, f"other {number}")
        await at.alice.send(at.room, f"old {number}")
    world.hs.release_push()
    await at.alice.wait_joined(fresh, world.puppet(at.agent))
    await at.alice.send(fresh, "fresh")
    await until(lambda: {"other 4", "old 4", "fresh"} <= set(heard(at)), why="a room stands still")
    for room in ("old", "other"):
        assert [text for text in heard(at) if text.startswith(f"{room} ")] == [f"{room} {n}" for n in range(5)]
    rooms = [event["room_id"] for event in sent(world, since)[1].events]
    assert rooms == sorted(rooms, key=[at.room, other, fresh].index)


# -- what transactions look like


UNSIGNED: dict[str, Callable[[JSON], JSON]] = {
    "null": lambda event: {**event, "unsigned": None},
    "absent": lambda event: {key: value for key, value in event.items() if key != "unsigned"},
    "empty": lambda event: {**event, "unsigned": {}},
    "text": lambda event: {**event, "unsigned": "text"},
    "as Synapse": lambda event: {**event, "unsigned": {"age": 17, "invite_room_state": [{"type": "m.room.name"}, 5]}},
    "garbage": lambda event: {**event, "unsigned": {"prev_content": None, "transaction_id": 5, "replaces_state": {}}},
}


async def test_unsigned_may_be_anything(tuwunel_world: World) -> None:
    world = tuwunel_world
    at = await scene(world)
    for name, made in UNSIGNED.items():
        await world.hs.wait_pushed()
        faults = [world.hs.fail_push(PushFault(change=_every_event(made))) for _ in range(4)]
        await at.alice.set_displayname(f"Alice {name}")
        room = await world.dm(at.alice, at.agent, f"DM {name}")
        await at.alice.send(at.room, name)
        await at.answered(name)
        await at.alice.wait_message(room, text=lambda body, name=name: name in body, sender=world.puppet(at.agent))
        assert all(fault.hits for fault in faults)
    assert sorted(heard(at)) == sorted(["hello", *UNSIGNED, *(f"DM {name}" for name in UNSIGNED)])


def _every_event(made: Callable[[JSON], JSON]) -> Callable[[JSON], JSON]:
    return lambda body: {**body, "events": [made(event) for event in body["events"]]}


OPTIONAL = (
    "ephemeral",
    "de.sorunome.msc2409.ephemeral",
    "de.sorunome.msc2409.to_device",
    "org.matrix.msc3202.device_lists",
    "org.matrix.msc3202.device_one_time_keys_count",
    "org.matrix.msc3202.device_one_time_key_counts",
    "org.matrix.msc3202.device_unused_fallback_key_types",
)


async def test_optional_keys_may_be_absent_null_or_anything(
    tuwunel_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = tuwunel_world
    at = await scene(world)
    presence = {"type": "m.presence", "content": {"presence": "online"}, "sender": at.alice.mxid}
    variants: list[tuple[str, JSON]] = [
        ("null", dict.fromkeys(OPTIONAL)),
        ("lists", {key: [] for key in OPTIONAL}),
        ("objects", {key: {} for key in OPTIONAL}),
        ("text", dict.fromkeys(OPTIONAL, "x")),
        ("presence", {"ephemeral": [presence, {}, None, {"type": 5}, {"type": "org.example.edu", "content": []}]}),
    ]
    caplog.clear()
    for name, keys in variants:
        await world.hs.wait_pushed()
        world.hs.fail_push(PushFault(change=lambda body, keys=keys: {**body, **keys}))
        await at.alice.send(at.room, name)
        await at.answered(name)
    await world.hs.wait_pushed()
    world.hs.fail_push(PushFault(change=lambda body: {"events": body["events"]}))
    await at.alice.send(at.room, "absent")
    await told_once(at, *(name for name, _ in variants), "absent")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_messages_to_devices_and_device_lists_are_ignored_in_silence(
    tuwunel_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = tuwunel_world
    at = await scene(world)
    await world.hs.wait_pushed()
    caplog.clear()
    world.hs.hold_push()
    device = at.world.hs.hs.accounts.devices(world.puppet(at.agent))[0]["device_id"]
    pusher(world).push_to_device(
        {
            "type": "m.room.encrypted",
            "sender": at.alice.mxid,
            "content": {"ciphertext": {}},
            "to_user_id": world.puppet(at.agent),
            "to_device_id": device,
        }
    )
    pusher(world).push_device_list(at.alice.mxid)
    await at.alice.send(at.room, "behind them")
    world.hs.release_push()
    await told_once(at, "behind them")
    keys = {key for one in world.hs.transactions for key in one.body}
    assert {"de.sorunome.msc2409.to_device", "org.matrix.msc3202.device_lists"} <= keys
    assert "org.matrix.msc3202.device_one_time_keys_count" in keys
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_unknown_types_wake_nobody_and_hold_up_nothing(tuwunel_world: World) -> None:
    at = await scene(tuwunel_world)
    await at.alice.send_event(at.room, "org.example.unknown", {"body": "unknown"})
    await at.alice.send_event(at.room, "m.call.hangup", {"call_id": "x"})
    await at.alice.set_state(at.room, "org.example.state", {"a": {"b": []}}, "key")
    await at.alice.send(at.room, "known")
    await told_once(at, "known")


async def test_a_body_that_is_no_json_loses_no_event_that_can_be_read(tuwunel_world: World) -> None:
    world = tuwunel_world
    at = await scene(world)
    await world.hs.wait_pushed()
    for number, spoil in enumerate((lambda raw: raw[:-1], lambda raw: raw + b"}", lambda raw: raw[:-2] + b",]}")):
        await world.hs.wait_pushed()
        world.hs.fail_push(PushFault(change=lambda body, spoil=spoil: spoil(json.dumps(body).encode())))
        await at.alice.send(at.room, f"spoilt {number}")
        await at.answered(f"spoilt {number}")
    assert await world.hs.push_raw(b"{]") == (200, "{}")
    await at.alice.send(at.room, "after it")
    await told_once(at, "spoilt 0", "spoilt 1", "spoilt 2", "after it")


async def test_an_event_that_cannot_be_handled_gets_no_4xx(tuwunel_world: World) -> None:
    """Tuwunel would send it for ever, and everything else behind it never."""
    world = tuwunel_world
    at = await scene(world)
    await world.hs.wait_pushed()
    since = len(world.hs.transactions)
    bad = [{**event_of(at, "x"), "content": None}, "event", {**event_of(at, "x"), "room_id": 5}]
    world.hs.fail_push(PushFault(change=lambda body: {"events": [*bad, *body["events"]]}))
    await at.alice.send(at.room, "behind them")
    await told_once(at, "behind them")
    assert [one.status for one in sent(world, since)] == [200]


# -- what Tuwunel asks besides


@pytest.mark.parametrize("kind", ["query", "claim"])
async def test_questions_about_keys_get_a_fast_404(tuwunel_world: World, kind: str) -> None:
    """People's clients wait for the answer."""
    at = await scene(tuwunel_world)
    hold = tuwunel_world.letta.hold(at.agent)
    await at.alice.send(at.room, "busy")
    await hold.entered()
    status, answer, seconds = await asyncio.wait_for(pusher(tuwunel_world).ask_keys(kind, {"x": {}}), 10)
    assert (status, answer["errcode"]) == (404, "M_UNRECOGNIZED")
    assert seconds < 1.0
    hold.release()
