"""Over-long Markdown is cut so that every part fits, renders alone, and nothing is lost."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from letta_bridge.matrix.splitter import split

LINES = st.one_of(
    st.text(max_size=200),
    st.sampled_from(
        [
            "",
            "```",
            "```python",
            "````",
            "~~~ text here",
            "> quoted",
            "> ```js",
            "> > ~~~",
            "- item",
            "  - inner",
            "1. ```sh",
            "   ```",
            "        ```",
            "# Heading",
            "| a | b |",
            "| - | - |",
            "word " * 60,
            "One sentence. " * 20,
            "x" * 300,
            "日本語" * 60,
            "> " + "quoted " * 40,
            "`" * 90,
            "```" + "i" * 90,
        ]
    ),
)
DOCUMENTS = st.lists(LINES, max_size=40).map("\n".join)


def size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def visible(text: str) -> str:
    return "".join(text.split())


def is_subsequence(needle: str, haystack: str) -> bool:
    rest = iter(haystack)
    return all(character in rest for character in needle)


@given(DOCUMENTS, st.integers(64, 2000))
def test_every_part_fits_and_nothing_visible_is_lost(text: str, limit: int) -> None:
    parts = split(text, limit)
    assert all(size(part) <= limit for part in parts)
    assert all(part.strip() for part in parts)
    unfenced = text.replace("`", "").replace("~", "")  # a closing fence may come back shorter
    assert is_subsequence(visible(unfenced), visible("".join(parts)))


@given(st.text(st.characters(exclude_characters="`~>")), st.integers(64, 500))
def test_without_fences_and_quotes_nothing_is_added_either(text: str, limit: int) -> None:
    assert visible("".join(split(text * 4, limit))) == visible(text * 4)


def test_a_short_text_comes_back_unchanged() -> None:
    assert split("  hello\r\n\n```", 64) == ["  hello\r\n\n```"]


@pytest.mark.parametrize("text", ["", " ", "\n \n"])
def test_nothing_visible_gives_no_parts(text: str) -> None:
    assert split(text * 100, 64) == []


def test_cuts_between_blocks() -> None:
    text = "\n\n".join(f"Paragraph {n}. " + "word " * 10 for n in range(6))
    parts = split(text, 200)
    assert len(parts) > 1
    assert all(part.startswith("Paragraph") for part in parts)


def test_cuts_between_items_when_there_is_no_blank_line() -> None:
    parts = split("\n".join(f"- item {n} with some words" for n in range(30)), 120)
    assert all(part.startswith("- item") and part.endswith("words") for part in parts)


def test_cuts_after_sentences_then_between_words() -> None:
    sentences = split("This is a sentence of words. " * 20, 100)
    assert all(part.rstrip().endswith(".") for part in sentences)
    words = split("word " * 100, 64)
    assert {word for part in words for word in part.split()} == {"word"}


def code_blocks(part: str) -> list[tuple[str, str]]:
    tokens = MarkdownIt("commonmark").parse(part)
    return [(token.info, token.content) for token in tokens if token.type == "fence"]


@pytest.mark.parametrize(
    ("lead", "indent"), [("", ""), ("> ", "> "), ("1. ", "   "), ("- a\n  1. ", "     "), ("   ", "   ")]
)
@pytest.mark.parametrize("marker", ["```", "~~~~"])
def test_a_cut_code_block_is_closed_and_opened_again(lead: str, indent: str, marker: str) -> None:
    code = [f"line {n} of the code" for n in range(40)]
    closing = indent + marker
    text = "\n".join([f"{lead}{marker}py", *(indent + line for line in code), closing, "", "# After"])
    parts = split(text, 200)
    assert len(parts) > 3
    found = [block for part in parts for block in code_blocks(part)]
    assert {info for info, _ in found} == {"py"}
    assert [line.strip() for _, content in found for line in content.splitlines()] == code
    assert parts[-1].endswith("# After")
    assert not any(content == "" for _, content in found)


def test_a_small_code_block_stays_whole() -> None:
    text = "word " * 20 + "\n\n```py\n" + "x = 1\n" * 20 + "```\n\n" + "word " * 20
    assert [code_blocks(part) for part in split(text, 220)] == [[], [("py", "x = 1\n" * 20)], []]


def test_a_long_line_of_code_is_cut_without_new_line_breaks_in_a_part() -> None:
    parts = split("```\n" + "é" * 500 + "\n```", 100)
    contents = [content for part in parts for _, content in code_blocks(part)]
    assert all(content.count("\n") == 1 for content in contents)
    assert "".join(contents).replace("\n", "") == "é" * 500


@given(st.text(min_size=50, max_size=300), st.integers(64, 120))
def test_a_long_line_gets_no_line_break_within_a_part(text: str, limit: int) -> None:
    line = "".join(text.split()) + "word. " * 30
    assert all("\n" not in part for part in split(line, limit))


def test_code_that_mentions_fences_is_one_block() -> None:
    text = "````md\n" + "```\nx\n```\n    ````\n" * 30 + "````"
    blocks = [block for part in split(text, 150) for block in code_blocks(part)]
    assert {info for info, _ in blocks} == {"md"}
    assert "".join(content for _, content in blocks) == "```\nx\n```\n    ````\n" * 30


def test_fences_that_take_half_a_part_are_not_repeated() -> None:
    text = "```" + "i" * 100 + "\n" + "code\n" * 50
    parts = split(text, 64)
    assert sum(part.count("```") for part in parts) == 1


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "a b " * 250_000,
        "\n" * 1_000_000 + "x",
        "short line\n" * 100_000,
        "```\n" + "code\n" * 200_000,
        "> " * 500_000,
        "```\n```\n" * 120_000,
        ". " * 500_000,
        "é" * 500_000,
        "- " * 500_000,
        "`" * 1_000_000,
        "\n".join("word " * 20 for _ in range(10_000)),
    ],
    ids=lambda text: repr(text[:8]),
)
def test_time_is_linear(text: str) -> None:
    started = time.process_time()
    parts = split(text, 4096)
    assert time.process_time() - started < 5
    assert all(size(part) <= 4096 for part in parts)


def test_order_is_kept() -> None:
    numbers = [int(part) for part in " ".join(split("\n".join(map(str, range(2000))), 100)).split()]
    assert all(a < b for a, b in pairwise(numbers)) and len(numbers) == 2000
