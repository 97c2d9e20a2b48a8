"""FakeHomeserver keeps its promises: both flavours, faults, people. Its likeness to Synapse is tested in e2e."""

import asyncio
import io
import re
import time

import aiohttp
import pytest
from mautrix.appservice import AppService
from mautrix.types import EventType, MessageType, RoomID, TextMessageEventContent, UserID

from letta_bridge.testing.fake_homeserver import FakeHomeserver, MatrixError, example_registration

from .fake_homeserver_kit import (
    BOT,
    GHOST,
    OTHER,
    Bridge,
    Client,
    alice,
    both,
    bridge,
    client,
    hs,
    message,
    portal,
)

__all__ = ["alice", "bridge", "client", "hs"]


# ---- differences between the flavours


@both
async def test_refusals_of_masquerading(hs, client, alice) -> None:
    real = hs.flavour.name == "synapse"
    new = "@letta_new:test.local"
    for user in (alice.mxid, "@letta_x:other.example"):
        status, body = await client(user, "GET", "account", "whoami")
        assert (status, body["errcode"]) == ((403, "M_FORBIDDEN") if real else (400, "M_EXCLUSIVE"))
    assert (await client(new, "GET", "account", "whoami"))[0] == (403 if real else 200)
    status, body = await client(GHOST, "GET", "account", "whoami", device_id="NONE")
    assert (status, body["errcode"]) == (400, "M_UNKNOWN_DEVICE" if real else "M_INVALID_PARAM")
    status, body = await client(new, "PUT", "devices", "D")
    assert (status, body["errcode"]) == ((403, "M_FORBIDDEN") if real else (400, "M_INVALID_PARAM"))
    assert [(await client(GHOST, "PUT", "devices", "D"))[0] for _ in range(2)] == [201, 200]


@both
async def test_registration_needs_inhibit_login_and_synapse_makes_the_user_all_the_same(hs, client) -> None:
    body = {"type": "m.login.application_service", "username": "letta_new"}
    assert (await client(None, "POST", "register", body=body))[1]["errcode"] == "M_APPSERVICE_LOGIN_UNSUPPORTED"
    status, answer = await client(None, "POST", "register", body={**body, "inhibit_login": True})
    assert status == (400 if hs.flavour.name == "synapse" else 200), answer
    _, profile = await client(None, "GET", "profile", "@letta_new:test.local")
    assert profile == {"displayname": "letta_new" + ("" if hs.flavour.name == "synapse" else " 💕")}


@both
async def test_rooms_differ(hs, client, alice) -> None:
    real = hs.flavour.name == "synapse"
    state = [{"type": "x.empty", "content": {}}]
    room = await alice.create_room(initial_state=state)
    assert hs.hs.room(room).version == ("12" if real else "11")
    kinds = [event["type"] for event in alice.timeline(room)]
    assert ("x.empty" in kinds) == real
    status, body = await client(GHOST, "GET", "rooms", room, "state", "m.room.create")
    assert (status, body["errcode"]) == ((403, "M_FORBIDDEN") if real else (404, "M_NOT_FOUND"))
    assert (await client(GHOST, "GET", "rooms", room, "state"))[0] == 403
    assert (await client(GHOST, "POST", "rooms", room, "leave"))[0] == (403 if real else 200)
    _, body = await client(GHOST, "POST", "join", room)
    assert body["errcode"] == "M_FORBIDDEN" and ("Auth check failed" in body["error"]) != real
    await alice.invite(room, GHOST)
    await client(GHOST, "POST", "join", room)
    with pytest.raises(MatrixError) as refused:
        await alice.invite(room, GHOST)
    text = "already in the room" if real else "Auth check failed: cannot invite user that is joined or banned"
    assert text in refused.value.error
    assert (await client(BOT, "GET", "rooms", room, "joined_members"))[0] == (200 if real else 403)


