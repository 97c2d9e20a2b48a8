"""The conditions of a run, and the page that is made of it."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from letta_bridge import __version__
from letta_bridge.testing.stack.install import postgres_home, python_of

from .results import Line, Report

_SYNCS = 50


def conditions(quick: bool) -> dict[str, str]:
    """The machine and the versions."""
    load = os.getloadavg()[0]
    libraries = ("mautrix", "aiohttp", "letta-client", "aiosqlite", "asyncpg")
    return {
        "letta-bridge": __version__,
        "Machine": f"{os.cpu_count()} cores ({_processor()}), {_memory_gib():.0f} GiB of memory, {platform.system()} "
        f"{platform.release().partition('-')[0]}",
        "Load before the run": f"{load:.1f}",
        "Disk": f"{_sync_ms():.1f} ms for a small write that is synced (median of {_SYNCS})",
        "Python": platform.python_version(),
        "Libraries": ", ".join(f"{name} {version(name)}" for name in libraries),
        "Homeserver": f"Synapse {_synapse_version()} on SQLite, one process, without rate limits",
        "Databases": f"SQLite {sqlite3.sqlite_version}, {_postgres_version()}; every commit synced on both",
        "Size": "quick (few rounds: a first impression)" if quick else "full",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _sync_ms() -> float:
    """What a commit costs here at least."""
    taken = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_SYNCS):
            begun = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begun)
    return sorted(taken)[_SYNCS // 2] * 1000


def _synapse_version() -> str:
    code = "from importlib.metadata import version; print(version('matrix-synapse'))"
    return _said([str(python_of("synapse-venv")), "-c", code])


def _postgres_version() -> str:
    return _said([str(postgres_home() / "bin" / "postgres"), "--version"]).replace(
        "postgres (PostgreSQL)", "PostgreSQL"
    )


def _said(command: list[str]) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "(not installed)"
    return answer.stdout.strip() or "(unknown)"


_HEAD = """\
# Benchmarks

Made by `make bench BENCH="--write docs/benchmarks.md"`; do not edit it by hand.

The bridge is measured side by side with the *floor*: a bare mautrix appservice in memory, of the kind that is written
in an afternoon (`benchmarks/floor.py`). It stores nothing, repeats nothing and keeps nothing in order. There are two of
it. The naive floor does what the bridge does: it asks Letta with letta-client and sends what Letta says. The echo floor
sends back what it hears without asking anybody. **The ratio to the naive floor is the claim**; the ratio to the echo
floor stands beside it. Absolute figures belong to the machine.

All run at the same time as processes of their own: one Synapse that knows all three appservices, one imitation of Letta
whose model answers at once, the bridge with the settings that it has in production (but for the limit of messages per
minute, and nobody is invited to the agents' rooms), and the two floors. They are measured in turn, in short rounds, so
that noise of the machine meets all of them. Latency is what a person sees: from before their client sends until the
answer is in their client's `/sync`.
"""

_NULL = """\
The rows *null* have no real homeserver: a null homeserver answers every request at once and pushes at full speed
(transactions of up to 100 events, one in flight, to the replicas in turn). When thousands of messages wait, one answer
serves many; *one at a time* means that each room says something only after its last message was answered, so that every
message is a turn of its own. The harness, the bridge and the database share the machine's cores; what each of them took
stands under "Beside the table".
"""


def page(report: Report) -> str:
    """The whole page."""
    missed = [line for line in report.lines if line.met is False]
    promised = [line for line in report.lines if line.met is not None]
    parts = [_HEAD]
    parts.append("## Conditions\n\n| what | here |\n| --- | --- |")
    parts[-1] += "".join(f"\n| {what} | {value} |" for what, value in report.conditions.items()) + "\n"
    parts.append(f"## Figures\n\n{_table(report.lines)}\n\n{_NULL}")
    parts.append(_missed(missed, len(promised)))
    parts.append(_WHY)
    notes = [f"- {line.row}, {line.what}: {line.note}." for line in report.lines if line.note]
    parts.append("## Beside the table\n\n" + "\n".join([*notes, *(f"- {text}." for text in report.remarks)]) + "\n")
    return "\n".join(parts)


def _table(lines: list[Line]) -> str:
    head = "| row | what | bridge | naive floor | echo floor | ratio | to echo | target | verdict |"
    rows = [head, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for line in lines:
        verdict = f"**{line.verdict}**" if line.met is False else line.verdict
        cells = (line.row, line.what, line.bridge, line.naive, line.echo, line.ratio, line.ratio_echo, line.target)
        rows.append("| " + " | ".join((*cells, verdict)) + " |")
    return "\n".join(rows)


_WHY = """## Where the time goes

- **burst**: Synapse is busy all the time, so its processor time per message decides. A message of the bridge costs it
  more than one of the floor: each send names the puppet's device, by which Synapse remembers a transaction id over its
  own restart (about 4 ms per message, as a try without it showed), and now and then a receipt goes out. Between runs
  the ratio moved from 0.78 to 0.93.
- **null-replicas**: two replicas can do more than one only where processors are free. Look at the share of the machine
  that was in use "beside the table": where one replica and PostgreSQL fill two cores already, a second one has nothing
  to work with.
"""


def _missed(missed: list[Line], promised: int) -> str:
    if not missed:
        return f"## What falls short\n\nNothing: all {promised} targets are met.\n"
    rows = [f"- **{line.row}**, {line.what}: {line.ratio or line.bridge}, target {line.target}." for line in missed]
    return f"## What falls short\n\n{len(missed)} of {promised} targets are missed:\n\n" + "\n".join(rows) + "\n"
