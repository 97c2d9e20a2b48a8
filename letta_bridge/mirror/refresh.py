"""Asking the mirror for a pass now, on whichever replica, and learning what it did.

A request is a number in the database; a pass that began after it answers it and all before it. So requests made while
one runs share the next.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..db.database import Connection, Database
from ..lanes import Lanes
from .roster import Changes
from .writer import Writer

log = logging.getLogger(__name__)

_ASKED, _ANSWERED = "mirror.asked", "mirror.answered"
_POLL = 0.1


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass did. ``trouble`` says why it could not do all; empty when it did."""

    number: int
    changes: Mapping[str, Any]
    trouble: str = ""


class Refreshes:
    """Requests for a pass.

    Args:
        lane: the lane of the passes.
    """

    def __init__(self, db: Database, lanes: Lanes, lane: str) -> None:
        self._db = db
        self._lanes = lanes
        self._lane = lane

    async def ask(self, conn: Connection) -> int:
        """Within the caller's transaction: ask for a pass; its number. Call :meth:`wake` after the commit."""
        number = await conn.fetchval(
            "INSERT INTO setting AS s (name, value) VALUES ($1, '1') ON CONFLICT (name) DO UPDATE "
            "SET value = CAST(CAST(s.value AS BIGINT) + 1 AS TEXT) RETURNING value",
            _ASKED,
        )
        await self._lanes.announce(conn, self._lane)
        return int(number)

    def wake(self) -> None:
        """Let the pass begin, if it is this process that makes it."""
        self._lanes.wake(self._lane)

    async def request(self) -> int:
        """Ask for a pass in a commit of its own; its number."""
        number = await self._db.write(self.ask)
        self.wake()
        return number

    async def wait(self, number: int, seconds: float) -> PassResult | None:
        """What the pass did that answered this request; None when it is not over within ``seconds``."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            result = await self._answered()
            if result is not None and result.number >= number:
                return result
            if loop.time() >= until:
                return None
            await asyncio.sleep(_POLL)

    async def open(self) -> int:
        """Used by a pass when it begins: the newest request, which it will answer; 0 when all are answered."""
        rows = await self._db.fetch("SELECT name, value FROM setting WHERE name IN ($1, $2)", _ASKED, _ANSWERED)
        values = {str(row["name"]): str(row["value"]) for row in rows}
        asked = int(values.get(_ASKED, "0"))
        answered = values.get(_ANSWERED)
        return asked if answered is None or int(json.loads(answered)["number"]) < asked else 0

    async def answer(self, writer: Writer, number: int, changes: Changes, trouble: str) -> None:
        """The pass that began with request ``number`` open is over."""
        result = json.dumps(asdict(PassResult(number, asdict(changes), trouble)))
        await writer.run(
            lambda conn: conn.execute(
                "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2",
                _ANSWERED,
                result,
            )
        )

    async def _answered(self) -> PassResult | None:
        value = await self._db.fetchval("SELECT value FROM setting WHERE name = $1", _ANSWERED)
        return None if value is None else PassResult(**json.loads(value))
