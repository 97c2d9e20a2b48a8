"""Summoning, despawning and recalling on a real Synapse and a real Letta; and how long a summon takes."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from letta_bridge.ids import RoomID
from letta_bridge.testing.person import Person
from letta_bridge.testing.stack.loopback import request_json
from letta_bridge.testing.summoning import percentile, summon, summon_times
from tests.conftest import RealLetta, RealSynapse

from .world import a_bridge, guests_of, settings_for, until

pytestmark = [pytest.mark.e2e, pytest.mark.letta, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

SUMMONS = 20
MOST_SECONDS = 5.0


@dataclass
class Commanded:
    """An admin in a direct chat with the bot of a running bridge."""

    admin: Person
    room: RoomID
    bot: str
    tag: str
    letta: RealLetta

    def agents(self, name: str) -> list[dict[str, object]]:
        """What Letta has under this name."""
        found = request_json(f"{self.letta.url}/v1/agents/?name={name}")
        assert isinstance(found, list)
        return found

    async def said(self, line: str, words: str, seconds: float = 30) -> str:
        """Use a command; the answer that has ``words`` in it."""
        asked = await self.admin.say(self.room, f"!letta {line}")

        def look() -> str | None:
            heard = [m for m in self.admin.messages(self.room, after=asked) if m.sender == self.bot]
            return next((m.body for m in heard if words in m.body), None)

        return await self.admin.wait(look, f"{words!r} after {line!r}", seconds)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(
    synapse: RealSynapse, letta_server: RealLetta, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Commanded]:
    guests, tag = await guests_of(synapse.server), f"summon-{secrets.token_hex(4)}"
    account = await synapse.server.register(f"chief_{secrets.token_hex(4)}")
    settings = settings_for(letta_server.url, synapse.domain, guests)
    settings["permissions"] = json.dumps({synapse.domain: "user", account.user_id: "admin"})
    settings["letta.include.tags"] = json.dumps([tag])
    settings["letta.poll_interval"] = "60"
    settings["management.rooms"] = "false"
    bot = f"@lettabridge:{synapse.domain}"
    async with (
        a_bridge(tmp_path_factory.mktemp("bridge"), synapse, settings),
        Person(synapse.url, account.user_id, account.access_token) as admin,
    ):
        room = await admin.create_dm(bot)
        await admin.wait_member(room, bot)
        yield Commanded(admin, room, bot, tag, letta_server)


async def test_twenty_summons_take_less_than_five_seconds_each(world: Commanded) -> None:
    names = [f"Summoned-{secrets.token_hex(3)}" for _ in range(SUMMONS)]
    times = await summon_times(world.admin, world.room, names)
    print(f"\nsummon: p50 {percentile(times, 0.5):.2f} s, p95 {percentile(times, 0.95):.2f} s of {len(times)}")
    assert percentile(times, 0.95) <= MOST_SECONDS
    for name in names:
        (agent,) = world.agents(name)
        assert agent["tags"] == [world.tag]


async def test_from_summon_to_the_first_answer_and_to_deletion(world: Commanded) -> None:
    name = f"Whole-{secrets.token_hex(3)}"
    await summon(world.admin, world.room, name, more='--persona "I am whole." --description "All of it"')
    (agent,) = world.agents(name)
    alias = f"#letta_{str(agent['id']).removeprefix('agent-')}:{world.bot.partition(':')[2]}"
    portal = await world.admin.join(await world.admin.resolve(alias))
    await world.admin.say(portal, "#say I am here")
    await world.admin.wait_message(portal, sender=f"@{alias[1:]}", where=lambda m: "I am here" in m.body)

    await world.said(f"rename {name} {name}-two", "is now called")
    assert world.agents(f"{name}-two")
    await world.said(f"despawn {name}-two", "brings it back")
    assert world.agents(f"{name}-two"), "it stays in Letta"
    await world.said(f"recall {name}-two", "is back")
    preview = await world.said(f"despawn {name}-two --delete-agent", "To do it, type")
    line = preview.rpartition("`!letta ")[2].rstrip("`")
    await world.said(line, "deleted in Letta")

    async def gone() -> bool:
        return not world.agents(f"{name}-two")

    await until(gone, "the agent is still in Letta")
