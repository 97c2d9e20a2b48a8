"""Emptying what is not kept any longer: the texts of messages that were dealt with. Their ids stay.

Each table has an index of just those rows that still have a text, by their age: what was emptied before costs nothing.
"""

from dataclasses import dataclass
from functools import partial

from .database import Connection, Database

BATCH = 1000
"""Rows in one transaction: SQLite has one writer, and messages wait for it meanwhile."""


@dataclass(frozen=True, slots=True)
class _Texts:
    """The texts of a table. ``old`` finds those from before a time ($1), the oldest first, at most $2; ``empty``
    empties the one that ``key`` names. ``lock``: whose row says that the text is not needed any more.
    """

    key: tuple[str, ...]
    old: str
    empty: str
    lock: str


_TEXTS = (
    _Texts(
        ("seq",),
        "SELECT i.seq FROM inbox i WHERE i.body <> '' AND i.state <> 'new' "
        "AND COALESCE(i.decided_at, i.received_at) < $1 ORDER BY COALESCE(i.decided_at, i.received_at) LIMIT $2",
        "UPDATE inbox SET body = '' WHERE seq = $1",
        "i",
    ),
    _Texts(  # a turn is closed after its messages came
        ("event_id", "agent_id"),
        "SELECT e.event_id, e.agent_id FROM turn_event e JOIN turn t ON t.turn_id = e.turn_id "
        "WHERE e.text <> '' AND e.created_at < $1 AND t.finished_at < $1 ORDER BY e.created_at LIMIT $2",
        "UPDATE turn_event SET text = '' WHERE event_id = $1 AND agent_id = $2",
        "t",
    ),
    _Texts(
        ("seq",),
        "SELECT o.seq FROM outbox o WHERE o.content <> '{}' AND o.state <> 'pending' "
        "AND o.created_at < $1 ORDER BY o.created_at LIMIT $2",
        "UPDATE outbox SET content = '{}' WHERE seq = $1",
        "o",
    ),
)


async def prune(db: Database, keep: float) -> None:
    """Empty the texts of what was decided, closed or sent more than ``keep`` seconds ago, and drop served stops."""
    # as a value: PostgreSQL uses no index to compare with a clock that goes on within the statement
    until = float(await db.fetchval(f"SELECT {db.now} - $1", keep))
    for texts in _TEXTS:
        while await db.write(partial(_empty, db.postgres, texts, until)) == BATCH:
            pass
    await db.write(lambda conn: conn.execute("DELETE FROM stop_request WHERE done = 1 AND created_at < $1", until))


async def _empty(postgres: bool, texts: _Texts, until: float, conn: Connection) -> int:
    """Empty one batch; how many that were."""
    # locked, so that nothing of it is tried again meanwhile (`retry`)
    lock = f" FOR UPDATE OF {texts.lock}" if postgres else ""
    rows = await conn.fetch(texts.old + lock, until, BATCH)
    await conn.executemany(texts.empty, [tuple(row[name] for name in texts.key) for row in rows])
    return len(rows)
