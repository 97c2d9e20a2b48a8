"""``summon``: from a line in a room to an agent with everything, whatever fails on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from letta_bridge.jobs import engine as engine_module
from letta_bridge.jobs.summon import TRAITS
from letta_bridge.letta.backend import CREATION_KEY

from .life_kit import (
    ADMIN,
    ask,
    carried_out,
    children,
    content,
    exactly_one,
    job_of,
    live_portals,
    named,
    nothing_left,
    portals,
    summoned,
    told,
)
from .world import BOT, DOMAIN, World, until

SCOUT = {
    "persona": "I look things up.",
    "human": "People who ask.",
    "description": "Finds things",
    "tags": ["finder"],
    "traits": {"openness": 0.9, "neuroticism": 0.1},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses shorter than in life."""
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(engine_module, "_LONGEST_PAUSE", 0.2)


async def space_is_there(world: World) -> None:
    bridge = world.bridge
    assert bridge is not None
    await until(lambda: bridge.directory.space_room, why="no space")


# -- the whole way


async def test_one_line_makes_everything_and_ends_with_a_link(world: World) -> None:
    admin = await world.hs.person("admin", auto_join=True)
    await world.start()
    await space_is_there(world)
    job, text = await carried_out(world, "summon Ada")
    agent_id = exactly_one(world.hs, world.letta, "Ada")
    (portal,) = portals(world.hs)
    assert job.state == "done"
    assert text.count("✅") == 6
    alias = f"letta_{agent_id.removeprefix('agent-')}:{DOMAIN}"
    assert f"(https://matrix.to/#/%23{alias})" in text.splitlines()[-1]
    assert f"@{alias}" in text
    await admin.wait_joined(portal, ADMIN)
    row = await world.bridge.agents.get(agent_id)  # type: ignore[union-attr, arg-type]
    assert row is not None
    assert (row.origin, row.owner, row.state, row.error) == ("summoned", ADMIN, "active", "")


async def test_the_new_agent_answers(sqlite_world: World) -> None:
    world = sqlite_world
    admin = await world.hs.person("admin", auto_join=True)
    await world.start()
    row = await summoned(world, "summon Ada")
    await admin.wait_joined(str(row.portal_room), ADMIN)
    world.letta.reply = lambda texts: "I am new here"
    await admin.send(str(row.portal_room), "hello")
    await admin.wait_message(str(row.portal_room), sender=row.mxid, text="I am new here", timeout=10.0)


async def test_template_gives_what_options_do_not(sqlite_world: World) -> None:
    world = sqlite_world
    await world.start(templates={"scout": SCOUT})
    row = await summoned(world, 'summon Finn the Finder --template Scout --persona "I am Finn." --tags a,b')
    agent = world.letta.agents[row.agent_id]
    assert agent.name == "Finn the Finder"
    persona = agent.memory()["persona"]
    assert persona.startswith("I am Finn.")
    assert "openness: very high (0.9 of 1)" in persona
    assert "neuroticism: very low (0.1 of 1)" in persona
    assert agent.memory()["human"] == "People who ask."
    assert agent.description == "Finds things"
    assert set(agent.tags) == {"finder", "a", "b"}
    assert agent.metadata[TRAITS] == SCOUT["traits"]
    assert CREATION_KEY in agent.metadata
    assert set(row.tags) == {"finder", "a", "b"}
    assert content(world.hs, str(row.portal_room), "m.room.topic")["topic"] == "Finds things"


async def test_owner_is_who_is_named_and_is_invited_too(sqlite_world: World) -> None:
    world = sqlite_world
    admin, bob = await world.hs.person("admin"), await world.hs.person("bob")
    await world.start()
    row = await summoned(world, f"summon Ada --owner {bob.mxid}")
    assert row.owner == bob.mxid
    for person in (admin, bob):
        await person.wait_invite()
    assert world.hs.hs.rooms[str(row.portal_room)].membership(bob.mxid) == "invite"


async def test_owner_that_cannot_be_invited_is_named_and_stops_nothing(sqlite_world: World) -> None:
    world = sqlite_world
    await world.hs.person("admin")
    await world.start()
    world.hs.fail_next(r"/invite$", times=1, status=403, errcode="M_FORBIDDEN")
    job, text = await carried_out(world, "summon Ada --owner @bob:elsewhere.org")
    assert job.state == "done"
    assert "could not be invited" in text
    assert "may not talk" not in text


