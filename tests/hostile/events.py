"""Events as no client makes them: realistic ones, with something wrong at one or several places."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from .damage import ODD, damage, to_json


@dataclass(frozen=True)
class Place:
    """What the events of a fuzzing run refer to."""

    room: str
    person: str
    puppet: str
    bot: str
    known_event: str


def to_bytes(events: list[Any]) -> bytes:
    """A transaction's body."""
    return to_json({"events": events}).encode()


def _content_shapes(place: Place) -> list[tuple[str, dict[str, Any]]]:
    """Realistic contents by their types. Nothing here stops an agent or turns it out of its room."""
    text = {"msgtype": "m.text", "body": "a message"}
    rich = {**text, "format": "org.matrix.custom.html", "formatted_body": "<b>a</b> <a href='https://x.y'>m</a>essage"}
    edit = {**text, "m.new_content": dict(text), "m.relates_to": {"rel_type": "m.replace", "event_id": "$no"}}
    poll = {"question": {"m.text": "?"}, "answers": [{"id": "1", "m.text": "yes"}], "kind": "m.disclosed"}
    file = {
        "url": "mxc://test.local/abc",
        "info": {"mimetype": "image/png", "size": 5, "w": 1, "h": 1},
        "body": "x.png",
    }
    in_reply = {"m.in_reply_to": {"event_id": place.known_event}}
    thread = {"rel_type": "m.thread", "event_id": place.known_event, "is_falling_back": True, **in_reply}
    annotation = {"rel_type": "m.annotation", "event_id": "$no", "key": "👍"}
    return [
        ("m.room.message", text),
        ("m.room.message", rich),
        ("m.room.message", {**text, "m.mentions": {"user_ids": [place.puppet, place.person], "room": True}}),
        ("m.room.message", {**rich, "m.relates_to": in_reply, "m.mentions": {"user_ids": [place.puppet]}}),
        ("m.room.message", {**text, "m.relates_to": thread}),
        ("m.room.message", edit),
        ("m.room.message", {**edit, "m.relates_to": {"rel_type": "m.replace", "event_id": place.known_event}}),
        ("m.room.message", {**text, "msgtype": "m.emote"}),
        ("m.room.message", {**text, "msgtype": "m.notice"}),
        ("m.room.message", {**file, "msgtype": "m.image"}),
        ("m.room.message", {**file, "msgtype": "m.audio", "org.matrix.msc3245.voice": {}}),
        ("m.room.message", {**text, "msgtype": "m.location", "geo_uri": "geo:1,2"}),
        ("m.room.message", {**text, "m.relates_to": {"rel_type": "m.reference", "event_id": "$no"}}),
        ("m.reaction", {"m.relates_to": annotation}),
        ("m.reaction", {"m.relates_to": {**annotation, "key": "🛑"}}),
        ("m.room.redaction", {"redacts": "$no", "reason": "because"}),
        ("m.room.encrypted", {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA", "session_id": "s"}),
        ("m.sticker", {"body": "s", "url": "mxc://test.local/abc", "info": {}}),
        ("m.poll.start", {"m.poll": poll}),
        ("m.call.invite", {"call_id": "1", "lifetime": 6000, "offer": {"sdp": "x", "type": "offer"}, "version": 1}),
    ]


def _state_shapes(place: Place) -> list[tuple[str, str, dict[str, Any]]]:
    member = {"membership": "join", "displayname": "Mallory", "avatar_url": "mxc://test.local/abc"}
    kinds = [(place.person, kind) for kind in ("join", "leave", "knock")]
    kinds += [("@mallory:elsewhere", kind) for kind in ("join", "invite", "ban")]
    return [
        *(("m.room.member", who, {**member, "membership": kind}) for who, kind in kinds),
        ("m.room.name", "", {"name": "A room"}),
        ("m.room.topic", "", {"topic": "A topic"}),
        ("m.room.encryption", "", {"algorithm": "m.megolm.v1.aes-sha2"}),
        ("m.room.power_levels", "", {"users": {place.person: 100}, "events": {}}),
        ("m.room.tombstone", "", {"body": "moved", "replacement_room": "!other:test.local"}),
        ("m.room.create", "", {"room_version": "12", "creator": place.person}),
    ]


ROOMS = ["!old:test.local", "!" + "A" * 43, "!v12_-hash", "!", "", "a/b", "..", "!x:y:z/%2f", "!" + "r" * 300, "!é:ü"]


@st.composite
def base_events(draw: st.DrawFn, place: Place) -> dict[str, Any]:
    """A realistic event; now and then of another room, or about one of ours there."""
    event: dict[str, Any] = {
        "event_id": f"$fuzz-{draw(st.uuids())}",
        "room_id": place.room,
        "sender": draw(st.sampled_from([place.person, place.person, "@mallory:elsewhere", place.puppet, place.bot])),
        "origin_server_ts": 1_700_000_000_000,
        "unsigned": {"age": 5, "transaction_id": "t", "prev_content": {}},
    }
    if draw(st.integers(0, 9)) == 0:  # elsewhere: there one of ours may come and go
        event["room_id"] = draw(st.sampled_from(ROOMS))
        if draw(st.booleans()):
            about = draw(st.sampled_from([place.puppet, place.bot, "@letta_nobody:test.local"]))
            membership = draw(st.sampled_from(["invite", "join", "leave", "ban", "knock"]))
            sender = draw(st.sampled_from([event["sender"], about]))
            content = {"membership": membership, "displayname": "x"}
            return {**event, "type": "m.room.member", "state_key": about, "sender": sender, "content": content}
    if draw(st.integers(0, 3)):
        kind, content = draw(st.sampled_from(_content_shapes(place)))
        return {**event, "type": kind, "content": copy.deepcopy(content)}
    kind, key, content = draw(st.sampled_from(_state_shapes(place)))
    return {**event, "type": kind, "state_key": key, "content": copy.deepcopy(content)}


@st.composite
def hostile_events(draw: st.DrawFn, place: Place) -> Any:
    """An event with up to three things wrong; rarely, something that is no event at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(ODD)
    event: dict[str, Any] = draw(base_events(place))
    damage(draw, event, draw(st.sampled_from([0, 1, 1, 1, 2, 3])))
    return event if _stays(event, place) else draw(base_events(place))


def _stays(event: Any, place: Place) -> bool:
    """Not an event by which the homeserver would tell that the agent is not in its room any more."""
    ours = event.get("state_key") in (place.puppet, place.bot)
    return not (ours and event.get("room_id") == place.room and event.get("type") == "m.room.member")
