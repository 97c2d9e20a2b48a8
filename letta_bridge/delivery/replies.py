"""From assistant messages to outbox rows: answers, finals of streamed answers, and what is said about a run."""

from collections.abc import Sequence

from .. import errors
from ..db.outbox import Outgoing
from ..db.turns import TurnRow
from ..ids import MXID, EventID
from ..letta.backend import RunEnded
from ..matrix.splitter import split
from .outgoing import ReplyTarget, Voice, message, notice, txn_id
from .speech import Renderer, Speech

_FINE = frozenset(("end_turn", "requires_approval", "cancelled"))
_REASONS = {
    "max_steps": "the agent took more steps than Letta allows",
    "max_tokens_exceeded": "the model's answer was cut off at its length limit",
    "insufficient_credits": "there is no credit left at the model's provider",
    "no_tool_call": "the model did not act as this kind of agent must",
    "tool_rule": "a tool rule ended it",
    "invalid_tool_call": "the model called a tool wrongly",
    "invalid_llm_response": "the model's answer could not be used",
}
LIVE_MARK = " …"
"""Ends a text that is still growing."""


class Replies:
    """Makes the events of one turn. Everything is named after the turn's source, so that making it twice is harmless.

    Args:
        turn: the turn.
        puppet: who speaks.
        answers: the Matrix events that are answered.
        senders: who wrote them, to be mentioned where the room has several people.
        part_bytes: largest Markdown text of one event.
    """

    def __init__(
        self, turn: TurnRow, puppet: MXID, answers: Sequence[EventID], senders: Sequence[MXID], part_bytes: int
    ) -> None:
        self._turn = turn
        self._answers = answers
        self._part_bytes = part_bytes
        self._voice = Voice(puppet, turn.room_id, turn.agent_id, turn.turn_id)
        mention = tuple(dict.fromkeys(senders)) if turn.mention else ()
        self._target = ReplyTarget(turn.thread_root, turn.reply_to, mention)

    @property
    def last_event(self) -> EventID:
        """The newest message of the turn."""
        return self._answers[-1]

    def first_txn(self, index: int) -> str:
        """The transaction id of the first event of the turn's message number ``index``."""
        return txn_id(self._voice.sender, self._turn.room_id, self._turn.source, "answer", index)

    def _first_target(self, speech: Speech) -> ReplyTarget:
        return self._target if speech.index == 0 else self._target.continued()

    def opening(self, speech: Speech) -> Outgoing:
        """The first event of a message that is still being said."""
        return self._answer(speech, self._head(speech.text).rstrip() + LIVE_MARK)

    def live_edit(self, speech: Speech, text: str) -> Outgoing:
        """A live edit; never stored, its id changes with its number."""
        return message(
            self._voice,
            self._head(text).rstrip() + LIVE_MARK,
            self._first_target(speech),
            source=self._turn.source,
            kind=f"live:{self._turn.attempt}:{speech.index}",
            part=speech.edits,
            answers=self._answers,
            edits=self.first_txn(speech.index),
        )

    def _head(self, text: str) -> str:
        if len(text) * 4 <= self._part_bytes:
            return text
        parts = split(text[: 2 * self._part_bytes], self._part_bytes)  # what comes later changes nothing in the first
        return parts[0] if parts else ""

    def _answer(self, speech: Speech, text: str) -> Outgoing:
        return message(
            self._voice,
            text,
            self._first_target(speech),
            source=self._turn.source,
            kind="answer",
            part=speech.index,
            answers=self._answers,
        )

    def final(self, speech: Speech, suffix: str = "", *, opened: bool | None = None) -> list[Outgoing]:
        """The complete message: one event, or a final edit of what was shown live, and further parts if it is long.

        Args:
            opened: whether its first event may be out already; None takes the renderer's word.
        """
        text = speech.text.strip("\n") + suffix
        if not text.strip():
            return []
        first, *more = split(text, self._part_bytes) or [text]
        out = [self._answer(speech, first)]
        if opened if opened is not None else bool(speech.shown_txn):
            edit = message(
                self._voice,
                first,
                self._first_target(speech),
                source=self._turn.source,
                kind=f"final:{self._turn.attempt}",
                part=speech.index,
                answers=self._answers,
                edits=self.first_txn(speech.index),
            )
            out = [edit]
        for number, part in enumerate(more, start=1):
            out.append(
                message(
                    self._voice,
                    part,
                    self._target.continued(),
                    source=self._turn.source,
                    kind=f"more:{speech.index}",
                    part=number,
                    answers=self._answers,
                )
            )
        return out

    def about(self, kind: str, sentence: str) -> Outgoing:
        """A notice about the turn: answers the message concerned, in its thread, and mentions only its sender."""
        answers = () if kind == "looking" else self._answers
        target = self._notice_target()
        return notice(self._voice, sentence, target, source=self._turn.source, kind=kind, answers=answers)

    def _notice_target(self) -> ReplyTarget:
        return ReplyTarget(self._target.thread_root, self._turn.reply_to or self.last_event, self._target.mention)

    def closing(self, renderer: Renderer) -> list[Outgoing]:
        """What has to be said about how the run ended, beside the messages themselves."""
        ended = renderer.ended or RunEnded("end_turn")
        if ended.stop_reason == "requires_approval" and renderer.approvals:
            return [self.about("approval", errors.ASKS_APPROVAL.format(tool=renderer.approvals[0].name[:80]))]
        if ended.stop_reason == "cancelled":
            return [self.about("cancelled", errors.STOPPED_EARLY.format(reason=errors.CANCELLED_IN_LETTA))]
        if ended.stop_reason not in _FINE:
            reason = _REASONS.get(ended.stop_reason, f"Letta says “{ended.stop_reason[:60]}”")
            return [self.about("ended", errors.STOPPED_EARLY.format(reason=reason))]
        if not any(speech.text.strip() for speech in renderer.speeches):
            return [self.about("silent", errors.SAID_NOTHING)]
        return []
