"""Transactions and events as nobody should send them: stored or said to be garbage, and nothing else is lost."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from .intake_kit import event_of, heard, nested, scene
from .world import World, until


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\xff\xfe garbage",
        b'{"events": [',
        b"[]",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"17",
        b"{}",
        b'{"events": null}',
        b'{"events": {"event_id": "$x"}}',
        b'{"events": "no"}',
        b'{"events": [], "ephemeral": 3, "to_device": "x", "device_lists": []}',
        b'{"events": [], "org.matrix.msc3202.device_one_time_keys_count": [1]}',
        b"[" * 100_000,
        b'{"events": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"a":' * 50_000,
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_what_is_no_transaction_is_answered_200_and_blocks_nothing(sqlite_world: World, body: bytes) -> None:
    world = sqlite_world
    at = await scene(world)
    assert await world.hs.push_raw(body) == (200, "{}")
    await at.alice.send(at.room, "still there?")
    await at.answered("still there?")


async def test_malformed_events_do_not_block_their_neighbours(world: World) -> None:
    at = await scene(world)
    good = event_of(at, "x")
    malformed: list[Any] = [
        None,
        3,
        "event",
        [],
        {},
        {**good, "event_id": None},
        {key: value for key, value in good.items() if key != "event_id"},
        {**good, "event_id": ""},
        {**good, "event_id": "$no-room", "room_id": 5},
        {**good, "event_id": "$no-sender", "sender": None},
        {**good, "event_id": "$no-content", "content": None},
        {**good, "event_id": "$list-content", "content": []},
        {**good, "event_id": "$no-type", "type": {}},
        {**good, "event_id": "$" + "long" * 300},
        {**good, "event_id": "$" + "ü" * 1023},
        {**good, "event_id": "$wide", "room_id": "!" + "🦊" * 1023},
        {**good, "event_id": "$wide2", "room_id": "!" + "🐻" * 1023},
    ]
    odd: list[dict[str, Any]] = [
        {**good, "event_id": "$c1", "content": {}},
        {**good, "event_id": "$c2", "content": {"msgtype": 5, "body": ["x"]}},
        {**good, "event_id": "$c3", "content": {"msgtype": "m.text", "body": "x", "format": [], "formatted_body": {}}},
        {**good, "event_id": "$c4", "unsigned": 3, "origin_server_ts": "yesterday", "prev_content": []},
        {**good, "event_id": "$c5", "content": {"msgtype": "m.text", "body": "x", "m.relates_to": 4, "m.mentions": []}},
        {**good, "event_id": "$c6", "content": {"m.relates_to": {"rel_type": "m.replace", "event_id": {}}}},
        {**good, "event_id": "$c7", "type": "m.reaction", "content": {"m.relates_to": {"key": 5, "event_id": []}}},
        {**good, "event_id": "$c8", "type": "m.room.redaction", "redacts": {"no": 1}, "content": {"redacts": 8}},
        {**good, "event_id": "$c9", "type": "m.room.member", "state_key": 5, "content": {"membership": "join"}},
        {**good, "event_id": "$ca", "type": "m.room.member", "state_key": "@x:y", "content": {"membership": {}}},
        {
            **good,
            "event_id": "$cb",
            "type": "m.room.member",
            "state_key": "@" + "x" * 60_000 + ":y",
            "content": {"membership": "join", "displayname": "z" * 60_000},
        },
        {**good, "event_id": "$cc", "type": "m.room.name", "state_key": "", "content": {"name": 3}},
        {**good, "event_id": "$cd", "origin_server_ts": 10**30},
        {**good, "event_id": "$ce", "origin_server_ts": float("nan")},
        {**good, "event_id": "$cf", "type": "m.room.encrypted", "content": {"algorithm": 5}},
    ]
    events: list[Any] = [event_of(at, "before them")]
    for number, bad in enumerate([*malformed, *odd]):
        events += [bad, event_of(at, f"neighbour {number}")]
    status, _ = await world.hs.push_raw(json.dumps({"events": events}).encode())
    assert status == 200
    await until(at.bridge.inbox_is_empty, timeout=20, why="a malformed event blocks its room")
    wanted = ["before them", *(f"neighbour {number}" for number in range(len(malformed) + len(odd)))]
    await until(lambda: set(wanted) <= set(heard(at)), why="a neighbour was lost")
    assert [text for text in heard(at) if text in wanted] == wanted
    reasons = await at.bridge.db.fetch("SELECT decision FROM inbox WHERE state = 'dead'")
    assert len(reasons) == len({json.dumps(bad) for bad in malformed})
    assert all(row["decision"].startswith("malformed: ") for row in reasons)


async def test_deep_nesting_takes_nothing_else_with_it(sqlite_world: World) -> None:
    """Homeservers take what they can parse; a few levels less on our side must not cost the whole batch."""
    world = sqlite_world
    at = await scene(world)
    depths = [10, 90, 200, *range(900, 1000, 3), 1500, 20_000]
    for depth in depths:
        deep = json.dumps(event_of(at, f"deep {depth}"))[:-2] + f', "x": {nested(depth)}}}}}'
        good = json.dumps(event_of(at, f"beside {depth}"))
        assert await world.hs.push_raw(f'{{"events": [{deep}, {good}]}}'.encode()) == (200, "{}"), depth
    await until(at.bridge.inbox_is_empty, timeout=20, why="a deep event blocks its room")
    await until(lambda: {f"beside {depth}" for depth in depths} <= set(heard(at)), why="a neighbour was lost")
    assert [text for text in heard(at) if text.startswith("deep")] == ["deep 10", "deep 90"]


async def test_numbers_that_python_refuses_take_nothing_else_with_them(sqlite_world: World) -> None:
    world = sqlite_world
    at = await scene(world)
    huge = json.dumps(event_of(at, "huge"))[:-1] + ', "origin_server_ts": ' + "9" * 6000 + "}"
    good = json.dumps(event_of(at, "beside it"))
    body = f'{{"events": [{huge}, {good}], "note": "}} ] \\" [ {{"}}'
    assert await world.hs.push_raw(body.encode()) == (200, "{}")
    await at.answered("beside it")


async def test_nul_and_lone_surrogates_in_every_string(world: World) -> None:
    at = await scene(world)
    dirty = "a\x00b\ud800c"
    base = event_of(at, "clean")
    events: list[dict[str, Any]] = []
    for key in ("event_id", "room_id", "sender", "type", "state_key"):
        events.append({**base, "event_id": f"$dirty-{key}", key: f"{base.get(key, '')}{dirty}"})
    events.append(event_of(at, f"dirty {dirty} body"))
    for number, content in enumerate(
        [
            {"msgtype": "m.text", "body": "x", "format": "org.matrix.custom.html", "formatted_body": f"<b>{dirty}</b>"},
            {"msgtype": dirty, "body": dirty, "filename": dirty},
            {"msgtype": "m.text", "body": "x", "m.relates_to": {"m.in_reply_to": {"event_id": dirty}}},
            {"msgtype": "m.text", "body": "x", "m.relates_to": {"rel_type": "m.thread", "event_id": dirty}},
            {
                "msgtype": "m.text",
                "body": "x",
                "m.relates_to": {"rel_type": "m.replace", "event_id": dirty},
                "m.new_content": {"msgtype": "m.text", "body": dirty},
            },
            {"msgtype": "m.text", "body": "x", "m.mentions": {"user_ids": [dirty]}},
            {dirty: dirty, "msgtype": "m.text", "body": "x"},
        ]
    ):
        events.append({**base, "event_id": f"$content-{number}", "content": content})
    members = [
        ("@dirty:test.local", {"membership": "join", "displayname": dirty}),
        (f"@{dirty}:test.local", {"membership": "join"}),
        ("@mem:test.local", {"membership": dirty}),
    ]
    for number, (key, content) in enumerate(members):
        events.append(
            {**base, "event_id": f"$m-{number}", "type": "m.room.member", "state_key": key, "content": content}
        )
    events.append({**base, "event_id": "$name", "type": "m.room.name", "state_key": "", "content": {"name": dirty}})
    for number, bad in enumerate([{"redacts": dirty}, {"m.relates_to": {"rel_type": "m.annotation", "key": dirty}}]):
        kind = "m.room.redaction" if number == 0 else "m.reaction"
        events.append({**base, "event_id": f"$r-{number}", "type": kind, "content": bad})
    status, _ = await world.hs.push_raw(json.dumps({"events": events}).encode())
    assert status == 200
    await until(at.bridge.inbox_is_empty, timeout=20, why="a dirty string blocks its room")
    dead = await at.bridge.db.fetch("SELECT event_id, decision FROM inbox WHERE state = 'dead'")
    assert [tuple(row) for row in dead] == []
    await at.alice.send(at.room, f"{world.puppet(at.agent)} after them")
    await until(lambda: any("after them" in text for text in heard(at)))
    texts = [text for turn in world.letta.turns(at.agent) for text in turn.texts]
    assert any("dirty a" in text for text in texts)
    for text in texts:
        text.encode()
        assert "\x00" not in text


async def test_a_quoted_message_of_the_homeserver_may_be_dirty_too(world: World) -> None:
    """A reply to something said before the agent came: its text is asked for, not pushed."""
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    room = await alice.create_room(preset="private_chat")
    old = await alice.send(room, "old \x00 words")
    await alice.invite(room, world.puppet(agent))
    await alice.wait_joined(room, world.puppet(agent))
    await alice.reply(room, old, "what does this mean?")
    await until(lambda: world.letta.turns(agent), why="the quote blocks its reply")
    [text] = world.letta.turns(agent)[0].texts
    assert "words" in text and "\x00" not in text


# -- sizes


async def test_a_transaction_of_30_mb_is_stored(world: World) -> None:
    at = await scene(world)
    filler = "x" * 60_000
    other = [{**event_of(at, filler), "type": "org.example.bulk"} for _ in range(500)]
    body = json.dumps({"events": [*other, event_of(at, "after 30 MB")]}).encode()
    assert len(body) > 30_000_000
    begun = time.monotonic()
    assert await world.hs.push_raw(body) == (200, "{}")
    assert time.monotonic() - begun < 20
    assert await at.bridge.db.fetchval("SELECT COUNT(*) FROM inbox WHERE type = 'org.example.bulk'") == 500
    await at.answered("after 30 MB", timeout=30)


async def test_an_event_of_64_kib_is_read_whole(sqlite_world: World) -> None:
    at = await scene(sqlite_world)
    text = "The end of this is what matters. " * 1950 + "THE END"
    await at.alice.send(at.room, text)
    await until(lambda: text in heard(at), timeout=10)
