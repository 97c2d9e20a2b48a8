"""What two processes do at the same moment on PostgreSQL: whoever comes second sees what the first one made of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from letta_bridge.db.agents import Agents
from letta_bridge.db.alarms import Alarms
from letta_bridge.db.database import Connection, Database
from letta_bridge.db.letters import Letters
from letta_bridge.db.pruning import prune
from letta_bridge.db.rebinding import Move, Rebinding
from letta_bridge.db.turns import NewMessage, Turns, agent_lane
from letta_bridge.ids import MXID, AgentID, ConversationID, EventID, RoomID, TurnID, make_otid
from letta_bridge.lanes import Fence, Lanes

from .lanes_kit import nothing, running
from .world import until

OLD, NEW, OTHER = AgentID("agent-old"), AgentID("agent-new"), AgentID("agent-other")
PUPPET, ALICE, ROOM = MXID("@letta_old:x"), MXID("@alice:x"), RoomID("!room")
CONVERSATION = ConversationID("conv-1")
MONTH = 30 * 86400.0

Work = Callable[[Connection], Awaitable[Any]]


@pytest_asyncio.fixture
async def db(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    made = Database(database_uri, tmp_path)
    await made.open()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def shared(tmp_path: Path, postgres_url: str) -> AsyncIterator[Database]:
    """A database that several processes may write to."""
    made = Database(postgres_url, tmp_path)
    await made.open()
    yield made
    await made.close()


async def _waits(conn: Connection) -> bool:
    """Whether somebody waits for this transaction. Asked within it, which must not idle for long."""
    await conn.fetchval("SELECT pg_stat_clear_snapshot()")
    return bool(
        await conn.fetchval(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' LIMIT 1"
        )
    )


async def together(db: Database, first: Work, second: Work, then: Work | None = None) -> Any:
    """Begin ``second`` when ``first`` has written and before it commits, and let it go as far as it can; ``then`` still
    belongs to the first. What the second returned.
    """

    async def work(conn: Connection) -> asyncio.Task[Any]:
        await first(conn)
        other = asyncio.create_task(db.write(second))

        async def as_far_as_it_can() -> bool:
            return other.done() or await _waits(conn)

        await until(as_far_as_it_can)
        if then is not None:
            await then(conn)
        return other

    return await (await db.write(work))


async def _ask(db: Database, event_id: str, agent_id: AgentID = OLD) -> TurnID:
    new = NewMessage(EventID(event_id), ALICE, agent_id, ROOM, event_id, "", mention=False, text="first words")
    turn_id = await db.write(lambda conn: Turns(db).add(conn, new))
    assert turn_id is not None
    return turn_id


async def _begin(db: Database, turn_id: TurnID, agent_id: AgentID = OLD) -> Any:
    return await db.write(
        lambda conn: Turns(db).begin(
            conn, turn_id, CONVERSATION, lambda event, number: make_otid(agent_id, CONVERSATION, event, number)
        )
    )


@pytest.mark.postgres
async def test_an_edit_while_the_agent_is_rebound_is_read_by_the_new_one(shared: Database) -> None:
    turns, rebinding = Turns(shared), Rebinding(shared)
    turn_id = await _ask(shared, "$1")
    changed = await together(
        shared,
        lambda conn: rebinding.move_turns(conn, OLD, NEW),
        lambda conn: turns.edit(conn, ROOM, EventID("$1"), ALICE, lambda _: "better words"),
    )
    assert changed == (1, 0)
    assert [message.text for message in await turns.messages(turn_id)] == ["better words"]


@pytest.mark.postgres
async def test_what_is_taken_back_while_the_agent_is_rebound_reaches_neither(shared: Database) -> None:
    turns, rebinding = Turns(shared), Rebinding(shared)
    turn_id = await _ask(shared, "$1")
    lanes = await together(
        shared,
        lambda conn: rebinding.move_turns(conn, OLD, NEW),
        lambda conn: turns.withdraw(conn, ROOM, EventID("$1"), ALICE),
    )
    assert lanes == [agent_lane(NEW)]
    assert await _begin(shared, turn_id, NEW) is None
    assert not await turns.messages(turn_id)


async def test_a_message_that_the_new_agent_has_already_ends_what_the_old_one_had_begun_to_say(db: Database) -> None:
    turns, rebinding = Turns(db), Rebinding(db)
    begun, silent = await _ask(db, "$1"), await _ask(db, "$2")
    for event_id in ("$1", "$2"):
        await _ask(db, event_id, NEW)
    await _begin(db, begun)
    await db.write(lambda conn: turns.requeue(conn, begun, delay=0.0, reason="", failed=True))
    await db.write(
        lambda conn: conn.execute(
            "INSERT INTO outbox (txn_id, room_id, sender, type, content, turn_id, state, created_at) "
            "VALUES ('t', '!room', '@letta_old:x', 'm.room.message', '{}', $1, 'sent', 0)",
            begun,
        )
    )
    await db.write(lambda conn: rebinding.move_turns(conn, OLD, NEW))
    head = await turns.head(agent_lane(NEW))
    assert head is not None
    assert head.turn_id == begun, "its lane gives it an end"
    assert head.stop_by
    closed = await db.fetchrow("SELECT state, finished_at FROM turn WHERE turn_id = $1", silent)
    assert closed is not None
    assert closed["state"] == "cancelled"
    assert closed["finished_at"] is not None


@pytest.mark.postgres
async def test_two_agents_cannot_get_the_same_place(shared: Database) -> None:
    rebinding = Rebinding(shared)
    await Agents(shared).add(OLD, PUPPET, "DEVICE", "Scout")

    async def first(conn: Connection) -> None:
        move = Move(OLD, NEW, PUPPET, AgentID("retired-1"))
        assert await rebinding.holder(conn, PUPPET) == OLD
        await rebinding.make(conn, move)

    assert await together(shared, first, lambda conn: rebinding.holder(conn, PUPPET)) == NEW


@pytest.mark.postgres
async def test_nothing_of_an_agent_begins_while_it_is_rebound(shared: Database) -> None:
    """Not even by a process that never had anything to do with it."""
    rebinding = Rebinding(shared)
    await _ask(shared, "$1")
    lane, claimed = agent_lane(OLD), asyncio.Event()

    async def handler(_: Fence) -> float | None:
        claimed.set()
        return None

    lanes = Lanes(shared, "two")
    lanes.handle("agent", handler)
    async with running(shared, nothing, lanes=lanes):

        async def work(conn: Connection) -> None:
            assert not await rebinding.busy(conn, Move(OLD, NEW, PUPPET, AgentID("retired-1")))
            lanes.wake(lane)

            async def as_far_as_it_can() -> bool:
                return claimed.is_set() or await _waits(conn)

            await until(as_far_as_it_can)
            assert not claimed.is_set()

        await shared.write(work)
        await asyncio.wait_for(claimed.wait(), 10)


@pytest.mark.postgres
async def test_news_that_come_while_older_ones_are_told_are_told_too(shared: Database) -> None:
    alarms = Alarms(shared)
    await shared.write(lambda conn: alarms.add_news(conn, "news", "first"))
    (alarm,) = await alarms.all()
    stood: list[bool] = []

    async def tell(conn: Connection) -> None:
        stood.append(await alarms.stands(conn, alarm))

    await together(
        shared,
        tell,
        lambda conn: alarms.add_news(conn, "news", "second"),
        lambda conn: alarms.note_told(conn, "news"),
    )
    assert stood == [True]
    assert [(left.text, left.told) for left in await alarms.all()] == [("second", False)]


async def _dead_turn(db: Database) -> TurnID:
    turn_id = await _ask(db, "$1")
    await _begin(db, turn_id)
    await db.write(lambda conn: Turns(db).close(conn, turn_id, "dead", "it broke"))
    return turn_id


async def test_a_dead_turn_that_was_tried_since_it_was_looked_at_is_not_tried_again(db: Database) -> None:
    letters, turns = Letters(db), Turns(db)
    turn_id = await _dead_turn(db)
    letter = await letters.get(f"t{turn_id}")
    assert letter is not None
    assert await db.write(lambda conn: letters.again(conn, letter))
    await _begin(db, turn_id)
    await db.write(lambda conn: turns.close(conn, turn_id, "dead", "may have been read"))
    assert not await db.write(lambda conn: letters.again(conn, letter)), "what was found safe was the try before"
    newer = await letters.get(f"t{turn_id}")
    assert newer is not None
    assert await db.write(lambda conn: letters.again(conn, newer))


async def test_nothing_is_tried_again_whose_text_was_emptied_since_it_was_looked_at(db: Database) -> None:
    letters = Letters(db)
    turn_id = await _dead_turn(db)

    async def fill(conn: Connection) -> None:
        await conn.execute(
            "INSERT INTO inbox (event_id, room_id, sender, type, body, origin, state, received_at) "
            "VALUES ('$in', '!room', '@alice:x', 'm.room.message', '{\"a\": 1}', 'push', 'dead', 0)"
        )
        await conn.execute(
            "INSERT INTO outbox (txn_id, room_id, sender, type, content, state, created_at) "
            "VALUES ('t', '!room', '@letta_old:x', 'm.room.message', '{\"a\": 1}', 'dead', 0)"
        )
        await conn.execute("UPDATE turn SET finished_at = 0 WHERE turn_id = $1", turn_id)
        await conn.execute("UPDATE turn_event SET created_at = 0")

    await db.write(fill)
    found = await letters.all(10)
    assert len(found) == 3
    assert all(letter.kept for letter in found)
    await prune(db, MONTH)
    assert [await db.write(lambda conn, one=letter: letters.again(conn, one)) for letter in found] == [False] * 3  # type: ignore[misc]


@pytest.mark.postgres
async def test_a_turn_that_is_tried_again_while_texts_are_emptied_keeps_its_text(shared: Database) -> None:
    letters = Letters(shared)
    turn_id = await _dead_turn(shared)
    await shared.write(lambda conn: conn.execute("UPDATE turn SET finished_at = 0"))
    await shared.write(lambda conn: conn.execute("UPDATE turn_event SET created_at = 0"))
    letter = await letters.get(f"t{turn_id}")
    assert letter is not None

    async def work(conn: Connection) -> asyncio.Task[None]:
        assert await letters.again(conn, letter)
        pruning = asyncio.create_task(prune(shared, MONTH))

        async def as_far_as_it_can() -> bool:
            return pruning.done() or await _waits(conn)

        await until(as_far_as_it_can)
        return pruning

    await (await shared.write(work))
    assert [message.text for message in await Turns(shared).messages(turn_id)] == ["first words"]
