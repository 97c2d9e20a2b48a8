"""A real Letta V1 server of one's own (0.16.8, the last of its kind), without Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from letta_bridge.testing.stack.install import ensure, python_of
from letta_bridge.testing.stack.loopback import answers, request_json
from letta_bridge.testing.stack.postgres import LocalPostgres
from letta_bridge.testing.stack.process import ChildProcess, StackError, Tick, child_environment, free_port

_SCHEMA = Path(__file__).with_name("letta_schema.py")
_SETTINGS = {
    # With the default (no pooling) requests hang at random for about a minute.
    "LETTA_DISABLE_SQLALCHEMY_POOLING": "false",
    "LETTA_TELEMETRY_DISABLE": "1",
    "LETTA_DISABLE_TRACING": "true",
    "DO_NOT_TRACK": "1",
    "MCP_DISABLE_STDIO": "true",
}
_NOT_INHERITED = (
    "LETTA_",
    "OPENAI_",
    "OLLAMA_",
    "ANTHROPIC_",
    "GEMINI_",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "STEP_COMPLETE_",
)


class LocalLetta:
    """``async with LocalLetta(folder, postgres, provider) as letta``: it answers at ``letta.url``.

    ``provider`` are the environment variables that tell Letta where its models are (``OPENAI_API_KEY``,
    ``OPENAI_API_BASE``, ``OLLAMA_BASE_URL``); they must answer already, because Letta reads the model list
    once, at its start. With ``password`` the server demands it as the API key. The database is created in
    ``postgres``.
    """

    def __init__(
        self,
        folder: Path,
        postgres: LocalPostgres,
        provider: Mapping[str, str],
        *,
        password: str | None = None,
        port: int | None = None,
        database: str = "letta",
        tick: Tick | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.password = password
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._postgres = postgres
        self._provider = dict(provider)
        self._database = database
        self._tick = tick
        self._process: ChildProcess | None = None

    @property
    def log(self) -> Path:
        return self.folder / "letta.log"

    async def __aenter__(self) -> Self:
        """Create its database and start it; raises StackError when that fails."""
        await asyncio.to_thread(ensure, "letta")
        for part in (self.folder, self.folder / "home", self.folder / "letta"):
            part.mkdir(parents=True, exist_ok=True)
        try:
            await self._create_database()
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it again after ``stop`` or ``kill``, on the same database and port."""
        command: list[str | Path] = [
            python_of("letta-venv").parent / "letta",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        if self.password:
            command.append("--secure")
        self._process = ChildProcess("Letta", command, log=self.log, env=self._environment(), cwd=self.folder)
        self._process.start()
        await self._process.wait_ready(lambda: answers(f"{self.url}/v1/health/"), 240, self._tick)

    async def stop(self) -> None:
        """Stop it; its database stays."""
        if self._process:
            await self._process.stop(grace=5)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process:
            self._process.kill()

    async def models(self) -> list[str]:
        """The handles of the language models that it offers to agents."""
        offered: list[dict[str, Any]] = await asyncio.to_thread(
            request_json, f"{self.url}/v1/models/", token=self.password
        )
        return [model["handle"] for model in offered if model.get("model_type") == "llm"]

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log, for a person to read."""
        return self._process.log_tail(lines) if self._process else ""

    async def _create_database(self) -> None:
        url = await self._postgres.create_database(self._database)
        command: list[str | Path] = [python_of("letta-venv"), _SCHEMA, url]
        schema = ChildProcess("Letta's schema", command, log=self.log, env=self._environment(), cwd=self.folder)
        schema.start()
        try:
            if await schema.wait_exit(180, self._tick):
                raise StackError(f"Letta's tables could not be created\n{schema.log_tail()}")
        finally:
            schema.kill()

    def _environment(self) -> dict[str, str]:
        own = {
            "HOME": str(self.folder / "home"),
            "LETTA_DIR": str(self.folder / "letta"),
            "LETTA_PG_URI": f"{self._postgres.url(self._database)}?sslmode=disable",
            "LETTA_SERVER_URL": self.url,  # the tools by which agents write to each other call back to it
        }
        if self.password:
            own["LETTA_SERVER_PASSWORD"] = self.password
        return child_environment({**_SETTINGS, **own, **self._provider}, without=_NOT_INHERITED)
