"""The tests' side of ``letta_bridge.testing.nursery``: bridge processes without the second that imports take."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import letta_bridge
from letta_bridge.testing.stack.process import StackError, child_environment, guarded, log_tail

ROOT = Path(letta_bridge.__file__).parents[1]


class Forked:
    """A bridge process that is no child of ours; it can be handled as a :class:`ChildProcess`.

    Held by a descriptor of the process itself, so that a signal can never reach another one that got its number.
    """

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        try:
            self._process = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended already
            self._process = -1

    def __del__(self) -> None:
        if self._process >= 0:
            os.close(self._process)

    @property
    def running(self) -> bool:
        return self._process >= 0 and not select.select([self._process], [], [], 0)[0]

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing happens when it has ended."""
        if self.running:
            signal.pidfd_send_signal(self._process, number)

    def kill(self) -> None:
        """End it as by ``kill -9``, frozen or not, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        if self._process >= 0 and not select.select([self._process], [], [], 10)[0]:
            raise StackError(f"process {self.pid} does not die")

    async def wait_exit(self, seconds: float) -> int:
        """Wait until it has ended; its exit status is unknown to everybody but the nursery, so this is 0."""
        deadline = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > deadline:
                raise StackError(f"the bridge still runs after {seconds:.0f} s\n{self.log_tail()}")
            await asyncio.sleep(0.01)
        return 0

    def log_tail(self, lines: int = 15) -> str:
        return log_tail(self.log, lines)


class Nursery:
    """Forks bridge processes. Make it with :func:`nursery`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def fork(self, argv: Sequence[str], *, cwd: Path, log: Path, orders: Path, mark: Path) -> Forked:
        """Start a bridge."""
        assert self._process.stdin is not None and self._process.stdout is not None
        paths = {"cwd": cwd, "log": log, "orders": orders, "mark": mark}
        order = {"argv": list(argv), **{key: str(path) for key, path in paths.items()}}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise StackError("the nursery has ended")
        return Forked(int(answer), log)


@contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery while the block runs; all its processes end with it."""
    environment = child_environment({"PYTHONPATH": str(ROOT)}, without=("LETTA_BRIDGE",))
    process = subprocess.Popen(
        guarded([sys.executable, "-m", "letta_bridge.testing.nursery"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        yield Nursery(process)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
