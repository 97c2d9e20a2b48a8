"""What a look at a room came to."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ..db.agents import AgentRow
from ..db.database import Connection


@dataclass(slots=True)
class Outcome:
    """Written in one commit.

    Attributes:
        changes: what rows of agents are to say now.
        also: what else belongs into the commit.
        troubles: what a person has to look at, in whole sentences; empty: all is well.
        again: it is to be looked at again after a while, without a new reason.
        unclear: why nothing can be said; then nothing is written.
        soon: with ``unclear``: that is so for some seconds only, and somebody waits for it.
        news: what the admins are told once, in whole sentences.
    """

    changes: list[tuple[AgentRow, dict[str, Any]]] = field(default_factory=list)
    also: list[Callable[[Connection], Awaitable[None]]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    again: bool = False
    unclear: str = ""
    soon: bool = False
    news: list[str] = field(default_factory=list)
