"""What a command is: its words, what it takes, who may use it. The one table of all of them gives the management
room, ``letta-bridge ctl``, their help and the reference page.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .call import Call

ArgKind = Literal["agent", "room", "user", "text", "number", "command", "choice"]
"""``agent``, ``room`` and ``user`` are looked up before the command runs: it gets an AgentRow, a RoomID, an MXID."""


class Need(Enum):
    """Who may use a command."""

    USER = "user"  # whoever may talk to agents
    OWNER = "owner"  # who summoned the agent that it names, or an admin
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Arg:
    """A thing that a command takes by its place.

    ``rest``: everything that follows, as one text. ``choices`` are the words of a ``choice``.
    """

    name: str
    kind: ArgKind
    help: str
    required: bool = True
    rest: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """A thing that a command takes as ``--name value``, or ``--name`` alone where it is a switch."""

    name: str
    help: str
    kind: ArgKind = "text"
    switch: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command answers.

    Attributes:
        text: Markdown for people.
        data: the same for programs (``ctl --json``); anything that json takes.
        ok: False when it did not do what was asked.
        file: a name and bytes that go with it (uploaded in a room, written by ``ctl``).
        job: the job that it began; its progress is shown by editing the reply.
    """

    text: str
    data: Any = None
    ok: bool = True
    file: tuple[str, bytes] | None = None
    job: int | None = None


class CommandError(Exception):
    """It cannot be done; the text says why and what to do instead."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: its words, such as ``room create``.
        summary: what it does, in one sentence without a full stop.
        need: who may use it.
        run: does it. Raises CommandError. It may be run again after a crash: what it changes is keyed by ``call.key``.
        group: the heading under which help and the reference list it.
        details: more for ``help <command>`` and the reference, in Markdown.
        examples: whole lines without ``!letta``.
        changes: whether it changes anything (those are logged with who asked).
        private: it shows what others should not read; answered only in a management room, a direct chat or by ctl.
        only_ctl: it works on files of the bridge's machine, so it is none of the room's commands.
    """

    name: str
    summary: str
    need: Need
    run: Callable[["Call"], Awaitable[Reply]]
    group: str
    args: tuple[Arg, ...] = ()
    options: tuple[Option, ...] = ()
    details: str = ""
    examples: tuple[str, ...] = ()
    changes: bool = False
    private: bool = False
    only_ctl: bool = False

    @property
    def usage(self) -> str:
        """Its words and what it takes."""
        parts = [self.name]
        for arg in self.args:
            shown = "|".join(arg.choices) if arg.choices else arg.name
            parts.append(f"<{shown}>" if arg.required else f"[{shown}]")
        for option in self.options:
            value = "" if option.switch else " " + ("|".join(option.choices) or option.name.upper().replace("-", "_"))
            parts.append(f"[--{option.name}{value}]")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Table:
    """All commands, in the order in which help shows them."""

    commands: tuple[Command, ...]
    _by_name: dict[str, Command] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {command.name: command for command in self.commands}
        assert len(by_name) == len(self.commands), "two commands have one name"
        object.__setattr__(self, "_by_name", by_name)

    @classmethod
    def of(cls, groups: Iterable[Sequence[Command]]) -> "Table":
        """The table of several groups of commands."""
        return cls(tuple(command for group in groups for command in group))

    def find(self, words: Sequence[str]) -> tuple[Command, list[str]] | None:
        """The command that ``words`` begin with (the longest name wins), and the words behind it."""
        for length in (2, 1):
            name = " ".join(words[:length]).casefold()
            if len(words) >= length and (command := self._by_name.get(name)):
                return command, list(words[length:])
        return None

    def named(self, name: str) -> Command | None:
        """The command with exactly this name."""
        return self._by_name.get(name)

    @property
    def names(self) -> list[str]:
        """Every name."""
        return list(self._by_name)
