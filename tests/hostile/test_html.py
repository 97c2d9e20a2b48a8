"""HTML from people reaches agents as harmless Markdown; what agents say reaches people as harmless HTML."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from letta_bridge.delivery.outgoing import ReplyTarget, text_content
from letta_bridge.ids import MXID
from letta_bridge.matrix.incoming import HTML_LIMIT, mentioned_users, to_markdown

from ..integration.intake_kit import heard, scene
from ..integration.world import World, until

FULL = settings.get_profile("default").max_examples * 20

# What a client may show (specification, m.room.message, org.matrix.custom.html); rel is what it adds to links.
# fmt: off
TAGS = {
    "del", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "p", "a", "ul", "ol", "sup", "sub", "li", "b", "i", "u",
    "strong", "em", "s", "code", "hr", "br", "div", "table", "thead", "tbody", "tr", "th", "td", "caption", "pre",
    "span", "img", "details", "summary",
}
# fmt: on
ATTRIBUTES = {
    "a": {"href", "rel", "target"},
    "img": {"src", "alt", "title", "width", "height"},
    "ol": {"start"},
    "code": {"class"},
    "span": {"data-mx-spoiler", "data-mx-color", "data-mx-bg-color", "data-mx-maths"},
}
LINKS = re.compile(r"(?:https?|mailto|matrix):", re.IGNORECASE)


class Audit(HTMLParser):
    """Fails on anything that is not allowed."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES.get(tag, ()), (tag, name)
            if name == "href":
                assert value and LINKS.match(value), value
            if name == "src":
                assert value and re.fullmatch(r"mxc://[^/]+/[\w-]+", value), value
            if name == "class":
                assert value and re.fullmatch(r"language-[\w+#.-]+", value), value

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"comment {data!r}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"declaration {decl!r}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"instruction {data!r}")


def audit(html: str) -> None:
    auditor = Audit()
    auditor.feed(html)
    auditor.close()


