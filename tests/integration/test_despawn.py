"""``despawn``, ``recall``, ``rename`` and ``room create``."""

from __future__ import annotations

import re
from typing import Any

import pytest

from letta_bridge.db.agents import AgentRow
from letta_bridge.jobs import engine as engine_module
from letta_bridge.jobs.group import ROOM_STATE
from letta_bridge.testing.fake_homeserver import Person

from .life_kit import ADMIN, ask, carried_out, children, content, exactly_one, job_of, live_portals, named, summoned
from .world import BOT, DOMAIN, World, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses shorter than in life."""
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(engine_module, "_LONGEST_PAUSE", 0.2)


async def with_ada(world: World, line: str = "summon Ada", **settings: Any) -> tuple[Person, AgentRow]:
    """An admin, who owns Ada and is in its room."""
    admin = await world.hs.person("admin", auto_join=True)
    bridge = await world.start(**settings)
    await until(lambda: bridge.directory.space_room, why="no space")
    row = await summoned(world, line)
    await admin.wait_joined(str(row.portal_room), ADMIN)
    await world.hs.wait_pushed()
    return admin, row


async def row_of(world: World, agent_id: str) -> AgentRow:
    assert world.bridge is not None
    row = await world.bridge.agents.get(agent_id)  # type: ignore[arg-type]
    assert row is not None
    return row


async def a_pass(world: World) -> None:
    """Two listings of Letta's agents: the first pass has ended when the second begins."""
    assert world.bridge is not None
    for _ in range(2):
        before = len(world.letta.requests)
        world.bridge.lanes.wake("mirror")
        await until(lambda before=before: ("GET", "/v1/agents/") in world.letta.requests[before:])


def archived(world: World, row: AgentRow) -> None:
    """Out of the space, without a profile, its room kept and named so."""
    portal = str(row.portal_room)
    assert content(world.hs, portal, "m.room.name")["name"].endswith("(archived)")
    assert portal not in children(world.hs)
    assert not world.hs.hs.accounts.users[row.mxid].profile.get("displayname")
    assert world.hs.hs.rooms[portal].membership(BOT) == "join"
    assert world.hs.hs.rooms[portal].membership(ADMIN) == "join"


# -- despawn and recall


async def test_despawned_agent_stays_in_letta_and_passes_do_not_bring_it_back(world: World) -> None:
    _, row = await with_ada(world)
    job, text = await carried_out(world, "despawn Ada")
    assert job.state == "done"
    assert f"`recall {row.agent_id}`" in text
    archived(world, row)
    assert named(world.letta, "Ada")
    await a_pass(world)
    archived(world, row)
    again = await row_of(world, row.agent_id)
    assert (again.dismissed, again.state) == (True, "archived")


async def test_recalled_agent_is_as_it_was(world: World) -> None:
    admin, row = await with_ada(world)
    await carried_out(world, "despawn Ada")
    job, text = await carried_out(world, "recall Ada")
    assert job.state == "done"
    assert "is back" in text
    assert exactly_one(world.hs, world.letta, "Ada") == row.agent_id
    again = await row_of(world, row.agent_id)
    assert (again.dismissed, again.state, again.portal_room, again.owner) == (False, "active", row.portal_room, ADMIN)
    world.letta.reply = lambda texts: "I am back"
    await admin.send(str(row.portal_room), "hello")
    await admin.wait_message(str(row.portal_room), sender=row.mxid, text="I am back", timeout=10.0)


async def test_what_runs_is_stopped_and_what_waits_is_told(world: World) -> None:
    admin, row = await with_ada(world)
    bob = await world.hs.person("bob")
    hold = world.letta.hold(row.agent_id)
    await admin.send(str(row.portal_room), "long work")
    await hold.entered()
    dm = await world.dm(bob, row.agent_id, "I wait")
    bridge = world.bridge
    assert bridge is not None
    await until(lambda: bridge.db.fetchval("SELECT COUNT(*) FROM turn WHERE state = 'queued'"), why="not queued")
    job, text = await carried_out(world, "despawn Ada")
    assert job.state == "done"
    assert "was stopped" in text
    await bob.wait_message(dm, sender=row.mxid, text=lambda body: "not delivered" in body, timeout=10.0)
    await until(lambda: bridge.db.fetchval("SELECT COUNT(*) = 0 FROM turn WHERE state IN ('queued', 'running')"))
    assert "I wait" not in "".join(text for turn in world.letta.turns(row.agent_id) for text in turn.texts)
    hold.release()


