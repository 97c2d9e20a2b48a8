"""Whatever goes wrong again and again comes to an end, with a word to the sender, and holds up nobody else."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from letta_bridge.bridge import LettaBridge
from letta_bridge.db.database import Connection, Database
from letta_bridge.db.turns import NewMessage, Turns, agent_lane
from letta_bridge.ids import MXID, AgentID, ConversationID, EventID, RoomID, make_otid
from letta_bridge.lanes import Fence
from letta_bridge.letta.v1 import V1Backend
from letta_bridge.wiring import turn_settings

from .lanes_kit import LANE, running
from .world import World, settled, until

SEND = r"/v1/conversations/[^/]+/messages$"


async def test_a_send_that_always_breaks_is_given_up_and_told(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start(limits__turn_attempts=3)
    room = await world.dm(alice, agent)
    broken = world.letta.fail_next(SEND, "disconnect", 1000, method="POST")
    await alice.send(room, "into the void")
    await alice.wait_message(room, text=re.compile("connection to Letta broke several times"), timeout=15)
    await settled(world)
    assert len(world.letta.turns(agent)) == 0
    tries = sum(method == "POST" and re.search(SEND, path) is not None for method, path in world.letta.requests)
    assert tries <= 3
    broken.times = 0
    await alice.send(room, "and again")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(r"(?s)echo: .*and again"))


class _Broken(V1Backend):
    """A Letta client with a bug that one room's conversation meets."""

    bad = ""

    async def open_conversation(self, agent_id: AgentID, label: str) -> ConversationID:
        if self.bad and self.bad in label:
            raise RuntimeError("a bug")
        return await super().open_conversation(agent_id, label)


async def test_an_unexpected_error_in_one_turn_is_told_and_lets_other_rooms_pass(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob")
    world.overrides["limits.turn_attempts"] = 2
    world.hs.appservice_url = f"http://127.0.0.1:{world.port}"
    backend = _Broken(world.letta.url, None)
    config = world.config()
    world.bridge = LettaBridge(config, backend, turns=turn_settings(config))
    await world.bridge.start()
    await world.mirrored()
    room = await world.dm(alice, agent)
    other = await world.dm(bob, agent)
    backend.bad = room
    await alice.send(room, "meets the bug")
    await bob.send(other, "is fine")
    await alice.wait_message(room, text=re.compile("Something unexpected failed"), timeout=15)
    await bob.wait_message(other, sender=world.puppet(agent), text=re.compile(r"(?s)echo: .*is fine"), timeout=15)


async def test_a_lane_cancelled_before_its_first_step_works_again(tmp_path: Path) -> None:
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()
    worked = asyncio.Event()

    async def handler(_: Fence) -> float | None:
        worked.set()
        return None

    try:
        async with running(db, handler) as lanes:
            lanes.wake(LANE)
            lanes._let_go()  # as after a freeze: in the same step of the loop as the wake
            await asyncio.sleep(0)
            assert not worked.is_set()
            lanes.wake(LANE)
            await asyncio.wait_for(worked.wait(), 5)
    finally:
        await db.close()


async def test_a_running_turn_is_the_head_of_its_lane_whatever_waits_longer(tmp_path: Path) -> None:
    db = Database("sqlite:bridge.db", tmp_path)
    await db.open()
    turns, agent = Turns(db), AgentID("agent-1")

    async def add(number: int) -> Any:
        new = NewMessage(
            EventID(f"$e{number}"), MXID("@a:b"), agent, RoomID(f"!r{number}"), "", "", mention=False, text="x"
        )
        return await db.write(lambda conn: turns.add(conn, new))

    async def begin(conn: Connection) -> None:
        conversation = ConversationID("conv-1")
        await turns.begin(conn, second, conversation, lambda e, n: make_otid(agent, conversation, e, n))

    try:
        first, second = await add(1), await add(2)
        await db.write(begin)
        head = await turns.head(agent_lane(agent))
        assert head is not None and (head.turn_id, head.state) == (second, "running")
        assert first != second
    finally:
        await db.close()


async def test_stop_while_letta_is_away_is_answered_honestly(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Scout")
    alice = await world.hs.person("alice")
    await world.start()
    hold = world.letta.hold(agent)
    room = await world.dm(alice, agent, "long work")
    await hold.entered()
    world.letta.kill()
    await alice.wait_message(room, text=re.compile("cannot reach Letta"))
    await alice.send(room, "!stop")
    said = await alice.wait_message(room, text=re.compile("^Stopped"))
    assert "did not confirm" in said.body
    hold.release()
    await world.letta.start()
    await alice.send(room, "next")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(r"(?s)echo: .*next"), timeout=15)
    await until(lambda: not any("long work" in m.body for m in alice.messages(room) if m.sender == world.puppet(agent)))
