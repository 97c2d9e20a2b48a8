"""What the tests in this folder share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from letta_bridge.testing.fake_homeserver import PushSettings, example_registration
from letta_bridge.testing.fake_tuwunel import FakeTuwunel

from ..integration.fake_homeserver_kit import Bridge

DOMAIN = "test.local"
BOT, GHOST = f"@lettabridge:{DOMAIN}", f"@letta_a:{DOMAIN}"
ALICE = f"@alice:{DOMAIN}"


@asynccontextmanager
async def a_fake(bridge: Bridge, path: Path | None = None, **settings: Any) -> AsyncIterator[FakeTuwunel]:
    """FakeTuwunel that pushes to a recording appservice."""
    url: str = bridge.url  # type: ignore[attr-defined]
    times = PushSettings(**{"timeout": 35.0, **settings})
    async with FakeTuwunel(example_registration(url=url), path, settings=times) as tuwunel:
        yield tuwunel


def text(body: str) -> dict[str, Any]:
    """A message of Alice's."""
    return {"type": "m.room.message", "sender": ALICE, "content": {"msgtype": "m.text", "body": body}}


def typing(*users: str) -> dict[str, Any]:
    """A typing notification."""
    return {"type": "m.typing", "room_id": "!r:test.local", "content": {"user_ids": list(users)}}
