"""Giving everything up: how the rest of the bridge is stopped for it, and how its data is thrown away."""

from ..ids import JobID
from .catalog import tables
from .database import Connection, Database, Reader
from .jobs import OPEN

FROZEN = "reset"
"""Setting: the job that is throwing everything away; nothing new is made meanwhile."""
QUIET = "reset_quiet"
"""Setting: the same job, once the mirror does nothing any more."""
_REASON = "reset"


async def freeze(conn: Connection, db: Database, job_id: JobID, who: str) -> None:
    """Within a transaction: no turn begins any more, no other job goes on, the mirror is asked to rest."""
    await put(conn, FROZEN, str(job_id))
    await conn.execute(
        f"UPDATE job SET state = 'cancelled', error = 'the bridge was reset', finished_at = {db.now} "
        f"WHERE state IN {OPEN} AND job_id <> $1",
        job_id,
    )
    await conn.execute(
        f"INSERT INTO pause (subject, by_user, reason, at) VALUES ('all', $1, $2, {db.now}) "
        "ON CONFLICT (subject) DO NOTHING",
        who,
        _REASON,
    )


async def thaw(conn: Connection) -> None:
    """Within a transaction: everything goes on, but for jobs that were cancelled."""
    await conn.execute("DELETE FROM setting WHERE name IN ($1, $2)", FROZEN, QUIET)
    await conn.execute("DELETE FROM pause WHERE subject = 'all' AND reason = $1", _REASON)


async def throw_away(conn: Connection, db: Database) -> None:
    """Within a transaction: empty every table but those that say which process does what. Numbers go on."""
    for table in reversed(await tables(conn, db.postgres)):
        await conn.execute(f"DELETE FROM {table.name}")


async def put(conn: Connection, name: str, value: str) -> None:
    """Within a transaction: write a setting."""
    await conn.execute(
        "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2", name, value
    )


async def counts(db: Reader) -> dict[str, int]:
    """How much of everything there is."""
    queries = {
        "agents": "SELECT COUNT(*) FROM agent",
        "messages": "SELECT COUNT(*) FROM inbox",
        "waiting": "SELECT COUNT(*) FROM turn WHERE state IN ('queued', 'running')",
        "conversations": "SELECT COUNT(*) FROM conversation",
        "permissions": "SELECT COUNT(*) FROM access",
        "pauses": "SELECT COUNT(*) FROM pause",
        "jobs": "SELECT COUNT(*) FROM job",
        "owners": "SELECT COUNT(*) FROM agent WHERE owner <> ''",
    }
    return {name: int(await db.fetchval(query)) for name, query in queries.items()}
