"""What a person's Matrix message says, as Markdown for an agent. Event content is any JSON: everything is checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote

import nh3

from ..ids import MXID, EventID

HTML_LIMIT = 65_536
"""Characters of ``formatted_body`` that are read; no valid event has more."""

_CLEAN_LIMIT = 8 * HTML_LIMIT  # mis-nested HTML can grow without bound when it is set right
_DEPTH_LIMIT = 8  # quotes and lists nested deeper are shown flat: every level is written again on every line
_ID_LIMIT = 255

_FALLBACK = re.compile(r"> (?:\* )?<@[^>\n]*>[^\n]*(?:\n>[^\n]*)*(?:\n\n?|\Z)")
_LANGUAGE = re.compile(r"language-([\w+#.-]{1,40})")
_USER_LINK = re.compile(
    r"(?:https?://matrix\.to/#/(?P<mxid>(?:@|%40)[^/?#]+)|matrix:u(?:ser)?/(?P<path>[^/?#]+))", re.I
)
_SCHEME = re.compile(r"(?:https?|mailto|matrix):", re.I)  # what leads nowhere by itself is no link of a message
_UNFIT_FOR_URL = re.compile(r"[\s()<>\x00-\x20\x7f-\x9f\ud800-\udfff]")
_UNFIT_FOR_ID = re.compile(r"[\s\x00-\x20\x7f-\x9f\ud800-\udfff]")
_SPACES = re.compile(r"[ \t\n\r\f]+")

# fmt: off
_TAGS = frozenset((
    "a", "b", "blockquote", "br", "caption", "code", "del", "details", "div", "em", "h1", "h2", "h3", "h4",
    "h5", "h6", "hr", "i", "img", "li", "ol", "p", "pre", "s", "span", "strike", "strong", "summary", "table",
    "tbody", "td", "th", "thead", "tr", "ul",
))
# fmt: on
_ATTRIBUTES = {
    "*": set[str](),
    "a": {"href"},
    "code": {"class"},
    "img": {"alt", "title"},
    "ol": {"start"},
    "span": {"data-mx-spoiler"},
}
_EMPHASIS = {"b": "**", "strong": "**", "i": "*", "em": "*", "del": "~~", "s": "~~", "strike": "~~"}
_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_BLOCKS = frozenset({"p", "div", "details", "summary", "caption", *_HEADINGS})


@dataclass(frozen=True, slots=True)
class Relation:
    """How a message relates to others. An id is ``None`` where the content has none or has rubbish."""

    reply_to: EventID | None = None
    """The message in ``m.in_reply_to``; no real reply when ``falling_back``."""
    thread_root: EventID | None = None
    falling_back: bool = False
    """``reply_to`` is there only for clients without threads."""
    replaces: EventID | None = None
    reacts_to: EventID | None = None
    key: str | None = None
    """The reaction, usually an emoji; set together with ``reacts_to``."""


def to_markdown(content: Mapping[str, Any]) -> str:
    """The text of an ``m.room.message`` content as Markdown, without the quoted message of a reply.

    Formatting comes from ``formatted_body``; where that is missing, unusable, or says no more than ``body``, the
    text is ``body``. A pill becomes ``[Name](https://matrix.to/#/@user:server)``. Text that merely looks like
    Markdown is not escaped: agents read it better so. Raises nothing; ``""`` when there is no text.
    """
    body = _body(content)
    html = content.get("formatted_body")
    if content.get("format") != "org.matrix.custom.html" or not isinstance(html, str):
        return body
    cleaned = _clean(html)
    if cleaned is None:
        return body
    writer = _MarkdownWriter()
    writer.feed(cleaned)
    writer.close()
    text = writer.result()
    unusable = not text or len(text) > 4 * HTML_LIMIT
    return body if body and (unusable or text.split() == body.split()) else text


def mentioned_users(formatted_body: object) -> tuple[MXID, ...]:
    """Whom the pills of a ``formatted_body`` mean, in order; not in code and not in the quote of a reply."""
    cleaned = _clean(formatted_body) if isinstance(formatted_body, str) else None
    if cleaned is None:
        return ()
    reader = _PillReader()
    reader.feed(cleaned)
    reader.close()
    return tuple(dict.fromkeys(reader.users))


def new_content(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What an edit puts in the place of the message it replaces; ``None`` when this is no edit."""
    replacement = content.get("m.new_content")
    if relation(content).replaces is None or not isinstance(replacement, Mapping):
        return None
    return replacement


def relation(content: Mapping[str, Any]) -> Relation:
    """How the message relates to others, read from ``m.relates_to``. Raises nothing."""
    relates_to = content.get("m.relates_to")
    if not isinstance(relates_to, Mapping):
        return Relation()
    in_reply_to = relates_to.get("m.in_reply_to")
    reply_to = _event_id(in_reply_to.get("event_id")) if isinstance(in_reply_to, Mapping) else None
    target = _event_id(relates_to.get("event_id"))
    match relates_to.get("rel_type"):
        case "m.thread" if target:
            return Relation(reply_to, target, relates_to.get("is_falling_back") is True)
        case "m.replace" if target:
            return Relation(reply_to, replaces=target)
        case "m.annotation" if target and isinstance(key := relates_to.get("key"), str):
            return Relation(reply_to, reacts_to=target, key=key)
    return Relation(reply_to)


def excerpt(text: str, limit: int = 500) -> str:
    """The beginning of a text: at most ``limit`` characters, the ellipsis of a cut included; whole words if it can."""
    text = text.strip()
    if len(text) <= limit:
        return text
    kept = text[: max(limit - 1, 0)]
    words, space, _ = kept.rpartition(" ")
    return (words if space and len(words) > limit // 2 else kept).rstrip() + "…"


def _body(content: Mapping[str, Any]) -> str:
    body = content.get("body")
    if not isinstance(body, str):
        return ""
    if relation(content).reply_to is not None and (match := _FALLBACK.match(body)):
        return body[match.end() :]
    return body


def _event_id(value: object) -> EventID | None:
    if not isinstance(value, str) or not 0 < len(value) <= _ID_LIMIT or _UNFIT_FOR_ID.search(value):
        return None
    return EventID(value)


def _clean(html: str) -> str | None:
    """Well-formed HTML of known tags, so that reading it is safe and linear; ``None`` when it is too large."""
    if not html.strip() or len(html) > HTML_LIMIT:
        return None
    cleaned = nh3.clean(
        html.encode("utf-8", "replace").decode(),
        tags=set(_TAGS),
        clean_content_tags={"mx-reply", "script", "style"},
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto", "matrix"},
        link_rel=None,
    )
    return cleaned if len(cleaned) <= _CLEAN_LIMIT else None


def _linked_user(href: str) -> MXID | None:
    """The user that a matrix.to or ``matrix:`` link names."""
    match = _USER_LINK.match(href)
    if match is None:
        return None
    user = unquote(match["mxid"]) if match["mxid"] else "@" + unquote(match["path"])
    if ":" not in user or len(user) > _ID_LIMIT or _UNFIT_FOR_ID.search(user):
        return None
    return MXID(user)


class _PillReader(HTMLParser):
    """Collects the users that links outside code name."""

    def __init__(self) -> None:
        super().__init__()
        self.users: list[MXID] = []
        self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("code", "pre"):
            self._code += 1
        elif tag == "a" and not self._code and (user := _linked_user(dict(attrs).get("href") or "")):
            self.users.append(user)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("code", "pre"):
            self._code -= 1


@dataclass(slots=True)
class _Container:
    """A quote or a list item: what its lines begin with; ``first`` is used once, by its first line."""

    rest: str
    first: str | None = None


class _MarkdownWriter(HTMLParser):
    """Writes cleaned HTML as Markdown in one pass.

    Line ends, spaces and opening marks wait until there is text behind them, so that empty elements leave nothing
    and marks touch their words. Code and links are collected whole; so are table cells, which hold one line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._out: list[str] = []
        self._containers: list[_Container] = []
        self._too_deep = 0
        self._lists: list[int | None] = []  # the next number of each open list; None for bullets
        self._line_ends = 0
        self._gap_depth = 0  # the containers that are open on both sides of a gap
        self._space = False
        self._marks: list[str] = []
        self._emphasis: dict[str, int] = {}
        self._spoilers: list[bool] = []
        self._code: list[str] | None = None
        self._code_tag = ""
        self._code_depth = 0
        self._language = ""
        self._href: str | None = None
        self._link: list[str] = []
        self._tables = 0
        self._rows = 0
        self._row: list[str] = []
        self._cell: list[str] | None = None

    def result(self) -> str:
        return "".join(self._out).strip()

    def handle_data(self, data: str) -> None:
        if self._code is not None:
            self._code.append(data)
        elif self._href is not None:
            self._link.append(data)
        else:
            text = _SPACES.sub(" ", data)
            self._space = self._space or text.startswith(" ")
            if words := text.strip(" "):
                self._write(words)
                self._space = text.endswith(" ")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if self._code is not None:
            self._start_in_code(tag, given)
        elif tag == "img":
            self.handle_data(given.get("alt") or given.get("title") or "")
        elif self._href is not None:
            self._link.append(" " if tag in _BLOCKS or tag in ("br", "td", "th", "li") else "")
        elif tag in ("code", "pre"):
            self._code, self._code_tag, self._code_depth, self._language = [], tag, 1, ""
        elif tag == "a":
            self._href, self._link = given.get("href", ""), []
        elif tag in _EMPHASIS:
            self._open_emphasis(_EMPHASIS[tag])
        elif tag == "span":
            self._open_span(given.get("data-mx-spoiler"))
        else:
            self._start_block(tag, given)

    def handle_endtag(self, tag: str) -> None:
        if self._code is not None:
            self._code_depth -= tag == self._code_tag
            if not self._code_depth:
                self._close_code("".join(self._code))
        elif self._href is not None:
            if tag == "a":
                self._close_link(self._href)
        elif tag in _EMPHASIS:
            self._close_emphasis(_EMPHASIS[tag])
        elif tag == "span":
            if self._spoilers and self._spoilers.pop():
                self._close_mark("||")
        else:
            self._end_block(tag)

    def _start_in_code(self, tag: str, given: Mapping[str, str]) -> None:
        assert self._code is not None
        self._code_depth += tag == self._code_tag
        if tag == "br":
            self._code.append("\n")
        elif tag == "code" and (match := _LANGUAGE.match(given.get("class", ""))):
            self._language = match[1]

    def _start_block(self, tag: str, given: Mapping[str, str]) -> None:
        match tag:
            case "br":
                self._line_ends = min(self._line_ends + 1, 2)
                self._gap_depth = len(self._containers)
            case "hr":
                self._break(2)
                self._write("---")
                self._break(2)
            case "blockquote":
                self._break(2)
                self._enter(_Container("> "))
            case "ul" | "ol":
                self._break(1 if self._lists else 2)
                start = given.get("start", "")
                first = int(start) if start.isascii() and start.isdigit() and len(start) < 10 else 1
                self._lists.append(first if tag == "ol" else None)
            case "li":
                self._break(1)
                self._enter(self._item())
            case "table" | "tr" | "td" | "th":
                self._start_table_part(tag)
            case _ if tag in _BLOCKS:
                self._break(1 if tag == "div" else 2)
                if tag in _HEADINGS and self._cell is None:
                    self._marks.append(_HEADINGS[tag])

    def _end_block(self, tag: str) -> None:
        match tag:
            case "blockquote":
                self._leave()
                self._break(2)
            case "ul" | "ol":
                if self._lists:
                    self._lists.pop()
                self._break(1 if self._lists else 2)
            case "li":
                self._leave()
                self._break(1)
            case "table" | "tr" | "td" | "th":
                self._end_table_part(tag)
            case _ if tag in _BLOCKS:
                if tag in _HEADINGS and self._marks and self._marks[-1] == _HEADINGS[tag]:
                    self._marks.pop()
                self._break(1 if tag == "div" else 2)

    def _item(self) -> _Container:
        number = self._lists[-1] if self._lists else None
        if number is None:
            return _Container("  ", "- ")
        self._lists[-1] = number + 1
        marker = f"{number}. "
        return _Container(" " * len(marker), marker)

    def _enter(self, container: _Container) -> None:
        if len(self._containers) < _DEPTH_LIMIT:
            self._containers.append(container)
        else:
            self._too_deep += 1

    def _leave(self) -> None:
        if self._too_deep:
            self._too_deep -= 1
        elif self._containers:
            self._containers.pop()

    def _start_table_part(self, tag: str) -> None:
        self._tables += tag == "table"
        if self._tables > 1:
            self._break(1)
        elif tag == "table":
            self._break(2)
            self._rows = 0
        elif tag == "tr":
            self._row = []
        else:
            self._cell, self._line_ends, self._space = [], 0, False

    def _end_table_part(self, tag: str) -> None:
        nested = self._tables > 1
        self._tables -= tag == "table"
        if nested:
            self._break(1)
        elif tag == "table":
            self._break(2)
        elif tag != "tr":
            self._row.append("".join(self._cell or ()).replace("|", "\\|"))
            self._cell, self._line_ends, self._space = None, 1, False
        elif self._row:
            self._write_line(f"| {' | '.join(self._row)} |")
            if not self._rows:
                self._write_line("|" + " --- |" * len(self._row))
            self._rows += 1

    def _open_emphasis(self, mark: str) -> None:
        self._emphasis[mark] = self._emphasis.get(mark, 0) + 1
        if self._emphasis[mark] == 1:
            self._marks.append(mark)

    def _close_emphasis(self, mark: str) -> None:
        self._emphasis[mark] = self._emphasis.get(mark, 0) - 1
        if not self._emphasis[mark]:
            self._close_mark(mark)

    def _open_span(self, spoiler: str | None) -> None:
        self._spoilers.append(spoiler is not None)
        if spoiler is not None:
            if spoiler.strip():
                self.handle_data(f" (spoiler: {spoiler.strip()}) ")
            self._marks.append("||")

    def _close_mark(self, mark: str) -> None:
        if self._marks and self._marks[-1] == mark:
            self._marks.pop()
        else:
            self._sink().append(mark)

    def _close_code(self, code: str) -> None:
        block = self._code_tag == "pre" and self._cell is None
        self._code = None
        longest = max(map(len, re.findall("`+", code)), default=0)
        if not block:
            if code := _SPACES.sub(" ", code):
                padding = " " if code.startswith("`") or code.endswith("`") else ""
                fence = "`" * (longest + 1)
                self._write(f"{fence}{padding}{code}{padding}{fence}")
            return
        fence = "`" * max(longest + 1, 3)
        self._break(2)
        for line in (fence + self._language, *code.removesuffix("\n").split("\n"), fence):
            self._write_line(line)
        self._break(2)

    def _close_link(self, href: str) -> None:
        self._href = None
        text = _SPACES.sub(" ", "".join(self._link))
        words = text.strip(" ")
        self._space = self._space or text.startswith(" ")
        user = _linked_user(href)
        target = f"https://matrix.to/#/{user}" if user else href if _SCHEME.match(href) else ""
        url = _UNFIT_FOR_URL.sub(_percent, target)
        if url and words != url:
            label = (words or url).replace("[", "\\[").replace("]", "\\]")
            self._write(f"[{label}]({url})")
        elif words:
            self._write(words)
        self._space = self._space or text.endswith(" ")

    def _sink(self) -> list[str]:
        return self._out if self._cell is None else self._cell

    def _break(self, line_ends: int) -> None:
        """End the line before the next text; a blank line is 2."""
        self._gap_depth = min(self._gap_depth, len(self._containers)) if self._line_ends else len(self._containers)
        self._line_ends = max(self._line_ends, line_ends)

    def _write_line(self, text: str) -> None:
        self._break(1)
        self._write(text)
        self._break(1)

    def _write(self, text: str) -> None:
        """Write text and what waits for it: line ends with the marks of quotes and lists, or a space; then marks."""
        sink = self._sink()
        if self._cell is not None:
            if sink and (self._line_ends or self._space):
                sink.append(" ")
        elif self._line_ends or not sink:
            if sink and self._line_ends > 1:
                sink.append("\n" + "".join(part.rest for part in self._containers[: self._gap_depth]).rstrip())
            sink.append("\n" if sink else "")
            for part in self._containers:
                sink.append(part.rest if part.first is None else part.first)
                part.first = None
        elif self._space:
            sink.append(" ")
        sink.extend(self._marks)
        sink.append(text)
        self._marks.clear()
        self._line_ends, self._space = 0, False


def _percent(match: re.Match[str]) -> str:
    return quote(match[0], safe="", errors="replace")
