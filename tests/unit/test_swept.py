"""Who was put out of a room by its deletion, and who had left it."""

from __future__ import annotations

from typing import Any

import pytest

from letta_bridge.mirror.swept import swept_out

BOT = "@bot:here"


def leave(user: str, at: float, sender: str = "", **content: Any) -> dict[str, Any]:
    content = {"membership": "leave", **content}
    return {"state_key": user, "sender": sender or user, "origin_server_ts": int(at * 1000), "content": content}


def swept(*events: dict[str, Any]) -> list[str]:
    newest_first = sorted(events, key=lambda event: -event["origin_server_ts"])
    return list(swept_out(newest_first, lambda user: user == BOT, "here"))


def test_who_left_together_with_ours_was_put_out() -> None:
    events = [leave("@alice:here", 1000.0), leave("@bob:here", 1004.0), leave(BOT, 1008.0), leave("@carl:here", 1012.0)]
    assert swept(*events) == ["@alice:here", "@bob:here", "@carl:here"]


@pytest.mark.parametrize(
    "event",
    [
        leave("@alice:here", 990.0),
        leave("@alice:here", 1007.9, reason="no more"),
        leave("@alice:here", 1007.9, sender="@bob:here"),
        leave("@alice:there", 1007.9),
        leave("@alice:here", 1007.9, membership="ban"),
    ],
    ids=["long before", "said why", "put out by somebody", "of another server", "banned"],
)
def test_who_had_left_was_not(event: dict[str, Any]) -> None:
    assert swept(event, leave(BOT, 1008.0)) == []


def test_without_one_of_ours_leaving_nobody_was_put_out() -> None:
    assert swept(leave("@alice:here", 1000.0), leave("@bob:here", 1000.1)) == []
    assert swept(leave("@alice:here", 1000.0), leave(BOT, 1000.1, sender="@admin:here")) == []
    assert swept(leave("@alice:here", 1000.0), leave(BOT, 1000.1), leave(BOT, 1000.2, membership="join")) == []
