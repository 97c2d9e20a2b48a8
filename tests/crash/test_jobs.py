"""``kill -9`` at every step of summon, despawn, and taking back: a new process goes on, and nothing is there twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from letta_bridge.mirror.maker import PORTAL_STATE
from letta_bridge.testing.fake_homeserver import Person

from ..integration.life_kit import children, content, live_portals, named, portal_aliases, portals, shown_puppets
from ..integration.world import BOT, DOMAIN
from .harness import CrashWorld, crash_world
from .nursery import Nursery

SUMMON_STEPS = 6
DELETE_STEPS = 4
POINTS = ["job.stepped", *(pytest.param(point, marks=pytest.mark.full) for point in ("job.step", "job.recorded"))]


@pytest_asyncio.fixture
async def world(tmp_path: Path, database_uri: str, processes: Nursery) -> AsyncIterator[CrashWorld]:
    async with crash_world(tmp_path, database_uri, nursery=processes) as made:
        made.settings = {"permissions": {f"@admin:{DOMAIN}": "admin"}, "management.rooms": False}
        yield made


async def start(world: CrashWorld) -> tuple[Person, str]:
    """The admin, in a direct chat with the bot, and the space."""
    admin = await world.hs.person("admin", auto_join=True)
    await world.start()
    room = await admin.create_dm(BOT)
    await admin.wait_joined(room, BOT)
    await world.hs.wait_until(lambda: f"#letta_space:{DOMAIN}" in world.hs.hs.aliases, 15, "the space")
    return admin, room


async def killed(world: CrashWorld, admin: Person, room: str, line: str, at: str) -> None:
    """Let the bridge die at a place while it carries out a command, and start another."""
    world.arm(at)
    await admin.send(room, f"!letta {line}")
    await world.died()
    assert world.struck == at
    await world.start()


async def ended(world: CrashWorld, admin: Person, room: str, words: str, nth: int) -> None:
    """Wait until the bot has said ``words`` in ``nth`` messages."""

    def there() -> bool:
        return len([m for m in admin.messages(room) if m.sender == BOT and words in m.body]) >= nth

    try:
        await world.hs.wait_until(there, 20, f"{words!r} {nth} times")
    except AssertionError as late:
        seen = "\n".join(map(str, admin.messages(room)))
        tail = world.child.log_tail(30) if world.child else ""
        raise AssertionError(f"{late}\n{seen}\n{tail}") from late


def one_of_each(world: CrashWorld, name: str) -> str:
    """One agent of the name, one user, one room under its alias, one place in the space; the agent."""
    hs = world.hs
    (agent_id,) = named(world.letta, name)
    (portal,) = [room for room in portals(hs) if content(hs, room, PORTAL_STATE)["agent_id"] == agent_id]
    puppet = world.puppet(agent_id)
    assert hs.hs.aliases[f"#{puppet[1:]}"][0] == portal
    assert hs.hs.rooms[portal].membership(puppet) == hs.hs.rooms[portal].membership(BOT) == "join"
    assert hs.hs.rooms[portal].membership(f"@admin:{DOMAIN}") == "join"
    assert children(hs).count(portal) == 1
    assert hs.hs.accounts.users[puppet].profile["displayname"] == name
    assert len(hs.hs.accounts.users[puppet].devices) == 1
    return agent_id


def reports_of(admin: Person, room: str, words: str) -> list[str]:
    return [m.body for m in admin.messages(room) if m.sender == BOT and words in m.body]


@pytest.mark.parametrize("point", POINTS)
async def test_summon_killed_at_every_step_makes_one_of_each(world: CrashWorld, point: str) -> None:
    admin, room = await start(world)
    for number in range(1, SUMMON_STEPS + 1):
        name = f"Agent {number}"
        await killed(world, admin, room, f"summon {name}", f"{point}:{number}:kill")
        await ended(world, admin, room, "open its room", number)
        await world.hs.wait_until(lambda: len(children(world.hs)) == number, 10, "the space")  # noqa: B023
        one_of_each(world, name)
        assert len(reports_of(admin, room, f"Summoning {name}")) == 1, "one message tells of one job"
    assert len(world.letta.agents) == len(portals(world.hs)) == len(children(world.hs)) == SUMMON_STEPS


async def test_one_summon_of_which_no_process_makes_more_than_a_step(world: CrashWorld) -> None:
    admin, room = await start(world)
    world.arm("job.stepped:1:kill")
    await admin.send(room, "!letta summon Ada")
    await world.died()
    for _ in range(SUMMON_STEPS - 1):
        world.child = world.spawn(at="job.stepped:1:kill")
        await world.died()
    await world.start()
    await ended(world, admin, room, "open its room", 1)
    one_of_each(world, "Ada")
    assert len(world.letta.agents) == len(portals(world.hs)) == len(children(world.hs)) == 1


@pytest.mark.parametrize("point", POINTS)
async def test_despawn_with_deletion_killed_at_every_step(world: CrashWorld, point: str) -> None:
    admin, room = await start(world)
    for number in range(1, DELETE_STEPS + 1):
        name = f"Agent {number}"
        await admin.send(room, f"!letta summon {name}")
        await ended(world, admin, room, "open its room", number)
        agent_id = one_of_each(world, name)
        (portal,) = [
            one for one in live_portals(world.hs) if content(world.hs, one, PORTAL_STATE)["agent_id"] == agent_id
        ]
        await admin.send(room, f"!letta despawn {name} --delete-agent")
        await ended(world, admin, room, "To do it, type", number)
        preview = reports_of(admin, room, "To do it, type")[-1]
        line = preview.rpartition("`!letta ")[2].rstrip("`")
        await killed(world, admin, room, line, f"{point}:{number}:kill")
        await ended(world, admin, room, "It is deleted in Letta", number)
        assert named(world.letta, name) == []
        assert content(world.hs, portal, "m.room.name")["name"].endswith("(archived)")
        assert world.hs.hs.rooms[portal].membership(f"@admin:{DOMAIN}") == "join"
        assert children(world.hs) == []
        assert shown_puppets_named(world) == []


def shown_puppets_named(world: CrashWorld) -> list[str]:
    """Users of agents that still show a name."""
    users = world.hs.hs.accounts.users
    return [user for user in users if user.startswith("@letta_") and users[user].profile.get("displayname")]


async def test_taking_back_killed_at_every_step_leaves_nothing(world: CrashWorld) -> None:
    admin, room = await start(world)
    for number in range(1, 6):
        world.hs.fail_next(r"m\.space\.child", times=1, status=400, errcode="M_UNKNOWN")
        await killed(world, admin, room, "summon Ada", f"job.undo:{number}:kill")
        await ended(world, admin, room, "It was not done", number)
        assert not world.letta.agents
        assert shown_puppets(world.hs) == live_portals(world.hs) == portal_aliases(world.hs) == children(world.hs) == []
    await admin.send(room, "!letta summon Ada")
    await ended(world, admin, room, "open its room", 1)
    agent_id = one_of_each_living(world, "Ada")
    assert live_portals(world.hs) == children(world.hs)
    assert list(world.letta.agents) == [agent_id]


def one_of_each_living(world: CrashWorld, name: str) -> Any:
    (agent_id,) = named(world.letta, name)
    assert len(live_portals(world.hs)) == len(portal_aliases(world.hs)) == 1
    assert shown_puppets(world.hs) == [world.puppet(agent_id)]
    return agent_id
