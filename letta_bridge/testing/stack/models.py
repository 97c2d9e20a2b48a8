"""The scripted model server as a child process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import letta_bridge
from letta_bridge.testing.stack.loopback import answers, request_json
from letta_bridge.testing.stack.process import ChildProcess, child_environment, free_port

_IMPORT_ROOT = Path(letta_bridge.__file__).parents[1]


class ModelServer:
    """``async with ModelServer(folder) as model``: it answers at ``model.url`` while the block runs."""

    def __init__(self, folder: Path, *, persona: str = "echo", port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "letta_bridge.testing.model_server"]
        options = ["--port", str(self.port), "--persona", persona]
        self._folder = folder.absolute()
        self._process = ChildProcess(
            "the scripted model",
            [*command, *options],
            log=self._folder / "model.log",
            env=child_environment({"PYTHONPATH": str(_IMPORT_ROOT)}),
            cwd=self._folder,
        )

    @property
    def provider(self) -> dict[str, str]:
        """The environment variables that make Letta use it; its models are then ``openai-proxy/gpt-4o`` …"""
        base = f"{self.url}/v1"
        return {"OPENAI_API_KEY": "not-a-key", "OPENAI_API_BASE": base, "OPENAI_BASE_URL": base}

    async def __aenter__(self) -> Self:
        """Start it; raises StackError when it does not come up."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._process.start()
            await self._process.wait_ready(lambda: answers(f"{self.url}/v1/models"), 30)
        except BaseException:
            self._process.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()

    async def requests(self) -> list[dict[str, Any]]:
        """The latest requests that it got (``t``, ``path``, ``body``), newest last."""
        answer: list[dict[str, Any]] = await asyncio.to_thread(request_json, f"{self.url}/_log")
        return answer

    async def forget(self) -> None:
        """Empty the list of requests."""
        await asyncio.to_thread(request_json, f"{self.url}/_reset", {})