@both
async def test_an_invite_failing_in_create_room(hs, client, alice) -> None:
    body = {"invite": ["@x:unreachable.example", alice.mxid]}
    status, answer = await client(BOT, "POST", "createRoom", body=body)
    assert status == (403 if hs.flavour.name == "synapse" else 200), answer
    assert len(alice.invites()) == (0 if hs.flavour.name == "synapse" else 1)


@both
async def test_a_space_with_25_children_needs_pages(hs, client, alice) -> None:
    _, made = await client(BOT, "POST", "createRoom", body={"creation_content": {"type": "m.space"}})
    children = []
    for number in range(25):
        children.append((await client(BOT, "POST", "createRoom", body={}))[1]["room_id"])
        child = {"via": ["test.local"], "order": f"{99 - number}"}
        await client(BOT, "PUT", "rooms", made["room_id"], "state", "m.space.child", children[-1], body=child)
    pages, query = [], {}
    while True:
        _, page = await client(BOT, "GET", "rooms", made["room_id"], "hierarchy", api="client/v1", **query)
        pages.append([room["room_id"] for room in page["rooms"]])
        if "next_batch" not in page:
            break
        query = {"from_": page["next_batch"]}
    assert [len(page) for page in pages] == ([26] if hs.flavour.name == "synapse" else [10, 10, 6])
    listed = [room for page in pages for room in page][1:]
    assert listed == (children[::-1] if hs.flavour.name == "synapse" else children)


@both
async def test_media(hs, client) -> None:
    real = hs.flavour.name == "synapse"
    assert (await client(GHOST, "GET", "config", api="media/v3"))[0] == (200 if real else 403)
    _, config = await client(GHOST, "GET", "media", "config", api="client/v1")
    assert config["m.upload.size"] == (52_428_800 if real else 25_165_824)
    big = io.BytesIO(b"x" * (config["m.upload.size"] + 1))
    url = f"{hs.url}/_matrix/media/v3/upload"
    async with client.session.post(url, data=big, headers={"Authorization": "Bearer test-as-token"}) as answer:
        assert (answer.status, (await answer.json())["errcode"]) == (413, "M_TOO_LARGE")


