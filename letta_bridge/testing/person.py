"""A person with a Matrix client: long polling of ``/sync``, what the rooms look like to them, and what they
do there.

No encryption. For the demo and for tests; it shows what a plain client shows: the latest text of each
message.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp

from letta_bridge.ids import MXID, EventID, RoomID

T = TypeVar("T")
_POLL_MS = 20_000
_BACK_OFF_S = 0.2
_LOOK_AGAIN_S = 0.5


class MatrixRefusal(Exception):
    """The homeserver answered a request with an error; ``errcode`` and ``status`` as the specification has
    them."""

    def __init__(self, status: int, errcode: str, text: str) -> None:
        super().__init__(f"{status} {errcode}: {text}")
        self.status = status
        self.errcode = errcode


class NotSeen(AssertionError):
    """What was waited for did not happen in time; the text says what the person saw instead."""


@dataclass
class Message:
    """A message as it looks now: its edits are applied, and ``redacted`` says that it is gone."""

    event_id: EventID
    room_id: RoomID
    sender: MXID
    content: dict[str, Any]
    sent_at: int
    seen: float
    """``time.monotonic()`` when it first appeared; ``changed`` when it last changed."""
    changed: float = 0.0
    edits: int = 0
    redacted: bool = False
    reactions: dict[str, set[MXID]] = field(default_factory=dict)

    @property
    def body(self) -> str:
        return str(self.content.get("body", ""))

    @property
    def html(self) -> str | None:
        formatted = self.content.get("formatted_body")
        return str(formatted) if formatted is not None else None

    @property
    def msgtype(self) -> str:
        return str(self.content.get("msgtype", ""))

    @property
    def mentions(self) -> dict[str, Any]:
        return dict(self.content.get("m.mentions") or {})

    @property
    def reply_to(self) -> EventID | None:
        """The message that it answers, also inside a thread; not the thread's fallback."""
        relation = self.content.get("m.relates_to") or {}
        if relation.get("is_falling_back"):
            return None
        target = (relation.get("m.in_reply_to") or {}).get("event_id")
        return EventID(target) if target else None

    @property
    def thread(self) -> EventID | None:
        """The root of the thread that it is in."""
        relation = self.content.get("m.relates_to") or {}
        return EventID(relation["event_id"]) if relation.get("rel_type") == "m.thread" else None


@dataclass
class Room:
    """A joined room, as far as the person's client has seen it."""

    room_id: RoomID
    messages: list[Message] = field(default_factory=list)
    members: dict[MXID, str] = field(default_factory=dict)
    """Membership (``join``, ``invite`` …) by user id."""
    state: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """Content by type and state key."""
    typing: set[MXID] = field(default_factory=set)
    receipts: dict[MXID, EventID] = field(default_factory=dict)
    """The latest message that each user has read."""

    @property
    def name(self) -> str:
        return str(self.state.get(("m.room.name", ""), {}).get("name", ""))

    @property
    def is_space(self) -> bool:
        return self.state.get(("m.room.create", ""), {}).get("type") == "m.space"

    def find(self, event_id: str) -> Message | None:
        """The message with this event id, if it was seen."""
        return next((message for message in self.messages if message.event_id == event_id), None)


