"""Events out of a transaction that cannot be parsed as a whole.

Homeservers relay JSON that Python's parser refuses: a few levels of nesting more than its stack allows, an integer of
thousands of digits. One such event, which anybody can send, must not take the rest of its transaction with it.
"""

import json
import re
from typing import Any

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}:,]', re.DOTALL)


def salvage(raw: bytes) -> list[Any]:
    """The elements of the top-level ``events`` of a JSON object, as far as they are complete.

    An element that cannot be parsed alone either is given as its text.
    """
    text = raw.decode("utf-8", "replace")
    found: list[Any] = []
    depth, begin, key = 0, -1, ""
    for token in _TOKEN.finditer(text):
        sign = token.group()
        if begin >= 0 and depth == 2 and sign in ",]":
            found += _element(text[begin : token.start()])
            begin = token.end()
            if sign == "]":
                return found
        if sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        if begin < 0 and sign == "[" and depth == 2 and key == "events:":
            begin = token.end()
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
