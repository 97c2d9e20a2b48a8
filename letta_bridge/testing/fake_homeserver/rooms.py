"""One room: its timeline, its current state, and what each user may see of its past."""

import asyncio
from bisect import bisect_right
from dataclasses import dataclass, field

from .events import JSON, Event

_STRIPPED = (
    "m.room.create", "m.room.join_rules", "m.room.canonical_alias", "m.room.avatar", "m.room.encryption",
    "m.room.name", "m.room.topic",
)  # fmt: skip
_OPENNESS = ("joined", "invited", "shared", "world_readable")
_NEARNESS = ("leave", "ban", "invite", "knock", "join")


@dataclass(slots=True)
class Receipt:
    """The newest read receipt of one user, type and thread."""

    event_id: str
    ts: int
    stream: int


@dataclass(slots=True)
class Room:
    """A room's memory. Events are appended by the homeserver only, after its checks."""

    room_id: str
    version: str
    timeline: list[Event] = field(default_factory=list)
    state: dict[tuple[str, str], Event] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    typing: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    receipts: dict[tuple[str, str, str | None], Receipt] = field(default_factory=dict)
    related: dict[str, list[Event]] = field(default_factory=dict)
    creator: str = ""
    creators: frozenset[str] = frozenset()
    _memberships: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    _visibility: list[tuple[int, str]] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Put a checked event at the end and into the state."""
        self.timeline.append(event)
        if relation := event.relation():
            self.related.setdefault(relation[1], []).append(event)
        if event.state_key is None:
            return
        self.state[(event.type, event.state_key)] = event
        if event.type == "m.room.member":
            history = self._memberships.setdefault(event.state_key, [])
            history.append((event.position, str(event.content.get("membership"))))
            self.forgotten.discard(event.state_key)
        elif event.type == "m.room.history_visibility" and event.state_key == "":
            value = event.content.get("history_visibility")
            self._visibility.append((event.position, value if value in _OPENNESS else "shared"))
        elif event.type == "m.room.create":
            self.creator = event.sender
            self.creators = frozenset([event.sender, *event.content.get("additional_creators", ())])

    def content(self, event_type: str, state_key: str = "") -> JSON:
        """Content of a current state event, ``{}`` when there is none."""
        event = self.state.get((event_type, state_key))
        return event.content if event is not None else {}

    def membership(self, user_id: str) -> str | None:
        """Current membership, None when the room never heard of the user."""
        history = self._memberships.get(user_id)
        return history[-1][1] if history else None

    def members(self, membership: str = "join") -> list[str]:
        """Users with this membership, in the order in which they first appeared."""
        return [user for user, history in self._memberships.items() if history[-1][1] == membership]

    def last_position(self, user_id: str) -> int:
        """Position of the newest event that a user may read: the end, or the own departure."""
        if self.membership(user_id) in ("leave", "ban"):
            return self._memberships[user_id][-1][0]
        return len(self.timeline) - 1

    def was_member(self, user_id: str) -> bool:
        """Whether the user departed and has not forgotten the room: such a user still reads the past."""
        return self.membership(user_id) in ("leave", "ban") and user_id not in self.forgotten

    def world_readable(self) -> bool:
        """Whether strangers may read."""
        return bool(self.content("m.room.history_visibility").get("history_visibility") == "world_readable")

    def state_at(self, position: int) -> dict[tuple[str, str], Event]:
        """The state after the event at this position."""
        if position >= len(self.timeline) - 1:
            return self.state
        past: dict[tuple[str, str], Event] = {}
        for event in self.timeline[: position + 1]:
            if event.state_key is not None:
                past[(event.type, event.state_key)] = event
        return past

    def membership_at(self, user_id: str, position: int) -> str:
        """The user's membership when the event at this position was sent (after it, if it is their own)."""
        history = self._memberships.get(user_id, [])
        index = bisect_right(history, position, key=lambda entry: entry[0]) - 1
        return history[index][1] if index >= 0 else "leave"

    def visible(self, event: Event, user_id: str) -> bool:
        """Whether history visibility lets the user, who has access to the room, see this event."""
        if event.hidden:
            return False
        openness = self._openness(event)
        if openness == "world_readable":
            return True
        membership = self.membership_at(user_id, event.position)
        if event.type == "m.room.member" and event.state_key == user_id:
            before = self.membership_at(user_id, event.position - 1)
            if membership == "leave" and before in ("join", "invite"):
                return True
            membership = max(membership, before, key=_nearness)
        if membership == "join":
            return True
        if openness == "invited":
            return membership == "invite"
        return openness == "shared" and user_id in self._memberships

    def _openness(self, event: Event) -> str:
        before = self._visibility_at(event.position - 1)
        if event.type != "m.room.history_visibility":
            return before
        return max(before, self._visibility_at(event.position), key=_OPENNESS.index)

    def _visibility_at(self, position: int) -> str:
        index = bisect_right(self._visibility, position, key=lambda entry: entry[0]) - 1
        return self._visibility[index][1] if index >= 0 else "shared"

    def stripped_state(self, *more: str) -> list[JSON]:
        """What an invited user is told about the room; ``more`` are members to include."""
        keys = [(name, "") for name in _STRIPPED] + [("m.room.member", user) for user in more]
        return [
            {"type": found.type, "state_key": found.state_key, "content": found.content, "sender": found.sender}
            for found in (self.state[key] for key in keys if key in self.state)
        ]


def _nearness(membership: str) -> int:
    return _NEARNESS.index(membership) if membership in _NEARNESS else 0
