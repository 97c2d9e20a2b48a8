"""``cleanup``: what a bridge left behind in worse days is found, shown, and given up; nothing else is touched."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from letta_bridge.db.jobs import NewJob
from letta_bridge.ids import MXID, AgentID, RoomID
from letta_bridge.jobs import cleanup as cleanup_module
from letta_bridge.jobs import engine as engine_module
from letta_bridge.mirror.maker import PORTAL_STATE, SPACE_STATE

from .life_kit import ADMIN, ask, carried_out, job_of, told
from .world import BOT, DOMAIN, World, a_world, settled, until

GONE = AgentID("agent-99999999-0000-4000-8000-000000000000")
GONE_USER = MXID(f"@letta_99999999-0000-4000-8000-000000000000:{DOMAIN}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses shorter than in life."""
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(engine_module, "_LONGEST_PAUSE", 0.2)


async def room_of(world: World, agent: str, *, invite: list[str] | None = None, **body: Any) -> str:
    """A room that claims to be the agent's portal, as the bridge makes it."""
    assert world.bridge is not None
    state = {"type": PORTAL_STATE, "state_key": "", "content": {"version": 1, "agent_id": agent}}
    request = {"preset": "private_chat", "initial_state": [state], "invite": invite or [], **body}
    return await world.bridge.homeserver.bot.create_room(request)


def inside(world: World, room: str) -> list[str]:
    return sorted(world.hs.hs.rooms[room].members("join"))


async def typed(world: World, line: str = "cleanup") -> tuple[Any, str]:
    """The command, and the line that its preview ends with."""
    preview = await ask(world, line)
    found = re.search(r"`(?:!letta|letta-bridge ctl) (cleanup.*--confirm \w+)`\Z", preview.text)
    assert found, preview.text
    return preview, found[1]


async def test_63_second_rooms_and_1800_that_nobody_is_in(sqlite_world: World) -> None:
    """Failure F-5 of the peer system: one space of rooms that were made again and again."""
    world = sqlite_world
    agents = [world.letta.add_agent(f"Agent {number}") for number in range(3)]
    alice = await world.hs.person("alice", auto_join=True)
    bridge = await world.start(mirror__invite=[alice.mxid])
    await world.mirrored()
    dm = await world.dm(alice, agents[0])
    real = [await world.portal(agent) for agent in agents]
    space = bridge.directory.space_room
    assert space is not None
    second = [
        await room_of(world, agents[number % 3], invite=[world.puppet(agents[number % 3])]) for number in range(63)
    ]
    for room in second[:5]:
        await bridge.homeserver.intent(MXID(world.puppet(agents[second.index(room) % 3]))).join(RoomID(room))
        await bridge.homeserver.bot.set_state(space, "m.space.child", room, {"via": [DOMAIN]})
    ghosts = [await bridge.homeserver.bot.create_room({"preset": "private_chat"}) for _ in range(180)]
    with_alice = await room_of(world, agents[1], invite=[alice.mxid])
    await alice.wait_joined(with_alice, alice.mxid)
    await settled(world)

    preview, line = await typed(world)
    assert len(preview.data["rooms"]) == 63 + 180 + 1
    assert "64: a second room of an agent" in preview.text
    assert "180: nobody is left in it" in preview.text
    assert f"`{with_alice}`, with 1 person" in preview.text or "… and 229 more" in preview.text
    assert all(BOT in inside(world, room) for room in (*second, *ghosts)), "a preview changes nothing"

    job, text = await carried_out(world, line)
    assert job.state == "done", text
    assert "has left 244 rooms" in text
    for room in (*second, *ghosts):
        assert inside(world, room) == []
    assert inside(world, with_alice) == [alice.mxid]
    assert "not used by the bridge any more" in alice.messages(with_alice)[-1].body
    for agent, room in zip(agents, real, strict=True):
        assert {BOT, world.puppet(agent), alice.mxid} <= set(inside(world, room))
    assert inside(world, dm) == sorted([alice.mxid, world.puppet(agents[0])])
    assert sorted(alice.space_children(space)) == sorted(real)
    assert world.hs.hs.aliases[f"#{world.puppet(agents[0])[1:]}"][0] == real[0]
    again = await ask(world, "cleanup")
    assert "nothing to clean up" in again.text


