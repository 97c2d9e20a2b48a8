"""Bookkeeping of a soak: what people said, whom they asked, and what their own clients show of the answers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from letta_bridge import errors
from letta_bridge.errors import Fate
from letta_bridge.ids import AgentID, ConversationID, EventID, make_otid
from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import Person, Rendered
from letta_bridge.testing.fake_letta import FakeLetta, Turn

END = "fin."
"""The last word of every answer."""
_NAME = re.compile(r"<(m\d+)[ >]")
_HONEST = {
    "may not have been delivered": errors.MAY_NOT_HAVE_BEEN_DELIVERED,
    "failed midway": errors.FAILED_MIDWAY,
    "ended early": errors.STOPPED_EARLY,
    **{kind.value: trouble.sentence for kind, trouble in errors.TROUBLES.items() if trouble.fate is not Fate.WAIT},
}
"""What may stand in the place of an answer."""


def reply_names(texts: Iterable[str]) -> str:
    """The names of the messages that an answer answers."""
    return " ".join(f"<{envelope.open_(text).body}>" for text in texts)


@dataclass(eq=False, slots=True)
class Said:
    """One message of a person."""

    name: str
    person: Person
    room: str
    thread: str
    agents: tuple[str, ...]
    """Whom it asked: each of them owes an answer."""
    event_id: str = ""
    excused: str = ""
    """Why it may stay without an answer; it may be answered all the same, once."""


@dataclass(slots=True)
class Verdict:
    """The count. The first five must be empty."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    """Messages that Letta answered in more than one turn although it could have told that it had them."""
    overlapping: list[str] = field(default_factory=list)
    """Turns of one agent at the same time."""
    missing: list[str] = field(default_factory=list)
    """The events of what was lost."""
    unavoidable: int = 0
    """Repeated turns whose first request reached Letta only after it had been looked for."""
    honest: Counter[str] = field(default_factory=Counter)
    """Sentences that stand in the place of an answer."""
    retried: int = 0
    """Turns that Letta ended without keeping anything, and that were therefore ordered again."""

    @property
    def violations(self) -> list[str]:
        kinds = ("lost", "twice", "disorder", "unfinished", "repeated", "overlapping")
        return [f"{kind}: {what}" for kind in kinds for what in getattr(self, kind)]


class Ledger:
    """Everything that was said, in the order in which it was said."""

    def __init__(self, letta: FakeLetta, puppets: dict[str, str]) -> None:
        self._letta = letta
        self._puppets = puppets  # user id -> agent
        self.said: list[Said] = []
        self._by_event: dict[str, Said] = {}
        self._closed: dict[str, int] = {}

    def write(self, said: Said, event_id: str) -> None:
        """Something was said."""
        said.event_id = event_id
        self.said.append(said)
        self._by_event[event_id] = said

    @property
    def counted(self) -> int:
        """Messages that have to be answered."""
        return sum(1 for one in self.said if not one.excused)

    # -- what is shown

    def _spoken(self, room: str, viewer: Person) -> list[tuple[str, Rendered]]:
        """What agents say in a room, as a person's client shows it."""
        return [(self._puppets[m.sender], m) for m in viewer.messages(room) if m.sender in self._puppets]

    def _rooms(self) -> dict[str, list[Said]]:
        rooms: dict[str, list[Said]] = defaultdict(list)
        for one in self.said:
            rooms[one.room].append(one)
        return rooms

    def open(self) -> int:
        """How many messages wait for an answer. Rooms in which none does any more are not looked at again."""
        missing = 0
        for room, said in self._rooms().items():
            if self._closed.get(room) == len(said):
                continue
            left = len(self.waiting(room))
            missing += left
            if not left:
                self._closed[room] = len(said)
        return missing

    def growing(self) -> list[str]:
        """What is shown of answers that have not come to an end, also of those that nobody has to get."""
        rooms = self._rooms().items()
        return [m.body for room, said in rooms for _, m in self._spoken(room, said[0].person) if not _ended(m)]

    def waiting(self, room: str) -> list[Said]:
        """Messages of a room to which not every agent has given its whole answer yet."""
        said = [one for one in self.said if one.room == room]
        spoken = self._spoken(room, said[0].person)
        answered = {(agent, name) for agent, m in spoken if END in m.body for name in _NAME.findall(m.body)}
        done = answered | self._honest(spoken, said).keys()
        return [one for one in said if not one.excused and any((agent, one.name) not in done for agent in one.agents)]

    def _honest(self, spoken: list[tuple[str, Rendered]], said: list[Said]) -> dict[tuple[str, str], str]:
        """(agent, message) -> the sentence that it got instead of an answer. A notice is about the last message of its
        turn, and speaks for those before it that wait for the same answer.
        """
        out: dict[tuple[str, str], str] = {}
        for agent, message in spoken:
            about = self._by_event.get(str((message.relates_to.get("m.in_reply_to") or {}).get("event_id")))
            kind = _kind(message)
            if kind is None:
                continue
            for one in said:
                if about is not None and one.thread != about.thread:
                    continue
                if agent in one.agents:
                    out[(agent, one.name)] = kind
                if one is about:
                    break
        return out

    # -- the count

    def judge(self) -> Verdict:
        """Count. To be asked when nothing is under way any more."""
        verdict = Verdict()
        for room, said in self._rooms().items():
            self._judge_room(said, self._spoken(room, said[0].person), verdict)
        self._judge_turns(verdict)
        return verdict

    def _judge_room(self, said: list[Said], spoken: list[tuple[str, Rendered]], verdict: Verdict) -> None:
        honest = self._honest(spoken, said)
        verdict.honest.update(kind for _, m in spoken if (kind := _kind(m)))
        shown: dict[tuple[str, str], list[str]] = defaultdict(list)
        for agent, message in spoken:
            if message.msgtype != "m.text":
                continue
            names = _NAME.findall(message.body)
            shown[(agent, message.thread_root or "")] += names
            if not _ended(message):
                verdict.unfinished.append(f"{names} {message.body[-60:]!r}")
        for one in said:
            for agent in one.agents:
                times = shown[(agent, one.thread)].count(one.name)
                if times == 0 and not one.excused and (agent, one.name) not in honest:
                    verdict.lost.append(f"{one.name} in {one.room} to {agent}")
                    verdict.missing.append(one.event_id)
                elif times > 1 and (agent, one.name) not in honest:
                    verdict.twice.append(f"{one.name} in {one.room} by {agent}: {times} times")
        place = {one.name: number for number, one in enumerate(said)}
        for (agent, _), names in shown.items():
            once = list(dict.fromkeys(names))
            if once != sorted(once, key=lambda name: place.get(name, -1)):
                verdict.disorder.append(f"{agent}: {once}")

    def _judge_turns(self, verdict: Verdict) -> None:
        told: dict[tuple[str, str], list[Turn]] = defaultdict(list)
        for turn in self._letta.turns():
            for text in turn.texts:
                told[(turn.agent_id, envelope.open_(text).event_id)].append(turn)
        for (agent, event_id), turns in told.items():
            kept = [turn for turn in turns if turn.outcome in ("end_turn", "running")]
            verdict.retried += len(turns) - len(kept)
            if len(kept) < 2:
                continue
            if _overtaken(event_id, kept):
                verdict.unavoidable += 1
            else:
                one = self._by_event.get(event_id)
                verdict.repeated.append(f"{one.name if one else event_id} by {agent}: {[t.outcome for t in turns]}")
        for agent in set(self._puppets.values()):
            # a cancelled run ends when its model says the next word, and is nobody's turn any more
            in_order = [turn for turn in self._letta.turns(agent) if turn.outcome != "cancelled"]
            for first, second in pairwise(in_order):
                if first.overlaps(second):
                    verdict.overlapping.append(f"{agent}: {reply_names(first.texts)} and {reply_names(second.texts)}")


def _overtaken(event_id: str, turns: list[Turn]) -> bool:
    """Whether an earlier attempt reached Letta after a later one: no look can have found it."""
    attempts = []
    for turn in turns:
        agent, conversation = AgentID(turn.agent_id), ConversationID(turn.conversation_id)
        names = [make_otid(agent, conversation, EventID(event_id), attempt) for attempt in range(1, 30)]
        attempts.append(next((at for at, name in enumerate(names) if name in turn.otids), 0))
    return attempts != sorted(attempts)


def _ended(message: Rendered) -> bool:
    """No text, or one that says how it ended."""
    return message.msgtype != "m.text" or any(word in message.body for word in (END, "(stopped)", "(broken off)"))


def _kind(message: Rendered) -> str | None:
    """Which honest sentence a notice is, if it is one."""
    if message.msgtype != "m.notice":
        return None
    for kind, sentence in _HONEST.items():
        fixed = sentence.partition("{")[0]
        if message.body.startswith(fixed):
            return kind
    return None
