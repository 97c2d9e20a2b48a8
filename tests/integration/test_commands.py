"""Commands in rooms: which messages are some, who may give them, that each is answered once and in order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from letta_bridge.commands.carry import Carrier
from letta_bridge.commands.lane import CommandLane
from letta_bridge.commands.table import Command, Need, Reply, Table
from letta_bridge.testing.fake_homeserver import Person

from .command_kit import asked, bot_room, told
from .world import BOT, DOMAIN, World, a_group, notices, settled, until


async def started(world: World, **overrides: Any) -> tuple[Person, str]:
    """An admin in a direct chat with the bot of a running bridge with the agent Ada."""
    world.letta.add_agent("Ada")
    admin = await world.hs.person("admin")
    await world.start(**overrides)
    await world.mirrored()
    return admin, await bot_room(world, admin)


async def test_in_a_direct_chat_every_text_is_a_command(world: World) -> None:
    admin, room = await started(world)
    for text in ("help", "!letta help", "!LETTA Help", "`!letta help`", "/help"):
        assert "I understand:" in await asked(admin, room, text)
    answer = await asked(admin, room, "agents")
    assert answer.startswith("One agent:")
    assert "[Ada](https://matrix.to/#/@letta_" in answer
    assert "[room](https://matrix.to/#/%23letta_" in answer
    assert "Did you mean `agents` or `agent`?" in await asked(admin, room, "agentss")
    assert world.letta.agents  # and no agent was asked anything
    assert [message.sender for message in notices(admin, room)] == [BOT] * 7


async def test_in_a_room_with_agents_only_what_begins_with_the_word(sqlite_world: World) -> None:
    room, _, _, alice, bob = await a_group(sqlite_world)
    assert "2 agents" in await asked(alice, room, "!letta agents")
    assert "Begin each with `!letta`" in await asked(bob, room, "!letta")
    before = len(alice.messages(room))
    await alice.send(room, "what does !letta do?")
    await alice.send(room, "help")
    await settled(sqlite_world)
    assert len(alice.messages(room)) == before + 2
    said = await sqlite_world.bridge.db.fetch("SELECT decision FROM inbox WHERE decision LIKE 'begins with%'")  # type: ignore[union-attr]
    assert len(said) == 2
    assert not await sqlite_world.bridge.db.fetch("SELECT 1 FROM turn")  # type: ignore[union-attr]


async def test_where_the_bot_is_not_an_agents_user_answers(sqlite_world: World) -> None:
    ada = sqlite_world.letta.add_agent("Ada")
    alice = await sqlite_world.hs.person("alice")
    await sqlite_world.start()
    room = await sqlite_world.dm(alice, ada)
    await asked(alice, room, "!letta version")
    answer = notices(alice, room)[-1]
    assert answer.sender == sqlite_world.puppet(ada)
    assert answer.body.startswith("letta-bridge ")
    assert not await sqlite_world.bridge.db.fetch("SELECT 1 FROM turn")  # type: ignore[union-attr]


async def test_a_management_room_with_several_people(sqlite_world: World) -> None:
    world = sqlite_world
    admin, other = await world.hs.person("admin"), await world.hs.person("other", auto_join=True)
    bridge = await world.start(permissions={DOMAIN: "user", admin.mxid: "admin", other.mxid: "admin"})
    room = await admin.create_room(invite=[BOT])
    await admin.wait_joined(room, BOT)
    await bridge.db.write(lambda conn: bridge.desk.management.set(conn, admin.mxid, room))  # type: ignore[arg-type]
    assert "Pong" in await asked(admin, room, "ping")
    await admin.invite(room, other.mxid)
    await admin.wait_joined(room, other.mxid)
    before = len(notices(admin, room))
    await admin.send(room, "ping")
    await settled(world)
    assert "Pong" in await asked(admin, room, "!letta ping"), "two people talk to each other until one of them calls"
    assert "Pong" in await asked(other, room, f"{BOT}: ping")
    mention = {"m.mentions": {"user_ids": [BOT]}}
    pill = f'<a href="https://matrix.to/#/{BOT}">Letta Bridge</a>: ping'
    html = {"format": "org.matrix.custom.html", "formatted_body": pill}
    assert "Pong" in await asked(other, room, "Letta Bridge: ping", **mention, **html)
    assert len(notices(admin, room)) == before + 3
    assert "ready" in await asked(admin, room, "!letta status"), "both are admins"


async def test_private_answers_are_not_given_to_everybody(sqlite_world: World) -> None:
    world = sqlite_world
    ada = world.letta.add_agent("Ada")
    admin, alice = await world.hs.person("admin"), await world.hs.person("alice", auto_join=True)
    bridge = await world.start()
    room = await admin.create_room(invite=[alice.mxid, world.puppet(ada), BOT])
    for one in (world.puppet(ada), BOT, alice.mxid):
        await admin.wait_joined(room, one)
    assert "is not for everybody here" in await asked(admin, room, "!letta dead")
    together = await admin.create_room(invite=[BOT])
    await admin.wait_joined(together, BOT)
    await bridge.db.write(lambda conn: bridge.desk.management.set(conn, admin.mxid, together))  # type: ignore[arg-type]
    assert "no dead letters" in await asked(admin, together, "dead")
    await admin.invite(together, alice.mxid)
    await admin.wait_joined(together, alice.mxid)
    await settled(world)
    assert f"{alice.mxid} is in this room" in await asked(admin, together, "!letta dead")


async def test_who_may_nothing_learns_nothing(sqlite_world: World) -> None:
    world = sqlite_world
    ada = world.letta.add_agent("Ada")
    admin, mallory = await world.hs.person("admin"), await world.hs.person("mallory", auto_join=True)
    await world.start(permissions={admin.mxid: "admin"})
    room = await admin.create_room(invite=[mallory.mxid, world.puppet(ada)])
    for one in (mallory.mxid, world.puppet(ada)):
        await admin.wait_joined(room, one)
    assert "You are not allowed" in await asked(mallory, room, "!letta agents")
    before = len(notices(mallory, room))
    await mallory.send(room, "!letta help")
    await mallory.send(room, "!letta status --help")
    await settled(world)
    assert len(notices(mallory, room)) == before, "and it is said once"


async def test_an_answer_stays_in_its_thread(sqlite_world: World) -> None:
    admin, room = await started(sqlite_world)
    root = await admin.send(room, "version")
    await told(admin, room, 0)
    thread = {"rel_type": "m.thread", "event_id": root, "is_falling_back": True, "m.in_reply_to": {"event_id": root}}
    await admin.send(room, "ping", **{"m.relates_to": thread})
    await told(admin, room, 1)
    answer = [event for event in admin.timeline(room) if event["sender"] == BOT and event["type"] == "m.room.message"][
        -1
    ]
    assert answer["content"]["m.relates_to"]["rel_type"] == "m.thread"
    assert answer["content"]["m.relates_to"]["event_id"] == root


async def test_edits_are_no_commands_and_what_is_deleted_before_it_ran_is_not_run(sqlite_world: World) -> None:
    admin, room = await started(sqlite_world)
    first = await admin.send(room, "version")
    await told(admin, room, 0)
    await admin.edit(room, first, "ping")
    await settled(sqlite_world)
    held = Held()
    held.into(sqlite_world)
    await admin.send(room, "slow")
    await held.began.wait()
    doomed = await admin.send(room, "version")
    await settled(sqlite_world)
    await admin.redact(room, doomed)
    await settled(sqlite_world)
    held.free.set()
    await told(admin, room, 1)
    assert "Pong" in await asked(admin, room, "ping")
    assert [notice.body.split()[0] for notice in notices(admin, room)] == ["letta-bridge", "slept", "Pong."]


class Held:
    """A command that waits until it is let go, one that breaks, and the real ones."""

    def __init__(self) -> None:
        self.began, self.free, self.runs = asyncio.Event(), asyncio.Event(), 0

    async def _slow(self, _: object) -> Reply:
        self.began.set()
        await self.free.wait()
        return Reply("slept")

    async def _broken(self, _: object) -> Reply:
        self.runs += 1
        raise ZeroDivisionError

    def into(self, world: World, seconds: float = 30.0) -> None:
        """Let the running bridge have them."""
        bridge = world.bridge
        assert bridge is not None
        own = (
            Command("slow", "waits", Need.USER, self._slow, "Test"),
            Command("broken", "breaks", Need.USER, self._broken, "Test", changes=True),
        )
        table = Table((*bridge.carrier.table.commands, *own))
        carrier = Carrier(bridge.desk, bridge.engine, table, seconds)
        bridge.lanes.handle("command", CommandLane(carrier).handle)


async def test_a_slow_command_holds_up_no_message_and_the_next_command_waits_for_it(sqlite_world: World) -> None:
    world = sqlite_world
    ada = world.letta.add_agent("Ada")
    alice = await world.hs.person("alice")
    await world.start()
    room = await world.dm(alice, ada)
    held = Held()
    held.into(world)
    await alice.send(room, "!letta slow")
    await alice.send(room, "!letta version")
    await held.began.wait()
    await alice.send(room, "good morning")
    await alice.wait_message(room, sender=world.puppet(ada), timeout=15)
    assert not notices(alice, room)
    held.free.set()
    await until(lambda: len(notices(alice, room)) == 2)
    assert [notice.body.split()[0] for notice in notices(alice, room)] == ["slept", "letta-bridge"]


async def test_what_takes_too_long_is_given_up_and_says_so(sqlite_world: World) -> None:
    admin, room = await started(sqlite_world)
    Held().into(sqlite_world, seconds=0.2)
    assert "took longer than" in await asked(admin, room, "slow")
    assert "Pong" in await asked(admin, room, "ping")


async def test_what_breaks_is_tried_again_then_told_with_a_reference(
    sqlite_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    admin, room = await started(sqlite_world)
    held = Held()
    held.into(sqlite_world)
    answer = await asked(admin, room, "broken")
    assert "see the log (reference " in answer
    reference = answer.partition("(reference ")[2].partition(")")[0]
    assert held.runs == 3
    assert any(getattr(record, "reference", "") == reference for record in caplog.records)
    assert "Pong" in await asked(admin, room, "ping")


async def test_commands_of_before_a_stop_are_answered_after_it_once(world: World) -> None:
    admin, room = await started(world)
    bridge = world.bridge
    assert bridge is not None
    held = Held()
    held.into(world)
    await admin.send(room, "slow")
    await held.began.wait()
    await admin.send(room, "version")
    await settled(world)
    await world.stop()
    assert not notices(admin, room)
    await world.start()
    await until(lambda: len(notices(admin, room)) == 2)
    assert "Pong" in await asked(admin, room, "ping")
    assert len(notices(admin, room)) == 3


async def test_a_replayed_command_is_answered_once(sqlite_world: World) -> None:
    """Carried out twice because the first time ended before its commit: the homeserver has one answer."""
    admin, room = await started(sqlite_world)
    bridge = sqlite_world.bridge
    assert bridge is not None
    await asked(admin, room, "version")
    await bridge.db.write(lambda conn: conn.execute("UPDATE command SET state = 'open', text = 'version'"))
    bridge.lanes.wake(f"command:{room}")

    async def done() -> bool:
        return not await bridge.desk.commands.open_lanes()

    await until(done)
    assert "Pong" in await asked(admin, room, "ping")
    assert len(notices(admin, room)) == 2


async def test_long_answers_come_in_parts(sqlite_world: World) -> None:
    admin, room = await started(sqlite_world)

    async def long(_: object) -> Reply:
        return Reply("\n\n".join(f"line {number} " + "x" * 300 for number in range(200)))

    bridge = sqlite_world.bridge
    assert bridge is not None
    table = Table((*bridge.carrier.table.commands, Command("long", "is long", Need.USER, long, "Test")))
    bridge.lanes.handle("command", CommandLane(Carrier(bridge.desk, bridge.engine, table)).handle)
    await admin.send(room, "long")
    await until(lambda: any("line 199" in notice.body for notice in notices(admin, room)))
    bodies = [notice.body for notice in notices(admin, room)]
    assert len(bodies) > 3
    assert all(any(f"line {number} " in body for body in bodies) for number in range(200))


async def test_trouble_with_letta_is_told_in_plain_words(sqlite_world: World) -> None:
    admin, room = await started(sqlite_world)
    await sqlite_world.letta.stop()
    answer = await asked(admin, room, "ping")
    assert "Letta: unreachable" in answer
    assert "Pong" in answer
    bridge = sqlite_world.bridge
    assert bridge is not None

    async def fails(call: Any) -> Reply:
        await call.desk.backend.health()
        return Reply("")

    table = Table((*bridge.carrier.table.commands, Command("fails", "fails", Need.USER, fails, "Test")))
    bridge.lanes.handle("command", CommandLane(Carrier(bridge.desk, bridge.engine, table)).handle)
    assert "did not work: Letta cannot be reached" in await asked(admin, room, "fails")


async def test_an_empty_state_says_what_to_do_next(sqlite_world: World) -> None:
    world = sqlite_world
    admin = await world.hs.person("admin")
    await world.start(permissions={admin.mxid: "admin"})
    room = await bot_room(world, admin)
    answer = await asked(admin, room, "hello")
    assert "`help` lists" in answer
    answer = await asked(admin, room, "help")
    assert "There are no agents yet. Create one in Letta" in answer
    assert "summon <name>" in answer
    assert "Nobody but administrators may talk to agents yet" in answer
    assert "There are no agents yet" in await asked(admin, room, "agents")
