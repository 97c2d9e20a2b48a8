"""A bridge process that ends or freezes itself at a named place: ``python -m letta_bridge.testing.faultpoints``.

    python -m letta_bridge.testing.faultpoints --at send.after:3:kill --mark FILE -- run -c config.yaml

takes the arguments of ``letta-bridge`` after ``--`` and, when the place ``send.after`` is passed for the third time,
ends its own process as by ``kill -9`` (or, with ``stop``, freezes it as by SIGSTOP). What was reached is written to
FILE first, so that a test can tell a kill at its place from one that came from elsewhere. With ``--orders FILE`` the
place is named while the process runs, see :class:`Ordered`.
"""

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from letta_bridge import faults
from letta_bridge.__main__ import main as letta_bridge

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Armed:
    """Counts the places that are passed and acts at the chosen one.

    Args:
        at: ``point:count:action`` with a name of :data:`letta_bridge.faults.POINTS`, the count of the pass at which to
            act (from 1), and ``kill`` or ``stop``.
        mark: a file that gets the line ``at`` before the action.

    Raises:
        ValueError: there is no such place or action.
    """

    def __init__(self, at: str, mark: Path | None = None) -> None:
        self._point, count, action = at.split(":")
        if self._point not in faults.POINTS or action not in _SIGNALS:
            raise ValueError(f"no such place or action: {at}")
        self._count, self._signal = int(count), _SIGNALS[action]
        self._at, self._mark = at, mark
        self._passed: Counter[str] = Counter()

    def __call__(self, point: str) -> None:
        """A place is passed."""
        self._passed[point] += 1
        if point == self._point and self._passed[point] == self._count:
            if self._mark is not None:
                self._mark.write_text(f"{self._at}\n")
            os.kill(os.getpid(), self._signal)


class Ordered:
    """Takes its place from a file while the process runs.

    Whenever a place is passed and the file ``orders`` is there, it is taken away, and its line (``point:count:action``,
    counted from then on) replaces the order before; an empty one only ends that. Written by renaming, it is never read
    half.
    """

    def __init__(self, orders: Path, mark: Path | None = None) -> None:
        self._orders, self._mark = orders, mark
        self._armed: Armed | None = None

    def __call__(self, point: str) -> None:
        """A place is passed."""
        try:
            at = self._orders.read_text().strip()
            self._orders.unlink()
        except FileNotFoundError:
            pass
        else:
            self._armed = Armed(at, self._mark) if at else None
        if self._armed is not None:
            self._armed(point)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``letta-bridge`` with an armed place; returns its exit code."""
    parser = argparse.ArgumentParser(prog="letta_bridge.testing.faultpoints")
    parser.add_argument("--at", help="point:count:kill or point:count:stop")
    parser.add_argument("--orders", type=Path, help="file from which that is taken while the bridge runs")
    parser.add_argument("--mark", type=Path, help="file to write before acting")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="the arguments of letta-bridge, after --")
    args = parser.parse_args(argv)
    if args.at:
        faults.hook = Armed(args.at, args.mark)
    elif args.orders:
        faults.hook = Ordered(args.orders, args.mark)
    return letta_bridge([word for word in args.rest if word != "--"])


if __name__ == "__main__":
    sys.exit(main())
