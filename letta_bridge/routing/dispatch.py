"""Who answers an event, and why: a pure function of the event, the room, and what the sender may do.

Its reason is stored with the event, so that every non-answer can be explained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .. import errors
from ..commands.parse import begins
from ..ids import MXID, AgentID, EventID, RoomID
from ..matrix.incoming import Relation
from . import mentions
from .permissions import EVERYBODY, Grant, Level
from .rights import settled

STOP_WORD = "!stop"
STOP_REACTIONS = frozenset(("🛑", "⏹", "✋", "⛔", "❌"))
_VARIATION_SELECTOR = "\ufe0f"

_UNSUPPORTED_TYPES = {
    "m.sticker": "stickers",
    "m.poll.start": "polls",
    "org.matrix.msc3381.poll.start": "polls",
    "m.call.invite": "calls",
    "org.matrix.msc3401.call": "calls",
    "m.beacon_info": "live locations",
    "org.matrix.msc3672.beacon_info": "live locations",
}
_UNSUPPORTED_MESSAGES = {
    "m.image": "images",
    "m.file": "files",
    "m.audio": "audio files",
    "m.video": "videos",
    "m.location": "locations",
}
_TEXTS = ("m.text", "m.emote")


class Action(Enum):
    """What the event asks for."""

    IGNORE = "ignore"
    ANSWER = "answer"
    EDIT = "edit"
    WITHDRAW = "withdraw"
    STOP = "stop"
    COMMAND = "command"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class PuppetInRoom:
    """One of our agents that is joined to the room. ``owner`` is who summoned it, or empty; ``state`` is its row's."""

    mxid: MXID
    agent_id: AgentID
    name: str
    owner: str = ""
    state: str = "active"

    @property
    def absent(self) -> bool:
        """Whether Letta does not have it, or it was despawned: nothing reaches it."""
        return self.state in ("missing", "archived")


@dataclass(frozen=True, slots=True)
class RoomView:
    """A room as far as a decision needs it. ``people`` are those joined who are neither ours nor known bots.

    ``management``: it is one of the admins' management rooms. ``bot`` is the bridge's own user; what it is called.
    """

    room_id: RoomID
    puppets: tuple[PuppetInRoom, ...]
    people: tuple[MXID, ...]
    people_names: tuple[str, ...]
    bot_joined: bool
    management: bool = False
    bot: PuppetInRoom | None = None

    @property
    def private(self) -> bool:
        """Whether commands are what the room is for: a management room, or a direct chat with the bot."""
        return self.management or (self.bot_joined and not self.puppets and len(self.people) <= 1)

    @property
    def alone(self) -> PuppetInRoom | None:
        """The puppet of a room with one person and one puppet (the bot is not counted): it always answers."""
        return self.puppets[0] if len(self.puppets) == 1 and len(self.people) <= 1 else None