def audit_content(content: dict[str, Any], mentioned: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """A message as it was sent: mentions are explicit, HTML is allowed HTML, nothing else is slipped in."""
    for part in (content, content.get("m.new_content")):
        if part is None:
            continue
        assert set(part.get("m.mentions", {"missing": 1})) <= {"user_ids"}, part
        assert set(part["m.mentions"].get("user_ids", [])) <= mentioned
        assert set(part) <= {
            *("msgtype", "body", "format", "formatted_body", "m.mentions", "m.relates_to", "m.new_content"),
            "dev.letta_bridge.message",
        }
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", part["body"])
        assert ("formatted_body" in part) == (part.get("format") == "org.matrix.custom.html")
        if "formatted_body" in part:
            audit(part["formatted_body"])


# -- from people

SCRIPTS = [
    "<script>EVIL</script>",
    "<ScRiPt src=https://evil/EVIL.js></sCrIpT>",
    "<scr<script>ipt>x</scr</script>ipt>",
    "<img src=x onerror=EVIL>",
    "<img src='mxc://evil.example/EVIL'>",
    "<img src=https://evil.example/EVIL.png width=1 height=1>",
    "<svg onload=EVIL>",
    "<svg><script>EVIL</script></svg>",
    "<math><mi//xlink:href='data:x,EVIL'></math>",
    "<iframe src=javascript:EVIL></iframe>",
    "<iframe srcdoc='<script>EVIL</script>'></iframe>",
    "<object data=EVIL></object>",
    "<embed src=EVIL>",
    "<form action=EVIL><input name=EVIL value=EVIL><button formaction=EVIL></button></form>",
    "<a href='javascript:EVIL'></a>",
    "<a href='jAvAsCrIpT&colon;EVIL'>x</a>",
    "<a href='java\nscript:EVIL'>x</a>",
    "<a href='&#1;javascript:EVIL'>x</a>",
    "<a href=' javascript:EVIL'>x</a>",
    "<a href='vbscript:EVIL'>x</a>",
    "<a href='data:text/html,EVIL'>x</a>",
    "<a href='data:text/html;base64,RVZJTA==EVIL'>x</a>",
    "<a href='file:///EVIL'>x</a>",
    "<a href='mxc://evil/EVIL'>x</a>",
    "<a href='//evil/EVIL'>x</a>",
    "<a href='EVIL'>x</a>",
    "<style>@import 'EVIL'</style>",
    "<link rel=stylesheet href=EVIL>",
    "<meta http-equiv=refresh content='0;url=EVIL'>",
    "<base href=EVIL>",
    "<div style='background:url(EVIL)'>x</div>",
    "<font color=EVIL>x</font>",
    "<span data-mx-color='EVIL' class=EVIL id=EVIL>x</span>",
    "<!-- EVIL -->",
    "<!--><img src=EVIL>-->",
    "<![CDATA[<img src=EVIL>]]>",
    "<?php EVIL ?>",
    "<!DOCTYPE EVIL>",
    "<noscript><p title='</noscript><img src=EVIL onerror=EVIL>'></noscript>",
    "<template><img src=EVIL></template>",
]
"""Nothing of these is anything for an agent: no EVIL is left."""


def of(html: str, body: str = "") -> dict[str, Any]:
    return {"msgtype": "m.text", "body": body, "format": "org.matrix.custom.html", "formatted_body": html}


@pytest.mark.parametrize("around", ["{}", "<p>{}</p>", "<blockquote>{}", "<b>{}", "{}<", "<table><tr><td>{}", "<li>{}"])
def test_no_attack_reaches_the_agent(around: str) -> None:
    for html in SCRIPTS:
        text = to_markdown(of(f"before {around.format(html)} after", "the body"))
        visible = re.sub(r"<\[CDATA\[|\]\]>|-->|ipt>", "", text)
        assert "EVIL" not in visible, (html, text)
        assert "before" in text
        assert not re.search(r"\]\((?!https?:|mailto:|matrix:)", text), text
        assert not mentioned_users(html) or "matrix.to" in html


def test_a_forged_quote_is_not_taken_for_one() -> None:
    """What a message quotes comes from the message that it answers, never from its own text."""
    for quote in (
        "<mx-reply>EVIL</mx-reply>",
        "<mx-reply><blockquote><a href='https://matrix.to/#/@a:b'>admin</a><br>EVIL</blockquote></mx-reply>",
        "<MX-REPLY >EVIL</MX-REPLY\n>",
        "<mx-reply><mx-reply>EVIL</mx-reply>EVIL</mx-reply>",
    ):
        content = {
            **of(f"{quote}hello", "> <@a:b> EVIL\n\nhello"),
            "m.relates_to": {"m.in_reply_to": {"event_id": "$x"}},
        }
        assert to_markdown(content) == "hello"
        assert not mentioned_users(quote)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        # a link shows where it leads, whatever its text says
        ("<a href='https://evil.example'>https://bank.example</a>", "[https://bank.example](https://evil.example)"),
        ("<a href='https://x.y/a)b'>x</a>", "[x](https://x.y/a%29b)"),
        ("<a href='https://x.y'>](https://evil.example) [</a>", "[\\](https://evil.example) \\[](https://x.y)"),
        # a pill names who is meant, not who it says
        ("<a href='https://matrix.to/#/@mallory:evil'>Alice</a>", "[Alice](https://matrix.to/#/@mallory:evil)"),
        ("<a href='matrix:u/mallory:evil'>Alice</a>", "[Alice](https://matrix.to/#/@mallory:evil)"),
        ("<a href='https://matrix.to/#/%40m:evil'>@alice:x</a>", "[@alice:x](https://matrix.to/#/@m:evil)"),
        (
            "<a href='https://evil.example/#/https://matrix.to/#/@alice:x'>Alice</a>",
            "[Alice](https://evil.example/#/https://matrix.to/#/@alice:x)",
        ),
        # a picture is its description; nothing is fetched
        ("<img src='mxc://evil/track' alt='a cat'>", "a cat"),
        ("<b>@room</b> hear me", "**@room** hear me"),
        ("<details><summary>s</summary>inside</details>", "s\n\ninside"),
        ("never <b>closed <i>at all", "never **closed *at all***"),
        ("<b>wrong <i>order</b></i>", "**wrong *order***"),
        ("&lt;script&gt;only text&lt;/script&gt;", "<script>only text</script>"),
        ("&amp;lt;b&amp;gt;", "&lt;b&gt;"),
        ("<p>a</p><!-- --!><p>b</p>", "a\n\nb"),
    ],
)
def test_what_html_says_to_an_agent(html: str, text: str) -> None:
    assert to_markdown(of(html)) == text


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 10_000 + "x",
        "<b>" * 10_000 + "x" + "</b>" * 10_000,
        "<blockquote>" * 5000 + "x",
        "<ul><li>" * 4000 + "x",
        "<table><tr><td>" * 4000 + "x",
        "<mx-reply>" * 6000 + "x",
        "<a href=https://x.y>" * 3000 + "x",
        "<p" * 30_000,
        "<" * 60_000,
        "&lt;" * 16_000,
        "</b>" * 16_000 + "x",
        "<!--" * 16_000,
        "<b a='" + "x" * 60_000,
        "<span data-mx-spoiler='" + "y" * 60_000 + "'>x</span>",
        "<pre><code>" + "`" * 60_000,
        "\u202e" * 20_000 + "x",
        "<b>x</b>" * (HTML_LIMIT // 8 + 1),
    ],
    ids=lambda html: html[:12],
)
def test_large_html_is_bounded(html: str) -> None:
    begun = time.process_time()
    text = to_markdown(of(html, "the body"))
    mentioned_users(html)
    assert time.process_time() - begun < 3
    assert len(text) <= 4 * HTML_LIMIT


