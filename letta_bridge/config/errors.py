"""What is wrong with a configuration, told so that the reader knows which key to change and to what."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right.

    ``where`` is the file with its line, or the environment variable; ``key`` the dotted path (empty when the
    file as a whole is meant); ``text`` says what was found and what is expected, and never contains a secret.
    """

    key: str
    text: str
    where: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: " if self.where else ""
        return f"{head}{self.key}: {self.text}" if self.key else f"{head}{self.text}"


class ConfigError(Exception):
    """The configuration cannot be used. ``problems`` lists everything that is wrong, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
