"""docs/failures.md is true as far as names go: its tests and its log lines exist, and no test here is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "failures.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "::" in line]


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=[row[0].strip() for row in ROWS])
def test_every_row_has_its_columns_and_its_tests(row: list[str]) -> None:
    assert len(row) == 5 and all(cell.strip() for cell in row)
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", row[4])
    assert named
    for file, function in named:
        assert function in functions(TESTS / file), f"{file} has no {function}"


def test_every_test_of_this_folder_is_in_the_table() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        if path.name == Path(__file__).name:
            continue
        for function in functions(path):
            if function.startswith("test_"):
                assert f"`neighbours/{path.name}::{function}`" in PAGE


def test_log_lines_that_the_page_names_are_written() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (TESTS.parent / "letta_bridge").rglob("*.py"))
    for action in set(re.findall(r"action=(\w+)", PAGE)):
        assert f'"action": "{action}"' in sources, action


def test_sentences_that_the_page_quotes_are_said() -> None:
    source = (TESTS.parent / "letta_bridge" / "errors.py").read_text(encoding="utf-8")
    said = " ".join(re.sub(r'"\s*\n\s*f?"', "", source).split())
    for row in ROWS:
        for sentence in re.findall(r'"([^"]+)"', row[1]):
            for part in sentence.split(" … "):
                assert part in said, part