async def test_it_also_joins_the_room_that_was_named(sqlite_world: World) -> None:
    world = sqlite_world
    admin = await world.hs.person("admin")
    await world.start()
    room = await admin.create_room(invite=[BOT])
    await admin.wait_joined(room, BOT)
    await admin.set_power(room, BOT, 50) if world.hs.hs.rooms[room].version != "12" else None
    await until(lambda: world.bridge and world.bridge.rooms.heard_of(room))  # type: ignore[arg-type]
    row = await summoned(world, f"summon Ada --room {room}")
    await admin.wait_joined(room, row.mxid)
    assert row.portal_room not in (None, room)


async def test_a_room_that_lets_nobody_in_is_told_and_the_agent_stays(sqlite_world: World) -> None:
    world = sqlite_world
    admin = await world.hs.person("admin")
    await world.start()
    room = await admin.create_room(invite=[BOT], power_level_content_override={"invite": 100})
    await admin.wait_joined(room, BOT)
    await until(lambda: world.bridge and world.bridge.rooms.heard_of(room))  # type: ignore[arg-type]
    job, text = await carried_out(world, f"summon Ada --room {room}")
    assert job.state == "done"
    assert "Invite @letta_" in text
    exactly_one(world.hs, world.letta, "Ada")


async def test_twice_is_once_unless_another_is_asked_for(sqlite_world: World) -> None:
    world = sqlite_world
    await world.start()
    first = await ask(world, "summon Ada", key="$one")
    again = await ask(world, "summon Ada", key="$one")
    assert first.job == again.job
    await job_of(world, first)
    exactly_one(world.hs, world.letta, "Ada")
    refused = await ask(world, "summon Ada")
    assert refused.job is None and "already an agent called Ada" in refused.text and "--another" in refused.text
    exactly_one(world.hs, world.letta, "Ada")
    _, text = await carried_out(world, "summon Ada --another")
    assert "already an agent called Ada" in text
    assert len(named(world.letta, "Ada")) == 2
    assert len(live_portals(world.hs)) == 2


async def test_odd_names(sqlite_world: World) -> None:
    world = sqlite_world
    await world.start()
    row = await summoned(world, 'summon "Ada/Lovelace 🦊"')
    assert world.letta.agents[row.agent_id].name == "Ada/Lovelace 🦊"
    assert row.shown_name == "Ada/Lovelace 🦊"
    long = "x" * 255
    assert (await summoned(world, f"summon {long}")).shown_name == long


# -- what is refused before anything is made


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("summon", "needs"),
        ("summon \u200b", "Nothing of that name would be visible"),
        ("summon " + "x" * 256, "at most 255"),
        ("summon a\nb", "one line"),
        ("summon Ada --templat scout", "Did you mean `template`"),
        ("summon Ada --template scuot", "Did you mean `scout`"),
        ("summon Ada --model letta/fre", "It offers:"),
        ("summon Ada --owner bob", "full Matrix id"),
        (f"summon Ada --owner {BOT}", "has to be a person"),
        ("summon Ada --room !nowhere:test.local", "None of the bridge's users"),
        ("summon Ada --persona", "needs a value"),
    ],
)
async def test_wrong_use_is_told_and_makes_nothing(sqlite_world: World, line: str, words: str) -> None:
    world = sqlite_world
    await world.start(templates={"scout": SCOUT})
    reply = await ask(world, line)
    assert not reply.ok
    assert reply.job is None
    assert words in reply.text
    assert not world.letta.agents


async def test_only_admins_summon(sqlite_world: World) -> None:
    world = sqlite_world
    await world.start()
    reply = await ask(world, "summon Ada", who=f"@bob:{DOMAIN}")
    assert not reply.ok
    assert "administrator" in reply.text
    assert not world.letta.agents


