"""FakeTuwunel pushes as Tuwunel 1.9 does. (Its rules with a homeserver behind it: test_fake_homeserver_push.py.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from letta_bridge.testing.fake_homeserver import MatrixError, PushFault

from ..integration.fake_homeserver_kit import Bridge
from .kit import ALICE, BOT, GHOST, a_fake, text, typing


def carried(bridge: Bridge) -> list[list[str]]:
    """What each accepted transaction carried."""
    return [
        [
            *(event["content"].get("body", "(pruned)") for event in body["events"]),
            *(edu["type"] for edu in body.get("ephemeral", ())),
            *(message["type"] for message in body.get("de.sorunome.msc2409.to_device", ())),
            *body.get("org.matrix.msc3202.device_lists", {}).get("changed", ()),
        ]
        for body in bridge.bodies
    ]


async def test_rows_go_alone_from_idle_and_then_together_in_the_order_of_their_keys(bridge: Bridge) -> None:
    async with a_fake(bridge) as tuwunel:
        old, new = tuwunel.room(), tuwunel.room()
        bridge.gate.clear()
        tuwunel.event(new, text("alone"))
        await bridge.arrived.wait()
        message = {"type": "m.key", "sender": ALICE, "content": {}, "to_user_id": GHOST, "to_device_id": "D"}
        tuwunel.to_device(message)
        tuwunel.edu(typing(ALICE))
        tuwunel.edu({"type": "m.presence", "content": {}})
        tuwunel.device_list(ALICE)
        tuwunel.event(new, text("new"))
        tuwunel.event(old, text("old"))
        newest = tuwunel.room()  # younger than the notifications: behind them
        for number in range(45):
            tuwunel.event(newest, text(str(number)))
        bridge.gate.set()
        await tuwunel.delivered()
        assert [len(rows) for rows in carried(bridge)] == [1, 48, 2]
        assert carried(bridge)[1][:3] == ["old", "new", "0"]
        assert carried(bridge)[2] == ["43", "44"]
        assert [entry.rows for entry in tuwunel.log] == [1, 48, 2]


async def test_keys_that_are_empty_are_left_out(bridge: Bridge) -> None:
    async with a_fake(bridge) as tuwunel:
        room = tuwunel.room()
        tuwunel.event(room, text("one"))
        await tuwunel.delivered()
        assert list(bridge.bodies[0]) == ["events"]
        tuwunel.events.users = {BOT: ["B"], GHOST: ["G"]}
        tuwunel.event(room, text("two"))
        tuwunel.event(room, {**text("three"), "sender": GHOST})
        await tuwunel.delivered()
        counts = "org.matrix.msc3202.device_one_time_keys_count"
        assert [body[counts] for body in bridge.bodies[1:]] == [{BOT: {"B": {}}}, {BOT: {"B": {}}, GHOST: {"G": {}}}]
        assert "ephemeral" not in bridge.bodies[1]
        _, headers, query, _ = bridge.raw[-1]
        assert headers["Authorization"] == "Bearer test-hs-token" and query == {"access_token": "test-hs-token"}


async def test_ids_follow_from_the_rows_alone(bridge: Bridge) -> None:
    async with a_fake(bridge) as tuwunel:
        room = tuwunel.room()
        for row in ("edu", "edu", "to_device", "to_device", "event", "event"):
            if row == "event":
                tuwunel.event(room, text("the same"))
            else:
                getattr(tuwunel, row)({**typing(ALICE), "to_user_id": GHOST})
            await tuwunel.delivered()
    ids = [txn for txn, *_ in bridge.raw]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 5


async def test_rows_and_what_is_in_flight_outlive_the_process(bridge: Bridge, tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    bridge.status = 500
    async with a_fake(bridge, path) as tuwunel:
        room = tuwunel.room("!old:test.local")
        tuwunel.event(room, text("failed"))
        await tuwunel.attempts(1)
        failed = tuwunel.log[0].txn_id
    bridge.status = 200
    async with a_fake(bridge, path) as tuwunel:
        await tuwunel.delivered()
        assert tuwunel.log[0].txn_id == failed
        assert tuwunel.room("!old:test.local") == room
    assert bridge.texts == ["failed"]


@pytest.mark.parametrize(("keep", "left"), [(0, ["failed"]), (2, ["failed", "0"]), (-1, ["failed", "0", "1", "2"])])
async def test_a_restart_drops_what_is_beyond_the_netburst(bridge: Bridge, keep: int, left: list[str]) -> None:
    bridge.status = 500
    async with a_fake(bridge, netburst_keep=keep) as tuwunel:
        room = tuwunel.room()
        bridge.gate.clear()
        tuwunel.event(room, text("failed"))
        await bridge.arrived.wait()
        for number in range(3):
            tuwunel.event(room, text(str(number)))
        bridge.gate.set()
        await tuwunel.attempts(1)
        bridge.status = 200
        await tuwunel.restart()
        await tuwunel.delivered()
    assert bridge.texts == left


async def test_nothing_is_tried_again_but_by_a_new_row_a_ping_or_a_restart(bridge: Bridge) -> None:
    async with a_fake(bridge) as tuwunel:
        room = tuwunel.room()
        for _ in range(4):
            tuwunel.fail_push(PushFault(lost=True))
        bridge.gate.clear()
        tuwunel.fail_push(PushFault(status=502))
        tuwunel.event(room, text("one"))
        await tuwunel.attempts(1)
        tuwunel.event(room, text("two"))
        await tuwunel.attempts(2)
        assert not bridge.raw and not tuwunel.pusher.idle
        tuwunel.edu(typing(ALICE))
        await tuwunel.attempts(3)
        await tuwunel.ping()
        await tuwunel.attempts(4)
        await tuwunel.restart()
        await bridge.arrived.wait()
        await tuwunel.ping()  # while one is in flight: its failure is tried again once, at once
        bridge.gate.set()
        await tuwunel.delivered()
        assert {tuple(entry.event_ids) for entry in tuwunel.log[:6]} == {tuple(tuwunel.log[0].event_ids)}
        assert len({entry.txn_id for entry in tuwunel.log[:6]}) == 1
    assert carried(bridge) == [["one"], ["one"], ["two", "m.typing"]]


async def test_a_ping_in_flight_gives_one_retry_and_not_two(bridge: Bridge) -> None:
    async with a_fake(bridge) as tuwunel:
        for _ in range(2):
            tuwunel.fail_push(PushFault(status=502))
        bridge.gate.clear()
        tuwunel.event(tuwunel.room(), text("one"))
        await bridge.arrived.wait()
        await tuwunel.ping()
        bridge.gate.set()
        await tuwunel.attempts(2)
        assert len(tuwunel.log) == 2 and not tuwunel.pusher.idle
        await tuwunel.ping()
        await tuwunel.delivered()


async def test_bodies_are_made_when_they_are_sent(bridge: Bridge) -> None:
    async with a_fake(bridge) as tuwunel:
        room = tuwunel.room()
        bridge.status = 500
        regretted = tuwunel.event(room, text("regretted"))
        await tuwunel.attempts(1)
        tuwunel.redact(regretted)
        gone = tuwunel.event(room, text("gone"))
        await tuwunel.attempts(2)
        tuwunel.purge(gone)
        tuwunel.event(room, text("kept"))
        await tuwunel.attempts(3)
        bridge.status = 200
        await tuwunel.ping()
        await tuwunel.delivered()
        assert carried(bridge) == [["(pruned)"], ["kept"]]
        assert tuwunel.log[-1].rows == 2
        assert tuwunel.log[0].txn_id == tuwunel.log[-2].txn_id


async def test_what_befalls_one_attempt(bridge: Bridge) -> None:
    async with a_fake(bridge) as tuwunel:
        room = tuwunel.room()
        faults = [
            PushFault(skip=1, status=502),
            PushFault(cut=True),
            PushFault(lost=True),
            PushFault(header_token="", query_token="other", txn_id="chosen", change=lambda body: b"no JSON"),
            PushFault(before=0.05, after=0.05),
        ]
        for fault in faults:
            tuwunel.fail_push(fault)
        bridge.gate.clear()
        tuwunel.event(room, text("first"))
        await bridge.arrived.wait()
        bridge.gate.set()
        await tuwunel.delivered()
        tuwunel.event(room, text("second"))
        for attempts in range(2, 6):
            await tuwunel.attempts(attempts)
            bridge.status = 500 if attempts == 4 else 200
            tuwunel.edu(typing(str(attempts)))
        await tuwunel.delivered()
        assert [entry.status for entry in tuwunel.log[:6]] == [200, 502, 0, 0, 500, 200]
        assert [fault.hits for fault in faults] == [1] * 5
        _, headers, query, raw = next(entry for entry in bridge.raw if entry[0] == "chosen")
        assert (raw, query) == (b"no JSON", {"access_token": "other"}) and "Authorization" not in headers
        assert tuwunel.log[5].duration is not None and tuwunel.log[5].duration >= 0.1


async def test_pings_are_answered_in_tuwunels_words(bridge: Bridge) -> None:
    async with a_fake(bridge, timeout=0.2) as tuwunel, aiohttp.ClientSession() as http:
        url = f"{tuwunel.url}/_matrix/client/v1/appservice/letta/ping"

        async def ask(token: str = "test-as-token", where: str = url) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {token}"}
            async with http.post(where, json={"transaction_id": "t"}, headers=headers) as answer:
                return answer.status, (await answer.json()).get("errcode")

        assert await ask() == (200, None)
        assert await ask("wrong") == (401, "M_UNKNOWN_TOKEN")
        assert await ask(where=url.replace("letta", "other")) == (403, "M_FORBIDDEN")
        bridge.status = 503
        assert await ask() == (502, "M_BAD_STATUS")
        tuwunel.appservice.url = ""
        assert await ask() == (400, "M_URL_NOT_SET")
        tuwunel.appservice.url = "http://127.0.0.1:9"
        assert await ask() == (502, "M_CONNECTION_FAILED")
        with pytest.raises(MatrixError, match="502"):
            await tuwunel.ping()


async def test_a_finished_transaction_can_be_pushed_again_as_it_was(bridge: Bridge) -> None:
    async with a_fake(bridge) as tuwunel:
        tuwunel.event(tuwunel.room(), text("one"))
        await tuwunel.delivered()
        assert await tuwunel.push_again(tuwunel.log[0])
    (first, _, _, one), (second, _, _, again) = bridge.raw
    assert first == second and json.loads(one) == json.loads(again)
