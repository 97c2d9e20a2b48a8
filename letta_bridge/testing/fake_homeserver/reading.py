"""What clients read: timelines, single events, context, relations, members, the space hierarchy."""

import re
import secrets
from typing import TYPE_CHECKING, Any

from .accounts import Requester
from .errors import MatrixError, bad, forbidden, not_found
from .events import JSON, Event, bare_event, client_event

if TYPE_CHECKING:
    from .homeserver import Homeserver
    from .rooms import Room

_TOKEN = re.compile(r"[ts](-?\d+)(?:-\d+)?\Z")
_MAX_PAGE = 1000
_CHILD_STATE = ("m.space.child",)


class Reader:
    """Reads as one requester. Every method raises MatrixError where the requester has no access."""

    def __init__(self, hs: "Homeserver", requester: Requester) -> None:
        self._hs = hs
        self._who = requester

    def show(self, event: Event, room: "Room") -> JSON:
        """The event in the form of the client API, with what the server bundles."""
        extra: JSON = {}
        if self._hs.flavour.v1_events:
            extra["membership"] = room.membership_at(self._who.user_id, event.position)
        if event.transaction is not None and event.transaction[:2] == (self._who.user_id, self._who.device_id):
            extra["transaction_id"] = event.transaction[2]
        if bundle := self._bundle(event, room):
            extra["m.relations"] = bundle
        return client_event(event, self._hs.flavour, extra)

    def _bundle(self, event: Event, room: "Room") -> JSON:
        out: JSON = {}
        alive = [other for other in room.related.get(event.event_id, ()) if other.relation() is not None]
        edits = [o for o in alive if (o.relation() or ("",))[0] == "m.replace" and o.sender == event.sender]
        if edits and self._hs.flavour.bundles_edits:
            out["m.replace"] = client_event(edits[-1], self._hs.flavour, {})
        thread = [o for o in alive if (o.relation() or ("",))[0] == "m.thread"]
        if thread:
            out["m.thread"] = {
                "latest_event": client_event(thread[-1], self._hs.flavour, {}),
                "count": len(thread),
                "current_user_participated": any(o.sender == self._who.user_id for o in thread),
            }
        return out

    def messages(self, room_id: str, query: dict[str, Any]) -> JSON:
        """``/messages``: ``dir``, ``from``, ``to``, ``limit``, ``types`` (from the filter) in ``query``.

        A token ``tN`` stands between the events N-1 and N of the room. ``limit`` counts events before those are
        left out that the requester may not see: a page can be short or empty and still have an ``end``.
        """
        room = self._hs.readable_room(self._who, room_id)
        backwards = query["dir"] == "b"
        last = room.last_position(self._who.user_id) + 1
        start = last if backwards else 0
        if query.get("from"):
            start = min(self._position(query["from"]), last)
        stop = 0 if backwards else last
        if query.get("to"):
            stop = self._position(query["to"])
        span = range(start - 1, stop - 1, -1) if backwards else range(start, min(stop, last))
        chunk: list[JSON] = []
        touched, left = None, min(query["limit"], _MAX_PAGE)
        for position in span:
            if left <= 0:
                break
            event = room.timeline[position]
            if query.get("types") and event.type not in query["types"]:
                continue
            touched, left = position, left - 1
            if room.visible(event, self._who.user_id):
                chunk.append(self.show(event, room))
        out: JSON = {"chunk": chunk, "start": f"t{start}"}
        if touched is not None:
            out["end"] = f"t{touched if backwards else touched + 1}"
        elif query["limit"] == 0:
            out["end"] = out["start"]
        return out

    @staticmethod
    def _position(token: str) -> int:
        match = _TOKEN.match(token)
        if not match:
            raise bad("'from' parameter is invalid")
        return max(0, int(match.group(1)))

    def event(self, room_id: str, event_id: str) -> JSON:
        """One event. Whatever is wrong, the answer is 404."""
        event = self._hs.events.get(event_id)
        room = self._hs.room(room_id)
        if event is None or room is None or event.room_id != room_id or not self._sees(room, event):
            raise not_found("Event not found.")
        return self.show(event, room)

    def _sees(self, room: "Room", event: Event) -> bool:
        user = self._who.user_id
        if not (room.membership(user) == "join" or room.was_member(user) or room.world_readable()):
            return False
        return event.position <= room.last_position(user) and room.visible(event, user)

    def context(self, room_id: str, event_id: str, limit: int) -> JSON:
        """An event with its neighbours."""
        event, room = self._hs.events.get(event_id), self._hs.room(room_id)
        if event is None or room is None or event.room_id != room_id:
            raise not_found("Event not found.")
        if not self._sees(room, event):
            raise forbidden("You don't have permission to access that event.")
        half = limit // 2
        before = self.messages(room_id, {"dir": "b", "from": f"t{event.position}", "limit": half})
        after = self.messages(room_id, {"dir": "f", "from": f"t{event.position + 1}", "limit": limit - half})
        last = event.position + len(after["chunk"])
        return {
            "start": before.get("end", before["start"]),
            "events_before": before["chunk"],
            "event": self.show(event, room),
            "events_after": after["chunk"],
            "end": after.get("end", after["start"]),
            "state": [client_event(entry, self._hs.flavour, {}) for entry in room.state_at(last).values()],
        }

    def relations(self, room_id: str, event_id: str, kind: str | None, event_type: str | None, query: JSON) -> JSON:
        """Events that relate to one event, newest first by default."""
        room = self._hs.readable_room(self._who, room_id)
        parent = self._hs.events.get(event_id)
        if parent is None or parent.room_id != room_id:
            raise MatrixError(404, "M_UNKNOWN", "Unknown parent event.")
        found = [
            event
            for event in room.related.get(event_id, ())
            if (relation := event.relation()) is not None
            and kind in (None, relation[0])
            and event_type in (None, event.type)
            and room.visible(event, self._who.user_id)
        ]
        if query["dir"] == "b":
            found.reverse()
        offset = self._position(query["from"]) if query.get("from") else 0
        limit = min(query["limit"] if query["limit"] is not None else self._hs.flavour.relations_page, 100)
        out: JSON = {"chunk": [self.show(event, room) for event in found[offset : offset + limit]]}
        if offset + limit < len(found):
            out["next_batch"] = f"t{offset + limit}"
        if offset:
            out["prev_batch"] = f"t{max(0, offset - limit)}"
        return out

    # ---- state and members

    def full_state(self, room_id: str) -> list[JSON]:
        """All state events; for the departed, as it was when they left."""
        room = self._hs.readable_room(self._who, room_id)
        state = room.state_at(room.last_position(self._who.user_id))
        return [client_event(event, self._hs.flavour, {}) for event in state.values()]

    def state_event(self, room_id: str, event_type: str, state_key: str, whole: bool) -> JSON:
        """The content of one state event, or (``whole``) the event."""
        try:
            room = self._hs.readable_room(self._who, room_id)
        except MatrixError as refusal:
            status, errcode = self._hs.flavour.hidden_state
            raise MatrixError(status, errcode, refusal.error) from refusal
        event = room.state_at(room.last_position(self._who.user_id)).get((event_type, state_key))
        if event is None:
            raise not_found("Event not found.")
        return bare_event(event, self._hs.flavour) if whole else event.content

    def members(self, room_id: str, only: str | None, without: str | None) -> JSON:
        """Member events, filtered by membership."""
        members = [
            event
            for event in self.full_state(room_id)
            if event["type"] == "m.room.member"
            and only in (None, event["content"].get("membership"))
            and (without is None or without != event["content"].get("membership"))
        ]
        return {"chunk": members}

    def joined_members(self, room_id: str) -> JSON:
        """Joined users with name and avatar."""
        room = self._hs.room(room_id)
        inside = room is not None and room.membership(self._who.user_id) == "join"
        if room is not None and self._hs.flavour.members_for_any and self._who.appservice:
            inside = any(map(self._hs.appservice.owns_user, room.members()))
        if room is None or not inside:
            text = f"User {self._who.user_id} not in room {room_id}, and room previews are disabled"
            raise forbidden("Appservice not in room" if self._who.appservice else text)
        profiles = {user: room.content("m.room.member", user) for user in room.members()}
        return {
            "joined": {
                user: {"display_name": content.get("displayname"), "avatar_url": content.get("avatar_url")}
                for user, content in profiles.items()
            }
        }

    # ---- spaces

    def hierarchy(self, space_id: str, max_depth: int | None, suggested: bool) -> list[JSON | None]:
        """The rooms of a space, the space first, depth first; None for each that the requester may not know."""
        if not self._may_know(space_id):
            raise forbidden(f"User {self._who.user_id} not in room {space_id}, and room previews are disabled")
        out: list[JSON | None] = []
        todo, seen = [(space_id, 0)], set[str]()
        while todo:
            room_id, depth = todo.pop()
            room = self._hs.room(room_id)
            if room_id in seen or room is None or not self._may_know(room_id):
                out.append(None)
                continue
            seen.add(room_id)
            children = self._children(room, suggested)
            below = children if max_depth is None or depth < max_depth else []
            out.append(self._summary(room, below))
            todo.extend((str(child.state_key), depth + 1) for child in reversed(below))
        return out

    def _children(self, room: "Room", suggested: bool) -> list[Event]:
        if room.content("m.room.create").get("type") != "m.space":
            return []
        children = [
            event
            for (event_type, _), event in room.state.items()
            if event_type in _CHILD_STATE
            and isinstance(event.content.get("via"), list)
            and (not suggested or event.content.get("suggested") is True)
        ]
        if self._hs.flavour.hierarchy_ordered:
            children.sort(key=_child_order)
        return children

    def _may_know(self, room_id: str) -> bool:
        room = self._hs.room(room_id)
        if room is None:
            return False
        if room.membership(self._who.user_id) in ("join", "invite") or room.world_readable():
            return True
        rules = room.content("m.room.join_rules")
        if rules.get("join_rule") in ("public", "knock", "knock_restricted"):
            return True
        doors = [self._hs.room(str(entry.get("room_id"))) for entry in rules.get("allow", ())]
        return any(door is not None and door.membership(self._who.user_id) == "join" for door in doors)

    def _summary(self, room: "Room", children: list[Event]) -> JSON:
        out: JSON = {
            "room_id": room.room_id,
            "room_version": room.version,
            "num_joined_members": len(room.members()),
            "world_readable": room.world_readable(),
            "guest_can_join": room.content("m.room.guest_access").get("guest_access") == "can_join",
            "join_rule": room.content("m.room.join_rules").get("join_rule", "invite"),
            "children_state": [
                {
                    "type": child.type,
                    "state_key": child.state_key,
                    "content": child.content,
                    "sender": child.sender,
                    "origin_server_ts": child.origin_server_ts,
                }
                for child in children
            ],
        }
        optional = {
            "name": room.content("m.room.name").get("name"),
            "topic": room.content("m.room.topic").get("topic"),
            "avatar_url": room.content("m.room.avatar").get("url"),
            "canonical_alias": room.content("m.room.canonical_alias").get("alias"),
            "room_type": room.content("m.room.create").get("type"),
        }
        return out | {key: value for key, value in optional.items() if value}


