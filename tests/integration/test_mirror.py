"""The mirror against a homeserver: every agent gets puppet, profile, portal and its place, once, and keeps them."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from letta_bridge.config.schema import AgentFilter, LettaConfig
from letta_bridge.db.database import Connection, Database
from letta_bridge.ids import MXID, AgentID, RoomID
from letta_bridge.mirror.maker import PORTAL_STATE
from letta_bridge.testing.fake_homeserver import membership
from letta_bridge.testing.fake_homeserver.errors import forbidden

from .mirror_world import ALICE, BOT, DOMAIN, World, agent, agent_id, alias, new_world, open_database, puppet


@pytest.fixture
async def database(tmp_path: Path, database_uri: str) -> AsyncIterator[Database]:
    """An open, empty one; on both engines."""
    async with open_database(tmp_path, database_uri) as opened:
        yield opened


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with new_world(database, invite=(ALICE,)) as made:
        yield made


# -- new agents


@pytest.mark.parametrize(
    ("flavour", "version"), [("synapse", None), ("synapse", "11"), ("tuwunel", None), ("tuwunel", "12")]
)
async def test_every_agent_gets_everything(database: Database, flavour: Any, version: str | None) -> None:
    async with new_world(database, flavour, room_version=version, invite=(ALICE,)) as world:
        world.letta.set(agent(number, description=f"Knows {number}") for number in range(1, 13))
        await world.run_pass()
        world.check_complete(range(1, 13), [ALICE])
        assert world.directory.progress == (12, 12, 0)
        row = await world.row(3)
        assert (row.state, row.error) == ("active", "")
        portal = row.portal_room
        assert world.state(portal, "m.room.topic")["topic"] == "Knows 3"
        assert world.state(portal, "m.room.join_rules") == {"join_rule": "invite"}
        assert world.state(portal, "m.room.history_visibility") == {"history_visibility": "shared"}
        expected = version or {"synapse": "12", "tuwunel": "11"}[flavour]
        assert world.fake.hs.rooms[str(portal)].version == expected


@pytest.mark.parametrize("version", ["11", "12"])
async def test_only_the_bot_may_do_what_would_break_a_portal(database: Database, version: str) -> None:
    async with new_world(database, room_version=version, invite=(ALICE,)) as world:
        world.letta.set([agent(1)])
        await world.run_pass()
        levels = world.state((await world.row(1)).portal_room, "m.room.power_levels")
        assert levels["users"] == {puppet(1): 50} | ({BOT: 100} if version == "11" else {})
        assert levels["events"]["m.room.encryption"] == levels["events"][PORTAL_STATE] == 100
        assert levels["notifications"]["room"] == 100
        assert (levels["users_default"], levels["events_default"], levels["invite"]) == (0, 0, 50)


async def test_a_new_agent_takes_eight_requests(world: World) -> None:
    await world.settle()  # bot and space
    since = len(world.fake.requests)
    world.letta.set(agent(number) for number in range(1, 6))
    await world.run_pass()
    asked = [line for line in world.requests(since) if not line.endswith("/capabilities")]
    assert len(asked) == 8 * 5
    world.check_complete(range(1, 6), [ALICE])


async def test_an_unchanged_agent_costs_nothing(world: World) -> None:
    world.letta.set(agent(number) for number in range(1, 6))
    await world.run_pass()
    await world.push()
    since = len(world.fake.requests)
    for _ in range(3):
        delay = await world.run_pass()
        assert 54 <= delay <= 66
    assert world.requests(since) == []
    await world.restart()
    for _ in range(2):
        await world.run_pass()
    assert [line for line in world.requests(since) if "/register" not in line] == []


async def test_a_new_agent_appears_at_the_next_pass(world: World) -> None:
    world.letta.set([agent(1)])
    await world.run_pass()
    world.letta.agents.append(agent(2))
    await world.run_pass()
    world.check_complete([1, 2], [ALICE])


async def test_names_may_be_anything(world: World) -> None:
    names = ["Twin", "Twin", "", "🦊" * 300, "@room", "evil\u202ename\x00", "#letta_space", "@lettabridge:test.local"]
    world.letta.set(agent(number, name) for number, name in enumerate(names))
    await world.run_pass()
    world.check_complete(range(len(names)), [ALICE])
    shown = [world.profile(number)["displayname"] for number in range(len(names))]
    assert shown[:3] == ["Twin", "Twin", "Agent 00000002"]
    assert shown[4:6] == ["\uff20room", "evilname\ufffd"]
    assert len({(await world.row(number)).portal_room for number in range(len(names))}) == len(names)
    await world.push()
    since = len(world.fake.requests)
    await world.run_pass()
    assert world.requests(since) == []


async def test_ids_that_are_no_uuids(world: World) -> None:
    odd = dataclasses.replace(agent(1), id=AgentID("Agent/Ünïcode @:#"))
    long = dataclasses.replace(agent(1), id=AgentID("x" * 500))
    world.letta.set([odd, long])
    await world.run_pass()
    assert world.directory.progress == (2, 2, 0)
    assert world.fake.hs.aliases.keys() >= {"#" + world.directory.mxid_of(a.id)[1:] for a in (odd, long)}


async def test_filter_and_companions(database: Database) -> None:
    letta = LettaConfig(
        url="http://letta.test",
        include=AgentFilter(tags=("team",), names=("Support *",), ids=(agent_id(3),)),
        exclude=AgentFilter(names=("* test",)),
    )
    async with new_world(database, wants=letta.wants) as world:
        world.letta.set(
            [
                agent(1, tags=("team", "x")),
                agent(2, "Support one"),
                agent(3),
                agent(4),
                agent(5, "Support test"),
                agent(6, tags=("team",), companion=True),
            ]
        )
        await world.run_pass()
        assert {row.agent_id for row in await world.agents.all()} == {agent_id(1), agent_id(2), agent_id(3)}
        world.check_complete([1, 2, 3])
        assert len(world.children()) == 3


# -- changes


async def test_only_what_changed_is_written(world: World) -> None:
    first = agent(1, "Old", description="Before")
    world.letta.set([first, agent(2)])
    await world.run_pass()
    await world.push()
    for change, expected in (
        ({"name": "New"}, ["displayname", "m.room.name", "m.bridge"]),
        ({"description": "After"}, ["m.room.topic"]),
        ({"metadata": {"avatar": "mxc://test.local/abc"}}, ["avatar_url", "m.bridge"]),
        ({"metadata": {}}, ["upload", "avatar_url", "m.bridge"]),
    ):
        since = len(world.fake.requests)
        first = dataclasses.replace(first, **change)
        world.letta.agents[0] = first
        await world.run_pass()
        asked = [re.sub("/m.bridge/.*", "/m.bridge", line) for line in world.requests(since)]
        assert [line.rstrip("/").rpartition("/")[2] for line in asked] == expected
    portal = (await world.row(1)).portal_room
    assert world.profile(1)["displayname"] == world.state(portal, "m.room.name")["name"] == "New"
    assert world.state(portal, "m.room.topic")["topic"] == "After"


async def test_an_agents_own_picture_is_used_as_it_is(world: World) -> None:
    world.letta.set([agent(1, metadata={"avatar": "mxc://test.local/own"})])
    await world.run_pass()
    assert world.profile(1)["avatar_url"] == "mxc://test.local/own"
    assert world.fake.count("/upload") == 0


async def test_an_avatar_inside_the_network_gives_the_generated_one(world: World, caplog: Any) -> None:
    for number, source in enumerate(("http://127.0.0.1:8008/x", "http://169.254.169.254/", "mxc://../x", "nonsense")):
        world.letta.agents.append(agent(number, metadata={"avatar_url": source}))
    await world.run_pass()
    world.check_complete(range(4), [ALICE])
    await world.push()
    since = len(world.fake.requests)
    for _ in range(3):
        await world.run_pass()
    assert world.requests(since) == []
    assert sum(record.action == "avatar_unusable" for record in caplog.records if hasattr(record, "action")) == 4


async def test_a_refused_picture_holds_nothing_up(world: World) -> None:
    world.fake.fail_next("/upload", status=413, errcode="M_TOO_LARGE", times=1)
    world.letta.set([agent(1)])
    await world.run_pass()
    assert world.directory.progress == (1, 1, 0)
    assert "avatar_url" not in world.profile(1)
    world.clock.now += 1000
    await world.run_pass()
    world.check_complete([1], [ALICE])


async def test_the_spaces_name_follows_the_configuration_and_not_the_other_way(world: World) -> None:
    await world.settle()
    (space,) = world.spaces()
    await world.homeserver.bot.set_state(RoomID(space), "m.room.name", "", {"name": "Ours"})
    await world.settle()
    assert world.state(space, "m.room.name") == {"name": "Ours"}
    await world.restart(dataclasses.replace(world.settings, space_name="Renamed"))
    await world.settle()
    assert world.state(space, "m.room.name") == {"name": "Renamed"}
    assert world.spaces() == [space]


# -- agents that are gone


async def test_who_is_gone_is_shown_as_offline_and_nothing_else_happens(world: World, caplog: Any) -> None:
    world.letta.set([agent(1), agent(2)])
    await world.settle()
    since = len(world.fake.requests)
    world.letta.set([agent(2)])
    for _ in range(3):
        await world.run_pass()
    assert (await world.row(1)).state == "missing"
    assert [line.rpartition("/")[2] for line in world.requests(since)] == ["displayname"]
    assert world.profile(1)["displayname"] == "Agent 1 (offline)"
    assert world.state((await world.row(1)).portal_room, "m.room.name") == {"name": "Agent 1"}
    assert [record.action for record in caplog.records if record.levelno >= logging.WARNING] == ["agent_missing"]
    assert world.directory.progress == (1, 1, 0)
    world.letta.set([agent(1), agent(2)])
    await world.run_pass()
    assert (await world.row(1)).state == "active"
    assert world.profile(1)["displayname"] == "Agent 1"
    assert len(world.requests(since)) == 2
    world.check_complete([1, 2], [ALICE])


async def test_an_incomplete_or_empty_listing_says_nothing_about_who_is_gone(world: World, caplog: Any) -> None:
    world.letta.set([agent(1), agent(2)])
    await world.settle()
    world.letta.complete = False
    world.letta.set([agent(2), agent(3)])
    await world.run_pass()
    world.letta.complete = True
    world.letta.set([])
    for _ in range(3):
        await world.run_pass()
    assert {row.state for row in await world.agents.all()} == {"active"}
    world.check_complete([1, 2, 3], [ALICE])
    assert [record.action for record in caplog.records if record.levelno >= logging.WARNING] == ["guard_frozen"]


# -- people


async def test_people_are_invited_once_whatever_they_do(world: World) -> None:
    world.letta.set([agent(1)])
    await world.settle()
    portal = str((await world.row(1)).portal_room)
    alice = await world.fake.person("alice")
    await alice.leave(portal)
    await world.push()
    since = len(world.fake.requests)
    await world.run_pass()
    await world.restart()
    await world.settle()
    assert not [line for line in world.requests(since) if "invite" in line]
    assert world.fake.hs.rooms[portal].membership(ALICE) == "leave"


async def test_people_configured_later_are_invited_everywhere(world: World) -> None:
    world.letta.set([agent(1), agent(2)])
    await world.settle()
    bob = await world.fake.person("bob")
    await world.restart(dataclasses.replace(world.settings, invite=(ALICE, MXID(bob.mxid), BOT, puppet(1))))
    since = len(world.fake.requests)
    await world.settle()
    assert len([line for line in world.requests(since) if line.endswith("/invite")]) == 3
    assert len(bob.invites()) == 3


async def test_who_cannot_be_invited_keeps_no_room_from_coming_into_being(database: Database) -> None:
    nobody = MXID("@nobody:unreachable.example")
    async with new_world(database, invite=(ALICE, nobody)) as world:
        world.letta.set([agent(1), agent(2)])
        await world.settle()
        world.check_complete([1, 2], [ALICE])
        assert world.directory.progress == (2, 2, 0)


@pytest.mark.parametrize(("status", "errcode"), [(401, "M_UNKNOWN_TOKEN"), (502, "M_UNKNOWN"), (500, "M_UNKNOWN")])
async def test_a_failure_that_says_nothing_about_a_person_is_no_refusal(
    world: World, status: int, errcode: str
) -> None:
    world.letta.set([agent(1)])
    await world.settle()
    bob = await world.fake.person("bob")
    await world.restart(dataclasses.replace(world.settings, invite=(ALICE, MXID(bob.mxid))))
    world.fake.fail_next("/invite$", status=status, errcode=errcode, times=2)
    await world.settle()
    assert len(bob.invites()) == 2


async def test_an_invitation_that_was_only_logged_is_made_again_once(database: Database) -> None:
    async with new_world(database, "tuwunel", invite=(ALICE,)) as world:
        await world.run_pass()
        world.letta.set([agent(1)])
        invite = membership.invite

        def refuse(hs: Any, requester: Any, room: str, user: str, **more: Any) -> None:
            if user == ALICE:
                raise forbidden("not now")
            invite(hs, requester, room, user, **more)

        membership.invite = refuse
        try:
            await world.run_pass()
        finally:
            membership.invite = invite
        portal = str((await world.row(1)).portal_room)
        assert world.fake.hs.rooms[portal].membership(ALICE) is None
        await world.settle()
        assert world.fake.hs.rooms[portal].membership(ALICE) == "invite"


# -- one room per agent


async def test_a_room_that_was_made_before_is_adopted(world: World) -> None:
    world.letta.set([agent(1, description="Same")])
    await world.settle()
    portal, space = (await world.row(1)).portal_room, world.directory.space_room
    alice = await world.fake.person("alice")
    await alice.leave(str(portal))

    async def forget(conn: Connection) -> None:
        for table in ("agent", "setting", "room", "member", "invitation", "told"):
            await conn.execute(f"DELETE FROM {table}")

    await world.db.write(forget)
    await world.restart()
    await world.settle()
    row = await world.row(1)
    assert (row.portal_room, world.directory.space_room, row.state) == (portal, space, "active")
    assert len(world.fake.hs.rooms) == 2
    assert world.fake.hs.rooms[str(portal)].membership(ALICE) == "leave"  # was invited before


async def _foreign_room(world: World, number: int, **state: Any) -> str:
    """A room under an agent's alias that the mirror did not make."""
    bot = world.homeserver.bot
    await bot.register()
    body = {"room_alias_name": alias(number)[1:].partition(":")[0], "preset": "public_chat", **state}
    return str(await bot.create_room(body))


