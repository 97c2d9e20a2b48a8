"""Which puppets a message means: by id always, by name only when nobody else can be meant."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letta_bridge.ids import MXID
from letta_bridge.routing.mentions import Addressing, Incoming, Puppet, addressed


def mxid(localpart: str) -> MXID:
    return MXID(f"@letta_{localpart}:example.org")


NAMES = {
    "scout": "Scout",
    "at": "@Ranger",
    "al": "Al",
    "bundy": "Al Bundy",
    "anna": "Анна",
    "ming": "小明",
    "katakana": "スカウト",
    "robot": "🤖",
    "woman": "👩",
    "cpp": "C++",
    "gpt": "gpt",
    "gpt4": "GPT-4",
    "jose": "José",
    "strasse": "Straße",
    "ten": "10",
    "types": "types",
    "smith": "Agent: Smith",
    "room": "@room",
    "everyone": "Everyone",
    "here": "here",
    "empty": "",
    "blank": " \t ",
    "invisible": "\u200b\u3164",
    "ats": "@@",
    "dots": "...",
}
PUPPETS = [Puppet(mxid(key), name) for key, name in NAMES.items()]


def decide(body: str, people: tuple[str, ...] = (), **more: object) -> Addressing:
    return addressed(Incoming(body, **more), PUPPETS, people)  # type: ignore[arg-type]


def woken(body: str, people: tuple[str, ...] = ()) -> list[str]:
    return [name.removeprefix("@letta_").removesuffix(":example.org") for name in decide(body, people).meant]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("@Scout", "scout"),
        ("hi @scout!", "scout"),
        ("hi @SCOUT, (@Al)", "scout al"),
        ("@Al then @Scout then @Al", "al scout"),
        ("(@Scout)", "scout"),
        ("@Scout's idea", "scout"),
        ("@Scout’s idea", "scout"),
        ("@Scout. Done", "scout"),
        ("@Scout: go", "scout"),
        ("@Scout/@Al", "scout"),
        ("@@Scout", "scout"),
        ("＠Ｓｃｏｕｔ go", "scout"),
        ("@Sc\u200bout\u202c go", "scout"),
        ("@Ranger go", "at"),
        ("@@ranger go", "at"),
        ("@Al Bundy hi", "bundy"),
        ("@al \u00a0 bundy hi", "bundy"),
        ("@Al\nBundy hi", "al"),
        ("@Al Bundyson", "al"),
        ("@GPT-4 hi", "gpt4"),
        ("@gpt hi", "gpt"),
        ("@jose\u0301 hi", "jose"),
        ("@STRASSE hi", "strasse"),
        ("@анна привет", "anna"),
        ("@АННА: привет", "anna"),
        ("@小明 你好", "ming"),
        ("@小明你好", "ming"),
        ("请问@小明，你好", "ming"),
        ("小明：你好", "ming"),
        ("@Scoutさん", "scout"),
        ("@スカウトさん", "katakana"),
        ("@🤖 hi", "robot"),
        ("@🤖hi", "robot"),
        ("👍@🤖", "robot"),
        ("@C++ hi", "cpp"),
        ("Scout: hi", "scout"),
        ("  scout : hi", "scout"),
        ("scout:hi", "scout"),
        ("Al Bundy: hi", "bundy"),
        ("Agent: Smith: hi", "smith"),
        ("Scout: ask @Al", "scout al"),
        ("@letta_scout:example.org hi", "scout"),
        ("ask @letta_scout:example.org.", "scout"),
        ("请@letta_scout:example.org看", "scout"),
        ("https://matrix.to/#/@letta_scout:example.org?via=x", "scout"),
        ("`code` @Scout `code`", "scout"),
        ("a lone ` and @Scout\n\nand another `", "scout"),
        (r"\`@Scout\`", "scout"),
        ("> ```\n> quoted\n@Scout", "scout"),
        ("```\ncode\n```\n@Scout", "scout"),
    ],
)
def test_means(body: str, expected: str) -> None:
    assert woken(body) == expected.split()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "Scout",
        "scout, hi",
        "hello Scout: hi",
        "@Scouts",
        "@Scout_2",
        "@Scout2",
        "@Sco",
        "@Alice",
        "@Alе",  # Cyrillic е
        "@Аннапурна",
        "@スカウトマン",
        "@👩\u200d🚀 hi",
        "@👩🏽 hi",
        "me@scout.example",
        "me@Scout",
        "@scout.example",
        "@scout:other.example hi",
        "@scout@social.example",
        "@types/node",
        "@al-bundy",
        "@O'Al",
        "https://example.org/@Scout",
        "https://example.org/?by=@Scout",
        "medium.example/@Scout/x",
        "@ Scout",
        "`@Scout`",
        "``x ` @Scout``",
        "```\n@Scout\n```",
        "```\n@Scout",
        "~~~\nScout: hi\n~~~",
        "- ```\n  @Scout\n  ```",
        "`x` Scout: hi",
        "10:30",
        "types://x",
        "scout::method",
        r"gpt:\windows",
        "@room hi",
        "@Room: hi",
        "room: hi",
        "@everyone @here @channel",
        "@ @@ @\u200b @...",
        "...: hi",
        ": hi",
        "`@letta_scout:example.org`",
        "@letta_scout:example.org.evil.example",
        "@letta_scout:example.org:8448",
        "@letta_scouts:example.org",
        "x@letta_scout:example.org",
        "@LETTA_SCOUT:example.org",
    ],
)
def test_means_nobody(body: str) -> None:
    assert woken(body) == []


def test_every_way_has_its_reason_and_the_surest_wins() -> None:
    pill = '<a href="https://matrix.to/#/%40letta_al%3Aexample.org">Al</a>'
    result = decide(
        "anna: @Scout @letta_cpp:example.org @gpt",
        mentions_user_ids=[mxid("ming"), "@alice:example.org", {"not": "an id"}],
        formatted_body=pill,
        reply_to_sender=mxid("robot"),
        thread_root_sender=mxid("scout"),
    )
    assert result.reasons == {
        mxid("ming"): "mention",
        mxid("al"): "pill",
        mxid("cpp"): "id",
        mxid("scout"): "name",
        mxid("gpt"): "name",
        mxid("robot"): "reply",
    }
    assert result.meant == tuple(result.reasons)
    assert decide("x", thread_root_sender=mxid("al")).reasons == {mxid("al"): "thread"}


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<a href="https://matrix.to/#/@letta_al:example.org">x</a>', "al"),
        ('<a href="HTTPS://matrix.to/#/@letta_al:example.org?via=example.org">x</a>', "al"),
        ('<a href="matrix:u/letta_al:example.org?action=chat">x</a>', "al"),
        ('<p><b><a href="https://matrix.to/#/@letta_al:example.org">x', "al"),
        ('<code><a href="https://matrix.to/#/@letta_al:example.org">x</a></code>', ""),
        ('<pre><code><a href="https://matrix.to/#/@letta_al:example.org">x</a></code></pre>', ""),
        ('<mx-reply><a href="https://matrix.to/#/@letta_al:example.org">x</a></mx-reply>', ""),
        ('<a href="https://matrix.to.evil.example/#/@letta_al:example.org">x</a>', ""),
        ('<a href="https://evil.example/?https://matrix.to/#/@letta_al:example.org">x</a>', ""),
        ('<a href="https://matrix.to/#/!room:x/$event">x</a>', ""),
        ("<a href='https://matrix.to/#/@letta_al:example.org" + "x" * 70_000 + "'>x</a>", ""),
    ],
)
def test_pills(html: str, expected: str) -> None:
    meant = decide("x", formatted_body=html).meant
    assert meant == ((mxid(expected),) if expected else ())


def test_a_shared_name_wakes_nobody_and_is_reported() -> None:
    twins = [Puppet(mxid("one"), "Twin"), Puppet(mxid("two"), "@TWIN")]
    result = addressed(Incoming("@twin, and Twin"), twins, [])
    assert (result.meant, result.ambiguous) == ((), ("Twin",))
    assert addressed(Incoming("twin: hi"), twins, []).ambiguous == ("Twin",)
    by_id = addressed(Incoming("@Twin hi", mentions_user_ids=[mxid("two")]), twins, [])
    assert (by_id.meant, by_id.ambiguous) == ((mxid("two"),), ())


def test_a_name_that_a_person_bears_too_wakes_nobody_and_is_reported() -> None:
    result = decide("@Scout hi", ("ｓｃｏｕｔ", "Bob"))
    assert (result.meant, result.ambiguous) == ((), ("Scout",))
    assert decide("@letta_scout:example.org", ("scout",)).meant == (mxid("scout"),)


def test_a_longer_name_of_a_person_is_meant_instead() -> None:
    result = decide("@Al Pacino hi", ("Al Pacino",))
    assert (result.meant, result.ambiguous) == ((), ())
    assert decide("Scout: the movie: is good", ("Scout: the movie",)).meant == ()


def test_one_puppet_given_twice_is_not_ambiguous() -> None:
    result = addressed(Incoming("@Scout"), [PUPPETS[0], PUPPETS[0]], [])
    assert result.meant == (mxid("scout"),)


FRAGMENTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from([*NAMES.values(), "@", ":", " ", "\n", "`", "```", "https://", "/", "'s", "\ud800", "\u0301"]),
)


@given(st.lists(FRAGMENTS, max_size=30).map("".join), st.lists(FRAGMENTS, max_size=5), FRAGMENTS)
def test_hostile_values_mean_only_puppets_of_the_room(body: str, people: list[str], html: str) -> None:
    message = Incoming(body, html, [body], MXID(body), MXID(html))
    result = addressed(message, PUPPETS, people)
    assert set(result.meant) == set(result.reasons) <= {puppet.mxid for puppet in PUPPETS}
    nameless = {mxid(key) for key in ("room", "everyone", "here", "empty", "blank", "invisible", "ats", "dots")}
    assert not nameless & set(result.meant)


@given(st.text(max_size=30), st.text(max_size=30))
def test_without_at_colon_or_id_nobody_is_meant(name: str, body: str) -> None:
    body = "".join(character for character in body if character not in "@:＠：﹫﹕︓")
    assert addressed(Incoming(body), [Puppet(mxid("x"), name)], []).meant == ()


@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20))
def test_any_name_of_letters_can_be_spoken_to(name: str) -> None:
    result = addressed(Incoming(f"well, @{name} hello"), [Puppet(mxid("x"), name)], [])
    assert (
        result.meant == (mxid("x"),) or name.casefold() in ("room", "everyone", "here", "channel") or not name.isalnum()
    )


@pytest.mark.parametrize(
    "unit",
    [
        *("@", "@a", " @al", "`", "a`b``", ":", "- ", "> ", "\n", "```\n", "a://", "h" * 15, " @" + "b" * 200),
        *("@letta_scout:example.org", "@x:" + "a." * 20, "a\u0301\u0323", "\u0301\u0323", "\ufdfa"),
    ],
)
def test_time_is_linear(unit: str) -> None:
    body = (unit * (65_536 // len(unit)))[:65_536]
    crowd = [Puppet(mxid(str(n)), "b" * (n % 250 + 1)) for n in range(500)]
    people = [f"Person {n}" for n in range(5_000)]
    started = time.process_time()
    addressed(Incoming(body, body), crowd, people)
    assert time.process_time() - started < 2
