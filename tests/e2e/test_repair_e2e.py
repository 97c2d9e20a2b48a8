"""Rooms of the mirror on a real Synapse: damaged, deleted by an admin, upgraded, archived; each comes right once."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio
from mautrix.api import Method
from mautrix.api import Path as ApiPath
from ruamel.yaml import YAML

from letta_bridge.db.agents import AgentRow, Agents
from letta_bridge.db.alarms import Alarms
from letta_bridge.db.database import Connection, Database
from letta_bridge.db.memory import Settings
from letta_bridge.db.past_rooms import PastRooms
from letta_bridge.db.rooms import Rooms, doubt
from letta_bridge.ids import MXID, AgentID, RoomID
from letta_bridge.lanes import Fence, Lanes
from letta_bridge.letta.backend import Agent, AgentListing, Backend
from letta_bridge.letta.errors import Kind, LettaError
from letta_bridge.matrix.homeserver import Homeserver
from letta_bridge.mirror.directory import LANE, Directory
from letta_bridge.mirror.maker import PORTAL_STATE, find
from letta_bridge.mirror.settings import MirrorSettings
from letta_bridge.sight import Sight
from letta_bridge.testing.stack.synapse import Account
from tests.conftest import RealSynapse

from .honesty_kit import Inbox
from .test_room_calls_e2e import Client, _purge

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]


class Counting(Sight):
    """What was asked of the homeserver."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def homeserver(self, call: str, status: int, seconds: float) -> None:
        self.calls.append(call)


class OneAgent:
    """A Letta with the agents of the test."""

    def __init__(self, agent: Agent) -> None:
        self.agents = (agent,)

    async def list_agents(self) -> AgentListing:
        return AgentListing(self.agents, complete=False)

    async def get_agent(self, agent_id: AgentID) -> Agent:
        raise LettaError(Kind.AGENT_GONE, "no such agent")

    async def fingerprint(self) -> str | None:
        return "one"

    async def read_marker(self) -> str | None:
        return None


@dataclass
class Mirrored:
    """An agent with its portal on a real Synapse."""

    directory: Directory
    db: Database
    homeserver: Homeserver
    agents: Agents
    agent_id: AgentID
    counting: Counting
    admin: Account
    epoch: int = 0

    async def run_pass(self) -> None:
        self.epoch += 1

        async def work(conn: Connection) -> None:
            await conn.execute(
                "INSERT INTO lane (lane, owner, epoch) VALUES ($1, 'test', $2) "
                "ON CONFLICT (lane) DO UPDATE SET owner = 'test', epoch = $2",
                LANE,
                self.epoch,
            )

        await self.db.write(work)
        await self.directory.handle(Fence(LANE, "test", self.epoch))

    async def row(self) -> AgentRow:
        row = await self.agents.get(self.agent_id)
        assert row is not None
        return row

    async def portal(self) -> RoomID:
        portal = (await self.row()).portal_room
        assert portal is not None
        return portal

    async def state(self, kind: str, key: str = "") -> Any:
        return find(await self.homeserver.bot.state(await self.portal()), kind, key)

    async def repair(self, room: RoomID) -> list[str]:
        """Two passes after a damage; what they asked."""
        begun = len(self.counting.calls)
        assert await self.db.write(lambda conn: doubt(conn, room))
        await self.run_pass()
        await self.run_pass()
        return self.counting.calls[begun:]

    async def alarms(self) -> list[str]:
        alarms = await Alarms(self.db).all()
        return [alarm.text for alarm in alarms if not alarm.cleared and alarm.topic != "room.news"]


@pytest_asyncio.fixture(loop_scope="session")
async def at(request: pytest.FixtureRequest, synapse: RealSynapse, tmp_path: Path) -> AsyncIterator[Mirrored]:
    registration = YAML(typ="safe").load(synapse.registration.read_text())
    inbox, domain, counting = Inbox(), synapse.domain, Counting()
    await inbox.start(synapse.appservice_port)
    bot = MXID(f"@{registration['sender_localpart']}:{domain}")
    admin = await synapse.server.register(f"root{secrets.token_hex(4)}", admin=True)
    homeserver = Homeserver(synapse.url, domain, registration["as_token"], bot, sight=counting)
    db = Database("sqlite:mirror.db", base=tmp_path)
    await db.open()
    try:
        agents, agent_id = Agents(db), AgentID(f"agent-{secrets.token_hex(4)}-0000-4000-8000-000000000000")
        directory = Directory(
            db,
            agents,
            Rooms(db),
            Settings(db),
            homeserver,
            cast(Backend, OneAgent(Agent(agent_id, "Ada", description="Knows all"))),
            MirrorSettings(room_version=getattr(request, "param", "11")),
            Lanes(db, "test"),
            Alarms(db),
        )
        world = Mirrored(directory, db, homeserver, agents, agent_id, counting, admin)
        await world.run_pass()
        await world.run_pass()
        assert (await world.row()).in_space
        yield world
    finally:
        await homeserver.close()
        await db.close()
        await inbox.stop()