async def test_every_kind_is_told_apart(world: World) -> None:
    agent, alice = world.letta.add_agent("Ada"), await world.hs.person("alice", auto_join=True)
    bridge = await world.start()
    await world.mirrored()
    bot = bridge.homeserver.bot
    orphan = await room_of(world, GONE, room_alias_name=GONE_USER[1:].partition(":")[0])
    space = await bot.create_room(
        {"initial_state": [{"type": SPACE_STATE, "state_key": "", "content": {"version": 1}}], "invite": [alice.mxid]}
    )
    past = await bot.create_room({"invite": [alice.mxid]})
    await bridge.db.write(lambda conn: bridge.desk.past_rooms.add(conn, past, AgentID(agent), "gone"))
    group = await bot.create_room({"invite": [alice.mxid]})
    ghost = bridge.homeserver.intent(GONE_USER)
    await ghost.register()
    await ghost.set_displayname("Ghost")
    await bot.invite(RoomID(orphan), GONE_USER)
    await ghost.join(RoomID(orphan))
    for room in (space, past, group):
        await alice.wait_joined(room, alice.mxid)
    await settled(world)

    preview, line = await typed(world)
    assert {(row["room"], row["why"]) for row in preview.data["rooms"]} == {
        (orphan, "orphan"),
        (space, "space"),
        (past, "former"),
    }
    assert preview.data["users"] == [GONE_USER]
    job, text = await carried_out(world, line)
    assert job.state == "done", text
    assert inside(world, orphan) == []
    assert inside(world, space) == inside(world, past) == [alice.mxid]
    assert inside(world, group) == sorted([alice.mxid, BOT])
    assert f"#{GONE_USER[1:]}" not in world.hs.hs.aliases
    assert not world.hs.hs.accounts.users[GONE_USER].profile.get("displayname")
    assert "nothing to clean up" in (await ask(world, "cleanup")).text


async def test_what_is_uncertain_is_not_called_unused(sqlite_world: World) -> None:
    world = sqlite_world
    hidden = world.letta.add_agent("Hidden", hidden=True)
    world.letta.add_agent("Ada")
    bridge = await world.start()
    alice = await world.hs.person("alice", auto_join=True)
    room = await room_of(world, hidden, invite=[alice.mxid])
    await alice.wait_joined(room, alice.mxid)
    await settled(world)
    assert "nothing to clean up" in (await ask(world, "cleanup")).text

    frozen = {"nonce": "1", "why": "shrunk", "gone": [], "before": [], "known": 2, "listed": 1, "fingerprint": None}
    await bridge.desk.settings.set("guard.frozen", json.dumps(frozen))
    refused = await ask(world, "cleanup")
    assert not refused.ok
    assert "`guard` says why" in refused.text
    world.letta.fail_next(r"/agents/", 503, times=50, method="GET")
    await bridge.db.write(lambda conn: conn.execute("DELETE FROM setting WHERE name = 'guard.frozen'"))
    refused = await ask(world, "cleanup")
    assert not refused.ok
    assert "cannot be reached" in refused.text


