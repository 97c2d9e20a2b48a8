"""Whom a message means. Pure: the answer depends on the message, the puppets of the room, and its people's names.

A name is spoken to with ``@name`` anywhere or ``name:`` at the beginning. Names are compared as people read them:
without regard to case, width, composed accents and invisible characters, in whole words of any script.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from ..ids import MXID
from ..matrix.incoming import mentioned_users

TEXT_LIMIT = 65_536
"""Characters of a body that are read; no valid event has more."""

RESERVED = frozenset({"room", "everyone", "here", "channel"})
"""Names that mean everybody: whoever bears one is not woken by it."""

_NAME_LIMIT = 255
_ACCENT_LIMIT = 30
_AT_LIMIT = 2_000  # a text with more of them is no letter to anybody

_HOLE = "\ufffc"  # stands where code or a URL was: neither a space nor a letter
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
_SPACES = re.compile(r"[^\S\n]+")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://\S+")
_ID = re.compile(r"@[a-z0-9._=/+-]++:(?>[A-Za-z0-9]+(?:[.-]+[A-Za-z0-9]+)*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5}+)?")
_FENCE = re.compile(r"(?P<lead>[\s>]*)(?:(?:[-*+]|\d{1,9}[.)])\s+)?(?P<marker>`{3,}(?=[^`]*$)|~{3,})")
_TICKS = re.compile(r"`+")
_BLANK_LINES = re.compile(r"(\n[^\S\n]*\n)")
# Between two letters these hold a word together: an address, a file, a package, O'Brien.
_INSIDE = frozenset(".:-/'’@+")
_JOINERS = re.compile("[\u200c\u200d\U0001f3fb-\U0001f3ff]")  # what makes one emoji of several, or changes its skin
# Scripts written without spaces: Unicode's default word borders let a word end anywhere in them.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u309f\u3400-\u9fff\U00020000-\U0003ffff]"
)
_KATAKANA = re.compile("[\u30a0-\u30ff\u31f0-\u31ff]")


@dataclass(frozen=True, slots=True)
class Puppet:
    """An agent's Matrix user in the room, and the name that people there see."""

    mxid: MXID
    name: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """What is known of a message without asking anybody."""

    body_without_fallback: str
    formatted_body: str | None = None
    mentions_user_ids: Sequence[str] = ()
    """``m.mentions.user_ids``."""
    reply_to_sender: MXID | None = None
    """Who wrote the message that this one really answers."""
    thread_root_sender: MXID | None = None


@dataclass(frozen=True, slots=True)
class Addressing:
    """The puppets that a message means, each with its reason; and the names used that nobody alone bears.

    ``meant`` is in the order of the rules and, within a rule, of the message. ``reasons`` has one of ``mention``,
    ``pill``, ``id``, ``name``, ``leading name``, ``reply``, ``thread`` for each. ``ambiguous`` has names as written
    in the room; a name is left out when one of its bearers is meant by something surer.
    """

    meant: tuple[MXID, ...]
    reasons: Mapping[MXID, str]
    ambiguous: tuple[str, ...] = ()


def addressed(message: Incoming, puppets: Sequence[Puppet], people_names: Collection[str]) -> Addressing:
    """Decide which of ``puppets`` the message means; ``people_names`` are the names of all others in the room.

    Each of these is enough: ``m.mentions`` names it; a pill does; its full Matrix id is in the text; the text begins
    with ``name:``, or ``@name`` is in it; it wrote the message that is answered, or that began the thread. Code never
    counts, nor do names inside URLs. Of several names that fit, the longest is meant, a person's too. A name wakes
    nobody when it is empty or mere punctuation, is one of ``RESERVED``, or belongs to more than one of the puppets
    and people (it is then reported as ambiguous). ``@`` at the beginning of a name is no part of it. Raises nothing;
    linear time.
    """
    here = {puppet.mxid for puppet in puppets}
    reasons: dict[MXID, str] = {}

    def mean(found: Iterable[object], reason: str) -> None:
        for mxid in found:
            if isinstance(mxid, str) and mxid in here:
                reasons.setdefault(MXID(mxid), reason)

    text = _without_code(message.body_without_fallback[:TEXT_LIMIT])
    mean(message.mentions_user_ids, "mention")
    mean(mentioned_users(message.formatted_body), "pill")
    mean(_ids_in(text), "id")
    names = _Names(puppets, people_names)
    folded = _URL.sub(_HOLE, _fold(text))
    shared: dict[str, Sequence[MXID]] = {}
    for name, reason in (*_leading_name(folded, names), *_names_after_at(folded, names)):
        bearers = names.puppets.get(name, ())
        if len(bearers) == 1 and name not in names.people:
            mean(bearers, reason)
        elif bearers:
            shared[names.shown[name]] = bearers
    mean([message.reply_to_sender], "reply")
    mean([message.thread_root_sender], "thread")
    ambiguous = tuple(name for name, bearers in shared.items() if reasons.keys().isdisjoint(bearers))
    return Addressing(tuple(reasons), reasons, ambiguous)


