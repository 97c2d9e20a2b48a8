"""What of a page of Letta's history was spoken, in shapes that no server could be made to give when asked."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letta_bridge.letta.v1_history import spoken, visible
from letta_bridge.letta.v1_manage import creatable, no_model, storable

ALERT = {"type": "system_alert", "message": "Note: prior messages have been hidden", "time": "t"}


def item(kind: str, content: Any, **more: Any) -> dict[str, Any]:
    base = {"id": "message-1", "run_id": "run-1", "otid": "o", "date": "2026-11-20T10:42:15+00:00"}
    return {**base, "message_type": f"{kind}_message", "content": content, **more}


def texts(*items: dict[str, Any]) -> list[str]:
    return [line.text for line in spoken(items)]


def test_everything_but_speech_is_left_out() -> None:
    kinds = ("system", "reasoning", "hidden_reasoning", "tool_call", "tool_return", "approval_request", "summary")
    assert texts(*(item(kind, "x") for kind in kinds), {"id": "m"}, item("user", None), item("user", 5)) == []
    assert texts(item("assistant", ""), item("assistant", " \n"), item("user", [])) == []


@pytest.mark.parametrize("kind", ["login", "heartbeat", "system_alert"])
def test_what_letta_says_in_the_users_name_is_left_out(kind: str) -> None:
    event = json.dumps({**ALERT, "type": kind}, indent=2)
    assert texts(item("user", event), item("user", [{"type": "text", "text": event}])) == []
    assert texts(item("assistant", event)) == [event], "an agent may say what it wants"


def test_notes_of_letta_are_left_out_and_what_quotes_them_is_not() -> None:
    note = "<system-alert>Automated keep-alive ping.\n</system-alert>"
    assert texts(item("user", note)) == []
    assert texts(item("user", f"what is {note}")) == [f"what is {note}"]
    parts = [{"type": "text", "text": "<system-reminder>x</system-reminder>"}, {"type": "text", "text": "real"}]
    assert texts(item("user", parts)) == ["real"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('{"type": "user_message", "message": "inner", "time": "t"}', "inner"),
        ('{"type": "user_message"}', '{"type": "user_message"}'),
        ('{"type": "other", "message": "x"}', '{"type": "other", "message": "x"}'),
        ('{"type": ["login"]}', '{"type": ["login"]}'),
        ('{"broken', '{"broken'),
        ("[1, 2]", "[1, 2]"),
        ("42", "42"),
        ('{"a":' * 5000, '{"a":' * 5000),
    ],
)
def test_json_of_people_is_kept(said: str, shown: str) -> None:
    assert texts(item("user", said)) == [shown]


def test_parts_that_are_no_text_are_named_or_left_out() -> None:
    image = {"type": "image", "source": {"type": "letta", "data": "a" * 1000}}
    parts = [{"type": "text", "text": "a"}, image, {"type": "tool_return", "text": "no"}, "junk", {"type": "text"}]
    assert visible(parts) == "a\n[image]"
    assert texts(item("user", [image])) == ["[image]"]


def test_the_lines_of_one_message_are_told_apart() -> None:
    lines = spoken([item("assistant", "a"), item("reasoning", "r"), item("assistant", "b"), item("user", "c", id="m2")])
    assert [(line.id, line.part) for line in lines] == [("message-1", 0), ("message-1", 1), ("m2", 0)]


def test_only_the_greeting_before_the_first_login_is_left_out() -> None:
    login = item("user", json.dumps({"type": "login"}), run_id=None)
    greeting = item("assistant", "More human than human", run_id=None)
    assert texts(item("system", "s"), greeting, login, item("user", "hi"), item("assistant", "yes")) == ["hi", "yes"]
    assert texts(greeting, item("user", "hi")) == ["More human than human", "hi"], "nobody logged in"
    assert texts(item("user", "hi"), greeting, login) == ["hi", "More human than human"], "it was an answer"
    assert texts(item("assistant", "real"), login) == ["real"]


@pytest.mark.parametrize(
    ("date", "at"),
    [
        ("2026-11-20T10:42:15+00:00", datetime(2026, 11, 20, 10, 42, 15, tzinfo=UTC)),
        ("2026-11-20T10:42:15Z", datetime(2026, 11, 20, 10, 42, 15, tzinfo=UTC)),
        ("2026-11-20T10:42:15", None),
        ("yesterday", None),
        (None, None),
    ],
)
def test_dates(date: str | None, at: datetime | None) -> None:
    assert spoken([item("user", "x", date=date, otid=None)])[0].at == at


@given(st.text())
def test_every_name_has_one_that_letta_takes_at_creation(name: str) -> None:
    made = creatable(storable(name))
    made.encode()
    assert "\x00" not in made and set('/\\:*?"<>|\n🦉').isdisjoint(made)
    assert creatable(made) == made


def test_who_asks_for_a_model_that_is_not_there_learns_which_are() -> None:
    assert no_model("gpt-9", ["a/b", "c/d"]) == "Letta offers no model “gpt-9”, but a/b, c/d"
    assert len(no_model("x" * 500, ["a/b"])) <= 300
