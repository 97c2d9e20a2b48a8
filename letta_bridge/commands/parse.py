"""From what somebody wrote to a command and what it was given. Pure; raises nothing but CommandError."""

import difflib
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from ..ids import MXID
from .table import Arg, Command, CommandError, Option, Table

PREFIX = "!letta"
_QUOTES = {'"': '"', "“": "”", "”": "”", "„": "“”", "«": "»", "'": "'", "‘": "’", "’": "’", "`": "`"}
"""What opens a quote, and what may close it. Phones write “curly” ones by themselves."""
_CLOSERS = frozenset("".join(_QUOTES.values()))
_MUST_CLOSE = frozenset('"“„«')
_DASHES = ("--", "—", "–-", "––")
"""What begins an option: phones make one long dash of two short ones."""
_LINK = re.compile(r"\[(?P<label>(?:[^\[\]\\]|\\.)*)\]\((?P<url>[^()\s]+)\)")
_MATRIX_TO = re.compile(r"https?://matrix\.to/#/(?P<id>[^/?#\s]+)", re.I)
_MATRIX_URI = re.compile(r"matrix:(?P<kind>u|user|r|room|roomid)/(?P<id>[^/?#\s]+)", re.I)
_SIGILS = {"u": "@", "user": "@", "r": "#", "room": "#", "roomid": "!"}
_LONGEST = 60
_COMPARED = 500
_SURE = 0.75
"""How like a misspelt choice must be: all of them are listed anyway, and a wrong one does something else."""
ENDLESS = "confirm"
"""The option that takes everything behind it: what somebody types to confirm may have blanks."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word. ``start`` and ``end`` are its place in the text; what was quoted is never an option."""

    text: str
    start: int
    end: int
    quoted: bool = False

    @property
    def option(self) -> str:
        """What follows the dashes; empty when it is no option."""
        if not self.quoted:
            for dash in _DASHES:
                if self.text.startswith(dash) and self.text[len(dash) : len(dash) + 1].isalpha():
                    return self.text[len(dash) :]
        return ""


@dataclass(frozen=True, slots=True)
class Line:
    """What was written, and its words."""

    text: str
    words: tuple[Word, ...]

    def between(self, words: Sequence[Word]) -> str:
        """These words (which follow one another) as they were written; one that is quoted alone without its quotes."""
        if len(words) == 1:
            return words[0].text
        return self.text[words[0].start : words[-1].end] if words else ""


@dataclass(frozen=True, slots=True)
class Given:
    """A command and what it was given: texts, numbers and switches; agents, rooms and people are not looked up yet."""

    command: Command
    values: Mapping[str, Any] = field(default_factory=dict)
    help: bool = False


def begins(text: str) -> bool:
    """Whether a message is a command wherever it is said: its first word is ``!letta``."""
    first = text.lstrip(" \t\r\n`").split(maxsplit=1)[:1]
    return bool(first) and first[0].rstrip("`").casefold() == PREFIX


def prefixed(text: str, table: Table) -> str:
    """An answer in a room where commands need ``!letta``: what it names can be copied as it stands there."""
    names = "|".join(sorted(map(re.escape, table.names), key=len, reverse=True))
    return re.sub(rf"(?<!`)`(?=(?:{names})(?: [^`\n]*)?`(?!`))", f"`{PREFIX} ", text)


