"""The table of docs/homeservers.md: complete, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from letta_bridge.testing.fake_tuwunel import REWRITTEN_ROWS

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "homeservers.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")] for line in PAGE.splitlines() if re.match(r"\| \d", line)
]


@cache
def named_in(file: str) -> set[str]:
    """What pytest finds in a file: functions of its own, and those that it imports."""
    found: set[str] = set()
    for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.startswith("test_")}


def test_every_row_is_there_once_and_in_order() -> None:
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, 46)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_tests_that_exist_or_a_reason(row: list[str]) -> None:
    assert len(row) == 6 and all(row)
    proof = row[5]
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", proof)
    if not named:
        assert re.match(r"(No test|Not built yet): \w+", proof), proof
    for file, test in named:
        assert test in named_in(file), f"{file}::{test}"
    assert "::" not in re.sub(r"`[\w/]+\.py::\w+`", "", proof), "a test that is not named as the others"


def test_the_page_names_the_rows_that_the_proxy_imitates() -> None:
    named = re.search(r"rows\s+((?:\d+,\s*)*\d+)\)", PAGE)
    assert named
    assert [int(number) for number in named[1].split(",")] == sorted(REWRITTEN_ROWS)
