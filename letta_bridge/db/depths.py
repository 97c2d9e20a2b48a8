"""How much waits, and since when: what metrics show of the tables, in a few bounded queries over small indexes."""

from dataclasses import dataclass, field

from .database import Database
from .turns import OPEN

MOST = 100_000
"""Rows that are counted at most: whatever is above that is no longer a matter of numbers."""


@dataclass(frozen=True, slots=True)
class Depths:
    """One look at the tables. Ages are seconds, 0 when nothing waits."""

    inbox_open: int = 0
    inbox_age: float = 0.0
    turns: dict[str, int] = field(default_factory=dict)
    turn_age: float = 0.0
    outbox_pending: int = 0
    outbox_age: float = 0.0
    dead: dict[str, int] = field(default_factory=dict)
    agents: dict[str, int] = field(default_factory=dict)
    agents_failing: int = 0


async def depths(db: Database) -> Depths:
    """Look at the tables."""
    inbox_open, inbox_age = await _waiting(db, "inbox", "received_at", "state = 'new'")
    outbox_pending, outbox_age = await _waiting(db, "outbox", "created_at", "state = 'pending'")
    turns = dict.fromkeys(("queued", "running", "replying"), 0)
    turn_age = 0.0
    rows = await db.fetch(
        f"SELECT state, COUNT(*) AS n, {db.now} - MIN(created_at) AS age FROM "
        f"(SELECT state, created_at FROM turn WHERE state IN {OPEN} LIMIT {MOST}) t GROUP BY state"
    )
    for row in rows:
        turns[row["state"]] = int(row["n"])
        turn_age = max(turn_age, float(row["age"]))
    turns["replying"] = int(  # by way of the outbox: there is no index of such turns
        await db.fetchval(
            f"SELECT COUNT(DISTINCT t.turn_id) FROM (SELECT turn_id FROM outbox WHERE state = 'pending' LIMIT {MOST}) "
            "o JOIN turn t ON t.turn_id = o.turn_id WHERE t.state = 'replying'"
        )
    )
    dead = {name: (await _waiting(db, name, "0", "state = 'dead'"))[0] for name in ("inbox", "outbox")}
    agents = dict.fromkeys(("new", "active", "missing", "archived"), 0)
    failing = 0
    query = "SELECT state, COUNT(*) AS n, SUM(CASE WHEN error <> '' THEN 1 ELSE 0 END) AS failing FROM agent GROUP BY 1"
    for row in await db.fetch(query):
        agents[row["state"]] = int(row["n"])
        failing += int(row["failing"]) if row["state"] in ("new", "active") else 0
    return Depths(inbox_open, inbox_age, turns, turn_age, outbox_pending, outbox_age, dead, agents, failing)


async def _waiting(db: Database, table: str, since: str, which: str) -> tuple[int, float]:
    row = await db.fetchrow(
        f"SELECT COUNT(*) AS n, COALESCE({db.now} - MIN(since), 0) AS age FROM "
        f"(SELECT {since} AS since FROM {table} WHERE {which} LIMIT {MOST}) waiting"
    )
    assert row is not None
    return int(row["n"]), max(0.0, float(row["age"]))
