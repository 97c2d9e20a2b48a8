"""What was measured, and whether it is what was promised."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Line:
    """One line of the table. Figures are texts, made where their unit is known.

    ``met`` is None where nothing was promised.
    """

    row: str
    what: str
    bridge: str
    naive: str = ""
    echo: str = ""
    ratio: str = ""
    ratio_echo: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """One word."""
        return {True: "met", False: "MISSED", None: ""}[self.met]


@dataclass
class Report:
    """The lines of one run and its conditions."""

    conditions: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, line: Line) -> None:
        """Add a line and say it."""
        self.lines.append(line)
        print(_spoken(line), flush=True)

    def remark(self, text: str) -> None:
        """Something that the table has no place for."""
        self.remarks.append(text)
        print(f"  ({text})", flush=True)

    def json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self)


def _spoken(line: Line) -> str:
    parts = [f"{line.row}: {line.what}: bridge {line.bridge}"]
    parts += [f"naive {line.naive}"] if line.naive else []
    parts += [f"echo {line.echo}"] if line.echo else []
    parts += [f"ratio {line.ratio}"] if line.ratio else []
    parts += [f"to echo {line.ratio_echo}"] if line.ratio_echo else []
    parts += [f"target {line.target}: {line.verdict}"] if line.target else []
    parts += [line.note] if line.note else []
    return " | ".join(parts)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


@dataclass
class Rounds:
    """The values of one side, by rounds."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        return [value for one in self.rounds for value in one]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        return percentile(self.values, 0.95)

    def spread(self) -> str:
        """The smallest and the largest median of a round."""
        medians = [statistics.median(one) for one in self.rounds]
        return f"{min(medians):.4g}–{max(medians):.4g}"


def table(lines: Sequence[Line]) -> str:
    """The lines as a Markdown table."""
    head = ("row", "what", "bridge", "floor (naive)", "floor (echo)", "ratio", "to echo", "target", "verdict", "note")
    rows = [head, tuple("---" for _ in head)]
    rows += [
        (
            line.row,
            line.what,
            line.bridge,
            line.naive,
            line.echo,
            line.ratio,
            line.ratio_echo,
            line.target,
            line.verdict,
            line.note,
        )
        for line in lines
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )
