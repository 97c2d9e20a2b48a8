"""Signs of life of the replicas of one database, and how long a replica may trust in its own."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable

from .db.database import Connection, Database, DatabaseInUseError

log = logging.getLogger(__name__)

_TRUST = 0.8
"""Part of a lease after which a replica that did not beat stops by itself, before others may take its lanes."""
_SOON = 0.05


def uptime() -> float:
    """A clock that nobody sets and that runs on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def alive_at(db: Database, lease: str) -> str:
    """SQL for: the replica ``r`` beat within the last ``lease`` (a parameter) seconds. A beat from farther ahead than
    that was written before the clock was set back; whoever is alive has beaten since.
    """
    return f"(r.beat > {db.now} - {lease} AND r.beat < {db.now} + {lease})"


class Heartbeat:
    """This process's row in ``replica``, and what the rows of the others say.

    Args:
        db: the database, whose clock counts.
        owner: stable name of this replica.
        lease: seconds without a beat after which others may take this replica's lanes (PostgreSQL).
        beat: seconds between beats (PostgreSQL).
        late: called when we were frozen or cut off for most of a lease: others may soon own our lanes.
        beaten: called after every beat, and when the lease of another replica has ended.
    """

    def __init__(
        self,
        db: Database,
        owner: str,
        lease: float,
        beat: float,
        late: Callable[[], None],
        beaten: Callable[[], None],
    ) -> None:
        self._db = db
        self._owner = owner
        self._lease = lease
        self._beat = beat
        self._late = late
        self._beaten = beaten
        self._last = 0.0
        self.incarnation = secrets.token_hex(8)
        """Random for every process: two of one name are told apart by it."""

    @property
    def trusted_for(self) -> float:
        """Seconds for which nobody else can have our lanes (on SQLite nobody ever can); 0 or less: somebody may."""
        return self._last + _TRUST * self._lease - uptime() if self._db.postgres else math.inf

    async def start(self) -> None:
        """The first beat.

        Raises:
            DatabaseInUseError: another live process runs under this replica's id.
        """
        await self._once(first=True)

    async def run(self) -> None:
        """Beat for ever (PostgreSQL). A beat that fails is tried again; too many missed ones are ``late``."""
        pause = self._beat
        while True:
            trusted = self.trusted_for
            await asyncio.sleep(min(pause, trusted) if trusted > 0 else pause)
            trusted = self.trusted_for
            if trusted <= 0:
                self._late()
            pause = self._beat
            try:
                # a beat that hangs (the database is gone) must not keep us from noticing in time
                async with asyncio.timeout(trusted if trusted > 0 else self._lease):
                    await self._once()
                    pause = min(self._beat, await self._next_death())
            except Exception:  # the beat is retried for ever; missing it fences us
                log.exception("heartbeat failed", extra={"action": "beat_failed"})
            else:
                self._beaten()

    async def _once(self, *, first: bool = False) -> None:
        async def beat(conn: Connection) -> bool:
            row = await conn.fetchrow(
                f"INSERT INTO replica AS r (id, incarnation, beat) VALUES ($1, $2, {self._db.now}) "
                f"ON CONFLICT (id) DO UPDATE SET incarnation = $2, beat = {self._db.now} "
                f"WHERE r.incarnation = $2 OR NOT {alive_at(self._db, '$3')} RETURNING id",
                self._owner,
                self.incarnation,
                self._lease,
            )
            return row is not None

        begun = uptime()
        deadline = begun + self._lease + self._beat
        while not await self._db.write(beat):
            # after kill -9 our own last beat looks alive for the length of a lease: wait it out, then it is a twin
            if not first or uptime() > deadline:
                raise DatabaseInUseError(
                    f"another letta-bridge runs as replica {self._owner!r} on {self._db.describe()}; "
                    "give each process its own database.replica_id"
                )
            await asyncio.sleep(min(0.5, self._lease / 4))
            begun = uptime()
        self._last = begun  # when it was written at the earliest, not when its answer came

    async def _next_death(self) -> float:
        """Seconds until the lease of another replica ends if it beats no more: its lanes are to be looked for at once
        then, not only at our next beat.
        """
        left = await self._db.fetchval(
            f"SELECT MIN(beat) + $2 - {self._db.now} FROM replica r WHERE id <> $1 AND {alive_at(self._db, '$2')}",
            self._owner,
            self._lease,
        )
        return self._beat if left is None else max(0.0, float(left)) + _SOON

    async def population(self) -> int:
        """How many live replicas there are, this one included."""
        if not self._db.postgres:
            return 1
        query = f"SELECT COUNT(*) FROM replica r WHERE id <> $1 AND {alive_at(self._db, '$2')}"
        return 1 + int(await self._db.fetchval(query, self._owner, self._lease))

    async def living(self) -> list[str]:
        """The names of all live replicas, this one included."""
        if not self._db.postgres:
            return [self._owner]
        rows = await self._db.fetch(f"SELECT id FROM replica r WHERE {alive_at(self._db, '$1')}", self._lease)
        return sorted({self._owner, *(str(row["id"]) for row in rows)})

    async def end(self, conn: Connection) -> None:
        """Within a transaction: this replica is gone."""
        await conn.execute("DELETE FROM replica WHERE id = $1 AND incarnation = $2", self._owner, self.incarnation)
