"""From assistant messages to outbox rows: answers, finals of streamed answers, and what is said about a run."""

from collections.abc import Sequence

from .. import errors
from ..db.outbox import Outgoing, Said
from ..db.turns import TurnRow
from ..ids import MXID, EventID
from ..letta.backend import RunEnded
from ..matrix.markdown import render
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

    def txn(self, index: int, part: int = 0) -> str:
        """The transaction id of an event of the turn's message number ``index``."""
        kind = f"more:{index}" if part else "answer"
        return txn_id(self._voice.sender, self._turn.room_id, self._turn.source, kind, part or index)

    def _target_of(self, index: int, part: int) -> ReplyTarget:
        return self._target if index == part == 0 else self._target.continued()

    def opening(self, speech: Speech) -> Outgoing:
        """The first event of a message that is still being said."""
        return self._event(speech.index, 0, self._beginning(speech.text), growing=True)

    def opening_again(self, speech: Speech, edited: int) -> Outgoing:
        """The same for a message of which an earlier attempt or owner has shown the event already."""
        return self._edit(speech.index, 0, self._beginning(speech.text), edited, growing=True)

    def live_edit(self, speech: Speech, text: str) -> Outgoing:
        """A live edit; never stored, its id changes with its number."""
        return message(
            self._voice,
            self._beginning(text),
            self._target_of(speech.index, 0),
            source=self._turn.source,
            kind=f"live:{speech.shown_txn}",  # whoever has shown it before has used up the names of its edits
            part=speech.edits,
            answers=self._answers,
            edits=self.txn(speech.index),
            growing=True,
        )

    def _beginning(self, text: str) -> str:
        if len(text) * 4 > self._part_bytes:
            parts = split(text[: 2 * self._part_bytes], self._part_bytes)  # what follows changes nothing in the first
            text = parts[0] if parts else ""
        return text.rstrip() + LIVE_MARK

    def parts(self, speech: Speech, suffix: str = "") -> list[str]:
        """The complete message, in as many events as it takes; none when there is nothing to be read."""
        if not speech.text.strip():
            return []
        text = speech.text.strip("\n") + suffix
        return split(text, self._part_bytes) or [text]

    def final(self, index: int, parts: Sequence[str], said: Sequence[Said | None]) -> list[Outgoing]:
        """The events of a complete message. What stands in the outbox with another text (``said``, by part) is edited,
        and nothing is done about what is there as it is to be.
        """
        rows = []
        for part, (text, before) in enumerate(zip(parts, said, strict=True)):
            if before is None:
                rows.append(self._event(index, part, text))
            elif before.growing or before.text != render(text).body:
                rows.append(self._edit(index, part, text, before.edits))
        return rows

    def _event(self, index: int, part: int, text: str, *, growing: bool = False) -> Outgoing:
        return message(
            self._voice,
            text,
            self._target_of(index, part),
            source=self._turn.source,
            kind=f"more:{index}" if part else "answer",
            part=part or index,
            answers=self._answers,
            growing=growing,
        )

    def _edit(self, index: int, part: int, text: str, edited: int, *, growing: bool = False) -> Outgoing:
        """``edited``: how many edits of the event are in the outbox; each has a name of its own."""
        return message(
            self._voice,
            text,
            self._target_of(index, part),
            source=self._turn.source,
            kind=f"final:{self._turn.attempt}" + (f":{part}:{edited}" if part or edited else ""),
            part=index,
            answers=self._answers,
            edits=self.txn(index, part),
            growing=growing,
        )

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
