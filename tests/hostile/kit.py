"""What hostile tests share: samples of a strategy, and eyes on the log, the event loop and the memory."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

SEED = int(os.environ.get("LETTA_BRIDGE_FUZZ_SEED") or 0)
"""Another seed gives other samples; the long runs choose their own."""


def samples(strategy: SearchStrategy[T], count: int, seed: int = SEED) -> list[T]:
    """``count`` values of a strategy, the same for the same seed.

    Hypothesis as a generator: what is tried here needs a whole bridge, which cannot be started for each example. What
    was wrong with which of them is read from the bridge's database, so nothing has to be shrunk.
    """
    found: list[T] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(value: T) -> None:
        found.append(value)

    draw()
    return found[:count]


# -- the log


@dataclass
class LogWatch(logging.Handler):
    """Collects records."""

    records: list[logging.LogRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = object.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def unexpected(self, *but: str) -> list[str]:
        """Everything at ERROR or above, and every traceback, except of the named actions."""
        return [
            f"{record.levelname} {record.name}: {record.getMessage()}: {getattr(record, 'why', '')} "
            f"{record.exc_info and record.exc_info[1]!r}"
            for record in self.records
            if (record.levelno >= logging.ERROR or (record.exc_info and record.levelno > logging.DEBUG))
            and getattr(record, "action", "") not in but
        ]

    def actions(self) -> set[str]:
        """The actions of all records."""
        return {str(getattr(record, "action", "")) for record in self.records}


@contextmanager
def watched_log() -> Iterator[LogWatch]:
    watch = LogWatch()
    root = logging.getLogger()
    root.addHandler(watch)
    try:
        yield watch
    finally:
        root.removeHandler(watch)


# -- the loop and the memory


@dataclass
class Lag:
    """The longest time that the event loop was held."""

    worst: float = 0.0


@asynccontextmanager
async def loop_lag() -> AsyncIterator[Lag]:
    """Measure how long the loop does not come round, with the time that other processes took from us left out.

    Processor time of this process stands still while others have the core, so a busy machine is no lag of ours.
    """
    lag = Lag()
    ended = asyncio.Event()

    async def watch() -> None:
        while not ended.is_set():
            wall, busy = time.perf_counter(), time.process_time()
            await asyncio.sleep(0.002)
            held = min(time.perf_counter() - wall, time.process_time() - busy)
            lag.worst = max(lag.worst, held - 0.002)

    watching = asyncio.create_task(watch())
    try:
        yield lag
    finally:
        ended.set()
        await watching


def slowness() -> float:
    """How much slower than usual this machine is at what holds the loop: at least 1, and other workers of the test run
    take their share of the processors.
    """
    body = b'"' + b"x" * 2**24 + b'"'
    begun = time.process_time()
    json.loads(body)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1.0, (time.process_time() - begun) / 0.02) * workers


def memory_mib() -> float:
    """The most resident memory since :func:`reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


def reset_peak() -> float:
    """Begin to measure the peak anew; returns what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mib()
