"""FakeHomeserver pushes what, when and how Synapse and Tuwunel push."""

import itertools

import pytest

from .fake_homeserver_kit import BOT, GHOST, alice, both, bridge, client, hs, message, portal, synapse, tuwunel

__all__ = ["alice", "bridge", "client", "hs"]


# ---- what is pushed


@both
@pytest.mark.parametrize("version", ["11", "12"])
async def test_the_first_text_of_a_dm_is_never_pushed_but_can_be_read(hs, bridge, client, alice, version) -> None:
    room = await alice.create_dm(GHOST, text="first", room_version=version)
    await hs.wait_pushed()
    invite = bridge.bodies[-1]["events"][-1]
    assert (invite["content"]["membership"], invite["state_key"]) == ("invite", GHOST)
    await client(GHOST, "POST", "join", room)
    await alice.send(room, "second")
    await hs.wait_pushed()
    assert bridge.texts == ["second"]
    _, page = await client(GHOST, "GET", "rooms", room, "messages", dir="b", limit=50)
    assert [e["content"]["body"] for e in page["chunk"] if e["type"] == "m.room.message"] == ["second", "first"]
    assert (":" in room) == (version == "11")


@both
async def test_an_unknown_ghost_is_asked_for_by_synapse_only(hs, bridge, alice) -> None:
    await alice.create_dm("@letta_unknown:test.local", text="hello")
    await hs.wait_pushed()
    assert bridge.asked == (["@letta_unknown:test.local"] if hs.flavour.name == "synapse" else [])
    await alice.create_room(invite=["@unrelated:test.local"])
    assert [e["state_key"] for b in bridge.bodies for e in b["events"]] == ["@letta_unknown:test.local"]


@both
async def test_a_room_with_an_alias_of_ours_is_pushed_without_any_member(hs, bridge, client, alice) -> None:
    room = await alice.create_room()
    await client(BOT, "PUT", "directory", "room", "#letta_x:test.local", body={"room_id": room})
    await alice.send(room, "seen")
    await hs.wait_pushed()
    assert bridge.texts == ["seen"]