def without_address(text: str, bot: MXID, bot_name: str) -> str:
    """The text without ``!letta``, or without the name or the pill of the bot that it begins with."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "`" and "\n" not in text:
        text = text.strip("`").strip()
    if match := _LINK.match(text):
        if linked(match["url"]) == bot:
            text = text[match.end() :].lstrip(" \t\n:,")
    else:
        for name in (bot, "@" + bot_name, bot_name, bot[1:].partition(":")[0]):
            rest = text[len(name) :]
            if name and text.casefold().startswith(name.casefold()) and rest[:1] in (":", ",", ""):
                text = rest.lstrip(" \t\n:,")
                break
            if name.startswith("@") and text.startswith(name) and rest[:1].isspace():
                text = rest.strip()
                break
    first = text.split(maxsplit=1)[:1]
    return text[len(PREFIX) :].strip() if first and first[0].casefold() == PREFIX else text


def linked(url: str) -> str:
    """The Matrix id that a matrix.to or ``matrix:`` link names; empty when it names none."""
    if match := _MATRIX_TO.match(url):
        return unquote(match["id"])
    if match := _MATRIX_URI.match(url):
        return _SIGILS[match["kind"].lower()] + unquote(match["id"])
    return ""


# -- words


def of_text(text: str) -> Line:
    """The words of a message.

    Raises:
        CommandError: a quotation mark is not closed.
    """
    words: list[Word] = []
    last = {closer: text.rfind(closer) for closer in _CLOSERS}
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        word = _word(text, at, last)
        words.append(word)
        at = word.end
    return Line(text, tuple(words))


def of_words(words: Iterable[str]) -> Line:
    """The words of a command line, which a shell has separated."""
    made: list[Word] = []
    text = ""
    for word in words:
        start = len(text) + bool(made)
        text += " " * bool(made) + word
        made.append(Word(word, start, len(text)))
    return Line(text, tuple(made))


def _word(text: str, start: int, last: Mapping[str, int]) -> Word:
    if match := _LINK.match(text, start):
        return Word(linked(match["url"]) or match["label"], start, match.end(), True)
    if closed := _quoted(text, start, last):
        return Word(text[start + 1 : closed - 1], start, closed, True)
    at = start
    while at < len(text) and not text[at].isspace():
        if text[at] == "=" and text.startswith(_DASHES, start) and (closed := _quoted(text, at + 1, last)):
            return Word(text[start : at + 1] + text[at + 2 : closed - 1], start, closed)
        at += 1
    return Word(text[start:at], start, at)


def _quoted(text: str, start: int, last: Mapping[str, int]) -> int:
    """Where the quote that begins at ``start`` has ended; 0 when none begins there. ``last``: where each closing mark
    stands for the last time, so that a long text is not searched again for each of its words.
    """
    closers = _QUOTES.get(text[start : start + 1])
    if closers is None:
        return 0
    ends = [text.index(closer, start + 1) for closer in closers if last[closer] > start]
    if not ends and text[start] in "“„" and last['"'] > start:  # opened on a phone, closed on a keyboard
        ends = [text.index('"', start + 1)]
    if ends:
        return min(ends) + 1
    if text[start] in _MUST_CLOSE:
        raise CommandError(f"A quotation mark is not closed: {shown(text[start:])}")
    return 0  # an apostrophe


def shown(text: str) -> str:
    """Somebody's words as code, short and harmless."""
    text = " ".join(text.replace("`", "'").split())
    return f"`{text if len(text) <= _LONGEST else text[:_LONGEST] + '…'}`"


