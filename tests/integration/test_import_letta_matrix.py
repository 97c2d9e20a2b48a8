"""``import-letta-matrix``: agents of the peer system are adopted, people invited, old rooms told."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from letta_bridge.cli import main
from letta_bridge.cli.exitcodes import Exit
from letta_bridge.commands.call import CTL
from letta_bridge.commands.carry import Asked
from letta_bridge.commands.parse import of_words
from letta_bridge.commands.table import Reply
from letta_bridge.ids import AgentID, RoomID
from letta_bridge.jobs import engine as engine_module
from letta_bridge.routing.permissions import Level
from letta_bridge.testing.fake_homeserver import Person

from .command_kit import short_folder
from .life_kit import job_of, portals, told
from .world import BOT, DOMAIN, World, a_world, settled, until

PASSWORD = "old-secret-9f8e"
INVITED, PUBLIC, CLOSED = 20, 10, 30


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses shorter than in life."""
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(engine_module, "_LONGEST_PAUSE", 0.2)


@dataclass
class Old:
    """What Letta-Matrix left behind."""

    path: Path
    agents: list[str]
    rooms: list[str]
    alice: Person
    admin: Person
    service: Person


def entry(agent: str, name: str, room: str | None, people: dict[str, str]) -> dict[str, Any]:
    return {
        "agent_id": agent,
        "agent_name": name,
        "matrix_user_id": f"@{agent.replace('-', '_')}:{DOMAIN}",
        "matrix_password": PASSWORD,
        "created": True,
        "room_id": room,
        "room_created": room is not None,
        "invitation_status": people,
    }


async def left_behind(world: World, folder: Path, agents: int = INVITED + PUBLIC + CLOSED) -> Old:
    """So many agents with rooms of the peer system; the bot is invited to some, some are open, some closed."""
    service = await world.hs.person("letta")
    alice, admin = await world.hs.person("alice"), await world.hs.person("admin")
    ids = [world.letta.add_agent(f"Agent {number}") for number in range(agents)]
    rooms: list[str] = []
    for number in range(agents):
        public = INVITED <= number < INVITED + PUBLIC
        rooms.append(await service.create_room(preset="public_chat" if public else "private_chat", invite=[alice.mxid]))
        await alice.join(rooms[-1])
        if number < INVITED:
            await service.invite(rooms[-1], BOT)
    people = {admin.mxid: "invited", service.mxid: "joined", f"@agent_other:{DOMAIN}": "joined"}
    entries = {agent: entry(agent, f"Agent {number}", rooms[number], people) for number, agent in enumerate(ids)}
    unknown = f"agent-{uuid.uuid4()}"
    entries[unknown] = entry(unknown, "Gone", None, people)
    entries["agent-broken"] = {"agent_id": "agent-broken", "matrix_password": PASSWORD}
    path = folder / "agent_user_mappings.json"
    path.write_text(json.dumps(entries, indent=2))
    return Old(path, ids, rooms, alice, admin, service)


async def ctl(world: World, *words: str) -> Reply:
    bridge = world.bridge
    assert bridge is not None
    key = f"ctl|{uuid.uuid4()}"
    asked = Asked(line=of_words(words), who=CTL, level=Level.ADMIN, via="ctl", key=key, room_id=RoomID(""))
    return await bridge.carrier.carry_out(asked)


def pointers(old: Old, room: str, person: Person | None = None) -> list[str]:
    return [m.body for m in (person or old.alice).messages(room) if m.sender == BOT]


