"""Commands against people who want more than they may: what is told where others read, and how often."""

from __future__ import annotations

import asyncio
import re

import pytest

from letta_bridge.db.access import Access
from letta_bridge.db.confirmations import Confirmation, Confirmations
from letta_bridge.testing.fake_homeserver import Person

from .admin_kit import ask, own
from .command_kit import asked, bot_room
from .world import BOT, DOMAIN, World, a_group, notices, settled, until

STRANGER = "@mallory:elsewhere.test"


async def started(world: World, **overrides: object) -> tuple[str, Person]:
    ada = world.letta.add_agent("Ada")
    admin = await world.hs.person("admin")
    await world.start(**overrides)
    await world.mirrored()
    return ada, admin


async def test_commands_count_like_messages(world: World) -> None:
    ada, _ = await started(world, limits__messages_per_minute=3)
    alice = await world.hs.person("alice")
    room = await world.dm(alice, ada, "one message")
    await alice.wait_message(room, sender=world.puppet(ada), text=re.compile("one message"))
    for _ in range(6):
        await alice.send(room, "!letta version")
    await alice.wait_message(room, text=re.compile("more than 3 messages"))
    await settled(world)
    await until(lambda: len(notices(alice, room)) >= 3)
    said = [message.body for message in notices(alice, room)]
    assert len([body for body in said if body.startswith("letta-bridge ")]) == 2
    assert len(said) == 3
    chat = await bot_room(world, alice)
    await alice.send(chat, "version")
    await settled(world)
    assert world.bridge is not None
    assert len(await world.bridge.db.fetch("SELECT 1 FROM command")) == 2


async def test_an_administrator_may_give_many(sqlite_world: World) -> None:
    _, admin = await started(sqlite_world, limits__messages_per_minute=2)
    room = await bot_room(sqlite_world, admin)
    for _ in range(4):
        assert (await asked(admin, room, "version")).startswith("letta-bridge ")


async def test_an_administrators_commands_leave_room_for_messages(sqlite_world: World) -> None:
    ada, admin = await started(sqlite_world, limits__messages_per_minute=2)
    room = await bot_room(sqlite_world, admin)
    for _ in range(3):
        await asked(admin, room, "version")
    chat = await sqlite_world.dm(admin, ada, "hello")
    await admin.wait_message(chat, sender=sqlite_world.puppet(ada), text=re.compile("echo: hello|hello"))
    assert not [said.body for said in notices(admin, chat) if "within a minute" in said.body]


async def test_a_waiting_message_that_becomes_a_command_goes_to_nobody(world: World) -> None:
    ada, _ = await started(world)
    alice = await world.hs.person("alice")
    hold = world.letta.hold(ada)
    room = await world.dm(alice, ada, "first")
    await hold.entered()
    second = await alice.send(room, "second")
    await settled(world)
    await alice.edit(room, second, "!letta help")
    await alice.wait_message(room, text=re.compile("Edits are no commands"))
    hold.release()
    await alice.wait_message(room, sender=world.puppet(ada), text=re.compile("echo"))
    await alice.send(room, "third")
    await alice.wait_message(room, sender=world.puppet(ada), text=re.compile("third"))
    read = " ".join(text for turn in world.letta.turns(ada) for text in turn.texts)
    assert "second" not in read and "!letta" not in read


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("m.room.join_rules", {"join_rule": "public"}),
        ("m.room.history_visibility", {"history_visibility": "world_readable"}),
    ],
)
async def test_where_anybody_can_come_to_read_nothing_private_is_told(
    sqlite_world: World, kind: str, content: dict[str, str]
) -> None:
    world = sqlite_world
    _, admin = await started(world)
    room = await bot_room(world, admin)
    assert "This is your management room" not in await ask(admin, room, "rooms")
    await admin.set_state(room, kind, content)
    for line in ("rooms", "users", "export", "status"):
        assert "is for administrators, and " in await ask(admin, room, line)
    assert "That is not possible here" in await ask(admin, room, "set-management-room")


async def test_who_is_invited_reads_it_later(sqlite_world: World) -> None:
    world = sqlite_world
    _, admin = await started(world)
    await world.hs.person("bob")
    room = await bot_room(world, admin)
    await admin.invite(room, f"@bob:{DOMAIN}")
    await settled(world)
    assert "is invited to this room" in await ask(admin, room, "users")


