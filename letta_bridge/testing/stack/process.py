"""A child process that never outlives its parent: watched by polling, stopped by its id."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Tick = Callable[[], None]
"""Called about ten times a second while something is awaited; draws progress."""

_STEP = 0.1
_LOOPBACK = "127.0.0.1,localhost"
_handed_out: set[int] = set()


class StackError(Exception):
    """A server could not be installed, started or asked. The text, of several lines, is meant for a
    person."""


def free_port() -> int:
    """A TCP port that nobody listens on at 127.0.0.1; never the same one twice in this process."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _handed_out:
            _handed_out.add(port)
            return port


def child_environment(extra: Mapping[str, str] | None = None, *, without: Sequence[str] = ()) -> dict[str, str]:
    """This process's environment for a child: loopback never goes through a proxy, output is not buffered.

    Variables whose name starts with one of ``without`` are left out, then ``extra`` is added.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith(tuple(without))}
    for key in ("NO_PROXY", "no_proxy"):
        env[key] = f"{_LOOPBACK},{env[key]}" if env.get(key) else _LOOPBACK
    env["PYTHONUNBUFFERED"] = "1"
    return env | dict(extra or {})


@functools.cache
def _guard() -> tuple[str, ...]:
    """A prefix that makes the kernel kill the child when its parent dies (util-linux has it)."""
    program = shutil.which("setpriv")
    if program is None:
        return ()
    prefix = (program, "--pdeathsig", "KILL", "--")
    answer = subprocess.run([*prefix, "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return prefix if answer.returncode == 0 else ()


def guarded(command: Sequence[str | Path]) -> list[str]:
    """The command, prefixed so that it dies with this process where the system can do that."""
    return [*_guard(), *(str(word) for word in command)]


class ChildProcess:
    """A program in a session of its own, its output in ``log``.

    Start it from the main thread: where the kernel guards it, it dies with the thread that started it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = guarded(command)
        self._env = dict(env) if env is not None else child_environment()
        self._cwd = cwd
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; StackError when it was never started."""
        if self._process is None:
            raise StackError(f"{self.name} was not started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status once the process has ended (negative: the signal), else None."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; raises StackError when the program cannot be executed."""
        group = _group_of(self._user)
        try:
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    cwd=self._cwd,
                    start_new_session=True,
                    user=self._user,
                    group=group,
                    extra_groups=None if self._user is None else [],
                )
        except OSError as error:
            raise StackError(f"{self.name} cannot be started: {error}") from error

    async def wait_ready(self, probe: Callable[[], bool], seconds: float, tick: Tick | None = None) -> None:
        """Return when ``probe`` (called in a thread) says yes; StackError with the log's end when it is late.

        A process that ends while it is awaited is reported at once.
        """
        deadline = time.monotonic() + seconds
        while True:
            if not self.running:
                raise StackError(f"{self.name} ended with status {self.returncode}\n{self.log_tail()}")
            if await asyncio.to_thread(probe):
                return
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} was not ready within {seconds:.0f} s\n{self.log_tail()}")
            if tick:
                tick()
            await asyncio.sleep(_STEP)

    async def wait_exit(self, seconds: float, tick: Tick | None = None) -> int:
        """The exit status; StackError when the process still runs after ``seconds``."""
        deadline = time.monotonic() + seconds
        while (status := self.returncode) is None:
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} still runs after {seconds:.0f} s\n{self.log_tail()}")
            if tick:
                tick()
            await asyncio.sleep(_STEP / 2)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process; nothing happens when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    async def stop(self, first: signal.Signals = signal.SIGTERM, grace: float = 10.0) -> None:
        """End it: ``first``, after ``grace`` seconds KILL, then KILL for what it left in its session.

        Also when this task is cancelled meanwhile. Stopping twice is harmless.
        """
        if self._process is None:
            return
        try:
            self.send_signal(first)
            with contextlib.suppress(StackError):
                await self.wait_exit(grace)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it and its session at once, as a power cut would, and reap it."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its output, indented, or a word that there are none."""
        return log_tail(self.log, lines)


def log_tail(path: Path, lines: int = 15) -> str:
    """The last lines of a text file, indented under its path."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        text = ""
    tail = text.splitlines()[-lines:] or ["(empty)"]
    return "\n".join([f"  end of {path}:", *(f"    {line[:300]}" for line in tail)])


def _group_of(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd  # not on every platform

    return pwd.getpwnam(user).pw_gid
