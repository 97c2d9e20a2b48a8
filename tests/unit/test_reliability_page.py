"""docs/reliability.md names only tests that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "function"), NAMED)
def test_the_tests_that_are_named_exist(file: str, function: str) -> None:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_promise_names_a_test_and_every_place_is_filled_in() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][2:]
    assert all("::" in row for row in rows)
    assert "@" not in PAGE
