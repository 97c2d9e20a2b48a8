"""The first stage: each room's events in order, each decided once, with the decision and its work in one commit."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from .. import errors, faults
from ..commands.bot import BotCommands
from ..db.agents import AgentRow, Agents
from ..db.database import DATABASE_ERRORS, Connection
from ..db.inbox import Inbox, StoredEvent
from ..db.memory import Told
from ..db.outbox import Outbox
from ..db.rooms import RoomInfo, Rooms
from ..db.stops import StopRequest, Stops
from ..db.turns import NewMessage, Turns
from ..ids import MXID, AgentID, EventID, RoomID, TurnID
from ..lanes import Fence, FencedError, Lanes
from ..letta.errors import LettaError
from ..matrix import envelope, incoming
from ..matrix.homeserver import Homeserver, HomeserverError
from ..mirror.directory import Directory
from ..routing.dispatch import Action, Decision, EventView, Notice, PuppetInRoom, RoomView, decide
from ..routing.permissions import Permissions
from .entry import NotReadError, RoomEntry
from .outgoing import ReplyTarget, Voice, notice

log = logging.getLogger(__name__)

_TRIES = 5
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_QUOTE_SECONDS = 5.0
_STATE_TYPES = frozenset(("m.room.member", "m.room.name", "m.room.encryption"))


class Dispatcher:
    """Handler of ``room:`` lanes. Never calls Letta for a message; only an unknown puppet is looked up there."""

    def __init__(
        self,
        *,
        homeserver: Homeserver,
        directory: Directory,
        permissions: Permissions,
        agents: Agents,
        inbox: Inbox,
        outbox: Outbox,
        turns: Turns,
        stops: Stops,
        rooms: Rooms,
        told: Told,
        lanes: Lanes,
        entry: RoomEntry,
        commands: BotCommands,
        messages_per_minute: int,
    ) -> None:
        self._homeserver = homeserver
        self._directory = directory
        self._permissions = permissions
        self._agents = agents
        self._inbox = inbox
        self._outbox = outbox
        self._turns = turns
        self._stops = stops
        self._rooms = rooms
        self._told = told
        self._lanes = lanes
        self._entry = entry
        self._commands = commands
        self._per_minute = messages_per_minute
        self._waits: dict[RoomID, int] = {}

    async def handle(self, fence: Fence) -> float | None:
        """Dispatch everything that the room of the lane has waiting."""
        room_id = RoomID(fence.lane.partition(":")[2])
        try:
            if (await self._rooms.info(room_id)).gap:
                await self._entry.close_gap(fence, room_id)
            while not self._lanes.closing and (event := await self._inbox.head(room_id)) is not None:
                await self._guarded(fence, event)
        except (HomeserverError, LettaError) as error:
            tries = self._waits.get(room_id, 0)
            self._waits[room_id] = tries + 1
            if not tries:
                extra = {"action": "dispatch_waits", "room": room_id, "why": str(error)}
                log.warning("an event cannot be dispatched yet", extra=extra)
            return float(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(tries, 10)))
        self._waits.pop(room_id, None)
        return await self._inbox.next_wait(room_id)

    async def _guarded(self, fence: Fence, event: StoredEvent) -> None:
        """The boundary at which an event that cannot be handled becomes a dead letter instead of blocking its room."""
        try:
            await self._one(fence, event)
        except (FencedError, *DATABASE_ERRORS):
            raise
        except Exception as error:
            if isinstance(error, LettaError) or (isinstance(error, HomeserverError) and error.passing):
                if event.type != "m.room.member" or isinstance(error, NotReadError):
                    raise
                # an invitation that cannot be taken now does not hold up what is said to others in the room
                delay = float(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(event.attempts, 10)))
                await self._lanes.write(fence, lambda conn: self._inbox.set_aside(conn, event.seq, delay))
                extra = {"action": "invite_waits", "room": event.room_id, "why": str(error)}
                log.warning("an invitation cannot be taken yet", extra=extra)
                return
            attempt = event.attempts + 1
            extra = {"action": "dispatch_failed", "event": event.event_id, "attempt": str(attempt)}
            log.exception("event could not be dispatched", extra=extra)
            if attempt < _TRIES:
                await self._lanes.write(fence, lambda conn: self._inbox.failed(conn, event.seq))
                await asyncio.sleep(_FIRST_WAIT * 2**event.attempts)  # whatever it was gets a moment to pass
            else:
                await self._bury(fence, event)

    async def _bury(self, fence: Fence, event: StoredEvent) -> None:
        puppets = await self._agents.in_room(event.room_id)

        async def work(conn: Connection) -> None:
            await self._inbox.settle(conn, event.seq, "dead", "could not be dispatched; see the log")
            if puppets and not self._directory.is_ours(event.sender) and event.type == "m.room.message":
                target = ReplyTarget("", event.event_id)
                voice = Voice(puppets[0].mxid, event.room_id)
                out = notice(voice, errors.UNDISPATCHED, target, source=event.event_id, kind="undispatched")
                await self._outbox.add(conn, out)

        await self._lanes.write(fence, work)
        self._lanes.wake(f"send:{event.room_id}")

    # -- one event

    async def _one(self, fence: Fence, event: StoredEvent) -> None:
        if event.type in _STATE_TYPES and "state_key" in event.event:
            await self._state(fence, event)
            return
        room = await self._rooms.info(event.room_id)
        agents = await self._agents.in_room(event.room_id)
        if not room.known and not self._directory.is_ours(event.sender):
            room, agents = await self._discover(fence, event.room_id)
        view = self._room_view(room, agents)
        seen, quoted = await self._event_view(event, view)
        decision = decide(seen, view, self._permissions.grant(event.sender))
        if decision.action is Action.ANSWER and await self._too_fast(event.sender):
            text = errors.TOO_FAST.format(limit=self._per_minute)
            slow_down = Notice(text, f"rate:{event.sender}", decision.puppets[0], again_after=60.0)
            decision = Decision(Action.NOTICE, "over the sender's rate", notice=slow_down)
        messages = await self._messages(event, seen, quoted, room, view, decision)
        await self._apply(fence, event, seen, messages, decision)

    async def _discover(self, fence: Fence, room_id: RoomID) -> tuple[RoomInfo, list[AgentRow]]:
        """An event of a room that we know nothing of was pushed, so one of ours is in it (a database was rebuilt)."""
        for mxid in await self._entry.who_is_in(room_id):
            try:
                if await self._entry.learn(fence, room_id, mxid):
                    break
            except HomeserverError as error:
                if error.passing:
                    raise
        return await self._rooms.info(room_id), await self._agents.in_room(room_id)

    async def _state(self, fence: Fence, event: StoredEvent) -> None:
        about = event.event.get("state_key")
        ours = event.type == "m.room.member" and isinstance(about, str) and self._directory.is_ours(MXID(about))
        newly_encrypted = event.type == "m.room.encryption" and not (await self._rooms.info(event.room_id)).encrypted
        puppets = await self._agents.in_room(event.room_id) if newly_encrypted else []
        state, reason = "dispatched", "room state"
        if ours:
            await self._lanes.write(fence, lambda conn: self._rooms.apply(conn, event.room_id, event.event))
            state, reason = await self._entry.member_event(fence, event)

        async def work(conn: Connection) -> None:
            if not ours:
                await self._rooms.apply(conn, event.room_id, event.event)
            if puppets:
                puppet = _puppet(puppets[0])
                await self._say(conn, event, "", Notice(errors.ENCRYPTED, "encrypted", puppet))
            await self._inbox.settle(conn, event.seq, state, reason)

        await self._lanes.write(fence, work)
        if puppets:
            self._lanes.wake(f"send:{event.room_id}")

    async def _too_fast(self, sender: MXID) -> bool:
        return await self._turns.recent_by(sender, 60.0) >= self._per_minute

    def _room_view(self, room: RoomInfo, agents: list[AgentRow]) -> RoomView:
        people = [
            member
            for member in room.joined
            if not self._directory.is_ours(member.mxid) and self._permissions.grant(member.mxid).ignored_by is None
        ]
        return RoomView(
            room.room_id,
            tuple(_puppet(agent) for agent in agents),
            tuple(member.mxid for member in people),
            tuple(member.displayname for member in people if member.displayname),
            any(member.mxid == self._homeserver.bot_mxid for member in room.joined),
        )

    async def _event_view(self, event: StoredEvent, room: RoomView) -> tuple[EventView, Mapping[str, Any]]:
        """The event, and the content of the message that it replies to."""
        content = event.event["content"]
        relation = incoming.relation(content)
        body = (incoming.new_content(content) or content) if relation.replaces else content
        redacts = content.get("redacts") or event.event.get("redacts")
        ours = self._directory.is_ours(event.sender)
        is_message = event.type == "m.room.message" and not ours
        reply_sender = thread_sender = None
        quoted: Mapping[str, Any] = {}
        if is_message and relation.reply_to and not relation.falling_back:
            reply_sender, quoted = await self._quoted(room, relation.reply_to)
        if is_message and relation.thread_root and room.alone is None:
            thread_sender, _ = await self._quoted(room, relation.thread_root)
        return EventView(
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
        ), quoted

    async def _quoted(self, room: RoomView, event_id: EventID) -> tuple[MXID | None, Mapping[str, Any]]:
        """Who wrote an event of this room and what it says: from our tables, else from the homeserver."""
        if spoken := await self._outbox.spoken(room.room_id, event_id):
            return spoken
        stored = await self._inbox.event(event_id)
        if (stored is None or stored.get("room_id") != room.room_id) and room.puppets:
            try:
                async with asyncio.timeout(_QUOTE_SECONDS):
                    stored = await self._homeserver.intent(room.puppets[0].mxid).event(room.room_id, event_id)
            except (HomeserverError, TimeoutError):
                return None, {}  # a quote is context, not worth waiting for
        sender, content = (stored or {}).get("sender"), (stored or {}).get("content")
        return (
            MXID(sender) if isinstance(sender, str) else None,
            content if isinstance(content, Mapping) else {},
        )

    # -- what a decision leads to

    async def _apply(
        self,
        fence: Fence,
        event: StoredEvent,
        seen: EventView,
        messages: Sequence[NewMessage],
        decision: Decision,
    ) -> None:
        answer = await self._commands.answer(event.sender, seen.text) if decision.action is Action.COMMAND else ""
        to_stop: list[TurnID] = []
        thread = seen.relation.thread_root or ""

        async def work(conn: Connection) -> None:
            to_stop.clear()
            reason = decision.reason
            for message in messages:
                await self._turns.add(conn, message)
                await self._lanes.announce(conn, f"agent:{message.agent_id}")
            if decision.action is Action.EDIT:
                reason = await self._edit(conn, event, seen, decision, thread)
            elif decision.action is Action.WITHDRAW and decision.target:
                withdrawn = await self._withdraw(conn, event, EventID(decision.target))
                reason = f"redaction: {withdrawn} waiting messages withdrawn"
            elif decision.action is Action.STOP:
                to_stop.extend(await self._stop(conn, event, decision, thread))
            if answer:
                voice = Voice(self._homeserver.bot_mxid, event.room_id)
                out = notice(voice, answer, ReplyTarget(thread), source=event.event_id, kind="command")
                await self._outbox.add(conn, out)
            if decision.notice:
                await self._say(conn, event, thread, decision.notice)
            waits = decision.action in (Action.ANSWER, Action.STOP, Action.COMMAND, Action.NOTICE, Action.EDIT)
            await self._inbox.settle(conn, event.seq, "dispatched" if waits else "skipped", reason)

        faults.reach("dispatch.decided")
        await self._lanes.write(fence, work)
        faults.reach("dispatch.written")
        for agent_id in {puppet.agent_id for puppet in decision.puppets}:
            self._lanes.wake(f"agent:{agent_id}")
        for turn_id in to_stop:
            self._lanes.signal("stop", str(turn_id))
        if answer or decision.notice or decision.action in (Action.EDIT, Action.STOP):
            self._lanes.wake(f"send:{event.room_id}")

    async def _messages(
        self,
        event: StoredEvent,
        seen: EventView,
        quoted: Mapping[str, Any],
        room: RoomInfo,
        view: RoomView,
        decision: Decision,
    ) -> list[NewMessage]:
        if decision.action is not Action.ANSWER:
            return []
        relation = seen.relation
        really_replies = relation.reply_to is not None and not relation.falling_back
        crowd = len(view.people) > 1 or len(view.puppets) > 1
        portal = await self._agents.by_portal(event.room_id)
        thread = relation.thread_root or ""
        reply_to = event.event_id if crowd or thread or really_replies else ""
        names = {member.mxid: member.displayname for member in room.members}
        return [
            NewMessage(
                event.event_id,
                event.sender,
                puppet.agent_id,
                event.room_id,
                thread,
                reply_to,
                crowd,
                _sealed(event, seen, room, view, puppet, names, quoted, portal),
            )
            for puppet in decision.puppets
        ]

    async def _withdraw(self, conn: Connection, event: StoredEvent, target: EventID) -> int:
        """Servers send every redaction on, and only refuse to apply those that are not allowed. Our own homeserver has
        asked its user's power; of others only the author is believed.
        """
        trusted = event.sender.partition(":")[2] == self._homeserver.domain
        return await self._turns.withdraw(conn, event.room_id, target, None if trusted else event.sender)

    async def _edit(
        self, conn: Connection, event: StoredEvent, seen: EventView, decision: Decision, thread: str
    ) -> str:
        def change(sealed: str) -> str:
            return envelope.seal(replace(envelope.open_(sealed), body=seen.text))

        changed, late = await self._turns.edit(conn, event.room_id, EventID(decision.target), event.sender, change)
        if late and not changed and decision.puppets:
            await self._say(conn, event, thread, Notice(errors.EDIT_TOO_LATE, "edits", decision.puppets[0]))
        return f"edit: {changed} waiting copies changed, {late} read already"

    async def _stop(self, conn: Connection, event: StoredEvent, decision: Decision, thread: str) -> list[TurnID]:
        running: list[TurnID] = []
        stops: list[StopRequest] = []
        for puppet in decision.puppets:
            agent_id = AgentID(puppet.agent_id)
            queued, told = await self._stops.request(
                conn, event.room_id, event.sender, agent_id=agent_id, event_id=decision.target
            )
            running += told
            stops.append(
                StopRequest(
                    event.event_id, agent_id, event.room_id, event.sender, thread, len(told), len(queued), False
                )
            )
        effective = [stop for stop in stops if stop.stopped or stop.withdrawn]
        if decision.target:  # a reaction on what is over means nothing, unless an approval is waited for since then
            stops = effective or [replace(s, quiet=True) for s in stops if await self._may_wait(conn, s, decision)]
        elif effective:
            stops = [replace(stop, quiet=not (stop.stopped or stop.withdrawn)) for stop in stops]
        else:
            stops = [replace(stop, quiet=index > 0) for index, stop in enumerate(stops)]
        for stop in stops:
            await self._stops.add(conn, await self._said_at_once(conn, stop))
            await self._lanes.announce(conn, f"agent:{stop.agent_id}")
        for turn_id in running:
            await self._lanes.announce(conn, f"!stop {turn_id}")
        return running

    async def _may_wait(self, conn: Connection, stop: StopRequest, decision: Decision) -> bool:
        return await self._stops.answered_last(conn, stop.agent_id, stop.room_id, decision.target)

    async def _said_at_once(self, conn: Connection, stop: StopRequest) -> StopRequest:
        """Tell what was withdrawn now where the agent's lane would tell it after another room's long turn."""
        if stop.stopped or not stop.withdrawn:
            return stop
        if not await self._stops.busy_elsewhere(conn, stop.agent_id, stop.room_id):
            return stop
        voice = Voice(self._directory.mxid_of(stop.agent_id), stop.room_id, stop.agent_id)
        target = ReplyTarget(stop.thread_root, stop.event_id if stop.thread_root else "")
        source = f"{stop.event_id}|{stop.agent_id}"
        text = errors.stopped(run=False, withdrawn=True)
        await self._outbox.add(conn, notice(voice, text, target, source=source, kind="withdrawn"))
        return replace(stop, withdrawn=0, quiet=True)

    async def _say(self, conn: Connection, event: StoredEvent, thread: str, said: Notice) -> None:
        if said.topic and not await self._told.first_time(conn, f"{event.room_id}|{said.topic}", said.again_after):
            return
        sender = said.puppet.mxid if said.puppet else self._homeserver.bot_mxid
        mention = () if event.type not in ("m.room.message", "m.room.encrypted") else (event.sender,)
        reply_to = event.event_id if event.type != "m.room.encryption" else ""
        target = ReplyTarget(thread, reply_to, mention)
        voice = Voice(sender, event.room_id, said.puppet.agent_id if said.puppet else None)
        out = notice(voice, said.text, target, source=event.event_id, kind=said.topic or "once")
        await self._outbox.add(conn, out)
        await self._lanes.announce(conn, f"send:{event.room_id}")


def _puppet(agent: AgentRow) -> PuppetInRoom:
    return PuppetInRoom(agent.mxid, agent.agent_id, agent.shown_name or agent.name)


def _sealed(
    event: StoredEvent,
    seen: EventView,
    room: RoomInfo,
    view: RoomView,
    puppet: PuppetInRoom,
    names: Mapping[MXID, str],
    quoted: Mapping[str, Any],
    portal: AgentRow | None,
) -> str:
    """What this agent will read."""
    author, reply = seen.reply_sender, None
    if seen.relation.reply_to and not seen.relation.falling_back:
        who: envelope.Person | str | None = None
        if author is not None:
            who = "you" if author == puppet.mxid else envelope.Person(author, names.get(author, ""))
        excerpt = incoming.excerpt(incoming.to_markdown(quoted)) if quoted else None
        reply = envelope.Reply(seen.relation.reply_to, who, excerpt)  # type: ignore[arg-type]
    kind: envelope.Kind = "group"
    if portal is not None and portal.agent_id == puppet.agent_id:
        kind = "portal"
    elif view.alone is not None:
        kind = "dm"
    body = seen.text
    if seen.content.get("msgtype") == "m.emote":
        body = f"* {names.get(event.sender) or event.sender} {body}"
    message = envelope.Message(
        sender=envelope.Person(event.sender, names.get(event.sender, "")),
        room=envelope.Room(event.room_id, room.name, kind, len(view.people) + len(view.puppets)),
        time=_time(event.event.get("origin_server_ts")),
        event_id=event.event_id,
        body=body,
        reply=reply,
        thread_root=seen.relation.thread_root,
    )
    return envelope.seal(message)


def _time(milliseconds: object) -> datetime:
    if isinstance(milliseconds, int) and not isinstance(milliseconds, bool):
        try:
            return datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone()
        except (OverflowError, OSError, ValueError):
            pass
    return datetime.now(UTC).astimezone()
