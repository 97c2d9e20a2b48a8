"""What people write reaches the agent as Markdown, whatever the content holds."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from letta_bridge.matrix.incoming import (
    HTML_LIMIT,
    Relation,
    excerpt,
    mentioned_users,
    new_content,
    relation,
    to_markdown,
)

REPLY = {"m.relates_to": {"m.in_reply_to": {"event_id": "$original"}}}


def formatted(html: str, body: str = "body") -> dict[str, Any]:
    return {"msgtype": "m.text", "body": body, "format": "org.matrix.custom.html", "formatted_body": html}


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("plain", "plain"),
        ("<p>one</p><p>two<br>three</p>", "one\n\ntwo\nthree"),
        ("<b>bold </b>and <em>it</em>, <strong><i>x</i></strong>", "**bold** and *it*, ***x***"),
        ("<del>a</del> <s>b</s> <u>c</u> <font color=red>d</font>", "~~a~~ ~~b~~ c d"),
        ("<b></b>x<b> </b>y", "x y"),
        ("<h1>Head</h1><p>x</p><hr><h3>y</h3>", "# Head\n\nx\n\n---\n\n### y"),
        ("a <code>b`c</code> <code>`</code>", "a ``b`c`` `` ` ``"),
        ("<pre><code class='language-py'>x = 1\n\n  y\n</code></pre>z", "```py\nx = 1\n\n  y\n```\n\nz"),
        ("<pre>```\nx</pre>", "````\n```\nx\n````"),
        ("<pre><code>a<br>b</code></pre>", "```\na\nb\n```"),
        ("<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>", "- a\n  - b\n- c"),
        ("<ol start=9><li>x<br>y</li><li>z</li></ol>", "9. x\n   y\n10. z"),
        ("<ol start='-1x'><li>x</li></ol>", "1. x"),
        ("<blockquote><p>a</p><blockquote>b</blockquote></blockquote>c", "> a\n>\n> > b\n\nc"),
        ("<ul><li><blockquote><p>a</p></blockquote></li></ul><p>b</p>", "- > a\n\nb"),
        ("<blockquote>" * 50 + "x", "> " * 8 + "x"),
        ("<ul><li>a<pre>b</pre></li></ul>", "- a\n\n  ```\n  b\n  ```"),
        ("<a href='https://example.org/a b(c)'>x [y]</a>", "[x \\[y\\]](https://example.org/a%20b%28c%29)"),
        ("see <a href='https://example.org'>https://example.org</a>.", "see https://example.org."),
        ("<a href='javascript:x'>y</a><a>z</a>", "yz"),
        ("<a href='https://matrix.to/#/%40al%3Aex.org'>Al</a>: hi", "[Al](https://matrix.to/#/@al:ex.org): hi"),
        ("<a href='matrix:u/al:ex.org'>Al</a>", "[Al](https://matrix.to/#/@al:ex.org)"),
        ("the <span data-mx-spoiler='end'>butler</span>", "the (spoiler: end) ||butler||"),
        ("<span data-mx-spoiler>a <b>b</b></span> <span>c</span>", "||a **b**|| c"),
        ("x <img src='mxc://a/b' alt=':cat:'>", "x :cat:"),
        (
            "<table><tr><th>a</th><th>b|c</th></tr><tr><td><p>1</p><p>2</p></td><td><b>x</b></td></tr></table>y",
            "| a | b\\|c |\n| --- | --- |\n| 1 2 | **x** |\n\ny",
        ),
        ("<mx-reply><blockquote>old</blockquote></mx-reply>new", "new"),
        ("a<script>evil()</script><style>x</style><!-- c -->b", "ab"),
        ("&lt;b&gt; &amp;amp; &#x1F600;", "<b> &amp; 😀"),
        ("<b>unclosed <i>tags", "**unclosed *tags***"),
    ],
)
def test_html_becomes_markdown(html: str, markdown: str) -> None:
    assert to_markdown(formatted(html)) == markdown


@pytest.mark.parametrize(
    "html", ["", " ", "<p></p>", "<mx-reply>x</mx-reply>", "x" * (HTML_LIMIT + 1), None, 7, ["x"], {"a": 1}]
)
def test_unusable_html_gives_the_body(html: Any) -> None:
    assert to_markdown(formatted(html, "the *body*")) == "the *body*"


def test_html_that_says_nothing_new_gives_the_body() -> None:
    assert to_markdown(formatted("<p>a  b</p><p>c</p>", "a b\nc")) == "a b\nc"
    assert to_markdown(formatted("<em>a</em>", "*a*")) == "*a*"


def test_another_format_is_not_read() -> None:
    assert to_markdown(formatted("<b>x</b>") | {"format": "org.example.custom"}) == "body"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("> <@alice:example.org> Hi\n> there\n\nHello", "Hello"),
        ("> * <@alice:example.org> waves\n\nHello", "Hello"),
        ("> <@alice:example.org> Hi\n\n> my own quote\n\nHello", "> my own quote\n\nHello"),
        ("> <@alice:example.org> Hi", ""),
        ("> a quote of mine\n\nHello", "> a quote of mine\n\nHello"),
        ("Hello\n> <@alice:example.org> Hi", "Hello\n> <@alice:example.org> Hi"),
    ],
)
def test_the_quote_of_a_reply_is_left_out(body: str, text: str) -> None:
    assert to_markdown({"body": body} | REPLY) == text
    assert to_markdown({"body": body}) == body


@pytest.mark.parametrize("content", [{}, {"body": None}, {"body": 7}, {"body": ["x"]}, {"msgtype": "m.text"}])
def test_no_text_is_empty(content: dict[str, Any]) -> None:
    assert to_markdown(content) == ""


@pytest.mark.parametrize(
    ("relates_to", "expected"),
    [
        ({"m.in_reply_to": {"event_id": "$a"}}, Relation(reply_to="$a")),
        ({"rel_type": "m.thread", "event_id": "$t"}, Relation(thread_root="$t")),
        (
            {
                "rel_type": "m.thread",
                "event_id": "$t",
                "is_falling_back": True,
                "m.in_reply_to": {"event_id": "$a"},
            },
            Relation(reply_to="$a", thread_root="$t", falling_back=True),
        ),
        ({"rel_type": "m.thread", "event_id": "$t", "is_falling_back": "yes"}, Relation(thread_root="$t")),
        ({"rel_type": "m.replace", "event_id": "$e"}, Relation(replaces="$e")),
        ({"rel_type": "m.annotation", "event_id": "$e", "key": "👍"}, Relation(reacts_to="$e", key="👍")),
        ({"rel_type": "m.annotation", "event_id": "$e", "key": 7}, Relation()),
        ({"rel_type": "m.reference", "event_id": "$e"}, Relation()),
        ({"rel_type": ["m.thread"], "event_id": "$e"}, Relation()),
        ({"rel_type": "m.thread", "event_id": {"x": 1}}, Relation()),
        ({"rel_type": "m.thread", "event_id": ""}, Relation()),
        ({"rel_type": "m.thread", "event_id": "$" + "x" * 255}, Relation()),
        ({"m.in_reply_to": {"event_id": "$a\ud800"}}, Relation()),
        ({"m.in_reply_to": {"event_id": "$a\nb"}}, Relation()),
        ({"m.in_reply_to": "$a"}, Relation()),
        ("$a", Relation()),
        (None, Relation()),
    ],
)
def test_relations(relates_to: Any, expected: Relation) -> None:
    assert relation({"m.relates_to": relates_to}) == expected


def test_an_edit_has_new_content() -> None:
    edit = {"m.relates_to": {"rel_type": "m.replace", "event_id": "$e"}, "m.new_content": {"body": "new"}}
    assert new_content(edit) == {"body": "new"}
    assert new_content(edit | {"m.new_content": "new"}) is None
    assert new_content({"m.new_content": {"body": "new"}}) is None


def test_pills_are_found_in_order_outside_code() -> None:
    html = (
        "<a href='https://matrix.to/#/@b:x'>B</a><code><a href='https://matrix.to/#/@c:x'>C</a></code>"
        "<a href='matrix:u/a:x'>A</a><a href='https://matrix.to/#/@b:x'>B</a><a href='https://matrix.to/#/@no%0A:x'>N</a>"
    )
    assert mentioned_users(html) == ("@b:x", "@a:x")
    assert mentioned_users(None) == mentioned_users(7) == ()


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        (" short ", 10, "short"),
        ("one two three four", 12, "one two…"),
        ("abcdefghijklmnop", 10, "abcdefghi…"),
        ("", 10, ""),
    ],
)
def test_excerpts(text: str, limit: int, expected: str) -> None:
    assert excerpt(text, limit) == expected


@given(st.text(), st.integers(1, 50))
def test_an_excerpt_is_short_enough(text: str, limit: int) -> None:
    assert len(excerpt(text, limit)) <= limit


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=[]))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
TAGS = [
    *(
        "b",
        "i",
        "p",
        "div",
        "pre",
        "code",
        "ul",
        "ol",
        "li",
        "table",
        "tr",
        "td",
        "blockquote",
        "h1",
        "span",
        "br",
        "hr",
    ),
    *(
        "a href='https://x.y'",
        "a href='https://matrix.to/#/@a:b'",
        "span data-mx-spoiler",
        "mx-reply",
        "img alt=x",
        "x",
    ),
]
HTML = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([f"<{tag}>" for tag in TAGS] + [f"</{tag.split()[0]}>" for tag in TAGS]),
        st.sampled_from(["<", ">", "&", "&#0;", "`", "```", "\n", " ", "|", "<!--", "\ud800", "<![CDATA["]),
    ),
    max_size=60,
).map("".join)
KEYS = ["body", "format", "formatted_body", "m.relates_to", "m.new_content", "msgtype"]


@given(st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=5)), JSON))
def test_any_content_is_survived(content: dict[str, Any]) -> None:
    assert isinstance(to_markdown(content), str)
    assert isinstance(relation(content), Relation)
    new_content(content)


@given(HTML)
def test_any_html_is_survived(html: str) -> None:
    text = to_markdown(formatted(html, ""))
    text.encode()
    assert len(mentioned_users(html)) <= 1


@given(st.text(st.characters(categories=["L", "N"]), min_size=1), st.sampled_from(["b", "p", "li", "td", "h2", "pre"]))
def test_text_survives_in_any_element(text: str, tag: str) -> None:
    assert text in to_markdown(formatted(f"<{tag}>{text}</{tag}>", ""))


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=10), min_size=1, max_size=8))
def test_code_arrives_as_it_is(lines: list[str]) -> None:
    code = "\n".join(lines)
    escaped = code.replace("&", "&amp;").replace("<", "&lt;")
    markdown = to_markdown(formatted(f"<blockquote><pre><code>{escaped}</code></pre></blockquote>", ""))
    fences = [token for token in MarkdownIt("commonmark").parse(markdown) if token.type == "fence"]
    assert [token.content for token in fences] == [code + "\n"]


@pytest.mark.parametrize(
    "html",
    [
        *(unit * (HTML_LIMIT // len(unit)) for unit in ("<b>", "<div>", "<blockquote>", "<ul><li>", "<ol><li>x<br>")),
        *(
            unit * (HTML_LIMIT // len(unit))
            for unit in ("<table><tr><td>", "<br>x", "<pre>x", "<a href=https://x>", "&")
        ),
        *(unit * (HTML_LIMIT // len(unit)) for unit in ("<", "<!--", "<code>`</code>", "<span data-mx-spoiler=a>x")),
        "<blockquote>" * 1000 + "<br>x" * 10_000,
        "".join(f"<b a={n}><p>" for n in range(2000)) + "</b>" * 8000,
        "<a " + "".join(f"a{n}=b " for n in range(8000)) + ">x",
    ],
    ids=lambda html: html[:12],
)
def test_time_and_size_are_bounded(html: str) -> None:
    started = time.process_time()
    text = to_markdown(formatted(html))
    mentioned_users(html)
    assert time.process_time() - started < 8
    assert len(text) <= 4 * HTML_LIMIT


def test_a_long_reply_quote_is_left_out_in_linear_time() -> None:
    started = time.process_time()
    assert to_markdown({"body": "> <@a:b> x\n" + "> x\n" * 200_000 + "\nHello"} | REPLY) == "Hello"
    assert time.process_time() - started < 2
