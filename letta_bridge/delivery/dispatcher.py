"""The first stage: each room's events in order, each decided once, with the decision and its work in one commit."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .. import errors, faults
from ..commands.lane import command_lane
from ..commands.parse import begins
from ..db.agents import AgentRow
from ..db.commands import CommandRow
from ..db.database import DATABASE_ERRORS, Connection
from ..db.inbox import StoredEvent
from ..db.rooms import doubt
from ..db.stops import StopRequest
from ..db.turns import NewMessage
from ..ids import MXID, AgentID, EventID, RoomID, TurnID
from ..lanes import Fence, FencedError
from ..letta.errors import LettaError
from ..matrix import envelope
from ..matrix.homeserver import HomeserverError
from ..mirror.damage import may_damage
from ..mirror.directory import LANE as MIRROR_LANE
from ..routing.dispatch import Action, Decision, EventView, Notice, PuppetInRoom, decide
from ..routing.permissions import Grant, Level
from .context import RoomContext
from .entry import NotReadError, RoomEntry
from .outgoing import ReplyTarget, Voice, notice, txn_of
from .scene import Scene, Scenes, Seen, messages

log = logging.getLogger(__name__)

_TRIES = 5
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_TOGETHER_SECONDS = 0.25
"""How long decisions wait for one another before they are written."""
_STATE_TYPES = frozenset(("m.room.member", "m.room.name", "m.room.encryption"))
_ANSWERED = (Action.ANSWER, Action.STOP, Action.COMMAND, Action.NOTICE, Action.EDIT)


@dataclass(slots=True)
class _Decided:
    """An event with its decision; ``to_stop`` are the running turns that were told to end when it was written."""

    event: StoredEvent
    seen: EventView
    decision: Decision
    messages: Sequence[NewMessage]
    management: bool
    """Said where commands are what the room is for."""
    to_stop: list[TurnID] = field(default_factory=list)
    to_wake: set[str] = field(default_factory=set)
    """Lanes of agents from which a waiting message was taken back."""

    @property
    def thread(self) -> str:
        return self.seen.relation.thread_root or ""

    @property
    def speaks(self) -> bool:
        """Whether something may wait in the room's outbox because of it."""
        return bool(self.decision.notice) or self.decision.action in (Action.EDIT, Action.STOP)


