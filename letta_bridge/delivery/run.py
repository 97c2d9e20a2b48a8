"""One turn in the hands of its lane: handing messages over, following the run, and what comes of it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from .. import faults
from ..db.database import Connection
from ..db.outbox import Outgoing
from ..db.turns import Begun, TurnMessage, TurnRow
from ..ids import MAIN_CONVERSATION, PREFIX, ConversationID, EventID, Otid, RoomID, RunID, make_otid
from ..letta.backend import Live, Prompt, RunStarted, TurnEvent
from ..letta.errors import Delivery, Kind, LettaError
from .doubt import HELD
from .reader import StreamReader
from .recovery import LeftBehind
from .replies import Replies
from .speech import Renderer, Speech
from .turnwork import ORPHAN, STOPPED_MARK, beside

log = logging.getLogger(__name__)

_OPENING_CONFIRM = 3.0
_CANCEL_TRIES = 3
_CANCEL_PAUSE = 0.5


class TurnRun(LeftBehind):
    """Runs a turn. Every method that comes to an end returns a pause: seconds until the lane is to come back to this
    turn, or None when it can go on with whatever is its head now.
    """

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
            if self._turn.doubtful:
                conversation = await self._spoken_in(conversation)
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
        if turn.wait_reason not in ("", ORPHAN):
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
            opening = await self._opening(replies, speech)
            await self._add([opening])
            await self._c.sender.confirmed(opening.txn_id, _OPENING_CONFIRM)
            renderer.first_shown(speech, opening.txn_id, text, time.monotonic())
            return
        event_id = await self._c.outbox.event_of(speech.shown_txn)
        if event_id is not None and speech.shown_txn != (first := replies.txn(speech.index)):
            event_id = await self._c.outbox.event_of(first)
        if event_id is not None:
            edit = await beside(speech, lambda: replies.live_edit(speech, text))
            await self._c.sender.edit_now(self._fence, edit, event_id, self._c.settings.edit_patience)
        renderer.edited(speech, text, time.monotonic())

    async def _opening(self, replies: Replies, speech: Speech) -> Outgoing:
        """Stored also where an earlier attempt or owner has shown the event: else nobody would know that it grows."""
        said = await self._said(replies, speech, 0)
        if said is None:
            return await beside(speech, lambda: replies.opening(speech))
        return await beside(speech, lambda: replies.opening_again(speech, said.edits))

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
