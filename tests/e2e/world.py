"""A bridge as its users have it: a real Synapse, the bridge as a child process, people with matrix-nio."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from letta_bridge.ids import RoomID
from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_letta import FakeLetta
from letta_bridge.testing.person import Message
from letta_bridge.testing.stack.bridge import LocalBridge
from letta_bridge.testing.stack.synapse import Account, LocalSynapse
from tests.conftest import RealSynapse

from .nio_person import NioPerson

T = TypeVar("T")


class Guests(NamedTuple):
    """Accounts that the configuration names."""

    host: Account
    """Is invited to everything."""
    stranger: Account
    """May not talk to agents."""


@dataclass(kw_only=True)
class Bridged:
    """Synapse, a running bridge, and who is there. Letta is whatever ``letta.url`` in the settings names."""

    synapse: LocalSynapse
    bridge: LocalBridge
    guests: Guests
    _clients: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def domain(self) -> str:
        return self.synapse.domain

    @property
    def bot(self) -> str:
        return f"@lettabridge:{self.domain}"

    @property
    def space_alias(self) -> str:
        return f"#letta_space:{self.domain}"

    def puppet(self, agent_id: str) -> str:
        return f"@letta_{agent_id.removeprefix('agent-')}:{self.domain}"

    def portal_alias(self, agent_id: str) -> str:
        return f"#letta_{agent_id.removeprefix('agent-')}:{self.domain}"

    async def person(self, name: str) -> NioPerson:
        """Somebody new, who may talk to agents; their client runs until the end of the test."""
        return await self.client(await self.synapse.register(f"{name}_{secrets.token_hex(4)}"))

    async def client(self, account: Account) -> NioPerson:
        """A client of this account; it runs until the end of the test."""
        return await self._clients.enter_async_context(NioPerson(self.synapse.url, account))

    async def close_clients(self) -> None:
        """End every client."""
        await self._clients.aclose()

    async def dm(self, person: NioPerson, agent_id: str, text: str) -> tuple[RoomID, Message]:
        """A new DM whose first message is answered with its text: its room, and the answer."""
        room_id = await person.create_dm(self.puppet(agent_id), text)
        return room_id, await person.wait_message(room_id, self.puppet(agent_id), text)

    async def ask(self, person: NioPerson, room_id: str, agent_id: str, text: str, answer: str) -> Message:
        """Say something and wait for the answer to it that has this in its text."""
        event_id = await person.say(room_id, text)
        return await person.wait_message(room_id, self.puppet(agent_id), answer, after=event_id)

    async def portal(self, person: NioPerson, agent_id: str) -> RoomID:
        """The agent's portal, to which this person has been invited; joined."""
        room_id = await self.portal_of(person, agent_id)
        await person.wait_invite(room_id)
        await person.join(room_id)
        return room_id

    async def portal_of(self, person: NioPerson, agent_id: str) -> RoomID:
        """The room behind the agent's alias, once it is there."""

        async def found() -> str | None:
            answer = await person.client.room_resolve_alias(self.portal_alias(agent_id))
            return getattr(answer, "room_id", None)

        return RoomID(await until(found, f"{self.portal_alias(agent_id)} leads nowhere"))


@dataclass(kw_only=True)
class World(Bridged):
    """With FakeLetta."""

    letta: FakeLetta

    def told(self, agent_id: str) -> list[envelope.Message]:
        """What the agent was told, message by message."""
        return [envelope.open_(text) for turn in self.letta.turns(agent_id) for text in turn.texts]

    def bodies(self, agent_id: str) -> list[str]:
        """The texts that the agent was told."""
        return [message.body for message in self.told(agent_id)]


async def until(look: Callable[[], Awaitable[T]], what: str, seconds: float = 20) -> T:
    """The first true answer to a question about the outside; fails with ``what`` at the deadline."""
    deadline = time.monotonic() + seconds
    while not (answer := await look()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)
    return answer


async def guests_of(synapse: LocalSynapse) -> Guests:
    """New accounts for a configuration to name."""
    tag = secrets.token_hex(4)
    return Guests(await synapse.register(f"host_{tag}"), await synapse.register(f"stranger_{tag}"))


def settings_for(letta_url: str, domain: str, guests: Guests, **more: str) -> dict[str, str]:
    """What the tests of this folder configure otherwise than ``letta-bridge init``; ``__`` in names means a dot."""
    return {
        "letta.url": letta_url,
        "letta.poll_interval": "1",
        "mirror.invite": json.dumps([guests.host.user_id]),
        "permissions": json.dumps({domain: "user", guests.stranger.user_id: "none"}),
        "limits.messages_per_minute": "1000",
        "shutdown.drain_s": "1",
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def a_bridge(folder: Path, synapse: RealSynapse, settings: Mapping[str, str]) -> LocalBridge:
    """A bridge that the session's Synapse knows, with a database of its own. One at a time can run."""
    folder.mkdir(parents=True, exist_ok=True)
    database = {"database.uri": f"sqlite:{folder / 'bridge.db'}"}
    bridge = LocalBridge(folder, port=synapse.appservice_port, settings={**settings, **database})
    bridge.config = synapse.config
    return bridge


@asynccontextmanager
async def a_world(folder: Path, synapse: RealSynapse, **settings: str) -> AsyncIterator[World]:
    """A running bridge between the session's Synapse and a FakeLetta of its own."""
    guests = await guests_of(synapse.server)
    async with FakeLetta() as letta:
        bridge = a_bridge(folder, synapse, settings_for(letta.url, synapse.domain, guests, **settings))
        async with bridge:
            world = World(synapse=synapse.server, bridge=bridge, guests=guests, letta=letta)
            try:
                yield world
            finally:
                await world.close_clients()
