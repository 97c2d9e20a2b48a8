"""JSON with something wrong in it: odd values for any place, and ways to put them there."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

DEEP = "{deep}"
HUGE = "{huge}"
_TOKENS = {
    f'"{DEEP}"': "[" * 3000 + "]" * 3000,
    f'"{HUGE}"': "9" * 6000,
}
"""What Python cannot hold or write, by what stands for it until an event is bytes."""


def to_json(value: Any) -> str:
    """JSON, with what Python can neither hold nor write."""
    text = json.dumps(value)
    for token, raw in _TOKENS.items():
        text = text.replace(token, raw)
    return text


# fmt: off
_ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 1.5, 1e308,
    float("nan"), float("inf"), float("-inf"), HUGE, DEEP,
    "", " ", "x", "\x00", "a\x00b", "\ud800", "\udfff\ud800", "a\n\r\u2028\x85b", "\u202e",
    "\U0001f98a" * 300, "y" * 70_000, "..", ".", "../../..", "a/b?c#d%2f", "%", "%00", "-1", "null", "m.text", "join",
    "@", "@:", "@room", "@x", "@letta_:test.local", "@letta_nobody:test.local", "@lettabridge:test.local",
    "!", "#", "$", [], {}, [None], [[]], [{}], {"": {}}, {"a": None}, {"event_id": {}},
    ["@x:y", 5, None, {}], [0] * 1000, {str(n): n for n in range(500)},
    {"user_ids": "@x:y"}, {"user_ids": [[], {}, None, 3]}, {"rel_type": "m.replace"}, {"m.in_reply_to": []},
]
# fmt: on


def _nested(depth: int) -> Any:
    value: Any = "bottom"
    for level in range(depth):
        value = [value] if level % 2 else {"d": value}
    return value


ODD = st.one_of(
    st.sampled_from(_ODD).map(copy.deepcopy),  # what is drawn may be damaged further
    st.sampled_from([10, 80, 101, 400]).map(_nested),
    st.text(st.characters(exclude_categories=[]), max_size=20),
    st.integers(),
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:5]):
            found += _paths(inner, (*path, index))
    return found


def _owner(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path[:-1]:
        value = value[step]
    return value


def damage(draw: st.DrawFn, value: Any, times: int) -> None:
    """Do something wrong to an object ``times`` times: replace, remove, wrap or add values, or mix them up."""
    for _ in range(times):
        path = draw(st.sampled_from(_paths(value)))
        owner = _owner(value, path)
        match draw(st.sampled_from(["odd", "odd", "odd", "remove", "wrap", "more", "swap"])):
            case "odd":
                owner[path[-1]] = draw(ODD)
            case "remove":
                del owner[path[-1]]
            case "wrap":
                owner[path[-1]] = draw(st.sampled_from([[owner[path[-1]]], {"x": owner[path[-1]]}]))
            case "more" if isinstance(owner, dict):
                owner[draw(st.text(max_size=8))] = draw(ODD)
            case _:
                other = draw(st.sampled_from(_paths(value)))
                owner[path[-1]] = copy.deepcopy(_owner(value, other)[other[-1]])