async def test_twice(sqlite_world: World) -> None:
    world = sqlite_world
    _, row = await with_ada(world)
    first = await ask(world, "despawn Ada", key="$one")
    await job_of(world, first)
    assert (await ask(world, f"despawn {row.agent_id}", key="$one")).job == first.job
    assert (await ask(world, f"despawn {row.agent_id}")).text.startswith("Ada is despawned already")
    await carried_out(world, f"recall {row.agent_id}")
    assert "nothing to bring back" in (await ask(world, "recall Ada")).text


async def test_owner_may_and_others_may_not(sqlite_world: World) -> None:
    world = sqlite_world
    await with_ada(world, f"summon Ada --owner @bob:{DOMAIN}")
    for line in ("despawn Ada", "rename Ada Eve", "despawn Ada --delete-agent"):
        reply = await ask(world, line, who=f"@eve:{DOMAIN}")
        assert not reply.ok
        assert f"Its owner is @bob:{DOMAIN}" in reply.text
    job, _ = await carried_out(world, "despawn Ada", who=f"@bob:{DOMAIN}")
    assert job.state == "done"
    job, _ = await carried_out(world, "recall Ada", who=f"@bob:{DOMAIN}")
    assert job.state == "done"


async def test_an_agent_of_letta_itself_can_be_despawned_and_recalled(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Old")
    await world.start()
    await world.mirrored()
    job, _ = await carried_out(world, "despawn Old")
    assert job.state == "done"
    assert children(world.hs) == []
    job, _ = await carried_out(world, "recall Old")
    assert job.state == "done"
    assert len(children(world.hs)) == 1


async def test_recall_of_an_agent_that_is_gone_in_letta(sqlite_world: World) -> None:
    world = sqlite_world
    _, row = await with_ada(world)
    await carried_out(world, "despawn Ada")
    world.letta.remove_agent(row.agent_id)
    reply = await ask(world, "recall Ada")
    assert not reply.ok
    assert "does not exist in Letta any more" in reply.text


@pytest.mark.parametrize("path", [r"/displayname$", r"/state/m\.room\.name", r"m\.space\.child"])
async def test_homeserver_that_fails_for_a_while(sqlite_world: World, path: str) -> None:
    world = sqlite_world
    _, row = await with_ada(world)
    fault = world.hs.fail_next(path, times=2, status=502, after_processing="disconnect")
    job, text = await carried_out(world, "despawn Ada")
    assert fault.hits == 2
    assert job.state == "done", text
    archived(world, row)


async def test_homeserver_that_refuses_the_archive_gives_the_agent_back(world: World) -> None:
    _, row = await with_ada(world)
    world.hs.fail_next(r"/state/m\.room\.name", times=1, status=403, errcode="M_FORBIDDEN")
    job, text = await carried_out(world, "despawn Ada")
    assert job.state == "failed", text
    assert exactly_one(world.hs, world.letta, "Ada") == row.agent_id
    again = await row_of(world, row.agent_id)
    assert (again.dismissed, again.state) == (False, "active")


# -- deleting in Letta


def line_of(text: str) -> str:
    found = re.search(r"`!letta (.*)`", text)
    assert found, text
    return found[1]


async def test_deleting_shows_what_is_lost_and_wants_the_name(world: World) -> None:
    _, row = await with_ada(world, "summon Ada --tags a,b")
    preview = await ask(world, "despawn Ada --delete-agent")
    assert preview.ok, "a preview that worked is no failure"
    assert preview.job is None
    for words in ("for ever", f"owner: {ADMIN}", "tags: a, b", "0 messages"):
        assert words in preview.text
    line = line_of(preview.text)
    assert line.endswith(" Ada")
    for wrong in (line.replace(" Ada", " ada"), line.removesuffix(" Ada"), line + "x"):
        reply = await ask(world, wrong)
        assert not reply.ok
        assert "Nothing was done" in reply.text
    assert named(world.letta, "Ada")
    job, text = await carried_out(world, line)
    assert job.state == "done", text
    assert named(world.letta, "Ada") == []
    archived(world, row)
    await a_pass(world)
    archived(world, row)


async def test_name_can_be_summoned_again_after_it_was_deleted(sqlite_world: World) -> None:
    world = sqlite_world
    _, row = await with_ada(world)
    await carried_out(world, line_of((await ask(world, "despawn Ada --delete-agent")).text))
    new = await summoned(world, "summon Ada")
    assert new.agent_id != row.agent_id
    assert new.portal_room != row.portal_room
    assert children(world.hs) == [new.portal_room]
    assert named(world.letta, "Ada") == [new.agent_id]
    job, _ = await carried_out(world, "despawn Ada")  # the living one is meant
    assert job.args["agent_id"] == new.agent_id


async def test_an_agent_that_the_bridge_did_not_make_is_never_deleted(sqlite_world: World) -> None:
    world = sqlite_world
    world.letta.add_agent("Old")
    await world.start()
    await world.mirrored()
    reply = await ask(world, "despawn Old --delete-agent")
    assert not reply.ok
    assert "neither summoned nor adopted" in reply.text
    assert named(world.letta, "Old")


@pytest.mark.parametrize("name", ['Ada "the" Great', "Ada  Lovelace", "A`b", "--x", "🦊"])
async def test_odd_names_can_be_confirmed(sqlite_world: World, name: str) -> None:
    world = sqlite_world
    _, row = await with_ada(world)
    world.letta.rename_agent(row.agent_id, name)
    await a_pass(world)
    preview = await ask(world, f"despawn {row.agent_id} --delete-agent")
    job, text = await carried_out(world, line_of(preview.text))
    assert job.state == "done", text


@pytest.mark.parametrize("how", [503, "disconnect"])
async def test_letta_that_fails_while_deleting(sqlite_world: World, how: Any) -> None:
    world = sqlite_world
    _, row = await with_ada(world)
    preview = await ask(world, "despawn Ada --delete-agent")
    world.letta.fail_next(r"/v1/agents/agent-", how, times=2, method="DELETE", after_processing=how == "disconnect")
    job, _ = await carried_out(world, line_of(preview.text))
    assert job.state == "done"
    assert named(world.letta, "Ada") == []
    archived(world, row)


# -- rename


async def test_rename_is_shown_at_once(world: World) -> None:
    _, row = await with_ada(world)
    reply = await ask(world, "rename Ada Ada Lovelace")
    assert reply.ok, reply.text
    assert exactly_one(world.hs, world.letta, "Ada Lovelace") == row.agent_id
    assert (await row_of(world, row.agent_id)).name == "Ada Lovelace"
    reply = await ask(world, 'rename "Ada Lovelace" Ada')
    assert reply.ok, reply.text
    exactly_one(world.hs, world.letta, "Ada")


async def test_rename_follows_later_when_the_homeserver_is_away(sqlite_world: World) -> None:
    world = sqlite_world
    await with_ada(world)
    world.hs.fail_next(r"/displayname$", times=1, status=502)
    reply = await ask(world, "rename Ada Eve")
    assert reply.ok
    assert "follow as soon as" in reply.text

    def shown() -> bool:
        try:
            exactly_one(world.hs, world.letta, "Eve")
        except AssertionError:
            return False
        return True

    await until(shown, why="the name never followed")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rename Ada", "needs <name>"),
        ("rename Nobody Eve", "There is no agent"),
        ("rename Ada \u200b", "Nothing of that name"),
        ("rename Ada Bad", "letta.exclude"),
    ],
)
async def test_rename_that_cannot_be(sqlite_world: World, line: str, words: str) -> None:
    world = sqlite_world
    await with_ada(world, letta__exclude={"names": ["Bad*"]})
    reply = await ask(world, line)
    assert not reply.ok
    assert words in reply.text
    assert named(world.letta, "Ada")


