"""What somebody was asked to confirm: rows of ``setting`` that are worth something for a few minutes."""

import json
from dataclasses import dataclass

from .database import Connection, Database, clean

_PREFIX = "confirm:"


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A question that was asked ``age`` seconds ago. ``used_by`` is the call that was confirmed with it, or empty;
    ``stored`` is how it stands in the database.
    """

    nonce: str
    phrase: str
    what: str
    used_by: str
    age: float
    stored: str = ""


class Confirmations:
    """Statements on them. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, name: str) -> Confirmation | None:
        """The question of this name that was asked last."""
        row = await self._db.fetchrow("SELECT value FROM setting WHERE name = $1", _PREFIX + name)
        if row is None:
            return None
        value = json.loads(row["value"])
        now = float(await self._db.fetchval(f"SELECT {self._db.now}"))
        age = now - value["at"]
        return Confirmation(value["nonce"], value["phrase"], value["what"], value["used_by"], age, row["value"])

    async def use(self, conn: Connection, name: str, found: Confirmation, key: str) -> bool:
        """Write down that the call ``key`` was confirmed with it; False when another one was meanwhile."""
        value = {**json.loads(found.stored), "used_by": key}
        row = await conn.fetchrow(
            "UPDATE setting SET value = $2 WHERE name = $1 AND value = $3 RETURNING name",
            _PREFIX + name,
            clean(json.dumps(value)),
            found.stored,
        )
        return row is not None

    async def set(self, conn: Connection, name: str, made: Confirmation) -> None:
        """Write a question down."""
        now = float(await conn.fetchval(f"SELECT {self._db.now}"))
        value = {
            "nonce": made.nonce,
            "phrase": made.phrase,
            "what": made.what,
            "used_by": made.used_by,
            "at": now - made.age,
        }
        await conn.execute(
            "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2",
            _PREFIX + name,
            clean(json.dumps(value)),
        )

    async def forget_old(self, conn: Connection, seconds: float) -> None:
        """Questions that are worth nothing any more."""
        now = float(await conn.fetchval(f"SELECT {self._db.now}"))
        for row in await conn.fetch(
            "SELECT name, value FROM setting WHERE SUBSTR(name, 1, $2) = $1", _PREFIX, len(_PREFIX)
        ):
            if not 0 <= now - json.loads(row["value"])["at"] < seconds:
                await conn.execute("DELETE FROM setting WHERE name = $1", row["name"])