async def test_an_agents_secrets_are_not_told_in_front_of_others(sqlite_world: World) -> None:
    world = sqlite_world
    room, ada, _, _alice, _ = await a_group(world)
    admin = await world.hs.person("admin", auto_join=True)
    assert world.bridge is not None
    row = await world.bridge.agents.get(ada)  # type: ignore[arg-type]
    assert row is not None
    access = Access(f"agent:{ada}", "@carol:secret.test", "user", "@admin")
    await world.bridge.db.write(lambda conn: world.bridge.desk.access.set(conn, access))  # type: ignore[union-attr]
    await _alice.invite(room, admin.mxid)
    await admin.wait_joined(room, admin.mxid)
    await settled(world)
    assert "carol" not in await ask(admin, room, "!letta agent Ada")
    assert "carol" in await ask(admin, await bot_room(world, admin), "agent Ada")


async def test_who_was_given_one_agent_learns_of_no_other(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Secret project")
    ada, _ = await started(world, permissions={f"@admin:{DOMAIN}": "admin"})
    alice = await world.hs.person("alice")
    assert world.bridge is not None
    access = Access(f"agent:{ada}", alice.mxid, "user", "@admin")
    await world.bridge.db.write(lambda conn: world.bridge.desk.access.set(conn, access))  # type: ignore[union-attr]
    room = await world.dm(alice, ada)
    for text in ("!letta agent Secret", "!letta agent Secre projekt", "!letta agent agent-", "!letta open S"):
        assert "project" not in await ask(alice, room, text)
    assert "**Ada**" in await ask(alice, room, "!letta agent here")


async def test_jobs_of_others_are_shown_where_nobody_else_reads(sqlite_world: World) -> None:
    world = sqlite_world
    ada, admin = await started(world)
    chat = await bot_room(world, admin)
    assert "Lab" in await asked(admin, chat, "room create Lab")
    alice = await world.hs.person("alice")
    assert world.bridge is not None
    await world.bridge.db.write(lambda conn: conn.execute("UPDATE job SET asked_by = '@somebody:else'"))
    room = await world.dm(alice, ada)
    await alice.invite(room, admin.mxid)
    await admin.join(room)
    await settled(world)
    assert "Lab" not in await ask(admin, room, "!letta jobs --all")
    assert "Lab" in await asked(admin, chat, "jobs --all")


async def test_whom_an_administrator_shut_out_no_owner_lets_in(sqlite_world: World) -> None:
    world = sqlite_world
    ada, admin = await started(world)
    alice = await world.hs.person("alice")
    await own(world, ada, alice.mxid)
    chat, room = await bot_room(world, admin), await world.dm(alice, ada)
    bob, domain = f"@bob:{DOMAIN}", "elsewhere.test:8448"
    for who in (bob, domain):
        assert "may not use" in await ask(admin, chat, f"permissions grant {who} none Ada")
    assert "shut out by an administrator" in await ask(alice, room, f"!letta permissions grant {bob} user Ada")
    assert "shut out by an administrator" in await ask(alice, room, f"!letta permissions revoke {bob} Ada")
    assert "only administrators" in await ask(alice, room, f"!letta permissions revoke {domain} Ada")
    assert "Taken back" in await ask(admin, chat, f"permissions revoke {bob} Ada")
    for level in ("none", "user"):
        assert f"`{bob}` may" in await ask(alice, room, f"!letta permissions grant {bob} {level} Ada")


async def test_a_confirmation_counts_once(world: World) -> None:
    bridge = await world.start()
    store = Confirmations(bridge.db)
    await bridge.db.write(lambda conn: store.set(conn, "x", Confirmation("4f2a", "", "what", "", 0.0)))
    found = await store.get("x")
    assert found is not None and found.used_by == ""
    uses = [bridge.db.write(lambda conn, key=key: store.use(conn, "x", found, key)) for key in ("one", "two")]  # type: ignore[misc]
    assert sorted(await asyncio.gather(*uses)) == [False, True]
    again = await store.get("x")
    assert again is not None and again.used_by in ("one", "two") and again.age >= found.age


async def test_nothing_is_looked_up_for_who_may_not_use_the_command(sqlite_world: World) -> None:
    world = sqlite_world
    ada, _ = await started(world)
    alice = await world.hs.person("alice")
    room = await world.dm(alice, ada)
    before = world.hs.count("/directory/room/")
    assert "Only administrators" in await ask(alice, room, "!letta catchup #x:elsewhere.test")
    assert world.hs.count("/directory/room/") == before


async def test_names_of_federated_users_are_only_text(sqlite_world: World) -> None:
    world = sqlite_world
    _, admin = await started(world)
    assert world.bridge is not None
    bridge, name = world.bridge, "@[click](https://evil.test)`*x*:elsewhere.test"
    room = await bot_room(world, admin)
    for user in (BOT, name):
        await bridge.db.write(lambda conn, user=user: bridge.rooms.set_membership(conn, "!r:x", user, "join"))  # type: ignore[misc, arg-type]
    for line in ("users", "rooms"):
        await ask(admin, room, line)
        html = notices(admin, room)[-1].formatted_body or ""
        assert "evil.test" in html and 'href="https://evil' not in html
