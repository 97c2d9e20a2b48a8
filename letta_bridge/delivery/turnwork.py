"""What is written about a turn: its rows in the outbox, its end, and the sentences that go with it."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from .. import errors, faults
from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.outbox import Outgoing, Said
from ..db.turns import TurnMessage, TurnRow
from ..errors import Fate
from ..ids import RoomID
from ..lanes import Fence
from ..letta.errors import Kind, LettaError
from .context import TurnContext
from .replies import LIVE_MARK, Replies
from .speech import Renderer, Speech

log = logging.getLogger(__name__)

T = TypeVar("T")

BROKEN_MARK = "\n\n*(broken off)*"
STOPPED_MARK = "\n\n*(stopped)*"
ORPHAN = "orphan"
"""Wait reason of a run that we cancel because Letta forgot it: its messages are handed over again."""
_RENDER_BESIDE = 2000
"""Characters; a table of so many takes about 20 ms."""


async def beside(speech: Speech, render: Callable[[], T]) -> T:
    """What ``render`` makes of a message: Markdown takes its time, so a long one is rendered beside the event loop."""
    return await asyncio.to_thread(render) if speech.length > _RENDER_BESIDE else render()


class TurnWork:
    """A turn in the hands of its lane.

    ``stop`` is set when somebody wants the turn to end. ``unsure`` says afterwards that Letta did not confirm it, and
    ``finished`` that it came too late.
    """

    def __init__(self, context: TurnContext, fence: Fence, turn: TurnRow, agent: AgentRow) -> None:
        self._c = context
        self._fence = fence
        self._turn = turn
        self._agent = agent
        self._puppet = agent.mxid
        self._shown_before = True
        """Whether something of the answer may have been shown by an earlier attempt or owner."""
        self.unsure = False
        self.finished = False
        self._speeches: list[Speech] = []
        self.stop = asyncio.Event()
        if turn.stop_by:
            self.stop.set()

    def _replies(self, messages: Sequence[TurnMessage]) -> Replies:
        answers = [message.event_id for message in messages]
        senders = [message.sender for message in messages]
        return Replies(self._turn, self._puppet, answers, senders, self._c.settings.part_bytes)

    async def _final(self, replies: Replies, speech: Speech, suffix: str = "") -> list[Outgoing]:
        """The final of a message; what an earlier attempt or owner showed of it is edited."""
        parts = await beside(speech, lambda: replies.parts(speech, suffix))
        said = [await self._said(replies, speech, part) for part in range(len(parts))]
        return await beside(speech, lambda: replies.final(speech.index, parts, said))

    async def _said(self, replies: Replies, speech: Speech, part: int) -> Said | None:
        """What stands in the outbox under the name of a part of a message."""
        if self._shown_before:
            return await self._c.outbox.said(replies.txn(speech.index, part))
        return Said("", 0, True) if speech.shown_txn and not part else None

    async def _add(self, rows: Sequence[Outgoing]) -> None:
        async def work(conn: Connection) -> None:
            for row in rows:
                await self._c.outbox.add(conn, row)
            await self._c.lanes.announce(conn, f"send:{self._turn.room_id}")

        if rows:
            await self._c.lanes.write(self._fence, work)
            self._c.lanes.wake(f"send:{self._turn.room_id}")

    async def _finish(self, renderer: Renderer, replies: Replies) -> None:
        """The run ended in good order: all that it said, and what is to be said about its end."""
        turn = self._turn
        faults.reach("turn.ended")
        rows: list[Outgoing] = []
        for speech in renderer.speeches:
            rows += await self._final(replies, speech)
        if self._shown_before:
            spoken = [speech.index for speech in renderer.speeches if speech.text.strip()]
            rows += await self._unfinished(replies, BROKEN_MARK, spoken)
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

    async def _close(self, state: str, why: str, rows: Sequence[Outgoing] = ()) -> None:
        async def work(conn: Connection) -> bool:
            closed = await self._c.turns.close(conn, self._turn.turn_id, state, why)
            if closed:
                await self._c.troubles.ended(conn, self._turn.agent_id, self._turn.room_id)
                for row in rows:
                    await self._c.outbox.add(conn, row)
                await self._c.lanes.announce(conn, f"send:{self._turn.room_id}")
            return closed

        if await self._c.lanes.write(self._fence, work):
            self._c.sight.turn_ended(self._turn.turn_id, state)
        self._c.lanes.wake(f"send:{self._turn.room_id}")

    async def _close_stopped(self) -> float | None:
        """Stopped: what was shown of the answer is closed with a mark; nothing more is said of it here."""
        replies = self._replies(await self._c.turns.messages(self._turn.turn_id))
        rows = await self._shut(replies, STOPPED_MARK, shown_only=True)
        await self._reread()
        await self._close("cancelled", f"stopped by {self._turn.stop_by or 'Letta'}", rows)
        return None

    async def _shut(self, replies: Replies, mark: str, *, shown_only: bool = False) -> list[Outgoing]:
        """Close what was said of an answer that will not go on; what only an earlier owner showed, too."""
        rows: list[Outgoing] = []
        for speech in self._speeches:
            if speech.shown_txn or not shown_only or await self._left_growing(replies, speech.index):
                rows += await self._final(replies, speech, "" if speech.complete else mark)
        return [*rows, *await self._unfinished(replies, mark, [speech.index for speech in self._speeches])]

    async def _unfinished(self, replies: Replies, mark: str, spoken: Collection[int]) -> list[Outgoing]:
        """An end for messages that an earlier attempt or owner began, other than those that are ``spoken`` now."""
        rows: list[Outgoing] = []
        index = 0
        while (said := await self._c.outbox.said(replies.txn(index))) is not None:
            if index not in spoken and said.growing:
                shown = await self._c.sender.shown_growing(self._puppet, self._turn.room_id, replies.txn(index))
                text = shown or said.text
                rows += replies.final(index, [text.removesuffix(LIVE_MARK) + mark], [said])
            index += 1
        return rows

    async def _left_growing(self, replies: Replies, index: int) -> bool:
        """Whether an earlier attempt or owner showed a beginning of this message, and nobody its end."""
        said = await self._c.outbox.said(replies.txn(index))
        return said is not None and said.growing

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
            reason = "" if turn.wait_reason == ORPHAN else turn.wait_reason
            return await self._requeue(delay, reason, failed=True)
        return await self._give_up(error.kind, error.detail)

    async def _wait(self, error: LettaError) -> float | None:
        agent_id = self._turn.agent_id
        self._c.outage.seen(error)
        delay = error.retry_after or self._c.settings.pause_of(error.kind) or self._c.outage.pause(agent_id)
        await self._requeue(delay, error.kind.value, failed=False)
        await self._c.troubles.tell_waiting(self._fence, agent_id, error.kind, self._turn.room_id)
        return None  # the lane sees the time of the next try in the row

    async def _believed(self, error: LettaError) -> LettaError:
        """The error as it counts: that an agent is gone is believed of our Letta only, and where nobody is asked."""
        if error.kind is not Kind.AGENT_GONE or self._agent.state in ("missing", "archived"):
            return error
        kind = await self._c.absences.judge(self._turn.agent_id)
        return LettaError(kind, error.detail, delivery=error.delivery)

    async def _note_wait(self, reason: str) -> None:
        turn_id = self._turn.turn_id
        await self._c.lanes.write(self._fence, lambda conn: self._c.turns.note_wait(conn, turn_id, reason))
        await self._reread()

    async def _requeue(self, delay: float, reason: str, *, failed: bool) -> float | None:
        """Back to the queue, as its head; the row says when it is tried again."""
        turn_id = self._turn.turn_id
        self._c.sight.retried("turn")
        await self._c.lanes.write(
            self._fence,
            lambda conn: self._c.turns.requeue(conn, turn_id, delay=delay, reason=reason, failed=failed),
        )
        return None

    async def give_up(self) -> None:
        """Something unexpected went wrong with this turn again and again: say so, and let others pass."""
        await self._give_up(Kind.INTERNAL, "unexpected error; see the log")

    async def _give_up(self, kind: Kind, detail: str = "") -> float | None:
        minutes = max(1, round(self._c.settings.timeout / 60))
        words = f"{minutes} minutes" if minutes > 1 else "a minute"
        sentence = errors.TROUBLES[kind].sentence.format(minutes=words)
        await self._tell_and_close(sentence, kind.value, detail or kind.value)
        return None

    async def _tell_and_close(self, sentence: str, kind: str, detail: str) -> None:
        messages = await self._c.turns.messages(self._turn.turn_id)
        rows: list[Outgoing] = []
        if messages:
            replies = self._replies(messages)
            rows = [*await self._shut(replies, BROKEN_MARK), replies.about(kind, sentence)]
        await self._close("dead", detail, rows)

    async def _uncertain(self, detail: str) -> None:
        # not why: the words of a provider may quote the prompt, and stand in the row
        log.error("outcome of a turn stays unknown", extra={"action": "turn_uncertain", "turn": self._turn.turn_id})
        await self._tell_and_close(errors.MAY_NOT_HAVE_BEEN_DELIVERED, "uncertain", detail)

    def _overdue(self) -> bool:
        """Whether the turn has had the time that it may take, and that of looking for it."""
        settings = self._c.settings
        return self._turn.running_for >= settings.timeout + 2 * settings.settle

    async def _reread(self) -> None:
        turn = await self._c.turns.get(self._turn.turn_id)
        assert turn is not None
        self._take(turn)

    def _take(self, turn: TurnRow) -> None:
        self._turn = turn
        if turn.stop_by:
            self.stop.set()
