"""FakeHomeserver answers like a real Synapse: one script of calls runs against both, the transcripts are equal.

Compared are status, errcode and the whole body, with ids and times replaced by placeholders; not the wording of
errors. What Tuwunel does differently cannot be compared here: no Tuwunel package can be installed.
"""

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from ruamel.yaml import YAML

from letta_bridge.testing.fake_homeserver import FakeHomeserver

pytestmark = pytest.mark.e2e

TEXT = {"msgtype": "m.text", "body": "x"}
_VOLATILE = {"age", "origin_server_ts", "ts", "duration_ms", "last_seen_ts", "last_seen_ip", "num_joined_members"}
_TOKENS = {"start", "end", "next_batch", "prev_batch", "content_uri", "device_id"}
_UNCOMPARED = {"error", "unstable_features", "versions", "home_server", "session", "flows", "params", "servers"}
_EVENT_ID = re.compile(r"\$[A-Za-z0-9_-]{43}")
_ROOM_ID = re.compile(r"![A-Za-z0-9_-]{43}|![A-Za-z]{18}:DOMAIN")


class Inbox:
    """The appservice's side: takes every transaction, knows nobody."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.edus: list[dict[str, Any]] = []
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> int:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_put("/_matrix/app/v1/transactions/{id}", self._transaction)
        app.router.add_get("/_matrix/app/v1/{kind:users|rooms}/{name}", self._question)
        app.router.add_post("/_matrix/app/v1/ping", self._ping)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _transaction(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.events += body["events"]
        self.edus += body.get("ephemeral", ())
        return web.json_response({})

    async def _question(self, request: web.Request) -> web.Response:
        self.asked.append(request.match_info["name"])
        return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response({})


@dataclass
class Script:
    """One run against one server. ``lines`` is the transcript."""

    url: str
    domain: str
    as_token: str
    http: aiohttp.ClientSession
    inbox: Inbox
    tokens: dict[str, str]
    tag: str
    lines: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)

    def user(self, name: str) -> str:
        """Full id of a person, or of a ghost whose name begins with ``letta_``."""
        return f"@lettabridge:{self.domain}" if name == "bot" else f"@{name}{self.tag}:{self.domain}"

    async def call(
        self, who: str | None, method: str, *parts: str, body: Any = None, api: str = "client/v3", **query: Any
    ) -> Any:
        """One request, as a person, a ghost (``letta_…``), ``bot`` or nobody; the body of the answer."""
        url = "/".join([f"{self.url}/_matrix/{api}", *(quote(part, safe="") for part in parts)])
        device = query.pop("device", None)
        params = {key.rstrip("_"): str(value) for key, value in query.items()}
        headers = {}
        if who in self.tokens:
            headers["Authorization"] = f"Bearer {self.tokens[str(who)]}"
        elif who is not None:
            headers["Authorization"] = f"Bearer {self.as_token}"
            if who != "bot":
                params["user_id"] = self.user(who)
        if device:
            params["device_id"] = device
        if body is None and method in ("POST", "PUT"):
            body = {}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with self.http.request(method, url, params=params, data=data, headers=headers) as answer:
            raw = await answer.read()
            try:
                content: Any = json.loads(raw)
            except ValueError:
                content = raw.decode()
        if parts[-1] in ("state", "members") and answer.status == 200:  # without an order
            listed = content if isinstance(content, list) else content["chunk"]
            listed.sort(key=lambda event: (event["type"], event["state_key"]))
        if "context" in parts and answer.status == 200:
            content["state"].sort(key=lambda event: (event["type"], event["state_key"]))
        shown = " ".join(parts)[:120]
        extra = " ".join(f"{k}={v}" for k, v in sorted(params.items()) if k not in ("user_id", "from", "to"))
        self.note(f"{who} {method} {shown} {extra} -> {answer.status}", content)
        return content

    def note(self, what: str, content: Any) -> None:
        """Write a line into the transcript, without what may differ between two servers."""
        text = f"{what} {json.dumps(_stable(content), sort_keys=True, ensure_ascii=False)}"
        text = text.replace(self.tag, "~").replace(self.domain, "DOMAIN")
        for pattern, sign in ((_EVENT_ID, "$"), (_ROOM_ID, "!")):
            text = pattern.sub(lambda match, sign=sign: self._name(match.group(), sign), text)
        self.lines.append(text)

    def _name(self, value: str, sign: str) -> str:
        # the id of a version 12 room is its create event's
        core = value[1:].split(":")[0]
        return sign + self._names.setdefault(core, str(len(self._names) + 1))

    async def register(self, *names: str) -> None:
        for name in names:
            localpart = self.user(name)[1:].split(":")[0]
            body = {"type": "m.login.application_service", "username": localpart, "inhibit_login": True}
            url = f"{self.url}/_matrix/client/v3/register"
            async with self.http.post(url, json=body, headers={"Authorization": f"Bearer {self.as_token}"}) as answer:
                assert answer.status in (200, 400)

    async def room(self, *invites: str, who: str = "alice", join: bool = True, **body: Any) -> str:
        """A private room with members, not part of the transcript."""
        kept = len(self.lines)
        ids = [self.user(name) for name in invites]
        request = {"preset": "private_chat", "room_version": "11", "invite": ids, **body}
        room = (await self.call(who, "POST", "createRoom", body=request))["room_id"]
        for name in invites if join else ():
            await self.call(name, "POST", "join", room)
        del self.lines[kept:]
        return str(room)


def _stable(value: Any) -> Any:
    if isinstance(value, list):
        return [_stable(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for key, entry in value.items():
        if key in _UNCOMPARED:
            continue
        out[key] = 0 if key in _VOLATILE else "token" if key in _TOKENS and isinstance(entry, str) else _stable(entry)
    return out


# ---- the script


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
    for user in (g, s.user("alice")):
        await s.call("letta_g", "GET", "user", user, "account_data", "x.y")
    await s.call("letta_g", "PUT", "user", g, "account_data", "x.y", body={"a": 1})
    await s.call("letta_g", "GET", "user", g, "account_data", "x.y")


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
    await s.call("alice", "POST", "rooms", r, "invite", body={"user_id": s.user("bob")})
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

    async def pushed(which: Callable[[dict[str, Any]], bool]) -> None:
        async with asyncio.timeout(10):
            while not any(map(which, ours())):
                await asyncio.sleep(0.02)

    r = await s.room("letta_g", join=False, preset="trusted_private_chat", is_direct=True)
    await say(r, "not pushed")
    await s.call("alice", "PUT", "rooms", r, "typing", a, body={"typing": True, "timeout": 30000})
    await s.call("letta_g", "POST", "join", r)
    m = await say(r, "pushed")
    await s.call("letta_g", "PUT", "rooms", r, "send", "m.room.message", "echo", body=TEXT)
    await s.call("alice", "POST", "rooms", r, "receipt", "m.read.private", m)
    await s.call("alice", "POST", "rooms", r, "receipt", "m.read", m)
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
    receipts = [edu["content"] for edu in s.inbox.edus if edu["type"] == "m.receipt" and edu["room_id"] == r]
    s.note("receipts", receipts)
    s.note("keys of a transaction", sorted(key for key in s.inbox.bodies[-1] if "msc3202" not in key))


SCRIPTS = [
    who_is_who,
    devices_and_profiles,
    the_rest_of_the_server,
    creating("11"),
    creating("12"),
    membership("11"),
    membership("12"),
    no_such_room,
    restricted_rooms,
    dedupe(False),
    dedupe(True),
    what_may_be_sent,
    relations,
    power,
    aliases,
    history("shared"),
    history("invited"),
    history("joined"),
    notifications,
    spaces,
    what_is_pushed,
]


async def _transcript(
    script: Callable[[Script], Awaitable[None]], url: str, domain: str, as_token: str, inbox: Inbox, people: Any
) -> list[str]:
    tag = secrets.token_hex(4)
    tokens = {name: await people(f"{name}{tag}") for name in ("alice", "bob", "carol")}
    async with aiohttp.ClientSession() as http:
        run = Script(url, domain, as_token, http, inbox, tokens, tag)
        await run.register("bot", "letta_g", "letta_h")
        await run.call("bot", "PUT", "profile", run.user("bot"), "displayname", body={"displayname": "Bot"})
        await script(run)
    return run.lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
async def test_the_fake_answers_like_synapse(script: Callable[[Script], Awaitable[None]], synapse: Any) -> None:
    registration = YAML(typ="safe").load(synapse.registration.read_text())

    async def real_person(name: str) -> str:
        return str((await synapse.server.register(name)).access_token)

    inbox = Inbox()
    await inbox.start(synapse.appservice_port)
    try:
        real = await _transcript(script, synapse.url, synapse.domain, registration["as_token"], inbox, real_person)
    finally:
        await inbox.stop()
    async with FakeHomeserver(registration, domain=synapse.domain) as hs:

        async def fake_person(name: str) -> str:
            return (await hs.person(name)).access_token

        inbox = Inbox()
        hs.appservice_url = f"http://127.0.0.1:{await inbox.start(0)}"
        try:
            fake = await _transcript(script, hs.url, hs.domain, registration["as_token"], inbox, fake_person)
        finally:
            await inbox.stop()
    assert fake == real
