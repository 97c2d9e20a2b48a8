"""An event that cannot be dispatched at first is not passed by those that were said after it."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from letta_bridge.db.database import DATABASE_ERRORS, Connection
from letta_bridge.db.turns import NewMessage
from letta_bridge.matrix import envelope

from .world import World, settled, until


@pytest.mark.parametrize("which", ["one", "two", "three"])
async def test_order_is_kept_when_events_written_together_fail(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    bridge = await world.start()
    room = await world.dm(alice, agent)
    await settled(world)
    add, failed = bridge.turns.add, 0

    async def failing(conn: Connection, new: NewMessage) -> Any:
        nonlocal failed
        if envelope.open_(new.text).body == which and failed < 2:
            failed += 1
            raise ValueError("something unexpected")
        return await add(conn, new)

    monkeypatch.setattr(bridge.turns, "add", failing)
    world.hs.hold_push()
    for text in ("one", "two", "three"):
        await alice.send(room, text)
    world.hs.release_push()

    def heard() -> list[str]:
        return [envelope.open_(text).body for turn in world.letta.turns(agent) for text in turn.texts]

    await until(lambda: len(heard()) == 3, 20)
    assert heard() == ["one", "two", "three"]


def test_what_asyncpg_raises_when_a_connection_breaks_is_the_databases_error() -> None:
    """It says nothing against the event that was being handled."""
    for error in (asyncpg.InternalClientError, asyncpg.InterfaceError, asyncpg.ConnectionDoesNotExistError):
        assert issubclass(error, DATABASE_ERRORS)