def _child_order(event: Event) -> tuple[bool, str, int, str]:
    order = event.content.get("order")
    valid = isinstance(order, str) and 0 < len(order) <= 50 and all(" " <= char <= "~" for char in order)
    return not valid, order if isinstance(order, str) and valid else "", event.origin_server_ts, str(event.state_key)


class HierarchyPages:
    """Pages of ``/hierarchy``: a token continues the listing that was made with the first request."""

    def __init__(self) -> None:
        self._rest: dict[str, list[JSON | None]] = {}

    def page(self, rooms: list[JSON | None] | None, token: str | None, limit: int) -> JSON:
        """The first ``limit`` of ``rooms``, or of what the token stands for.

        Unknowable rooms (None) fill no page, but keep a token alive: the last page can be empty.
        """
        if rooms is None:
            if token not in self._rest:
                raise bad("Unknown pagination token", "M_INVALID_PARAM")
            rooms = self._rest[str(token)]
        shown: list[JSON] = []
        taken = 0
        while taken < len(rooms) and len(shown) < limit:
            room = rooms[taken]
            taken += 1
            if room is not None:
                shown.append(room)
        out: JSON = {"rooms": shown}
        if taken < len(rooms):
            out["next_batch"] = secrets.token_urlsafe(18)
            self._rest[out["next_batch"]] = rooms[taken:]
        return out