async def test_who_could_not_be_looked_at_is_counted(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Ada")
    await world.start()
    await world.mirrored()
    await settled(world)
    world.hs.fail_next(r"/joined_rooms$", status=500, times=2)
    answer = await ask(world, "cleanup")
    assert "2 users or rooms could not be looked at in time" in answer.text, "the bot and the agent's user"
    assert answer.data["unasked"] == 2


async def test_a_name_that_only_was_invited_is_no_user(sqlite_world: World) -> None:
    """Strangers can invite whom there is not, and the bridge makes no users for them."""
    world = sqlite_world
    world.letta.add_agent("Ada")
    mallory = await world.hs.person("mallory")
    await world.start(permissions={ADMIN: "admin", mallory.mxid: "none"})
    await world.mirrored()
    await mallory.create_room(invite=[GONE_USER, f"@letta_nobody:{DOMAIN}"])
    await settled(world)
    answer = await ask(world, "cleanup")
    assert "nothing to clean up" in answer.text and "could not be looked at" not in answer.text
    assert not answer.data["users"]


async def test_a_name_that_no_agent_can_have_is_one_without_an_agent(sqlite_world: World) -> None:
    """Letta refuses to say anything about an id that is none: nobody waits for another answer."""
    world = sqlite_world
    world.letta.add_agent("Ada")
    bridge = await world.start()
    await world.mirrored()
    room = await room_of(world, "agent-smith")
    ghost = bridge.homeserver.intent(MXID(f"@letta_.smith:{DOMAIN}"))
    await ghost.register()
    await bridge.homeserver.bot.invite(RoomID(room), MXID(f"@letta_.smith:{DOMAIN}"))
    await ghost.join(RoomID(room))
    await settled(world)
    preview, line = await typed(world)
    assert [row["room"] for row in preview.data["rooms"]] == [room]
    assert preview.data["users"] == [f"@letta_.smith:{DOMAIN}"] and preview.data["unasked"] == 0
    job, text = await carried_out(world, line)
    assert job.state == "done", text
    assert inside(world, room) == []


async def test_what_is_being_made_is_not_called_unused(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Ada")
    bridge = await world.start()
    await world.mirrored()
    row = await bridge.agents.get(AgentID(agent))
    assert row is not None
    await bridge.agents.update(row.agent_id, portal_room=None)
    await settled(world)
    assert "nothing to clean up" in (await ask(world, "cleanup")).text, "the room that is about to be found again"
    state = {"type": "dev.letta_bridge.room", "state_key": "", "content": {"version": 1}}
    await bridge.homeserver.bot.create_room({"preset": "private_chat", "initial_state": [state]})
    new = NewJob("room", "making", "ctl", {"name": "x", "shown": "x", "agents": [], "invite": [], "for": ""})
    job = await bridge.db.write(lambda conn: bridge.desk.jobs.add(conn, new))
    await bridge.db.write(lambda conn: bridge.desk.jobs.postpone(conn, job, 300.0, ""))
    assert "nothing to clean up" in (await ask(world, "cleanup")).text, "the room that a command is making"


async def test_what_is_used_again_meanwhile_stays(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Ada")
    alice = await world.hs.person("alice", auto_join=True)
    bridge = await world.start()
    await world.mirrored()
    room = await bridge.homeserver.bot.create_room({"preset": "private_chat"})
    other = await bridge.homeserver.bot.create_room({"preset": "private_chat"})
    await settled(world)
    _, line = await typed(world)
    await bridge.homeserver.bot.invite(room, MXID(alice.mxid))
    await alice.wait_joined(room, alice.mxid)
    _, text = await carried_out(world, line)
    assert "1 room had been left before, or turned out to be used" in text
    assert BOT in inside(world, room)
    assert inside(world, other) == []


async def test_a_kill_at_every_room_leaves_it_finished_once(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup_module, "_LEAST", 2)
    world = sqlite_world
    agent = world.letta.add_agent("Ada")
    alice = await world.hs.person("alice", auto_join=True)
    await world.start()
    await world.mirrored()
    rooms = [await room_of(world, agent, invite=[alice.mxid]) for _ in range(6)]
    for room in rooms:
        await alice.wait_joined(room, alice.mxid)
    await settled(world)
    _, line = await typed(world)
    slow = world.hs.delay(r"/leave$", 0.1)
    begun = await ask(world, line)
    for number in (1, 3):
        await until(lambda number=number: sum(BOT not in inside(world, room) for room in rooms) >= number)
        await world.restart()
    slow.cancel()
    job = await job_of(world, begun)
    assert job.state == "done", await told(world, job)
    for room in rooms:
        assert inside(world, room) == [alice.mxid]
        assert len([m for m in alice.messages(room) if "not used by the bridge" in m.body]) == 1


@pytest.mark.parametrize("flavour", ["synapse", "tuwunel"])
async def test_accounts_end_only_when_that_is_asked_for(flavour: str, tmp_path: Any) -> None:
    async with a_world(tmp_path, "sqlite:bridge.db", flavour=flavour) as world:
        world.letta.add_agent("Ada")
        bridge = await world.start()
        await world.mirrored()
        ghost = bridge.homeserver.intent(GONE_USER)
        await ghost.register()
        room = await ghost.create_room({"preset": "private_chat", "invite": [BOT]})
        await bridge.homeserver.bot.join(room)
        await settled(world)
        _, line = await typed(world, "cleanup --deactivate")
        job, text = await carried_out(world, line)
        assert job.state == "done", text
        assert job.done["users"]["ended"] == (1 if flavour == "synapse" else 0)
        assert inside(world, room) == []
        assert "nothing to clean up" in (await ask(world, "cleanup --deactivate")).text


async def test_only_what_was_shown_to_this_person_is_done(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Ada")
    bridge = await world.start()
    await world.mirrored()
    room = await bridge.homeserver.bot.create_room({"preset": "private_chat"})
    await settled(world)
    _, line = await typed(world)
    assert "administrators" in (await ask(world, "cleanup", who=f"@alice:{DOMAIN}")).text
    assert not (await ask(world, "cleanup --confirm 0000")).ok
    assert not (await ask(world, line, who=f"@alice:{DOMAIN}")).ok
    assert not (await ask(world, "cleanup now")).ok
    assert BOT in inside(world, room)
    first = await ask(world, line, key="$once")
    assert (await ask(world, line, key="$once")).job == first.job
    await job_of(world, first)
    assert not (await ask(world, line)).ok, "a confirmation counts once"