async def test_sixty_agents_move(sqlite_world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = sqlite_world
    old = await left_behind(world, tmp_path)
    bridge = await world.start()
    await world.mirrored()
    await until(lambda: all(BOT in old.service.members(room) for room in old.rooms[:INVITED]))
    await settled(world)
    before = {room: list(world.hs.hs.rooms[room].state) for room in portals(world.hs)}

    dry = await ctl(world, "import-letta-matrix", str(old.path))
    assert dry.ok
    assert "60 agents would be adopted" in dry.text
    assert "Letta has no such agent" in dry.text
    assert "`agent-broken`: agent_name and matrix_user_id missing" in dry.text
    plans = {plan["agent"]: plan for plan in dry.data["agents"]}
    assert plans[old.agents[0]]["invite"] == [old.admin.mxid, old.alice.mxid], "the bot is there and sees who is"
    assert plans[old.agents[-1]]["invite"] == [old.admin.mxid]
    doors = [plans[agent]["pointer"] for agent in old.agents]
    assert (doors.count("yes"), doors.count("try")) == (INVITED, PUBLIC + CLOSED)
    assert dry.text.count(f"invite {BOT} to the old room") == PUBLIC + CLOSED
    assert {room: list(world.hs.hs.rooms[room].state) for room in portals(world.hs)} == before, (
        "a dry run did something"
    )
    assert pointers(old, old.rooms[0]) == []

    reply = await ctl(world, "import-letta-matrix", str(old.path), "--apply")
    job = await job_of(world, reply, timeout=60)
    text = await told(world, job)
    assert job.state == "done", text
    assert "60 agents adopted" in text
    assert f"{INVITED + PUBLIC} old rooms told" in text
    for number, agent in enumerate(old.agents):
        row = await bridge.agents.get(AgentID(agent))
        assert row is not None
        assert row.origin == "adopted"
        portal = str(row.portal_room)
        invited = world.hs.hs.rooms[portal].members("invite")
        assert old.admin.mxid in invited
        assert old.service.mxid not in invited
        assert not [who for who in invited if who.startswith("@agent_")]
        if number < INVITED + PUBLIC:
            assert old.alice.mxid in invited, "who was in the old room is invited to the new one"
            (said,) = pointers(old, old.rooms[number])
            assert "another room now" in said
            assert BOT not in world.hs.hs.rooms[old.rooms[number]].members("join")
        else:
            assert pointers(old, old.rooms[number]) == []
    assert text.count(f"invite {BOT} to the old room") == CLOSED
    assert PASSWORD not in text + dry.text + json.dumps(dry.data) + json.dumps(job.args) + caplog.text


async def test_twice_invites_nobody_twice_and_a_late_invitation_is_used(world: World, tmp_path: Path) -> None:
    old = await left_behind(world, tmp_path, agents=3)
    await world.hs.person("x")
    bridge = await world.start()
    await world.mirrored()
    await job_of(world, await ctl(world, "import-letta-matrix", str(old.path), "--apply"))
    portal = await world.portal(old.agents[0])
    await old.admin.join(portal)
    await old.admin.leave(portal)
    await old.alice.leave(portal)
    await settled(world)
    job = await job_of(world, await ctl(world, "import-letta-matrix", str(old.path), "--apply"))
    text = await told(world, job)
    assert "3 agents adopted, 0 invitations sent, 0 old rooms told" in text
    assert world.hs.hs.rooms[portal].members("invite") == []
    assert [len(pointers(old, room)) for room in old.rooms] == [1, 1, 1]
    dry = await ctl(world, "import-letta-matrix", str(old.path))
    assert dry.text.count("its old room was told before") == 3
    assert bridge.ready


async def test_an_old_room_that_was_closed_is_told_once_the_bot_is_invited(
    sqlite_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.integration.test_import_letta_matrix.INVITED", 0)
    monkeypatch.setattr("tests.integration.test_import_letta_matrix.PUBLIC", 0)
    world = sqlite_world
    old = await left_behind(world, tmp_path, agents=2)
    await world.start()
    await world.mirrored()
    job = await job_of(world, await ctl(world, "import-letta-matrix", str(old.path), "--apply"))
    assert "To be done by hand" in await told(world, job)
    assert pointers(old, old.rooms[0]) == []
    await old.service.invite(old.rooms[0], BOT)
    await settled(world)
    job = await job_of(world, await ctl(world, "import-letta-matrix", str(old.path), "--apply"))
    text = await told(world, job)
    assert "1 old room told" in text
    assert len(pointers(old, old.rooms[0])) == 1
    assert old.alice.mxid in world.hs.hs.rooms[await world.portal(old.agents[0])].members("invite")


async def test_who_was_dismissed_or_left_out_is_listed(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    old = await left_behind(world, tmp_path, agents=3)
    bridge = await world.start(letta__exclude={"ids": [old.agents[1]]})
    await until(lambda: _mirrored(world, 2))
    await bridge.agents.update(AgentID(old.agents[0]), dismissed=True, state="archived")
    dry = await ctl(world, "import-letta-matrix", str(old.path))
    assert "1 agent would be adopted" in dry.text
    assert "it was despawned here" in dry.text
    assert "the configuration leaves it out" in dry.text
    text = await told(world, await job_of(world, await ctl(world, "import-letta-matrix", str(old.path), "--apply")))
    assert "1 agent adopted" in text
    row = await bridge.agents.get(AgentID(old.agents[0]))
    assert row is not None
    assert row.state == "archived"


async def _mirrored(world: World, number: int) -> bool:
    assert world.bridge is not None
    return len([row for row in await world.bridge.agents.all() if row.in_space]) >= number


async def test_others_can_be_left_out_and_who_may_not_talk_is_named(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    old = await left_behind(world, tmp_path, agents=1)
    await world.start(permissions={f"@admin:{DOMAIN}": "admin", old.service.mxid: "user"})
    await world.mirrored()
    await until(lambda: BOT in old.alice.members(old.rooms[0]))
    await settled(world)
    dry = await ctl(world, "import-letta-matrix", str(old.path))
    assert f"not allowed to talk to agents** (`permissions` in the configuration):\n\n- {old.alice.mxid}" in dry.text
    job = await job_of(
        world, await ctl(world, "import-letta-matrix", str(old.path), "--apply", "--except", f"@admin:{DOMAIN}")
    )
    assert job.state == "done"
    invited = world.hs.hs.rooms[await world.portal(old.agents[0])].members("invite")
    assert old.admin.mxid not in invited
    assert old.alice.mxid in invited


async def test_a_stop_in_the_middle_repeats_nothing(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    old = await left_behind(world, tmp_path, agents=12)
    await world.start()
    await world.mirrored()
    slow = world.hs.delay(r"/(invite|leave)$", 0.02)
    begun = await ctl(world, "import-letta-matrix", str(old.path), "--apply")
    for number in (2, 7):
        await until(lambda number=number: sum(len(pointers(old, room)) for room in old.rooms) >= number, timeout=20)
        await world.restart()
    slow.cancel()
    job = await job_of(world, begun, timeout=40)
    assert job.state == "done", await told(world, job)
    assert [len(pointers(old, room)) for room in old.rooms] == [1] * 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.json"], "is no file"),
        (["x.json", "--apply", "--dry-run"], "Either"),
        ([], "Usage"),
    ],
)
async def test_wrong_uses_say_why(sqlite_world: World, words: list[str], said: str) -> None:
    world = sqlite_world
    await world.start()
    reply = await ctl(world, "import-letta-matrix", *words)
    assert not reply.ok
    assert said in reply.text


async def test_the_command_line_has_it_under_its_own_name(capfd: pytest.CaptureFixture[str]) -> None:
    with short_folder() as folder:
        async with a_world(folder, "sqlite:bridge.db") as world:
            old = await left_behind(world, folder, agents=2)
            await world.start()
            await world.mirrored()
            config = folder / "config.yaml"
            config.write_text(json.dumps(world.settings()))
            config.chmod(0o600)

            async def typed(*words: str) -> tuple[int, str]:
                capfd.readouterr()
                line = ["import-letta-matrix", "--config", str(config), str(old.path), *words]
                code = await asyncio.to_thread(main, line)
                return code, capfd.readouterr().out

            code, out = await typed()
            assert code == 0
            assert "2 agents would be adopted (nothing was done yet)" in out
            assert [len(pointers(old, room)) for room in old.rooms] == [0, 0]
            code, out = await typed("--apply", "--except", old.admin.mxid)
            assert code == 0
            assert "2 agents adopted, 2 invitations sent, 2 old rooms told" in out
            code, out = await typed("--json")
            assert [plan["pointer"] for plan in json.loads(out)["agents"] if "pointer" in plan] == ["done", "done"]
            await world.stop()
            assert (await typed())[0] == Exit.NOT_RUNNING
