"""What tests of permissions, pauses and alarms share: people who command the bot, and time that goes by."""

from __future__ import annotations

import re

from letta_bridge.db.database import Connection
from letta_bridge.testing.fake_homeserver import Person, Rendered

from .world import BOT, DOMAIN, World, notices, settled, until

ADMIN = f"@admin:{DOMAIN}"


async def dm_with_bot(person: Person) -> str:
    """A direct chat with the bot, in which commands need no prefix."""
    room = await person.create_dm(BOT)
    await person.wait_joined(room, BOT)
    return room


async def ask(person: Person, room: str, text: str, timeout: float = 10.0) -> str:
    """Write a command; what the bridge answers."""
    known = {message.event_id for message in person.messages(room)}
    event_id = await person.send(room, text)

    def answer() -> Rendered | None:
        for message in notices(person, room):
            if message.event_id not in known and message.reply_to in (event_id, None):
                return message
        return None

    found: Rendered = await until(answer, timeout, why=f"no answer to {text!r}")
    return found.body


async def answered(world: World, person: Person, room: str, agent: str, text: str, timeout: float = 10.0) -> None:
    """Wait for the agent's answer to a text."""
    await person.wait_message(
        room, sender=world.puppet(agent), text=re.compile(f"echo: (?s:.*){re.escape(text)}"), timeout=timeout
    )


async def said(person: Person, room: str, pattern: str, timeout: float = 10.0) -> str:
    """Wait for a notice; its text."""
    message = await person.wait_message(room, text=re.compile(pattern), timeout=timeout)
    assert message.msgtype == "m.notice"
    return message.body


def texts_of(person: Person, room: str) -> list[str]:
    return [message.body for message in notices(person, room)]


async def pass_time(conn: Connection, seconds: float) -> None:
    """Let every alarm, and what was told of it, be older."""
    await conn.execute(f"UPDATE alarm SET since = since - {seconds}, cleared_at = cleared_at - {seconds}")
    await conn.execute(f"UPDATE told SET at = at - {seconds} WHERE topic LIKE 'alarm:%'")


async def older(world: World, seconds: float) -> None:
    """The same in a running bridge, which looks at once what is due now."""
    assert world.bridge is not None
    await world.bridge.db.write(lambda conn: pass_time(conn, seconds))
    world.bridge.lanes.wake("alarms")


async def own(world: World, agent: str, owner: str) -> None:
    """Make somebody the owner of an agent, as summoning it does."""
    assert world.bridge is not None
    await world.mirrored()
    await world.bridge.agents.update(agent, owner=owner)  # type: ignore[arg-type]


__all__ = ["ADMIN", "answered", "ask", "dm_with_bot", "older", "own", "pass_time", "said", "settled", "texts_of"]
