"""The schema, and the way to it from every version.

A fresh database is made in one step as version 2; one of version 1 is changed. Both ways lead to the same schema:
``tests/migration`` compares the catalogs.
"""

from typing import Any

from mautrix.util.async_db import Scheme, UpgradeTable

from .schema_v1 import TABLES as _V1

UPGRADES = UpgradeTable(version_table_name="letta_bridge_version", database_name="letta-bridge database")

_AGENT = """CREATE TABLE agent (
        agent_id      TEXT PRIMARY KEY,
        mxid          TEXT NOT NULL UNIQUE,
        device_id     TEXT NOT NULL,
        name          TEXT NOT NULL,
        description   TEXT NOT NULL DEFAULT '',
        avatar        TEXT NOT NULL DEFAULT '',
        state         TEXT NOT NULL CHECK (state IN ('new', 'active', 'missing', 'archived')),
        registered    INTEGER NOT NULL DEFAULT 0,
        shown_name    TEXT,
        device_made   INTEGER NOT NULL DEFAULT 0,
        shown_avatar  TEXT,
        avatar_mxc    TEXT NOT NULL DEFAULT '',
        portal_room   TEXT UNIQUE,
        portal_name   TEXT,
        portal_topic  TEXT,
        portal_joined INTEGER NOT NULL DEFAULT 0,
        in_space      TEXT NOT NULL DEFAULT '',
        error         TEXT NOT NULL DEFAULT '',
        created_at    DOUBLE PRECISION NOT NULL,
        tags          TEXT NOT NULL DEFAULT '[]',
        model         TEXT NOT NULL DEFAULT '',
        owner         TEXT NOT NULL DEFAULT '',
        origin        TEXT NOT NULL DEFAULT 'letta' CHECK (origin IN ('letta', 'summoned', 'adopted')),
        missing_since DOUBLE PRECISION,
        dismissed     INTEGER NOT NULL DEFAULT 0,
        portal_bridge TEXT,
        history       TEXT NOT NULL DEFAULT '' CHECK (history IN ('', 'due', 'done'))
    )"""
"""``owner`` summoned it. ``dismissed``: despawned by a command, whatever Letta lists. ``portal_bridge``: what its
``m.bridge`` state was last told. ``history``: whether its older lines are to be shown in its portal."""

_OUTBOX = """CREATE TABLE outbox (
        seq            {serial},
        txn_id         TEXT NOT NULL UNIQUE,
        room_id        TEXT NOT NULL,
        sender         TEXT NOT NULL,
        type           TEXT NOT NULL,
        content        TEXT NOT NULL,
        edits          TEXT NOT NULL DEFAULT '',
        turn_id        BIGINT,
        state          TEXT NOT NULL CHECK (state IN ('pending', 'sent', 'dead', 'dropped')),
        attempts       INTEGER NOT NULL DEFAULT 0,
        not_before     DOUBLE PRECISION NOT NULL DEFAULT 0,
        sent_event_id  TEXT NOT NULL DEFAULT '',
        error          TEXT NOT NULL DEFAULT '',
        created_at     DOUBLE PRECISION NOT NULL,
        sent_at        DOUBLE PRECISION,
        stamp          BIGINT
    )"""
"""``stamp``: milliseconds since 1970 that the event is to carry instead of the time of sending."""

_RECREATED = {"agent": _AGENT, "outbox": _OUTBOX}
_ROOM_LOOK = "ALTER TABLE room ADD COLUMN look INTEGER NOT NULL DEFAULT 0"
"""``look``: something happened to the room's state; the mirror is to compare it with what it should be."""