class Dispatcher:
    """Handler of ``room:`` lanes. Never calls Letta for a message; only an unknown puppet is looked up there.

    Args:
        context: the parts that it touches.
        entry: takes invitations and closes gaps.
        messages_per_minute: of one person to agents.
    """

    def __init__(self, context: RoomContext, entry: RoomEntry, messages_per_minute: int) -> None:
        self._c = context
        self._scenes = Scenes(context)
        self._entry = entry
        self._per_minute = messages_per_minute
        self._waits: dict[RoomID, int] = {}

    async def handle(self, fence: Fence) -> float | None:
        """Dispatch everything that the room of the lane has waiting."""
        room_id = RoomID(fence.lane.partition(":")[2])
        try:
            scene = await self._scenes.read(room_id)
            if scene.room.gap:
                await self._entry.close_gap(fence, room_id)
                scene = await self._scenes.read(room_id)
            wait: float | None = 0.0
            while not self._c.lanes.closing:
                if scene.events:
                    await self._dispatch(fence, scene)
                wait = await self._c.inbox.next_wait(room_id)
                if wait is None or wait > 0:
                    break
                scene = await self._scenes.read(room_id)
        except (HomeserverError, LettaError) as error:
            tries = self._waits.get(room_id, 0)
            self._waits[room_id] = tries + 1
            self._c.sight.retried("dispatch")
            if not tries:
                extra = {"action": "dispatch_waits", "room": room_id, "why": str(error)}
                log.warning("an event cannot be dispatched yet", extra=extra)
            return float(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(tries, 10)))
        self._waits.pop(room_id, None)
        return wait

    async def _dispatch(self, fence: Fence, scene: Scene) -> None:
        """Decide the events of a scene and write the decisions together, up to one that changes the scene."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _TOGETHER_SECONDS
        together: list[_Decided] = []
        alone: StoredEvent | None = None
        for event in scene.events:
            if self._changes_the_scene(event, scene) or event.attempts:
                alone = event
                break
            try:
                together.append(await self._decide(event, scene))
            except DATABASE_ERRORS:
                raise
            except Exception:  # noqa: BLE001 - it is met again and told where the event is handled alone
                alone = event
                break
            if loop.time() > until or self._c.lanes.closing:
                break
        if together and not await self._write_guarded(fence, together):
            return
        if alone is not None and not self._c.lanes.closing:
            await self._guarded(fence, alone)

    def _changes_the_scene(self, event: StoredEvent, scene: Scene) -> bool:
        if event.type in _STATE_TYPES and "state_key" in event.event:
            return True
        return not scene.room.known and not self._c.directory.is_ours(event.sender)

    async def _write_guarded(self, fence: Fence, together: Sequence[_Decided]) -> bool:
        """Whether all of them are dealt with, so that what came after them may be."""
        try:
            await self._write(fence, together)
            return True
        except (FencedError, *DATABASE_ERRORS):
            raise
        except Exception:  # one of them: each is handled alone, where the culprit is told
            log.warning("decisions could not be written together", extra={"action": "dispatch_apart"}, exc_info=True)
        for decided in together:
            if not await self._guarded(fence, decided.event):
                return False
        return True

    async def _guarded(self, fence: Fence, event: StoredEvent) -> bool:
        """The boundary at which an event that cannot be handled becomes a dead letter instead of blocking its room.

        Returns:
            Whether what came after it may be handled; if not, it is to be tried again first.
        """
        try:
            await self._one(fence, event)
            return True
        except (FencedError, *DATABASE_ERRORS):
            raise
        except Exception as error:
            if isinstance(error, LettaError) or (isinstance(error, HomeserverError) and error.passing):
                if event.type != "m.room.member" or isinstance(error, NotReadError):
                    raise
                # an invitation that cannot be taken now does not hold up what is said to others in the room
                delay = float(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(event.attempts, 10)))
                await self._c.lanes.write(fence, lambda conn: self._c.inbox.set_aside(conn, event.seq, delay))
                self._c.sight.retried("dispatch")
                extra = {"action": "invite_waits", "room": event.room_id, "why": str(error)}
                log.warning("an invitation cannot be taken yet", extra=extra)
                return True
            attempt = event.attempts + 1
            extra = {"action": "dispatch_failed", "event": event.event_id, "attempt": str(attempt)}
            log.exception("event could not be dispatched", extra=extra)
            if attempt < _TRIES:
                self._c.sight.retried("dispatch")
                await self._c.lanes.write(fence, lambda conn: self._c.inbox.failed(conn, event.seq))
                await asyncio.sleep(_FIRST_WAIT * 2**event.attempts)  # whatever it was gets a moment to pass
                return False
            await self._bury(fence, event)
            return True

    async def _bury(self, fence: Fence, event: StoredEvent) -> None:
        puppets = await self._c.agents.in_room(event.room_id)

        async def work(conn: Connection) -> None:
            await self._c.inbox.settle(conn, event.seq, "dead", "could not be dispatched; see the log")
            if puppets and not self._c.directory.is_ours(event.sender) and event.type == "m.room.message":
                target = ReplyTarget("", event.event_id)
                voice = Voice(puppets[0].mxid, event.room_id)
                out = notice(voice, errors.UNDISPATCHED, target, source=event.event_id, kind="undispatched")
                await self._c.outbox.add(conn, out)
                await self._c.lanes.announce(conn, f"send:{event.room_id}")

        await self._c.lanes.write(fence, work)
        self._c.sight.decided("dead")
        self._c.sight.buried("inbox")
        self._c.lanes.wake(f"send:{event.room_id}")

    # -- one event

    async def _one(self, fence: Fence, event: StoredEvent) -> None:
        if event.type in _STATE_TYPES and "state_key" in event.event:
            await self._state(fence, event)
            return
        scene = await self._scenes.read(event.room_id)
        if self._changes_the_scene(event, scene):
            await self._discover(fence, event.room_id)
            scene = await self._scenes.read(event.room_id)
        await self._write(fence, [await self._decide(event, scene)])

    async def _discover(self, fence: Fence, room_id: RoomID) -> None:
        """An event of a room that we know nothing of was pushed, so one of ours is in it (a database was rebuilt)."""
        for mxid in await self._entry.who_is_in(room_id):
            try:
                if await self._entry.learn(fence, room_id, mxid):
                    break
            except HomeserverError as error:
                if error.passing:
                    raise

    async def _state(self, fence: Fence, event: StoredEvent) -> None:
        about = event.event.get("state_key")
        ours = event.type == "m.room.member" and isinstance(about, str) and self._c.directory.is_ours(MXID(about))
        newly_encrypted = event.type == "m.room.encryption" and not (await self._c.rooms.info(event.room_id)).encrypted
        said = await self._about_encryption(event.room_id) if newly_encrypted else None
        state, reason = "dispatched", "room state"
        if ours:
            state, reason = await self._entry.member_event(fence, event)

        async def work(conn: Connection) -> bool:
            if not ours:
                await self._c.rooms.apply(conn, event.room_id, event.event)
            if said is not None:
                await self._say(conn, event, "", said)
            await self._c.inbox.settle(conn, event.seq, state, reason)
            return await self._doubt(conn, [event])

        if await self._c.lanes.write(fence, work):
            self._c.lanes.wake(MIRROR_LANE)
        self._c.sight.decided("state")
        if said is not None:
            self._c.lanes.wake(f"send:{event.room_id}")

    async def _about_encryption(self, room_id: RoomID) -> Notice | None:
        """What whoever of ours is in a room says when it becomes encrypted."""
        if puppets := await self._c.agents.in_room(room_id):
            return Notice(errors.ENCRYPTED, "encrypted", _puppet(puppets[0]))
        if await self._c.rooms.membership(room_id, self._c.homeserver.bot_mxid) == "join":
            return Notice(errors.ENCRYPTED_BOT, "encrypted")
        return None

    async def _decide(self, event: StoredEvent, scene: Scene) -> _Decided:
        seen: Seen = await self._scenes.seen(event, scene.view)
        whole = self._c.permissions.grant(event.sender)
        known = event.sender in scene.known
        decision = decide(seen.view, scene.view, whole, scene.rights(whole), known=known)
        if event.doubtful and decision.action is Action.COMMAND:  # nobody can tell whether it was carried out
            said = Notice(errors.RESTORED_COMMAND, "restored-command", again_after=3600.0)
            decision = Decision(Action.NOTICE, "a command from before the restore", notice=said)
        if self._counts(decision, whole) and not event.doubtful:
            recent = scene.recent.get(event.sender, 0)
            if recent >= self._per_minute:
                text = errors.TOO_FAST.format(limit=self._per_minute)
                said_by = next(iter(decision.puppets or (() if scene.view.bot_joined else scene.view.puppets)), None)
                slow_down = Notice(text, f"rate:{event.sender}", said_by, again_after=60.0)
                decision = Decision(Action.NOTICE, "over the sender's rate", notice=slow_down)
            else:
                scene.recent[event.sender] = recent + 1
        new = messages(event, seen, scene, decision)
        if event.doubtful and (facts := self._c.restored.facts):
            new = [replace(message, attempt=facts.attempt) for message in new]
        return _Decided(event, seen.view, decision, new, scene.view.private)

    @staticmethod
    def _counts(decision: Decision, whole: Grant) -> bool:
        """Whether it counts for the sender's rate: messages, and commands of who is no administrator."""
        if decision.action is Action.COMMAND:
            return whole.level < Level.ADMIN
        return decision.action is Action.ANSWER

    # -- what decisions lead to

    async def _write(self, fence: Fence, together: Sequence[_Decided]) -> None:
        async def work(conn: Connection) -> bool:
            for decided in together:
                await self._apply(conn, decided)
            return await self._doubt(conn, [decided.event for decided in together])

        faults.reach("dispatch.decided")
        damaged = await self._c.lanes.write(fence, work)
        faults.reach("dispatch.written")
        if damaged:
            self._c.lanes.wake(MIRROR_LANE)
        for decided in together:
            self._c.sight.decided(decided.decision.action.value)
        for agent_id in {puppet.agent_id for decided in together for puppet in decided.decision.puppets}:
            self._c.lanes.wake(f"agent:{agent_id}")
        for lane in {lane for decided in together for lane in decided.to_wake}:
            self._c.lanes.wake(lane)
        if any(decided.decision.action is Action.COMMAND for decided in together):
            self._c.lanes.wake(command_lane(together[0].event.room_id))
        for decided in together:
            for turn_id in decided.to_stop:
                self._c.lanes.signal("stop", str(turn_id))
        if any(decided.speaks for decided in together):
            self._c.lanes.wake(f"send:{together[0].event.room_id}")

    async def _doubt(self, conn: Connection, events: Sequence[StoredEvent]) -> bool:
        """Have the mirror look at a portal or the space of which somebody changed the state; whether it has to."""
        damaged = False
        for event in events:
            if "state_key" in event.event and may_damage(event.event, self._c.directory.is_ours):
                damaged = await doubt(conn, event.room_id) or damaged
        if damaged:
            await self._c.lanes.announce(conn, MIRROR_LANE)
        return damaged

    async def _apply(self, conn: Connection, decided: _Decided) -> None:
        """Write one decision and what it leads to, and settle its event."""
        event, decision, reason = decided.event, decided.decision, decided.decision.reason
        decided.to_stop.clear()
        decided.to_wake.clear()
        for message in decided.messages:
            await self._c.turns.add(conn, message)
            await self._c.lanes.announce(conn, f"agent:{message.agent_id}")
        if decision.action is Action.EDIT:
            reason = await self._edit(conn, decided)
        elif decision.action is Action.WITHDRAW and decision.target:
            withdrawn = await self._withdraw(conn, decided)
            reason = f"redaction: {withdrawn} waiting messages withdrawn"
        elif decision.action is Action.STOP:
            decided.to_stop.extend(await self._stop(conn, event, decision, decided.thread))
        elif decision.action is Action.COMMAND:
            await self._command(conn, decided)
        if decision.notice:
            await self._say(conn, event, decided.thread, decision.notice)
        state = "dispatched" if decision.action in _ANSWERED else "skipped"
        await self._c.inbox.settle(conn, event.seq, state, reason)

    async def _withdraw(self, conn: Connection, decided: _Decided) -> int:
        """Servers send every redaction on, and only refuse to apply those that are not allowed. Our own homeserver has
        asked its user's power; of others only the author is believed.
        """
        event, target = decided.event, EventID(decided.decision.target)
        trusted = event.sender.partition(":")[2] == self._c.homeserver.domain
        author = None if trusted else event.sender
        commands = await self._c.commands.withdraw(conn, event.room_id, target, author)
        return commands + await self._take_back(conn, decided, author)

    async def _take_back(self, conn: Connection, decided: _Decided, author: MXID | None) -> int:
        """Take a message out of what waits; of how many turns."""
        target = EventID(decided.decision.target)
        lanes = await self._c.turns.withdraw(conn, decided.event.room_id, target, author)
        for lane in lanes:  # it may have to close what it showed of an answer
            await self._c.lanes.announce(conn, lane)
        decided.to_wake.update(lanes)
        return len(lanes)

    async def _command(self, conn: Connection, decided: _Decided) -> None:
        event = decided.event
        row = CommandRow(
            0, event.event_id, event.room_id, event.sender, decided.thread, decided.seen.text, decided.management, 0
        )
        await self._c.commands.add(conn, row)
        await self._c.lanes.announce(conn, command_lane(event.room_id))

    async def _edit(self, conn: Connection, decided: _Decided) -> str:
        event, decision = decided.event, decided.decision
        if begins(decided.seen.text):  # what is addressed to the bridge goes to no agent
            taken_back = await self._take_back(conn, decided, event.sender)
            if taken_back and decision.puppets and not event.doubtful:
                await self._say(conn, event, decided.thread, Notice(errors.EDITED_TO_COMMAND, "", decision.puppets[0]))
            return f"edit: a command now, {taken_back} waiting copies withdrawn"

        def change(sealed: str) -> str:
            return envelope.seal(replace(envelope.open_(sealed), body=decided.seen.text))

        changed, late = await self._c.turns.edit(conn, event.room_id, EventID(decision.target), event.sender, change)
        if late and not changed and decision.puppets and not event.doubtful:
            await self._say(conn, event, decided.thread, Notice(errors.EDIT_TOO_LATE, "edits", decision.puppets[0]))
        return f"edit: {changed} waiting copies changed, {late} read already"

    async def _stop(self, conn: Connection, event: StoredEvent, decision: Decision, thread: str) -> list[TurnID]:
        running: list[TurnID] = []
        stops: list[StopRequest] = []
        target = EventID(decision.target)
        txn_id = txn_of(await self._c.inbox.event(target, conn)) if target else ""
        for puppet in decision.puppets:
            agent_id = AgentID(puppet.agent_id)
            queued, told = await self._c.stops.request(
                conn, event.room_id, event.sender, agent_id=agent_id, event_id=target, txn_id=txn_id
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
            await self._c.stops.add(conn, await self._said_at_once(conn, stop))
            await self._c.lanes.announce(conn, f"agent:{stop.agent_id}")
        for turn_id in running:
            await self._c.lanes.announce(conn, f"!stop {turn_id}")
        return running

    async def _may_wait(self, conn: Connection, stop: StopRequest, decision: Decision) -> bool:
        return await self._c.stops.answered_last(conn, stop.agent_id, stop.room_id, decision.target)

    async def _said_at_once(self, conn: Connection, stop: StopRequest) -> StopRequest:
        """Tell what was withdrawn now where the agent's lane would tell it after another room's long turn."""
        if stop.stopped or not stop.withdrawn:
            return stop
        if not await self._c.stops.busy_elsewhere(conn, stop.agent_id, stop.room_id):
            return stop
        agent = await self._c.agents.get(stop.agent_id, conn)
        if agent is None:
            return stop
        voice = Voice(agent.mxid, stop.room_id, stop.agent_id)
        target = ReplyTarget(stop.thread_root, stop.event_id if stop.thread_root else "")
        source = f"{stop.event_id}|{stop.agent_id}"
        text = errors.stopped(run=False, withdrawn=True)
        await self._c.outbox.add(conn, notice(voice, text, target, source=source, kind="withdrawn"))
        return replace(stop, withdrawn=0, quiet=True)

    async def _say(self, conn: Connection, event: StoredEvent, thread: str, said: Notice) -> None:
        if said.topic and not await self._c.told.first_time(conn, f"{event.room_id}|{said.topic}", said.again_after):
            return
        sender = said.puppet.mxid if said.puppet else self._c.homeserver.bot_mxid
        mention = () if event.type not in ("m.room.message", "m.room.encrypted") else (event.sender,)
        reply_to = event.event_id if event.type != "m.room.encryption" else ""
        target = ReplyTarget(thread, reply_to, mention)
        voice = Voice(sender, event.room_id, said.puppet.agent_id if said.puppet else None)
        out = notice(voice, said.text, target, source=event.event_id, kind=said.topic or "once")
        await self._c.outbox.add(conn, out)
        await self._c.lanes.announce(conn, f"send:{event.room_id}")


def _puppet(agent: AgentRow) -> PuppetInRoom:
    return PuppetInRoom(agent.mxid, agent.agent_id, agent.shown_name or agent.name)
