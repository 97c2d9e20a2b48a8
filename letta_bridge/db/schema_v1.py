"""The schema of version 1, as it was first made. Never changed: what comes after it is in ``upgrades.py``."""

TABLES = (
    # What came in. `before_seq`: a caught-up event goes before that pushed one. Rows stay as dedupe memory.
    """CREATE TABLE inbox (
        seq         {serial},
        event_id    TEXT NOT NULL UNIQUE,
        room_id     TEXT NOT NULL,
        sender      TEXT NOT NULL,
        type        TEXT NOT NULL,
        body        TEXT NOT NULL,
        origin      TEXT NOT NULL CHECK (origin IN ('push', 'catchup')),
        before_seq  BIGINT,
        state       TEXT NOT NULL CHECK (state IN ('new', 'dispatched', 'skipped', 'dead')),
        decision    TEXT NOT NULL DEFAULT '',
        attempts    INTEGER NOT NULL DEFAULT 0,
        not_before  DOUBLE PRECISION NOT NULL DEFAULT 0,
        received_at DOUBLE PRECISION NOT NULL,
        decided_at  DOUBLE PRECISION
    )""",
    "CREATE INDEX inbox_open ON inbox (room_id, (COALESCE(before_seq, seq)), (before_seq IS NULL), seq) "
    "WHERE state = 'new'",
    "CREATE INDEX inbox_room ON inbox (room_id, seq)",
    "CREATE INDEX inbox_dead ON inbox (seq) WHERE state = 'dead'",
    # What an agent has to do: one run that answers one or more messages.
    """CREATE TABLE turn (
        turn_id         {serial},
        lane            TEXT NOT NULL,
        agent_id        TEXT NOT NULL,
        room_id         TEXT NOT NULL,
        source          TEXT NOT NULL UNIQUE,
        thread_root     TEXT NOT NULL DEFAULT '',
        reply_to        TEXT NOT NULL DEFAULT '',
        mention         INTEGER NOT NULL DEFAULT 0,
        conversation_id TEXT NOT NULL DEFAULT '',
        state           TEXT NOT NULL
                        CHECK (state IN ('queued', 'running', 'replying', 'done', 'dead', 'cancelled')),
        attempt         INTEGER NOT NULL DEFAULT 0,
        failures        INTEGER NOT NULL DEFAULT 0,
        not_before      DOUBLE PRECISION NOT NULL DEFAULT 0,
        wait_reason     TEXT NOT NULL DEFAULT '',
        run_id          TEXT NOT NULL DEFAULT '',
        stop_by         TEXT NOT NULL DEFAULT '',
        error           TEXT NOT NULL DEFAULT '',
        created_at      DOUBLE PRECISION NOT NULL,
        submitted_at    DOUBLE PRECISION,
        accepted_at     DOUBLE PRECISION,
        replying_at     DOUBLE PRECISION,
        finished_at     DOUBLE PRECISION
    )""",
    "CREATE INDEX turn_open ON turn (lane, turn_id) WHERE state IN ('queued', 'running')",
    """CREATE TABLE turn_event (
        event_id   TEXT NOT NULL,
        agent_id   TEXT NOT NULL,
        turn_id    BIGINT NOT NULL REFERENCES turn (turn_id),
        position   INTEGER NOT NULL,
        sender     TEXT NOT NULL,
        text       TEXT NOT NULL,
        otid       TEXT NOT NULL DEFAULT '',
        withdrawn  INTEGER NOT NULL DEFAULT 0,
        created_at DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (event_id, agent_id)
    )""",
    "CREATE INDEX turn_event_turn ON turn_event (turn_id, position)",
    "CREATE INDEX turn_event_sender ON turn_event (sender, created_at)",
    # A stop that reached the agent's lane: a pending approval is denied there, and the person is told.
    """CREATE TABLE stop_request (
        event_id   TEXT NOT NULL,
        agent_id   TEXT NOT NULL,
        room_id    TEXT NOT NULL,
        sender     TEXT NOT NULL,
        thread     TEXT NOT NULL DEFAULT '',
        stopped    INTEGER NOT NULL,
        withdrawn  INTEGER NOT NULL,
        quiet      INTEGER NOT NULL DEFAULT 0,
        done       INTEGER NOT NULL DEFAULT 0,
        created_at DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (event_id, agent_id)
    )""",
    "CREATE INDEX stop_open ON stop_request (agent_id) WHERE done = 0",
    # What must go out. `edits`: the transaction id of the row whose event this one replaces.
    """CREATE TABLE outbox (
        seq            {serial},
        txn_id         TEXT NOT NULL UNIQUE,
        room_id        TEXT NOT NULL,
        sender         TEXT NOT NULL,
        type           TEXT NOT NULL,
        content        TEXT NOT NULL,
        edits          TEXT NOT NULL DEFAULT '',
        turn_id        BIGINT,
        state          TEXT NOT NULL CHECK (state IN ('pending', 'sent', 'dead')),
        attempts       INTEGER NOT NULL DEFAULT 0,
        not_before     DOUBLE PRECISION NOT NULL DEFAULT 0,
        sent_event_id  TEXT NOT NULL DEFAULT '',
        error          TEXT NOT NULL DEFAULT '',
        created_at     DOUBLE PRECISION NOT NULL,
        sent_at        DOUBLE PRECISION
    )""",
    "CREATE INDEX outbox_open ON outbox (room_id, seq) WHERE state = 'pending'",
    "CREATE INDEX outbox_dead ON outbox (seq) WHERE state = 'dead'",
    "CREATE INDEX outbox_turn ON outbox (turn_id) WHERE turn_id IS NOT NULL",
    "CREATE INDEX outbox_event ON outbox (sent_event_id) WHERE sent_event_id <> ''",
    "CREATE INDEX outbox_edits ON outbox (edits) WHERE edits <> ''",
    # Who does what must happen in order: see lanes.py.
    """CREATE TABLE lane (
        lane  TEXT PRIMARY KEY,
        owner TEXT,
        epoch BIGINT NOT NULL
    )""",
    """CREATE TABLE replica (
        id          TEXT PRIMARY KEY,
        incarnation TEXT NOT NULL,
        beat        DOUBLE PRECISION NOT NULL
    )""",
    # The mirror: what the bridge last made true on the homeserver for each agent.
    """CREATE TABLE agent (
        agent_id      TEXT PRIMARY KEY,
        mxid          TEXT NOT NULL UNIQUE,
        device_id     TEXT NOT NULL,
        name          TEXT NOT NULL,
        description   TEXT NOT NULL DEFAULT '',
        avatar        TEXT NOT NULL DEFAULT '',
        state         TEXT NOT NULL CHECK (state IN ('new', 'active', 'missing')),
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
        created_at    DOUBLE PRECISION NOT NULL
    )""",
    """CREATE TABLE conversation (
        agent_id        TEXT NOT NULL,
        room_id         TEXT NOT NULL,
        conversation_id TEXT NOT NULL,
        memory          TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (agent_id, room_id)
    )""",
    # What the homeserver's rooms look like, from the events pushed to us and a snapshot after each join.
    """CREATE TABLE room (
        room_id   TEXT PRIMARY KEY,
        name      TEXT NOT NULL DEFAULT '',
        encrypted INTEGER NOT NULL DEFAULT 0,
        known     INTEGER NOT NULL DEFAULT 0,
        gap       INTEGER NOT NULL DEFAULT 0
    )""",
    """CREATE TABLE member (
        room_id     TEXT NOT NULL,
        user_id     TEXT NOT NULL,
        membership  TEXT NOT NULL,
        displayname TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (room_id, user_id)
    )""",
    "CREATE INDEX member_user ON member (user_id)",
    """CREATE TABLE invitation (
        room_id TEXT NOT NULL,
        user_id TEXT NOT NULL,
        PRIMARY KEY (room_id, user_id)
    )""",
    # What was said and is said once; and the bridge's few single facts.
    """CREATE TABLE told (
        topic TEXT PRIMARY KEY,
        at    DOUBLE PRECISION NOT NULL
    )""",
    """CREATE TABLE setting (
        name  TEXT PRIMARY KEY,
        value TEXT NOT NULL
    )""",
)
