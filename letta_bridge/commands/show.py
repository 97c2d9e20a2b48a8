"""Small pieces of answers, as Markdown."""

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from ..db.agents import AgentRow

_EMPHASIS = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""An underscore that is not within a word."""
_BLOCK = re.compile(r"^(\d{1,9}(?=[.)] )|(?=[-+] |#{1,6} ))(.)")
"""What makes a heading or a list of a line that begins with it."""
_STEPS = ((86400 * 2, 86400, "days"), (3600 * 2, 3600, "hours"), (120, 60, "minutes"))


def escape(text: str) -> str:
    """A name as it is. Only what would change its look: some clients show the plain text."""
    escaped = "".join("\\" + char if char in "\\`*[]<>~|" else char for char in " ".join(text.split()))
    return _BLOCK.sub(r"\1\\\2", _EMPHASIS.sub(r"\\_", escaped))


def one_line(text: str) -> str:
    """Markdown of several paragraphs as it fits into a list."""
    return " ".join(text.split())


def code(text: str) -> str:
    """An id as it is, also one that somebody made to look like something else."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def name_of(agent: AgentRow) -> str:
    """What people know the agent by."""
    return escape(agent.shown_name or agent.name) or f"`{agent.agent_id}`"


def user_link(agent: AgentRow) -> str:
    """The agent's name as a link to its Matrix user."""
    return f"[{name_of(agent)}](https://matrix.to/#/{quote(agent.mxid, safe='@:')})"


def portal_link(agent: AgentRow, label: str = "room") -> str:
    """A link to the agent's own room; empty while it has none. By its alias: room ids of version 12 name no server."""
    if not agent.portal_room:
        return ""
    return f"[{label}](https://matrix.to/#/{quote('#' + agent.mxid[1:], safe=':')})"


def room_link(room_id: str, label: str, via: str) -> str:
    """A link to a room by its id, through the server ``via``."""
    return f"[{label}](https://matrix.to/#/{quote(room_id, safe='!:')}?via={quote(via, safe=':')})"


def span(seconds: float) -> str:
    """A time as people say it: ``3 hours``."""
    seconds = max(0.0, seconds)
    for least, unit, name in _STEPS:
        if seconds >= least:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:.0f} ms"


def ago(seconds: float | None) -> str:
    """``3 hours ago``, or ``never``."""
    return "never" if seconds is None else f"{span(seconds)} ago"


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def count(number: int, one: str, many: str = "") -> str:
    """``1 agent``, ``2 agents``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def cut(lines: Sequence[str], most: int, hint: str) -> str:
    """A list of at most ``most`` entries, and what to do for more."""
    shown = list(lines[:most])
    if len(lines) > most:
        shown.append(f"… and {len(lines) - most:,} more; {hint}")
    return bullets(shown)
