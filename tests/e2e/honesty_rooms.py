"""The script, second half: sending, relations, power, aliases, history, notifications, spaces, pushing."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from .honesty_kit import TEXT, Script


async def what_may_be_sent(s: Script) -> None:
    r = await s.room("letta_g")
    for number, (kind, body) in enumerate(
        (
            ("m.room.message", {"body": "x" * 64_000, "msgtype": "m.text"}),
            ("m.room.message", {"body": "x" * 65_200, "msgtype": "m.text"}),
            ("m.room.message", {"body": "x" * 70_000, "msgtype": "m.text"}),
            ("m.room.message", {}),
            ("m.room.message", {"body": "x"}),
            ("m.room.message", {"body": 5, "msgtype": "m.text"}),
            ("m.room.message", {"msgtype": "m.text", "body": "nul\0"}),
            ("m.room.message", {"msgtype": "m.text", "body": "half \ud83d"}),
            ("m.room.message", {**TEXT, "m.relates_to": "bad"}),
            ("m.room.message", {**TEXT, "m.relates_to": {"m.in_reply_to": {"event_id": "$no"}}}),
            ("m.room.message", {**TEXT, "m.relates_to": {"rel_type": "m.thread", "event_id": "$no"}}),
            ("m.room.message", b"{"),
            ("m.room.message", b"[]"),
            ("m.room.message", b'"\xff"'),
            ("m.room.member", {}),
            ("m.room.topic", {}),
            ("m.room.redaction", {}),
            ("m.room.encrypted", {"a": 1}),
            ("t" * 300, {}),
        )
    ):
        await s.call("letta_g", "PUT", "rooms", r, "send", kind, f"n{number}", body=body)
    await s.call("letta_g", "PUT", "rooms", r, "send", "m.room.message", "ts", body=TEXT, ts=12345)
    await s.call("letta_g", "PUT", "rooms", r, "send", "m.room.message", "tx", body=TEXT, ts="x")
    await s.call("alice", "PUT", "rooms", r, "send", "m.room.message", "ta", body=TEXT, ts=12345)
    times = [
        e["origin_server_ts"] for e in (await s.call("alice", "GET", "rooms", r, "messages", dir="b", limit=2))["chunk"]
    ]
    s.note("times", [stamp == 12345 for stamp in times])


async def relations(s: Script) -> None:
    r, other = await s.room("letta_g"), await s.room("letta_g")

    async def send(who: str, txn: str, kind: str = "m.room.message", **relates: Any) -> str:
        body = {**(TEXT if kind == "m.room.message" else {}), "m.relates_to": relates}
        answer = await s.call(who, "PUT", "rooms", r, "send", kind, txn, body=body)
        return str(answer.get("event_id"))

    m = (await s.call("alice", "PUT", "rooms", r, "send", "m.room.message", "m", body=TEXT))["event_id"]
    like = {"rel_type": "m.annotation", "event_id": m, "key": "👍"}
    reaction = await send("letta_g", "r1", "m.reaction", **like)
    await send("letta_g", "r2", "m.reaction", **like)
    await send("alice", "r3", "m.reaction", **like)
    await send("letta_g", "r4", "m.reaction", rel_type="m.annotation", event_id=m)
    await send("letta_g", "r5", "m.reaction", rel_type="m.annotation", event_id="$no", key="x")
    edit = await send("alice", "e1", rel_type="m.replace", event_id=m)
    await send("letta_g", "e2", rel_type="m.replace", event_id=m)
    await send("letta_g", "th1", rel_type="m.thread", event_id=m)
    await send("alice", "th2", rel_type="m.thread", event_id=edit)
    await s.call("bob", "GET", "rooms", r, "event", m)
    await s.call("alice", "GET", "rooms", other, "event", m)
    await s.call("alice", "GET", "rooms", r, "event", "$no")
    await s.call("alice", "GET", "rooms", r, "relations", m, api="client/v1")
    await s.call("alice", "GET", "rooms", r, "relations", m, api="client/v1", limit=2)
    await s.call("alice", "GET", "rooms", r, "relations", m, "m.annotation", api="client/v1", dir="f")
    await s.call("alice", "GET", "rooms", r, "relations", m, "m.replace", "m.room.message", api="client/v1")
    await s.call("alice", "GET", "rooms", r, "relations", "$no", api="client/v1")
    await s.call("bob", "GET", "rooms", r, "relations", m, api="client/v1")
    await s.call("letta_g", "PUT", "rooms", r, "redact", m, "x1", body={"reason": "x"})
    await s.call("letta_g", "PUT", "rooms", r, "redact", "$no", "x2")
    await s.call("letta_g", "PUT", "rooms", r, "send", "m.room.redaction", "x3", body={"redacts": reaction, "extra": 2})
    await send("letta_g", "r6", "m.reaction", **like)
    await s.call("alice", "PUT", "rooms", r, "redact", m, "x4", body={"reason": "x", "extra": 1})
    await s.call("alice", "PUT", "rooms", r, "redact", m, "x4", body={"reason": "again"})
    await s.call("alice", "PUT", "rooms", r, "redact", m, "x5")
    await s.call("alice", "PUT", "rooms", r, "redact", "$no", "x6")
    await s.call("alice", "PUT", "rooms", other, "redact", edit, "x7")
    await s.call("bob", "PUT", "rooms", r, "redact", m, "x8")
    await s.call("alice", "GET", "rooms", r, "messages", dir="b", limit=5)


async def power(s: Script) -> None:
    r = await s.room("letta_g", "letta_h")
    a, g = s.user("alice"), s.user("letta_g")
    levels = await s.call("alice", "GET", "rooms", r, "state", "m.room.power_levels")

    async def give(who: str, **users: Any) -> None:
        changed = {**levels, "users": {**levels["users"], **users}}
        await s.call(who, "PUT", "rooms", r, "state", "m.room.power_levels", body=changed)

    await give("letta_g", **{g: 100})
    await give("alice", **{g: 50})
    await s.call("letta_g", "PUT", "rooms", r, "state", "m.room.topic", body={"topic": "mine"})
    await s.call("letta_g", "PUT", "rooms", r, "state", "m.room.encryption", body={"algorithm": "m.megolm.v1.aes-sha2"})
    await s.call("letta_h", "PUT", "rooms", r, "state", "m.room.topic", body={"topic": "mine"})
    await give("letta_g", **{g: 100})
    await give("alice", **{g: 100})
    await give("letta_g", **{a: 0, g: 100})
    await give("alice", **{g: 101})
    await give("alice", **{g: "100"})
    await give("alice", **{"bad": 1})
    for _ in range(2):
        await s.call("alice", "PUT", "rooms", r, "state", "m.room.topic", body={"topic": "same"})
    await s.call("letta_g", "PUT", "rooms", r, "state", "m.room.topic", body={"topic": "same"})
    await s.call("alice", "PUT", "rooms", r, "state", "x.y", g, body={})
    await s.call("alice", "PUT", "rooms", r, "state", "x.y", "a/b c", body={"k": 1})
    await s.call("alice", "GET", "rooms", r, "state", "x.y", "a/b c")
    await s.call("alice", "PUT", "rooms", r, "state", "m.room.name", body={})
    await s.call("alice", "PUT", "rooms", r, "state", "m.room.topic", body=b"[]")
    await s.call("alice", "PUT", "rooms", r, "state", "m.room.canonical_alias", body={"alias": f"#none:{s.domain}"})
    await s.call("alice", "PUT", "rooms", r, "state", "m.room.canonical_alias", body={"alias": "bad"})
    await s.call("alice", "GET", "rooms", r, "state", "no.such")
    await s.call("alice", "GET", "rooms", r, "state", "m.room.topic", format="event")


async def aliases(s: Script) -> None:
    r = await s.room("letta_g")
    ours, theirs = f"#letta_x{s.tag}:{s.domain}", f"#human{s.tag}:{s.domain}"
    for who, alias in (("alice", ours), ("bob", theirs), ("letta_g", theirs), ("letta_g", ours), ("bot", ours)):
        await s.call(who, "PUT", "directory", "room", alias, body={"room_id": r})
    await s.call("alice", "PUT", "directory", "room", theirs, body={"room_id": r})
    await s.call("bot", "PUT", "directory", "room", f"#letta_y:{s.domain}", body={"room_id": f"!no:{s.domain}"})
    await s.call("bot", "PUT", "directory", "room", f"#letta_y:{s.domain}", body={})
    await s.call("bot", "PUT", "directory", "room", "#letta_y:other.example", body={"room_id": r})
    for alias in (ours, theirs, f"#none:{s.domain}", f"#letta_none{s.tag}:{s.domain}", "garbage"):
        await s.call("bob", "GET", "directory", "room", alias)
    await s.call("alice", "GET", "rooms", r, "aliases")
    await s.call("letta_g", "PUT", "rooms", r, "state", "m.room.canonical_alias", body={"alias": ours})
    await s.call("alice", "PUT", "rooms", r, "state", "m.room.canonical_alias", body={"alias": ours})
    await s.call("bob", "DELETE", "directory", "room", theirs)
    for who, alias in (("alice", theirs), ("alice", theirs), ("letta_g", ours), ("letta_g", ours)):
        await s.call(who, "DELETE", "directory", "room", alias)
    await s.call("alice", "GET", "rooms", r, "state", "m.room.canonical_alias")
    s.note("asked", [name for name in s.inbox.asked if s.tag in name])


async def rooms_given_up(s: Script) -> None:
    """A room that its members leave one after the other, and what is left of it and of them."""
    name = f"letta_z{s.tag}"
    alias = f"#{name}:{s.domain}"
    r = await s.room("letta_g", who="bot", room_alias_name=name)
    await s.call("bot", "POST", "rooms", r, "invite", body={"user_id": s.user("letta_h")})
    await s.call("letta_g", "POST", "rooms", r, "forget")
    for user in ("letta_g", "bot"):
        await s.call(user, "POST", "rooms", r, "leave", body={"reason": "not used any more"})
        await s.call(user, "POST", "rooms", r, "forget")
        await s.call(user, "POST", "rooms", r, "forget")
        await s.call(user, "GET", "rooms", r, "state", "m.room.name")
        await s.call(user, "GET", "rooms", r, "joined_members")
    await s.call("letta_g", "GET", "rooms", r, "state", "m.room.create")
    await s.call("letta_h", "POST", "join", r)
    await s.call("bot", "POST", "rooms", r, "join")
    await s.call("bot", "PUT", "rooms", r, "state", "m.room.name", body={"name": "x"})
    await s.call("bob", "GET", "directory", "room", alias)
    await s.call("bob", "POST", "join", alias)
    await s.call("bot", "DELETE", "directory", "room", alias)
    await s.call("bot", "DELETE", "directory", "room", alias)
    await s.call("bob", "GET", "directory", "room", alias)
    await s.call("letta_h", "POST", "rooms", r, "leave")
    await s.call("letta_g", "GET", "joined_rooms")


async def names_that_nobody_has(s: Script) -> None:
    """People invite whom there is not."""
    r = await s.room()
    for nobody in ("letta_nobody", "nobody"):
        await s.call("alice", "POST", "rooms", r, "invite", body={"user_id": s.user(nobody)})
    await s.call("alice", "GET", "profile", s.user("letta_nobody"))
    for method, *path in (("GET", "joined_rooms"), ("POST", "rooms", r, "leave"), ("POST", "account", "deactivate")):
        await s.call("letta_nobody", method, *path)
    await s.call("letta_nobody", "PUT", "profile", s.user("letta_nobody"), "displayname", body={"displayname": ""})
    await s.call("alice", "GET", "rooms", r, "members")


def history(openness: str) -> Callable[[Script], Awaitable[None]]:
    async def seen(s: Script) -> None:
        state = [{"type": "m.room.history_visibility", "content": {"history_visibility": openness}}]
        r = await s.room(initial_state=state)
        count = iter(range(99))

        async def say(text: str) -> str:
            body = {**TEXT, "body": text}
            answer = await s.call("alice", "PUT", "rooms", r, "send", "m.room.message", f"h{next(count)}", body=body)
            return str(answer["event_id"])

        async def look(**query: Any) -> Any:
            page = await s.call("letta_g", "GET", "rooms", r, "messages", **query)
            s.note("keys", sorted(page))
            return page

        invite = {"user_id": s.user("letta_g")}
        before = await say("before")
        await s.call("alice", "POST", "rooms", r, "invite", body=invite)
        invited = await say("invited")
        await s.call("letta_g", "POST", "join", r)
        await say("joined")
        await look(dir="b", limit=50)
        await s.call("letta_g", "GET", "rooms", r, "event", before)
        await s.call("letta_g", "GET", "rooms", r, "context", before, limit=2)
        await s.call("letta_g", "POST", "rooms", r, "leave")
        await say("left")
        await look(dir="b", limit=50)
        await s.call("letta_g", "GET", "rooms", r, "state", "m.room.member", s.user("letta_g"))
        await s.call("alice", "POST", "rooms", r, "invite", body=invite)
        await say("invited again")
        await look(dir="b")
        await s.call("letta_g", "POST", "join", r)
        await say("joined again")
        page = await look(dir="b", limit=3)
        await look(dir="b", limit=4, from_=page["end"])
        await look(dir="f", limit=50, from_=page["end"])
        await look(dir="b", limit=50, from_=page["start"], to=page["end"])
        await look(dir="f", limit=50, from_=page["start"])
        await look(dir="f", limit=4)
        await look(dir="b", limit=50, filter=json.dumps({"types": ["m.room.message"]}))
        await look(dir="b", filter="{")
        for query in ({"dir": "x"}, {"dir": "b", "limit": "x"}, {"dir": "b", "limit": -1}, {"dir": "b", "limit": 0}):
            await look(**query)
        await look(dir="b", from_="garbage")
        await s.call("letta_g", "GET", "rooms", r, "context", invited, limit=4)

    seen.__name__ = f"history_visibility_{openness}"
    return seen


async def notifications(s: Script) -> None:
    r = await s.room("letta_g")
    a, g = s.user("alice"), s.user("letta_g")
    m = (await s.call("alice", "PUT", "rooms", r, "send", "m.room.message", "m", body=TEXT))["event_id"]
    for who, target, body in (
        ("letta_g", g, {"typing": True, "timeout": 5000}),
        ("letta_g", s.user("letta_h"), {"typing": True}),
        ("letta_g", g, {}),
        ("alice", a, {"typing": True, "timeout": "x"}),
        ("bob", s.user("bob"), {"typing": True}),
        ("letta_g", g, {"typing": False}),
    ):
        await s.call(who, "PUT", "rooms", r, "typing", target, body=body)
    for who, kind, event, body in (
        ("letta_g", "m.read", m, {}),
        ("letta_g", "m.read", m, {"thread_id": "main"}),
        ("letta_g", "m.read", m, {"thread_id": m}),
        ("letta_g", "m.read", m, {"thread_id": 5}),
        ("letta_g", "m.read.private", m, {}),
        ("letta_g", "foo", m, {}),
        ("letta_g", "m.read", "$no", {}),
        ("bob", "m.read", m, {}),
    ):
        await s.call(who, "POST", "rooms", r, "receipt", kind, event, body=body)
    await s.call("letta_g", "POST", "rooms", r, "read_markers", body={"m.fully_read": m, "m.read": m})


async def spaces(s: Script) -> None:
    space = await s.room(who="bot", creation_content={"type": "m.space"}, name="Space")
    names = []
    for index, order in enumerate(("c", "b", "a", None)):
        body = {"name": f"child {index}", "topic": "t", "invite": [s.user("alice")] if index else []}
        names.append(await s.room(who="bot", **body))
        child = {"via": [s.domain], **({"order": order} if order else {})}
        await s.call("bot", "PUT", "rooms", space, "state", "m.space.child", names[-1], body=child)
    await s.call("bot", "PUT", "rooms", space, "state", "m.space.child", f"!gone:{s.domain}", body={"via": [s.domain]})
    await s.call("bot", "PUT", "rooms", space, "state", "m.space.child", names[3], body={})
    await s.call("bot", "GET", "rooms", space, "hierarchy", api="client/v1")
    page = await s.call("bot", "GET", "rooms", space, "hierarchy", api="client/v1", limit=2)
    await s.call("bot", "GET", "rooms", space, "hierarchy", api="client/v1", limit=2, from_=page["next_batch"])
    await s.call("bob", "GET", "rooms", space, "hierarchy", api="client/v1")
    await s.call("bot", "GET", "rooms", space, "hierarchy", api="client/v1", from_="bad")
    await s.call("bot", "POST", "rooms", space, "invite", body={"user_id": s.user("alice")})
    await s.call("alice", "POST", "join", space)
    await s.call("alice", "GET", "rooms", space, "hierarchy", api="client/v1")


async def _edus_come_through(s: Script) -> None:
    """Synapse drops EDUs while it catches up, as it does when the test before ended in the middle of a push."""
    kept, room, typing = len(s.lines), await s.room("letta_g"), True
    async with asyncio.timeout(20):
        while not any(edu["room_id"] == room for edu in s.inbox.edus):
            body = {"typing": typing, "timeout": 30000}
            await s.call("alice", "PUT", "rooms", room, "typing", s.user("alice"), body=body)
            await asyncio.sleep(0.1)
            typing = not typing
    del s.lines[kept:]


async def what_is_pushed(s: Script) -> None:
    """The first text of a direct chat, said before the ghost joins, is never pushed; the rest is, in order."""
    a, g = s.user("alice"), s.user("letta_g")
    count = iter(range(99))

    async def say(room: str, text: str) -> str:
        body = {**TEXT, "body": text}
        answer = await s.call("alice", "PUT", "rooms", room, "send", "m.room.message", f"p{next(count)}", body=body)
        return str(answer["event_id"])

    def ours() -> list[dict[str, Any]]:
        return [event for event in s.inbox.events if event["room_id"] == r]

    def receipts() -> list[Any]:
        return [edu["content"] for edu in s.inbox.edus if edu["type"] == "m.receipt" and edu["room_id"] == r]

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.02)

    async def pushed(which: Callable[[dict[str, Any]], bool]) -> None:
        await until(lambda: any(map(which, ours())))

    await _edus_come_through(s)
    r = await s.room("letta_g", join=False, preset="trusted_private_chat", is_direct=True)
    await say(r, "not pushed")
    await s.call("alice", "PUT", "rooms", r, "typing", a, body={"typing": True, "timeout": 30000})
    await s.call("letta_g", "POST", "join", r)
    m = await say(r, "pushed")
    await s.call("letta_g", "PUT", "rooms", r, "send", "m.room.message", "echo", body=TEXT)
    await s.call("alice", "POST", "rooms", r, "receipt", "m.read.private", m)
    await s.call("alice", "POST", "rooms", r, "receipt", "m.read", m)
    await until(lambda: bool(receipts()))
    await s.call("alice", "POST", "rooms", r, "invite", body={"user_id": s.user("letta_unknown")})
    await s.call("alice", "PUT", "rooms", r, "redact", m, "gone")
    await s.call("letta_g", "PUT", "profile", g, "displayname", body={"displayname": f"New {s.tag}"})
    await pushed(lambda event: event["content"].get("displayname") == f"New {s.tag}")
    await s.call("letta_g", "POST", "rooms", r, "leave")
    await say(r, "not pushed either")
    last = f"letta_last{s.tag}"
    await s.call("alice", "POST", "rooms", r, "invite", body={"user_id": f"@{last}:{s.domain}"})

    await pushed(lambda event: last in str(event.get("state_key")))
    for event in ours():
        # whether the redaction ran before the push of its target is a race on both servers
        for key in ("redacted_because", "redacted_by"):
            event.pop(key, None)
            event["unsigned"].pop(key, None)
        if event["event_id"] == m:
            event["content"] = {}
        s.note("pushed", event)
    s.note("asked", [name for name in s.inbox.asked if name.endswith(f"{s.tag}:{s.domain}")])
    s.note("receipts", receipts())
    s.note("keys of a transaction", sorted(key for key in s.inbox.bodies[-1] if "msc3202" not in key))