@both
async def test_typing_and_receipts_are_pushed(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await hs.wait_pushed()
    event = await alice.send(room, "hi")
    await hs.wait_pushed()
    await alice.set_typing(room)
    await hs.wait_pushed()
    await alice.set_typing(room, None)
    await alice.read(room, event, private=True)
    await alice.read(room, event)
    await hs.wait_pushed()
    edus = [(edu["type"], edu["content"]) for body in bridge.bodies for edu in body.get("ephemeral", ())]
    assert [kind for kind, _ in edus] == ["m.typing", "m.typing", "m.receipt"]
    assert [content["user_ids"] for kind, content in edus[:2]] == [[alice.mxid], []]
    assert list(edus[2][1][event]["m.read"]) == [alice.mxid]


@synapse
async def test_synapse_counts_backs_off_and_retries_only_events(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await hs.wait_pushed()
    bridge.status, first = 400, len(hs.transactions)
    hs.hold_push()
    await alice.send(room, "one")
    await alice.set_typing(room)
    hs.release_push()
    await hs.wait_until(lambda: len([t for t in hs.transactions if t.status == 400]) == 3)
    await alice.send(room, "two")
    bridge.status = 200
    await hs.wait_pushed()
    attempts = hs.transactions[first:]
    ids = [int(attempt.txn_id) for attempt in attempts]
    assert ids == sorted(ids) and ids.count(ids[0]) >= 4 and ids[-1] == ids[0] + 1
    assert attempts[0].ephemeral and not attempts[1].ephemeral
    assert bridge.texts == ["one", "two"]
    pauses = [b.started - a.started for a, b in itertools.pairwise(attempts)]
    assert pauses[0] >= 0.01 and pauses[1] >= 0.02


@both
async def test_a_broken_connection_is_one_failed_attempt(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await hs.wait_pushed()
    hs.push_settings.backoff_scale = 1000
    taken, attempts, bridge.status = len(bridge.raw), len(hs.transactions), 0
    await alice.send(room, "cut")
    await hs.wait_until(lambda: hs.transactions[-1].status == 0)
    assert (len(bridge.raw) - taken, len(hs.transactions) - attempts) == (1, 1)
    bridge.status = 200
    await client(None, "POST", "appservice", "letta", "ping", api="client/v1")
    await hs.wait_pushed()
    assert bridge.texts == ["cut"]


@synapse
async def test_a_ping_ends_synapses_back_off(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await hs.wait_pushed()
    hs.push_settings.backoff_scale = 1000
    bridge.status = 500
    await alice.send(room, "late")
    await hs.wait_until(lambda: hs.transactions[-1].status == 500)
    assert (await client(None, "POST", "appservice", "letta", "ping", api="client/v1"))[1]["errcode"] == "M_BAD_STATUS"
    bridge.status = 200
    assert (await client(None, "POST", "appservice", "letta", "ping", api="client/v1"))[0] == 200
    await hs.wait_pushed()
    assert bridge.texts == ["late"]


@synapse
async def test_a_restart_can_reuse_transaction_ids_for_new_events(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await hs.wait_pushed()
    await hs.restart(reset_txn_counter=True)
    await alice.send(room, "new")
    await hs.wait_pushed()
    same = [t for t in hs.transactions if t.txn_id == "1"]
    assert len(same) == 2 and same[0].event_ids != same[1].event_ids


@tuwunel
async def test_tuwunel_sends_one_then_48_rows_rooms_by_age_edus_last(hs, bridge, client, alice) -> None:
    old, new = await portal(client, alice, GHOST), await portal(client, alice, GHOST)
    await hs.wait_pushed()
    bridge.bodies.clear()
    bridge.arrived.clear()
    bridge.gate.clear()
    await alice.send(new, "alone")
    await bridge.arrived.wait()
    await alice.set_typing(new)
    for number in range(30):
        await alice.send(new, f"new {number}")
        await alice.send(old, f"old {number}")
    bridge.gate.set()
    await hs.wait_pushed()
    sizes = [len(body["events"]) + len(body.get("ephemeral", ())) for body in bridge.bodies]
    assert sizes == [1, 48, 13]
    expected = ["alone", *(f"old {n}" for n in range(30)), *(f"new {n}" for n in range(30))]
    assert bridge.texts == expected
    assert ["ephemeral" in body for body in bridge.bodies] == [False, False, True]
    _, headers, query, _ = bridge.raw[-1]
    assert headers["Authorization"] == "Bearer test-hs-token" and query["access_token"] == "test-hs-token"


@tuwunel
async def test_tuwunel_retries_only_on_the_next_event_a_ping_or_a_restart(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await hs.wait_pushed()
    first = len(hs.transactions)

    async def fails(times: int) -> None:
        await hs.wait_until(lambda: len(hs.transactions) == first + times and hs.transactions[-1].status == 500)

    bridge.status = 500
    await alice.send(room, "one")
    await fails(1)
    await client(None, "POST", "appservice", "letta", "ping", api="client/v1")  # it fails: no retry
    await alice.send(room, "two")
    await fails(2)
    await hs.restart()
    await fails(3)
    assert len({t.txn_id for t in hs.transactions[first:]}) == 1
    assert [t.event_ids for t in hs.transactions[first:]] == [hs.transactions[first].event_ids] * 3
    bridge.status = 200
    await client(None, "POST", "appservice", "letta", "ping", api="client/v1")
    await hs.wait_pushed()
    assert bridge.texts == ["one", "two"]


@tuwunel
async def test_tuwunels_id_is_a_hash_equal_typing_has_equal_ids(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await hs.wait_pushed()
    for timeout in (30_000, None, 30_000):
        await alice.set_typing(room, timeout)
        await hs.wait_pushed()
    ids = [txn for txn, _, _, raw in bridge.raw if b"m.typing" in raw]
    assert ids[0] == ids[2] != ids[1]


@both
async def test_a_transaction_in_retry_carries_the_event_as_it_is_now(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await hs.wait_pushed()
    bridge.status = 500
    event = await alice.send(room, "regretted")
    await hs.wait_until(lambda: hs.transactions[-1].status == 500)
    await alice.redact(room, event)
    bridge.status = 200
    await client(None, "POST", "appservice", "letta", "ping", api="client/v1")
    await hs.wait_pushed()
    assert bridge.texts == []


@both
async def test_unsigned_has_what_the_flavour_gives(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await alice.send_event(room, "m.room.message", message("x"), txn_id="mine")
    await hs.wait_pushed()
    unsigned = bridge.bodies[-1]["events"][-1]["unsigned"]
    expected = {"age"} if hs.flavour.name == "synapse" else {"transaction_id"}
    assert set(unsigned) == expected
