"""What the next events of a room find when they are dispatched: read in one go, and what agents will read of it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..db.access import Access, AccessTable
from ..db.agents import AgentRow
from ..db.database import Reader
from ..db.inbox import StoredEvent
from ..db.rooms import RoomInfo
from ..db.turns import NewMessage
from ..ids import MXID, AgentID, EventID, RoomID
from ..matrix import envelope, incoming
from ..matrix.homeserver import HomeserverError
from ..routing import rights
from ..routing.dispatch import Action, Decision, EventView, PuppetInRoom, RoomView
from ..routing.permissions import Grant, Level
from .context import RoomContext
from .known import anywhere

_QUOTE_SECONDS = 5.0
_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Scene:
    """A room at a moment.

    Attributes:
        room: its name and members as known.
        view: the same as the decision sees it.
        portal: the agent whose portal the room is.
        events: the oldest that wait, in order.
        recent: how many messages each of their senders had handed to agents, or commands taken in, in the last minute.
        given: what was given by command on the room or its agents.
    """

    room: RoomInfo
    view: RoomView
    portal: AgentRow | None
    events: Sequence[StoredEvent]
    recent: dict[MXID, int]
    given: Sequence[Access] = ()
    known: frozenset[MXID] = frozenset()
    """Senders whom the configuration does not let in, but something that was given to them, or ownership."""

    def rights(self, whole: Grant) -> dict[AgentID, Grant]:
        """What a person may do with agents of the room, where it is something else than with the bridge as a whole."""
        agents = [rights.Owned(puppet.agent_id, puppet.owner) for puppet in self.view.puppets]
        return rights.talks(whole, self.given, agents, self.room.room_id)


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as the decision sees it, and the content of the message that it replies to."""

    view: EventView
    quoted: Mapping[str, Any]


class Scenes:
    """Reads scenes."""

    def __init__(self, context: RoomContext) -> None:
        self._c = context

    async def read(self, room_id: RoomID, most: int = _AT_ONCE) -> Scene:
        """The room now, with up to ``most`` of its waiting events."""
        c = self._c

        async def work(reader: Reader) -> Scene:
            events = await c.inbox.waiting(room_id, most, reader)
            recent = {
                sender: await self._recent_by(sender, reader)
                for sender in dict.fromkeys(event.sender for event in events)
                if not c.directory.is_ours(sender)
            }
            known = frozenset([sender for sender in recent if await self._known(sender, reader)])
            room = await c.rooms.info(room_id, reader)
            agents, ruled = await c.agents.ruled_in_room(room_id, reader)
            ids = [agent.agent_id for agent in agents]
            given = await AccessTable(c.db).in_room(room_id, ids, reader) if ruled else []
            portal = await c.agents.by_portal(room_id, reader)
            management = await c.management.is_one(room_id, reader)
            return Scene(room, self._view(room, agents, given, management), portal, events, recent, given, known)

        return await c.db.read(work)

    async def _recent_by(self, sender: MXID, reader: Reader) -> int:
        """What counts for a sender's rate: messages, and commands of who is no administrator."""
        messages = await self._c.turns.recent_by(sender, 60.0, reader)
        if self._c.permissions.level(sender) >= Level.ADMIN:
            return messages
        return messages + await self._c.commands.recent_by(sender, 60.0, reader)

    async def _known(self, sender: MXID, reader: Reader) -> bool:
        whole = self._c.permissions.grant(sender)
        return whole.level < Level.USER and (await anywhere(self._c.db, whole, reader)).level >= Level.USER

    def _view(self, room: RoomInfo, agents: list[AgentRow], given: Sequence[Access], management: bool) -> RoomView:
        directory, permissions = self._c.directory, self._c.permissions
        people = [
            member
            for member in room.joined
            if not directory.is_ours(member.mxid) and rights.counts_as_person(permissions.grant(member.mxid), given)
        ]
        bot = self._c.homeserver.bot_mxid
        names = {member.mxid: member.displayname for member in room.joined}
        return RoomView(
            room.room_id,
            tuple(
                PuppetInRoom(agent.mxid, agent.agent_id, agent.shown_name or agent.name, agent.owner, agent.state)
                for agent in agents
            ),
            tuple(member.mxid for member in people),
            tuple(member.displayname for member in people if member.displayname),
            bot in names,
            management,
            PuppetInRoom(bot, AgentID(""), names.get(bot, "")),
        )

    async def seen(self, event: StoredEvent, room: RoomView) -> Seen:
        """The event with what it refers to."""
        content = event.event["content"]
        relation = incoming.relation(content)
        body = (incoming.new_content(content) or content) if relation.replaces else content
        redacts = content.get("redacts") or event.event.get("redacts")
        ours = self._c.directory.is_ours(event.sender)
        is_message = event.type == "m.room.message" and not ours
        reply_sender = thread_sender = None
        quoted: Mapping[str, Any] = {}
        if is_message and relation.reply_to and not relation.falling_back:
            reply_sender, quoted = await self._quoted(room, relation.reply_to)
        if is_message and relation.thread_root and room.alone is None:
            thread_sender, _ = await self._quoted(room, relation.thread_root)
        view = EventView(
            event.event_id,
            event.sender,
            event.type,
            content,
            relation,
            incoming.to_markdown(body) if is_message else "",
            redacts if isinstance(redacts, str) else "",
            reply_sender,
            thread_sender,
            ours,
        )
        return Seen(view, quoted)

    async def _quoted(self, room: RoomView, event_id: EventID) -> tuple[MXID | None, Mapping[str, Any]]:
        """Who wrote an event of this room and what it says: from our tables, else from the homeserver."""
        if spoken := await self._c.outbox.spoken(room.room_id, event_id):
            return spoken
        stored = await self._c.inbox.event(event_id)
        if (stored is None or stored.get("room_id") != room.room_id) and room.puppets:
            try:
                async with asyncio.timeout(_QUOTE_SECONDS):
                    stored = await self._c.homeserver.intent(room.puppets[0].mxid).event(room.room_id, event_id)
            except (HomeserverError, TimeoutError):
                return None, {}  # a quote is context, not worth waiting for
        sender, content = (stored or {}).get("sender"), (stored or {}).get("content")
        return (
            MXID(sender) if isinstance(sender, str) else None,
            content if isinstance(content, Mapping) else {},
        )


