"""The bridge's own process with a watch on it: a profile, or the longest times for which its event loop was blocked."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import letta_bridge.bridge
from letta_bridge.__main__ import main as letta_bridge_main

_TICK = 0.005
_WORTH_A_LOOK = 0.025


class LagWatch:
    """A callback every 5 ms. A gap is how much later than asked it came, in seconds: ``wall``.

    Of that, ``cpu`` is what the loop's own thread computed, and ``starved`` what it was ready to run and had no
    processor, because the machine was busy. The rest it waited, for the interpreter's lock or for the disk. Another
    thread looks, while a gap lasts, what the loop's thread is doing.
    """

    def __init__(self) -> None:
        self.gaps: list[dict[str, Any]] = []
        self._last = time.monotonic()
        self._cpu = time.thread_time()
        self._starved = 0.0
        self._loop_thread = threading.get_ident()
        self._seen = ""
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to tick, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._schedule = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._starved = self._waited()
        threading.Thread(target=self._look, daemon=True, name="lag-watch").start()
        self._loop.call_later(_TICK, self._tick)

    def _waited(self) -> float:
        """Seconds for which the loop's thread was ready and had no processor, since it began."""
        return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9

    def _tick(self) -> None:
        now, cpu, starved = time.monotonic(), time.thread_time(), self._waited()
        gap = now - self._last - _TICK
        if gap > _WORTH_A_LOOK:
            parts = {"cpu": cpu - self._cpu, "starved": min(gap, starved - self._starved)}
            self.gaps.append({"at": now, "wall": gap, **parts, "where": self._seen})
        self._last, self._cpu, self._starved, self._seen = now, cpu, starved, ""
        self._loop.call_later(_TICK, self._tick)

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            if time.monotonic() - self._last > _WORTH_A_LOOK and not self._seen:
                frame = sys._current_frames().get(self._loop_thread)
                lines = traceback.extract_stack(frame)[-4:] if frame else []
                self._seen = " > ".join(f"{Path(line.filename).name}:{line.lineno} {line.name}" for line in lines)

    def write(self, path: Path) -> None:
        """The gaps, longest first."""
        self._ended.set()
        os.close(self._schedule)
        path.write_text(json.dumps(sorted(self.gaps, key=lambda gap: gap["starved"] - gap["wall"])[:200]))


@contextlib.asynccontextmanager
async def _watching(path: Path) -> AsyncIterator[None]:
    watch = LagWatch()
    watch.start()
    try:
        yield
    finally:
        watch.write(path)


def main() -> int:
    """Run ``letta-bridge`` with the arguments after ``--``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--lag", type=Path)
    at = sys.argv.index("--")
    options = parser.parse_args(sys.argv[1:at])
    if options.lag:
        original = letta_bridge.bridge.run

        async def run(config: Any) -> int:
            async with _watching(options.lag):
                return await original(config)

        letta_bridge.bridge.run = run
    sys.argv = ["letta-bridge", *sys.argv[at + 1 :]]
    if not options.profile:
        return letta_bridge_main()
    profile = cProfile.Profile()
    try:
        return profile.runcall(letta_bridge_main)
    finally:
        profile.dump_stats(options.profile)


if __name__ == "__main__":
    sys.exit(main())
