"""Lanes with a handler of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from letta_bridge.db.database import Connection, Database
from letta_bridge.lanes import Fence, Lanes

LANE = "test:1"
Handler = Callable[[Fence], Awaitable[float | None]]


@asynccontextmanager
async def running(
    db: Database, handler: Handler, owner: str = "one", *, lanes: Lanes | None = None, open_lanes: tuple[str, ...] = ()
) -> AsyncIterator[Lanes]:
    """Lanes ``test:…`` with this handler; ``open_lanes`` always have work."""
    made = lanes or Lanes(db, owner)

    async def source() -> list[str]:
        return list(open_lanes)

    made.handle("test", handler)
    made.sweep_with(source)
    await made.start()
    try:
        yield made
    finally:
        await made.stop(1.0)


async def nothing(_: Fence) -> float | None:
    return None


def mark(name: str) -> Callable[[Connection], Awaitable[object]]:
    return lambda conn: conn.execute("INSERT INTO setting (name, value) VALUES ($1, '')", name)


async def marks(db: Database) -> list[str]:
    return [row["name"] for row in await db.fetch("SELECT name FROM setting ORDER BY name")]
