"""Turns that a bridge whose database is lost may have handed over: Letta is asked before anything is repeated."""

import asyncio
import logging
import time
from collections.abc import Sequence

from .. import errors
from ..db.restored import possible_otids
from ..db.turns import TurnMessage
from ..ids import MAIN_CONVERSATION, ConversationID, RunID
from ..letta.backend import Finished, Live, NotDelivered, Outcome, Unknown
from .turnwork import BROKEN_MARK, TurnWork

log = logging.getLogger(__name__)

_SLACK = 600.0
"""Seconds by which the clocks of the database and of Letta may differ."""
HELD = 1.0
"""Seconds between two looks whether the room was read back."""


class DoubtfulTurn(TurnWork):
    """What a turn does that was open when its database was restored, or that answers a message of the time before."""

    async def _room_unread(self) -> bool:
        """Whether the room may still tell that all of it was answered, or may turn out to be the agent's portal: then
        its conversation is another one. An agent whose portal cannot be had now is not waited for: see
        :meth:`_spoken_in`.
        """
        if not self._turn.doubtful:
            return False
        agent = self._agent
        homeless = agent.portal_room is None and agent.state in ("new", "active") and not agent.error
        return homeless or await self._c.restored.waits(self._turn.room_id)

    async def _spoken_in(self, conversation: ConversationID) -> ConversationID:
        """Where it is to be looked up. While the agent's portal is not known, this room may be it, and the lost bridge
        have spoken in the main conversation.

        Raises:
            LettaError: Letta cannot be asked.
        """
        if conversation == MAIN_CONVERSATION or self._agent.portal_room is not None:
            return conversation
        messages = await self._c.turns.messages(self._turn.turn_id)
        outcome = await self._look_in(MAIN_CONVERSATION, messages)
        return conversation if isinstance(outcome, NotDelivered) else MAIN_CONVERSATION

    async def _begin_look(self, conversation: ConversationID) -> bool:
        """``running`` without having handed anything over; False when it is not queued any more."""
        turn_id = self._turn.turn_id
        turn = await self._c.lanes.write(self._fence, lambda conn: self._c.turns.look_up(conn, turn_id, conversation))
        if turn is not None:
            self._take(turn)
        return turn is not None

    async def _find_doubtful(self, messages: Sequence[TurnMessage]) -> Outcome:
        return await self._look_in(ConversationID(self._turn.conversation_id), messages)

    async def _look_in(self, conversation: ConversationID, messages: Sequence[TurnMessage]) -> Outcome:
        """Look for the messages under every id that they can have been given, back to the time of the backup.

        Raises:
            LettaError: Letta cannot be asked.
        """
        turn, facts, settle = self._turn, self._c.restored.facts, self._c.settings.settle
        events = [message.event_id for message in messages]
        otids = await asyncio.to_thread(possible_otids, turn.agent_id, conversation, events, turn.attempt)
        now = time.time()
        restored = facts.restored_at if facts else now
        since = min(facts.backup_at if facts else now, now - turn.age) - _SLACK
        return await self._c.backend.find(
            turn.agent_id,
            conversation,
            run_id=None,
            otids=[*otids, *(message.otid for message in messages if message.otid)],
            # nobody has handed anything over since the restore: a second look need not come later than this
            settle=min(settle, max(0.0, restored + settle - now)),
            since=since,
        )

    async def _past_doubt(self, outcome: Outcome, messages: Sequence[TurnMessage]) -> bool:
        """Write down what was found; whether there is anything left to be done about the turn."""
        turn = self._turn
        if isinstance(outcome, Finished | Live) and await self._c.turns.others_run(
            turn.turn_id, turn.agent_id, outcome.run_id
        ):
            await self._close("done", "answered together with another message")
            return False
        if isinstance(outcome, Unknown):  # Letta keeps a message in its history only once the agent has made a step
            return True
        if not isinstance(outcome, Finished | Live) and await self._is_shown(messages):
            await self._uncertain("its answer broke off before the restore")
            return False
        run_id: RunID | None = None if isinstance(outcome, NotDelivered) else outcome.run_id
        await self._c.lanes.write(self._fence, lambda conn: self._c.turns.no_doubt(conn, turn.turn_id, run_id))
        await self._reread()
        return True

    async def _is_shown(self, messages: Sequence[TurnMessage]) -> bool:
        """Whether the room shows an answer, or the beginning of one."""
        return await self._c.outbox.state_of(self._replies(messages).txn(0)) == "sent"

    async def _uncertain(self, detail: str) -> None:
        """Also where the room shows an answer of which Letta knows nothing (more): it is not asked for again."""
        if not self._turn.doubtful:
            await super()._uncertain(detail)
            return
        messages = await self._c.turns.messages(self._turn.turn_id)
        shown = bool(messages) and await self._is_shown(messages)
        if shown and not await self._shut(self._replies(messages), BROKEN_MARK):
            await self._close("done", "answered before the restore")
            return
        extra = {"action": "turn_uncertain", "turn": self._turn.turn_id}
        log.warning("what became of a turn from before the restore stays unknown", extra=extra)
        await self._tell_and_close(errors.LOST_IN_RESTORE, "uncertain", detail)
