"""What a bridge knows about having been restored from a backup: which rooms it has yet to read back, and how to tell
what may have happened in the time that the backup does not know.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ..ids import MXID, AgentID, ConversationID, EventID, Otid, RoomID, make_otid
from .database import Connection, Database

NOTE = "from before the restore"
"""Stands as the decision of an event that waits, when the lost bridge may have dealt with it."""

GENERATION = 1_000_000
"""Attempts of turns are counted on from a multiple of this after every restore. An attempt that is just such a multiple
says: the lost bridge may have handed this over, nothing was looked up yet.
"""

_SETTING = "restored"
_FLAG = "restored|"
_DONE = "restored-read|"
_ATTEMPTS = 2000
"""Attempts that are looked for in each generation: an outage of Letta of most of a day, at two tries a minute."""
_MESSAGES = 3
"""Messages of a turn that are looked for: they were handed over together."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The last restore. ``count``: how many there were; ``seq``: the newest event that the backup knows; ``swept``:
    whether all our users were asked for rooms that it does not know.
    """

    count: int
    backup_at: float
    restored_at: float
    seq: int
    swept: bool = False

    @property
    def attempt(self) -> int:
        """The attempt of turns of which nothing was looked up yet."""
        return self.count * GENERATION


def is_doubtful(attempt: int) -> bool:
    """Whether a turn with this attempt may have been handed over by the lost bridge."""
    return attempt >= GENERATION and attempt % GENERATION == 0


def possible_otids(
    agent_id: AgentID, conversation_id: ConversationID, events: Sequence[EventID], attempt: int
) -> list[Otid]:
    """Every otid that a message of a doubtful turn can have been given."""
    return [
        make_otid(agent_id, conversation_id, event_id, generation * GENERATION + number)
        for event_id in events[:_MESSAGES]
        for generation in range(attempt // GENERATION + 1)
        for number in range(1, _ATTEMPTS + 1)
    ]


async def note_restore(conn: Connection, now: str, backup_at: float, tables: set[str]) -> int:
    """Within the transaction of a restore: have every room read back, and every open turn looked up, before anything
    is done. Commands and jobs that were under way are not taken up again: whether they were carried out since, nobody
    can tell. Returns how many rooms that are.

    Args:
        now: SQL for the database's clock.
        tables: those that the restored schema has.
    """
    before = await conn.fetchval("SELECT value FROM setting WHERE name = $1", _SETTING)
    count = 1 + (int(json.loads(before)["count"]) if before else 0)
    seq = int(await conn.fetchval("SELECT COALESCE(MAX(seq), 0) FROM inbox"))
    restored_at = float(await conn.fetchval(f"SELECT {now}"))
    facts = Facts(count, backup_at, restored_at, seq)
    await conn.execute(
        "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2",
        _SETTING,
        json.dumps(asdict(facts)),
    )
    await conn.execute(
        "INSERT INTO room (room_id, gap) SELECT room_id, 1 FROM (SELECT room_id FROM inbox WHERE state <> 'dead' "
        "UNION SELECT portal_room FROM agent WHERE portal_room IS NOT NULL) r WHERE room_id <> '' "
        "ON CONFLICT (room_id) DO UPDATE SET gap = 1"
    )
    await conn.execute("UPDATE room SET gap = 1")
    await conn.execute(f"DELETE FROM told WHERE SUBSTR(topic, 1, {len(_DONE)}) = '{_DONE}'")
    await conn.execute(
        f"INSERT INTO told (topic, at) SELECT '{_FLAG}' || room_id, {now} FROM room WHERE room_id <> '' "
        f"ON CONFLICT (topic) DO UPDATE SET at = {now}"
    )
    await conn.execute(
        "UPDATE turn SET state = 'queued', attempt = $1, run_id = '', not_before = 0, wait_reason = '' "
        "WHERE state IN ('queued', 'running')",
        count * GENERATION,
    )
    await conn.execute("UPDATE outbox SET not_before = 0 WHERE state = 'pending'")
    if "command" in tables:
        await conn.execute("UPDATE command SET state = 'done', text = '' WHERE state = 'open'")
    if "job" in tables:
        await conn.execute(
            "UPDATE job SET state = 'cancelled', error = 'the database was restored from a backup', "
            f"finished_at = {now} WHERE state IN ('open', 'undoing')"
        )
    return int(await conn.fetchval("SELECT COUNT(*) FROM room"))


class Restored:
    """What is left to be done after a restore. Without one, everything here answers at once and asks nothing.

    Args:
        db: the database.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self.facts: Facts | None = None
        self._pending: set[RoomID] = set()

    async def load(self) -> None:
        """Read what the database says; before any work is begun."""
        value = await self._db.fetchval("SELECT value FROM setting WHERE name = $1", _SETTING)
        if value is None:
            return
        said = json.loads(value)
        self.facts = Facts(said["count"], said["backup_at"], said["restored_at"], said["seq"], said["swept"])
        rows = await self._db.fetch("SELECT topic FROM told WHERE SUBSTR(topic, 1, $1) = $2", len(_FLAG), _FLAG)
        self._pending = {RoomID(str(row["topic"]).removeprefix(_FLAG)) for row in rows}

    @property
    def unfinished(self) -> bool:
        """Whether rooms are left to be read back, as far as this process knows."""
        return bool(self._pending)

    async def flagged(self, room_id: RoomID) -> bool:
        """Whether this room is to be read back because of a restore, whoever found that out."""
        if self.facts is None:
            return False
        return bool(await self._db.fetchval("SELECT 1 FROM told WHERE topic = $1", _FLAG + room_id))

    async def waits(self, room_id: RoomID) -> bool:
        """Whether this room has yet to be read back: until then nothing is said there and nothing handed over."""
        if room_id not in self._pending:
            return False
        if await self.flagged(room_id):
            return True
        self._pending.discard(room_id)  # another replica has done it
        return False

    async def want(self, user: MXID, rooms: Sequence[RoomID]) -> list[RoomID]:
        """Have these rooms, which ``user`` is in, read back if none of ours was read there yet; which that are."""

        async def work(conn: Connection) -> list[RoomID]:
            wanted: list[RoomID] = []
            for room_id in rooms:
                done = await conn.fetchval(
                    "SELECT 1 FROM told WHERE topic = $1 OR topic = $2", _DONE + room_id, _FLAG + room_id
                )
                if done:
                    continue
                wanted.append(room_id)
                await conn.execute(
                    "INSERT INTO room (room_id, gap) VALUES ($1, 1) ON CONFLICT (room_id) DO UPDATE SET gap = 1",
                    room_id,
                )
                await conn.execute(
                    "INSERT INTO member (room_id, user_id, membership) VALUES ($1, $2, 'join') "
                    "ON CONFLICT (room_id, user_id) DO UPDATE SET membership = 'join'",
                    room_id,
                    user,
                )
                await conn.execute(f"INSERT INTO told (topic, at) VALUES ($1, {self._db.now})", _FLAG + room_id)
            return wanted

        wanted = await self._db.write(work) if rooms else []
        self._pending.update(wanted)
        return wanted

    async def done(self, conn: Connection, room_id: RoomID, *, read: bool) -> None:
        """Within the transaction that writes what was read: this room needs nothing more. Not ``read``: as far as is
        known none of ours is in it.
        """
        await conn.execute("DELETE FROM told WHERE topic = $1", _FLAG + room_id)
        if read and self.facts is not None and not self.facts.swept:
            await conn.execute(
                f"INSERT INTO told (topic, at) VALUES ($1, {self._db.now}) ON CONFLICT DO NOTHING", _DONE + room_id
            )

    def forget(self, room_id: RoomID) -> None:
        """After that transaction."""
        self._pending.discard(room_id)

    async def swept(self) -> None:
        """All of our users were asked for their rooms."""
        if self.facts is None:
            return
        facts = replace(self.facts, swept=True)

        async def work(conn: Connection) -> None:
            await conn.execute("UPDATE setting SET value = $2 WHERE name = $1", _SETTING, json.dumps(asdict(facts)))
            await conn.execute("DELETE FROM told WHERE SUBSTR(topic, 1, $1) = $2", len(_DONE), _DONE)

        await self._db.write(work)
        self.facts = facts
