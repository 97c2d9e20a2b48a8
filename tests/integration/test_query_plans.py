"""What a message costs does not grow with the years of messages that lie behind it."""

from __future__ import annotations

import re
import sqlite3

from .world import World, settled

BIG = ("inbox", "turn", "turn_event", "outbox")
"""The tables from which nothing is ever deleted."""


def reads_all_of(conn: sqlite3.Connection, statement: str) -> bool:
    """Whether SQLite goes through a whole big table. Partial indexes hold only what is open."""
    steps = [str(row[3]) for row in conn.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()]
    scans = [step for step in steps if re.match(rf"SCAN (?:{'|'.join(BIG)}|[a-z])\b", step)]
    return any(not re.search(r"_(open|dead)$", step) for step in scans)


async def test_no_statement_reads_a_whole_table(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    bridge = await world.start()
    room = await world.dm(alice, agent)
    await settled(world)
    said: set[str] = set()
    await bridge.db._on_thread(lambda conn: conn.set_trace_callback(said.add))

    question = await alice.send(room, "one")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("one"))
    await alice.edit(room, question, "two")
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

    await bridge.db._on_thread(lambda conn: conn.set_trace_callback(None))
    found = await bridge.db._on_thread(
        lambda conn: [
            statement
            for statement in sorted(said)
            if statement.startswith(("SELECT", "UPDATE", "DELETE")) and reads_all_of(conn, statement)
        ]
    )
    assert not found, "\n".join(found)
