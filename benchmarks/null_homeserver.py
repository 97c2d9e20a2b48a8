"""A homeserver that costs nothing: it answers everything at once with fresh ids, and pushes at full speed.

A process of its own, on a bare asyncio protocol, so that what is measured is the bridge. It pushes as Synapse does:
transactions of up to 100 events, one in flight, tried again after an error, the bridge's own events among them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp

from .processes import announce, until_terminated

DOMAIN = "null.localhost"
ANSWERS_KEY = "dev.letta_bridge.message"
_BATCH = 100
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_READING = ("GET", "HEAD")

Json = dict[str, Any]


class NullHomeserver:
    """The state behind the protocol: rooms, what was answered, what is still to be pushed."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.requests: Counter[str] = Counter()
        self.rooms: dict[str, list[Json]] = {}
        self.waiting: dict[str, Json] = {}
        """The people's messages without an answer, each with its room."""
        self.to_say = 0
        """How many more are to be said, each when the one before it in its room is answered."""
        self.queue: deque[Json] = deque()
        self.more = asyncio.Event()
        self.answered_at = 0.0
        self.events: Counter[str] = Counter()
        self.pushed: Counter[str] = Counter()
        self.failures = 0
        self.load: Json = {}
        self.taken_at = 0.0
        self.unpushed_load = 0

    # -- what the bridge asks

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Json | list[Json]]:
        """Status and JSON of a request of the client-server API."""
        url = urlsplit(target)
        parts = [unquote(part) for part in url.path.split("/") if part]
        if parts[:1] == ["_bench"]:
            return self._control(parts[1], json.loads(body or b"{}"))
        self.requests[_name(method, parts)] += 1
        path = parts[3:] if parts[1:2] != ["media"] else ["upload"]
        if path[:1] == ["rooms"]:
            return 200, self._in_room(path[1], path[2:], _user(url.query), body)
        match path:
            case ["createRoom"]:
                room = f"!room{next(self.numbers)}:{DOMAIN}"
                return 200, {"room_id": room}
            case ["upload"]:
                return 200, {"content_uri": f"mxc://{DOMAIN}/media{next(self.numbers)}"}
            case ["register"]:
                return 200, {"user_id": f"@{json.loads(body)['username']}:{DOMAIN}"}
            case ["capabilities"]:
                return 200, {"capabilities": {"m.room_versions": {"default": "11", "available": {"11": "stable"}}}}
            case ["directory", "room", _]:
                return 404, {"errcode": "M_NOT_FOUND", "error": "no such alias"}
            case ["appservice", _, "ping"]:
                return 200, {"duration_ms": 1}
            case ["profile", *_] | ["devices", *_]:
                return 200, {}
            case []:
                return 200, {"versions": ["v1.11"]}
        return 404, {"errcode": "M_UNRECOGNIZED", "error": "not here"}

    def _in_room(self, room: str, path: list[str], user: str, body: bytes) -> Json | list[Json]:
        match path:
            case ["send", kind, _]:
                return {"event_id": self._event(room, user, kind, json.loads(body))}
            case ["join"]:
                member = {"membership": "join", "displayname": user}
                self._event(room, user, "m.room.member", member, state_key=user)
                return {"room_id": room}
            case ["state"]:
                return self.rooms.get(room, [])
            case ["state", kind, *_]:
                self.events[kind] += 1
                return {"event_id": f"$state{next(self.numbers)}"}
            case ["messages"]:
                return {"chunk": list(reversed(self.rooms.get(room, []))), "start": "s"}
            case ["joined_members"]:
                members = (e for e in self.rooms.get(room, []) if e["type"] == "m.room.member")
                return {"joined": {e["state_key"]: {} for e in members if e["content"]["membership"] == "join"}}
        return {}  # receipts, typing, invitations

    def _event(self, room: str, sender: str, kind: str, content: Json, state_key: str | None = None) -> str:
        """An event of one of the bridge's users: it is pushed back, and may be the answer to something."""
        event = self._make(room, sender, kind, content, state_key)
        self.events[kind] += 1
        if self.waiting:
            for event_id in content.get(ANSWERS_KEY, {}).get("answers", ()):
                one = self.waiting.pop(event_id, None)
                if one is not None:
                    self.answered_at = time.monotonic()
                    if self.to_say:
                        self.to_say -= 1
                        self._message(one)
        if room in self.rooms:  # rooms that are not talked in are only counted
            if state_key is not None:
                self.rooms[room].append(event)
            self.push(event)
        return str(event["event_id"])

    def _make(self, room: str, sender: str, kind: str, content: Json, state_key: str | None = None) -> Json:
        event: Json = {
            "event_id": f"$event{next(self.numbers)}",
            "room_id": room,
            "sender": sender,
            "type": kind,
            "content": content,
            "origin_server_ts": int(time.time() * 1000),
            "unsigned": {"age": 1},
        }
        if state_key is not None:
            event["state_key"] = state_key
        return event

    # -- what the bench orders

    def _control(self, what: str, order: Json) -> tuple[int, Json]:
        match what:
            case "dms":
                for one in order["rooms"]:
                    self._open_dm(one["room"], one["person"], one["puppet"])
            case "say":
                self._say(order)
            case "targets":
                self.load = order
                self.more.set()
        return 200, self.status()

    def _open_dm(self, room: str, person: str, puppet: str) -> None:
        self.rooms[room] = [
            self._make(room, person, "m.room.create", {"room_version": "11"}, ""),
            self._make(room, person, "m.room.member", {"membership": "join", "displayname": "A person"}, person),
            self._make(room, person, "m.room.power_levels", {"users": {person: 100, puppet: 100}}, ""),
        ]
        invite = self._make(room, person, "m.room.member", {"membership": "invite", "is_direct": True}, puppet)
        self.rooms[room].append(invite)
        self.push(invite)

    def _say(self, order: Json) -> None:
        """Messages of people, round-robin over the rooms: all there at once, or (``in_turn``) each after the last one's
        answer."""
        self.pushed.clear()
        self.taken_at = self.answered_at = 0.0
        self.unpushed_load = order["messages"]
        self.load["begun"] = time.monotonic()
        at_once = len(order["rooms"]) if order.get("in_turn") else order["messages"]
        self.to_say = order["messages"] - at_once
        for number in range(at_once):
            self._message(order["rooms"][number % len(order["rooms"])])

    def _message(self, one: Json) -> None:
        content = {"msgtype": "m.text", "body": f"message {next(self.numbers)}", "m.mentions": {}}
        event = self._make(one["room"], one["person"], "m.room.message", content)
        event["_load"] = True
        self.waiting[event["event_id"]] = one
        self.push(event)

    def status(self) -> Json:
        """How far everything is."""
        begun = self.load.get("begun", 0.0)
        writes = {
            name: count
            for name, count in self.requests.items()
            if not name.startswith(_READING) and name != "POST appservice"  # the ping of itself
        }
        return {
            "unanswered": len(self.waiting),
            "queued": len(self.queue),
            "taken_s": self.taken_at - begun if self.taken_at else None,
            "answered_s": self.answered_at - begun if self.answered_at else None,
            "pushed": dict(self.pushed),
            "failures": self.failures,
            "requests": dict(self.requests),
            "writes": writes,
            "events": dict(self.events),
            "joined": sum(
                event["type"] == "m.room.member" and event["content"]["membership"] == "join"
                for room in self.rooms.values()
                for event in room[4:]  # after what the person made of it
            ),
        }

    # -- pushing

    def push(self, event: Json) -> None:
        """Queue an event for the bridge."""
        self.queue.append(event)
        self.more.set()

    async def run_pusher(self) -> None:
        """One transaction in flight, to each target in turn."""
        async with aiohttp.ClientSession() as http:
            for number in itertools.count(1):
                while not self.queue or "targets" not in self.load:
                    self.more.clear()
                    await self.more.wait()
                batch = [self.queue.popleft() for _ in range(min(_BATCH, len(self.queue)))]
                loaded = sum(event.pop("_load", False) for event in batch)
                await self._deliver(http, number, json.dumps({"events": batch}).encode())
                self.pushed["transactions"] += 1
                self.pushed["events"] += len(batch)
                self.unpushed_load -= loaded
                if loaded and not self.unpushed_load:
                    self.taken_at = time.monotonic()
                    self.pushed["events_when_taken"] = self.pushed["events"]

    async def _deliver(self, http: aiohttp.ClientSession, number: int, body: bytes) -> None:
        headers = {"Authorization": f"Bearer {self.load['hs_token']}", "Content-Type": "application/json"}
        while True:
            targets = self.load["targets"]
            url = f"{targets[number % len(targets)]}/_matrix/app/v1/transactions/{number}"
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with http.put(url, data=body, headers=headers) as answer:
                    if answer.status == 200:
                        return
            self.failures += 1
            await asyncio.sleep(0.2)


