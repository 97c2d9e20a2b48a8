"""The second stage: each agent's turns, one at a time, from the queue to the outbox."""

import asyncio
import contextlib
import logging

from ..db.database import DATABASE_ERRORS, Connection
from ..db.stops import StopRequest
from ..db.turns import TurnRow
from ..errors import stopped
from ..ids import MAIN_CONVERSATION, MXID, AgentID, ConversationID, RoomID, TurnID
from ..lanes import Fence, FencedError
from ..letta.errors import Kind, LettaError
from .context import TurnContext
from .outgoing import ReplyTarget, Voice, notice
from .run import TurnRun

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0


class Runner:
    """Handler of ``agent:`` lanes."""

    def __init__(self, context: TurnContext) -> None:
        self._c = context
        self._stops: dict[TurnID, asyncio.Event] = {}
        self._unsure: set[tuple[AgentID, RoomID]] = set()
        self._finished: set[tuple[AgentID, RoomID]] = set()
        self._strikes: dict[TurnID, int] = {}
        context.lanes.on_signal("stop", self._stop_signal)

    def _stop_signal(self, text: str) -> None:
        event = self._stops.get(TurnID(int(text))) if text.isdecimal() else None
        if event is not None:
            event.set()

    async def handle(self, fence: Fence) -> float | None:
        """Work through the agent's turns until there is nothing to do now."""
        agent_id = AgentID(fence.lane.partition(":")[2])
        while not self._c.lanes.closing:
            turn = await self._c.turns.head(fence.lane)
            for stop in await self._c.stops.waiting(agent_id):
                if not (stop.stopped and turn is not None and turn.stop_by and turn.room_id == stop.room_id):
                    await self._serve_stop(fence, stop)
                # else: the run that it stops is still to be dealt with
            if turn is None:
                return None
            if turn.wait > 0:
                await self._explain_wait(fence, turn)
                return turn.wait
            agent = await self._c.agents.get(agent_id)
            if agent is None:
                await self._drop(fence, turn)
                continue
            pause = await self._turn(fence, turn, agent.mxid)
            if pause is not None:
                return pause
        return None

    async def _turn(self, fence: Fence, turn: TurnRow, puppet: MXID) -> float | None:
        """Start a queued turn, or find out what became of one that was running when its owner went away."""
        run = TurnRun(self._c, fence, turn, puppet)
        self._stops[turn.turn_id] = run.stop
        try:
            pause = await (run.start() if turn.state == "queued" else run.recover())
            self._strikes.pop(turn.turn_id, None)
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
        log.error("turn of an unknown agent", extra={"action": "turn_orphan", "turn": turn.turn_id})
        await self._c.lanes.write(
            fence, lambda conn: self._c.turns.close(conn, turn.turn_id, "dead", "the agent is not known any more")
        )

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