async def test_the_filters_tag_is_added(sqlite_world: World) -> None:
    world = sqlite_world
    await world.start(letta__include={"tags": ["matrix"]})
    job, text = await carried_out(world, "summon Ada --tags x")
    assert job.state == "done"
    assert "`matrix`" in text
    agent_id = exactly_one(world.hs, world.letta, "Ada")
    assert set(world.letta.agents[agent_id].tags) == {"x", "matrix"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("letta.exclude", {"names": ["Ad*"]}, "letta.exclude"),
        ("letta.exclude", {"tags": ["x"]}, "letta.exclude"),
        ("letta.include", {"names": ["B*"]}, "letta.include"),
    ],
)
async def test_an_agent_that_would_not_be_shown_is_not_made(
    sqlite_world: World, key: str, value: dict[str, Any], words: str
) -> None:
    world = sqlite_world
    await world.start(**{key.replace(".", "__"): value})
    reply = await ask(world, "summon Ada --tags x")
    assert not reply.ok
    assert words in reply.text
    assert "Nothing was made" in reply.text
    assert not world.letta.agents


# -- beside the mirror


async def test_the_mirror_that_sees_it_first_and_the_job_meet_in_one_agent(world: World) -> None:
    """Letta creates the agent and its answer is held back, while passes go on."""
    await world.start(letta__poll_interval=0.2)
    await space_is_there(world)
    world.letta.fail_next(r"/v1/agents/?$", "disconnect", times=1, after_processing=True, method="POST")
    reply = await ask(world, "summon Ada")
    job = await job_of(world, reply)
    assert job.state == "done"
    agent_id = exactly_one(world.hs, world.letta, "Ada")
    row = await world.bridge.agents.get(agent_id)  # type: ignore[union-attr, arg-type]
    assert row is not None
    assert (row.origin, row.owner) == ("summoned", ADMIN)


async def test_many_at_once_beside_quick_passes(world: World) -> None:
    await world.start(letta__poll_interval=0.1)
    replies = await asyncio.gather(*(ask(world, f"summon Agent {number}") for number in range(8)))
    for reply in replies:
        assert (await job_of(world, reply)).state == "done"
    assert len(world.letta.agents) == len(live_portals(world.hs)) == len(portals(world.hs)) == 8
    assert len(children(world.hs)) == 8
    rows = await world.bridge.agents.all()  # type: ignore[union-attr]
    assert {(row.origin, row.state) for row in rows} == {("summoned", "active")}


async def test_afterwards_a_pass_has_nothing_to_do(sqlite_world: World) -> None:
    world = sqlite_world
    bridge = await world.start()
    await space_is_there(world)
    await summoned(world, "summon Ada")
    await world.hs.wait_pushed()
    bridge.lanes.wake("mirror")
    listed = len([path for _, path in world.letta.requests if path.startswith("/v1/agents")])
    before = len(world.hs.requests)
    await until(lambda: len([p for _, p in world.letta.requests if p.startswith("/v1/agents")]) > listed)
    await asyncio.sleep(0.3)
    made = [f"{r.method} {r.path}" for r in world.hs.requests[before:] if "ping" not in r.path]
    assert made == []


# -- what fails

_HS_STEPS = [
    r"/register$",
    r"/displayname$",
    r"/devices/",
    r"/upload$",
    r"/avatar_url$",
    r"/createRoom$",
    r"/join$",
    r"m\.space\.child",
    r"/invite$",
]


async def a_world_with_a_space(world: World) -> None:
    await world.hs.person("admin", auto_join=True)
    await world.start()
    await space_is_there(world)
    await world.hs.wait_pushed()


@pytest.mark.parametrize("path", _HS_STEPS)
@pytest.mark.parametrize("how", ["502", "lost answer"])
async def test_homeserver_that_fails_at_a_step_for_a_while(sqlite_world: World, path: str, how: str) -> None:
    world = sqlite_world
    await a_world_with_a_space(world)
    fault = world.hs.fail_next(path, times=2, status=502, after_processing="disconnect" if how != "502" else False)
    job, text = await carried_out(world, "summon Ada")
    assert fault.hits == 2
    assert job.state == "done", text
    exactly_one(world.hs, world.letta, "Ada")


@pytest.mark.parametrize("path", [r"/register$", r"/displayname$", r"/createRoom$", r"/join$"])
async def test_homeserver_that_refuses_a_step_for_good(world: World, path: str) -> None:
    await a_world_with_a_space(world)
    fault = world.hs.fail_next(path, times=1, status=403, errcode="M_FORBIDDEN")
    if "join" in path:
        fault.cancel()
        fault = world.hs.fail_next(path, times=2, status=403, errcode="M_FORBIDDEN")
    job, text = await carried_out(world, "summon Ada")
    assert fault.hits >= 1
    assert job.state == "failed", text
    assert "was taken back" in text
    await gone_for_good(world)


