"""Summoning and despawning in tests: how a command is asked, and what there is afterwards, counted from outside."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from letta_bridge.commands import parse
from letta_bridge.commands.carry import Asked
from letta_bridge.commands.groups import TABLE
from letta_bridge.commands.parse import of_text
from letta_bridge.commands.table import Reply
from letta_bridge.db.agents import AgentRow
from letta_bridge.db.jobs import JobRow
from letta_bridge.ids import AgentID, JobID, RoomID
from letta_bridge.jobs.report import final_text
from letta_bridge.mirror.maker import PORTAL_STATE
from letta_bridge.testing.fake_homeserver import FakeHomeserver

from .world import BOT, DOMAIN, World, until

ADMIN = f"@admin:{DOMAIN}"
_keys = itertools.count(1)


async def ask(world: World, line: str, *, who: str = ADMIN, key: str = "", room: str = "") -> Reply:
    """Use a command as a person in a room (or nowhere) does; the reply."""
    bridge = world.bridge
    assert bridge is not None
    asked = Asked(
        line=of_text(line),
        who=who,
        level=bridge.desk.permissions.level(who),
        via="room" if room or not _is_private(line) else "ctl",
        key=key or f"$command{next(_keys)}",
        room_id=RoomID(room),
    )
    return await bridge.carrier.carry_out(asked)


def _is_private(line: str) -> bool:
    """Whether the command asks the homeserver who reads the room in which it is used: there has to be one then."""
    return parse.find(TABLE, of_text(line))[0].private


async def job_of(world: World, reply: Reply, timeout: float = 20.0) -> JobRow:
    """The job that a command began, once it is over."""
    bridge = world.bridge
    assert bridge is not None
    assert reply.job is not None, reply.text
    job_id = JobID(reply.job)

    async def over() -> JobRow | None:
        job = await bridge.desk.jobs.get(job_id)
        return job if job is not None and not job.open else None

    return await until(over, timeout, why="the job did not end")  # type: ignore[no-any-return]


async def carried_out(world: World, line: str, **more: Any) -> tuple[JobRow, str]:
    """A command whose job has ended, and what its report says then."""
    reply = await ask(world, line, **more)
    job = await job_of(world, reply)
    return job, await told(world, job)


async def told(world: World, job: JobRow) -> str:
    bridge = world.bridge
    assert bridge is not None
    kind = next(kind for kind in bridge.engine._kinds.values() if kind.name == job.kind)
    return await final_text(bridge.desk, job, kind, job.state, job.error)


async def summoned(world: World, line: str, **more: Any) -> AgentRow:
    """The row of an agent that was summoned."""
    job, text = await carried_out(world, line, **more)
    assert job.state == "done", text
    bridge = world.bridge
    assert bridge is not None
    row = await bridge.agents.get(AgentID(job.done["agent"]["agent_id"]))
    assert row is not None
    return row


# -- what there is, as Letta and the homeserver see it


def content(hs: FakeHomeserver, room: str, kind: str, key: str = "") -> Mapping[str, Any]:
    return hs.hs.rooms[room].content(kind, key)


def named(letta: Any, name: str) -> list[str]:
    """The agents of this name in Letta."""
    return [agent_id for agent_id, agent in letta.agents.items() if agent.name == name]


def puppets(hs: FakeHomeserver) -> list[str]:
    """Agents' users that exist."""
    return [user for user in hs.hs.accounts.users if user.startswith("@letta_")]


def shown_puppets(hs: FakeHomeserver) -> list[str]:
    """Those that anybody sees: with a name, or in a room."""
    rooms = hs.hs.rooms.values()
    return [
        user
        for user in puppets(hs)
        if hs.hs.accounts.users[user].profile.get("displayname")
        or any(room.membership(user) in ("join", "invite") for room in rooms)
    ]


def portals(hs: FakeHomeserver) -> list[str]:
    """Rooms that were ever made as a portal."""
    return [room for room in hs.hs.rooms if content(hs, room, PORTAL_STATE)]


def live_portals(hs: FakeHomeserver) -> list[str]:
    """Those in which the bot still is."""
    return [room for room in portals(hs) if hs.hs.rooms[room].membership(BOT) == "join"]


def portal_aliases(hs: FakeHomeserver) -> list[str]:
    """Aliases of agents: behind the prefix stands a UUID."""
    return [alias for alias in hs.hs.aliases if re.match(r"#letta_[0-9a-f]{8}-", alias)]


def children(hs: FakeHomeserver) -> list[str]:
    """Rooms in the space."""
    found = hs.hs.aliases.get(f"#letta_space:{DOMAIN}")
    if found is None:
        return []
    state = hs.hs.rooms[found[0]].state
    return [key for (kind, key), event in state.items() if kind == "m.space.child" and event.content.get("via")]


def exactly_one(hs: FakeHomeserver, letta: Any, name: str) -> str:
    """One agent of the name in Letta, and as the only agent one user, one room, one place in the space."""
    (agent_id,) = named(letta, name)
    (puppet,) = puppets(hs)
    assert puppet == f"@letta_{agent_id.removeprefix('agent-')}:{DOMAIN}"
    (portal,) = portals(hs)
    room = hs.hs.rooms[portal]
    assert room.membership(BOT) == room.membership(puppet) == "join"
    assert portal_aliases(hs) == [f"#{puppet[1:]}"]
    assert hs.hs.aliases[f"#{puppet[1:]}"][0] == portal
    assert children(hs) == [portal]
    assert content(hs, portal, "m.room.name") == {"name": name}
    profile = hs.hs.accounts.users[puppet].profile
    assert profile["displayname"] == name
    assert profile["avatar_url"].startswith("mxc://")
    assert len(hs.hs.accounts.users[puppet].devices) == 1
    return agent_id


def nothing_left(hs: FakeHomeserver, letta: Any, name: str) -> None:
    """No agent, and nobody sees that there was to be one."""
    assert named(letta, name) == []
    assert shown_puppets(hs) == []
    assert live_portals(hs) == []
    assert portal_aliases(hs) == []
    assert children(hs) == []