async def test_rename_while_letta_is_away(sqlite_world: World) -> None:
    world = sqlite_world
    await with_ada(world)
    world.letta.fail_next(r"/v1/agents/agent-", 503, times=10, method="PATCH")
    reply = await ask(world, "rename Ada Eve")
    assert not reply.ok
    assert "was not renamed" in reply.text


# -- room create


async def test_room_with_two_agents_that_answer(world: World) -> None:
    admin, ada = await with_ada(world)
    basil = await summoned(world, "summon Basil")
    bob = await world.hs.person("bob", auto_join=True)
    job, text = await carried_out(world, f'room create "Night watch" Ada basil --invite {bob.mxid}')
    assert job.state == "done", text
    room = job.done["room"]["room"]
    assert "with 2 agents" in text
    assert "matrix.to/#/%23letta_room_" in text
    for who in (ADMIN, bob.mxid, ada.mxid, basil.mxid, BOT):
        await admin.wait_joined(room, who)
    assert content(world.hs, room, "m.room.name") == {"name": "Night watch"}
    world.letta.reply = lambda texts: "I am here"
    await admin.send(room, "hello", **{"m.mentions": {"user_ids": [basil.mxid]}})
    await admin.wait_message(room, sender=basil.mxid, text="I am here", timeout=10.0)
    assert not [m for m in admin.messages(room) if m.sender == ada.mxid]
    again = await ask(world, 'room create "Night watch" basil Ada --invite @cid:test.local')
    assert not again.ok and "have made that room already" in again.text
    assert "`invite` brings more people in" in again.text


