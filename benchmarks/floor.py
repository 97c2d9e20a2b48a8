"""The floor: what a developer writes in an afternoon with mautrix, in memory, without promises.

Two of them, in processes of their own. ``echo`` answers every message at once with the same text. ``naive`` asks Letta
and sends what it says. Nothing is stored, retried or put in order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from letta_client import AsyncLetta
from mautrix.appservice import AppService, IntentAPI
from mautrix.types import (
    EventType,
    Membership,
    MessageEvent,
    MessageType,
    RoomID,
    SpaceChildStateEventContent,
    UserID,
)

from .processes import announce, until_terminated

log = logging.getLogger("floor")


class Floor:
    """One bare appservice."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.domain: str = settings["domain"]
        self.prefix: str = settings["prefix"]
        self.az = AppService(
            settings["homeserver"],
            self.domain,
            settings["as_token"],
            settings["hs_token"],
            settings["bot"],
            settings["id"],
        )
        self.letta = AsyncLetta(base_url=settings["letta"], api_key="none") if settings["kind"] == "naive" else None
        self.rooms: dict[RoomID, IntentAPI] = {}
        self.az.matrix_event_handler(self.handle)

    async def handle(self, event: Any) -> None:
        """Join when invited, answer what people say."""
        if event.type == EventType.ROOM_MEMBER:
            await self.invited(event)
        elif event.type == EventType.ROOM_MESSAGE and event.content.msgtype == MessageType.TEXT:
            await self.said(event)

    async def invited(self, event: Any) -> None:
        if event.content.membership == Membership.INVITE and event.state_key.startswith(f"@{self.prefix}"):
            puppet = self.az.intent.user(UserID(event.state_key))
            await puppet.join_room(event.room_id)
            self.rooms[event.room_id] = puppet

    async def said(self, event: MessageEvent) -> None:
        puppet = self.rooms.get(event.room_id)
        if puppet is None or event.sender == puppet.mxid:
            return
        text = event.content.body if self.letta is None else await self.ask(puppet.mxid, event.content.body)
        await puppet.send_text(event.room_id, text)

    async def ask(self, puppet: str, text: str) -> str:
        """What the agent behind a puppet says to a message."""
        assert self.letta is not None
        agent = "agent-" + puppet.removeprefix(f"@{self.prefix}").partition(":")[0]
        answer = await self.letta.agents.messages.create(agent, messages=[{"role": "user", "content": text}])
        return "".join(str(m.content) for m in answer.messages if m.message_type == "assistant_message")

    async def provision(self, agents: list[str], concurrency: int, picture: bytes) -> None:
        """A space, and for every agent a puppet with name and avatar, and a room with it in the space."""
        await self.az.intent.ensure_registered()
        space = await self.az.intent.create_room(name="Agents", creation_content={"type": "m.space"})
        queue = iter(enumerate(agents))

        async def work() -> None:
            for number, agent in queue:
                puppet = self.az.intent.user(UserID(f"@{self.prefix}{agent.removeprefix('agent-')}:{self.domain}"))
                await puppet.ensure_registered()
                name = f"Agent {number}"
                await puppet.set_displayname(name)
                await puppet.set_avatar_url(await puppet.upload_media(picture, "image/png", "avatar"))
                room = await self.az.intent.create_room(
                    alias_localpart=puppet.mxid[1:].partition(":")[0], name=name, invitees=[puppet.mxid]
                )
                await puppet.join_room_by_id(room)
                child = SpaceChildStateEventContent(via=[self.domain])
                await self.az.intent.send_state_event(space, EventType.SPACE_CHILD, child, room)

        await asyncio.gather(*(work() for _ in range(concurrency)))


async def _run(settings: dict[str, Any], path: Path) -> None:
    floor = Floor(settings)
    await floor.az.start("127.0.0.1", settings["port"])
    floor.az.ready = True
    announce(path, {"port": settings["port"]})
    if agents := settings.get("provision"):
        picture = await asyncio.to_thread(Path(settings["picture"]).read_bytes)
        await floor.provision(agents, settings["concurrency"], picture)
    await until_terminated()
    await floor.az.stop()


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--settings", required=True, help="JSON")
    parser.add_argument("--announce", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    asyncio.run(_run(json.loads(options.settings), options.announce))


if __name__ == "__main__":
    main()
