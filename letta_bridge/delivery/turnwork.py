"""What is written about a turn: its rows in the outbox, its end, and the sentences that go with it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from .. import errors
from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.outbox import Outgoing
from ..db.turns import TurnMessage, TurnRow
from ..lanes import Fence
from ..letta.errors import Kind, LettaError
from .context import TurnContext
from .replies import LIVE_MARK, Replies
from .speech import Speech

log = logging.getLogger(__name__)

T = TypeVar("T")

_BROKEN_MARK = "\n\n*(broken off)*"
STOPPED_MARK = "\n\n*(stopped)*"
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
        opened = bool(speech.shown_txn)
        if not opened and self._shown_before:
            shown = await self._c.outbox.content_of(replies.first_txn(speech.index))
            if shown is not None:
                rows = await beside(speech, lambda: replies.final(speech, suffix, opened=False))
                opened = bool(rows) and shown.get("body") != rows[0].content.get("body")
        return await beside(speech, lambda: replies.final(speech, suffix, opened=opened))

    async def _add(self, rows: Sequence[Outgoing]) -> None:
        async def work(conn: Connection) -> None:
            for row in rows:
                await self._c.outbox.add(conn, row)
            await self._c.lanes.announce(conn, f"send:{self._turn.room_id}")

        if rows:
            await self._c.lanes.write(self._fence, work)
            self._c.lanes.wake(f"send:{self._turn.room_id}")

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
        index = len(self._speeches)
        while (text := await self._c.outbox.text_of(replies.first_txn(index))) is not None:
            if text.endswith(LIVE_MARK):
                rows += replies.final(Speech(index, "", [text.removesuffix(LIVE_MARK)]), mark, opened=True)
            index += 1
        return rows

    async def _left_growing(self, replies: Replies, index: int) -> bool:
        """Whether an earlier attempt or owner showed a beginning of this message, and nobody its end."""
        text = await self._c.outbox.text_of(replies.first_txn(index))
        return text is not None and text.endswith(LIVE_MARK)

    async def _believed(self, error: LettaError) -> LettaError:
        """The error as it counts: that an agent is gone is no proof while it is undecided whether Letta is ours."""
        present = self._agent.state not in ("missing", "archived")
        if error.kind is Kind.AGENT_GONE and present and await self._c.guard.in_doubt():
            return LettaError(Kind.NOT_OURS, error.detail, delivery=error.delivery)
        return error

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
            rows = [*await self._shut(replies, _BROKEN_MARK), replies.about(kind, sentence)]
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
