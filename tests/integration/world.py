"""A whole bridge between a fake homeserver and a fake Letta, over real HTTP, for the tests in this folder."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from letta_bridge.bridge import LettaBridge
from letta_bridge.config import Config, parse
from letta_bridge.testing.fake_homeserver import FakeHomeserver, Person, Rendered
from letta_bridge.testing.fake_letta import FakeLetta
from letta_bridge.wiring import turn_settings

DOMAIN = "test.local"
BOT = f"@lettabridge:{DOMAIN}"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def until(what: Callable[[], Any], timeout: float = 10.0, *, why: str = "") -> Any:
    """Poll an observable condition until it holds; fails with ``why`` at the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        value = what()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert loop.time() < deadline, why or "condition not reached"
        await asyncio.sleep(0.01)


@dataclass
class World:
    """The three parts, and shortcuts of a test."""

    hs: FakeHomeserver
    letta: FakeLetta
    folder: Path
    database: str
    overrides: dict[str, Any] = field(default_factory=dict)
    pace: dict[str, Any] = field(default_factory=lambda: {"settle": 0.2, "unknown_pause": 0.3})
    """Pauses of turns that no configuration key has, shorter than in life (fields of TurnSettings)."""
    port: int = field(default_factory=free_port)
    bridge: LettaBridge | None = None

    def settings(self) -> dict[str, Any]:
        """What the configuration file would say."""
        data: dict[str, Any] = {
            "homeserver": {"url": self.hs.url, "domain": DOMAIN},
            "appservice": {
                "url": f"http://127.0.0.1:{self.port}",
                "port": self.port,
                "as_token": self.hs.appservice.as_token,
                "hs_token": self.hs.appservice.hs_token,
                "ping_interval": 1.0,
            },
            "letta": {"url": self.letta.url, "poll_interval": 60.0, "request_timeout": 2.0},
            "database": {"uri": self.database},
            "permissions": {DOMAIN: "user", f"@admin:{DOMAIN}": "admin"},
            "management": {"rooms": False},
            "limits": {"messages_per_minute": 1000},
            "shutdown": {"drain_s": 1.0},
        }
        for path, value in self.overrides.items():
            node = data
            *above, last = path.split(".")
            for name in above:
                node = node.setdefault(name, {})
            node[last] = value
        return data

    def config(self) -> Config:
        return parse(self.settings(), base=self.folder)

    async def start(self, **overrides: Any) -> LettaBridge:
        """Start the bridge (again) and wait until it is ready and every agent is mirrored."""
        self.overrides |= {key.replace("__", "."): value for key, value in overrides.items()}
        self.hs.appservice_url = f"http://127.0.0.1:{self.port}"
        config = self.config()
        self.bridge = LettaBridge(config, turns=replace(turn_settings(config), **self.pace))
        await self.bridge.start()
        await until(lambda: self.bridge is not None and self.bridge.ready, why="bridge not ready")
        return self.bridge

    async def mirrored(self) -> None:
        """Wait until every agent of Letta has puppet, portal and its place in the space."""
        bridge = self.bridge
        assert bridge is not None

        async def done() -> bool:
            rows = await bridge.agents.all()
            ready = [row for row in rows if row.in_space and row.portal_joined]
            return len(ready) >= len(self.letta.agents)

        await until(done, why="agents not mirrored")

    async def stop(self) -> None:
        if self.bridge is not None:
            await self.bridge.stop()
            self.bridge = None

    async def restart(self, **overrides: Any) -> LettaBridge:
        await self.stop()
        return await self.start(**overrides)

    def puppet(self, agent_id: str) -> str:
        return f"@letta_{agent_id.removeprefix('agent-')}:{DOMAIN}"

    async def portal(self, agent_id: str) -> str:
        assert self.bridge is not None
        rows = {row.agent_id: row for row in await self.bridge.agents.all()}
        room = rows[agent_id].portal_room  # type: ignore[index]
        assert room is not None
        return room

    async def dm(self, person: Person, agent_id: str, text: str | None = None) -> str:
        """A DM as Element makes it; waits until the puppet is in."""
        room = await person.create_dm(self.puppet(agent_id), text=text)
        await person.wait_joined(room, self.puppet(agent_id))
        return room


async def settled(world: World) -> None:
    """Everything that happened so far has reached the bridge and was decided there."""
    await world.hs.wait_pushed()
    assert world.bridge is not None
    await until(world.bridge.inbox_is_empty, why="events wait to be decided")


def notices(person: Person, room: str) -> list[Rendered]:
    """What the bridge itself said in the room, as the person sees it."""
    return [message for message in person.messages(room) if message.msgtype == "m.notice"]


async def a_group(world: World, **overrides: Any) -> tuple[str, str, str, Person, Person]:
    """A room of Alice and Bob with the agents Ada and Basil."""
    ada, basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob", auto_join=True)
    await world.start(**overrides)
    room = await alice.create_room(invite=[bob.mxid, world.puppet(ada), world.puppet(basil)])
    for agent in (ada, basil):
        await alice.wait_joined(room, world.puppet(agent))
    await settled(world)
    return room, ada, basil, alice, bob


@asynccontextmanager
async def a_world(folder: Path, database: str, *, flavour: str = "synapse", **letta: Any) -> AsyncIterator[World]:
    async with FakeHomeserver(flavour=flavour, backoff_scale=0.02) as hs, FakeLetta(**letta) as fake:  # type: ignore[arg-type]
        world = World(hs, fake, folder, database)
        try:
            yield world
        finally:
            await world.stop()
