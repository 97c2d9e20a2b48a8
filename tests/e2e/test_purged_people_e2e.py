"""Whom a real Synapse makes leave a room that an admin deletes, as the appservice is told of it."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import aiohttp
import pytest
from ruamel.yaml import YAML

from letta_bridge.ids import MXID, RoomID
from letta_bridge.matrix.homeserver import Homeserver
from letta_bridge.mirror.swept import swept_out
from tests.conftest import RealSynapse

from .honesty_kit import Inbox
from .test_room_calls_e2e import Client, _purge

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]


async def test_who_was_made_to_leave_is_told_from_who_left(synapse: RealSynapse) -> None:
    registration = YAML(typ="safe").load(synapse.registration.read_text())
    inbox, domain, tag = Inbox(), synapse.domain, secrets.token_hex(4)
    bot = MXID(f"@{registration['sender_localpart']}:{domain}")
    puppet = MXID(f"@letta_{tag}:{domain}")
    ours = (bot, puppet)
    homeserver = Homeserver(synapse.url, domain, registration["as_token"], bot)
    await inbox.start(synapse.appservice_port)
    try:
        admin = await synapse.server.register(f"root{tag}", admin=True)
        people = [await synapse.server.register(f"p{number}{tag}", admin=False) for number in range(4)]
        names = [person.user_id for person in people]
        await homeserver.bot.register()
        await homeserver.intent(puppet).register()
        room = await homeserver.bot.create_room({"preset": "private_chat", "invite": [puppet, *names]})
        await homeserver.intent(puppet).join(room)
        async with aiohttp.ClientSession() as session:
            for person in people[:3]:  # the fourth has not answered yet
                await Client(synapse.url, session, person).call("POST", "rooms", room, "join")
            await Client(synapse.url, session, people[0]).call("POST", "rooms", room, "leave")
            await _told(inbox, room, {names[0]})
            await asyncio.sleep(5.5)  # longer than the departures of one deletion are apart
            await _purge(Client(synapse.url, session, admin), RoomID(room))
            await _told(inbox, room, set(ours))
        left = _left(inbox, room)
        members = [event for event in inbox.events if event["type"] == "m.room.member" and event["room_id"] == room]
        swept = set(swept_out(reversed(members), lambda user: user in ours, domain))
        assert swept == left - {names[0], *ours}
        assert all(event["content"] == {"membership": "leave"} for event in members if _leaves(event))
    finally:
        await homeserver.close()
        await inbox.stop()


def _leaves(event: dict[str, Any]) -> bool:
    return bool(event["content"].get("membership") == "leave")


def _left(inbox: Inbox, room: str) -> set[str]:
    return {
        e["state_key"] for e in inbox.events if e["type"] == "m.room.member" and e["room_id"] == room and _leaves(e)
    }


async def _told(inbox: Inbox, room: str, users: set[str]) -> None:
    async with asyncio.timeout(20):
        while not users <= _left(inbox, room):
            await asyncio.sleep(0.1)