class Person:
    """``async with Person(url, user_id, token) as person``: logged in and syncing while the block runs."""

    def __init__(self, homeserver: str, user_id: str, access_token: str) -> None:
        self.homeserver = homeserver.rstrip("/")
        self.user_id = MXID(user_id)
        self.rooms: dict[RoomID, Room] = {}
        self.invites: dict[RoomID, MXID] = {}
        """Who invited, by room; gone once joined or declined."""
        self._token = access_token
        self._transactions = (f"{time.time_ns()}-{n}" for n in itertools.count())
        self._session: aiohttp.ClientSession | None = None
        self._since: str | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start to sync; returns after the first answer."""
        headers = {"Authorization": f"Bearer {self._token}"}
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), headers=headers)
        try:
            await self._sync_once()
        except BaseException:
            await self._session.close()
            raise
        self._task = asyncio.create_task(self._sync_forever())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._session:
            await self._session.close()

    # -- what they do

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Any call below ``/_matrix/client/v3``: MatrixRefusal, or aiohttp.ClientError without an answer."""
        assert self._session is not None
        url = f"{self.homeserver}/_matrix/client/v3{path}"
        payload = body if body is not None or method == "GET" else {}
        async with self._session.request(method, url, json=payload, params=query) as answer:
            data: dict[str, Any] = await answer.json()
            if answer.status >= 300:
                raise MatrixRefusal(answer.status, data.get("errcode", ""), data.get("error", ""))
            return data

    async def send(self, room_id: RoomID, content: Mapping[str, Any], event_type: str = "m.room.message") -> EventID:
        """Send any event."""
        path = f"/rooms/{quote(room_id)}/send/{event_type}/{quote(next(self._transactions))}"
        return EventID((await self.request("PUT", path, content))["event_id"])

    async def say(
        self,
        room_id: RoomID,
        text: str,
        *,
        html: str | None = None,
        reply_to: EventID | None = None,
        thread: EventID | None = None,
        mentions: list[str] | None = None,
    ) -> EventID:
        """Send a text message, as a client does."""
        content: dict[str, Any] = {"msgtype": "m.text", "body": text, "m.mentions": {}}
        if html is not None:
            content |= {"format": "org.matrix.custom.html", "formatted_body": html}
        if mentions:
            content["m.mentions"] = {"user_ids": mentions}
        relation: dict[str, Any] = {}
        if thread:
            relation = {"rel_type": "m.thread", "event_id": thread, "is_falling_back": reply_to is None}
        if reply_to or thread:
            relation["m.in_reply_to"] = {"event_id": reply_to or thread}
            content["m.relates_to"] = relation
        return await self.send(room_id, content)

    async def edit(self, room_id: RoomID, event_id: EventID, text: str) -> EventID:
        """Replace the text of an own message."""
        new = {"msgtype": "m.text", "body": text, "m.mentions": {}}
        relation = {"rel_type": "m.replace", "event_id": event_id}
        return await self.send(room_id, {**new, "body": f"* {text}", "m.new_content": new, "m.relates_to": relation})

    async def react(self, room_id: RoomID, event_id: EventID, key: str) -> EventID:
        """Annotate a message."""
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self.send(room_id, {"m.relates_to": relation}, "m.reaction")

    async def redact(self, room_id: RoomID, event_id: EventID) -> None:
        """Remove a message."""
        path = f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/{quote(next(self._transactions))}"
        await self.request("PUT", path, {})

    async def create_room(self, invite: list[str], **options: Any) -> RoomID:
        """A private room with these people; ``options`` as in ``createRoom`` (``name``, ``room_version``
        …)."""
        body = {"preset": "private_chat", "invite": invite, **options}
        return RoomID((await self.request("POST", "/createRoom", body))["room_id"])

    async def create_dm(self, other: str, **options: Any) -> RoomID:
        """A direct chat, unencrypted, with the other one invited."""
        return await self.create_room([other], preset="trusted_private_chat", is_direct=True, **options)

    async def join(self, room_or_alias: str) -> RoomID:
        """Join a room, by invitation or by its alias; returns when it is in ``rooms``."""
        room_id = RoomID((await self.request("POST", f"/join/{quote(room_or_alias)}"))["room_id"])
        await self.wait(lambda: self.rooms.get(room_id), f"the joined room {room_id}")
        return room_id

    async def leave(self, room_id: RoomID) -> None:
        """Leave a room or decline an invitation."""
        await self.request("POST", f"/rooms/{quote(room_id)}/leave")

    async def invite(self, room_id: RoomID, user_id: str) -> None:
        """Invite somebody."""
        await self.request("POST", f"/rooms/{quote(room_id)}/invite", {"user_id": user_id})

    async def resolve(self, alias: str) -> RoomID:
        """The room behind an alias; MatrixRefusal with status 404 when there is none."""
        return RoomID((await self.request("GET", f"/directory/room/{quote(alias)}"))["room_id"])

    # -- what they see

    async def wait(self, look: Callable[[], T | None], what: str, seconds: float = 20) -> T:
        """The first true result of ``look``, tried after everything that the client sees; NotSeen when it is
        late."""
        deadline = time.monotonic() + seconds
        while True:
            changed = self._changed
            if result := look():
                return result
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotSeen(f"{self.user_id} did not see {what} within {seconds:.0f} s.\n{self._view()}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left, _LOOK_AGAIN_S))

    async def wait_room(self, room_id: RoomID, seconds: float = 20) -> Room:
        """The joined room, once the client has seen it."""
        return await self.wait(lambda: self.rooms.get(room_id), f"the room {room_id}", seconds)

    async def wait_invite(self, sender: str | None = None, seconds: float = 20) -> RoomID:
        """The room of an invitation (by this user)."""

        def look() -> RoomID | None:
            return next((room for room, by in self.invites.items() if sender in (None, by)), None)

        return await self.wait(look, f"an invitation by {sender or 'anybody'}", seconds)

    async def wait_member(self, room_id: RoomID, user_id: str, membership: str = "join", seconds: float = 20) -> None:
        """Return once this user has this membership in the room."""

        def look() -> bool:
            room = self.rooms.get(room_id)
            return room is not None and room.members.get(MXID(user_id)) == membership

        await self.wait(look, f"{user_id} to {membership} {room_id}", seconds)

    async def wait_message(
        self,
        room_id: RoomID,
        *,
        sender: str | None = None,
        after: EventID | None = None,
        where: Callable[[Message], bool] | None = None,
        seconds: float = 20,
    ) -> Message:
        """The first message in the room that fits: by this sender, later than ``after``, and ``where`` says
        so.

        Looked at again after each edit, so ``where`` may ask for the final text.
        """

        def look() -> Message | None:
            return next(
                (
                    message
                    for message in self.messages(room_id, after)
                    if (sender is None or message.sender == sender) and (where is None or where(message))
                ),
                None,
            )

        return await self.wait(look, f"a message by {sender or 'anybody'} in {room_id}", seconds)

    def messages(self, room_id: RoomID, after: EventID | None = None) -> list[Message]:
        """What was said in the room (later than ``after``), redacted messages left out."""
        room = self.rooms.get(room_id)
        if room is None:
            return []
        start = 0
        if after is not None:
            start = next((i + 1 for i, m in enumerate(room.messages) if m.event_id == after), len(room.messages))
        return [message for message in room.messages[start:] if not message.redacted]

    # -- syncing

    async def _sync_forever(self) -> None:
        while True:
            try:
                await self._sync_once(_POLL_MS)
            except (aiohttp.ClientError, TimeoutError, MatrixRefusal):
                await asyncio.sleep(_BACK_OFF_S)  # the homeserver is down or starting

    async def _sync_once(self, wait_ms: int = 0) -> None:
        query = {"timeout": str(wait_ms)} | ({"since": self._since} if self._since else {})
        answer = await self.request("GET", "/sync", query=query)
        self._since = answer["next_batch"]
        rooms = answer.get("rooms", {})
        for room_id, part in rooms.get("invite", {}).items():
            self._take_invite(RoomID(room_id), part)
        for room_id, part in rooms.get("join", {}).items():
            self.invites.pop(room_id, None)
            self._take_room(self.rooms.setdefault(RoomID(room_id), Room(RoomID(room_id))), part)
        for room_id in rooms.get("leave", {}):
            self.invites.pop(room_id, None)
            self.rooms.pop(room_id, None)
        self._changed.set()
        self._changed = asyncio.Event()

    def _take_invite(self, room_id: RoomID, part: Mapping[str, Any]) -> None:
        for event in part.get("invite_state", {}).get("events", []):
            if event["type"] == "m.room.member" and event.get("state_key") == self.user_id:
                self.invites[room_id] = MXID(event["sender"])

    def _take_room(self, room: Room, part: Mapping[str, Any]) -> None:
        for event in part.get("state", {}).get("events", []):
            self._take_state(room, event)
        for event in part.get("timeline", {}).get("events", []):
            if "state_key" in event:
                self._take_state(room, event)
            else:
                _take_event(room, event)
        for event in part.get("ephemeral", {}).get("events", []):
            if event["type"] == "m.typing":
                room.typing = {MXID(user) for user in event["content"].get("user_ids", [])}
            elif event["type"] == "m.receipt":
                for event_id, kinds in event["content"].items():
                    for user in kinds.get("m.read", {}):
                        room.receipts[MXID(user)] = EventID(event_id)

    @staticmethod
    def _take_state(room: Room, event: Mapping[str, Any]) -> None:
        room.state[event["type"], event["state_key"]] = dict(event["content"])
        if event["type"] == "m.room.member":
            room.members[MXID(event["state_key"])] = event["content"].get("membership", "")

    def _view(self) -> str:
        lines = [f"invited to {room} by {by}" for room, by in self.invites.items()]
        for room in self.rooms.values():
            lines.append(f"room {room.room_id} {room.name!r}: {dict(sorted(room.members.items()))}")
            lines += [f"  {m.sender}: {m.body[:200]!r} ({m.edits} edits)" for m in room.messages[-5:]]
        return "\n".join(["What they see:", *(lines or ["nothing"])])


def _take_event(room: Room, event: Mapping[str, Any]) -> None:
    content = dict(event.get("content") or {})
    relation = content.get("m.relates_to") or {}
    now = time.monotonic()
    if event["type"] == "m.room.redaction":
        target = room.find(str(content.get("redacts") or event.get("redacts")))
        if target:
            target.redacted, target.changed = True, now
    elif event["type"] == "m.reaction" and (target := room.find(str(relation.get("event_id")))):
        target.reactions.setdefault(str(relation.get("key")), set()).add(MXID(event["sender"]))
    elif relation.get("rel_type") == "m.replace" and event["type"] == "m.room.message":
        target = room.find(str(relation.get("event_id")))
        if target and target.sender == event["sender"]:
            relations = {key: value for key, value in target.content.items() if key == "m.relates_to"}
            target.content = {**(content.get("m.new_content") or {}), **relations}
            target.edits, target.changed = target.edits + 1, now
    elif event["type"] in ("m.room.message", "m.room.encrypted") and content:
        sender, sent_at = MXID(event["sender"]), int(event["origin_server_ts"])
        event_id = EventID(event["event_id"])
        room.messages.append(Message(event_id, room.room_id, sender, content, sent_at, now, now))
