"""The bridge itself as a child process, from ``letta-bridge init`` to ``letta-bridge run``."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import letta_bridge
from letta_bridge.testing.stack.loopback import answers
from letta_bridge.testing.stack.process import ChildProcess, StackError, Tick, child_environment, free_port

_IMPORT_ROOT = Path(letta_bridge.__file__).parents[1]
_SECTION = "LETTA_BRIDGE__"


class LocalBridge:
    """``async with LocalBridge(folder) as bridge`` runs it; ``init`` must have written its files before.

    ``settings`` override the configuration for every run: ``{"letta.url": …, "database.uri": …}``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        tick: Tick | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = self.folder / "config.yaml"
        self.registration = self.folder / "registration.yaml"
        self.log = self.folder / "bridge.log"
        self.settings = dict(settings or {})
        self._tick = tick
        self._process: ChildProcess | None = None

    async def init(self, *, homeserver_url: str, domain: str, letta_url: str, admin: str, letta_key: str = "") -> None:
        """Write the configuration and the registration by ``letta-bridge init``; StackError when it refuses."""
        options = {
            "--dir": str(self.folder),
            "--homeserver-url": homeserver_url,
            "--domain": domain,
            "--letta-url": letta_url,
            "--letta-key": letta_key,
            "--admin": admin,
            "--listen": f"127.0.0.1:{self.port}",
        }
        command = [*_program(), "init", *(word for option in options.items() for word in option), "--yes"]
        answer = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, env=self._environment(), check=False
        )
        if answer.returncode:
            raise StackError(f"letta-bridge init failed ({answer.returncode}): {answer.stdout}{answer.stderr}")

    async def __aenter__(self) -> Self:
        """Start it and wait until it is ready; StackError with the end of its log when it is not."""
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, seconds: float = 90) -> None:
        """Start it (again) and wait until it says that it is ready."""
        command = [*_program(), "run", "--config", str(self.config)]
        environment = self._environment()
        self._process = ChildProcess("the bridge", command, log=self.log, env=environment, cwd=self.folder)
        self._process.start()
        await self._process.wait_ready(lambda: answers(f"{self.url}/_matrix/mau/ready"), seconds, self._tick)

    async def stop(self, grace: float = 30) -> int | None:
        """Ask it to end, as systemd does, and wait; its exit status (negative: it had to be killed)."""
        if self._process is None:
            return None
        await self._process.stop(signal.SIGTERM, grace)
        return self._process.returncode

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        if self._process:
            self._process.kill()

    async def command(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """``letta-bridge`` with these words and this bridge's configuration: its exit status, and what it printed."""
        command = [*_program(), words[0], "--config", str(self.config), *words[1:]]
        return await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            text=True,
            env=self._environment(),
            cwd=self.folder,
            timeout=seconds,
            check=False,
        )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log, for a person to read."""
        return self._process.log_tail(lines) if self._process else ""

    def _environment(self) -> dict[str, str]:
        overrides = {_SECTION + key.replace(".", "__").upper(): value for key, value in self.settings.items()}
        paths = {"PYTHONPATH": str(_IMPORT_ROOT)}
        return child_environment(paths | overrides, without=(_SECTION,))


def _program() -> list[str]:
    """The installed console script of this environment; where the package is not installed, the module."""
    script = Path(sys.executable).parent / "letta-bridge"
    return [str(script)] if script.exists() else [sys.executable, "-m", "letta_bridge"]