@both
async def test_typing_ends_by_itself(hs, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await client(GHOST, "PUT", "rooms", room, "typing", GHOST, body={"typing": True, "timeout": 50})
    assert alice.typing(room) == [GHOST]
    if hs.flavour.name == "tuwunel":  # clamped to at least 15 s
        assert hs.hs.room(room).typing[GHOST].when() - asyncio.get_running_loop().time() > 14
        return
    await hs.wait_until(lambda: alice.typing(room) == [])


# ---- transaction ids of the client


@both
async def test_what_a_transaction_id_is_good_for(hs, client, alice) -> None:
    one, two = await portal(client, alice, GHOST, OTHER), await portal(client, alice, GHOST, OTHER)

    async def send(user: str, room: str, text: str) -> str:
        _, answer = await client(user, "PUT", "rooms", room, "send", "m.room.message", "t", body=message(text))
        return str(answer["event_id"])

    first = await send(GHOST, one, "one")
    real = hs.flavour.name == "synapse"
    assert await send(GHOST, one, "again") == first
    assert (await send(OTHER, one, "other ghost") == first) == real
    assert (await send(GHOST, two, "other room") == first) != real
    await hs.restart()
    assert (await send(GHOST, one, "after restart") == first) != real
    expected = ["one", "after restart"] if real else ["one", "other ghost"]
    assert [m.body for m in alice.messages(one)] == expected


@both
async def test_with_a_device_a_transaction_id_survives_a_restart(hs, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    await client(GHOST, "PUT", "devices", "D")
    send = ("PUT", "rooms", room, "send", "m.room.message", "t")
    _, first = await client(GHOST, *send, body=message("one"), device_id="D")
    await hs.restart()
    assert await client(GHOST, *send, body=message("two"), device_id="D") == (200, first)
    assert len(alice.messages(room)) == 1


@both
async def test_the_redact_endpoint(hs, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    _, sent = await client(GHOST, "PUT", "rooms", room, "send", "m.room.message", "t", body=message("x"))
    redact = ("PUT", "rooms", room, "redact", sent["event_id"], "r")
    _, first = await client(GHOST, *redact, body={"reason": "why", "extra": 1})
    _, second = await client(GHOST, *redact, body={})
    real = hs.flavour.name == "synapse"
    assert (first == second) == real
    events = [event for event in alice.timeline(room) if event["type"] == "m.room.redaction"]
    assert ("extra" in events[0]["content"]) == real and len(events) == (1 if real else 2)
    assert alice.messages(room) == []


# ---- faults


async def test_failing_answers(hs, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    send = ("PUT", "rooms", room, "send", "m.room.message")
    hs.fail_next(r"/send/", status=429, retry_after_ms=1500, times=2)
    for _ in range(2):
        status, body = await client(GHOST, *send, "1", body=message("x"))
        assert (status, body["errcode"], body["retry_after_ms"]) == (429, "M_LIMIT_EXCEEDED", 1500)
        assert client.headers["Retry-After"] == "2"
    assert (await client(GHOST, *send, "1", body=message("x")))[0] == 200
    hs.fail_next(r"/send/", status=502, after_processing=True)
    assert (await client(GHOST, *send, "2", body=message("y")))[0] == 502
    assert [(r.method, r.user_id, r.status) for r in hs.requests[-4:]] == [
        ("PUT", GHOST, status) for status in (429, 429, 200, 502)
    ]
    fault = hs.fail_next(r"/send/", method="PUT", times=None, after_processing="disconnect")
    with pytest.raises(aiohttp.ClientError):
        await client(GHOST, *send, "3", body=message("z"))
    assert fault.hits == hs.count(r"/send/m\.room\.message/3$", method="PUT") > 0  # aiohttp may try twice
    assert [m.body for m in alice.messages(room)] == ["x", "y", "z"]
    assert hs.requests[-1].status == 0


async def test_delays_and_outages(hs, bridge, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    slow = hs.delay("/whoami", 0.05)
    begun = time.monotonic()
    await client(GHOST, "GET", "account", "whoami")
    slow.cancel()
    assert time.monotonic() - begun >= 0.05
    await hs.wait_pushed()
    url = hs.url
    await hs.stop()
    with pytest.raises(aiohttp.ClientError):
        await client(GHOST, "GET", "account", "whoami")
    with pytest.raises(ConnectionRefusedError):
        await alice.send(room, "lost")
    await hs.start()
    assert hs.url == url
    await alice.send(room, "kept")
    await hs.wait_pushed()
    assert bridge.texts == ["kept"]


async def test_pushing_by_hand(hs, bridge, client, alice) -> None:
    assert await hs.push_raw(b"{", txn_id="odd") == (500, "500 Internal Server Error\n\nServer got itself in trouble")
    await hs.push_raw(b'{"events": []}', token="wrong", query_token="other")
    assert bridge.raw[-1][1]["Authorization"] == "Bearer wrong" and bridge.raw[-1][2] == {"access_token": "other"}
    await hs.push_raw(b'{"events": []}', token="")
    assert "Authorization" not in bridge.raw[-1][1]
    hs.hold_push()
    room = await portal(client, alice, GHOST)
    await alice.send(room, "held")
    assert bridge.texts == [] and not hs.pusher.idle
    hs.release_push()
    await hs.wait_pushed()
    assert bridge.texts == ["held"]
    last = hs.transactions[-1]
    assert await hs.push_again(last) and await hs.push_again(last, txn_id="another")
    assert bridge.texts == ["held"] * 3 and bridge.raw[-1][0] == "another"


@both
async def test_errors_of_the_ping(hs, bridge, client) -> None:
    async def ping() -> tuple[int, str]:
        status, body = await client(None, "POST", "appservice", "letta", "ping", api="client/v1")
        return status, body.get("errcode")

    assert await ping() == (200, None)
    bridge.status = 403
    assert await ping() == (502, "M_BAD_STATUS")
    hs.appservice_url = "http://127.0.0.1:9"
    assert await ping() == (502, "M_CONNECTION_FAILED")
    hs.appservice_url = ""
    assert await ping() == (400, "M_URL_NOT_SET")


async def test_unknown_routes_and_a_bug_of_the_fake_itself(bridge) -> None:
    with pytest.raises(ZeroDivisionError):
        async with FakeHomeserver() as hs:
            client = Client(hs)
            try:
                assert (await client(BOT, "GET", "sync"))[1]["errcode"] == "M_UNRECOGNIZED"
                hs.hs.room = lambda _: 1 // 0
                assert (await client(None, "POST", "rooms", "!r", "leave"))[0] == 500
            finally:
                await client.session.close()


# ---- people


async def test_a_person_sees_the_final_view(hs, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    say = ("PUT", "rooms", room, "send", "m.room.message")
    _, sent = await client(GHOST, *say, "1", body=message("draft"))
    gone = await alice.send(room, "gone")
    await alice.redact(room, gone)
    new = {**message("final"), "format": "org.matrix.custom.html", "formatted_body": "<b>final</b>", "m.mentions": {}}
    for number, body in enumerate((message("half"), new)):
        relates = {"rel_type": "m.replace", "event_id": sent["event_id"]}
        edit = {**message("* " + body["body"]), "m.new_content": body, "m.relates_to": relates}
        await client(GHOST, *say, f"e{number}", body=edit)
    await client(OTHER, "POST", "join", room)  # refused: no stranger can touch the message
    answer = await alice.reply(room, sent["event_id"], "thanks")
    await alice.react(room, sent["event_id"], "👍")
    first, second = alice.messages(room)
    assert (first.sender, first.body, first.formatted_body, first.edits_count) == (GHOST, "final", "<b>final</b>", 2)
    assert first.mentions == {} and first.event_id == sent["event_id"]
    assert (second.body, second.event_id, second.reply_to) == ("thanks", answer, sent["event_id"])
    assert alice.reactions(room, sent["event_id"]) == [(alice.mxid, "👍")]
    assert await alice.wait_message(room, sender=GHOST, text=re.compile("fin")) == first
    own = await alice.send(room, "tpyo")
    await alice.edit(room, own, "typo")
    assert (await alice.wait_message(room, text=lambda body: body == "typo")).event_id == own
    with pytest.raises(AssertionError, match=r"(?s)in vain.*thanks"):
        await alice.wait_message(room, text="never", timeout=0.02)


async def test_waiting_ends_with_the_event(hs, client, alice) -> None:
    room = await portal(client, alice, GHOST)
    waiting = asyncio.create_task(alice.wait_message(room, sender=GHOST))
    await client(GHOST, "PUT", "rooms", room, "send", "m.room.message", "1", body=message("here"))
    assert (await waiting).body == "here"
    event = alice.messages(room)[0].event_id
    await client(GHOST, "POST", "rooms", room, "receipt", "m.read", event)
    assert alice.receipts(room) == {GHOST: event}
    assert alice.rooms() == [room] and alice.members(room) == [alice.mxid, GHOST]


async def test_people_join_by_themselves_and_come_from_elsewhere(hs, client, alice) -> None:
    bob, eve = await hs.person("bob", auto_join=True), await hs.person("@eve:evil.example")
    assert await hs.person("bob") is bob
    _, made = await client(BOT, "POST", "createRoom", body={"invite": [bob.mxid, eve.mxid], "name": "N"})
    room = made["room_id"]
    await bob.wait_joined(room, bob.mxid)
    assert await eve.wait_invite() == room
    assert {"type": "m.room.name", "state_key": "", "content": {"name": "N"}, "sender": BOT} in eve.invites()[room]
    await eve.join(room)
    await eve.send(room, "hi from afar")
    await bob.wait_message(room, sender=eve.mxid)
    with pytest.raises(MatrixError) as refused:
        await eve.kick(room, bob.mxid)
    assert refused.value.errcode == "M_FORBIDDEN"
    with pytest.raises(MatrixError):
        await alice.invite(room, "@unknown:nowhere.example")
    with pytest.raises(MatrixError, match="M_EXCLUSIVE"):
        await hs.person("letta_intruder")
    await eve.leave(room)
    await bob.send(room, "without eve")
    assert [m.body for m in eve.messages(room)] == ["hi from afar"]


async def test_power_guards_encryption_and_the_space_lists_children(hs, client, alice) -> None:
    levels = {"events": {"m.room.encryption": 101}, "users": {BOT: 100}}
    room = await portal(client, alice, GHOST, room_version="11")
    await alice.set_power(room, GHOST, 50)
    status, _ = await client(GHOST, "PUT", "rooms", room, "state", "m.room.topic", body={"topic": "t"})
    assert status == 200 and (await alice.get_state(room, "m.room.topic")) == {"topic": "t"}
    body = {"power_level_content_override": levels, "room_version": "11", "preset": "public_chat"}
    _, made = await client(BOT, "POST", "createRoom", body=body)
    await alice.join(made["room_id"])
    with pytest.raises(MatrixError, match="user_level"):
        await alice.set_state(made["room_id"], "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    space = await alice.create_room(creation_content={"type": "m.space"})
    for child, order in ((room, "b"), (made["room_id"], "a")):
        await alice.set_state(space, "m.space.child", {"via": ["test.local"], "order": order}, child)
    assert alice.space_children(space) == [made["room_id"], room]


# ---- with mautrix, and the cost


@pytest.mark.filterwarnings("ignore:loop argument is deprecated")
async def test_mautrix_works_with_it(hs, bridge, alice) -> None:
    registration = example_registration()
    az = AppService(
        server=hs.url,
        domain=hs.domain,
        as_token=registration["as_token"],
        hs_token=registration["hs_token"],
        bot_localpart="lettabridge",
        id="letta",
        state_store=None,
    )
    await az.start("127.0.0.1", 0)
    try:
        await az.intent.ensure_registered()
        ghost = az.intent.user(UserID("@letta_mau:test.local"))
        await ghost.ensure_registered()
        await ghost.set_displayname("Mau")
        room = RoomID(await alice.create_dm(ghost.mxid))
        await ghost.ensure_joined(room)
        await ghost.send_message(room, TextMessageEventContent(msgtype=MessageType.TEXT, body="purr"))
        assert (await alice.wait_message(room, sender=ghost.mxid)).body == "purr"
        await ghost.set_typing(room, 5000)
        assert alice.typing(room) == [ghost.mxid]
        members = await ghost.get_joined_members(room)
        assert members[ghost.mxid].displayname == "Mau"
        state = await ghost.get_state_event(room, EventType.ROOM_POWER_LEVELS)
        assert state.get_user_level(UserID(alice.mxid)) in (0, 100)
    finally:
        await az.stop()


async def test_it_is_quick_and_leaves_nothing_behind() -> None:
    before, bridge = asyncio.all_tasks(), Bridge()
    async with FakeHomeserver(appservice_url=await bridge.start()) as hs:
        client = Client(hs)
        await client.register(GHOST)
        alice = await hs.person("alice")
        room = await portal(client, alice, GHOST)
        await hs.wait_pushed()
        begun = time.monotonic()
        for number in range(200):
            await alice.send(room, f"{number}")
            await hs.wait_pushed()
        assert (time.monotonic() - begun) / 200 < 0.02  # a few milliseconds, with room for a busy machine
        await alice.set_typing(room)
        await client.session.close()
    await bridge.runner.cleanup()
    assert bridge.texts == [f"{number}" for number in range(200)]
    assert asyncio.all_tasks() == before