@pytest.mark.parametrize("left", [False, True])
async def test_a_foreign_room_is_neither_used_nor_doubled(world: World, left: bool) -> None:
    wrong = {"type": PORTAL_STATE, "state_key": "", "content": {"version": 1, "agent_id": agent_id(9)}}
    room = await _foreign_room(world, 1, initial_state=[wrong])
    if left:
        await world.homeserver.bot.leave(room)  # type: ignore[arg-type]
    world.letta.set([agent(1), agent(2)])
    rooms = 0
    for _ in range(4):
        await world.run_pass()
        world.clock.now += 700
        rooms = rooms or len(world.fake.hs.rooms)
    assert len(world.fake.hs.rooms) == rooms == 3
    row = await world.row(1)
    assert row.portal_room is None and room in row.error
    (told,) = await world.alarms()
    assert alias(1) in told
    assert world.directory.progress == (1, 2, 1)
    world.check_complete([2], [ALICE])


async def test_a_second_room_of_an_agent_is_reported_once_and_left_alone(world: World) -> None:
    world.letta.set([agent(1)])
    await world.settle()
    claim = {"type": PORTAL_STATE, "state_key": "", "content": {"version": 1, "agent_id": agent_id(1)}}
    orphan = await world.homeserver.bot.create_room({"initial_state": [claim]})
    other = await world.homeserver.bot.create_room({"name": "a talk with the bot"})
    await world.push()
    await world.settle()
    await world.restart()
    await world.settle()
    (told,) = await world.alarms()
    assert orphan in told and other not in told
    assert (await world.row(1)).portal_room != orphan
    await world.homeserver.bot.leave(orphan)
    await world.db.write(lambda conn: world.rooms.set_membership(conn, orphan, BOT, "leave"))
    await world.run_pass()
    assert await world.alarms() == []
    assert (await world.row(1)).portal_room != orphan


async def test_without_a_space_the_agents_are_there_all_the_same(world: World) -> None:
    await world.homeserver.bot.register()
    room = await world.homeserver.bot.create_room({"room_alias_name": "letta_space"})
    world.letta.set([agent(1)])
    await world.run_pass()
    assert world.directory.space_room is None
    assert (await world.row(1)).state == "active"
    del world.fake.hs.aliases[f"#letta_space:{DOMAIN}"]  # somebody repaired it
    world.clock.now += 10
    await world.settle()
    assert world.directory.space_room not in (None, room)
    world.check_complete([1], [ALICE])
