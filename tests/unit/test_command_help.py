"""What is said of commands: in help, on the reference page, on a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from letta_bridge.cli.terminal import plain
from letta_bridge.commands.groups import TABLE
from letta_bridge.commands.help import about
from letta_bridge.commands.messages import since
from letta_bridge.commands.page import page
from letta_bridge.commands.show import ago, count, cut, escape, span
from letta_bridge.commands.socket import LONGEST_PATH, SocketError, socket_path
from letta_bridge.commands.table import Command, CommandError, Need

ISSUED = {
    *("help", "ping", "version", "status", "doctor", "agents", "agent", "rooms", "users", "open", "export", "catchup"),
    *("summon", "despawn", "rename", "room create", "import", "sync", "rebind", "pause", "resume", "permissions"),
    *("invite", "set-management-room", "jobs", "dead", "retry", "drop", "cleanup", "reset", "backup", "restore"),
}


def test_every_promised_command_is_there() -> None:
    assert set(TABLE.names) >= ISSUED


@pytest.mark.parametrize("command", TABLE.commands, ids=lambda command: command.name)
def test_help_has_usage_examples_and_who_may(command: Command) -> None:
    text = about(command)
    assert f"`{command.usage}`" in text
    for thing in (*(f"`<{arg.name}>`" for arg in command.args), *(f"`--{option.name}`" for option in command.options)):
        assert thing in text
    assert ("Administrators can use it" in text) == (command.need is Need.ADMIN)
    assert ("Only on the command line" in text) == command.only_ctl


def test_the_page_has_every_command_once() -> None:
    text = page(TABLE)
    for command in TABLE.commands:
        assert text.count(f"### {command.name}\n") == 1


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        ("**Ada**: `agent Ada`", "Ada: agent Ada"),
        ("[Ada](https://matrix.to/#/%40ada%3Atest.local)", "Ada (@ada:test.local)"),
        ("[@ada:test.local](https://matrix.to/#/@ada:test.local)", "@ada:test.local"),
        ("see [this](https://example.org/x)", "see this (https://example.org/x)"),
        (r"a\*b\_c\[d\]", "a*b_c[d]"),
        ("a\x1b[31mred\u202e\n- b\tc", "a[31mred\n- b\tc"),
        ("```\n`x`\n```", "```\nx\n```"),
    ],
)
def test_a_terminal_shows_no_marks_and_obeys_nobody(markdown: str, shown: str) -> None:
    assert plain(markdown) == shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7d", 1000000 - 604800),
        ("12H", 1000000 - 43200),
        ("1 w", 1000000 - 604800),
        ("1970-01-02", 86400),
        ("1970-01-01T01:00", 3600),
        ("1970-01-01T01:00+01:00", 0),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert since(text, 1000000.0) == seconds


@pytest.mark.parametrize("text", ["", "soon", "7", "7y", "99999-01-01", "-1d"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(CommandError, match="is no time"):
        since(text, 0.0)


def test_spans_are_short() -> None:
    assert [span(seconds) for seconds in (-1, 0, 0.02, 59, 180, 7200, 200000)] == [
        "0 s", "0 s", "20 ms", "59 s", "3 minutes", "2 hours", "2 days",
    ]  # fmt: skip
    assert ago(None) == "never"
    assert count(1, "agent") == "1 agent"
    assert count(2000, "agent") == "2,000 agents"
    assert escape("a*b [c]\n`d`") == r"a\*b \[c\] \`d\`"
    assert cut(["a", "b", "c"], 2, "ask") == "- a\n- b\n- … and 1 more; ask"


def test_a_socket_has_a_short_name() -> None:
    assert socket_path(Path("/run"), "x.sock") == Path("/run/x.sock")
    assert socket_path(Path("/run"), "/tmp/y.sock") == Path("/tmp/y.sock")
    with pytest.raises(SocketError, match=r"management\.socket"):
        socket_path(Path("/run"), "x" * LONGEST_PATH)
