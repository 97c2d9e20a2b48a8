"""Events out of transactions that no parser takes whole."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letta_bridge.matrix.salvage import salvage

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(VALUES, max_size=6), st.dictionaries(st.text(), VALUES, max_size=3), st.sampled_from([None, 2]))
def test_whole_transactions_give_their_events(
    events: list[object], more: dict[str, object], indent: int | None
) -> None:
    more.pop("events", None)
    for ascii_only in (True, False):
        body = json.dumps({**more, "events": events, "after": more}, indent=indent, ensure_ascii=ascii_only)
        assert salvage(body.encode("utf-8", "replace")) == json.loads(body.encode("utf-8", "replace"))["events"]


@given(st.binary())
def test_garbage_gives_what_looks_like_events_and_never_fails(garbage: bytes) -> None:
    salvage(garbage)
    assert salvage(b'{"events": [1, ' + garbage.replace(b'"', b"").replace(b"]", b"").replace(b"}", b""))[:1] == [1]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", []),
        (b"[1, 2]", []),
        (b'{"events": []}', []),
        (b'{"events": {"a": [1]}}', []),
        (b'{"other": [1], "events": [2]}', [2]),
        (b'{"a": {"events": [1]}, "events": [2]}', [2]),
        (b'{"a": "events", "b": [1]}', []),
        (b'{"events": [{"a": "]},{["}, 2', [{"a": "]},{["}]),
        (b'{"events": [1, nonsense, 3]}', [1, "nonsense", 3]),
        (b'{"events": [1, "unterminated', [1]),
    ],
)
def test_only_the_complete_elements_of_events_count(body: bytes, found: list[object]) -> None:
    assert salvage(body) == found


def test_what_cannot_be_parsed_is_given_as_text() -> None:
    deep = "[" * 5000 + "]" * 5000
    digits = "9" * 6000
    body = f'{{"events": [{{"a": 1}}, {deep}, {digits}, {{"b": "\\" ]"}}]}}'
    assert salvage(body.encode()) == [{"a": 1}, deep, digits, {"b": '" ]'}]


def test_it_takes_time_in_proportion() -> None:
    begun = time.process_time()
    salvage(b"[" * 2_000_000)
    salvage(b'"' + b"\\" * 2_000_000)
    salvage(b'{"events": [' + b'"x' * 500_000)
    assert time.process_time() - begun < 10
