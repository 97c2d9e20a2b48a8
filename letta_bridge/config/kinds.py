"""The kinds of value a key of the configuration can have: how each is recognised, and its words."""

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ..routing.permissions import EVERYBODY, Level

PLACEHOLDER = "CHANGE-ME"
EXAMPLE_DOMAIN = "example.com"
_NO_EXAMPLE = "your own value instead of the example's"

_SERVER_NAME = re.compile(r"(?:[A-Za-z0-9.-]{1,230}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")
_MXID = re.compile(r"@[\x21-\x39\x3b-\x7e]+:(?P<domain>.+)\Z")
_LOCALPART = re.compile(r"[a-z0-9._=/+-]+\Z")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong value: what was expected, what was found, and where below the key (map key or list index)."""

    expected: str
    found: object
    at: tuple[str | int, ...] = ()


class WrongValueError(ValueError):
    """A value is not of its kind; ``faults`` says everything that is wrong with it."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("; ".join(fault.expected for fault in faults))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value. ``expects`` completes the sentence "expected …"; ``literal`` means that an environment
    variable is taken as it stands instead of being read as YAML.
    """

    expects: str

    @property
    def literal(self) -> bool:
        """Whether the text of an environment variable is the value itself."""
        return False

    def parse(self, value: object) -> Any:
        """The value as the code uses it. Raises :class:`WrongValueError`."""
        raise NotImplementedError

    def wrong(self, value: object, expected: str = "") -> WrongValueError:
        """The error for ``value``, in this kind's words unless ``expected`` has better ones."""
        return WrongValueError(Fault(expected or self.expects, value))


def is_example(text: str) -> bool:
    """Whether ``text`` was copied from the example file and means nothing here."""
    if PLACEHOLDER in text:
        return True
    authority = text.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
    return any(part == EXAMPLE_DOMAIN or part.endswith("." + EXAMPLE_DOMAIN) for part in authority.split(":"))


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """A piece of text. ``pattern`` has to match all of it; empty text counts as none where ``optional``."""

    pattern: re.Pattern[str] | None = None
    optional: bool = False

    @property
    def literal(self) -> bool:
        return True

    def parse(self, value: object) -> str | None:
        if self.optional and value in (None, ""):
            return None
        if not isinstance(value, str) or not value:
            raise self.wrong(value)
        if is_example(value):
            raise self.wrong(value, _NO_EXAMPLE)
        if self.pattern and not self.pattern.match(value):
            raise self.wrong(value)
        return self.check(value)

    def check(self, value: str) -> str:
        """Whatever the pattern cannot say; returns the value in its normal form."""
        return value


@dataclass(frozen=True, slots=True)
class Url(Text):
    """A web address without a trailing slash. ``never_ends`` are paths that people append by mistake."""

    never_ends: tuple[str, ...] = ()

    def check(self, value: str) -> str:
        parts = _split(value)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise self.wrong(value)
        if re.search(r"\s", value):
            raise self.wrong(value)
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise self.wrong(value, f"{self.expects}, without a user name, '?' or '#'")
        plain = value.rstrip("/")
        for ending in self.never_ends:
            if plain.endswith(ending):
                raise self.wrong(value, f"{self.expects}, without {ending} at its end")
        return plain


def _split(value: str) -> SplitResult | None:
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises when it is no number or out of range
    except ValueError:
        return None
    return parts


@dataclass(frozen=True, slots=True)
class ServerName(Text):
    """The part of a Matrix id behind the colon."""

    def check(self, value: str) -> str:
        if "://" in value:
            raise self.wrong(value, f"{self.expects}, without http:// or https://")
        if not _SERVER_NAME.match(value):
            raise self.wrong(value)
        return value


@dataclass(frozen=True, slots=True)
class MatrixId(Text):
    """A full Matrix user id."""

    def check(self, value: str) -> str:
        match = _MXID.match(value)
        if not match or not _SERVER_NAME.match(match["domain"]) or len(value.encode()) > 255:
            raise self.wrong(value)
        return value


@dataclass(frozen=True, slots=True)
class SenderGlob(Text):
    """A pattern over full Matrix ids."""

    def check(self, value: str) -> str:
        if not re.match(r"@[^\s:]*:[^\s]+\Z", value):
            raise self.wrong(value)
        return value


@dataclass(frozen=True, slots=True)
class Host(Text):
    """An IP address or a host name."""

    def check(self, value: str) -> str:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            if not _HOST.match(value):
                raise self.wrong(value) from None
        return value


@dataclass(frozen=True, slots=True)
class DatabaseUri(Text):
    """Where the bridge keeps its state."""

    def check(self, value: str) -> str:
        if value.startswith("sqlite://"):
            raise self.wrong(value, "sqlite:file.db or sqlite:/absolute/path.db, without '//' behind sqlite:")
        if value.startswith("sqlite:") and len(value) > len("sqlite:") and ":memory:" not in value:
            return value
        parts = _split(value)
        if parts and parts.scheme in ("postgresql", "postgres") and parts.path.strip("/"):
            return value
        raise self.wrong(value)


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A number within limits. ``whole`` allows no fraction; ``above`` excludes the lower limit itself."""

    minimum: float = 0
    maximum: float = math.inf
    whole: bool = False
    above: bool = False

    def parse(self, value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(value)
        if self.whole and not isinstance(value, int):
            raise self.wrong(value)
        if value < self.minimum or value > self.maximum or (self.above and value == self.minimum):
            raise self.wrong(value)
        return value if self.whole else float(value)


@dataclass(frozen=True, slots=True)
class Switch(Kind):
    """true or false."""

    def parse(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise self.wrong(value)
        return value


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words."""

    words: tuple[str, ...] = ()
    optional: bool = False

    @property
    def literal(self) -> bool:
        return True

    def parse(self, value: object) -> str | None:
        if self.optional and value in (None, ""):
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value not in self.words:
            raise self.wrong(value)
        return str(value)


