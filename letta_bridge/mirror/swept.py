"""Who was in a room when a server's admin deleted it. Pure."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..ids import MXID

_GAP = 5.0
"""Seconds. Synapse lets one user after the other leave, each in about a tenth of a second."""


def swept_out(events: Iterable[Mapping[str, Any]], is_ours: Callable[[MXID], bool], domain: str) -> list[MXID]:
    """The people of this server who were made to leave a room together with the bridge's own users.

    Synapse (``shutdown_room`` in ``handlers/room.py``) and Tuwunel let every local user leave a room that is deleted,
    in the user's own name and without a word: such a departure looks like one of the person's own accord. But the
    bridge's users never leave an agent's room by themselves. So who left within seconds of one of them, or of somebody
    who did, was put out with them. Who left before that, or said why, was not.

    Args:
        events: membership events of the room, newest first.
        is_ours: whether a user is the bridge's own.
        domain: of this server; a deletion makes nobody else leave.
    """
    newest: dict[str, Mapping[str, Any]] = {}
    for event in events:
        newest.setdefault(str(event.get("state_key")), event)
    left = sorted(
        (at, MXID(user)) for user, event in newest.items() if (at := _left_at(user, event, domain)) is not None
    )
    swept: list[MXID] = []
    together: list[MXID] = []
    before = 0.0
    for at, user in [*left, (float("inf"), MXID(""))]:
        if at - before > _GAP:
            if any(is_ours(one) for one in together):
                swept += together
            together = []
        together.append(user)
        before = at
    return [user for user in swept if not is_ours(user)]


def silently_left(event: Mapping[str, Any]) -> bool:
    """Whether a membership event says that somebody left in their own name and without a word."""
    content, user = event.get("content"), event.get("state_key")
    if event.get("type", "m.room.member") != "m.room.member" or not isinstance(content, Mapping):
        return False
    return content.get("membership") == "leave" and not content.get("reason") and event.get("sender") == user


def _left_at(user: str, event: Mapping[str, Any], domain: str) -> float | None:
    """When the user left silently of their own accord, as it looks; None if they did not."""
    at = event.get("origin_server_ts")
    if not isinstance(at, int) or not silently_left(event) or not user.endswith(":" + domain):
        return None
    return at / 1000
