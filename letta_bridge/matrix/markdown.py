"""An agent's Markdown as Matrix message content."""

import re
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

SOURCE_LIMIT = 65_536
"""Characters; longer texts fit no Matrix event and get no HTML."""

HTML_LIMIT = 32_768
"""UTF-8 bytes; the default bound of the HTML, so that it fits into one event together with its body."""

# C0 and C1 controls but for tab and line feed, DEL, and surrogates: no place in a text, some in no UTF-8
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LINK = re.compile(r"(?:https?|mailto|matrix):", re.IGNORECASE)
_MEDIA = re.compile(r"mxc://[A-Za-z0-9.:\[\]-]+/[A-Za-z0-9_-]+\Z")
_LANGUAGE = re.compile(r"language-[\w+#.-]{1,40}\Z")
_NUMBER = re.compile(r"-?[0-9]{1,9}\Z")

# The tags that the Matrix specification recommends for org.matrix.custom.html and that Markdown can make.
# fmt: off
_TAGS = frozenset((
    "del", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "p", "a", "ul", "ol", "li", "strong", "em",
    "code", "hr", "br", "table", "thead", "tbody", "tr", "th", "td", "pre", "img",
))
# fmt: on
_ATTRIBUTES: dict[str, set[str]] = {
    "*": set(),
    "a": {"href"},
    "img": {"src", "alt", "title"},
    "ol": {"start"},
    "code": {"class"},
}
_VALUES = {
    ("a", "href"): _LINK,
    ("img", "src"): _MEDIA,
    ("ol", "start"): _NUMBER,
    ("code", "class"): _LANGUAGE,
}

# lines that begin with a letter and hold nothing that Markdown could mean anything by
_SIMPLE = re.compile(r"(?:[^\W\d_][^\n\t*_`\[\]<>&\\~|]*(?:\n+|\Z))+\Z")
_PLAIN_BLOCKS = frozenset({"paragraph_open", "paragraph_close", "inline"})
_PLAIN_INLINES = {"softbreak": "\n", "hardbreak": "\n"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """The two forms of a message. ``html`` is ``None`` when it adds nothing to ``body``, or cannot be had."""

    body: str
    html: str | None


class _Markdown(MarkdownIt):
    """CommonMark with tables and strikethrough, without raw HTML; other links than the allowed stay text."""

    def __init__(self) -> None:
        super().__init__("commonmark", {"html": False, "breaks": True})
        self.enable(["table", "strikethrough"])
        self.add_render_rule("image", _image)
        self.add_render_rule("s_open", lambda *_: "<del>")  # older clients know no <s>
        self.add_render_rule("s_close", lambda *_: "</del>")

    def validateLink(self, url: str) -> bool:
        return bool(_LINK.match(url) or _MEDIA.match(url))


def _image(
    self: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    options: OptionsDict,
    env: MutableMapping[str, Any],
) -> str:
    """A picture of the homeserver's as such; any other as a link, so that nothing is fetched unasked."""
    token = tokens[index]
    source = str(token.attrGet("src") or "")
    alt = escapeHtml(self.renderInlineAsText(token.children or (), options, env))
    if _MEDIA.match(source):
        return f'<img src="{escapeHtml(source)}" alt="{alt}">'
    return f'<a href="{escapeHtml(source)}">{alt or escapeHtml(source)}</a>'


def render(text: str, html_limit: int = HTML_LIMIT) -> Rendered:
    """Turn what an agent said into a safe body and, where it has formatting, sanitised Matrix HTML.

    ``body`` is the complete Markdown source; only control characters and lone surrogates are removed, and
    line ends are ``\\n``. ``html`` holds only tags and attributes that the Matrix specification recommends,
    links to http, https, mailto and matrix, and pictures of ``mxc:``; raw HTML of the agent shows as text.
    It is ``None`` for plain text, sources over ``SOURCE_LIMIT`` and HTML over ``html_limit`` UTF-8 bytes.

    A body alone can still notify: ``@room`` in it does so wherever ``m.mentions`` is missing. Whoever sends
    this therefore always sets ``m.mentions``. Links to matrix.to are plain links and mention nobody.

    Raises nothing; the time is bounded for any text.
    """
    body = _UNSAFE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if not body.strip() or len(body) > SOURCE_LIMIT or _SIMPLE.match(body):
        return Rendered(body, None)
    env: dict[str, Any] = {}
    tokens = _MARKDOWN.parse(body, env)
    if _is_plain(tokens, body) or _target_lengths(tokens) > html_limit:
        return Rendered(body, None)
    unsafe = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, env)
    html = nh3.clean(
        unsafe,
        tags=set(_TAGS),
        attributes=_ATTRIBUTES,
        attribute_filter=_filter,
        url_schemes={"http", "https", "mailto", "matrix", "mxc"},
        link_rel="noopener noreferrer",
    ).strip()
    if len(html.encode()) > html_limit:
        return Rendered(body, None)
    return Rendered(body, html)


def _is_plain(tokens: Iterable[Token], body: str) -> bool:
    """Whether the source consists of paragraphs that read exactly as they are written."""
    shown: list[str] = []
    for token in tokens:
        if token.type not in _PLAIN_BLOCKS:
            return False
        for child in token.children or ():
            if child.type != "text" and child.type not in _PLAIN_INLINES:
                return False
            shown.append(_PLAIN_INLINES.get(child.type, child.content))
        shown.append("\n")
    return "".join(shown).split() == body.split()


def _target_lengths(tokens: Iterable[Token]) -> int:
    """Length of all link targets: one long reference may be used thousands of times."""
    children = (child for token in tokens for child in token.children or ())
    return sum(len(str(value)) for child in children for value in child.attrs.values())


def _filter(tag: str, attribute: str, value: str) -> str | None:
    allowed = _VALUES.get((tag, attribute))
    return value if allowed is None or allowed.match(value) else None


_MARKDOWN = _Markdown()
