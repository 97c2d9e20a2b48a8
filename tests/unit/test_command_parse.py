"""From what somebody writes to a command: whatever it is, it is understood or answered, and nothing else happens."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from letta_bridge.commands import lookup, parse
from letta_bridge.commands.call import Call
from letta_bridge.commands.groups import TABLE
from letta_bridge.commands.table import Arg, Command, CommandError, Need, Option, Reply, Table
from letta_bridge.db.agents import AgentRow
from letta_bridge.ids import MXID, AgentID

BOT = MXID("@lettabridge:test.local")


async def _nothing(_: Call) -> Reply:
    return Reply("")


def command(name: str, *args: Arg, options: tuple[Option, ...] = ()) -> Command:
    return Command(name, "does something", Need.USER, _nothing, "Group", args, options, examples=(f"{name} x",))


TRY = Table(
    (
        command("help", Arg("command", "command", "which", required=False)),
        command("make", Arg("name", "text", "its name"), Arg("note", "text", "a note", required=False, rest=True)),
        command("room create", Arg("agent", "agent", "which", required=True)),
        command(
            "set",
            Arg("level", "choice", "how much", choices=("user", "admin")),
            Arg("days", "number", "how long", required=False),
            options=(Option("persona", "who"), Option("now", "at once", switch=True), Option("confirm", "typed")),
        ),
    )
)


def read(text: str, table: Table = TRY) -> parse.Given:
    found, rest = parse.find(table, parse.of_text(text))
    return parse.read(found, rest, table)


def refused(text: str) -> str:
    with pytest.raises(CommandError) as caught:
        read(text)
    return str(caught.value)


def test_words_options_and_switches() -> None:
    assert read("set admin").values == {"level": "admin", "days": None, "persona": None, "now": False, "confirm": None}
    assert read("set USER 3 --now").values["days"] == 3
    assert read("set user --persona=short").values["persona"] == "short"
    assert read('set user --persona="I am it" --now').values["persona"] == "I am it"
    assert read("set user --persona 'I am it'").values["persona"] == "I am it"
    assert read("set --persona “curly „quotes” user").values["persona"] == "curly „quotes"
    assert read("set user —persona x").values["persona"] == "x", "phones make one dash of two"
    assert read("SET User").command.name == "set"
    assert read("room create Ada Lovelace").values["agent"] == "Ada Lovelace"
    assert read("set user --confirm 4f2a my deployment --now").values["confirm"] == "4f2a my deployment --now"


def test_a_text_to_the_end_is_as_it_was_written() -> None:
    assert read("make Bob it's  *his*\n turn, isn't it").values["note"] == "it's  *his*\n turn, isn't it"
    assert read('make "Bob B" "all of it"').values == {"name": "Bob B", "note": "all of it"}
    assert read("make don't").values["name"] == "don't"
    assert read("make x we go --on").values["note"] == "we go --on"
    assert read("make -- --on").values["name"] == "--on"
    assert read("make `--help`").values["name"] == "--help"


def test_links_and_pills_are_what_they_link_to() -> None:
    pill = "[Ada [x\\]](https://matrix.to/#/%40letta_1%3Atest.local)"
    assert read("room create [Ada B](https://matrix.to/#/@letta_1:test.local)").values["agent"] == "@letta_1:test.local"
    assert parse.of_text(pill.replace("[x\\]", "x")).words[0].text == "@letta_1:test.local"
    assert parse.linked("matrix:roomid/abc:test.local?via=x") == "!abc:test.local"
    assert parse.linked("https://matrix.to/#/!abc?via=test.local") == "!abc"
    assert parse.linked("https://example.org/#/@a:b") == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sett user", "Did you mean `set`?"),
        ("room", "Did you mean `room create`?"),
        ("set usr", "Did you mean `user`?"),
        ("set user x", "is no number"),
        ("set", "needs one of `user`, `admin`"),
        ("set user 1 2", "`2` is too much"),
        ("set user --personna x", "Did you mean `--persona`?"),
        ("set user --persona", "needs a value"),
        ("set user --persona --now", "needs a value"),
        ("set user --now=1", "takes no value"),
        ("make", "needs <name> (its name)"),
        ('make "open', "is not closed"),
        ("help nothing", "There is no command `nothing`"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(text: str, said: str) -> None:
    assert said in refused(text)


def test_usage_and_an_example_come_with_it() -> None:
    text = refused("set user 1 2")
    assert "Usage: `set <user|admin> [days] [--persona PERSONA] [--now] [--confirm CONFIRM]`" in text
    assert "For example: `set x`" in text


def test_help_is_asked_for_anywhere() -> None:
    assert read("set user --help").help
    assert read("--help").command.name == "help"
    assert read("").command.name == "help"
    assert read("/help").command.name == "help"
    assert read("help room create").values["command"].name == "room create"


@pytest.mark.parametrize(
    "text",
    [
        "!letta status",
        "!LETTA  status",
        "`!letta status`",
        "status",
        "@lettabridge:test.local: status",
        "@lettabridge:test.local status",
        "Letta Bridge: status",
        "lettabridge, status",
        "[Letta Bridge](https://matrix.to/#/@lettabridge:test.local): status",
        "[Letta Bridge](https://matrix.to/#/@lettabridge:test.local) !letta status",
    ],
)
def test_whom_it_is_for_is_taken_off(text: str) -> None:
    assert parse.without_address(text, BOT, "Letta Bridge") == "status"


def test_what_begins_a_command_anywhere() -> None:
    assert parse.begins("!letta")
    assert parse.begins("  !Letta help")
    assert parse.begins("`!letta help`")
    assert not parse.begins("!lettasomething")
    assert not parse.begins("say !letta")
    assert not parse.begins("")


WORDS = st.sampled_from(
    ["set", "make", "help", "room", "create", "user", "--now", "--persona", "“", '"', "'", "`", "—"]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=12).map(" ".join)))
def test_no_text_raises_anything_else(text: str) -> None:
    for table in (TRY, TABLE):
        try:
            line = parse.of_text(parse.without_address(text, BOT, "Letta Bridge"))
            found, rest = parse.find(table, line)
            first = parse.read(found, rest, table)
            assert parse.read(found, rest, table) == first
        except CommandError as error:
            assert str(error).strip()


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters='"“”„«»'), min_size=1, max_size=60))
def test_what_stands_in_quotes_comes_out_as_it_is(text: str) -> None:
    assert read(f'make "{text}"').values["name"] == text
    assert read(f"make x --- “{text}”").values["note"].endswith(f"“{text}”")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=6))
def test_words_of_a_shell_stay_words(words: list[str]) -> None:
    assert [word.text for word in parse.of_words(words).words] == words


@pytest.mark.parametrize("piece", ["‘a ", "'a ", "[a ", "`a ", "a ", "--now ", "—a ", "[a](b) ", "\\ ", '"" ', "=' "])
def test_the_longest_message_is_read_in_a_moment(piece: str) -> None:
    text = "make x " + piece * (65_000 // len(piece))
    begun = time.process_time()
    with contextlib.suppress(CommandError):
        read(text)
    assert time.process_time() - begun < 1.0


# -- agents by name


def agent(number: int, name: str, state: str = "active") -> AgentRow:
    uuid = f"{number:08d}-0000-4000-8000-000000000000"
    return AgentRow(
        AgentID(f"agent-{uuid}"), MXID(f"@letta_{uuid}:test.local"), "", name, "", "", state, True, name, True, None,
        "", None, None, None, False, "", "",
    )  # fmt: skip


ADA, ADAM, TWIN, OTHER = agent(1, "Ada"), agent(2, "Adam Smith"), agent(3, "Twin"), agent(4, "twin")
OLD = agent(5, "Ada", "archived")
ROWS = [ADA, ADAM, TWIN, OTHER, OLD]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("ada", ADA),
        ("ADAM  smith", ADAM),
        ("adam", ADAM),
        (str(TWIN.agent_id), TWIN),
        (str(OTHER.mxid), OTHER),
        ("#" + OTHER.mxid[1:], OTHER),
        (str(OLD.agent_id), OLD),
        ("agent-00000002", ADAM),
    ],
)
def test_an_agent_is_found(text: str, row: AgentRow) -> None:
    assert lookup.choose(ROWS, text) is row


@pytest.mark.parametrize(
    ("names", "typed"),
    [
        (("Ada",), "Ada"),
        (("Ada", "Adam"), "Ada"),
        (("Night watch", "Ada"), '"Night watch"'),
        (("Ada", "ada"), ""),
        (("all",), ""),
        (("here",), ""),
        (("--x",), ""),
        (("",), ""),
        (('a "b"',), ""),
    ],
)
def test_hints_name_an_agent_as_people_do_where_that_is_enough(names: tuple[str, ...], typed: str) -> None:
    rows = [agent(number, name) for number, name in enumerate(names)]
    assert lookup.handle(rows, rows[0]) == (typed or rows[0].agent_id)


def test_several_agents_are_listed_with_their_ids() -> None:
    with pytest.raises(CommandError) as caught:
        lookup.choose(ROWS, "twin")
    assert str(TWIN.agent_id) in str(caught.value)
    assert str(OTHER.agent_id) in str(caught.value)


def test_no_agent_is_said_with_what_is_like_it() -> None:
    with pytest.raises(CommandError, match="Did you mean `Adam Smith`"):
        lookup.choose(ROWS, "Adem Smith")
    with pytest.raises(CommandError, match="no agents yet"):
        lookup.choose([], "x")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_name_raises_anything_else(text: str) -> None:
    for look in (lambda: lookup.choose(ROWS, text), lambda: lookup.user(text, "test.local")):
        try:
            look()
        except CommandError as error:
            assert str(error).strip()


def test_a_person_is_a_full_id_or_a_link() -> None:
    assert lookup.user("@alice:test.local", "x") == "@alice:test.local"
    assert lookup.user("https://matrix.to/#/@alice:test.local", "x") == "@alice:test.local"
    with pytest.raises(CommandError, match=r"@alice:home\.test"):
        lookup.user("Alice", "home.test")


def test_a_slip_among_thousands_of_long_names_costs_little() -> None:
    long = "the same beginning of every name " * 7
    names = [f"{long}{number}" for number in range(5000)]
    begun = time.process_time()
    parse.did_you_mean(long.replace("b", "p"), names)
    assert time.process_time() - begun < 1.0
    assert parse.similar("Agnt 12", [f"Agent {number}" for number in range(5000)])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`resume !room` ends it.", "`!letta resume !room` ends it."),
        ("Usage: `permissions grant <who>`", "Usage: `!letta permissions grant <who>`"),
        ("`help` and `!letta help`, `!stop`, `<agent>`", "`!letta help` and `!letta help`, `!stop`, `<agent>`"),
        ('`permissions: "*": user`, `helpful`, help', '`permissions: "*": user`, `helpful`, help'),
    ],
)
def test_what_an_answer_names_can_be_copied_where_commands_need_the_prefix(text: str, shown: str) -> None:
    assert parse.prefixed(text, TABLE) == shown