def messages(event: StoredEvent, seen: Seen, scene: Scene, decision: Decision) -> list[NewMessage]:
    """What is handed to each agent that is to answer the event."""
    if decision.action is not Action.ANSWER:
        return []
    relation, view = seen.view.relation, scene.view
    really_replies = relation.reply_to is not None and not relation.falling_back
    crowd = len(view.people) > 1 or len(view.puppets) > 1
    thread = relation.thread_root or ""
    reply_to = event.event_id if crowd or thread or really_replies else ""
    names = {member.mxid: member.displayname for member in scene.room.members}
    return [
        NewMessage(
            event.event_id,
            event.sender,
            puppet.agent_id,
            event.room_id,
            thread,
            reply_to,
            crowd,
            _sealed(event, seen, scene, puppet, names),
        )
        for puppet in decision.puppets
    ]


def _sealed(event: StoredEvent, seen: Seen, scene: Scene, puppet: PuppetInRoom, names: Mapping[MXID, str]) -> str:
    """What this agent will read."""
    relation, view = seen.view.relation, scene.view
    author, reply = seen.view.reply_sender, None
    if relation.reply_to and not relation.falling_back:
        who: envelope.Person | str | None = None
        if author is not None:
            who = "you" if author == puppet.mxid else envelope.Person(author, names.get(author, ""))
        excerpt = incoming.excerpt(incoming.to_markdown(seen.quoted)) if seen.quoted else None
        reply = envelope.Reply(relation.reply_to, who, excerpt)  # type: ignore[arg-type]
    kind: envelope.Kind = "group"
    if scene.portal is not None and scene.portal.agent_id == puppet.agent_id:
        kind = "portal"
    elif view.alone is not None:
        kind = "dm"
    body = seen.view.text
    if seen.view.content.get("msgtype") == "m.emote":
        body = f"* {names.get(event.sender) or event.sender} {body}"
    message = envelope.Message(
        sender=envelope.Person(event.sender, names.get(event.sender, "")),
        room=envelope.Room(event.room_id, scene.room.name, kind, len(view.people) + len(view.puppets)),
        time=_time(event.event.get("origin_server_ts")),
        event_id=event.event_id,
        body=body,
        reply=reply,
        thread_root=relation.thread_root,
    )
    return envelope.seal(message)


def _time(milliseconds: object) -> datetime:
    if isinstance(milliseconds, int) and not isinstance(milliseconds, bool):
        try:
            return datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone()
        except (OverflowError, OSError, ValueError):
            pass
    return datetime.now(UTC).astimezone()
