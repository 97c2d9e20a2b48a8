"""What a message costs does not grow with the years of messages that lie behind it; nor does housekeeping."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from letta_bridge.db.database import Connection, Database
from letta_bridge.db.journal import Wish, entries
from letta_bridge.db.letters import Letters
from letta_bridge.db.pruning import BATCH, prune
from letta_bridge.ids import RoomID

from .world import World, settled

BIG = ("inbox", "turn", "turn_event", "outbox")
"""The tables from which nothing is ever deleted."""
SMALL = r"_(open|dead)$"
"""Partial indexes that hold only what waits or was given up: reading the whole of one is no harm."""
MONTH = 30 * 86400.0
MANY = 50_000

Said = dict[str, tuple[Any, ...]]
"""Statements, each with the arguments of one call."""


@asynccontextmanager
async def listening(db: Database) -> AsyncIterator[Said]:
    """Every statement that the database is asked meanwhile."""
    said: Said = {}
    if not db.postgres:
        await db._on_thread(lambda conn: conn.set_trace_callback(lambda statement: said.setdefault(statement, ())))
        yield said
        await db._on_thread(lambda conn: conn.set_trace_callback(None))
        return

    def note(record: Any) -> None:
        calls = record.args if isinstance(record.args, list) else [record.args]  # a list: of executemany
        for args in calls[:1]:
            said.setdefault(record.query, tuple(args))

    pool: Any = db._db._pool  # type: ignore[attr-defined]
    async with AsyncExitStack() as stack:  # all at once, so that each of them is there
        connections = [await stack.enter_async_context(pool.acquire()) for _ in range(pool.get_max_size())]
        raw = [connection._con for connection in connections]
    for connection in raw:
        connection.add_query_logger(note)
    yield said
    for connection in raw:
        connection.remove_query_logger(note)


async def greedy(db: Database, said: Said, small: str = SMALL) -> list[str]:
    """Statements that go through a whole big table, or through the whole of an index that is not ``small``."""
    found = []
    for statement, args in sorted(said.items()):
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            steps = await (_postgres_scans if db.postgres else _sqlite_scans)(db, statement, args)
            found += [f"{step}: {statement}" for step in steps if not re.search(small, step)]
    return found


async def _sqlite_scans(db: Database, statement: str, _: tuple[Any, ...]) -> list[str]:
    def explain(conn: sqlite3.Connection) -> list[str]:
        return [str(row[3]) for row in conn.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()]

    return [step for step in await db._on_thread(explain) if re.match(rf"SCAN (?:{'|'.join(BIG)}|[a-z])\b", step)]


async def _postgres_scans(db: Database, statement: str, args: tuple[Any, ...]) -> list[str]:
    async def explain(conn: Connection) -> Any:
        await conn.execute("SET LOCAL enable_seqscan = off")  # small tables are read whole whatever indexes they have
        return json.loads(await conn.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *args))

    first = {row["index"]: row["col"] for row in await db.fetch(_FIRST_COLUMNS)}
    return [
        f"{node['Node Type']} of {node['Relation Name']} by {node.get('Index Name')}"
        for node in _nodes((await db.write(explain))[0]["Plan"])
        if node.get("Relation Name") in BIG and node["Node Type"] != "ModifyTable" and _is_scan(node, first)
    ]


_FIRST_COLUMNS = (
    "SELECT c.relname AS index, COALESCE(a.attname, '') AS col FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
    "LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
)


def _is_scan(node: dict[str, Any], first: dict[str, str]) -> bool:
    """Whether it goes through all that the index has, or through all that it finds there in search of a time: what is
    compared with a running clock is no condition on an index.
    """
    if "clock_timestamp" in node.get("Filter", ""):
        return True
    return node["Node Type"] != "Bitmap Heap Scan" and (
        "Index Cond" not in node or first[node["Index Name"]] not in node["Index Cond"]
    )


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        if below["Node Type"] == "Bitmap Index Scan":  # names its table only above
            below["Relation Name"] = plan.get("Relation Name")
        yield from _nodes(below)


async def test_no_statement_reads_a_whole_table(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    bridge = await world.start()
    room = await world.dm(alice, agent)
    await settled(world)
    async with listening(bridge.db) as said:
        question = await alice.send(room, "one")
        await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("one"))
        await alice.react(room, question, "🛑")
        await alice.edit(room, question, "two")
        await settled(world)
        await alice.redact(room, question)
        hold = world.letta.hold(agent)
        await alice.send(room, "three")
        await hold.entered()
        waiting = await alice.send(room, "four")
        await alice.edit(room, waiting, "five")
        await settled(world)
        await bridge.lanes.sweep()
        await alice.send(room, "!stop")
        await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("^Stopped"))
        hold.release()
    assert any("'replying', 'done'" in statement for statement in said), "a reaction on an answer was looked at"
    assert not await greedy(bridge.db, said)


async def _copies(conn: Connection, number: int, *, full: bool) -> None:
    """Messages that were answered long ago, with their texts or without."""
    body, text, content = ('{"a": 1}', "hello", '{"b": 2}') if full else ("", "", "{}")
    count = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number}) "
    await conn.execute(
        "INSERT INTO inbox (event_id, room_id, sender, type, body, origin, state, received_at, decided_at) "
        f"{count} SELECT '$old' || i, '!old', '@old:x', 'm.room.message', $1, 'push', 'dispatched', i, i FROM n",
        body,
    )
    await conn.execute(
        "INSERT INTO turn (lane, agent_id, room_id, source, state, created_at, finished_at) "
        f"{count} SELECT 'agent:old', 'old', '!old', '$old' || i, 'done', i, i FROM n"
    )
    await conn.execute(
        "INSERT INTO turn_event (event_id, agent_id, turn_id, position, sender, text, created_at) "
        "SELECT t.source, 'old', t.turn_id, 1, '@old:x', $1, t.created_at FROM turn t WHERE t.agent_id = 'old'",
        text,
    )
    await conn.execute(
        "INSERT INTO outbox (txn_id, room_id, sender, type, content, turn_id, state, created_at, sent_at) "
        "SELECT t.source, '!old', '@old:x', 'm.room.message', $1, t.turn_id, 'sent', t.created_at, t.created_at "
        "FROM turn t WHERE t.agent_id = 'old'",
        content,
    )


async def _texts(db: Database) -> list[int]:
    """How many old texts there are, of each kind."""
    return [
        int(await db.fetchval(query))
        for query in (
            "SELECT COUNT(*) FROM inbox WHERE body <> '' AND room_id = '!old'",
            "SELECT COUNT(*) FROM turn_event WHERE text <> '' AND agent_id = 'old'",
            "SELECT COUNT(*) FROM outbox WHERE content <> '{}' AND room_id = '!old'",
        )
    ]


@asynccontextmanager
async def opened(uri: str, folder: Path) -> AsyncIterator[Database]:
    db = Database(uri, folder)
    await db.open()
    try:
        yield db
    finally:
        await db.close()


async def test_pruning_looks_only_at_what_still_has_its_text(tmp_path: Path, database_uri: str) -> None:
    async with opened(database_uri, tmp_path) as db:
        await db.write(lambda conn: _copies(conn, MANY, full=False))
        if db.postgres:
            await db.write(lambda conn: conn.execute("ANALYZE"))
        async with listening(db) as said:
            await prune(db, MONTH)
        assert sum(f"FROM {table} " in statement for statement in said for table in BIG) >= 3
        assert not await greedy(db, said, small="no index is small enough")


async def test_pruning_empties_old_texts_and_keeps_what_is_new_or_open(tmp_path: Path, database_uri: str) -> None:
    async with opened(database_uri, tmp_path) as db:
        now = db.now

        async def fill(conn: Connection) -> None:
            await _copies(conn, BATCH + 5, full=True)
            await conn.execute(f"UPDATE inbox SET decided_at = {now} WHERE event_id = '$old1'")
            await conn.execute("UPDATE inbox SET state = 'new', decided_at = NULL WHERE event_id = '$old2'")
            await conn.execute("UPDATE inbox SET state = 'dead', decided_at = NULL WHERE event_id = '$old3'")
            await conn.execute(f"UPDATE turn SET finished_at = {now} WHERE source = '$old1'")
            await conn.execute("UPDATE turn SET state = 'queued', finished_at = NULL WHERE source = '$old2'")
            await conn.execute("UPDATE outbox SET state = 'pending' WHERE txn_id = '$old2'")
            await conn.execute(f"UPDATE outbox SET created_at = {now} WHERE txn_id = '$old1'")

        await db.write(fill)
        assert await _texts(db) == [BATCH + 5] * 3
        await prune(db, MONTH)
        assert await _texts(db) == [2, 2, 2]
        await prune(db, 0.0)
        assert await _texts(db) == [1, 1, 1], "what is open keeps its text"
        assert await db.fetchval("SELECT body FROM inbox WHERE event_id = '$old2'")


async def test_messages_are_answered_while_a_lot_is_pruned(world: World) -> None:
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    bridge = await world.start()
    room = await world.dm(alice, agent)
    await bridge.db.write(lambda conn: _copies(conn, MANY // 3, full=True))
    pruning = asyncio.create_task(prune(bridge.db, MONTH))
    answered = 0
    while not pruning.done():
        await alice.send(room, f"are you there, {answered}?")
        await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(f"(?s)echo: .*there, {answered}?"))
        answered += not pruning.done()
    await pruning
    assert answered
    assert await _texts(bridge.db) == [0, 0, 0]


async def test_dead_turns_are_found_however_long_ago_they_died(tmp_path: Path, database_uri: str) -> None:
    async with opened(database_uri, tmp_path) as db:
        await db.write(lambda conn: _copies(conn, MANY, full=True))
        await db.write(lambda conn: conn.execute("UPDATE turn SET state = 'dead' WHERE source = '$old1'"))
        await db.write(
            lambda conn: conn.execute(
                "INSERT INTO turn (turn_id, lane, agent_id, room_id, source, state, created_at) "
                "VALUES (5000000, 'agent:new', 'new', '!new', '$new', 'done', 0)"
            )
        )
        if db.postgres:
            await db.write(lambda conn: conn.execute("ANALYZE"))
        async with listening(db) as said:
            letters = await Letters(db).all(50)
            assert await Letters(db).dead_turns() == 1
        assert [letter.number for letter in letters] == ["t1"]
        assert not await greedy(db, said)


async def test_an_export_of_a_quiet_room_reads_the_others_in_bites(tmp_path: Path, database_uri: str) -> None:
    async with opened(database_uri, tmp_path) as db:
        await db.write(lambda conn: _copies(conn, MANY, full=False))
        for table in ("inbox", "outbox"):
            await db.write(
                lambda conn, table=table: conn.execute(  # type: ignore[misc]
                    f"UPDATE {table} SET room_id = '!quiet' WHERE seq IN (3, {MANY // 2}, {MANY})"
                )
            )
        if db.postgres:
            await db.write(lambda conn: conn.execute("ANALYZE"))
        async with listening(db) as said:
            found, more = await entries(db, Wish(RoomID("!quiet")), 1000)
        assert ([entry["at"] for entry in found], more) == ([3, 3, MANY // 2, MANY // 2, MANY, MANY], False)
        pages = {statement: args for statement, args in said.items() if ".seq <= " in statement}
        assert len(pages) >= 2
        for statement, args in pages.items():
            plan = [
                str(row[-1])
                for row in await db.fetch(f"EXPLAIN {'' if db.postgres else 'QUERY PLAN '}{statement}", *args)
            ]
            assert any(re.search(r"rowid>\? AND rowid<\?|Index Cond: .*seq > .*seq <= ", step) for step in plan), plan
