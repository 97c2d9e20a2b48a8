"""A PostgreSQL 16 with pgvector of one's own: loopback, no password, nothing synced to disk unless asked for."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from letta_bridge.testing.stack.install import ensure, postgres_home
from letta_bridge.testing.stack.process import ChildProcess, StackError, Tick, child_environment, free_port

_UNPRIVILEGED = "nobody"
_PREFIX = "letta-bridge-postgres-"
_LOCK = "in-use"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "timezone": "UTC",
}


class LocalPostgres:
    """``async with LocalPostgres() as postgres``: an empty server while the block runs, no trace afterwards.

    PostgreSQL refuses to run as root: root starts it as ``nobody``, whose data must lie where that user gets
    to. That is why its folder is a temporary one and never inside the checkout. ``synced``: commits are on the disk
    before they are confirmed, as in production.
    """

    def __init__(self, *, synced: bool = False, tick: Tick | None = None) -> None:
        self.port = free_port()
        self._settings = {key: "on" if synced and value == "off" else value for key, value in _SETTINGS.items()}
        self._tick = tick
        self._user = _UNPRIVILEGED if os.getuid() == 0 else None
        self._folder = Path()
        self._in_use: IO[str] | None = None
        self._process: ChildProcess | None = None

    @property
    def pid(self) -> int:
        """The process id of the server (of its postmaster)."""
        if self._process is None:
            raise StackError("PostgreSQL was not started")
        return self._process.pid

    def url(self, database: str) -> str:
        """The URL of one database of this server (it need not exist)."""
        return f"postgresql://postgres:postgres@127.0.0.1:{self.port}/{database}"

    async def __aenter__(self) -> Self:
        """Start it; raises StackError when it cannot be installed or started."""
        await asyncio.to_thread(ensure, "postgres")
        self._folder, self._in_use = await asyncio.to_thread(_open_folder)
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def shut_down(self) -> None:
        """Stop the server, as for a restart: clients are disconnected, the data stays for :meth:`serve`."""
        if self._process:
            await self._process.stop(signal.SIGINT)  # PostgreSQL's fast shutdown

    async def stop(self) -> None:
        """Stop it and remove its data."""
        try:
            await self.shut_down()
        finally:
            if self._in_use:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._in_use.close()

    async def create_database(self, name: str) -> str:
        """A new, empty database; returns its URL."""
        await self.run_sql(f'create database "{name}"')
        return self.url(name)

    async def drop_database(self, name: str) -> None:
        """Remove a database, also under somebody's feet."""
        await self.run_sql(f'drop database if exists "{name}" with (force)')

    async def run_sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as superuser; returns psql's bare output, raises StackError with the server's words."""
        answer = await asyncio.to_thread(self._psql, statement, database)
        if answer.returncode:
            raise StackError(f"PostgreSQL refused: {answer.stderr.strip()}")
        return answer.stdout.strip()

    async def _start(self) -> None:
        programs = await asyncio.to_thread(self._reachable_programs)
        data, log = self._folder / "data", self._folder / "postgres.log"
        environment = child_environment({"HOME": str(self._folder), "LC_ALL": "C.UTF-8"}, without=("PG",))
        create: list[str | Path] = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        first = ChildProcess("initdb", create, log=log, env=environment, cwd=Path("/"), user=self._user)
        first.start()
        try:
            if await first.wait_exit(60):
                raise StackError(f"PostgreSQL could not create its data folder\n{first.log_tail()}")
        finally:
            first.kill()
        await self.serve()

    async def serve(self) -> None:
        """Start the server on the data that are there, on the same port as before."""
        programs = await asyncio.to_thread(self._reachable_programs)
        data, log = self._folder / "data", self._folder / "postgres.log"
        environment = child_environment({"HOME": str(self._folder), "LC_ALL": "C.UTF-8"}, without=("PG",))
        settings = [word for key, value in self._settings.items() for word in ("-c", f"{key}={value}")]
        serve: list[str | Path] = [programs / "postgres", "-D", data, "-p", str(self.port), *settings]
        self._process = ChildProcess("PostgreSQL", serve, log=log, env=environment, cwd=Path("/"), user=self._user)
        self._process.start()
        await self._process.wait_ready(lambda: self._psql("select 1", "postgres").returncode == 0, 60, self._tick)

    def _reachable_programs(self) -> Path:
        """The folder of the programs: of a copy when the unprivileged user cannot get to the original."""
        home = postgres_home()
        if self._user is None:
            return home / "bin"
        shutil.chown(self._folder, self._user)
        if _can_run(home / "bin" / "initdb", self._user):
            return home / "bin"
        copy = self._folder / "programs"
        if copy.is_dir():
            return copy / home.relative_to(home.parents[1]) / "bin"
        for part in (home, home.parent.with_suffix(".libs")):
            if part.is_dir():
                shutil.copytree(part, copy / part.relative_to(home.parents[1]), symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)
        return copy / home.relative_to(home.parents[1]) / "bin"

    def _psql(self, statement: str, database: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [
            postgres_home() / "bin" / "psql",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "postgres",
        ]
        options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statement]
        environment = child_environment({"PGCONNECT_TIMEOUT": "10"}, without=("PG",))
        return subprocess.run([*command, *options], capture_output=True, text=True, env=environment, check=False)


def _can_run(program: Path, user: str) -> bool:
    try:
        answer = subprocess.run([program, "--version"], user=user, cwd="/", capture_output=True, check=False)
    except PermissionError:
        return False
    return answer.returncode == 0


def _open_folder() -> tuple[Path, IO[str]]:
    """A new temporary folder below one that every user can enter, and the lock that says that it is in use.

    Folders that runs left behind which were killed are removed on the way.
    """
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        place = Path(base).resolve()
        if place.is_dir() and all(step.stat().st_mode & 0o001 for step in (place, *place.parents)):
            break
    else:
        place = Path(tempfile.gettempdir())
    for old in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (old / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)
    # it gets its name once it is locked, or another run could take it for one that was left behind
    folder = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))
    in_use = (folder / _LOCK).open("w")
    fcntl.flock(in_use, fcntl.LOCK_EX)
    return folder.rename(place / folder.name.removeprefix(".")), in_use