@pytest.mark.parametrize("path", [r"/createRoom$", r"/join$", r"/invite$"])
async def test_room_is_made_once_whatever_is_lost(sqlite_world: World, path: str) -> None:
    world = sqlite_world
    await with_ada(world)
    fault = world.hs.fail_next(path, times=2, status=502, after_processing="disconnect")
    job, text = await carried_out(world, "room create Lab Ada")
    assert fault.hits == 2
    assert job.state == "done", text
    made = [room for room in world.hs.hs.rooms if content(world.hs, room, ROOM_STATE)]
    assert made == [job.done["room"]["room"]]


async def test_room_that_cannot_be_finished_is_closed(sqlite_world: World) -> None:
    world = sqlite_world
    _, row = await with_ada(world)
    hold = world.hs.fail_next(r"/join$", times=100, status=502)
    reply = await ask(world, "room create Lab Ada")
    await until(lambda: hold.hits > 0)
    bridge = world.bridge
    assert bridge is not None
    await bridge.db.write(lambda conn: conn.execute("DELETE FROM agent WHERE agent_id = $1", row.agent_id))
    world.letta.remove_agent(row.agent_id)
    hold.cancel()
    job = await job_of(world, reply)
    assert job.state == "failed"
    (made,) = [room for room in world.hs.hs.rooms if content(world.hs, room, ROOM_STATE)]
    assert world.hs.hs.rooms[made].membership(BOT) == "leave"
    assert world.hs.hs.rooms[made].membership(ADMIN) in (None, "leave")
    assert not [alias for alias in world.hs.hs.aliases if "room_" in alias]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("room create", "needs <name>"),
        ("room create Lab Adda", "Did you mean `Ada`"),
        ("room create Lab Ada --invite bob", "full Matrix id"),
        (f"room create Lab --invite {BOT}", "bridge's own users"),
    ],
)
async def test_room_that_cannot_be(sqlite_world: World, line: str, words: str) -> None:
    world = sqlite_world
    await with_ada(world)
    reply = await ask(world, line)
    assert not reply.ok
    assert words in reply.text
    assert len(live_portals(world.hs)) == 1