class _Names:
    """The folded names by which somebody in the room can be meant."""

    def __init__(self, puppets: Sequence[Puppet], people_names: Collection[str]) -> None:
        self.puppets: dict[str, list[MXID]] = {}
        self.shown: dict[str, str] = {}
        for mxid, name in {puppet.mxid: puppet.name for puppet in puppets}.items():
            if key := _name_key(name):
                self.puppets.setdefault(key, []).append(mxid)
                self.shown.setdefault(key, name)
        self.people = {key for name in people_names if (key := _name_key(name))} if self.puppets else set()
        self.lengths = sorted({len(key) for key in (*self.puppets, *self.people)}, reverse=True)

    def __contains__(self, name: str) -> bool:
        return name in self.puppets or name in self.people


def _name_key(name: str) -> str:
    """A name as it is compared; empty when nobody can be meant by it."""
    key = " ".join(_fold(name[: _NAME_LIMIT + 1]).split()).lstrip("@ ")
    if len(key) > _NAME_LIMIT or key in RESERVED:
        return ""
    telling = (category for category in map(unicodedata.category, key) if category[0] in "LN" or category == "So")
    return key if any(telling) else ""


def _fold(text: str) -> str:
    """The text without case, width and invisible characters; line feeds stay, other space becomes single spaces."""
    text = _INVISIBLE.sub("", text)
    if text.isascii():
        text = text.casefold()
    else:
        text = unicodedata.normalize("NFKC", _few_accents(text)).casefold()
        text = unicodedata.normalize("NFKC", text)
    return _SPACES.sub(" ", text)


def _few_accents(text: str) -> str:
    """The text with at most 30 combining characters in a row: sorting many takes quadratic time."""
    run = 0
    kept: list[str] = []
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= _ACCENT_LIMIT:
            kept.append(character)
    return "".join(kept)


def _ids_in(text: str) -> Iterator[str]:
    for match in _ID.finditer(text):
        if _word_begins(text, match.start()) and _word_ends(text, match.end()):
            yield match[0]


def _leading_name(text: str, names: _Names) -> Iterator[tuple[str, str]]:
    """The longest name before a colon at the beginning. No URL, path, time of day or ``a::b``."""
    text = text.lstrip()
    colon = text.rfind(":", 0, (names.lengths[0] if names.lengths else 0) + 2)
    while colon > 0:
        name, following = text[:colon].rstrip(" "), text[colon + 1 : colon + 2]
        time_of_day = following.isdigit() and name[-1:].isdigit()
        if name in names and following not in ("/", "\\", ":") and not time_of_day:
            yield name, "leading name"
            return
        colon = text.rfind(":", 0, colon)


def _names_after_at(text: str, names: _Names) -> Iterator[tuple[str, str]]:
    for match in islice(re.finditer("@+", text), _AT_LIMIT):
        start = match.end()
        if not _word_begins(text, match.start()) or text[match.start() - 1 : match.start()] == "/":
            continue
        for length in names.lengths:
            name = text[start : start + length]
            if name in names and len(name) == length and _word_ends(text, start + length):
                yield name, "name"
                break


def _word_begins(text: str, index: int) -> bool:
    """Whether an ``@`` at ``index`` stands before a word and not inside one."""
    before = text[index - 1 : index]
    return not _is_letter(before) or bool(_UNSPACED.match(before) or _KATAKANA.match(before))


def _word_ends(text: str, index: int) -> bool:
    """Whether a word may end before ``index``."""
    last, following, beyond = text[index - 1 : index], text[index : index + 1], text[index + 1 : index + 2]
    if _JOINERS.match(following) or unicodedata.category(following or " ")[0] == "M":
        return False
    if not _is_letter(last) or _UNSPACED.match(following):
        return True
    if _KATAKANA.match(following):
        return not _KATAKANA.match(last)
    if following in ("'", "’") and beyond == "s" and not _is_letter(text[index + 2 : index + 3]):
        return True
    if following in _INSIDE and _is_letter(beyond):
        return bool(_UNSPACED.match(beyond))
    return not _is_letter(following)


def _is_letter(character: str) -> bool:
    """Whether the character is part of a word; false for none."""
    return character.isalnum() or character == "_" or unicodedata.category(character or " ")[0] == "M"


def _without_code(text: str) -> str:
    """The text with a hole for each code block and code span."""
    kept: list[str] = []
    fence: re.Match[str] | None = None
    for line in text.split("\n"):
        opening = _FENCE.match(line)
        quote_left = fence is not None and ">" in fence["lead"] and not line.lstrip().startswith(">")
        if fence is None or quote_left:
            fence = opening
            kept.append(_HOLE if fence else line)
        elif opening and opening["marker"].startswith(fence["marker"]) and not line[opening.end() :].strip():
            fence = None
    paragraphs = _BLANK_LINES.split("\n".join(kept))
    return "".join(map(_without_spans, paragraphs))


def _without_spans(paragraph: str) -> str:
    """A span ends at the next run of as many backticks as it began with; a run without its like is text."""
    runs = list(_TICKS.finditer(paragraph))
    partner: dict[int, int] = {}
    nearest: dict[int, int] = {}
    for index in range(len(runs) - 1, -1, -1):
        length = len(runs[index][0])
        partner[index] = nearest.get(length, -1)
        nearest[length] = index
    kept: list[str] = []
    position = index = 0
    while index < len(runs):
        start = runs[index].start()
        if partner[index] < 0 or paragraph[start - 1 : start] == "\\":
            index += 1
            continue
        closing = partner[index]
        kept += (paragraph[position:start], _HOLE)
        position, index = runs[closing].end(), closing + 1
    return "".join((*kept, paragraph[position:]))
