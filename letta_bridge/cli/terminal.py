"""Markdown as a terminal shows it."""

import re
from urllib.parse import unquote

_LINK = re.compile(r"\[((?:[^\[\]\\]|\\.)*)\]\((\S+?)\)")
_MATRIX_TO = re.compile(r"https://matrix\.to/#/([^/?#\s]+)")
_ESCAPED = re.compile(r"\\([\\`*\[\]<>~|_])")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(markdown: str) -> str:
    """The text without marks; links as ``label (address)``. What could steer the terminal is left out."""
    text = _LINK.sub(_link, _CONTROL.sub("", markdown))
    return _ESCAPED.sub(r"\1", _CODE.sub(r"\1", _BOLD.sub(r"\1", text)))


def _link(match: re.Match[str]) -> str:
    label, url = match[1], match[2]
    found = _MATRIX_TO.match(url)
    target = unquote(found[1]) if found else url
    return label if label == target else f"{label} ({target})"
