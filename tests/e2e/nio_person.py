"""A person whose client is matrix-nio: what they do, and what their client shows them. No encryption."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from nio import (
    AsyncClient,
    AsyncClientConfig,
    ErrorResponse,
    Event,
    MatrixRoom,
    Response,
    RoomPreset,
    SyncResponse,
    TypingNoticeEvent,
)

from letta_bridge.ids import MXID, EventID, RoomID
from letta_bridge.testing.person import Message, NotSeen
from letta_bridge.testing.stack.synapse import Account

T = TypeVar("T")
_FILTER = {"room": {"timeline": {"limit": 200}}}
_POLL_MS = 20_000


class NioPerson:
    """``async with NioPerson(url, account) as person``: logged in and syncing while the block runs."""

    def __init__(self, homeserver: str, account: Account) -> None:
        # a homeserver that restarts is tried again at once; without e2e extras there is no key store
        config = AsyncClientConfig(encryption_enabled=False, max_timeout_retry_wait_time=0.2)
        self.client = AsyncClient(homeserver, account.user_id, account.device_id, config=config)
        self.client.restore_login(account.user_id, account.device_id, account.access_token)
        self.client.add_event_callback(self._on_event, Event)
        self.client.add_ephemeral_callback(self._on_typing, TypingNoticeEvent)
        self.client.add_response_callback(self._on_sync, SyncResponse)
        self.user_id = MXID(account.user_id)
        self.events: dict[str, list[dict[str, Any]]] = {}
        """The timeline of each room, as far as it was seen."""
        self.has_typed: set[tuple[str, str]] = set()
        """Rooms, and who was ever seen to write there."""
        self._changed = asyncio.Event()
        self._synced = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        forever = self.client.sync_forever(timeout=_POLL_MS, sync_filter=_FILTER, full_state=True)
        self._task = asyncio.create_task(forever, name=f"sync of {self.user_id}")
        await self.wait(lambda: self._synced, "a first sync")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.client.close()

    async def _on_event(self, room: MatrixRoom, event: Event) -> None:
        self.events.setdefault(room.room_id, []).append(event.source)

    async def _on_typing(self, room: MatrixRoom, event: TypingNoticeEvent) -> None:
        self.has_typed.update((room.room_id, user_id) for user_id in event.users)

    async def _on_sync(self, answer: SyncResponse) -> None:
        for room_id in answer.rooms.leave:  # nio forgets neither itself
            self.client.invited_rooms.pop(room_id, None)
            self.client.rooms.pop(room_id, None)
        self._synced = True
        self._changed.set()
        self._changed = asyncio.Event()

    # -- what they do

    async def create_room(self, invite: Iterable[str], **options: Any) -> RoomID:
        """A private room with these people, as ``AsyncClient.room_create`` takes the options."""
        options.setdefault("preset", RoomPreset.private_chat)
        answer = await self.client.room_create(invite=list(invite), **options)
        return RoomID(_field(answer, "room_id"))

    async def create_dm(self, other: str, text: str | None = None, **options: Any) -> RoomID:
        """A direct chat; ``text`` goes into it at once, whether the other one is there or not."""
        room_id = await self.create_room([other], preset=RoomPreset.trusted_private_chat, is_direct=True, **options)
        if text is not None:
            await self.say(room_id, text)
        return room_id

    async def say(self, room_id: str, text: str, **more: Any) -> EventID:
        """A text message; ``more`` are further keys of its content."""
        return await self.send(room_id, "m.room.message", {"msgtype": "m.text", "body": text, **more})

    async def send(self, room_id: str, kind: str, content: dict[str, Any]) -> EventID:
        """Any event."""
        return EventID(_field(await self.client.room_send(room_id, kind, content), "event_id"))

    async def reply(self, room_id: str, event_id: str, text: str) -> EventID:
        """An answer to a message."""
        return await self.say(room_id, text, **{"m.relates_to": {"m.in_reply_to": {"event_id": event_id}}})

    async def edit(self, room_id: str, event_id: str, text: str) -> EventID:
        """Replace the text of an own message."""
        relation = {"rel_type": "m.replace", "event_id": event_id}
        new = {"m.new_content": {"msgtype": "m.text", "body": text}, "m.relates_to": relation}
        return await self.send(room_id, "m.room.message", {"msgtype": "m.text", "body": f"* {text}", **new})

    async def react(self, room_id: str, event_id: str, key: str) -> EventID:
        """Annotate a message."""
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self.send(room_id, "m.reaction", {"m.relates_to": relation})

    async def redact(self, room_id: str, event_id: str) -> None:
        """Remove a message."""
        _field(await self.client.room_redact(room_id, event_id), "event_id")

    async def join(self, room_id: str) -> None:
        """Accept an invitation; returns when the room is there."""
        _field(await self.client.join(room_id), "room_id")
        await self.wait(lambda: room_id in self.client.rooms, f"the joined room {room_id}")

    async def invite(self, room_id: str, user_id: str) -> None:
        """Invite somebody."""
        _ok(await self.client.room_invite(room_id, user_id))

    async def kick(self, room_id: str, user_id: str) -> None:
        """Remove somebody."""
        _ok(await self.client.room_kick(room_id, user_id))

    async def leave(self, room_id: str) -> None:
        """Leave a room or decline an invitation."""
        _ok(await self.client.room_leave(room_id))

    # -- what they see

    def messages(self, room_id: str, sender: str | None = None, after: str | None = None) -> list[Message]:
        """What is shown in the room: edits applied, redacted messages left out."""
        shown = _shown(self.events.get(room_id, []))
        if after is not None:
            shown = shown[next((n for n, message in enumerate(shown, 1) if message.event_id == after), len(shown)) :]
        return [message for message in shown if not message.redacted and sender in (None, message.sender)]

    def joined(self, room_id: str, user_id: str) -> bool:
        """Whether somebody is in the room."""
        room = self.client.rooms.get(room_id)
        return room is not None and user_id in room.users and user_id not in room.invited_users

    def memberships(self, room_id: str, user_id: str) -> list[dict[str, Any]]:
        """What became of somebody's membership, oldest first, as contents of the events seen."""
        return [
            event["content"]
            for event in self.events.get(room_id, [])
            if event["type"] == "m.room.member" and event.get("state_key") == user_id
        ]

    def has_read(self, room_id: str, user_id: str) -> str | None:
        """The event up to which somebody has read."""
        receipt = self.client.rooms[room_id].read_receipts.get(user_id)
        return receipt.event_id if receipt else None

    def typing(self, room_id: str) -> list[str]:
        """Who writes just now."""
        return list(self.client.rooms[room_id].typing_users)

    async def wait(self, look: Callable[[], T | None], what: str, seconds: float = 20) -> T:
        """The first true result of ``look``, tried after every sync; NotSeen when it is late."""
        deadline = time.monotonic() + seconds
        while True:
            changed = self._changed
            if result := look():
                return result
            if self._task is not None and self._task.done():
                self._task.result()
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotSeen(f"{self.user_id} did not see {what} within {seconds:.0f} s.\n{self._view()}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left, 0.5))

    async def wait_joined(self, room_id: str, *user_ids: str) -> None:
        """Return when these users are in the room."""
        for user_id in user_ids:
            await self.wait(lambda user_id=user_id: self.joined(room_id, user_id), f"{user_id} in {room_id}")

    async def wait_message(
        self,
        room_id: str,
        sender: str | None = None,
        where: str | Callable[[Message], bool] = "",
        *,
        after: str | None = None,
        seconds: float = 20,
    ) -> Message:
        """The first message that fits; a text for ``where`` must be part of its body as it is shown now."""
        fits = (lambda message: where in message.body) if isinstance(where, str) else where

        def look() -> Message | None:
            return next(filter(fits, self.messages(room_id, sender, after)), None)

        return await self.wait(look, f"a message by {sender or 'anybody'} in {room_id} ({where!r})", seconds)

    async def wait_invite(self, room_id: str, seconds: float = 20) -> None:
        """Return when there is an invitation to the room."""
        await self.wait(lambda: room_id in self.client.invited_rooms, f"an invitation to {room_id}", seconds)

    def _view(self) -> str:
        lines = [f"invited to {room_id}" for room_id in self.client.invited_rooms]
        for room_id, room in self.client.rooms.items():
            lines.append(f"room {room_id} {room.name!r}: {sorted(room.users)}, invited {sorted(room.invited_users)}")
            lines += [f"  {m.sender}: {m.body[:150]!r} ({m.edits} edits)" for m in self.messages(room_id)[-6:]]
        return "\n".join(["What they see:", *(lines or ["nothing"])])


def _shown(events: Iterable[dict[str, Any]]) -> list[Message]:
    messages: dict[str, Message] = {}
    for event in events:
        content, sender = event.get("content") or {}, MXID(event["sender"])
        relation = content.get("m.relates_to") or {}
        target = messages.get(relation.get("event_id", ""))
        if event["type"] == "m.room.redaction":
            if gone := messages.get(content.get("redacts") or event.get("redacts") or ""):
                gone.redacted = True
        elif event["type"] == "m.room.message" and relation.get("rel_type") == "m.replace":
            if target is not None and target.sender == sender:
                kept = {key: value for key, value in target.content.items() if key == "m.relates_to"}
                target.content = {**content.get("m.new_content", {}), **kept}
                target.edits += 1
        elif event["type"] in ("m.room.message", "m.room.encrypted") and content:
            event_id, room_id = EventID(event["event_id"]), RoomID(event.get("room_id", ""))
            messages[event_id] = Message(event_id, room_id, sender, dict(content), event["origin_server_ts"], 0.0)
    return list(messages.values())


def _ok(answer: Response) -> None:
    if isinstance(answer, ErrorResponse):  # nio raises nothing
        raise AssertionError(f"the homeserver refused: {answer}")


def _field(answer: Response, name: str) -> str:
    _ok(answer)
    return str(getattr(answer, name))