@pytest.mark.parametrize("at", ["11", "12"], indirect=True)
async def test_an_undamaged_room_is_looked_at_and_let_be(at: Mirrored) -> None:
    assert await at.repair(await at.portal()) == ["state"]
    assert await at.state("m.bridge", f"dev.letta_bridge://letta/{at.agent_id.removeprefix('agent-')}")


@pytest.mark.parametrize("at", ["11", "12"], indirect=True)
async def test_damage_is_set_right(at: Mirrored) -> None:
    portal, bot, row = await at.portal(), at.homeserver.bot, await at.row()
    levels = await at.state("m.room.power_levels")
    await bot.set_state(portal, "m.room.name", "", {"name": "Mine"})
    await bot.set_state(portal, "m.room.canonical_alias", "", {})
    await bot.set_state(portal, PORTAL_STATE, "", {})
    await bot.set_state(portal, "m.space.parent", row.in_space, {})
    await bot.kick(portal, row.mxid)
    users = {user: level for user, level in levels["users"].items() if user != row.mxid}
    await bot.set_state(portal, "m.room.power_levels", "", {**levels, "users": users, "notifications": {"room": 0}})
    await at.repair(portal)
    assert await at.state("m.room.name") == {"name": "Ada"}
    assert (await at.state("m.room.canonical_alias"))["alias"].startswith("#letta_")
    assert (await at.state(PORTAL_STATE))["agent_id"] == at.agent_id
    assert (await at.state("m.space.parent", row.in_space))["via"]
    assert (await at.state("m.room.member", row.mxid))["membership"] == "join"
    assert await at.state("m.room.power_levels") == levels
    assert await at.alarms() == []
    assert await at.repair(portal) == ["state"]


async def test_a_deleted_room_is_replaced_once(at: Mirrored) -> None:
    portal = await at.portal()
    async with aiohttp.ClientSession() as session:
        await _purge(Client(at.homeserver.url, session, at.admin), portal)
    await at.repair(portal)
    row = await at.row()
    assert row.portal_room not in (None, portal) and row.portal_joined and row.in_space
    (past,) = await PastRooms(at.db).of(at.agent_id)
    assert (past.room_id, past.replaced_by) == (portal, row.portal_room)
    assert await at.alarms() == []


@pytest.mark.parametrize("new_version", ["11", "12"])
async def test_an_upgraded_room_is_followed(at: Mirrored, new_version: str) -> None:
    portal, bot = await at.portal(), at.homeserver.bot
    answer = await bot.patiently(Method.POST, ApiPath.v3.rooms[portal].upgrade, {"new_version": new_version})
    await at.repair(portal)
    assert await at.portal() == answer["replacement_room"]
    await at.repair(await at.portal())
    row = await at.row()
    assert row.portal_joined and row.in_space and row.error == ""
    alias = await at.state("m.room.canonical_alias")
    assert await bot.resolve_alias(alias["alias"]) == row.portal_room
    assert await at.alarms() == []
    assert await at.repair(await at.portal()) == ["state"]


async def test_archived_and_back(at: Mirrored) -> None:
    portal, row = await at.portal(), await at.row()
    await at.agents.update(at.agent_id, state="archived", missing_since=1_700_000_000.0)
    backend = cast(OneAgent, at.directory._listings._backend)
    listed, backend.agents = backend.agents, ()
    await at.run_pass()
    assert await at.state("m.room.name") == {"name": "Ada (archived)"}
    assert not await at.homeserver.bot.get_state(RoomID(row.in_space), "m.space.child", portal)
    profile = await at.homeserver.bot.profile(row.mxid)
    assert not profile or not (profile.get("displayname") or profile.get("avatar_url"))
    begun = len(at.counting.calls)
    await at.run_pass()
    assert at.counting.calls[begun:] == []
    backend.agents = listed
    await at.run_pass()
    assert await at.state("m.room.name") == {"name": "Ada"}
    assert (await at.homeserver.bot.get_state(RoomID(row.in_space), "m.space.child", portal) or {}).get("via")
    profile = await at.homeserver.bot.profile(row.mxid)
    assert profile and profile["displayname"] == "Ada" and profile["avatar_url"]
