"""Cutting a long Markdown text into parts that fit."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

SMALLEST_LIMIT = 64

_FENCE = re.compile(r"(?P<quote>(?:[ ]{0,3}>[ ]?)*)(?P<indent>[ ]*)(?P<item>(?:[-*+]|\d{1,9}[.)])[ ]+)?")
_MARKER = re.compile(r"(?P<marker>`{3,}|~{3,})(?P<info>.*)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])(?:\s|$)")
_QUOTE = re.compile(r"(?:[ ]{0,3}>[ ]?)*")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_SENTENCE = re.compile(rb"[.!?](?=[ \t])|\xe3\x80\x82")  # the last is the full stop of Chinese and Japanese

# How good it is to cut before a line. Between two of one rank the later wins.
_NEVER, _IN_CODE, _BLANK_IN_CODE, _LINE, _BLOCK = range(5)
# The part of a full message that must be reached for the rank's sake.
_FILL = {_BLOCK: 0.25, _LINE: 0.5, _BLANK_IN_CODE: 0.5}


@dataclass(frozen=True, slots=True)
class _Fence:
    """An open code block: how it closes, and how it opens and closes again in a later part."""

    quote: str
    indent: int
    marker: str
    close: str
    reopen: str
    close_again: str

    @property
    def overhead(self) -> int:
        return _size(self.reopen) + max(_size(self.close), _size(self.close_again)) + 2

    def closed_by(self, line: str) -> bool:
        """Whether this line is the closing fence."""
        rest = line[_quote_length(line) :] if self.quote else line
        shown = rest.strip()
        if len(rest) - len(rest.lstrip()) > self.indent + 3:
            return False
        return len(shown) >= len(self.marker) and not shown.strip(self.marker[0])

    def left_by(self, line: str) -> bool:
        """Whether this line ends the block by leaving the quote around it."""
        return bool(self.quote) and ">" not in line[: _quote_length(line)]


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    size: int
    rank: int
    before: _Fence | None  # the code block that a cut before this line would cut
    after: _Fence | None  # the one that a cut after it would cut
    closes: bool = False  # ends the code block; a cut never comes before it


def split(text: str, limit_bytes: int) -> list[str]:
    """Cut a Markdown text into parts of at most ``limit_bytes`` UTF-8 bytes each (at least 64; less counts as 64).

    Cuts at borders of blocks where it can, then between lines (rows and items), then after sentences, then
    between words, then anywhere. A fenced code block that is cut is closed and opened again with its info string,
    unless its fences alone would take half a part. No visible text is lost or reordered; blank lines at cuts are.
    A text that fits comes back unchanged; one without visible text gives ``[]``. Raises nothing; linear time.
    """
    limit = max(limit_bytes, SMALLEST_LIMIT)
    if not text.strip():
        return []
    if _size(text) <= limit:
        return [text]
    lines = list(_scan(text.replace("\r\n", "\n").replace("\r", "\n"), limit))
    parts: list[str] = []
    start = 0
    while start < len(lines):
        end = _choose_end(lines, start, limit)
        if part := _assemble(lines, start, end):
            parts.append(part)
        start = end
    return parts


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _quote_length(line: str) -> int:
    match = _QUOTE.match(line)
    return match.end() if match else 0


def _scan(text: str, limit: int) -> Iterator[_Line]:
    """The lines with what a cut at each of them means; lines too long for a part come as several."""
    fence: _Fence | None = None
    blank_before = False
    in_list = opened = False
    for line in text.split("\n"):
        if fence is not None and fence.left_by(line):
            fence = None
        if fence is None:
            in_list = _stays_in_list(line, in_list, blank_before)
            fence = _opening(line, limit, in_list)
            block = blank_before or fence is not None or _HEADING.match(line) is not None
            yield from _pieces(line, limit, _BLOCK if block else _LINE, None, fence)
            opened, blank_before = fence is not None, not line.strip()
        elif fence.closed_by(line):
            yield _Line(fence.close, _size(fence.close), _NEVER, fence, None, closes=True)
            fence, blank_before = None, True
        else:
            rank = _NEVER if opened else _BLANK_IN_CODE if blank_before else _IN_CODE
            yield from _pieces(line, limit, rank, fence, fence)
            opened, blank_before = False, not line.strip()


def _stays_in_list(line: str, in_list: bool, blank_before: bool) -> bool:
    """Whether deep indentation still belongs to a list item and is no indented code."""
    if _ITEM.match(line):
        return True
    return in_list and not (blank_before and line[:1].strip())


def _opening(line: str, limit: int, in_list: bool) -> _Fence | None:
    """The code block that this line opens, if it does and there is room for its fences."""
    head = _FENCE.match(line)
    body = _MARKER.fullmatch(line, head.end()) if head else None
    if head is None or body is None:
        return None
    marker, info = body["marker"], body["info"]
    if (marker[0] == "`" and "`" in info) or (len(head["indent"]) > 3 and not in_list):
        return None
    quote = head["quote"]
    first = quote + " " * (len(head["indent"]) + len(head["item"] or ""))
    again = quote + " " * min(len(first) - len(quote), 3)
    fence = _Fence(quote, len(first) - len(quote), marker, first + marker, again + marker + info, again + marker)
    return fence if max(fence.overhead, _size(line) + _size(fence.close) + 1) <= limit // 2 else None


def _pieces(line: str, limit: int, rank: int, before: _Fence | None, after: _Fence | None) -> Iterator[_Line]:
    room = limit - after.overhead if before is not None and after is not None else limit
    size = _size(line)
    if size <= room:
        yield _Line(line, size, rank, before, after)
        return
    quote = line[: _quote_length(line)] if before is None else before.quote
    if _size(quote) > room // 2:
        quote = ""
    for index, piece in enumerate(_chop(line, room - _size(quote), anywhere=before is not None)):
        shown = quote + piece if index else piece
        yield _Line(shown, _size(shown), rank if not index else _IN_CODE, before, after)


def _chop(line: str, room: int, *, anywhere: bool) -> Iterator[str]:
    """Pieces of at most ``room`` bytes: to the end of a sentence, else of a word, in the second half; else full.

    Each but the last is more than half a part, and the last does not fit beside the one before it: no two share a part.
    """
    data = line.encode("utf-8", "surrogatepass")
    position = 0
    while len(data) - position > room:
        end = position + room
        while data[end] & 0xC0 == 0x80:
            end -= 1
        if not anywhere:
            middle = position + room // 2
            sentences = [match.end() for match in _SENTENCE.finditer(data, middle, end)]
            end = sentences[-1] if sentences else data.rfind(b" ", middle, end) + 1 or end
        yield data[position:end].decode("utf-8", "surrogatepass")
        position = end
    yield data[position:].decode("utf-8", "surrogatepass")


def _choose_end(lines: list[_Line], start: int, limit: int) -> int:
    """The index behind the last line of the part that begins at ``start``; always greater than ``start``."""
    reopened = lines[start].before
    used = -1 if reopened is None else _size(reopened.reopen)
    best: dict[int, int] = {}
    for index in range(start, len(lines)):
        line = lines[index]
        used += line.size + 1
        reserve = 0 if line.after is None else max(_size(line.after.close), _size(line.after.close_again)) + 1
        if used + reserve > limit:
            break
        following = index + 1
        if following == len(lines):
            return following
        rank = lines[following].rank
        if used >= limit * _FILL.get(rank, 0):
            best[rank] = following
        if rank != _NEVER:
            best[_NEVER] = following  # the last possible cut, of whatever rank
    for rank in (_BLOCK, _LINE, _BLANK_IN_CODE, _NEVER):
        if rank in best:
            return best[rank]
    return start + 1


def _assemble(lines: list[_Line], start: int, end: int) -> str:
    chosen = lines[start:end]
    reopened = chosen[0].before
    shown = [] if reopened is None else [reopened.reopen]
    for line in chosen:
        if line.closes and reopened is not None and line.before is reopened:
            shown.append(reopened.close_again)
        else:
            shown.append(line.text)
    cut = lines[end].before if end < len(lines) else None
    if cut is not None:
        shown.append(cut.close_again if cut is reopened else cut.close)
    visible = [index for index, line in enumerate(shown) if line.strip()]
    return "\n".join(shown[visible[0] : visible[-1] + 1]) if visible else ""
