"""Who may do what with the bridge as a whole. Pure: the answer depends on the configuration and the Matrix id alone.

What is given by command for one agent or room comes on top: :mod:`.rights`.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

EVERYBODY = "*"


class Level(IntEnum):
    """What a person may do; each level includes those below it."""

    NONE = 0  # nothing: messages and invites are refused
    USER = 1  # talk to agents, and stop them
    ADMIN = 2  # everything a user may, and administer the bridge


@dataclass(frozen=True, slots=True)
class Grant:
    """The level of one person and what decided it.

    ``entry`` is the entry of ``permissions`` that decided, if one did. ``ignored_by`` is the pattern of
    ``ignored_senders`` that took ``*`` and domain entries away, if one did. With a ``subject`` (``agent:<id>`` or
    ``room:<id>``) it is about that one only: ``entry`` was given on it by command, or ``owner``.
    """

    mxid: str
    level: Level
    entry: str | None = None
    ignored_by: str | None = None
    subject: str = ""
    owner: bool = False

    def __str__(self) -> str:
        name = self.level.name.lower()
        if self.owner:
            return f'{self.mxid} has level "{name}" with {self.subject} as its owner'
        if self.subject:
            return f'{self.mxid} has level "{name}" by what was given to "{self.entry}" on {self.subject}'
        if self.entry is not None:
            return f'{self.mxid} has level "{name}" by the entry "{self.entry}" of permissions'
        if self.ignored_by is not None:
            return (
                f'{self.mxid} has level "{name}": it matches "{self.ignored_by}" of ignored_senders, '
                "so only an entry with its full Matrix id could let it in"
            )
        return f'{self.mxid} has level "{name}": no entry of permissions matches it'


class Permissions:
    """The permission table. Who is not named may do nothing.

    The most specific entry wins: a full Matrix id, then its domain, then ``*``. A sender that matches a
    pattern of ``ignored`` (other bridges' ghosts, bots) is never let in by ``*`` or a domain, only by its
    own full id.

    Args:
        entries: ``*``, a domain, or a full Matrix id, and its level.
        ignored: glob patterns over full Matrix ids; ``*`` and ``?`` are special, case does not matter.
    """

    def __init__(self, entries: Mapping[str, Level], ignored: Sequence[str] = ()) -> None:
        self._entries = dict(entries)
        self._ignored = [(pattern, _glob(pattern)) for pattern in ignored]

    @property
    def entries(self) -> Mapping[str, Level]:
        """``*``, domains and full Matrix ids, as configured."""
        return self._entries

    @property
    def ignored(self) -> list[str]:
        """The patterns of senders whom only their full Matrix id lets in."""
        return [pattern for pattern, _ in self._ignored]

    def level(self, mxid: str) -> Level:
        """What ``mxid`` may do. Anything that is not a full Matrix id may do nothing."""
        return self.grant(mxid).level

    def explain(self, mxid: str) -> str:
        """One sentence for people: the level of ``mxid`` and which entry decided it."""
        return str(self.grant(mxid))

    def grant(self, mxid: str) -> Grant:
        """The level of ``mxid`` with what decided it."""
        localpart, colon, domain = mxid.partition(":")
        if not (localpart.startswith("@") and colon and domain):
            return Grant(mxid, Level.NONE)
        if mxid in self._entries:
            return Grant(mxid, self._entries[mxid], entry=mxid)
        for pattern, regex in self._ignored:
            if regex.match(mxid.casefold()):
                return Grant(mxid, Level.NONE, ignored_by=pattern)
        for entry in (domain, EVERYBODY):
            if entry in self._entries:
                return Grant(mxid, self._entries[entry], entry=entry)
        return Grant(mxid, Level.NONE)


def _glob(pattern: str) -> re.Pattern[str]:
    # fnmatch's translation cannot backtrack without bound; its [sets] are not part of Matrix globs
    return re.compile(fnmatch.translate(pattern.casefold().replace("[", "[[]")))
