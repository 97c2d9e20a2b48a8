"""What fuzzing found that needs two transactions at a time."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from letta_bridge.db.database import Connection, Database
from letta_bridge.db.outbox import Outbox
from letta_bridge.db.turns import Turns
from letta_bridge.ids import EventID, TurnID


async def _wait(event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await event.wait()


@pytest.mark.postgres
async def test_a_turn_that_ends_while_its_last_message_goes_out_is_closed(postgres_url: str, tmp_path: Path) -> None:
    """Neither sees the other's half: whoever comes second has to wait for the first."""
    db = Database(postgres_url, tmp_path)
    await db.open()
    turns, outbox = Turns(db), Outbox(db)
    turn_id = TurnID(
        await db.fetchval(
            "INSERT INTO turn (lane, agent_id, room_id, source, state, created_at) "
            "VALUES ('agent:a', 'a', '!r', 's', 'running', 0) RETURNING turn_id"
        )
    )
    seq = await db.fetchval(
        "INSERT INTO outbox (txn_id, room_id, sender, type, content, turn_id, state, created_at) "
        "VALUES ('t', '!r', '@a:b', 'm.room.message', '{}', $1, 'pending', 0) RETURNING seq",
        turn_id,
    )
    sent, looked, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def send(conn: Connection) -> None:
        await outbox.sent(conn, seq, EventID("$e"))
        sent.set()
        await _wait(looked)
        await turns.close_delivered(conn, turn_id)
        closed.set()

    async def end(conn: Connection) -> None:
        await sent.wait()
        assert await turns.replying(conn, turn_id)
        await turns.close_delivered(conn, turn_id)
        looked.set()
        await _wait(closed)

    try:
        await asyncio.gather(db.write(send), db.write(end))
        assert await db.fetchval("SELECT state FROM turn") == "done"
    finally:
        await db.close()
