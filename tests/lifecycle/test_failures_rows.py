"""Outages that bridges of this kind have had, told again from their beginning: what set them off happens here too, and
nothing comes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from letta_bridge.db.database import Connection
from letta_bridge.ids import MXID, AgentID
from letta_bridge.matrix import envelope
from letta_bridge.mirror.maker import PORTAL_STATE
from letta_bridge.testing.fake_homeserver import FakeHomeserver
from letta_bridge.web.control import REFRESH

from ..integration.world import BOT, World, a_world, free_port, notices, settled, until
from .model import Model
from .places import FakePlace, content_of, membership
from .story import Act
from .test_properties import a_model

TOKEN = "a-token-of-some-length-0123456789"


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator[Model]:
    """Four agents, mirrored and at rest."""
    async with a_model(tmp_path, "sqlite:bridge.db") as made:
        await made.rig.quiet()
        yield made


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, "sqlite:bridge.db") as made:
        yield made


def fake_of(model: Model) -> FakeHomeserver:
    place = model.rig.place
    assert isinstance(place, FakePlace)
    return place.fake


async def passes(model: Model, count: int, *, seconds: float = 700.0) -> None:
    """So many passes, with time going by; after each it is judged whether something was taken away."""
    for _ in range(count):
        await model.look()
        model.rig.clock.now += seconds


async def rooms(model: Model) -> set[str]:
    return set(await model.rig.place.made())


def turns(world: World) -> list[str]:
    """Every message that any agent was given."""
    return [envelope.open_(text).body for turn in world.letta.turns() for text in turn.texts]


# -- recovery worse than the fault


async def test_a_whole_life_without_one_request_to_the_servers_administration(model: Model) -> None:
    fake = fake_of(model)
    ids = sorted(model.rig.letta.agents)
    await model.stage.play(Act("remove", 0, 0))
    model.stage.add("Newcomer")
    room = (await model.rig.row(ids[1])).portal_room
    assert room is not None
    fake.purge_room(room)
    await passes(model, 3)
    await model.day(watched=True)
    await passes(model, 2)
    fake.fail_next("/", status=401, errcode="M_UNKNOWN_TOKEN", times=5)
    await passes(model, 3)
    await model.rig.quiet()
    assert fake.requests
    strange = {request.path for request in fake.requests if not re.match(r"/_matrix/(client|media)/", request.path)}
    assert strange == set()
    asked = {request.path.split("/")[4] for request in fake.requests if request.path.startswith("/_matrix/client/v3")}
    assert not asked & {"login", "admin", "logout", "account", "sync"}, "no passwords, no sessions, nobody's account"


async def test_what_somebody_damages_again_and_again_is_not_repaired_for_ever(model: Model) -> None:
    row = (await model.rig.agents.all())[0]
    room = row.portal_room
    assert room is not None
    await model.stage.moderated(room)
    since = len(fake_of(model).requests)
    for number in range(40):
        await model.rig.place.put("alice", room, "m.room.name", {"name": f"mine {number}"})
        await model.rig.run_pass()
        model.rig.clock.now += 60.0
    renamed = [request for request in fake_of(model).requests[since:] if request.path.endswith("/state/m.room.name/")]
    assert len(renamed) <= 3, "three times an hour, then a person has to look"
    assert any("again and again" in text for text in await model.rig.alarms())


async def test_nobody_elses_word_confirms_what_is_frozen(model: Model) -> None:
    model.rig.letta.empty()
    await model.look()
    first = (await model.rig.directory.guard.read()).frozen
    assert first is not None
    model.stage.add("Stranger")
    await model.look()
    now = (await model.rig.directory.guard.read()).frozen
    assert now is not None and now.nonce != first.nonce, "it is another question now"
    for word in (first.nonce, "", "yes"):
        assert not await model.rig.db.write(lambda conn: model.rig.directory.guard.confirm(conn, word))  # noqa: B023
    await passes(model, 3)
    assert {row.state for row in await model.rig.agents.all()} == {"active"}


# -- spaces and rooms that are made again and again


@pytest.mark.parametrize(
    ("status", "errcode"),
    [(403, "M_FORBIDDEN"), (500, "M_UNKNOWN"), (404, "M_NOT_FOUND"), (502, ""), (401, "M_UNKNOWN_TOKEN")],
)
async def test_a_space_that_cannot_be_looked_at_is_not_made_again(model: Model, status: int, errcode: str) -> None:
    fake, before = fake_of(model), await rooms(model)
    space = model.rig.directory.space_room
    assert space is not None
    pattern = rf"/rooms/{re.escape(space)}/|/directory/room/#letta_space"
    fault = fake.fail_next(pattern, status=status, errcode=errcode, times=None)
    for number in range(20):
        await model.rig.damaged(space)
        model.stage.add(f"Agent {number}")
        await model.look()
        model.rig.clock.now += 700.0
        if number % 5 == 4:
            await model.rig.restart()
    assert fault.hits
    assert await model.spaces() == [space]
    fault.cancel()
    await model.rig.quiet()
    await model.check()
    assert len(await rooms(model)) == len(before) + 20


async def test_a_space_that_answers_too_late_is_not_made_again(tmp_path: Path) -> None:
    async with a_model(tmp_path, "sqlite:bridge.db") as model:
        fake = fake_of(model)
        for _ in range(6):  # it is made the first time, and nobody ever hears of it
            fake.fail_next("/createRoom", status=504, errcode="", after_processing="disconnect")
            await model.rig.run_pass()
            model.rig.clock.now += 4000.0
            await model.rig.restart()
        await model.rig.quiet()
        await model.check()


async def test_a_refusal_makes_no_room_twice_whoever_asks_and_how_many_at_once(tmp_path: Path) -> None:
    """63 agents, twenty at a time asked for, a homeserver that does what it is told and answers with errors."""
    async with a_model(tmp_path, "sqlite:bridge.db") as model:
        for number in range(59):
            model.stage.add(f"Agent {number}")
        fake = fake_of(model)
        directory = model.rig.directory
        puppets = [directory.mxid_of(AgentID(agent_id)) for agent_id in model.rig.letta.agents]
        for status, errcode in ((502, ""), (403, "M_FORBIDDEN"), (500, "M_UNKNOWN")):
            fault = fake.fail_next(
                "/createRoom|/join|/state/", status=status, errcode=errcode, times=12, after_processing=True
            )
            asking = [_ask(model, puppet) for puppet in (puppets[:10] * 2)]
            await asyncio.gather(model.rig.run_pass(), *asking)
            fault.cancel()
            model.rig.clock.now += 700.0
            await model.rig.restart()
        await model.rig.quiet()
        await model.check()
        assert len(await rooms(model)) == 64


async def _ask(model: Model, puppet: MXID) -> None:
    with contextlib.suppress(Exception):
        await model.rig.directory.resolve(puppet)


async def test_twenty_refreshes_and_twenty_invitations_at_once_make_one_room(world: World) -> None:
    people = [await world.hs.person(f"person{number}") for number in range(20)]
    await world.start(control__token=TOKEN, control__port=free_port())
    bridge = world.bridge
    assert bridge is not None
    await until(lambda: bridge.directory.space_room)
    base = f"http://127.0.0.1:{bridge.control.port}"
    world.hs.fail_next("/createRoom", status=500, after_processing=True, times=1)
    ada = world.letta.add_agent("Ada")
    async with aiohttp.ClientSession(base, headers={"Authorization": f"Bearer {TOKEN}"}) as session:

        async def refresh() -> None:
            async with session.post(REFRESH, params={"wait": "1"}) as answer:
                assert answer.status in (200, 202)

        triggers = [refresh() for _ in people] + [world.dm(person, ada, "hello") for person in people]
        await asyncio.gather(*triggers)
    await world.mirrored()
    marks = [room.content(PORTAL_STATE).get("agent_id") for room in world.hs.hs.rooms.values()]
    assert Counter(mark for mark in marks if mark) == {ada: 1}
    created = [room for room in world.hs.hs.rooms.values() if room.timeline[0].sender == BOT]
    assert len(created) == 2, "one portal and the space"
    assert list(world.hs.hs.accounts.users).count(world.puppet(ada)) == 1


# -- the wrong agent answers


async def test_agents_of_one_name_and_agents_that_swap_names_are_not_mixed_up(world: World) -> None:
    first, second = world.letta.add_agent("Ada"), world.letta.add_agent("Ada")
    alice = await world.hs.person("alice", auto_join=True)
    await world.start(mirror__invite=[alice.mxid])
    await world.mirrored()
    portals = {agent: await world.portal(agent) for agent in (first, second)}
    assert portals[first] != portals[second]
    world.letta.rename_agent(first, "Basil")
    world.letta.rename_agent(second, "Carla")
    await _refreshed(world)
    world.letta.rename_agent(first, "Carla")
    world.letta.rename_agent(second, "Basil")
    await _refreshed(world)
    for number, (agent, room) in enumerate(portals.items()):
        await until(lambda: alice.mxid in alice.members(room), 10)  # noqa: B023
        await alice.send(room, f"for number {number}")
        await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(f"for number {number}"))
        assert [one for one in turns(world) if one == f"for number {number}"] == [f"for number {number}"]
        assert len(world.letta.turns(agent)) == 1


async def test_a_room_that_says_it_is_anothers_is_still_answered_by_its_own_agent(world: World) -> None:
    ada, basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    alice = await world.hs.person("alice", auto_join=True)
    await world.start(mirror__invite=[alice.mxid])
    await world.mirrored()
    portal = await world.portal(ada)
    levels = await alice.get_state(portal, "m.room.power_levels")
    raised = {**levels, "users": {**levels["users"], alice.mxid: 100}}
    bridge = world.bridge
    assert bridge is not None
    await bridge.homeserver.bot.set_state(portal, "m.room.power_levels", "", raised)  # type: ignore[arg-type]
    await alice.set_state(portal, PORTAL_STATE, {"version": 1, "agent_id": basil})
    await alice.send(portal, "who are you?")
    await alice.wait_message(portal, sender=world.puppet(ada), text=re.compile("who are you"))
    await _refreshed(world)
    assert world.letta.turns(basil) == []
    rows = {row.agent_id: row.portal_room for row in await bridge.agents.all()}
    assert rows[AgentID(ada)] == portal and rows[AgentID(basil)] not in (None, portal)


async def test_in_a_room_of_nobody_nobody_answers(world: World) -> None:
    world.letta.add_agent("Ada")
    alice, bob = await world.hs.person("alice"), await world.hs.person("bob", auto_join=True)
    await world.start()
    await world.mirrored()
    room = await alice.create_room(invite=[BOT, bob.mxid])
    await alice.wait_joined(room, BOT)
    for number in range(5):
        await alice.send(room, f"private matter {number}")
        await bob.send(room, f"between the two of us {number}")
    await settled(world)
    assert turns(world) == []
    assert not any(message.sender.startswith("@letta_") for message in alice.messages(room))
    assert len(notices(alice, room)) <= 1


async def test_in_the_room_of_an_agent_that_is_gone_no_other_answers(world: World) -> None:
    ada = world.letta.add_agent("Ada")
    for name in ("Basil", "Carla"):
        world.letta.add_agent(name)
    alice = await world.hs.person("alice", auto_join=True)
    await world.start(mirror__invite=[alice.mxid])
    await world.mirrored()
    portal = await world.portal(ada)
    world.letta.remove_agent(ada)
    await _refreshed(world)
    await until(lambda: alice.mxid in alice.members(portal), 10)
    await alice.send(portal, "are you there?")
    await until(lambda: notices(alice, portal), 10, why="nothing was said")
    await settled(world)
    assert turns(world) == []
    assert {message.sender for message in alice.messages(portal)} <= {alice.mxid, world.puppet(ada), BOT}


async def _refreshed(world: World) -> None:
    """A pass that began after this call is over."""
    bridge = world.bridge
    assert bridge is not None
    result = await bridge.directory.refreshes.wait(await bridge.directory.refreshes.request(), 20)
    assert result is not None and not result.trouble


# -- many commands, no turns


async def test_one_command_in_every_room_is_no_prompt_for_anybody(world: World) -> None:
    agents = [world.letta.add_agent(f"Agent {number}") for number in range(12)]
    admin = await world.hs.person("admin", auto_join=True)
    await world.start(mirror__invite=[admin.mxid])
    await world.mirrored()
    portals = [await world.portal(agent) for agent in agents]
    for portal in portals:
        await until(lambda: admin.mxid in admin.members(portal), 10)  # noqa: B023
        for line in ("!letta set-relay on", "!letta status", "!letta"):
            await admin.send(portal, line)
    await settled(world)
    for portal in portals:
        await until(lambda: notices(admin, portal), 15, why="a command was not answered")  # noqa: B023
    assert turns(world) == []


async def test_what_bots_and_the_bridge_itself_say_is_no_prompt(world: World) -> None:
    ada, basil = world.letta.add_agent("Ada"), world.letta.add_agent("Basil")
    alice = await world.hs.person("alice", auto_join=True)
    await world.start(mirror__invite=[alice.mxid])
    await world.mirrored()
    portal = await world.portal(ada)
    bridge = world.bridge
    assert bridge is not None
    await bridge.homeserver.bot.invite(portal, world.puppet(basil))  # type: ignore[arg-type]
    await alice.wait_joined(portal, alice.mxid)
    for number in range(5):
        text = {"msgtype": "m.text", "body": f"said by the bridge {number}"}
        await bridge.homeserver.bot.send(portal, "m.room.message", text, f"said{number}")  # type: ignore[arg-type]
        await alice.send(portal, f"a notice {number}", msgtype="m.notice")
    await settled(world)
    assert turns(world) == []


# -- memberships


async def test_an_invitation_that_fails_for_ever_holds_up_no_message(world: World) -> None:
    ada = world.letta.add_agent("Ada")
    alice = await world.hs.person("alice")
    ghost = await world.hs.person("ghost")
    world.hs.fail_next("/invite$", status=500, times=None)
    world.hs.fail_next("/createRoom", status=400, errcode="M_UNKNOWN", times=1)  # with its invitations
    await world.start(mirror__invite=[ghost.mxid], letta__poll_interval=1.0)
    room = await world.dm(alice, ada)
    for number in range(10):
        await alice.send(room, f"message {number}")
        await alice.wait_message(room, sender=world.puppet(ada), text=re.compile(f"message {number}"))
        await _refreshed(world)
    assert world.hs.count("/invite$") <= 4, "who cannot be invited is asked for again much later"


async def test_whoever_left_is_left_in_peace_for_a_hundred_passes(model: Model) -> None:
    stage, place = model.stage, model.rig.place
    await stage.play(Act("kick", 0, 0))
    await stage.play(Act("leave", 1, 1))
    await stage.play(Act("leave", 9, 1))
    assert len(stage.left) == 3
    for number in range(100):
        await model.rig.run_pass()
        model.rig.clock.now += 700.0
        if number % 20 == 19:
            await model.rig.restart()
            await model.rig.full_check()
    await model.rig.quiet()
    await model.check()
    for room, person, _ in stage.left:
        state = await place.state(room)
        assert state is not None and membership(state, person) == "leave"


async def test_the_bot_may_do_everything_in_every_room_that_it_made(model: Model) -> None:
    """Rooms made by one account and managed by another were closed to the one that managed them."""
    for room in await rooms(model):
        state = await model.rig.place.state(room)
        assert state is not None
        assert membership(state, BOT) == "join"
        levels = content_of(state, "m.room.power_levels")
        creator = next(event["sender"] for event in state if event["type"] == "m.room.create")
        assert creator == BOT or levels["users"][BOT] == 100


# -- finding agents


async def test_more_agents_than_a_page_of_letta_has(model: Model) -> None:
    """Fifty come when nobody says how many; the fifty-first must neither be missed nor shorten the list."""
    for number in range(80):
        model.stage.add(f"Agent {number}")
    model.rig.letta.settings.page_cap = 50  # a proxy or a newer Letta caps what is asked for
    await passes(model, 3)
    assert {row.state for row in await model.rig.agents.all()} == {"active"}
    model.rig.letta.settings.page_cap = None
    await passes(model, 2)
    model.rig.letta.settings.page_cap = 3
    await passes(model, 3)
    assert {row.state for row in await model.rig.agents.all()} == {"active"}
    assert len(await model.rig.agents.all()) == 84
    model.rig.letta.settings.page_cap = None
    await model.rig.quiet()
    await model.check()


@pytest.mark.parametrize("how", [500, 404, 401, "disconnect", "truncate"])
async def test_a_list_that_cannot_be_had_takes_nobody_away(model: Model, how: Any) -> None:
    calls = len(model.rig.sight.calls)
    fault = model.rig.letta.fail_next(r"/v1/agents/", how, times=1000)
    await passes(model, 5)
    assert {row.state for row in await model.rig.agents.all()} == {"active"}
    assert model.rig.sight.calls[calls:] == []
    fault.times = 0
    await model.rig.quiet()
    await model.check()


async def test_an_empty_list_takes_nobody_away_and_tells_the_admin_once(model: Model) -> None:
    before = model.rig.letta.swap_database()
    calls = len(model.rig.sight.calls)
    await passes(model, 10)
    await model.day(watched=True)
    await passes(model, 3)
    assert {row.state for row in await model.rig.agents.all()} == {"active"}
    assert model.rig.sight.calls[calls:] == []
    (alarm,) = await model.rig.alarms()
    assert "!letta guard confirm" in alarm
    model.rig.letta.swap_database(before)
    await passes(model, 1)
    assert await model.rig.alarms() == []
    await model.check()


async def test_an_agent_whose_user_cannot_be_made_is_counted_as_failed_and_holds_up_nobody(model: Model) -> None:
    fake = fake_of(model)
    unlucky = model.stage.add("Unlucky")
    name = model.rig.directory.mxid_of(AgentID(unlucky))
    lucky = [model.stage.add(f"Lucky {number}") for number in range(12)]
    fault = fake.fail_next(re.escape(f"/profile/{name}"), status=400, errcode="M_UNKNOWN", times=None)
    await passes(model, 2)
    assert model.rig.directory.progress == (16, 17, 1)
    rows = await model.rig.rows()
    assert all(rows[agent_id].portal_joined for agent_id in lucky)
    assert (await model.rig.row(unlucky)).error
    fault.cancel()
    await model.rig.quiet()
    assert model.rig.directory.progress == (17, 17, 0)
    await model.check()


async def test_the_database_itself_refuses_two_rows_for_one_room_or_user(model: Model) -> None:
    """One store, one writer: neither a room nor a user can ever lead to two agents."""
    first, second = (await model.rig.agents.all())[:2]
    for column, value in (("portal_room", first.portal_room), ("mxid", first.mxid)):

        async def work(conn: Connection, column: str = column, value: Any = value) -> None:
            await conn.execute(f"UPDATE agent SET {column} = $1 WHERE agent_id = $2", value, second.agent_id)

        with pytest.raises(Exception, match=r"(?i)unique"):
            await model.rig.db.write(work)
