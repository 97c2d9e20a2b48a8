"""Everything that the demo runs, started in the right order and stopped whatever happens."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from letta_client import AsyncLetta
from letta_client.types import CreateBlockParam

from letta_bridge.demo import model
from letta_bridge.ids import AgentID, puppet_suffix
from letta_bridge.testing.person import Person
from letta_bridge.testing.stack.bridge import LocalBridge
from letta_bridge.testing.stack.letta_server import LocalLetta
from letta_bridge.testing.stack.models import ModelServer
from letta_bridge.testing.stack.postgres import LocalPostgres
from letta_bridge.testing.stack.process import Tick, free_port
from letta_bridge.testing.stack.progress import Progress
from letta_bridge.testing.stack.synapse import Account, LocalSynapse

DOMAIN = "demo.localhost"
STEPS = 3
_PERSON = "you"
_PERSONAS = {
    "Ada": "I am Ada. I am precise, I like numbers, and I explain things step by step.",
    "Basil": "I am Basil. I garden and cook, and I answer with short lists.",
    "Cleo": "I am Cleo. I tell very short stories and ask good questions.",
}


@dataclass(frozen=True)
class Agent:
    """A demo agent and the names under which it is found in Matrix."""

    name: str
    agent_id: AgentID

    @property
    def mxid(self) -> str:
        return f"@letta_{puppet_suffix(self.agent_id)}:{DOMAIN}"

    @property
    def alias(self) -> str:
        return f"#letta_{puppet_suffix(self.agent_id)}:{DOMAIN}"


@dataclass(frozen=True)
class World:
    """The running demo."""

    homeserver_url: str
    account: Account
    person: Person
    agents: tuple[Agent, ...]
    provider: model.Provider
    model: str
    bridge: LocalBridge


def logs(folder: Path) -> list[Path]:
    """The logs of a demo in ``folder``, the most telling first."""
    return [path for path in (folder / name for name in _LOGS) if path.exists() and path.stat().st_size]


_LOGS = ("bridge/bridge.log", "letta/letta.log", "synapse/synapse.log", "model/model.log")


@asynccontextmanager
async def running(folder: Path, progress: Progress) -> AsyncIterator[World]:
    """The demo's world in ``folder``, which is emptied first. Raises StackError when a part does not come up."""
    await asyncio.to_thread(_make_empty, folder)
    provider = model.from_environment(os.environ)
    async with AsyncExitStack() as stack:
        with progress.step("starting Letta and Synapse") as tick:
            letta_port, synapse_port = free_port(), free_port()
            bridge = LocalBridge(folder / "bridge")
            await bridge.init(
                homeserver_url=f"http://127.0.0.1:{synapse_port}",
                domain=DOMAIN,
                letta_url=f"http://127.0.0.1:{letta_port}",
                admin=f"@{_PERSON}:{DOMAIN}",
            )
            synapse = LocalSynapse(
                folder / "synapse", domain=DOMAIN, registrations=[bridge.registration], port=synapse_port, tick=tick
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(stack.enter_async_context(synapse))
                letta_task = group.create_task(_letta(stack, folder, provider, letta_port, tick))
            letta = letta_task.result()
        with progress.step("creating a person and three agents"):
            account = await synapse.register(_PERSON)
            handle = model.choose(await letta.models(), os.environ.get(model.CHOICE))
            agents = await _create_agents(letta.url, handle)
        with progress.step("starting the bridge"):
            person = await stack.enter_async_context(Person(synapse.url, account.user_id, account.access_token))
            await stack.enter_async_context(bridge)
        yield World(synapse.url, account, person, agents, provider, handle, bridge)


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


async def _letta(stack: AsyncExitStack, folder: Path, provider: model.Provider, port: int, tick: Tick) -> LocalLetta:
    environment = provider.environment
    if provider.scripted:
        stand_in = await stack.enter_async_context(ModelServer(folder / "model", persona="demo"))
        environment = stand_in.provider
    postgres = await stack.enter_async_context(LocalPostgres())
    return await stack.enter_async_context(LocalLetta(folder / "letta", postgres, environment, port=port, tick=tick))


async def _create_agents(letta_url: str, handle: str) -> tuple[Agent, ...]:
    client = AsyncLetta(base_url=letta_url, api_key="none", max_retries=0, timeout=60)
    try:
        created = []
        for name, persona in _PERSONAS.items():
            blocks: list[CreateBlockParam] = [
                {"label": "persona", "value": persona},
                {"label": "human", "value": "Not met yet."},
            ]
            agent = await client.agents.create(
                name=name, model=handle, description=persona.partition(".")[2].strip(), memory_blocks=blocks
            )
            created.append(Agent(name, AgentID(agent.id)))
        return tuple(created)
    finally:
        await client.close()
