"""How an agent is called in Matrix: its ids, which never change, and its name, which is only shown."""

import re
import unicodedata
from dataclasses import dataclass

from ..db.database import clean
from ..ids import MXID, AgentID, puppet_suffix

LONGEST_NAME = 255
"""Characters of a shown name (Synapse refuses display names of more than 256)."""

LONGEST_TOPIC = 1000

_ROOM_PING = re.compile("@(?=room)", re.IGNORECASE)
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols that show nothing
_HIDDEN = frozenset(
    chr(code)
    for first, last in (
        (0x00AD, 0x00AD),  # soft hyphen
        (0x061C, 0x061C),  # bidi mark
        (0x180E, 0x180E),
        (0x200B, 0x200B),  # zero-width space; joiners (200C, 200D) stay: scripts and emoji need them
        (0x200E, 0x200F),  # bidi marks
        (0x202A, 0x202E),  # bidi embeddings and overrides
        (0x2060, 0x206F),  # invisible operators, bidi isolates, deprecated format characters
        (0xFEFF, 0xFEFF),
        (0xFFF9, 0xFFFB),  # interlinear annotations
        (0xE0000, 0xE007F),  # tags: invisible text
    )
    for code in range(first, last + 1)
)


@dataclass(frozen=True, slots=True)
class Names:
    """The ids of puppets, portals and the space on one homeserver."""

    domain: str
    prefix: str
    bot: MXID

    def localpart(self, agent_id: AgentID) -> str:
        """The local part of a new puppet's user id."""
        return self.prefix + puppet_suffix(agent_id)

    def mxid(self, agent_id: AgentID) -> MXID:
        """The puppet's user id."""
        return MXID(f"@{self.localpart(agent_id)}:{self.domain}")

    def alias(self, localpart: str) -> str:
        """The alias with this local part."""
        return f"#{localpart}:{self.domain}"

    def portal_localpart(self, mxid: MXID) -> str:
        """The local part of a portal's alias: the puppet's, which stays with the room when an agent is re-created."""
        return mxid[1:].partition(":")[0]

    def portal_alias(self, mxid: MXID) -> str:
        """The alias of the portal of this puppet."""
        return self.alias(self.portal_localpart(mxid))

    @property
    def space_localpart(self) -> str:
        """The local part of the space's alias. No agent has it: a suffix is a UUID or begins with a dot."""
        return self.prefix + "space"

    def is_puppet(self, mxid: str) -> bool:
        """Whether the user id is in the puppets' namespace, which nobody else can register in."""
        localpart, _, domain = mxid.partition(":")
        return localpart.startswith("@" + self.prefix) and domain == self.domain and mxid != self.bot

    def is_ours(self, mxid: str) -> bool:
        """Whether the user id is the bot's or a puppet's."""
        return mxid == self.bot or self.is_puppet(mxid)


def shown_name(name: str, agent_id: AgentID) -> str:
    """The display name of an agent: what Letta calls it, without what would deceive or ring.

    Control, bidi and invisible characters go; at most 255 characters stay; a name that shows nothing becomes
    ``Agent`` and the beginning of the id. The at-sign of ``@room`` becomes the full-width one: a pill of an agent
    called ``@room`` would otherwise ring everybody in clients that look for the word. A visible character was chosen
    because zero-width ones are dropped by others' clean-up, which would bring the ping back.
    """
    shown = _ROOM_PING.sub("\uff20", _plain(name, LONGEST_NAME))
    return shown or "Agent " + puppet_suffix(agent_id).lstrip(".")[:8]


def shown_topic(description: str) -> str:
    """The topic of a portal: the agent's description in one paragraph; may be empty."""
    return _plain(description, LONGEST_TOPIC)


def _plain(text: str, longest: int) -> str:
    """``text`` in one line of visible characters; ``""`` when nothing in it is visible."""
    head = clean(text[: longest * 8])
    kept = "".join(" " if _is_break(char) else char for char in head if char not in _HIDDEN)
    line = " ".join(kept.split())
    if not any(_is_visible(char) for char in line):
        return ""
    return line if len(line) <= longest else line[: longest - 1].rstrip(" \u200c\u200d") + "\u2026"


def _is_break(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Zl", "Zp", "Zs")


def _is_visible(char: str) -> bool:
    return unicodedata.category(char)[0] not in "CMZ" and char not in _BLANK
