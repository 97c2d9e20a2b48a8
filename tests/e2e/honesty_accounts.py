"""The script, first half: users, devices, creating rooms, membership, transaction ids."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .honesty_kit import TEXT, Script


async def who_is_who(s: Script) -> None:
    await s.call(None, "GET", "versions", api="client")
    await s.call(None, "GET", "account", "whoami")
    await s.call("alice", "GET", "account", "whoami")
    await s.call("bot", "GET", "account", "whoami")
    await s.call("letta_new", "GET", "account", "whoami")
    await s.call("letta_new", "POST", "createRoom")
    await s.call("letta_new", "PUT", "devices", "D")
    await s.call("stranger", "GET", "account", "whoami")
    kind = {"type": "m.login.application_service"}
    name = f"letta_new{s.tag}"
    await s.call("bot", "POST", "register", body={**kind, "username": name})
    await s.call("bot", "POST", "register", body={**kind, "username": name, "inhibit_login": True})
    await s.call("letta_new", "GET", "account", "whoami")
    await s.call("bot", "POST", "register", body={**kind, "username": f"letta_two{s.tag}", "inhibit_login": True})
    await s.call("bot", "POST", "register", body={**kind, "username": f"human{s.tag}", "inhibit_login": True})
    await s.call("bot", "POST", "register", body={**kind, "inhibit_login": True})
    await s.call("bot", "POST", "register", body={"username": "x", "inhibit_login": True})
    await s.call(None, "POST", "register", body={"username": "x"})
    await s.call("alice", "POST", "register", body={**kind, "username": name, "inhibit_login": True})
    await s.call("bot", "POST", "register", body=b"{")
    await s.call("bot", "POST", "register", body=b"[]")


async def devices_and_profiles(s: Script) -> None:
    g = s.user("letta_g")
    for name in ("D1", "D1"):
        await s.call("letta_g", "PUT", "devices", name, body={"display_name": "x"})
    await s.call("letta_g", "GET", "devices")
    await s.call("letta_g", "GET", "devices", "D1")
    await s.call("letta_g", "GET", "devices", "D2")
    await s.call("letta_g", "GET", "account", "whoami", device="D1")
    await s.call("letta_g", "GET", "account", "whoami", device="D2")
    await s.call("letta_g", "GET", "account", "whoami", **{"org.matrix.msc3202.device_id": "D1"})
    await s.call("letta_g", "DELETE", "devices", "D1", body={})
    await s.call("letta_g", "DELETE", "devices", "D1", body={})
    await s.call("alice", "PUT", "devices", "D1")
    await s.call("alice", "DELETE", "devices", "D1", body={})
    await s.call("letta_g", "GET", "profile", g)
    await s.call(None, "GET", "profile", g, "displayname")
    await s.call(None, "GET", "profile", g, "avatar_url")
    await s.call(None, "GET", "profile", s.user("letta_nobody"))
    await s.call(None, "GET", "profile", "@a:other.example")
    await s.call(None, "GET", "profile", "garbage")
    await s.call("letta_g", "PUT", "profile", g, "displayname", body={"displayname": "Ghost"})
    await s.call("letta_g", "PUT", "profile", g, "avatar_url", body={"avatar_url": "mxc://a/b"})
    await s.call("letta_g", "PUT", "profile", g, "displayname", body={})
    await s.call("letta_g", "PUT", "profile", g, "displayname", body={"displayname": 5})
    await s.call("letta_g", "PUT", "profile", g, "displayname", body={"displayname": "x" * 300})
    await s.call("letta_g", "PUT", "profile", s.user("alice"), "displayname", body={"displayname": "x"})
    await s.call("bot", "PUT", "profile", g, "displayname", body={"displayname": "x"})
    await s.call("letta_g", "PUT", "profile", "@a:other.example", "displayname", body={"displayname": "x"})
    await s.call("letta_g", "PUT", "profile", g, "org.example.field", body={"org.example.field": {"a": 1}})
    await s.call("letta_g", "PUT", "profile", g, "org.example.field", body={"wrong": 1})
    await s.call("letta_g", "PUT", "profile", g, "UPPER", body={"UPPER": 1})
    await s.call("letta_g", "GET", "profile", g, "org.example.field")
    await s.call("letta_g", "GET", "profile", g, "org.example.none")
    await s.call("letta_g", "GET", "profile", g)
    await s.call("letta_g", "DELETE", "profile", g, "org.example.field")
    await s.call("letta_g", "GET", "profile", g)
    await s.call("letta_g", "PUT", "profile", g, "displayname", body={"displayname": ""})
    await s.call("letta_g", "PUT", "profile", g, "avatar_url", body={"avatar_url": ""})
    for path in ((), ("displayname",), ("org.example.none",)):
        await s.call(None, "GET", "profile", g, *path)
    for user in (g, s.user("alice")):
        await s.call("letta_g", "GET", "user", user, "account_data", "x.y")
    await s.call("letta_g", "PUT", "user", g, "account_data", "x.y", body={"a": 1})
    await s.call("letta_g", "GET", "user", g, "account_data", "x.y")


async def deactivation(s: Script) -> None:
    g, kind = s.user("letta_g"), {"type": "m.login.application_service", "inhibit_login": True}
    room = await s.room("letta_g")
    await s.call("letta_g", "PUT", "devices", "D1")
    for _ in range(2):
        await s.call("letta_g", "POST", "account", "deactivate", body={"erase": False})
    await s.call("letta_g", "GET", "account", "whoami")
    await s.call("letta_g", "GET", "devices")
    await s.call(None, "GET", "profile", g)
    await s.call("bot", "POST", "register", body={**kind, "username": f"letta_g{s.tag}"})
    await s.call("alice", "POST", "account", "deactivate", body={"erase": False})
    kept, membership = len(s.lines), ""
    for _ in range(200):  # Synapse leaves the rooms when it has answered
        found = await s.call("alice", "GET", "rooms", room, "state", "m.room.member", g)
        if (membership := found["membership"]) == "leave":
            break
        await asyncio.sleep(0.05)
    del s.lines[kept:]
    s.note("the rooms of a deactivated user", membership)


async def the_rest_of_the_server(s: Script) -> None:
    await s.call(None, "GET", "nothing")
    await s.call("bot", "DELETE", "joined_rooms")
    await s.call("letta_g", "GET", "joined_rooms")
    await s.call("bot", "GET", "media", "config", api="client/v1")
    await s.call(None, "GET", "media", "config", api="client/v1")
    await s.call("bot", "GET", "config", api="media/v3")
    sent = await s.call("letta_g", "POST", "upload", body=b"hello", api="media/v3", filename="a.txt")
    server, _, name = sent["content_uri"].removeprefix("mxc://").partition("/")
    kept = len(s.lines)
    await s.call("letta_g", "GET", "media", "download", server, name, api="client/v1")
    await s.call(None, "GET", "media", "download", server, name, api="client/v1")
    await s.call(None, "GET", "download", server, name, api="media/v3")
    s.lines[kept:] = [line.replace(name, "MEDIA") for line in s.lines[kept:]]
    await s.call("letta_g", "GET", "media", "download", server, "nope", api="client/v1")
    await s.call("bot", "POST", "appservice", "other", "ping", api="client/v1")
    await s.call("alice", "POST", "appservice", "letta", "ping", api="client/v1")
    await s.call("bot", "POST", "appservice", "letta", "ping", api="client/v1", body={"transaction_id": "t"})


def creating(version: str) -> Callable[[Script], Awaitable[None]]:
    async def creating_rooms(s: Script) -> None:
        a, g = s.user("alice"), s.user("letta_g")

        async def made(who: str, **body: Any) -> str:
            answer = await s.call(who, "POST", "createRoom", body={"room_version": version, **body})
            if "room_id" not in answer:
                return ""
            page = await s.call(who, "GET", "rooms", answer["room_id"], "messages", dir="f", limit=50)
            assert page["chunk"]
            return str(answer["room_id"])

        initial = [{"type": "x.y", "content": {}}, {"type": "m.room.name", "content": {"name": "first"}}]
        await made("alice", preset="trusted_private_chat", is_direct=True, invite=[g])
        await made("alice", preset="public_chat", name="N", topic="T", initial_state=initial)
        await made("alice", visibility="public", initial_state=[{"type": "m.room.join_rules", "content": {}}])
        space = {"type": "m.space", "m.federate": False}
        levels = {"users": {a: 50}, "events": {"x": 7}} if version == "12" else {"events": {"x": 7}, "invite": 60}
        room = await made(
            "bot",
            room_alias_name=f"letta_r{s.tag}{version}",
            creation_content=space,
            power_level_content_override=levels,
        )
        await s.call("bot", "GET", "rooms", room, "state", "m.room.power_levels", format="event")
        await made("alice", power_level_content_override={"users": {s.user("bob"): 50}})
        await made("alice", power_level_content_override={"users": {a: 100, s.user("bob"): 50}})
        await made("alice", power_level_content_override={"users": {a: "x"}})
        await made("alice", invite=["garbage"])
        await made("alice", invite=[a])
        await made("alice", invite=["@x:other.example"])
        await made("alice", invite=[s.user("letta_unknown")])
        await made("alice", preset="nope")
        await made("alice", name=5)
        await made("alice", initial_state=[{"type": "m.room.name"}])
        await made("alice", room_alias_name="letta_taken")
        await made("letta_g", room_alias_name="elsewhere")
        await made("bot", room_alias_name=f"letta_r{s.tag}{version}")
        await made("alice", room_alias_name="a:b")
        await s.call("alice", "POST", "createRoom", body={"room_version": "99"})
        await s.call("alice", "POST", "createRoom", body={"room_version": 11})
        await s.call("alice", "POST", "createRoom", body=b"[]")

    creating_rooms.__name__ = f"creating_rooms_of_version_{version}"
    return creating_rooms


def membership(version: str) -> Callable[[Script], Awaitable[None]]:
    async def members_of(s: Script) -> None:
        a, b, g = s.user("alice"), s.user("bob"), s.user("letta_g")
        r = await s.room("letta_g", join=False, room_version=version, name="N")
        for reading in (("state",), ("state", "m.room.name"), ("members",), ("joined_members",), ("messages",)):
            await s.call("letta_g", "GET", "rooms", r, *reading)
            await s.call("bob", "GET", "rooms", r, *reading)
        for action in ("join", "leave", "forget"):
            await s.call("bob", "POST", "rooms", r, action)
        await s.call("bob", "POST", "rooms", r, "invite", body={"user_id": s.user("carol")})
        await s.call("bob", "POST", "rooms", r, "kick", body={"user_id": a})
        await s.call("letta_g", "PUT", "rooms", r, "send", "m.room.message", "1", body=TEXT)
        await s.call("letta_g", "POST", "join", r)
        await s.call("letta_g", "POST", "join", r)
        await s.call("letta_g", "GET", "rooms", r, "joined_members")
        await s.call("bot", "GET", "rooms", r, "joined_members")
        for target in (g, s.user("nobody"), "garbage", "@x:other.example", b, b):
            await s.call("alice", "POST", "rooms", r, "invite", body={"user_id": target})
        await s.call("alice", "POST", "rooms", r, "invite", body={})
        await s.call("bob", "GET", "rooms", r, "state", "m.room.name")
        await s.call("bob", "POST", "join", r)
        await s.call("bob", "POST", "rooms", r, "kick", body={"user_id": a})
        await s.call("bob", "POST", "rooms", r, "ban", body={"user_id": a})
        await s.call("alice", "POST", "rooms", r, "kick", body={"user_id": s.user("carol")})
        await s.call("alice", "POST", "rooms", r, "kick", body={"user_id": b, "reason": "r"})
        await s.call("alice", "POST", "rooms", r, "kick", body={"user_id": b})
        await s.call("bob", "POST", "join", r)
        await s.call("alice", "POST", "rooms", r, "ban", body={"user_id": b})
        await s.call("alice", "POST", "rooms", r, "invite", body={"user_id": b})
        await s.call("bob", "POST", "join", r)
        await s.call("bob", "POST", "rooms", r, "leave")
        await s.call("alice", "POST", "rooms", r, "unban", body={"user_id": b})
        await s.call("alice", "POST", "rooms", r, "unban", body={"user_id": b})
        await s.call("letta_g", "PUT", "rooms", r, "state", "m.room.member", g, body={"membership": "join", "x": 1})
        await s.call("alice", "PUT", "rooms", r, "state", "m.room.member", b, body={"membership": "join"})
        await s.call("alice", "PUT", "rooms", r, "state", "m.room.member", b, body={"membership": "invite"})
        await s.call("alice", "PUT", "rooms", r, "state", "m.room.member", b, body={})
        await s.call("bob", "POST", "rooms", r, "leave", body={"reason": "no"})
        await s.call("bob", "POST", "rooms", r, "leave")
        await s.call("letta_g", "POST", "rooms", r, "leave")
        await s.call("letta_g", "POST", "rooms", r, "leave")
        await s.call("letta_g", "PUT", "rooms", r, "send", "m.room.message", "2", body=TEXT)
        await s.call("letta_g", "GET", "rooms", r, "state", "m.room.name")
        await s.call("letta_g", "GET", "rooms", r, "joined_members")
        await s.call("letta_g", "GET", "rooms", r, "messages", dir="b", limit=3)
        await s.call("letta_g", "POST", "rooms", r, "forget")
        await s.call("letta_g", "GET", "rooms", r, "messages", dir="b", limit=3)
        await s.call("alice", "POST", "rooms", r, "forget")
        await s.call("alice", "GET", "rooms", r, "members", membership="leave")
        await s.call("alice", "GET", "rooms", r, "members", not_membership="leave")

    members_of.__name__ = f"membership_in_version_{version}"
    return members_of


async def no_such_room(s: Script) -> None:
    r, a = f"!nope:{s.domain}", s.user("alice")
    for method, *parts in (
        ("GET", "state"), ("GET", "state", "m.room.name"), ("GET", "messages"), ("GET", "members"),
        ("GET", "joined_members"), ("PUT", "state", "m.room.name"), ("PUT", "send", "m.room.message", "1"),
        ("POST", "leave"), ("POST", "join"), ("POST", "forget"), ("GET", "event", "$x"), ("GET", "context", "$x"),
    ):  # fmt: skip
        await s.call("alice", method, "rooms", r, *parts)
    for action in ("invite", "kick", "ban", "unban"):
        await s.call("alice", "POST", "rooms", r, action, body={"user_id": s.user("bob")})
    await s.call("alice", "PUT", "rooms", r, "typing", a, body={"typing": True, "timeout": 1000})
    await s.call("alice", "POST", "join", "garbage")
    await s.call("alice", "POST", "join", f"#none:{s.domain}")


async def restricted_rooms(s: Script) -> None:
    space = await s.room(creation_content={"type": "m.space"})
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": space}]}
    r = await s.room(initial_state=[{"type": "m.room.join_rules", "content": rule}])
    await s.call("bob", "POST", "join", r)
    await s.call("alice", "POST", "rooms", space, "invite", body={"user_id": s.user("bob")})
    await s.call("bob", "POST", "join", space)
    await s.call("bob", "POST", "join", r)
    await s.call("bob", "GET", "rooms", r, "state", "m.room.member", s.user("bob"))


def dedupe(with_device: bool) -> Callable[[Script], Awaitable[None]]:
    async def transactions(s: Script) -> None:
        r, other = await s.room("letta_g", "letta_h"), await s.room("letta_g", "letta_h")
        device = {"device": "TXN"} if with_device else {}
        for ghost in ("letta_g", "letta_h"):
            await s.call(ghost, "PUT", "devices", "TXN")
        t = f"t{s.tag}{with_device}"
        for who, room, kind, body in (
            ("letta_g", r, "m.room.message", "one"),
            ("letta_g", r, "m.room.message", "two"),
            ("letta_h", r, "m.room.message", "three"),
            ("letta_g", r, "x.other", "four"),
            ("letta_g", other, "m.room.message", "five"),
        ):
            await s.call(who, "PUT", "rooms", room, "send", kind, t, body={**TEXT, "body": body}, **device)
        await s.call("letta_g", "PUT", "rooms", r, "send", "m.room.message", t, body=TEXT)
        await s.call("letta_g", "GET", "rooms", r, "messages", dir="b", limit=4, **device)

    transactions.__name__ = f"transaction_ids_{'with' if with_device else 'without'}_device"
    return transactions


async def transaction_ids_over_a_restart(s: Script) -> None:
    """Only those of sends that name a device are remembered."""
    r = await s.room("letta_g")
    await s.call("letta_g", "PUT", "devices", "TXN")

    async def send_both(body: str) -> None:
        for device in ({}, {"device": "TXN"}):
            t = f"t{s.tag}{len(device)}"
            path = ("rooms", r, "send", "m.room.message", t)
            await s.call("letta_g", "PUT", *path, body={**TEXT, "body": body}, **device)

    await send_both("before")
    await s.restart()
    await send_both("after")
    await s.call("letta_g", "GET", "rooms", r, "messages", dir="b", limit=4)