@dataclass(frozen=True, slots=True)
class ListOf(Kind):
    """A list of values of one kind."""

    item: Kind = Kind("")

    def parse(self, value: object) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise self.wrong(value)
        parsed: list[Any] = []
        faults: list[Fault] = []
        for index, element in enumerate(value):
            try:
                parsed.append(self.item.parse(element))
            except WrongValueError as error:
                faults += [Fault(fault.expected, fault.found, (index, *fault.at)) for fault in error.faults]
        if faults:
            raise WrongValueError(*faults)
        return tuple(dict.fromkeys(parsed))


_LEVELS = {level.name.lower(): level for level in Level}


@dataclass(frozen=True, slots=True)
class PermissionTable(Kind):
    """``*``, a domain, or a full Matrix id, and its level."""

    def parse(self, value: object) -> dict[str, Level]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(value)
        table: dict[str, Level] = {}
        faults: list[Fault] = []
        for who, level in value.items():
            if fault := _who_fault(who):
                faults.append(fault)
            elif isinstance(level, Level):
                table[who] = level
            elif isinstance(level, str) and level in _LEVELS:
                table[who] = _LEVELS[level]
            else:
                faults.append(Fault('one of "user", "admin", "none"', level, (str(who),)))
        if faults:
            raise WrongValueError(*faults)
        return table


@dataclass(frozen=True, slots=True)
class Template:
    """A preset for new agents. ``traits`` are names with numbers from 0 to 1 (such as the five of personality)."""

    persona: str = ""
    human: str = ""
    description: str = ""
    model: str = ""
    tags: tuple[str, ...] = ()
    traits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TemplateTable(Kind):
    """Templates by name."""

    def parse(self, value: object) -> dict[str, Template]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(value)
        table: dict[str, Template] = {}
        faults: list[Fault] = []
        for name, entry in value.items():
            try:
                table[str(NAME.parse(name))] = entry if isinstance(entry, Template) else _template(entry)
            except WrongValueError as error:
                faults += [Fault(fault.expected, fault.found, (str(name), *fault.at)) for fault in error.faults]
        if faults:
            raise WrongValueError(*faults)
        return table


def _template(entry: object) -> Template:
    if not isinstance(entry, Mapping):
        raise WrongValueError(Fault("persona, human, description, model, tags and traits", entry))
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in entry.items():
        kind = _TEMPLATE_KEYS.get(str(key))
        if kind is None:
            faults.append(Fault(f"one of {', '.join(_TEMPLATE_KEYS)}", key, (str(key),)))
            continue
        try:
            values[str(key)] = kind.parse(value)
        except WrongValueError as error:
            faults += [Fault(fault.expected, fault.found, (str(key), *fault.at)) for fault in error.faults]
    if faults:
        raise WrongValueError(*faults)
    return Template(**values)


@dataclass(frozen=True, slots=True)
class Traits(Kind):
    """Names with numbers from 0 to 1."""

    def parse(self, value: object) -> dict[str, float]:
        if not isinstance(value, Mapping):
            raise self.wrong(value)
        share = Number("a number from 0 to 1", 0, 1)
        return {str(WORD.parse(name)): share.parse(number) for name, number in value.items()}


def _who_fault(who: object) -> Fault | None:
    at = (str(who),)
    if not isinstance(who, str):
        return Fault('"*", a domain, or a full Matrix id, in quotes', who, at)
    kind = MATRIX_ID if who.startswith("@") else DOMAIN
    if who == EVERYBODY:
        return None
    try:
        kind.parse(who)
    except WrongValueError as error:
        return Fault(error.faults[0].expected, who, at)
    return None


DOMAIN = ServerName("the homeserver's domain, the part of a Matrix id behind the colon, such as matrix.org")
MATRIX_ID = MatrixId("a full Matrix id such as @alice:matrix.org")
NAME = Text("letters, digits, _ and - only", re.compile(r"[A-Za-z0-9_-]+\Z"))
LOCALPART = Text("small letters, digits and . _ = / + - only", _LOCALPART)
TOKEN = Text("one word of letters, digits and punctuation, without spaces", re.compile(r"[\x21-\x7e]+\Z"))
HOST = Host("an IP address or a host name, without a port")
HOMESERVER_URL = Url("a web address such as http://127.0.0.1:8008", never_ends=("/_matrix",))
LETTA_URL = Url("a web address such as http://127.0.0.1:8283", never_ends=("/v1", "/v1/agents"))
BRIDGE_URL = Url("a web address such as http://127.0.0.1:29384")
SENDER_GLOB = SenderGlob('a pattern over full Matrix ids such as "@telegram_*:*"')
DATABASE_URI = DatabaseUri("sqlite:<file> or postgresql://user:password@host/database")
WORD = Text("a piece of text")
SECONDS = Number("a number of seconds greater than 0", above=True)
SECONDS_OR_ZERO = Number("a number of seconds, 0 or more")
_TEMPLATE_KEYS: Mapping[str, Kind] = {
    "persona": WORD,
    "human": WORD,
    "description": WORD,
    "model": WORD,
    "tags": ListOf("a list of tags", item=WORD),
    "traits": Traits("names with numbers from 0 to 1"),
}
