"""Progress lines: rewritten in place on a terminal, sparse otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_HEARTBEAT = 15.0


class Progress:
    """Numbered steps with their duration: ``[2/6] installing Letta 0.16.8: 35 s``."""

    def __init__(self, total: int, out: TextIO | None = None) -> None:
        self._total = total
        self._done = 0
        self._out = out or sys.stdout

    def say(self, text: str) -> None:
        """One line of its own."""
        print(text, file=self._out, flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[Callable[[], None]]:
        """Show a step while the block runs; yields what is to be called now and then to keep the line
        alive."""
        self._done += 1
        label = f"[{self._done}/{self._total}] {what}"
        started = shown = time.monotonic()
        live = self._out.isatty()
        print(f"{label} …", end="" if live else "\n", file=self._out, flush=True)

        def tick() -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown < (1.0 if live else _HEARTBEAT):
                return
            shown = now
            text = f"{label} … {now - started:.0f} s"
            print(f"\r{text}" if live else text, end="" if live else "\n", file=self._out, flush=True)

        try:
            yield tick
        except BaseException:
            if live:
                print(file=self._out, flush=True)
            raise
        took = time.monotonic() - started
        print(f"{chr(13) if live else ''}{label}: {took:.0f} s   ".rstrip(), file=self._out, flush=True)
