"""A run that was left behind by a crash, a take-over or a broken call: what became of it, and going on from there."""

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence

from .. import errors
from ..db.turns import TurnMessage
from ..errors import Fate
from ..ids import ConversationID, RunID
from ..letta.backend import Finished, Live, NotDelivered, Outcome, RunFailed, TurnEvent, Unknown
from ..letta.errors import Kind, LettaError
from .doubt import DoubtfulTurn
from .speech import whole
from .turnwork import ORPHAN

log = logging.getLogger(__name__)

_SAY_UNKNOWN_AFTER = 30.0


class LeftBehind(DoubtfulTurn, ABC):
    """What a turn does about a run that nobody follows any more."""

    _probing = False
    """Whether Letta may have forgotten the run that is followed."""
    _resumed = False

    @abstractmethod
    async def _follow(self, stream: AsyncIterator[TurnEvent], messages: list[TurnMessage]) -> float | None:
        """Follow a run until it ends."""

    async def recover(self, broken: LettaError | None = None) -> float | None:
        """``running`` without us (a crash, a take-over), or the call was ``broken``: find out what became of it, never
        guess.
        """
        self._shown_before = True  # also by this very attempt, of which the call was broken
        await self._reread()
        if self._turn.running_for < 0:
            turn_id = self._turn.turn_id
            await self._c.lanes.write(self._fence, lambda conn: self._c.turns.restamp(conn, turn_id))
            await self._reread()
        turn = self._turn
        messages = await self._c.turns.messages(turn.turn_id)
        try:
            outcome = await self._find(RunID(turn.run_id) if turn.run_id else None, messages)
        except LettaError as error:
            return await self._cannot_ask(error)
        return await self._go_on(outcome, messages, broken)

    async def _go_on(
        self, outcome: Outcome, messages: list[TurnMessage], broken: LettaError | None = None
    ) -> float | None:
        turn = self._turn
        extra = {"action": "turn_found", "turn": turn.turn_id, "outcome": type(outcome).__name__}
        log.info("turn looked up", extra=extra)
        if turn.doubtful:
            if not await self._past_doubt(outcome, messages):
                return None
            turn = self._turn
        match outcome:
            case Finished():
                self.finished = self.stop.is_set()
                await self._finish(whole(outcome.events), self._replies(messages))
                self._c.presence.read(self._puppet, turn.room_id, messages[-1].event_id)
                return None
            case Live():
                return await self._rejoin(outcome.run_id, messages)
            case NotDelivered() if broken is not None:  # our own try failed: that counts, and is not repeated at once
                return await self._failed(LettaError(Kind.INTERRUPTED, broken.detail))
            case NotDelivered():
                return await self._requeue(0.0, turn.wait_reason, failed=False)
            case RunFailed():
                return await self._run_failed(outcome)
            case Unknown():
                return await self._unknown(outcome)

    async def _find(self, run_id: RunID | None, messages: Sequence[TurnMessage]) -> Outcome:
        if self._turn.doubtful:
            return await self._find_doubtful(messages)
        return await self._c.backend.find(
            self._turn.agent_id,
            ConversationID(self._turn.conversation_id),
            run_id=run_id,
            otids=[message.otid for message in messages],
            settle=self._c.settings.settle,
        )

    async def _rejoin(self, run_id: RunID, messages: list[TurnMessage]) -> float | None:
        """Follow a live run. One that began before Letta went away is given a short time only: Letta does not go on
        with it, and would call it running for ever.
        """
        turn = self._turn
        self._resumed = True
        left = max(1.0, self._c.settings.timeout - turn.running_for)
        self._probing = self._c.outage.began_before(turn.running_for)
        if self._probing:
            left = min(left, self._c.settings.settle)
        if not turn.run_id:
            await self._c.lanes.write(self._fence, lambda conn: self._c.turns.accepted(conn, turn.turn_id, run_id))
            await self._reread()
        conversation = ConversationID(turn.conversation_id)
        stream = self._c.backend.resume(turn.agent_id, conversation, run_id, deadline=left)
        return await self._follow(stream, messages)

    async def _cancel_orphan(self) -> float | None:
        turn = self._turn
        messages = await self._c.turns.messages(turn.turn_id)
        await self._note_wait(ORPHAN)
        try:
            await self._c.backend.cancel(turn.agent_id, RunID(turn.run_id))
            outcome = await self._find(RunID(turn.run_id), messages)
        except LettaError as error:
            return await self._cannot_ask(error)
        if isinstance(outcome, Live):  # the cancellation is asked for again at the next look
            return await self._look_later("the run stays live although it was cancelled")
        return await self._go_on(outcome, messages)

    async def _run_failed(self, outcome: RunFailed) -> float | None:
        if self.stop.is_set():
            return await self._close_stopped()
        if outcome.stored:  # what the agent did until then is done: starting again would do it twice
            await self._tell_and_close(errors.FAILED_MIDWAY, f"midway:{outcome.kind.value}", outcome.detail)
            return None
        if not outcome.cancelled:
            return await self._failed(LettaError(outcome.kind, outcome.detail, run_id=outcome.run_id))
        if self._turn.wait_reason == ORPHAN:
            return await self._failed(LettaError(Kind.INTERRUPTED, "Letta went away during the run"))
        sentence = errors.STOPPED_EARLY.format(reason=errors.CANCELLED_IN_LETTA)
        await self._tell_and_close(sentence, "cancelled", "cancelled in Letta")
        return None

    async def _unknown(self, outcome: Unknown) -> float | None:
        if self._turn.running_for > _SAY_UNKNOWN_AFTER and not self._overdue():
            messages = await self._c.turns.messages(self._turn.turn_id)
            await self._add([self._replies(messages).about("looking", errors.LOOKING)])
        return await self._look_later(outcome.detail)

    async def _look_later(self, detail: str) -> float | None:
        """Nothing can be said yet; when the turn's time is over, that is what is said."""
        await self._reread()
        if not self._overdue():
            return self._c.settings.unknown_pause
        await self._uncertain(detail)
        return None

    async def _cannot_ask(self, error: LettaError) -> float | None:
        """Letta cannot say what became of the turn: it stays ``running`` and is asked about again."""
        error = await self._believed(error)
        turn, kind = self._turn, error.kind
        if self.stop.is_set():
            self.unsure = True
            return await self._close_stopped()
        if kind in (Kind.AGENT_GONE, Kind.CONVERSATION_GONE):
            await self._uncertain(error.detail)
            return None
        self._c.outage.seen(error)
        if errors.TROUBLES[kind].fate is Fate.WAIT:
            if turn.wait_reason != ORPHAN:
                await self._note_wait(kind.value)
            await self._c.troubles.tell_waiting(self._fence, turn.agent_id, kind, turn.room_id)
        elif self._overdue():
            await self._uncertain(error.detail)
            return None
        return self._c.outage.pause(turn.agent_id)
