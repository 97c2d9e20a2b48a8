"""A run of calls against one homeserver, and its transcript without ids, times and wording."""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import web

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
    restart: Callable[[], Awaitable[None]]
    """Restarts the homeserver's process."""
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
