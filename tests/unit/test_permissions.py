"""Who may do what: the most specific entry wins, and nobody comes in by accident."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letta_bridge.config import IGNORED_SENDERS
from letta_bridge.routing.permissions import Level, Permissions

TABLE = Permissions(
    {
        "*": Level.USER,
        "work.test": Level.ADMIN,
        "@boss:home.test": Level.ADMIN,
        "@spy:work.test": Level.NONE,
        "evil.test": Level.NONE,
        "@_relay_bot:home.test": Level.USER,
    },
    IGNORED_SENDERS,
)


@pytest.mark.parametrize(
    ("mxid", "level"),
    [
        ("@anybody:home.test", Level.USER),
        ("@anybody:work.test", Level.ADMIN),
        ("@spy:work.test", Level.NONE),
        ("@boss:home.test", Level.ADMIN),
        ("@anybody:evil.test", Level.NONE),
        ("@anybody:sub.work.test", Level.USER),
        ("@anybody:work.test:8448", Level.USER),
        ("@telegram_12:work.test", Level.NONE),
        ("@Telegram_12:work.test", Level.NONE),
        ("@helperbot:home.test", Level.NONE),
        ("@_relay_bot:home.test", Level.USER),
        ("", Level.NONE),
        ("*", Level.NONE),
        ("work.test", Level.NONE),
        ("boss:home.test", Level.NONE),
        ("@boss", Level.NONE),
        ("@:", Level.NONE),
    ],
)
def test_the_most_specific_entry_wins(mxid: str, level: Level) -> None:
    assert TABLE.level(mxid) is level


def test_nobody_is_let_in_by_an_empty_table() -> None:
    assert Permissions({}).level("@alice:home.test") is Level.NONE


@given(st.text(max_size=80))
def test_whatever_is_sent_never_raises_and_never_gets_more_than_the_table_says(mxid: str) -> None:
    assert Permissions({"work.test": Level.USER}).level(mxid) is (
        Level.USER if mxid.startswith("@") and mxid.partition(":")[2] == "work.test" else Level.NONE
    )


@pytest.mark.parametrize(
    ("mxid", "words"),
    [
        ("@spy:work.test", ['level "none"', 'entry "@spy:work.test"']),
        ("@a:work.test", ['level "admin"', 'entry "work.test"']),
        ("@signal_1:work.test", ['"@signal_*:*"', "full Matrix id"]),
    ],
)
def test_the_explanation_names_what_decided(mxid: str, words: list[str]) -> None:
    assert all(word in TABLE.explain(mxid) for word in words)
    assert "no entry" in Permissions({}).explain("@a:b.test")


def test_brackets_in_patterns_are_plain_characters() -> None:
    table = Permissions({"*": Level.USER}, ["@[ab]*:*"])
    assert table.level("@[ab]x:home.test") is Level.NONE
    assert table.level("@a:home.test") is Level.USER


def test_levels_are_ordered() -> None:
    assert Level.NONE < Level.USER < Level.ADMIN