@dataclass(frozen=True, slots=True)
class EventView:
    """An event as far as a decision needs it."""

    event_id: EventID
    sender: MXID
    type: str
    content: Mapping[str, Any]
    relation: Relation
    text: str
    redacts: str = ""
    reply_sender: MXID | None = None
    thread_sender: MXID | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the sender may do: with the bridge, and with those agents of the room for which it is something else."""

    whole: Grant
    agents: Mapping[AgentID, Grant]
    known: bool = False

    def of(self, puppet: PuppetInRoom) -> Grant:
        """The level with one agent in this room."""
        return self.agents.get(puppet.agent_id, self.whole)

    def those(self, puppets: tuple[PuppetInRoom, ...]) -> tuple[PuppetInRoom, ...]:
        """Those that the sender may talk to."""
        return tuple(puppet for puppet in puppets if self.of(puppet).level >= Level.USER)


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the sender. ``topic``: said once for that topic within the room; empty: each time.

    ``puppet`` says it, or the bot when there is none.
    """

    text: str
    topic: str = ""
    puppet: PuppetInRoom | None = None
    again_after: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with an event. ``target`` is the event that an edit, a redaction or a stop is about."""

    action: Action
    reason: str
    puppets: tuple[PuppetInRoom, ...] = ()
    notice: Notice | None = None
    target: str = ""


def decide(
    event: EventView,
    room: RoomView,
    grant: Grant,
    agents: Mapping[AgentID, Grant] | None = None,
    *,
    known: bool = False,
) -> Decision:
    """Decide. Whether the sender has sent too much is asked afterwards, only for what would be answered.

    ``grant`` is what the sender may do with the bridge; ``agents`` what it is with those agents of the room for which
    it is something else; ``known`` whether something was given to the sender anywhere, who may then use commands.
    """
    may = Allowed(grant, agents or {}, known)
    if event.ours:
        return _ignore("sent by a puppet; agents do not wake each other yet")
    if not room.puppets and not room.bot_joined:
        return _ignore("nobody of ours is in the room")
    if grant.ignored_by is not None and not may.those(room.puppets) and (room.puppets or not known):
        return _ignore(f"sender matches ignored_senders: {grant.ignored_by}")
    if event.type == "m.room.redaction":
        return Decision(Action.WITHDRAW, "redaction", target=event.redacts)
    if not event.content:  # homeservers push what is left of an event that was redacted meanwhile
        return _ignore("redacted before it came")
    if event.type == "m.room.encrypted":
        return _encrypted(room)
    if event.type == "m.reaction":
        return _reaction(event, room, may)
    if thing := _UNSUPPORTED_TYPES.get(event.type):
        return _unsupported(thing, event, room, may)
    if event.type != "m.room.message":
        return _ignore(f"event type {event.type[:60]} starts nothing")
    return _message(event, room, may)


def _message(event: EventView, room: RoomView, may: Allowed) -> Decision:
    kind = event.content.get("msgtype")
    kind = kind if isinstance(kind, str) else ""
    if kind == "m.notice":
        return _ignore("notices never start anything")
    if event.relation.replaces:
        return Decision(Action.EDIT, "edit", target=event.relation.replaces, puppets=room.puppets[:1])
    if kind in _TEXTS and (why := _for_the_bridge(event, room)):
        return _command(room, may, why)
    if room.puppets and kind in _TEXTS and event.text.strip().split(maxsplit=1)[:1] == [STOP_WORD]:
        return _stop(event, room, may, "")
    if not room.puppets:
        return _ignore("no agent in the room")
    if kind in _UNSUPPORTED_MESSAGES:
        voice = kind == "m.audio" and ("org.matrix.msc3245.voice" in event.content or "m.voice" in event.content)
        return _unsupported("voice messages" if voice else _UNSUPPORTED_MESSAGES[kind], event, room, may)
    if kind not in _TEXTS:
        return _unsupported("this kind of message", event, room, may)
    return _text(event, room, may)


def _text(event: EventView, room: RoomView, may: Allowed) -> Decision:
    meant, why, ambiguous = _meant(event, room)
    if not meant:
        if ambiguous and may.those(room.puppets):
            names = ", ".join(f"“{name}”" for name in ambiguous)
            notice = Notice(errors.AMBIGUOUS.format(names=names), puppet=room.puppets[0])
            return Decision(Action.NOTICE, "ambiguous name", notice=notice)
        return _ignore("not meant for an agent in this room")
    allowed = may.those(meant)
    if not allowed:
        return _refuse(may.of(meant[0]), meant[0])
    if not event.text.strip():
        return _ignore("empty message")
    reached = tuple(puppet for puppet in allowed if not puppet.absent)
    absent = next((puppet for puppet in allowed if puppet.absent), None)
    said = None if absent is None else Notice(errors.ABSENT[absent.state], puppet=absent)
    if not reached:
        return Decision(Action.NOTICE, "the agent is not in Letta now", notice=said)
    refused = next((puppet for puppet in meant if puppet not in allowed), None)
    said = said if refused is None else _refuse(may.of(refused), refused).notice
    return Decision(Action.ANSWER, why, puppets=reached, notice=said)


def _meant(event: EventView, room: RoomView) -> tuple[tuple[PuppetInRoom, ...], str, tuple[str, ...]]:
    if room.alone is not None:
        return (room.alone,), "one person and one agent", ()
    addressing = _addressed(event, room, room.puppets)
    by_mxid = {puppet.mxid: puppet for puppet in room.puppets}
    meant = tuple(by_mxid[mxid] for mxid in addressing.meant)
    why = "; ".join(f"{by_mxid[mxid].agent_id}: {addressing.reasons[mxid]}" for mxid in addressing.meant)
    return meant, why, tuple(addressing.ambiguous)


def _addressed(event: EventView, room: RoomView, ours: Sequence[PuppetInRoom]) -> mentions.Addressing:
    user_ids = event.content.get("m.mentions")
    user_ids = user_ids.get("user_ids") if isinstance(user_ids, Mapping) else None
    html = event.content.get("formatted_body")
    return mentions.addressed(
        mentions.Incoming(
            body_without_fallback=event.text,
            formatted_body=html if isinstance(html, str) else None,
            mentions_user_ids=tuple(u for u in user_ids if isinstance(u, str)) if isinstance(user_ids, list) else (),
            reply_to_sender=event.reply_sender,
            thread_root_sender=event.thread_sender,
        ),
        [mentions.Puppet(puppet.mxid, puppet.name) for puppet in ours],
        room.people_names,
    )


def _for_the_bridge(event: EventView, room: RoomView) -> str:
    """Why a text is a command; empty when it is none."""
    if begins(event.text):
        return "begins with !letta"
    if room.puppets or not room.bot_joined:
        return ""
    if len(room.people) <= 1:
        return "message to the bot"
    if room.management and room.bot is not None and _addressed(event, room, [room.bot]).meant:
        return "mentions the bot"
    return ""


def _command(room: RoomView, may: Allowed, why: str) -> Decision:
    if may.whole.level < Level.USER and not may.known and not may.those(room.puppets):
        return _refuse(may.whole, None if room.bot_joined else room.puppets[0])
    return Decision(Action.COMMAND, why)


def _reaction(event: EventView, room: RoomView, may: Allowed) -> Decision:
    key = (event.relation.key or "").replace(_VARIATION_SELECTOR, "")
    if key not in STOP_REACTIONS or not event.relation.reacts_to or not room.puppets:
        return _ignore("reaction without a meaning here")
    if not may.those(room.puppets):
        return _ignore("stop reaction of somebody who may not talk to agents")
    return _stop(event, room, may, event.relation.reacts_to)


def _stop(event: EventView, room: RoomView, may: Allowed, target: str) -> Decision:
    if not room.puppets:
        return _ignore("no agent in the room")
    meant, _, _ = _meant(event, room)
    named = meant or room.puppets
    allowed = may.those(named)
    if not allowed:
        text = errors.MAY_NOT_STOP.format(or_else=_or_grant(may.whole, named[0]))
        notice = Notice(text, f"stop-refused:{event.sender}", named[0])
        return Decision(Action.NOTICE, str(may.of(named[0])), notice=notice)
    return Decision(Action.STOP, "stop", puppets=allowed, target=target)


def _unsupported(thing: str, event: EventView, room: RoomView, may: Allowed) -> Decision:
    if not room.puppets:
        return _ignore(f"{thing} are not for the bot")
    meant, _, _ = _meant(event, room)
    if not meant:
        return _ignore(f"{thing}, not meant for an agent in this room")
    allowed = may.those(meant)
    if not allowed:
        return _refuse(may.of(meant[0]), meant[0])
    notice = Notice(errors.UNSUPPORTED.format(things=thing), f"unsupported:{thing}", allowed[0])
    return Decision(Action.NOTICE, f"{thing} are not supported", notice=notice)


def _encrypted(room: RoomView) -> Decision:
    puppet = room.puppets[0] if room.puppets else None
    text = errors.ENCRYPTED if puppet else errors.ENCRYPTED_BOT
    return Decision(Action.NOTICE, "encrypted", notice=Notice(text, "encrypted", puppet))


def _refuse(grant: Grant, puppet: PuppetInRoom | None) -> Decision:
    topic, text = f"refused:{grant.mxid}", errors.MAY_NOT_TALK if puppet else errors.MAY_NOT_COMMAND
    text = text.format(who=grant.mxid, or_else=_or_grant(grant, puppet))
    if grant.subject and puppet is not None:
        topic = f"{topic}:{grant.subject}"
        by = "you" if grant.entry == grant.mxid else "everybody" if grant.entry == EVERYBODY else "your homeserver"
        here = grant.subject.startswith("room:")
        what, name = ("agents in this room", "here") if here else ("this agent", puppet.mxid)
        text = errors.MAY_NOT_TALK_HERE.format(what=what, by=by, who=grant.mxid, name=name)
    return Decision(Action.NOTICE, str(grant), notice=Notice(text, topic, puppet))


def _or_grant(grant: Grant, puppet: PuppetInRoom | None) -> str:
    return "" if settled(grant) else errors.or_grant(grant.mxid, puppet.mxid if puppet else "")


def _ignore(reason: str) -> Decision:
    return Decision(Action.IGNORE, reason)
