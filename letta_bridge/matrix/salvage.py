"""Events out of a transaction that cannot be parsed as a whole.

Homeservers relay JSON that Python's parser refuses: a few levels of nesting more than its stack allows, an integer of
thousands of digits. One such event, which anybody can send, must not take the rest of its transaction with it.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

_SIGN = re.compile(r'["[{}\]:,]')


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Strings and signs of JSON with where they begin and end. A string that does not end goes to the end."""
    position = 0
    while sign := _SIGN.search(text, position):
        begin = sign.start()
        position = _end_of_string(text, begin) if sign.group() == '"' else sign.end()
        yield text[begin:position], begin, position


def _end_of_string(text: str, begin: int) -> int:
    quote = begin
    while (quote := text.find('"', quote + 1)) >= 0:
        before = quote - 1
        while text[before] == "\\":
            before -= 1
        if (quote - before) % 2:
            return quote + 1
    return len(text)


def salvage(raw: bytes) -> list[Any]:
    """The elements of the top-level ``events`` of a JSON object, as far as they are complete.

    An element that cannot be parsed alone either is given as its text.
    """
    text = raw.decode("utf-8", "replace")
    found: list[Any] = []
    depth, begin, key = 0, -1, ""
    for sign, start, end in _tokens(text):
        if begin >= 0 and depth == 2 and sign in ",]":
            found += _element(text[begin:start])
            begin = end
            if sign == "]":
                return found
        if sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        if begin < 0 and sign == "[" and depth == 2 and key == "events:":
            begin = end
        if depth == 1:
            key = sign[1:-1] if sign[0] == '"' else f"{key}{sign}" if sign == ":" else ""
    return found


def _element(text: str) -> list[Any]:
    if not text.strip():
        return []
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return [text.strip()]
