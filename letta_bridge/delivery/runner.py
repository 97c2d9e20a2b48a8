"""The second stage: each agent's turns, one at a time, from the queue to the outbox."""

import asyncio
import contextlib
import logging

from ..db.agents import AgentRow
from ..db.database import DATABASE_ERRORS, Connection, Reader
from ..db.rebinding import Rebinding
from ..db.stops import StopRequest
from ..db.turns import TurnRow, agent_lane
from ..errors import stopped
from ..ids import MAIN_CONVERSATION, AgentID, ConversationID, RoomID, TurnID
from ..lanes import Fence, FencedError
from ..letta.errors import Kind, LettaError
from .context import TurnContext
from .outgoing import ReplyTarget, Voice, notice
from .paused import PauseNotices
from .run import TurnRun

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0
_PAUSED = 60.0
_REFUSED_AT = "letta_refused_at"
_NOTE_AGAIN = 5.0


class Runner:
    """Handler of ``agent:`` lanes."""

    def __init__(self, context: TurnContext) -> None:
        self._c = context
        self._stops: dict[TurnID, asyncio.Event] = {}
        self._unsure: set[tuple[AgentID, RoomID]] = set()
        self._finished: set[tuple[AgentID, RoomID]] = set()
        self._strikes: dict[TurnID, int] = {}
        self._epochs: dict[str, int] = {}
        self._pauses = PauseNotices(context)
        context.lanes.on_signal("stop", self._stop_signal)

    def _stop_signal(self, text: str) -> None:
        event = self._stops.get(TurnID(int(text))) if text.isdecimal() else None
        if event is not None:
            event.set()

    async def look_for_stops(self) -> list[str]:
        """Act on stops of which no signal came (the connection for signals was lost). Names no lanes."""
        if self._stops:
            for turn_id in await self._c.turns.to_be_stopped():
                self._stop_signal(str(turn_id))
        return []

    async def handle(self, fence: Fence) -> float | None:
        """Work through the agent's turns until there is nothing to do now."""
        agent_id = AgentID(fence.lane.partition(":")[2])
        if self._epochs.get(fence.lane) != fence.epoch:
            await self._take_over(fence, agent_id)
            self._epochs[fence.lane] = fence.epoch
        while not self._c.lanes.closing:
            turn, stops, agent = await self._c.db.read(lambda reader: self._look(reader, agent_id))
            for stop in stops:
                if not (stop.stopped and turn is not None and turn.stop_by and turn.room_id == stop.room_id):
                    await self._serve_stop(fence, stop)
                # else: the run that it stops is still to be dealt with
            if turn is None:
                return None
            if turn.paused:
                await self._pauses.tell(fence, agent_id)
                return _PAUSED  # whoever ends the pause wakes the lane; with a timer the sweep lets it rest
            if turn.wait > 0:
                await self._explain_wait(fence, turn)
                return turn.wait
            if agent is None:
                await self._drop(fence, turn)
                continue
            pause = await self._turn(fence, turn, agent)
            if pause is not None:
                return pause
        return None

    async def _look(
        self, reader: Reader, agent_id: AgentID
    ) -> tuple[TurnRow | None, list[StopRequest], AgentRow | None]:
        turn = await self._c.turns.head(agent_lane(agent_id), reader)
        stops = await self._c.stops.waiting(agent_id, reader)
        return turn, stops, None if turn is None else await self._c.agents.get(agent_id, reader)

    async def _take_over(self, fence: Fence, agent_id: AgentID) -> None:
        """The lane was another process's: what that one showed, cancelled and saw."""
        if agent := await self._c.agents.get(agent_id):
            for room_id in await self._c.turns.running_rooms(fence.lane):
                self._c.presence.end_typing(agent.mxid, room_id)
        run_id = await self._c.turns.cancelled_lately(fence.lane, self._c.settings.settle)
        if run_id is not None:
            self._c.cancelled.setdefault(agent_id, run_id)
        if (seconds := await self._c.notes.age(_REFUSED_AT)) is not None:
            self._c.outage.was_seen(seconds)

    async def _note_outage(self) -> None:
        """Let other replicas, and our next start, know that Letta was away: runs from before then are over."""
        outage = self._c.outage
        if outage.refused_at > outage.noted_at + _NOTE_AGAIN:
            outage.noted_at = outage.refused_at
            await self._c.notes.stamp(_REFUSED_AT)

    async def _turn(self, fence: Fence, turn: TurnRow, agent: AgentRow) -> float | None:
        """Start a queued turn, or find out what became of one that was running when its owner went away."""
        run = TurnRun(self._c, fence, turn, agent)
        self._c.sight.turn_taken(turn.turn_id, turn.age)
        self._stops[turn.turn_id] = run.stop
        try:
            pause = await (run.start() if turn.state == "queued" else run.recover())
            self._strikes.pop(turn.turn_id, None)
            await self._note_outage()
            return pause
        except (FencedError, *DATABASE_ERRORS):
            raise
        except Exception:  # the boundary that keeps one turn from holding up its agent for ever
            log.exception("unexpected error in a turn", extra={"action": "turn_error", "turn": turn.turn_id})
            return await self._strike(run, turn)
        finally:
            del self._stops[turn.turn_id]
            if run.unsure and run.stop.is_set():
                self._unsure.add((turn.agent_id, turn.room_id))
            if run.finished:
                self._finished.add((turn.agent_id, turn.room_id))

    async def _strike(self, run: TurnRun, turn: TurnRow) -> float | None:
        strikes = self._strikes[turn.turn_id] = self._strikes.get(turn.turn_id, 0) + 1
        if strikes < self._c.settings.attempts:
            return float(min(_LONGEST_PAUSE, 0.5 * 2**strikes))
        del self._strikes[turn.turn_id]
        await run.give_up()
        return None

    async def _drop(self, fence: Fence, turn: TurnRow) -> None:
        """The agent has no row: another one took its place, and what came at that very moment is handed on to it."""
        rebinding = Rebinding(self._c.db)
        if turn.state == "queued" and (new := await rebinding.successor(turn.agent_id)) is not None:
            await self._c.lanes.write(fence, lambda conn: rebinding.move_turns(conn, turn.agent_id, new))
            self._c.lanes.wake(agent_lane(new))
            return
        log.error("turn of an unknown agent", extra={"action": "turn_orphan", "turn": turn.turn_id})
        await self._c.lanes.write(
            fence, lambda conn: self._c.turns.close(conn, turn.turn_id, "dead", "the agent is not known any more")
        )
        self._c.sight.turn_ended(turn.turn_id, "dead")

    async def _explain_wait(self, fence: Fence, turn: TurnRow) -> None:
        """Somebody wrote while the lane waits: they are told why, too."""
        with contextlib.suppress(ValueError):
            await self._c.troubles.tell_waiting(fence, turn.agent_id, Kind(turn.wait_reason), turn.room_id)

    # -- stops

    async def _serve_stop(self, fence: Fence, stop: StopRequest) -> None:
        """The runs are stopped already; what can still hold the agent is an approval that nobody gives."""
        denied, deaf = False, False
        agent = await self._c.agents.get(stop.agent_id)
        try:
            conversation = await self._known_conversation(stop.agent_id, stop.room_id)
            if conversation is not None:
                reason = f"{stop.sender} said stop"
                denied = await self._c.backend.deny_approval(stop.agent_id, conversation, reason)
        except LettaError as error:
            deaf = True
            log.warning("approval not denied", extra={"action": "deny_failed", "why": str(error)})
        except DATABASE_ERRORS:
            raise
        except Exception:  # a boundary: a stop is served once, whatever is wrong with asking Letta
            deaf = True
            log.exception("approval not denied", extra={"action": "deny_error"})

        where = (stop.agent_id, stop.room_id)
        unsure, finished = where in self._unsure, where in self._finished
        sentence = stopped(
            run=stop.stopped > 0,
            denied=denied,
            withdrawn=stop.withdrawn > 0,
            unsure=unsure,
            deaf=deaf,
            finished=finished,
        )

        async def work(conn: Connection) -> None:
            await self._c.stops.served(conn, stop)
            await self._c.troubles.ended(conn, stop.agent_id, stop.room_id)
            if agent is not None and (denied or deaf or not stop.quiet):
                voice = Voice(agent.mxid, stop.room_id, stop.agent_id)
                target = ReplyTarget(stop.thread_root, stop.event_id if stop.thread_root else "")
                source = f"{stop.event_id}|{stop.agent_id}"
                out = notice(voice, sentence, target, source=source, kind="stop")
                await self._c.outbox.add(conn, out)
            if denied:  # what waits behind the approval can go on at once
                await self._c.turns.end_wait(conn, stop.agent_id)
            await self._c.lanes.announce(conn, f"send:{stop.room_id}")

        await self._c.lanes.write(fence, work)
        self._unsure.discard(where)
        self._finished.discard(where)
        self._c.lanes.wake(f"send:{stop.room_id}")

    async def _known_conversation(self, agent_id: AgentID, room_id: RoomID) -> ConversationID | None:
        agent = await self._c.agents.get(agent_id)
        if agent is not None and agent.portal_room == room_id:
            return MAIN_CONVERSATION
        known = await self._c.conversations.get(agent_id, room_id)
        return None if known is None else known[0]
