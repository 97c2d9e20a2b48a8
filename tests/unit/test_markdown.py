"""An agent's Markdown becomes Matrix HTML that can do no harm, and a body that lacks nothing."""

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letta_bridge.matrix import markdown
from letta_bridge.matrix.markdown import HTML_LIMIT, SOURCE_LIMIT, render

# The list of the Matrix specification (client-server API, m.room.message, org.matrix.custom.html).
# fmt: off
RECOMMENDED = {
    "del", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "p", "a", "ul", "ol", "sup", "sub", "li", "b", "i", "u",
    "strong", "em", "s", "code", "hr", "br", "div", "table", "thead", "tbody", "tr", "th", "td", "caption", "pre",
    "span", "img", "details", "summary",
}
# fmt: on
ATTRIBUTES = {"a": {"href", "rel"}, "img": {"src", "alt", "title"}, "ol": {"start"}, "code": {"class"}}


class Auditor(HTMLParser):
    """Fails on anything that the specification does not recommend, and on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in RECOMMENDED
        for name, value in attrs:
            assert name in ATTRIBUTES.get(tag, ()), (tag, name)
            if name == "href":
                assert value and value.lower().startswith(("http:", "https:", "mailto:", "matrix:"))
            if name == "src":
                assert value and value.startswith("mxc://")
            if name == "class":
                assert value and value.startswith("language-") and " " not in value
        if tag not in ("br", "hr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def audit(html: str) -> None:
    auditor = Auditor()
    auditor.feed(html)
    auditor.close()
    assert not auditor.open


PIECES = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=12),
    st.sampled_from(
        [
            *("*", "**", "_", "~~", "`", "```", "\n", "\n\n", "> ", "- ", "1. ", "# ", "|", "|a|b|\n|-|:-:|\n", "    "),
            *("[x](", "![x](", ")", "[x]: ", "<", ">", "&", '"', "\\", "&#0;", "&lt;"),
            *("javascript:alert(1)", "https://example.org", "mxc://example.org/abc", "data:text/html,x", "//evil"),
            *("<script>", "<mx-reply>", "<img src=x onerror=y>", "<b style='x'>", "</p>", "<!--", "<a href='x:y'>"),
            *("```py\nx\n```", '```py" onclick="x\nx\n```', "@room", "\x00", "\ud800", "\r\n", "\u202e"),
        ]
    ),
)


@given(st.lists(PIECES, max_size=40).map("".join))
def test_html_holds_only_what_is_recommended(text: str) -> None:
    rendered = render(text)
    rendered.body.encode()
    assert not set(rendered.body) & {"\x00", "\x1b", "\r"}
    if rendered.html is not None:
        assert "<mx-reply" not in rendered.html
        audit(rendered.html)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_the_body_is_the_source(text: str) -> None:
    assert render(text).body == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "hello",
        "two\nlines",
        "two\n\nparagraphs",
        "  indented",
        "snake_case 2 * 3 * 4 a<b",
        "1 & 2",
        "@room hi",
    ],
)
def test_plain_text_has_no_html(text: str) -> None:
    assert render(text).html is None


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**a** _b_ ~~c~~ `d`", "<p><strong>a</strong> <em>b</em> <del>c</del> <code>d</code></p>"),
        ("one\n**two**", "<p>one<br>\n<strong>two</strong></p>"),
        ("# Head\n\n> quote", "<h1>Head</h1>\n<blockquote>\n<p>quote</p>\n</blockquote>"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>'),
        ("```py\na < b\n```", '<pre><code class="language-py">a &lt; b\n</code></pre>'),
        ('```py"x\na\n```', "<pre><code>a\n</code></pre>"),
        ("<b>bold</b> *x*", "<p>&lt;b&gt;bold&lt;/b&gt; <em>x</em></p>"),
        ("*x*\n\n<mx-reply>y</mx-reply>", "<p><em>x</em></p>\n<p>&lt;mx-reply&gt;y&lt;/mx-reply&gt;</p>"),
        ("**@room**", "<p><strong>@room</strong></p>"),
        ("a \\* b", "<p>a * b</p>"),
        ("*a* [b](javascript:x)", "<p><em>a</em> [b](javascript:x)</p>"),
        ("*a* [b](/x) [c](//y)", "<p><em>a</em> [b](/x) [c](//y)</p>"),
        (
            "|a|b|\n|-|-:|\n|1|2|",
            "<table>\n<thead>\n<tr>\n<th>a</th>\n<th>b</th>\n</tr>\n</thead>\n"
            "<tbody>\n<tr>\n<td>1</td>\n<td>2</td>\n</tr>\n</tbody>\n</table>",
        ),
    ],
)
def test_markdown_becomes_html(text: str, html: str) -> None:
    assert render(text).html == html


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("[x](https://example.org/?a=1&b=2)", "https://example.org/?a=1&amp;b=2"),
        ("[x](mailto:a@example.org)", "mailto:a@example.org"),
        ("[x](matrix:u/a:example.org)", "matrix:u/a:example.org"),
        ("[x](https://matrix.to/#/@a:example.org)", "https://matrix.to/#/@a:example.org"),
        ("![x](https://example.org/cat.png)", "https://example.org/cat.png"),
    ],
)
def test_links_and_foreign_pictures_are_links(link: str, target: str) -> None:
    assert render(link).html == f'<p><a href="{target}" rel="noopener noreferrer">x</a></p>'


def test_a_picture_of_the_homeserver_is_a_picture() -> None:
    assert render("![a *cat*](mxc://example.org/abc)").html == '<p><img src="mxc://example.org/abc" alt="a cat"></p>'


def test_unsafe_characters_leave_the_body() -> None:
    assert render("a\x00b\x1b[1m\ud800c\x85d\r\ne\rf\tg").body == "ab[1mcd\ne\nf\tg"


def test_too_much_html_gives_none_but_the_whole_body() -> None:
    text = "*a* " * (SOURCE_LIMIT // 4)
    assert render(text).html is None and render(text).body == text
    assert render("*a*" * 20, html_limit=100).html is None
    html = render("*é* " * 2000).html
    assert html is not None and len(html.encode()) <= HTML_LIMIT


def test_one_long_reference_used_often_costs_nothing() -> None:
    text = "[a]: https://example.org/" + "x" * 20_000 + "\n\n" + "[a] " * 10_000
    started = time.process_time()
    assert render(text).html is None
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "[",
            "![",
            "*a ",
            "*_",
            "a**b",
            "**a* ",
            "`",
            "` `` ",
            '[a](b "',
            "[a](<b",
            "<http://a",
            '[a]: b "\n',
            "[a](",
        ),
        *(
            "> ",
            "- ",
            "- a\n",
            "> a\n",
            "|a|b|\n",
            "|",
            "&",
            "\\",
            "~~a",
            "a\n",
            "[[a]](b)",
            "1. ",
            "# a\n",
            "***a",
            "\n",
        ),
        *("  - a\n", "<a@b.c", "x", "```\n", "|-|\n"),
    ],
)
@pytest.mark.parametrize("length", [SOURCE_LIMIT, 1_000_000])
def test_time_is_bounded(unit: str, length: int) -> None:
    text = (unit * (length // len(unit) + 1))[:length]
    started = time.process_time()
    assert render(text).body == text
    assert time.process_time() - started < 8


@given(st.text(alphabet="abÄß 1.,;:!?'\"()-+=#@/%$\n\r\t*_`[]<>&\\~|{}^", max_size=60))
def test_the_short_way_for_plain_texts_says_what_the_long_way_says(text: str) -> None:
    """A text that looks simple has no HTML on either way."""
    body = markdown._UNSAFE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if markdown._SIMPLE.match(body):
        assert markdown._is_plain(markdown._MARKDOWN.parse(body), body)