def _user(query: str) -> str:
    """Who a request is made for."""
    match = re.search(r"(?:^|&)user_id=([^&]*)", query)
    return unquote(match[1]) if match else ""


def _name(method: str, parts: list[str]) -> str:
    """A short name of a request, without what differs from one to the next."""
    if len(parts) > 5 and parts[3] == "rooms":
        return f"{method} {parts[5]}"
    return f"{method} {parts[-1] if parts[1:2] == ['media'] else '/'.join(parts[3:4])}"


class _Connection(asyncio.Protocol):
    """Just enough of HTTP/1.1: requests one after the other, with Content-Length."""

    def __init__(self, answer: Callable[[str, str, bytes], tuple[int, Json | list[Json]]]) -> None:
        self._answer = answer
        self._pending = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) >= 0:
            head = self._pending[:end]
            match = _LENGTH.search(head)
            whole = end + 4 + (int(match[1]) if match else 0)
            if len(self._pending) < whole:
                return
            body, self._pending = self._pending[end + 4 : whole], self._pending[whole:]
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
            status, answer = self._answer(method, target, body)
            payload = json.dumps(answer).encode()
            self._transport.write(
                b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (status, len(payload), payload)
            )


async def _serve(path: Path) -> None:
    homeserver = NullHomeserver()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(homeserver.answer), "127.0.0.1", 0)
    pusher = asyncio.create_task(homeserver.run_pusher())
    announce(path, {"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
    await until_terminated()
    pusher.cancel()
    await asyncio.gather(pusher, return_exceptions=True)
    server.close()


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--announce", type=Path, required=True)
    asyncio.run(_serve(parser.parse_args().announce))


if __name__ == "__main__":
    main()
