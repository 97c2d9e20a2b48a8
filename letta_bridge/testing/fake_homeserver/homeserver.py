"""The in-process homeserver without HTTP: rooms, membership, sending, aliases, typing, receipts.

Every method takes the requester and raises MatrixError where the real server refuses. The HTTP routes and the
test people both come through here.
"""

import asyncio
import secrets
import string
from collections.abc import Callable
from typing import Any, Protocol

from . import auth, membership
from .accounts import Accounts, Requester
from .appservice import AppService
from .errors import MatrixError, bad, forbidden, internal, not_found
from .events import JSON, Event, check_content, check_size, new_event_id, now_ms
from .flavour import Flavour
from .rooms import Receipt, Room
from .transactions import ClientTransactions


class Pusher(Protocol):
    """What the homeserver needs of its pushing side."""

    def push_event(self, event: Event, room: Room) -> None:
        """Queue an event that the appservice is interested in."""

    def push_edu(self, edu: JSON) -> None:
        """Queue a typing or receipt notification."""


class Homeserver:
    """State and rules. ``changed`` callbacks run after every visible change."""

    def __init__(self, domain: str, appservice: AppService, flavour: Flavour) -> None:
        self.domain = domain
        self.appservice = appservice
        self.flavour = flavour
        self.accounts = Accounts(domain, appservice, flavour)
        self.rooms: dict[str, Room] = {}
        self.aliases: dict[str, tuple[str, str]] = {}  # alias -> (room, creator)
        self.events: dict[str, Event] = {}
        self.transactions = ClientTransactions(flavour)
        self.listeners: list[Callable[[], None]] = []
        self.pusher: Pusher | None = None
        self.known_domains: set[str] = {domain}
        self._stream = 0
        self._profile_timers: dict[str, asyncio.TimerHandle] = {}

    # ---- the one way into a room

    def new_room(self, version: str, create_event_id: str) -> Room:
        """An empty room. Version 12 ids are the create event's id, without a server part."""
        if version == "12":
            room_id = "!" + create_event_id[1:]
        else:
            room_id = f"!{''.join(secrets.choice(string.ascii_letters) for _ in range(18))}:{self.domain}"
        room = Room(room_id, version)
        self.rooms[room_id] = room
        return room

    def append(
        self,
        room: Room,
        requester: Requester,
        event_type: str,
        content: JSON,
        *,
        state_key: str | None = None,
        event_id: str | None = None,
        transaction: tuple[str, str | None, str] | None = None,
        ts: int | None = None,
    ) -> Event:
        """Persist an event that was checked, and queue it for the appservice if it is interested."""
        self._stream += 1
        event = Event(
            event_id=event_id or new_event_id(),
            room_id=room.room_id,
            sender=requester.user_id,
            type=event_type,
            content=content,
            origin_server_ts=now_ms() if ts is None else ts,
            state_key=state_key,
            position=len(room.timeline),
            stream=self._stream,
            transaction=transaction,
        )
        check_size(event, room.version, self.domain)
        if state_key is not None:
            event.replaced = room.state.get((event_type, state_key))
            if event_type == "m.room.member" and content.get("membership") == "invite":
                event.invite_state = room.stripped_state(requester.user_id)
        room.add(event)
        self.events[event.event_id] = event
        if event.redacts is not None:
            target = self.events.get(event.redacts)
            event.hidden = target is None
            if target is not None:
                target.prune(event)
        if self.pusher is not None and not event.hidden and self._interested(event, room):
            self.pusher.push_event(event, room)
        self.notify()
        return event

    def purge(self, event_id: str) -> None:
        """Delete an event for good, as an admin can: nobody sees it again."""
        self.events.pop(event_id).hidden = True
        self.notify()

    def notify(self) -> None:
        """Wake everybody who waits for a change."""
        for listener in tuple(self.listeners):
            listener()

    def _interested(self, event: Event, room: Room) -> bool:
        owns = self.appservice.owns_user
        if owns(event.sender) or (event.type == "m.room.member" and owns(event.state_key or "")):
            return True
        return self.interested_in_room(room)

    def interested_in_room(self, room: Room) -> bool:
        """A namespace user is joined, or the room's id or one of its aliases is in the namespace."""
        if self.appservice.owns_room(room.room_id):
            return True
        if any(map(self.appservice.owns_user, room.members())):
            return True
        return any(target == room.room_id and self.appservice.owns_alias(a) for a, (target, _) in self.aliases.items())

    # ---- finding

    def room(self, room_id: str) -> Room | None:
        """The room, None when there is none of this id."""
        return self.rooms.get(room_id)

    def joined_room(self, requester: Requester, room_id: str) -> Room:
        """A room to write into. Raises as for a stranger when it does not exist."""
        room = self.rooms.get(room_id)
        if room is None or room.membership(requester.user_id) != "join":
            raise forbidden(f"User {requester.user_id} not in room {room_id}")
        return room

    def readable_room(self, requester: Requester, room_id: str) -> Room:
        """A room to read from: members, the departed (their past only), anybody if it is world readable."""
        room = self.rooms.get(room_id)
        if room is not None:
            user = requester.user_id
            if room.membership(user) == "join" or room.was_member(user) or room.world_readable():
                return room
        raise forbidden(f"User {requester.user_id} not in room {room_id}, and room previews are disabled")

    # ---- sending

    def send(
        self, requester: Requester, room_id: str, event_type: str, txn: str, content: JSON, ts: int | None = None
    ) -> str:
        """``PUT /send``: the event's id, the old one when the homeserver knows the transaction id."""
        path = f"send/{room_id}/{event_type}/{txn}"
        known = self.transactions.find(requester, room_id, path, txn)
        if known is not None:
            return known
        event = self._send(requester, room_id, event_type, content, txn, ts)
        self.transactions.remember(requester, room_id, path, txn, event.event_id)
        return event.event_id

    def _send(
        self, requester: Requester, room_id: str, event_type: str, content: JSON, txn: str, ts: int | None
    ) -> Event:
        room = self.joined_room(requester, room_id)
        if event_type == "m.room.member":
            raise internal()
        check_content(event_type, content)
        auth.check_send(room, requester.user_id, event_type, None, content)
        if event_type == "m.room.redaction":
            self._check_redaction(room, requester, content)
        self._check_relation(room, requester, event_type, content)
        return self.append(
            room,
            requester,
            event_type,
            content,
            transaction=(requester.user_id, requester.device_id, txn),
            ts=ts if requester.appservice else None,
        )

    def redact(self, requester: Requester, room_id: str, event_id: str, txn: str | None, content: JSON) -> str:
        """``/redact``. Tuwunel ignores the transaction id and everything but the reason."""
        content = {**content, "redacts": event_id}
        if not self.flavour.redact_keeps:
            content = {key: content[key] for key in ("reason", "redacts") if key in content}
            txn = None
        if txn is None:
            return self._send(requester, room_id, "m.room.redaction", content, secrets.token_hex(6), None).event_id
        path = f"redact/{room_id}/{event_id}/{txn}"
        known = self.transactions.find(requester, room_id, path, txn)
        if known is None:
            known = self._send(requester, room_id, "m.room.redaction", content, txn, None).event_id
            self.transactions.remember(requester, room_id, path, txn, known)
        return known

    def _check_redaction(self, room: Room, requester: Requester, content: JSON) -> None:
        target_id = content.get("redacts")
        if not isinstance(target_id, str):
            raise internal() if self.flavour.name == "synapse" else bad("Missing redacts", "M_BAD_JSON")
        target = self.events.get(target_id)
        if target is not None and target.room_id != room.room_id:
            raise bad("Cannot redact event from a different room")
        if target is not None and target.type in ("m.room.create", "m.room.server_acl"):
            raise forbidden(f"Redacting {target.type} events is not permitted")
        if auth.user_level(room, requester.user_id) >= auth.named_level(room, "redact"):
            return
        if target is None:
            raise not_found(f"Could not find event {target_id}")
        if target.sender != requester.user_id:
            raise forbidden("You don't have permission to redact events")

    def _check_relation(self, room: Room, requester: Requester, event_type: str, content: JSON) -> None:
        relates = content.get("m.relates_to")
        if not isinstance(relates, dict) or not isinstance(relates.get("rel_type"), str):
            return
        kind, target_id, key = relates["rel_type"], relates.get("event_id"), relates.get("key")
        target = self.events.get(target_id) if isinstance(target_id, str) else None
        if target is None or target.room_id != room.room_id:
            raise bad("Can't send relation to unknown event")
        if kind == "m.annotation":
            if not isinstance(key, str):
                raise bad("Missing aggregation key")
            for other in room.related.get(target.event_id, ()):
                mine = other.sender == requester.user_id and other.type == event_type
                if mine and other.relation() == (kind, target_id, key):
                    raise bad("Can't send same reaction twice", "M_DUPLICATE_ANNOTATION")
        elif kind == "m.thread" and target.relation() is not None:
            raise bad("Cannot start threads from an event with a relation")

    def put_state(
        self,
        requester: Requester,
        room_id: str,
        event_type: str,
        state_key: str,
        content: JSON,
        ts: int | None = None,
    ) -> str:
        """``PUT /state``: the event's id; the old one when nothing would change."""
        if event_type == "m.room.member":
            return membership.put_member(self, requester, room_id, state_key, content)
        room = self.joined_room(requester, room_id)
        check_content(event_type, content)
        if event_type == "m.room.canonical_alias":
            self._check_canonical_alias(room, content)
        auth.check_send(room, requester.user_id, event_type, state_key, content)
        if event_type == "m.room.create":
            raise internal()
        current = room.state.get((event_type, state_key))
        ts = ts if requester.appservice else None
        if current is not None and current.sender == requester.user_id and current.content == content and ts is None:
            return current.event_id
        return self.append(room, requester, event_type, content, state_key=state_key, ts=ts).event_id

    def _check_canonical_alias(self, room: Room, content: JSON) -> None:
        named: list[Any] = [content["alias"]] if content.get("alias") else []
        for alias in named + list(content.get("alt_aliases") or ()):
            if not isinstance(alias, str) or not alias.startswith("#") or ":" not in alias:
                raise bad("Expected RoomAlias string to start with '#'", "M_INVALID_PARAM")
            if self.aliases.get(alias, ("", ""))[0] != room.room_id:
                raise bad(f"Room alias {alias} does not point to the room", "M_BAD_ALIAS")

    # ---- aliases

    def put_alias(self, requester: Requester, alias: str, room_id: str) -> None:
        """``PUT /directory/room``."""
        if not alias.startswith("#") or ":" not in alias:
            raise bad("Room alias invalid", "M_INVALID_PARAM")
        if requester.appservice and not self.appservice.owns_alias(alias):
            raise bad("This application service has not reserved this kind of alias.", "M_EXCLUSIVE")
        room = self.rooms.get(room_id)
        if not requester.appservice:
            if room is None or room.membership(requester.user_id) != "join":
                raise forbidden("You must be in the room to create an alias for it")
            if self.appservice.reserves_alias(alias):
                raise bad("This alias is reserved by an application service.", "M_EXCLUSIVE")
        if alias in self.aliases:
            raise MatrixError(409, "M_UNKNOWN", f"Room alias {alias} already exists")
        if room is None:
            raise bad("Room does not exist")
        self.aliases[alias] = (room_id, requester.user_id)

    def delete_alias(self, requester: Requester, alias: str) -> None:
        """``DELETE /directory/room``. Deleting in the own namespace always succeeds on Synapse."""
        target = self.aliases.get(alias)
        if requester.appservice:
            if not self.appservice.owns_alias(alias):
                raise bad("This application service has not reserved this kind of alias.", "M_EXCLUSIVE")
            if target is None and self.flavour.name == "tuwunel":
                raise not_found("Alias does not exist or is invalid.")
        elif target is None:
            raise not_found("Unknown room alias")
        else:
            room = self.joined_room(requester, target[0])
            needed = auth.send_level(room, "m.room.canonical_alias", True)
            if target[1] != requester.user_id and auth.user_level(room, requester.user_id) < needed:
                raise forbidden("You don't have permission to delete the alias.")
        self.aliases.pop(alias, None)

    # ---- notifications

    def set_typing(self, requester: Requester, room_id: str, user_id: str, timeout_ms: int | None) -> None:
        """Start (timeout in ms) or stop (None) typing; the appservice hears of changes."""
        if user_id != requester.user_id:
            raise bad("Cannot set another user's typing state", "M_FORBIDDEN")
        room = self.joined_room(requester, room_id)
        running = room.typing.pop(user_id, None)
        if running is not None:
            running.cancel()
        if timeout_ms is not None:
            if self.flavour.typing_ms is not None:
                low, high = self.flavour.typing_ms
                timeout_ms = min(max(timeout_ms, low), high)
            later = asyncio.get_running_loop().call_later
            room.typing[user_id] = later(timeout_ms / 1000, self._typing_ended, room, user_id)
        if (running is not None) != (timeout_ms is not None):
            self._typing_changed(room)

    def _typing_ended(self, room: Room, user_id: str) -> None:
        if room.typing.pop(user_id, None) is not None:
            self._typing_changed(room)

    def _typing_changed(self, room: Room) -> None:
        if self.pusher is not None and self.interested_in_room(room):
            edu = {"type": "m.typing", "room_id": room.room_id, "content": {"user_ids": sorted(room.typing)}}
            self.pusher.push_edu(edu)
        self.notify()

    def profile_changed(self, user_id: str) -> None:
        """Let member events with the new name or avatar follow in all rooms of the user."""
        if not self.flavour.profile_lag:
            membership.write_profile(self, user_id)
            return
        later = asyncio.get_running_loop().call_later
        if timer := self._profile_timers.pop(user_id, None):
            timer.cancel()
        self._profile_timers[user_id] = later(self.flavour.profile_lag, membership.write_profile, self, user_id)

    def cancel_timers(self) -> None:
        """Forget who types and which profiles changed, as the end of the process does; nobody is told."""
        for timer in self._profile_timers.values():
            timer.cancel()
        for room in self.rooms.values():
            for timer in room.typing.values():
                timer.cancel()
            room.typing.clear()

    def set_receipt(self, requester: Requester, room_id: str, kind: str, event_id: str, thread: str | None) -> None:
        """A read receipt. Unknown and older events change nothing, as on Synapse."""
        room, event = self.rooms.get(room_id), self.events.get(event_id)
        if room is None or event is None or event.room_id != room_id:
            return
        if room.membership(requester.user_id) is None or not room.visible(event, requester.user_id):
            raise forbidden("You don't have permission to access that event.")
        key = (requester.user_id, kind, thread)
        old = room.receipts.get(key)
        if old is not None and old.stream >= event.stream and old.event_id != event_id:
            return
        receipt = room.receipts[key] = Receipt(event_id, now_ms(), event.stream)
        private = kind != "m.read"
        told = self.interested_in_room(room) and not (private and not self.appservice.owns_user(requester.user_id))
        if private and self.flavour.name == "tuwunel":
            told = False
        if self.pusher is not None and told:
            content = {event_id: {kind: {requester.user_id: {"ts": receipt.ts}}}}
            self.pusher.push_edu({"type": "m.receipt", "room_id": room_id, "content": content})
        self.notify()
