"""What metrics read from the tables, when the database answers late or badly."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import pytest

from letta_bridge.db.database import Connection, Database
from letta_bridge.web import metrics

from .world import until


async def test_an_answer_that_fails_after_nobody_waits_for_it_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_DEPTHS_SECONDS", 0.1)
    monkeypatch.setattr(metrics, "_DEPTHS_LAST", 0.0)
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()

    async def break_slowly(conn: Connection) -> None:
        time.sleep(0.5)  # on the thread of the database
        await conn.execute("ALTER TABLE inbox RENAME TO elsewhere")

    breaking = asyncio.create_task(db.write(break_slowly))
    await asyncio.sleep(0)
    tables = metrics.Tables(db)
    assert await tables.look() is None, "it does not answer in time"
    await breaking
    first = tables._task
    assert first is not None
    await until(first.done)
    del first
    assert await tables.look() is None, "it fails"
    await db.write(lambda conn: conn.execute("ALTER TABLE elsewhere RENAME TO inbox"))
    assert await tables.look() is not None
    gc.collect()
    assert not told
    await db.close()
