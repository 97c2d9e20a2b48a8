"""People whom the configuration does not let in, but a grant or their own agent: the bot knows them as users."""

from __future__ import annotations

from letta_bridge.testing.fake_homeserver import Person

from .admin_kit import ADMIN, ask, dm_with_bot, own
from .world import BOT, DOMAIN, World, notices, until

CLOSED = {ADMIN: "admin", f"@mallory:{DOMAIN}": "none"}


async def begun(world: World) -> tuple[str, str, Person, str]:
    """Two agents, and an administrator in a chat with the bot."""
    ada, zoe = world.letta.add_agent("Ada"), world.letta.add_agent("Zoe")
    admin = await world.hs.person("admin")
    await world.start(permissions=CLOSED)
    await world.mirrored()
    return ada, zoe, admin, await dm_with_bot(admin)


async def test_whom_a_grant_lets_in_may_ask_the_bot(world: World) -> None:
    ada, zoe, admin, office = await begun(world)
    bob = await world.hs.person("bob")
    await ask(admin, office, f"permissions grant {bob.mxid} user {ada}")
    room = await dm_with_bot(bob)
    assert "I understand" in await ask(bob, room, "help")
    listed = await ask(bob, room, "agents")
    assert "Ada" in listed and "Zoe" not in listed
    assert "Ada" in await ask(bob, room, "permissions")
    assert ada in await ask(bob, room, "agent Ada")
    assert "no agent" in await ask(bob, room, f"agent {zoe}")
    assert "Only the owner" in await ask(bob, room, "pause Ada")
    assert "Only administrators" in await ask(bob, room, "rooms")
    await ask(admin, office, f"permissions revoke {bob.mxid} {ada}")
    await bob.send(room, "agents")
    said = await bob.wait_message(room, sender=BOT, text=lambda text: "not allowed to use this bridge" in text)
    assert f"permissions grant {bob.mxid} user" in said.body


async def test_an_owner_may_command_in_the_room_of_the_agent(world: World) -> None:
    _, zoe, admin, office = await begun(world)
    bob = await world.hs.person("bob", auto_join=True)
    await own(world, zoe, bob.mxid)
    await ask(admin, office, f"invite {bob.mxid} Zoe")
    assert world.bridge is not None
    row = await world.bridge.agents.get(zoe)  # type: ignore[arg-type]
    assert row is not None
    room = str(row.portal_room)
    await until(lambda: bob.mxid in bob.members(room), why="not in the agent's room")
    assert "I understand" in await ask(bob, room, "!letta help")
    assert "aused" in await ask(bob, room, "!letta pause")
    assert "Resumed" in await ask(bob, room, "!letta resume")
    assert "aused" in await ask(bob, room, "!letta pause Zoe")
    assert "Resumed" in await ask(bob, room, "!letta resume Zoe")
    assert "aused" not in await ask(bob, room, "!letta pause Ada")


async def test_strangers_and_who_is_named_with_none_stay_outside(world: World) -> None:
    ada, _, admin, office = await begun(world)
    mallory, eve = await world.hs.person("mallory"), await world.hs.person("eve")
    await ask(admin, office, f"permissions grant @somebody:{DOMAIN} user {ada}")
    await ask(admin, office, f"permissions grant {eve.mxid} none {ada}")
    await own(world, ada, mallory.mxid)
    for person in (mallory, eve):
        room = await person.create_dm(BOT)
        await until(lambda: notices(person, room), why="no reason was given")  # noqa: B023 - waited for at once
        said = notices(person, room)[0].body
        assert "not allowed" in said
        assert (f"permissions grant {person.mxid} user" in said) == (person is eve), "only where it would help"
        await until(lambda: BOT not in person.members(room), why="the bot stays")  # noqa: B023
