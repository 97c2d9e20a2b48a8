"""What was read back and what was pushed at the same moment come in the order in which it was said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from letta_bridge.db.database import Database
from letta_bridge.db.inbox import Arrival, Inbox, arrival
from letta_bridge.ids import RoomID

ROOM = RoomID("!room:test.local")


@pytest_asyncio.fixture
async def inbox(tmp_path: Path, database_uri: str) -> AsyncIterator[tuple[Database, Inbox]]:
    db = Database(database_uri, tmp_path)
    await db.open()
    yield db, Inbox(db)
    await db.close()


def event(name: str) -> Arrival:
    """``text…`` is a message, anything else a piece of state, which reading back leaves out."""
    said: dict[str, Any] = {"event_id": f"${name}", "room_id": ROOM, "sender": "@alice:test.local", "content": {}}
    kind = {"type": "m.room.message"} if name.startswith("text") else {"type": "m.room.member", "state_key": name}
    return arrival({**said, **kind})


@pytest.mark.parametrize(
    ("pushed", "read", "order"),
    [
        (["join", "text1", "text2"], ["text1", "text2", "text3"], ["join", "text1", "text2", "text3"]),
        (["join", "text2", "topic"], ["text1", "text2", "text3"], ["join", "text1", "text2", "text3", "topic"]),
        (["text1", "text4"], ["text1", "text2", "text3"], ["text1", "text2", "text3", "text4"]),
        (["text3"], ["text1", "text2"], ["text1", "text2", "text3"]),
        ([], ["text1", "text2"], ["text1", "text2"]),
    ],
)
async def test_order(inbox: tuple[Database, Inbox], pushed: list[str], read: list[str], order: list[str]) -> None:
    db, store = inbox
    await store.record([event(name) for name in pushed])
    await db.write(lambda conn: store.insert_caught_up(conn, ROOM, [event(name) for name in read], 0))
    found = [one.event_id.removeprefix("$") for one in await store.waiting(ROOM, 100)]
    assert found == order
