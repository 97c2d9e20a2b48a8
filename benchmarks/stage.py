"""What the rows are measured on: one Synapse, one FakeLetta, the bridge and the two floors, each a process."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from letta_bridge import registration
from letta_bridge.testing.stack.process import StackError, free_port
from letta_bridge.testing.stack.synapse import LocalSynapse

from .person import Person
from .processes import BenchedBridge, Child, Watch, cpu_seconds

DOMAIN = "bench.localhost"
PREFIXES = {"bridge": "letta_", "naive": "naive_", "echo": "echo_"}
FLOORS = ("naive", "echo")


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    folder: Path
    quick: bool = False
    profile: Path | None = None


class BenchedSynapse(LocalSynapse):
    """A Synapse whose processor time can be read."""

    def cpu(self) -> float:
        """Processor seconds so far."""
        assert self._process is not None
        return cpu_seconds(self._process.pid)


@dataclass
class Floor:
    """A floor's settings, and its process while it runs."""

    settings: dict[str, Any]
    folder: Path

    @property
    def registration(self) -> Path:
        return self.folder / "registration.yaml"

    def registration_data(self) -> dict[str, Any]:
        """As the homeserver is to know it."""
        one = self.settings
        names, domain = f"{one['prefix']}.*|{one['bot']}", DOMAIN.replace(".", "\\.")
        return {
            "id": one["id"],
            "url": f"http://127.0.0.1:{one['port']}",
            "as_token": one["as_token"],
            "hs_token": one["hs_token"],
            "sender_localpart": one["bot"],
            "rate_limited": False,
            "namespaces": {
                "users": [{"regex": f"^@({names}):{domain}$", "exclusive": True}],
                "aliases": [{"regex": f"^#{one['prefix']}.*$", "exclusive": True}],
                "rooms": [],
            },
        }

    def write_registration(self) -> None:
        """Write it where the homeserver reads it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.registration.write_text(json.dumps(self.registration_data()))

    def child(self, **more: Any) -> Child:
        """Its process, to be entered."""
        return Child("benchmarks.floor", ["--settings", json.dumps(self.settings | more)], self.folder)


def a_floor(kind: str, folder: Path, homeserver: str, letta: str) -> Floor:
    """A floor of this kind, with tokens and a port of its own."""
    settings = {
        "kind": kind,
        "id": kind,
        "bot": f"{kind}bot",
        "prefix": PREFIXES[kind],
        "domain": DOMAIN,
        "homeserver": homeserver,
        "letta": letta,
        "port": free_port(),
        "as_token": secrets.token_hex(24),
        "hs_token": secrets.token_hex(24),
    }
    return Floor(settings, folder)


@dataclass
class Stage:
    """Everything that runs. ``sides`` are ``bridge``, ``naive`` and ``echo``."""

    options: Options
    synapse: BenchedSynapse
    letta: Child
    bridge: BenchedBridge
    floors: dict[str, Floor]
    children: dict[str, Child] = field(default_factory=dict)
    people: dict[str, Person] = field(default_factory=dict)
    rooms: dict[tuple[str, int], str] = field(default_factory=dict)

    @property
    def agents(self) -> list[str]:
        return list(self.letta.said["agents"])

    @property
    def sides(self) -> tuple[str, ...]:
        return ("bridge", *FLOORS)

    def pid(self, side: str) -> int:
        return self.bridge.pid if side == "bridge" else self.children[side].pid

    def cpu(self, side: str) -> float:
        """Processor seconds of a side so far."""
        return cpu_seconds(self.pid(side))

    def puppet(self, side: str, number: int) -> str:
        """The user of a side for an agent."""
        return f"@{PREFIXES[side]}{self.agents[number].removeprefix('agent-')}:{DOMAIN}"

    async def dm(self, side: str, number: int) -> str:
        """The DM of the side's person with an agent, in which one message was answered already."""
        key = (side, number)
        if key not in self.rooms:
            person, puppet = self.people[side], self.puppet(side, number)
            room = self.rooms[key] = await person.create_dm(puppet)
            await self._joined(person, room, puppet)
            await person.ask(room, puppet, f"warm-{side}-{number}", 60)
        return self.rooms[key]

    async def _joined(self, person: Person, room: str, puppet: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            state = await person.state(room)
            if any(e.get("state_key") == puppet and e["content"].get("membership") == "join" for e in state):
                return
            if time.monotonic() > deadline:
                raise StackError(f"{puppet} did not join")
            await asyncio.sleep(0.1)


def bridge_settings(folder: Path, **more: str) -> dict[str, str]:
    """Production's settings, but for the limit that keeps one person from doing what is measured here."""
    return {
        "database.uri": f"sqlite:{folder / 'bridge.db'}",
        "permissions": json.dumps({DOMAIN: "user"}),
        "limits.messages_per_minute": "1000000",
        "mirror.invite": "[]",
        **more,
    }


async def mirrored(homeserver: str, token: str, count: int, seconds: float = 300) -> None:
    """Wait until the bridge's space has this many rooms."""
    base, headers = f"{homeserver}/_matrix/client/v3", {"Authorization": f"Bearer {token}"}
    deadline = time.monotonic() + seconds
    found = 0
    async with aiohttp.ClientSession(headers=headers) as http:
        while time.monotonic() < deadline:
            async with http.get(f"{base}/directory/room/{quote(f'#letta_space:{DOMAIN}')}") as answer:
                space = (await answer.json()).get("room_id")
            if space:
                async with http.get(f"{base}/rooms/{quote(space)}/state") as answer:
                    state = await answer.json()
                found = sum(event["type"] == "m.space.child" for event in state if isinstance(event, dict))
                if found >= count:
                    return
            await asyncio.sleep(0.5)
    raise StackError(f"{found} of {count} agents were mirrored in time")


@asynccontextmanager
async def a_stage(options: Options, agents: int) -> AsyncIterator[Stage]:
    """Everything running, all agents mirrored by the bridge, and a person for each side."""
    folder = options.folder
    async with AsyncExitStack() as stack:
        letta = await stack.enter_async_context(Child("benchmarks.letta", ["--agents", str(agents)], folder / "letta"))
        bridge = BenchedBridge(
            folder / "bridge",
            watch=Watch(profile=options.profile),
            settings=bridge_settings(folder / "bridge"),
        )
        port = free_port()
        homeserver = f"http://127.0.0.1:{port}"
        floors = {kind: a_floor(kind, folder / kind, homeserver, letta.said["url"]) for kind in FLOORS}
        for floor in floors.values():
            floor.write_registration()
        await bridge.init(
            homeserver_url=homeserver, domain=DOMAIN, letta_url=letta.said["url"], admin=f"@admin:{DOMAIN}"
        )
        files = [bridge.registration, *(floor.registration for floor in floors.values())]
        synapse = BenchedSynapse(folder / "synapse", domain=DOMAIN, registrations=files, port=port)
        await stack.enter_async_context(synapse)
        stage = Stage(options, synapse, letta, bridge, floors)
        for kind, floor in floors.items():
            stage.children[kind] = await stack.enter_async_context(floor.child())
        await stack.enter_async_context(bridge)
        for side in stage.sides:
            account = await synapse.register(f"person-{side}")
            stage.people[side] = await stack.enter_async_context(Person(synapse.url, account))
        known = await asyncio.to_thread(registration.read, bridge.registration)
        await mirrored(synapse.url, str(known["as_token"]), agents)
        yield stage