def similar(word: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    """What somebody may have meant instead of ``word``, likeliest first, at most three."""
    by_key: dict[str, str] = {}
    for name in known:
        by_key.setdefault(name[:_LONGEST].casefold(), name)
    key = word[:_LONGEST].casefold()
    compared = list(by_key)
    if len(compared) > _COMPARED:  # comparing takes its time, and somebody can ask for it as often as they like
        compared = [name for name in compared if name[:1] == key[:1]][:_COMPARED]
    close = difflib.get_close_matches(key, compared, n=3, cutoff=likeness)
    begun = [name for name in by_key if len(key) > 1 and name.startswith(key) and name not in close]
    return [by_key[name] for name in (*close, *sorted(begun))[:3]]


def did_you_mean(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """`` Did you mean …?``, or nothing. ``likeness`` is from 0 to 1."""
    names = [shown(name) for name in similar(word, known, likeness)]
    return f" Did you mean {' or '.join(names)}?" if names else ""


# -- the command


def find(table: Table, line: Line) -> tuple[Command, Line]:
    """The command that the line begins with, and the line behind it. An empty line is ``help``.

    Raises:
        CommandError: there is none; says what is like it.
    """
    texts = [word.text for word in line.words]
    if not texts or line.words[0].option == "help":
        command = table.named("help")
        assert command is not None, "every table has help"
        return command, Line(line.text, ())
    texts[0] = texts[0].lstrip("!/") or texts[0]
    found = table.find(texts)
    if found is None:
        names = [*table.names, *_longer(table, texts[0])]
        meant = did_you_mean(" ".join(texts[:2]), names) or did_you_mean(texts[0], names)
        raise CommandError(f"There is no command {shown(texts[0])}.{meant} `help` lists what you can do here.")
    command, rest = found
    return command, Line(line.text, line.words[len(line.words) - len(rest) :])


def _longer(table: Table, word: str) -> list[str]:
    """Names of two words whose first is this one."""
    return [name for name in table.names if name.split()[0] == word.casefold()]


def read(command: Command, line: Line, table: Table) -> Given:
    """What a command was given; ``line`` is what followed its name.

    Raises:
        CommandError: it cannot be used so; says how.
    """
    if any(word.option == "help" for word in line.words):
        return Given(command, {}, True)
    options = {option.name: option for option in command.options}
    values: dict[str, Any] = {name: False if option.switch else None for name, option in options.items()}
    left = _options(command, options, line, values)
    _positional(command, line, left, values)
    for thing in things(command):
        if isinstance(values.get(thing.name), str):
            values[thing.name] = _typed(command, thing, values[thing.name], table)
    return Given(command, values)


def things(command: Command) -> list[Arg | Option]:
    """Everything that it takes."""
    return [*command.args, *command.options]


def _options(command: Command, options: Mapping[str, Option], line: Line, values: dict[str, Any]) -> list[Word]:
    """Take the options out; what is left are the arguments."""
    left: list[Word] = []
    words = deque(line.words)
    only_text = command.args[-1].rest if command.args else False
    while words:
        word = words.popleft()
        if not word.quoted and word.text == "--":
            return [*left, *words]
        if not word.option:
            left.append(word)
            continue
        name, has_value, value = word.option.partition("=")
        option = options.get(name.casefold())
        if option is None:
            if only_text and len(left) >= len(command.args):  # a dash within a text
                left.append(word)
                continue
            meant = did_you_mean(f"--{name}", (f"--{known}" for known in options))
            raise _wrong(command, f"There is no option {shown('--' + name)}.{meant}")
        if option.switch:
            if has_value:
                raise _wrong(command, f"`--{option.name}` takes no value.")
            values[option.name] = True
        elif option.name == ENDLESS:
            behind = " ".join(word.text for word in words)
            values[option.name] = f"{value} {behind}".strip() if has_value else behind
            return left
        else:
            if not has_value:
                if not words or words[0].option:
                    raise _wrong(command, f"`--{option.name}` needs a value.")
                value = words.popleft().text
            values[option.name] = value
    return left


def _positional(command: Command, line: Line, words: list[Word], values: dict[str, Any]) -> None:
    for index, arg in enumerate(command.args):
        values[arg.name] = None
        if not words:
            if arg.required:
                raise _wrong(command, f"`{command.name}` needs {_what(arg)}.")
            continue
        last = index == len(command.args) - 1
        if arg.rest or (last and len(words) > 1 and arg.kind in ("agent", "room", "command")):  # names have blanks
            taken, words[:] = list(words), []
            values[arg.name] = _joined(line, taken)
        else:
            values[arg.name] = words.pop(0).text
    if words:
        raise _wrong(command, f"{shown(words[0].text)} is too much.")


def _joined(line: Line, words: list[Word]) -> str:
    """As it was written where nothing was taken out of it."""
    inside = [word for word in line.words if words[0].start <= word.start <= words[-1].start]
    return line.between(words) if inside == words else " ".join(word.text for word in words)


def _what(arg: Arg) -> str:
    if arg.kind == "choice":
        return "one of " + ", ".join(f"`{choice}`" for choice in arg.choices)
    return f"<{arg.name}> ({arg.help})"


def _typed(command: Command, thing: Arg | Option, text: str, table: Table) -> Any:
    if thing.kind == "number":
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
            raise _wrong(command, f"{shown(text)} is no number (for {thing.name}).")
        return int(text)
    if thing.kind == "choice":
        for choice in thing.choices:
            if choice.casefold() == text.casefold():
                return choice
        known = ", ".join(f"`{choice}`" for choice in thing.choices)
        raise _wrong(command, f"{shown(text)} is none of {known}.{did_you_mean(text, thing.choices, _SURE)}")
    if thing.kind == "command":
        return find(table, of_words(text.split()))[0]
    if not text.strip() and thing.kind != "text":
        raise _wrong(command, f"{thing.name} is empty.")
    return text


def _wrong(command: Command, why: str) -> CommandError:
    """How it is used, with an example."""
    told = command.examples and command.examples[0] != command.usage
    example = f" For example: `{command.examples[0]}`." if told else ""
    return CommandError(f"{why} Usage: `{command.usage}`.{example} `help {command.name}` says more.")