async def test_space_that_refuses_holds_up_no_agent(sqlite_world: World) -> None:
    world = sqlite_world
    await a_world_with_a_space(world)
    world.hs.fail_next(r"m\.space\.child", times=2, status=403, errcode="M_FORBIDDEN")
    job, text = await carried_out(world, "summon Ada")
    assert job.state == "done"
    assert "not in the space yet" in text
    assert len(live_portals(world.hs)) == 1


async def gone_for_good(world: World) -> None:
    """Nothing is left, a pass brings nothing back, and the same name can be summoned again."""
    bridge = world.bridge
    assert bridge is not None
    nothing_left(world.hs, world.letta, "Ada")
    assert await bridge.agents.all() == []
    listed = len(world.letta.requests)
    bridge.lanes.wake("mirror")
    await until(lambda: len(world.letta.requests) > listed)
    nothing_left(world.hs, world.letta, "Ada")
    row = await summoned(world, "summon Ada")
    assert live_portals(world.hs) == [row.portal_room] == children(world.hs)


async def test_letta_that_refuses_the_agent(world: World) -> None:
    await a_world_with_a_space(world)
    world.letta.fail_next(r"/v1/agents/?$", 422, times=1, method="POST")
    job, text = await carried_out(world, "summon Ada")
    assert job.state == "failed"
    assert "Nothing was changed" in text
    await gone_for_good(world)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("how", [503, "disconnect", 500])
async def test_letta_that_fails_for_a_while(sqlite_world: World, how: Any, late: bool) -> None:
    world = sqlite_world
    await a_world_with_a_space(world)
    world.letta.fail_next(r"/v1/agents/?$", how, times=2, method="POST", after_processing=late)
    job, text = await carried_out(world, "summon Ada")
    assert job.state == "done", text
    exactly_one(world.hs, world.letta, "Ada")


async def test_agent_of_a_creation_that_never_told_is_deleted_when_the_job_is_given_up(sqlite_world: World) -> None:
    world = sqlite_world
    await a_world_with_a_space(world)
    world.letta.fail_next(r"/v1/agents/?$", 500, times=1, method="POST", after_processing=True)
    world.letta.fail_next(r"/v1/agents/?$", 422, times=1, method="GET", skip=1)
    job, _ = await carried_out(world, "summon Ada")
    assert job.state == "failed"
    await gone_for_good(world)


async def test_taking_back_survives_trouble(sqlite_world: World) -> None:
    world = sqlite_world
    await a_world_with_a_space(world)
    world.hs.fail_next(r"m\.space\.child", times=1, status=400, errcode="M_UNKNOWN")
    world.hs.fail_next(r"/leave$", times=2, status=502)
    world.hs.fail_next(r"/directory/room/", times=2, status=502, method="DELETE")
    world.letta.fail_next(r"/v1/agents/agent-", 503, times=2, method="DELETE")
    job, _ = await carried_out(world, "summon Ada")
    assert job.state == "failed"
    await gone_for_good(world)


async def test_waiting_for_letta_is_told_in_the_room(sqlite_world: World) -> None:
    world = sqlite_world
    admin = await world.hs.person("admin", auto_join=True)
    await world.start()
    room = await admin.create_dm(BOT)
    await admin.wait_joined(room, BOT)
    world.letta.fail_next(r"/v1/agents/?$", 503, times=1000)
    await admin.send(room, "!letta summon Ada")
    await admin.wait_message(room, sender=BOT, text=lambda body: "Waiting: Letta" in body, timeout=10.0)
    for fault in world.letta._core.faults:
        fault.times = 0
    await admin.wait_message(room, sender=BOT, text=lambda body: "open its room" in body, timeout=10.0)
    assert len([m for m in admin.messages(room) if m.sender == BOT]) == 1
    exactly_one(world.hs, world.letta, "Ada")
    bridge = world.bridge
    assert bridge is not None
    (job,) = await bridge.desk.jobs.newest(5)
    assert "✅" in await told(world, job)
