"""The processes that are measured, and what they take of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from letta_bridge.testing.stack.bridge import LocalBridge
from letta_bridge.testing.stack.process import ChildProcess, StackError, child_environment

ROOT = Path(__file__).parents[1]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, user and system, all of its threads, in seconds (the kernel's per-process clock)."""
    return time.clock_gettime((~pid << 3) | 2)


def tree_cpu_seconds(pid: int) -> float:
    """The same for a process and its descendants that live now."""
    total = 0.0
    for one in _tree(pid):
        with contextlib.suppress(OSError):
            total += cpu_seconds(one)
    return total


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for tasks in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (tasks / "children").read_text().split()]
    return found


def rss_mib(pid: int) -> float:
    """Resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise StackError(f"process {pid} has no memory")


class Child:
    """``python -m <module> <arguments>``; it says that it is ready by writing a JSON object to a file.

    Its module gets ``--announce FILE`` as its last arguments.
    """

    def __init__(self, module: str, arguments: Sequence[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = module.rpartition(".")[2]
        self._announcement = folder / f"{self.name}.json"
        command = [sys.executable, "-m", module, *arguments, "--announce", str(self._announcement)]
        environment = child_environment({"PYTHONPATH": str(ROOT)}, without=("LETTA_BRIDGE__",))
        log = folder / f"{self.name}.log"
        self.process = ChildProcess(self.name, command, log=log, env=environment, cwd=folder)
        self.said: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        self._announcement.unlink(missing_ok=True)
        self.process.start()
        await self.process.wait_ready(self._announcement.exists, 60)
        self.said = json.loads(self._announcement.read_text())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.process.stop(grace=5)

    @property
    def pid(self) -> int:
        return self.process.pid


def announce(path: Path, data: Mapping[str, Any]) -> None:
    """Called by a child once it serves: the file appears whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data))
    part.rename(path)


async def until_terminated() -> None:
    """Return when the process is asked to end."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()


@dataclass(frozen=True)
class Watch:
    """What the bridge's process does beside its work: nothing by default."""

    profile: Path | None = None
    """Where to write the statistics of cProfile."""
    lag: Path | None = None
    """Where to write the longest times for which its event loop was blocked."""

    @property
    def command(self) -> list[str]:
        if self.profile is None and self.lag is None:
            return [sys.executable, "-m", "letta_bridge"]
        words = [sys.executable, "-m", "benchmarks.watched"]
        words += ["--profile", str(self.profile)] if self.profile else []
        words += ["--lag", str(self.lag)] if self.lag else []
        return [*words, "--"]


class BenchedBridge(LocalBridge):
    """The bridge as its users run it, with its process id, started without the polling steps of a test."""

    def __init__(self, folder: Path, *, watch: Watch | None = None, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, settings=settings)
        self.watch = watch or Watch()

    @property
    def pid(self) -> int:
        """The process id of the last start."""
        assert self._process is not None
        return self._process.pid

    async def start(self, seconds: float = 90) -> None:
        """Start it and wait until it is ready, looking every 10 ms."""
        command = [*self.watch.command, "run", "--config", str(self.config)]
        environment = self._environment()
        self._process = ChildProcess("the bridge", command, log=self.log, env=environment, cwd=self.folder)
        self._process.start()
        deadline = time.monotonic() + seconds
        while not await _ready(self.port):
            if not self._process.running or time.monotonic() > deadline:
                raise StackError(f"the bridge is not ready\n{self._process.log_tail(30)}")
            await asyncio.sleep(0.01)


async def _ready(port: int) -> bool:
    """Whether the bridge says that it is ready, asked with as little work as possible."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /_matrix/mau/ready HTTP/1.1\r\nHost: bridge\r\nConnection: close\r\n\r\n")
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
