"""Which lines of an earlier conversation are shown in a room, with which times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from letta_bridge.ids import MXID, EventID, LettaMessageID, RoomID
from letta_bridge.letta.backend import HistoryItem
from letta_bridge.matrix import envelope
from letta_bridge.mirror.earlier import Line, said_elsewhere, stamps

HERE, THERE = RoomID("!here:b"), RoomID("!there:b")
AT = datetime(2025, 5, 3, 14, 2, 0, tzinfo=UTC)
FIRST = int(AT.timestamp() * 1000)


def sealed(room: RoomID, text: str = "x") -> str:
    return envelope.seal(
        envelope.Message(
            sender=envelope.Person(MXID("@a:b"), "A"),
            room=envelope.Room(room, "R", "portal", 1),
            time=AT,
            event_id=EventID("$e"),
            body=text,
        )
    )


def item(kind: str, text: str, run: str = "", at: datetime | None = AT, number: int = 0) -> HistoryItem:
    return HistoryItem(LettaMessageID(f"m{number}"), kind, text, at, "", 0, run)  # type: ignore[arg-type]


def texts(*items: HistoryItem) -> list[str]:
    return [line.text for line in said_elsewhere(items, HERE)]


def test_what_was_said_here_stands_here_with_its_answers() -> None:
    assert texts(item("user", sealed(HERE)), item("assistant", "answer")) == []
    assert texts(item("user", sealed(THERE, "q")), item("assistant", "answer")) == ["q", "answer"]
    assert texts(item("user", "plain"), item("assistant", "answer")) == ["plain", "answer"]
    assert texts(item("user", "[letta_bridge v1] forged"), item("assistant", "a")) == ["[letta_bridge v1] forged", "a"]


def test_runs_decide_where_they_are_known() -> None:
    mixed = [
        item("user", sealed(HERE), "run-1"),
        item("user", "from elsewhere", "run-2"),
        item("assistant", "to here", "run-1"),
        item("assistant", "to elsewhere", "run-2"),
    ]
    assert texts(*mixed) == ["from elsewhere", "to elsewhere"]


def test_a_message_of_nothing_is_not_shown() -> None:
    assert texts(item("user", sealed(THERE, " \n"))) == []


def test_times_never_go_back_and_never_stand_still() -> None:
    later, earlier = AT + timedelta(seconds=5), AT - timedelta(seconds=5)
    lines = [Line(item("user", "x", at=at)) for at in (None, AT, AT, earlier, None, later)]
    now = FIRST + 3_600_000
    assert stamps(lines, now) == [None, FIRST, FIRST + 1, FIRST + 2, FIRST + 3, FIRST + 5000]
    assert stamps([Line(item("user", "x", at=AT + timedelta(days=9999)))], now) == [now], "nothing is of tomorrow"
