"""One turn in the hands of its lane: handing messages over, following the run, and what comes of it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from .. import errors, faults
from ..db.database import Connection
from ..db.outbox import Outgoing
from ..db.turns import Begun, TurnMessage, TurnRow
from ..errors import Fate
from ..ids import MAIN_CONVERSATION, PREFIX, ConversationID, EventID, Otid, RoomID, RunID, make_otid
from ..letta.backend import (
    Finished,
    Live,
    NotDelivered,
    Outcome,
    Prompt,
    RunFailed,
    RunStarted,
    TurnEvent,
    Unknown,
)
from ..letta.errors import Delivery, Kind, LettaError
from .doubt import HELD, DoubtfulTurn
from .reader import StreamReader
from .replies import Replies
from .speech import Renderer, whole
from .turnwork import STOPPED_MARK, beside

log = logging.getLogger(__name__)

_OPENING_CONFIRM = 3.0
_SAY_UNKNOWN_AFTER = 30.0
_CANCEL_TRIES = 3
_CANCEL_PAUSE = 0.5
_ORPHAN = "orphan"
"""Wait reason of a run that we cancel because Letta forgot it: its messages are handed over again."""


class TurnRun(DoubtfulTurn):
    """Runs a turn. Every method that comes to an end returns a pause: seconds until the lane is to come back to this
    turn, or None when it can go on with whatever is its head now.
    """

    _probing = False
    _resumed = False
    _noting: "asyncio.Task[None] | None" = None
    """Writes down the run's name while its answer is read on."""

    async def start(self) -> float | None:
        """``queued``: hand the messages over and follow the run."""
        if self.stop.is_set():
            return await self._close_stopped()
        if await self._room_unread():
            return HELD
        try:
            await self._let_cancelled_run_end()
            conversation, memory = await self._conversation()
        except LettaError as error:
            return await self._failed(error)
        if self._turn.doubtful:
            return await self.recover() if await self._begin_look(conversation) else None
        # the look at the agent's memory and the commit do not wait for each other
        looking = asyncio.create_task(self._refresh(conversation, memory))
        try:
            if self._turn.attempt:  # Letta was away: until it answers, its messages can be withdrawn and corrected
                await looking
            begun = await self._begin(conversation)
            if begun is None:
                return await self._close_untouched()
            await looking
        except LettaError as error:
            return await self._failed(error)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        if self.stop.is_set():
            return await self._close_stopped()
        return await self._hand_over(conversation, begun.messages)

    async def _begin(self, conversation: ConversationID) -> Begun | None:
        """``running``, with the messages' otids stored; None when nothing is left to be handed over."""
        turn = self._turn

        def otid(event_id: EventID, attempt: int) -> Otid:
            return make_otid(turn.agent_id, conversation, event_id, attempt)

        begun = await self._c.lanes.write(
            self._fence, lambda conn: self._c.turns.begin(conn, turn.turn_id, conversation, otid)
        )
        if begun is None or not begun.messages:
            return None
        self._c.sight.turn_begun(turn.turn_id, turn.attempt)
        faults.reach("turn.begun")
        self._take(begun.turn)
        self._shown_before = begun.turn.attempt > 1
        return begun

    async def _close_untouched(self) -> float | None:
        """Stopped, withdrawn or paused at the last moment."""
        await self._reread()
        if self.stop.is_set():
            return await self._close_stopped()
        if self._turn.state == "queued":
            return None  # paused: its lane meets it again as such
        replies = self._replies(await self._c.turns.messages(self._turn.turn_id))
        await self._close("cancelled", "withdrawn", await self._shut(replies, STOPPED_MARK, shown_only=True))
        return None

    async def _hand_over(self, conversation: ConversationID, messages: list[TurnMessage]) -> float | None:
        turn = self._turn
        prompts = [Prompt(message.otid, message.text) for message in messages]
        self._c.lanes.check(self._fence)  # who was frozen here may have an heir that hands them over
        stream = self._c.backend.send(turn.agent_id, conversation, prompts, deadline=self._c.settings.timeout)
        return await self._follow(stream, messages)

    async def _conversation(self) -> tuple[ConversationID, str]:
        """The conversation of the room with the agent, and the memory that it knows."""
        turn = self._turn
        if self._agent.portal_room == turn.room_id:
            return MAIN_CONVERSATION, ""
        known = await self._c.conversations.get(turn.agent_id, turn.room_id)
        if known is None:
            label = f"{PREFIX} {turn.room_id}"
            known = (await self._c.backend.open_conversation(turn.agent_id, label), "")
        return known

    async def _refresh(self, conversation: ConversationID, memory: str) -> None:
        """Let the conversation know the agent's present memory."""
        if conversation == MAIN_CONVERSATION:
            return
        turn = self._turn
        fresh = await self._c.backend.refresh_memory(turn.agent_id, conversation, memory)
        if fresh != memory or not memory:
            await self._c.lanes.write(
                self._fence,
                lambda conn: self._c.conversations.set(conn, turn.agent_id, turn.room_id, conversation, fresh),
            )

    # -- a run that was left behind

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
        await self._note_wait(_ORPHAN)
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
        if self._turn.wait_reason == _ORPHAN:
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

    # -- following a run

    async def _follow(self, stream: AsyncIterator[TurnEvent], messages: list[TurnMessage]) -> float | None:
        settings = self._c.settings
        renderer = Renderer(settings.first_event_s, settings.max_edits)
        self._speeches = renderer.speeches
        replies = self._replies(messages)
        try:
            async with aclosing(StreamReader(stream)) as reader:
                await self._listen(reader, renderer, replies)
        except LettaError as error:
            return await self._broken(error)
        finally:
            self._c.presence.stop_typing(self._puppet, self._turn.room_id)
        if renderer.ended is None or (self.stop.is_set() and renderer.ended.stop_reason == "cancelled"):
            return await self._close_stopped()
        self.finished = self.stop.is_set()
        await self._finish(renderer, replies)
        return None

    async def _listen(self, reader: StreamReader, renderer: Renderer, replies: Replies) -> None:
        """Take in the stream and show what is due, until the run ends or is stopped."""
        stopping = asyncio.create_task(self._nudge_when_stopped(reader))
        try:
            while True:
                patience = self._patience(renderer)
                arrived = await reader.wait(patience)
                if self.stop.is_set() and self._turn.run_id:
                    await self._cancel_run()
                    return
                # what is due is shown although more arrives all the time; a run that is to be stopped and has no name
                # yet is cancelled once it has one
                if not self.stop.is_set() and (not arrived or patience == 0.0):
                    await self._noted()
                    await self._show(renderer, replies)
                if not arrived:
                    continue
                event = reader.take()
                if event is None:
                    return
                if isinstance(event, RunStarted):
                    renderer.accepted(time.monotonic())
                    self._turn = replace(self._turn, run_id=event.run_id)
                    self._noting = asyncio.create_task(self._accepted(event.run_id, replies))
                    self._c.presence.expect_typing(self._puppet, self._turn.room_id)
                    if self.stop.is_set():  # it has waited for the name
                        reader.nudge()
                    continue
                completed = renderer.feed(event)
                faults.reach("turn.chunk")
                if completed and renderer.ended is None:
                    await self._noted()
                    await self._add(await self._final(replies, completed))
        except asyncio.CancelledError:
            if self._noting is not None:
                noting, self._noting = self._noting, None
                noting.cancel()  # what is being written is written all the same
                await asyncio.gather(noting, return_exceptions=True)
            raise
        finally:
            stopping.cancel()
            await self._noted()

    async def _noted(self) -> None:
        """Wait until the run's name is written down. Raises what that raised."""
        if self._noting is not None:
            noting, self._noting = self._noting, None
            await noting

    async def _nudge_when_stopped(self, reader: StreamReader) -> None:
        await self.stop.wait()
        reader.nudge()

    def _patience(self, renderer: Renderer) -> float | None:
        waits = [self._c.presence.due(self._puppet, self._turn.room_id)]
        if self._c.settings.stream:
            waits.append(renderer.due(time.monotonic()))
        return min((wait for wait in waits if wait is not None), default=None)

    async def _accepted(self, run_id: RunID, replies: Replies) -> None:
        turn = self._turn
        self._c.sight.turn_accepted(turn.turn_id)
        self._c.outage.over(turn.agent_id)

        async def work(conn: Connection) -> tuple[TurnRow | None, list[RoomID]]:
            now = await self._c.turns.accepted(conn, turn.turn_id, run_id)
            # while a run that Letta may have forgotten is tried, nothing is over yet
            return now, [] if self._probing else await self._c.troubles.over(conn, turn, self._puppet)

        faults.reach("turn.named")
        now, rooms = await self._c.lanes.write(self._fence, work)
        for room_id in rooms:
            self._c.lanes.wake(f"send:{room_id}")
        faults.reach("turn.accepted")
        if turn.wait_reason not in ("", _ORPHAN):
            log.info("turn goes on", extra={"action": "turn_goes_on", "turn": turn.turn_id, "agent": turn.agent_id})
        if now is not None:
            self._take(now)
        self._c.presence.read(self._puppet, turn.room_id, replies.last_event)

    async def _show(self, renderer: Renderer, replies: Replies) -> None:
        """Something is due: the typing notice, the first event of a live message, or its next edit."""
        self._c.presence.refresh(self._puppet, self._turn.room_id)
        speech = renderer.live
        if not self._c.settings.stream or speech is None or renderer.due(time.monotonic()) != 0.0:
            return
        text = speech.text
        if not speech.shown_txn:
            opening = await beside(speech, lambda: replies.opening(speech))
            await self._add([opening])
            await self._c.sender.confirmed(opening.txn_id, _OPENING_CONFIRM)
            renderer.first_shown(speech, opening.txn_id, text, time.monotonic())
            return
        event_id = await self._c.outbox.event_of(speech.shown_txn)
        if event_id is not None:
            edit = await beside(speech, lambda: replies.live_edit(speech, text))
            await self._c.sender.edit_now(self._fence, edit, event_id)
        renderer.edited(speech, text, time.monotonic())

    async def _let_cancelled_run_end(self) -> None:
        """A cancelled run ends only when its model answers, and Letta may let two runs of one conversation spoil each
        other: wait for its end, for a bounded time.
        """
        run_id = self._c.cancelled.pop(self._turn.agent_id, None)
        if run_id is None:
            return
        deadline = time.monotonic() + self._c.settings.settle
        while time.monotonic() < deadline:
            if not isinstance(await self._find(run_id, []), Live):
                return
            await asyncio.sleep(_CANCEL_PAUSE)

    async def _cancel_run(self) -> None:
        self._c.cancelled[self._turn.agent_id] = RunID(self._turn.run_id)
        for left in range(_CANCEL_TRIES - 1, -1, -1):
            try:
                await self._c.backend.cancel(self._turn.agent_id, RunID(self._turn.run_id))
                return
            except LettaError as error:
                log.warning("run not cancelled", extra={"action": "cancel_failed", "left": left, "why": str(error)})
            if left:
                await asyncio.sleep(_CANCEL_PAUSE)
        self.unsure = True

    # -- the end of a run

    async def _finish(self, renderer: Renderer, replies: Replies) -> None:
        turn = self._turn
        faults.reach("turn.ended")
        rows: list[Outgoing] = []
        for speech in renderer.speeches:
            rows += await self._final(replies, speech)
        rows += replies.closing(renderer)

        async def work(conn: Connection) -> tuple[list[RoomID], bool]:
            rooms, done = await self._c.troubles.over(conn, turn, self._puppet), False
            if await self._c.turns.replying(conn, turn.turn_id):
                for row in rows:
                    await self._c.outbox.add(conn, row)
                done = await self._c.turns.close_delivered(conn, turn.turn_id)
            for room_id in [*rooms, turn.room_id]:
                await self._c.lanes.announce(conn, f"send:{room_id}")
            return rooms, done

        told, done = await self._c.lanes.write(self._fence, work)
        if done:  # all of it stood in the room already
            self._c.sight.turn_ended(turn.turn_id, "done")
        faults.reach("turn.replied")
        for room_id in [*told, turn.room_id]:
            self._c.lanes.wake(f"send:{room_id}")

    # -- trouble

    async def _broken(self, error: LettaError) -> float | None:
        """The call failed: what is unknown is looked up, what is known is acted upon."""
        named = bool(self._turn.run_id)  # a run without a name has to be found before it can be cancelled
        if error.kind is Kind.TIMEOUT and named and self._probing:
            return await self._cancel_orphan()
        if error.kind is Kind.TIMEOUT and named:
            extra = {"action": "turn_timeout", "turn": self._turn.turn_id, "limit": self._c.settings.timeout}
            log.warning("turn took too long", extra=extra)
            await self._cancel_run()
            return await self._give_up(Kind.TIMEOUT)
        if error.delivery is Delivery.NO:
            return await self._failed(error)
        if self.stop.is_set() and named:
            await self._cancel_run()
            return await self._close_stopped()
        extra = {"action": "turn_interrupted", "turn": self._turn.turn_id, "why": str(error)}
        log.warning("turn interrupted", extra=extra)
        if self._resumed:  # it breaks again and again: not at once, and not for ever
            return await self._look_later(error.detail)
        return await self.recover(error)

    async def _failed(self, error: LettaError) -> float | None:
        """Proven not delivered: wait, try again, or give up, as the table of sentences says."""
        error = await self._believed(error)
        turn, fate = self._turn, errors.TROUBLES[error.kind].fate
        extra = {
            "action": "turn_failed",
            "turn": turn.turn_id,
            "agent": turn.agent_id,
            "fate": fate.value,
            "why": str(error),
        }
        if fate is Fate.WAIT and turn.wait_reason == error.kind.value:
            log.debug("turn failed again", extra=extra)  # a wait is told once, not at every try
        else:
            log.warning("turn failed", extra=extra)
        if self.stop.is_set():
            return await self._close_stopped()
        if fate is Fate.WAIT:
            return await self._wait(error)
        if error.kind is Kind.CONVERSATION_GONE:
            await self._c.lanes.write(
                self._fence, lambda conn: self._c.conversations.forget(conn, turn.agent_id, turn.room_id)
            )
        if fate is Fate.RETRY and turn.failures + 1 < self._c.settings.attempts:
            delay = error.retry_after or min(60.0, 0.5 * 2**turn.failures)
            reason = "" if turn.wait_reason == _ORPHAN else turn.wait_reason
            return await self._requeue(delay, reason, failed=True)
        return await self._give_up(error.kind, error.detail)

    async def _wait(self, error: LettaError) -> float | None:
        agent_id = self._turn.agent_id
        self._c.outage.seen(error)
        delay = error.retry_after or self._c.settings.pause_of(error.kind) or self._c.outage.pause(agent_id)
        await self._requeue(delay, error.kind.value, failed=False)
        await self._c.troubles.tell_waiting(self._fence, agent_id, error.kind, self._turn.room_id)
        return None  # the lane sees the time of the next try in the row

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
            if turn.wait_reason != _ORPHAN:
                await self._note_wait(kind.value)
            await self._c.troubles.tell_waiting(self._fence, turn.agent_id, kind, turn.room_id)
        elif self._overdue():
            await self._uncertain(error.detail)
            return None
        return self._c.outage.pause(turn.agent_id)

    async def give_up(self) -> None:
        """Something unexpected went wrong with this turn again and again: say so, and let others pass."""
        await self._give_up(Kind.INTERNAL, "unexpected error; see the log")
