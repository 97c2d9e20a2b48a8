"""What an administrator's command line and an administrator of the homeserver see of a real Synapse."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ruamel.yaml import YAML

from letta_bridge.ids import MXID
from letta_bridge.matrix.homeserver import Homeserver
from letta_bridge.testing.stack.bridge import LocalBridge
from letta_bridge.testing.stack.loopback import Refused, request_json
from letta_bridge.testing.stack.synapse import Account, LocalSynapse
from tests.conftest import ADMIN, DOMAIN, RealSynapse

from .command_kit import TRANSCRIPT
from .nio_person import NioPerson
from .world import World, until

Room = dict[str, str]
"""Who is in a room, or was: the membership by user."""


@asynccontextmanager
async def a_new_synapse(folder: Path) -> AsyncIterator[RealSynapse]:
    """A Synapse in which nothing was done yet: what is counted in it is what the test did."""
    bridge = LocalBridge(folder / "bridge")
    server = LocalSynapse(folder / "synapse", domain=DOMAIN, registrations=[bridge.registration])
    await bridge.init(homeserver_url=server.url, domain=DOMAIN, letta_url="http://127.0.0.1:9", admin=ADMIN)
    async with server:
        yield RealSynapse(server, bridge.port, bridge.config, bridge.registration)


@asynccontextmanager
async def our_users(synapse: RealSynapse) -> AsyncIterator[Homeserver]:
    """The bridge's own users in somebody else's hands: what is done with them, no database knows."""
    registration = YAML(typ="safe").load(synapse.registration.read_text())
    bot = MXID(f"@{registration['sender_localpart']}:{synapse.domain}")
    homeserver = Homeserver(synapse.url, synapse.domain, registration["as_token"], bot)
    try:
        yield homeserver
    finally:
        await homeserver.close()


class Overseer:
    """An administrator of the homeserver, who sees every room."""

    def __init__(self, synapse: LocalSynapse, account: Account) -> None:
        self._url = synapse.url
        self._token = account.access_token

    @classmethod
    async def of(cls, synapse: LocalSynapse) -> Overseer:
        """A new one."""
        return cls(synapse, await synapse.register(f"overseer_{secrets.token_hex(4)}", admin=True))

    async def rooms(self) -> set[str]:
        """Every room of the homeserver."""
        answer = await self._ask("rooms?limit=1000")
        assert len(answer["rooms"]) == answer["total_rooms"]
        return {room["room_id"] for room in answer["rooms"]}

    async def state(self, room_id: str) -> list[dict[str, Any]]:
        """The present state of a room."""
        answer = await self._ask(f"rooms/{quote(room_id, safe='')}/state")
        return list(answer["state"])

    async def members(self, room_id: str) -> Room:
        """Everybody whom the room's state names, with their membership."""
        state = await self.state(room_id)
        return {e["state_key"]: e["content"]["membership"] for e in state if e["type"] == "m.room.member"}

    async def inside(self, room_id: str) -> set[str]:
        """Who is in a room."""
        return {who for who, membership in (await self.members(room_id)).items() if membership == "join"}

    async def mirrored(self, world: World, *agents: str) -> None:
        """Return when the rooms of these agents stand in the space, which is the last that the mirror does."""

        async def placed() -> bool:
            children = {e["state_key"] for e in await self.state(await self.named(world.space_alias)) if _is_child(e)}
            return {await self.named(world.portal_alias(agent)) for agent in agents} <= children

        await until(placed, "not every agent's room stands in the space")

    async def named(self, alias: str) -> str:
        """The room behind an alias, once it is there."""

        async def found() -> str | None:
            path = f"{self._url}/_matrix/client/v3/directory/room/{quote(alias, safe='')}"
            try:
                answer = await asyncio.to_thread(request_json, path, token=self._token)
            except Refused:
                return None
            return str(answer["room_id"])

        return str(await until(found, f"{alias} leads nowhere"))

    async def pictures(self, rooms: Iterable[str]) -> dict[str, set[str]]:
        """The events that make up the state of rooms: a change of anything in one of them changes its picture."""
        return {room: {event["event_id"] for event in await self.state(room)} for room in rooms}

    async def is_deactivated(self, user_id: str) -> bool:
        """Whether an account has ended."""
        answer = await self._ask(f"users/{quote(user_id, safe='')}", version="v2")
        return bool(answer["deactivated"])

    async def _ask(self, path: str, version: str = "v1") -> Any:
        url = f"{self._url}/_synapse/admin/{version}/{path}"
        return await asyncio.to_thread(request_json, url, token=self._token)


def _is_child(event: dict[str, Any]) -> bool:
    return event["type"] == "m.space.child" and bool(event["content"].get("via"))


async def ctl(world: World, *words: str, ok: bool = True) -> str:
    """``letta-bridge ctl``, to its end; what it printed."""
    return await typed(world, "ctl", *words, ok=ok)


async def ctl_json(world: World, *words: str) -> Any:
    """The data of the command's answer."""
    return json.loads(await typed(world, "ctl", "--json", *words))


async def typed(world: World, *words: str, ok: bool = True) -> str:
    """``letta-bridge`` with these words; what it printed, which has to succeed (or not)."""
    done = await world.bridge.command(*words)
    if path := os.environ.get(TRANSCRIPT):
        with Path(path).open("a") as file:
            file.write(
                f"### `letta-bridge {' '.join(words)}` -> {done.returncode}\n\n{done.stdout}\n{done.stderr}\n---\n"
            )
    assert (done.returncode == 0) is ok, f"{words}: {done.stdout}{done.stderr}\n{world.bridge.log_tail(30)}"
    return done.stdout if ok else done.stderr


def answers(person: NioPerson, room: str, sender: str, words: str) -> list[str]:
    """What this user said in the room with these words in it, as the person sees it."""
    return [message.body for message in person.messages(room, sender) if words in message.body]