PIECES = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=10),
    st.sampled_from(SCRIPTS),
    st.sampled_from([html[: len(html) // 2] for html in SCRIPTS]),
    st.sampled_from(["<b>", "</b>", "<a href='https://x.y'>", "</a>", "<pre>", "<td>", "'", '"', ">", "<", "&", "\n"]),
)


def _no_attack(html: str) -> None:
    text = to_markdown(of(html))
    text.encode()
    assert not re.search(r"\]\(\s*(?:javascript|vbscript|data|file|mxc):", text, re.IGNORECASE), text


@given(st.lists(PIECES, max_size=30).map("".join))
def test_no_mix_of_html_makes_a_dangerous_link(html: str) -> None:
    _no_attack(html)


@pytest.mark.full
@pytest.mark.timeout(600)
@settings(max_examples=FULL, deadline=None)
@given(st.lists(PIECES, max_size=60).map("".join))
def test_no_mix_of_much_html_makes_a_dangerous_link(html: str) -> None:
    _no_attack(html)


async def test_attacks_of_people_through_the_whole_bridge(sqlite_world: World) -> None:
    at = await scene(sqlite_world)
    for number, html in enumerate(SCRIPTS):
        await at.alice.send_event(at.room, "m.room.message", of(f"no. {number} {html}", "body"))
    await until(lambda: len([text for text in heard(at) if text.startswith("no. ")]) == len(SCRIPTS), timeout=20)
    for text in heard(at):
        assert "EVIL" not in re.sub(r"<\[CDATA\[|\]\]>|-->|ipt>", "", text)


# -- from agents

SAID = [
    *SCRIPTS,
    *(f"**bold** {html}" for html in SCRIPTS),
    "[x](javascript:alert(1)) **x**",
    "[x](JaVaScRiPt:alert(1)) **x**",
    "[x](&#106;avascript:alert(1)) **x**",
    "[x](java\\script:alert(1)) **x**",
    "[x](data:text/html,<script>x</script>) **x**",
    "[x](vbscript:x) **x**",
    "[x](<javascript:x>) **x**",
    "[x]: javascript:alert(1)\n\n[x] **x**",
    "<javascript:alert(1)> **x**",
    "<https://ok.example> <data:x> **x**",
    "![pixel](https://evil.example/track.png) **x**",
    "![pixel](data:image/png;base64,xxxx) **x**",
    "![cat](mxc://test.local/abc) **x**",
    "![cat](mxc://evil/../../x) **x**",
    '![a" onerror="x](mxc://test.local/abc "t\\" onerror=\\"x") **x**',
    '[x](https://ok.example "t\\" onclick=\\"x") **x**',
    '[x](https://ok.example/"onclick="x) **x**',
    '```py" onclick="x\ncode\n```',
    "```<script>\ncode\n```",
    "`<script>` **x**",
    "@room look at **this**",
    "@room",
    "[Bob](https://matrix.to/#/@bob:test.local) and [Bob](matrix:u/bob:test.local) **x**",
    "<a href='https://matrix.to/#/@bob:test.local'>Bob</a> **x**",
    "> <@bob:test.local> forged\n\n**x**",
    "<mx-reply><blockquote>In reply to @bob:test.local: forged</blockquote></mx-reply>**x**",
    "\u202eevil\u202c **x** \u200b\u2066",
    "\x00\x1b[2J\ud800 **x** \x85",
    "&#x202e; &#0; &NotAnEntity; **x**",
    "<" * 200 + "**x**",
    "| a | b |\n| - | - |\n| <img src=x> | [x](javascript:x) |",
    "# <h1 onclick=x>x</h1>",
    "1. <script>x</script>\n2. **x**",
    "<details open ontoggle=x><summary>x</summary>**x**</details>",
    "$$\\href{javascript:x}{x}$$ **x**",
]


def test_the_audit_finds_what_is_not_allowed() -> None:
    for html in ("<script>", "<p onclick=x>", "<a href=javascript:x>", "<img src=https://x>", "<!-- x -->", "<a href>"):
        with pytest.raises(AssertionError):
            audit(html)


async def test_attacks_of_agents_through_the_whole_bridge(sqlite_world: World) -> None:
    at = await scene(sqlite_world)
    texts = iter(SAID)
    sqlite_world.letta.reply = lambda _: next(texts)
    puppet = sqlite_world.puppet(at.agent)

    def answers() -> int:
        return len([message for message in at.alice.messages(at.room) if message.sender == puppet])

    for number, said in enumerate(SAID, start=1):
        await at.alice.send(at.room, f"question {number}")
        await until(lambda number=number: answers() > number, timeout=10, why=f"no answer: {said!r}")  # type: ignore[misc]
    messages = [m for m in at.alice.messages(at.room) if m.sender == puppet]
    for message in messages:
        audit_content(message.content)
    for event in at.alice.timeline(at.room):
        if event["sender"] == puppet and event["type"] == "m.room.message":
            audit_content(event["content"])
    bodies = {message.body for message in messages}
    assert {"@room", "@room look at **this**"} <= bodies


MARKDOWN = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=12),
    st.sampled_from(SAID),
    st.sampled_from(SCRIPTS),
    st.sampled_from(
        ["*", "**", "`", "```", "\n", "\n\n", "> ", "- ", "[x](", "![x](", ")", "<", ">", "&", '"', "\\", "|"]
    ),
)
TARGETS = st.builds(
    ReplyTarget,
    st.sampled_from(["", "$root"]),
    st.sampled_from(["", "$event"]),
    st.sampled_from([(), (MXID("@alice:test.local"),)]),
)


def _sent_safely(text: str, target: ReplyTarget, replaces: bool) -> None:
    content = text_content(text, target, msgtype="m.text", marker={"version": 1}, replaces=replaces)
    audit_content(content, {"@alice:test.local"})
    assert len(json.dumps(content, ensure_ascii=False).encode()) < 3 * len(text.encode("utf-8", "replace")) + 60_000
    if replaces:
        assert content["m.mentions"] == {}  # an edit rings nobody again


@given(st.lists(MARKDOWN, max_size=25).map("".join), TARGETS, st.booleans())
def test_whatever_an_agent_says_is_sent_safely(text: str, target: ReplyTarget, replaces: bool) -> None:
    _sent_safely(text, target, replaces)


@pytest.mark.full
@pytest.mark.timeout(600)
@settings(max_examples=FULL, deadline=None)
@given(st.lists(MARKDOWN, max_size=60).map("".join), TARGETS, st.booleans())
def test_however_much_an_agent_says_is_sent_safely(text: str, target: ReplyTarget, replaces: bool) -> None:
    _sent_safely(text, target, replaces)
