"""What of an agent's earlier conversation is shown in its portal, and how it looks there. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import quote

from ..commands.show import count, escape
from ..db.agents import AgentRow
from ..db.outbox import Outgoing
from ..delivery.outgoing import ReplyTarget, Voice, message
from ..ids import CONTENT_KEY, MXID, EventID, RoomID
from ..letta.backend import HistoryItem
from ..matrix import envelope
from ..matrix.splitter import split

KIND = "import"
HEAD, FOOT = "import:head", "import:foot"
_FOOT_TEXT = "From here on, what is said here."
_UNKNOWN = "Somebody"


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is to be shown.

    ``told`` is the Matrix message that it was, where it came through the bridge in another room than this one.
    """

    item: HistoryItem
    told: envelope.Message | None = None

    @property
    def source(self) -> str:
        """Names the line for ever."""
        return f"{self.item.id}|{self.item.part}"

    @property
    def text(self) -> str:
        """What was said."""
        return (self.item.text if self.told is None else self.told.body).strip()


def opened(item: HistoryItem) -> envelope.Message | None:
    """The Matrix message that a person's line was; None when it did not come through the bridge."""
    if item.kind != "user":
        return None
    try:
        return envelope.open_(item.text)
    except envelope.EnvelopeError:
        return None


def said_elsewhere(items: Sequence[HistoryItem], room_id: RoomID) -> list[Line]:
    """The lines that do not stand in this room already because they were said there.

    A person's line says itself where it was said; the agent's line belongs to the person's line of its run, or, where
    Letta names no run, to the one before it.
    """
    told = [opened(item) for item in items]
    here = [message is not None and message.room.id == room_id for message in told]
    runs = {item.run_id for item, is_here in zip(items, here, strict=True) if is_here and item.run_id}
    lines, before = [], False
    for item, opened_, stands in zip(items, told, here, strict=True):
        if item.kind == "user":
            before = is_here = stands
        else:
            is_here = item.run_id in runs if item.run_id else before
        line = Line(item, opened_)
        if not is_here and line.text:
            lines.append(line)
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How lines are shown.

    Attributes:
        bot: who quotes people.
        part_bytes: largest text of one event.
        dated: the homeserver does not keep the time of what was said earlier: it is written into the text.
        now: milliseconds since 1970; nothing is shown as later than that.
    """

    bot: MXID
    part_bytes: int
    dated: bool
    now: int


def stamps(lines: Iterable[Line], now: int) -> list[int | None]:
    """The milliseconds since 1970 that the lines carry. Letta knows whole seconds; one after the other stays so."""
    given: list[int | None] = []
    last: int | None = None
    for line in lines:
        if line.item.at is not None:
            at = min(int(line.item.at.timestamp() * 1000), now)
            last = at if last is None else max(at, last + 1)
        elif last is not None:
            last += 1
        given.append(last)
    return given


def events_of(row: AgentRow, line: Line, stamp: int | None, look: Look) -> list[Outgoing]:
    """The events that show a line: notices, which ring nobody and which no bot may answer."""
    assert row.portal_room is not None
    voice = Voice(row.mxid if line.item.kind == "assistant" else look.bot, row.portal_room, row.agent_id)
    when = _when(line.item.at) if look.dated else ""
    if line.item.kind == "assistant":
        texts = split(line.text, look.part_bytes)
        if when and texts:
            texts[0] = f"*{when}*\n\n{texts[0]}"
    else:
        texts = [_quoted(part) for part in split(line.text, look.part_bytes)]
        if texts:
            texts[0] = f"{_who(line)}{f' ({when})' if when else ''}:\n\n{texts[0]}"
    return [_event(voice, text, _source(row, line), KIND, part, stamp) for part, text in enumerate(texts)]


def first_txn(row: AgentRow, line: Line, look: Look) -> str:
    """The transaction id of the first event of a line, by which it is known to be shown."""
    return events_of(row, Line(replace(line.item, text="x")), None, look)[0].txn_id


def head(row: AgentRow, bot: MXID, source: str, lines: int, stamp: int | None) -> Outgoing:
    """What stands before the lines of one import."""
    assert row.portal_room is not None
    text = f"Earlier conversation ({count(lines, 'line')}):"
    return _event(Voice(bot, row.portal_room, row.agent_id), text, source, HEAD, 0, stamp)


def foot(row: AgentRow, bot: MXID, source: str) -> Outgoing:
    """What stands behind them."""
    assert row.portal_room is not None
    return _event(Voice(bot, row.portal_room, row.agent_id), _FOOT_TEXT, source, FOOT, 0, None)


def _source(row: AgentRow, line: Line) -> str:
    return f"import|{row.agent_id}|{line.source}"


def _event(voice: Voice, text: str, source: str, kind: str, part: int, stamp: int | None) -> Outgoing:
    out = message(voice, text, ReplyTarget(), source=source, kind=kind, part=part, msgtype="m.notice")
    marker = {**out.content[CONTENT_KEY], "imported": True}
    return replace(out, content={**out.content, CONTENT_KEY: marker}, stamp=stamp)


def _who(line: Line) -> str:
    """Who wrote it: as a link to a Matrix user where that is known; nobody is notified."""
    if line.told is None:
        return f"**{escape(line.item.name) or _UNKNOWN}** wrote in Letta"
    sender = line.told.sender
    name = escape(sender.name) or sender.id
    if "@" not in sender.id[:1] or len(sender.id) > 255:
        return f"**{name}** wrote"
    return f"[{name}](https://matrix.to/#/{quote(sender.id, safe='@:')}) wrote"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _when(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def event_told(line: Line) -> tuple[RoomID, EventID] | None:
    """The Matrix event that a line was, in another room."""
    return None if line.told is None else (line.told.room.id, line.told.event_id)