_NEW = (
    # Work of several steps that a command or the mirror began; `done` has the result of each finished step.
    """CREATE TABLE job (
        job_id      {serial},
        kind        TEXT NOT NULL,
        key         TEXT NOT NULL UNIQUE,
        subject     TEXT NOT NULL DEFAULT '',
        asked_by    TEXT NOT NULL,
        room_id     TEXT NOT NULL DEFAULT '',
        thread_root TEXT NOT NULL DEFAULT '',
        args        TEXT NOT NULL,
        done        TEXT NOT NULL DEFAULT '{}',
        state       TEXT NOT NULL CHECK (state IN ('open', 'undoing', 'done', 'failed', 'cancelled')),
        attempts    INTEGER NOT NULL DEFAULT 0,
        not_before  DOUBLE PRECISION NOT NULL DEFAULT 0,
        error       TEXT NOT NULL DEFAULT '',
        created_at  DOUBLE PRECISION NOT NULL,
        finished_at DOUBLE PRECISION
    )""",
    "CREATE INDEX job_open ON job (job_id) WHERE state IN ('open', 'undoing')",
    "CREATE INDEX job_subject ON job (subject) WHERE state IN ('open', 'undoing')",
    # Commands that were accepted in a room and are carried out in order, outside the room's dispatch.
    """CREATE TABLE command (
        seq         {serial},
        event_id    TEXT NOT NULL UNIQUE,
        room_id     TEXT NOT NULL,
        sender      TEXT NOT NULL,
        thread_root TEXT NOT NULL DEFAULT '',
        text        TEXT NOT NULL,
        management  INTEGER NOT NULL DEFAULT 0,
        state       TEXT NOT NULL CHECK (state IN ('open', 'done')),
        attempts    INTEGER NOT NULL DEFAULT 0,
        created_at  DOUBLE PRECISION NOT NULL
    )""",
    "CREATE INDEX command_open ON command (room_id, seq) WHERE state = 'open'",
    "CREATE INDEX command_sender ON command (sender, created_at)",
    # Who was stopped for the time being: 'agent:<id>', 'room:<id>' or 'all'.
    """CREATE TABLE pause (
        subject TEXT PRIMARY KEY,
        by_user TEXT NOT NULL,
        reason  TEXT NOT NULL DEFAULT '',
        at      DOUBLE PRECISION NOT NULL
    )""",
    # Permissions given by command: a level for somebody with one agent ('agent:<id>') or in one room ('room:<id>').
    """CREATE TABLE access (
        subject TEXT NOT NULL,
        who     TEXT NOT NULL,
        level   TEXT NOT NULL CHECK (level IN ('none', 'user', 'admin')),
        by_user TEXT NOT NULL,
        at      DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (subject, who)
    )""",
    # What is wrong now and was (or will be) told in the management rooms, once.
    """CREATE TABLE alarm (
        topic      TEXT PRIMARY KEY,
        text       TEXT NOT NULL,
        since      DOUBLE PRECISION NOT NULL,
        told_at    DOUBLE PRECISION,
        cleared_at DOUBLE PRECISION
    )""",
    # Each admin's management room; several admins may share one. `room_id` is empty until it is made.
    """CREATE TABLE management (
        user_id TEXT PRIMARY KEY,
        room_id TEXT NOT NULL DEFAULT '',
        at      DOUBLE PRECISION NOT NULL
    )""",
    # Rooms that were an agent's portal once, and what came after them.
    """CREATE TABLE past_room (
        room_id     TEXT PRIMARY KEY,
        agent_id    TEXT NOT NULL,
        replaced_by TEXT NOT NULL DEFAULT '',
        reason      TEXT NOT NULL,
        at          DOUBLE PRECISION NOT NULL
    )""",
    "CREATE INDEX past_room_agent ON past_room (agent_id)",
    "CREATE INDEX turn_dead ON turn (turn_id) WHERE state = 'dead'",
    # What still has its text, by its age: see pruning.py.
    "CREATE INDEX inbox_full ON inbox ((COALESCE(decided_at, received_at))) WHERE body <> '' AND state <> 'new'",
    "CREATE INDEX turn_event_full ON turn_event (created_at) WHERE text <> ''",
    "CREATE INDEX outbox_full ON outbox (created_at) WHERE content <> '{}' AND state <> 'pending'",
)


def _is_of(statement: str, tables: tuple[str, ...] = tuple(_RECREATED)) -> str:
    """Which of ``tables`` a statement makes or indexes; empty when none."""
    words = statement.replace("(", " ").split()
    for table in tables:
        if words[:3] == ["CREATE", "TABLE", table] or (words[1] == "INDEX" and words[4] == table):
            return table
    return ""


async def _make(conn: Any, scheme: Scheme, statement: str) -> None:
    serial = "INTEGER PRIMARY KEY AUTOINCREMENT" if scheme == Scheme.SQLITE else "BIGSERIAL PRIMARY KEY"
    await conn.execute(statement.replace("{serial}", serial))


async def make_v1(conn: Any, scheme: Scheme) -> None:
    """Create every table of version 1, in an empty database."""
    for statement in _V1:
        await _make(conn, scheme, statement)


@UPGRADES.register(  # type: ignore[call-arg, arg-type, untyped-decorator]
    description="A new database", upgrades_to=2
)
async def make_v2(conn: Any, scheme: Scheme) -> None:
    """Create every table of version 2, in an empty database."""
    for statement in _V1:
        table = _is_of(statement)
        await _make(conn, scheme, _RECREATED[table] if table and " TABLE " in statement else statement)
    await conn.execute(_ROOM_LOOK)
    for statement in _NEW:
        await _make(conn, scheme, statement)


@UPGRADES.register(description="Lifecycle, management room, jobs")  # type: ignore[call-arg, arg-type, untyped-decorator]
async def upgrade_v2(conn: Any, scheme: Scheme) -> None:
    """From version 1."""
    for table, statement in _RECREATED.items():
        await _recreate(conn, scheme, table, statement)
    await conn.execute(_ROOM_LOOK)
    for statement in _NEW:
        await _make(conn, scheme, statement)
    await conn.execute("UPDATE agent SET history = 'done'")  # their rooms are in use: nothing older is put behind that


async def _recreate(conn: Any, scheme: Scheme, table: str, statement: str) -> None:
    """Give a table another shape: SQLite cannot change a CHECK. Names of keys come out as in a fresh database."""
    columns = ", ".join(await _columns(conn, scheme, table))
    await conn.execute(f"CREATE TABLE {table}_old AS SELECT * FROM {table}")
    await conn.execute(f"DROP TABLE {table}")
    await _make(conn, scheme, statement)
    await conn.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table}_old")
    await conn.execute(f"DROP TABLE {table}_old")
    if "{serial}" in statement and scheme != Scheme.SQLITE:
        await conn.execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'seq'), (SELECT MAX(seq) FROM {table})) "
            f"FROM {table} HAVING COUNT(*) > 0"
        )
    for index in _V1:
        if " INDEX " in index and _is_of(index) == table:
            await conn.execute(index)


async def _columns(conn: Any, scheme: Scheme, table: str) -> list[str]:
    if scheme == Scheme.SQLITE:
        return [row["name"] for row in await conn.fetch(f"PRAGMA table_info({table})")]
    rows = await conn.fetch(
        "SELECT attname AS name FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped "
        "ORDER BY attnum",
        table,
    )
    return [row["name"] for row in rows]
