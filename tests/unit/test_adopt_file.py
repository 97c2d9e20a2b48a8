"""What is taken from ``agent_user_mappings.json``, and what is left out and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letta_bridge.jobs.adopt_file import LARGEST, MappingsError, parse, read


def entry(number: int = 1, **more: Any) -> dict[str, Any]:
    agent = f"agent-{number:08d}-0000-4000-8000-000000000000"
    return {
        "agent_id": agent,
        "agent_name": f"Agent {number}",
        "matrix_user_id": f"@{agent.replace('-', '_')}:example.org",
        "matrix_password": "correct horse",
        "created": True,
        "room_id": f"!room{number}:example.org",
        "room_created": True,
        "invitation_status": {"@admin:example.org": "joined", "@letta:example.org": "invited"},
        **more,
    }


def file(*entries: dict[str, Any]) -> str:
    return json.dumps({str(one.get("agent_id")): one for one in entries})


def test_what_letta_matrix_writes_is_read_without_its_passwords() -> None:
    found = parse(file(entry(1), entry(2, room_id=None, invitation_status=None)))
    assert [(old.agent_id[-36:][:8], old.room_id, old.people) for old in found.agents] == [
        ("00000001", "!room1:example.org", ("@admin:example.org", "@letta:example.org")),
        ("00000002", "", ()),
    ]
    assert found.skipped == []
    assert "correct horse" not in repr(found)
    assert len(found.users) == 2


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"agent_name": None}, "agent_name missing"),
        ({"matrix_user_id": 5}, "matrix_user_id missing"),
        ({"room_id": "room"}, "room_id is no room"),
        ({"room_id": 7}, "room_id is no room"),
        ({"room_id": "!a b"}, "room_id is no room"),
        ({"invitation_status": ["@a:b"]}, "invitation_status is no object"),
        ({"invitation_status": {f"@u{n}:b": "x" for n in range(501)}}, "more than 500"),
        ({"removed_at": "2025-01-01T00:00:00"}, "removed"),
    ],
)
def test_a_broken_entry_is_named_and_the_others_are_read(broken: dict[str, Any], why: str) -> None:
    found = parse(file(entry(1, **broken), entry(2)))
    assert len(found.agents) == 1
    (said,) = found.skipped
    assert why in said
    assert "correct horse" not in said


def test_entries_that_contradict_themselves_or_each_other() -> None:
    other = json.dumps({"agent-x": entry(1)})
    assert "another one than the name" in parse(other).skipped[0]
    same = parse(file(entry(1, room_id="!same:b"), entry(2, room_id="!same:b"), entry(3)))
    assert len(same.agents) == 1
    assert len(same.skipped) == 2
    one = json.dumps(entry(1))
    name = entry(1)["agent_id"]
    twice = parse(f'{{"{name}": {one}, "{name}": {one}}}')
    assert (twice.agents, len(twice.skipped)) == ([], 1)
    assert "more than once" in twice.skipped[0]
    assert "no object" in parse('{"agent-1": [1]}').skipped[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "no JSON", '{"a":' * 3000, "5"])
def test_what_is_no_such_file_is_refused(text: str) -> None:
    with pytest.raises(MappingsError):
        parse(text)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    large, binary = tmp_path / "large.json", tmp_path / "binary.json"
    large.write_bytes(b" " * (LARGEST + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    for path, why in ((tmp_path / "none", "no file"), (tmp_path, "no file"), (large, "bytes"), (binary, "UTF-8")):
        with pytest.raises(MappingsError, match=why):
            read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(list(entry())), JSON), JSON)
def test_nothing_in_an_entry_breaks_the_reading(changed: dict[str, Any], extra: Any) -> None:
    found = parse(json.dumps({**json.loads(file(entry(1))), "agent-x": {**entry(2), **changed}, "agent-y": extra}))
    assert len(found.agents) + len(found.skipped) == 3
