"""A person of a test: acts like a client, and sees what a client of this user would show."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import membership
from .accounts import Requester
from .creation import create_room
from .events import JSON
from .reading import Reader
from .view import Rendered, TextMatch, describe, render, text_matches

if TYPE_CHECKING:
    from .server import FakeHomeserver

_PAGE = 1000


class Person:
    """Made by ``FakeHomeserver.person``.

    Actions raise MatrixError where the homeserver refuses and ConnectionRefusedError while it is stopped. They
    go through the same rules and the same storage as HTTP requests, but not through the scripted faults.
    """

    def __init__(self, server: "FakeHomeserver", requester: Requester) -> None:
        self._server = server
        self._who = requester
        self.mxid = requester.user_id
        self.access_token = requester.token
        self.auto_join = False

    def __repr__(self) -> str:
        return f"<Person {self.mxid}>"

    def _up(self) -> None:
        if not self._server.up:
            raise ConnectionRefusedError("the fake homeserver is stopped")

    # ---- rooms

    async def create_room(self, **body: Any) -> str:
        """``createRoom`` with these keys; the room's id."""
        self._up()
        return create_room(self._server.hs, self._who, body)

    async def create_dm(self, puppet: str, *, text: str | None = None, **body: Any) -> str:
        """Open a direct chat as Element does: create, invite, and send the first text without waiting for the join.

        On Synapse the appservice is asked for an unknown puppet while the invite is pushed, not before.
        """
        request: JSON = {"preset": "trusted_private_chat", "is_direct": True, "invite": [puppet], **body}
        room = await self.create_room(**request)
        if text is not None:
            await self.send(room, text)
        return room

    async def invite(self, room: str, user_id: str) -> None:
        """Invite a user."""
        self._up()
        membership.invite(self._server.hs, self._who, room, user_id)

    async def join(self, room_or_alias: str) -> str:
        """Join; the room's id. The appservice is asked for unknown aliases of its namespace."""
        self._up()
        hs = self._server.hs
        if room_or_alias not in hs.aliases and hs.appservice.owns_alias(room_or_alias):
            await self._server.pusher.ask("rooms", room_or_alias)
        return membership.join(hs, self._who, room_or_alias)

    async def leave(self, room: str) -> None:
        """Leave a room or reject an invite."""
        self._up()
        membership.leave(self._server.hs, self._who, room)

    async def forget(self, room: str) -> None:
        """Forget a room that this person has left."""
        self._up()
        membership.forget(self._server.hs, self._who, room)

    async def kick(self, room: str, user_id: str, reason: str | None = None) -> None:
        """Kick a user."""
        await self._remove(room, user_id, "kick", reason)

    async def ban(self, room: str, user_id: str, reason: str | None = None) -> None:
        """Ban a user."""
        await self._remove(room, user_id, "ban", reason)

    async def unban(self, room: str, user_id: str) -> None:
        """Lift a ban."""
        await self._remove(room, user_id, "unban", None)

    async def _remove(self, room: str, user_id: str, action: str, reason: str | None) -> None:
        self._up()
        content: JSON = {} if reason is None else {"reason": reason}
        membership.remove(self._server.hs, self._who, room, user_id, action, content)

    async def set_displayname(self, name: str) -> None:
        """Change the own display name, also in all rooms."""
        self._up()
        if self._server.hs.accounts.set_profile(self._who, self.mxid, "displayname", name):
            self._server.hs.profile_changed(self.mxid)

    # ---- sending

    async def send(self, room: str, text: str, **content: Any) -> str:
        """Send a text (``msgtype`` and all else by keyword or ``**{"m.relates_to": …}``); the event's id."""
        return await self.send_event(room, "m.room.message", {"msgtype": "m.text", "body": text, **content})

    async def reply(self, room: str, to: str, text: str, **content: Any) -> str:
        """Send a rich reply without the old fallback."""
        return await self.send(room, text, **{"m.relates_to": {"m.in_reply_to": {"event_id": to}}, **content})

    async def send_event(
        self, room: str, event_type: str, content: Mapping[str, Any], txn_id: str | None = None
    ) -> str:
        """Send any event; its id."""
        self._up()
        txn = txn_id or secrets.token_hex(8)
        event_id = self._server.hs.send(self._who, room, event_type, txn, dict(content))
        await asyncio.sleep(0)  # lets the pusher begin, as a real request would
        return event_id

    async def edit(self, room: str, event_id: str, text: str, **content: Any) -> str:
        """Replace a message of one's own; the edit's event id."""
        new = {"msgtype": "m.text", "body": text, **content}
        relates = {"rel_type": "m.replace", "event_id": event_id}
        return await self.send(room, f"* {text}", **{**content, "m.new_content": new, "m.relates_to": relates})

    async def react(self, room: str, event_id: str, key: str) -> str:
        """React; the reaction's event id."""
        relates = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self.send_event(room, "m.reaction", {"m.relates_to": relates})

    async def redact(self, room: str, event_id: str, reason: str | None = None) -> str:
        """Redact; the redaction's event id."""
        self._up()
        content: JSON = {} if reason is None else {"reason": reason}
        return self._server.hs.redact(self._who, room, event_id, secrets.token_hex(8), content)

    async def set_state(self, room: str, event_type: str, content: Mapping[str, Any], state_key: str = "") -> str:
        """Write a state event; its id."""
        self._up()
        return self._server.hs.put_state(self._who, room, event_type, state_key, dict(content))

    async def set_power(self, room: str, user_id: str, level: int) -> str:
        """Give a user a power level; the event's id."""
        levels = await self.get_state(room, "m.room.power_levels")
        return await self.set_state(
            room, "m.room.power_levels", {**levels, "users": {**levels.get("users", {}), user_id: level}}
        )

    async def set_typing(self, room: str, timeout_ms: int | None = 30_000) -> None:
        """Start typing, or stop with None."""
        self._up()
        self._server.hs.set_typing(self._who, room, self.mxid, timeout_ms)

    async def read(self, room: str, event_id: str, *, private: bool = False) -> None:
        """Send a read receipt."""
        self._up()
        kind = "m.read.private" if private else "m.read"
        self._server.hs.set_receipt(self._who, room, kind, event_id, None)

    # ---- seeing

    def _reader(self) -> Reader:
        return Reader(self._server.hs, self._who)

    async def get_state(self, room: str, event_type: str, state_key: str = "") -> JSON:
        """Content of a state event. MatrixError 404 when there is none."""
        return self._reader().state_event(room, event_type, state_key, False)

    def timeline(self, room: str) -> list[JSON]:
        """All events that this person may see, oldest first; nothing before the join."""
        found = self._server.hs.room(room)
        if found is None or not (found.membership(self.mxid) == "join" or found.was_member(self.mxid)):
            return []
        out: list[JSON] = []
        token: str | None = None
        while True:
            page = self._reader().messages(room, {"dir": "f", "from": token, "limit": _PAGE})
            out += page["chunk"]
            token = page.get("end")
            if token is None:
                return out

    def messages(self, room: str) -> list[Rendered]:
        """The messages as they look now: edited ones once with their newest text, redacted ones not at all."""
        return render(self.timeline(room))

    def rooms(self) -> list[str]:
        """Rooms that this person is in."""
        return [room.room_id for room in self._server.hs.rooms.values() if room.membership(self.mxid) == "join"]

    def invites(self) -> dict[str, list[JSON]]:
        """Open invites: room id -> stripped state."""
        return {
            room.room_id: room.state[("m.room.member", self.mxid)].invite_state or []
            for room in self._server.hs.rooms.values()
            if room.membership(self.mxid) == "invite"
        }

    def members(self, room: str, membership: str = "join") -> list[str]:
        """Users with this membership."""
        found = self._server.hs.room(room)
        return found.members(membership) if found else []

    def typing(self, room: str) -> list[str]:
        """Users who type now."""
        found = self._server.hs.room(room)
        return sorted(found.typing) if found else []

    def receipts(self, room: str) -> dict[str, str]:
        """Newest public read receipt of each user: user id -> event id."""
        found = self._server.hs.room(room)
        newest: dict[str, tuple[int, str]] = {}
        for (user, kind, _), receipt in (found.receipts if found else {}).items():
            if kind == "m.read" and receipt.stream > newest.get(user, (0, ""))[0]:
                newest[user] = (receipt.stream, receipt.event_id)
        return {user: event_id for user, (_, event_id) in newest.items()}

    def reactions(self, room: str, event_id: str) -> list[tuple[str, str]]:
        """(sender, key) of every reaction to an event that was not redacted."""
        out = []
        for event in self.timeline(room):
            relates = event["content"].get("m.relates_to")
            if event["type"] == "m.reaction" and isinstance(relates, dict) and relates.get("event_id") == event_id:
                out.append((event["sender"], str(relates.get("key"))))
        return out

    def space_children(self, space: str) -> list[str]:
        """Room ids that a space lists (children with a ``via``), in the order in which clients show them."""
        summary = self._reader().hierarchy(space, 1, False)[0]
        return [child["state_key"] for child in summary["children_state"]] if summary else []

    # ---- waiting

    async def wait_for(self, room: str, predicate: Callable[[list[JSON]], Any], timeout: float = 5.0) -> Any:
        """What ``predicate(timeline)`` returns as soon as it is truthy.

        It is asked after every change. AssertionError with the timeline when ``timeout`` seconds have passed.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while not (result := predicate(self.timeline(room))):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                seen = describe(self.timeline(room))
                raise AssertionError(f"{self.mxid} waited {timeout} s in vain in {room}; the timeline:\n{seen}")
            await self._server.changed(left)
        return result

    async def wait_message(
        self, room: str, *, sender: str | None = None, text: TextMatch = None, timeout: float = 5.0
    ) -> Rendered:
        """The first message, as it looks now, of this sender and text (exact, pattern, or function)."""

        def matching(timeline: list[JSON]) -> Rendered | None:
            for message in render(timeline):
                if sender in (None, message.sender) and text_matches(text, message.body):
                    return message
            return None

        found: Rendered = await self.wait_for(room, matching, timeout)
        return found

    async def wait_invite(self, timeout: float = 5.0) -> str:
        """The room of an open invite, as soon as there is one."""
        await self._server.wait_until(lambda: bool(self.invites()), timeout, f"an invite of {self.mxid}")
        return next(iter(self.invites()))

    async def wait_joined(self, room: str, user_id: str, timeout: float = 5.0) -> None:
        """Return when the user is in the room."""
        await self._server.wait_until(lambda: user_id in self.members(room), timeout, f"{user_id} joining {room}")

    def accept_invites(self) -> None:
        """Join everything this person is invited to, if ``auto_join`` is set. Called at every change."""
        if self.auto_join and self._server.up:
            for room in self.invites():
                membership.join(self._server.hs, self._who, room)
