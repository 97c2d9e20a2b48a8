"""People who give commands, in rooms and on the command line."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from letta_bridge.cli import main
from letta_bridge.testing.fake_homeserver import Person, Rendered

from .world import BOT, World, notices, until


async def bot_room(world: World, person: Person) -> str:
    """A direct chat with the bot."""
    room = await person.create_dm(BOT)
    await person.wait_joined(room, BOT)
    return room


async def asked(person: Person, room: str, text: str, timeout: float = 15.0, **content: Any) -> str:
    """Send it, and the text of the next notice."""
    before = len(notices(person, room))
    await person.send(room, text, **content)
    return (await told(person, room, before, timeout, why=f"no answer to {text}")).body


async def told(person: Person, room: str, before: int, timeout: float = 15.0, why: str = "") -> Rendered:
    """The notice that comes after the first ``before``."""
    await until(lambda: len(notices(person, room)) > before, timeout, why=why)
    return notices(person, room)[before]


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose sockets may have names."""
    with tempfile.TemporaryDirectory(prefix="lb") as folder:
        yield Path(folder)


@dataclass
class Typed:
    """What a command line gave."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


async def through(path: Path, *words: str, cwd: str = "/") -> list[dict[str, Any]]:
    """The lines that the socket answers with."""
    connector = aiohttp.UnixConnector(path=str(path))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post("http://bridge/v1/command", json={"words": list(words), "cwd": cwd}) as response,
    ):
        assert response.status == 200
        return [json.loads(line) async for line in response.content]


async def typed(capfd: Any, config: Path, *words: str) -> Typed:
    """``letta-bridge ctl`` in this process, on another thread."""
    capfd.readouterr()
    code = await asyncio.to_thread(main, ["ctl", "--config", str(config), *words])
    out, err = capfd.readouterr()
    return Typed(code, out, err)
