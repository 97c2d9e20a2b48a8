"""FakeLetta as a process of its own, without any model's delay. Its answer names what it answers."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from aiohttp import web

from letta_bridge.testing.fake_letta import FakeLetta

from .processes import announce, until_terminated

_ENVELOPE = "[letta_bridge v"


def answer(texts: list[str]) -> str:
    """``re:`` and what people said, whether it came in the bridge's envelope or bare."""
    return "re: " + " ".join(map(_said, texts))


def _said(text: str) -> str:
    if not text.startswith(_ENVELOPE):
        return text
    return " ".join(line[2:] for line in text.split("\n") if line.startswith("| "))


async def _serve(agents: int, path: Path) -> None:
    async with FakeLetta() as letta:
        letta.reply = answer
        ids = [letta.add_agent(f"Agent {number}", tags=["bench"]) for number in range(agents)]

        async def turns(_: web.Request) -> web.Response:
            """Every turn so far: when it began and ended (the machine's monotonic clock), and of how many messages."""
            rows = [{"started": t.started_at, "ended": t.ended_at, "messages": len(t.texts)} for t in letta.turns()]
            return web.json_response(rows)

        app = web.Application()
        app.router.add_get("/turns", turns)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        announce(path, {"url": letta.url, "agents": ids, "control": f"http://127.0.0.1:{runner.addresses[0][1]}"})
        await until_terminated()
        await runner.cleanup()


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--announce", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.agents, options.announce))


if __name__ == "__main__":
    main()
