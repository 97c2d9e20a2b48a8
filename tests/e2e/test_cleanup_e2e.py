"""``cleanup`` on a real Synapse: ghosts of worse days are found, shown and given up; what is in use is not touched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.ids import MXID, RoomID
from letta_bridge.matrix.homeserver import Homeserver
from letta_bridge.mirror.maker import PORTAL_STATE, SPACE_STATE
from letta_bridge.testing.fake_letta import FakeLetta
from tests.conftest import RealSynapse

from .nio_person import NioPerson
from .upkeep_kit import Overseer, a_new_synapse, ctl, ctl_json, our_users
from .world import World, a_bridge, guests_of, settings_for, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

GONE, LONE = "99999999-0000-4000-8000-000000000000", "88888888-0000-4000-8000-000000000000"
"""Agents that no Letta has."""


@dataclass
class Place:
    """A bridge in use, and the hands with which the ghosts are made."""

    world: World
    hands: Homeserver
    overseer: Overseer
    alice: NioPerson
    ada: str
    basil: str
    used: dict[str, str] = field(default_factory=dict)
    """Rooms that are in use, by what they are."""

    def ghost(self, agent: str) -> MXID:
        return MXID(f"@letta_{agent}:{self.world.domain}")

    async def second_portal(self, agent_id: str, *users: str, **body: object) -> RoomID:
        """A room that the bot has marked as the agent's; these users of ours join it."""
        mark = {"type": PORTAL_STATE, "state_key": "", "content": {"version": 1, "agent_id": agent_id}}
        request = {"preset": "private_chat", "initial_state": [mark], **body}
        room = await self.hands.bot.create_room({**request, "invite": [*users, *body.get("invite", [])]})  # type: ignore[misc]
        for user in users:
            await self.hands.intent(MXID(user)).join(room)
        return room

    async def idle(self) -> None:
        """Return when the bridge has taken in everything that was done so far."""
        room = self.used["dm"]
        await self.world.ask(self.alice, room, self.basil, "are you there", "are you there")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    async with (
        a_new_synapse(folder) as synapse,
        our_users(synapse) as hands,
        FakeLetta() as letta,
        _inhabited(synapse, hands, letta, folder) as place,
    ):
        yield place


@asynccontextmanager
async def _inhabited(synapse: RealSynapse, hands: Homeserver, letta: FakeLetta, folder: Path) -> AsyncIterator[Place]:
    guests = await guests_of(synapse.server)
    chief = await synapse.server.register("chief")
    ada, basil = letta.add_agent("Ada"), letta.add_agent("Basil")
    settings = settings_for(letta.url, synapse.domain, guests)
    settings["permissions"] = json.dumps(
        {synapse.domain: "user", guests.stranger.user_id: "none", chief.user_id: "admin"}
    )
    async with a_bridge(folder / "own", synapse, settings) as bridge:
        world = World(synapse=synapse.server, bridge=bridge, guests=guests, letta=letta)
        try:
            alice, boss = await world.client(guests.host), await world.client(chief)
            place = Place(world, hands, await Overseer.of(synapse.server), alice, ada, basil)
            place.used = {"ada": await world.portal(alice, ada), "basil": await world.portal(alice, basil)}
            place.used["dm"], _ = await world.dm(alice, basil, "hello")
            place.used["group"] = await alice.create_room([world.puppet(ada), world.puppet(basil)])
            await alice.wait_joined(place.used["group"], world.puppet(ada), world.puppet(basil))
            place.used["space"] = await until(lambda: hands.bot.resolve_alias(world.space_alias), "no space")
            await boss.wait(lambda: boss.client.invited_rooms, "an invitation to a management room")
            place.used["management"] = next(iter(boss.client.invited_rooms))
            await boss.join(place.used["management"])
            await boss.wait_message(place.used["management"], world.bot, "this is your management room")
            yield place
        finally:
            await world.close_clients()


async def test_ghosts_are_found_shown_and_given_up_once(place: Place) -> None:
    world, alice, hands, see = place.world, place.alice, place.hands, place.overseer
    bot, gone, lone = hands.bot, place.ghost(GONE), place.ghost(LONE)
    for user in (gone, lone):
        await hands.intent(user).register()
        await hands.intent(user).set_displayname("Ghost")
    space, ada = RoomID(place.used["space"]), world.puppet(place.ada)
    second = [await place.second_portal(place.ada, ada) for _ in range(5)]
    for room in second[:2]:
        await bot.set_state(space, "m.space.child", room, {"via": [world.domain]})
    named = await place.second_portal(f"agent-{GONE}", gone, room_alias_name=f"letta_{GONE}")
    with_alice = await place.second_portal(f"agent-{GONE}", gone, invite=[alice.user_id])
    await alice.wait_invite(with_alice)
    await alice.join(with_alice)
    asked = await place.second_portal(place.basil, invite=[alice.user_id])
    await alice.wait_invite(asked)
    empty = [await bot.create_room({"preset": "private_chat"}) for _ in range(2)]
    only_puppet = await hands.intent(MXID(ada)).create_room({"preset": "private_chat", "invite": [bot.mxid]})
    only_ghost = await hands.intent(lone).create_room({"preset": "private_chat", "invite": [bot.mxid]})
    await bot.join(only_ghost)
    await bot.leave(only_ghost)
    mark = {"type": SPACE_STATE, "state_key": "", "content": {"version": 1}}
    old_space = await bot.create_room({"creation_content": {"type": "m.space"}, "initial_state": [mark]})
    ghosts = {*second, named, with_alice, asked, *empty, only_puppet, only_ghost, old_space}
    await place.idle()
    everything = await see.rooms()
    before = await see.pictures(everything)

    shown = await ctl_json(world, "cleanup")
    assert {row["room"]: row["why"] for row in shown["rooms"]} == {
        **dict.fromkeys([*second, asked], "second"),
        **dict.fromkeys([named, with_alice], "orphan"),
        **dict.fromkeys([*empty, only_puppet, only_ghost], "empty"),
        old_space: "space",
    }
    assert {row["room"] for row in shown["rooms"] if row["people"]} == {with_alice, asked}
    assert shown["users"] == sorted([gone, lone]) and not shown["unclear"] and not shown["unasked"]
    assert await see.pictures(everything) == before, "a look changes nothing"

    report = await ctl(world, "cleanup", "--confirm", shown["confirm"])
    assert f"has left {len(ghosts)} rooms" in report and "2 users without an agent" in report, report
    assert "refused" not in report, report
    inside = {room: await see.inside(room) for room in ghosts & await see.rooms()}
    assert {room: who for room, who in inside.items() if who} == {with_alice: {alice.user_id}}
    assert "not used by the bridge any more" in alice.messages(with_alice)[-1].body
    assert await bot.resolve_alias(f"#letta_{GONE}:{world.domain}") is None
    for user in (gone, lone):
        assert not (await bot.profile(user) or {}).get("displayname")
    children = {e["state_key"] for e in await see.state(space) if e["type"] == "m.space.child" and e["content"]}
    assert children == {place.used["ada"], place.used["basil"]}
    after = await see.pictures(everything - ghosts - {space})
    assert after == {room: before[room] for room in after}, "nothing in use was touched"
    assert set(place.used.values()) - {space} <= set(after)

    assert "nothing to clean up" in await ctl(world, "cleanup")
    await world.ask(alice, place.used["ada"], place.ada, "still there", "still there")
    await world.ask(alice, place.used["dm"], place.basil, "you too", "you too")

    ending = await ctl_json(world, "cleanup", "--deactivate")
    assert sorted(ending["deleted"]) == sorted([gone, lone]) and not ending["rooms"]
    report = await ctl(world, "cleanup", "--deactivate", "--confirm", ending["confirm"])
    assert report.startswith("2 accounts ended for good."), report
    assert await asyncio.gather(see.is_deactivated(gone), see.is_deactivated(lone)) == [True, True]
    assert "nothing to clean up" in await ctl(world, "cleanup", "--deactivate")


async def test_who_was_only_ever_invited_is_no_user(place: Place) -> None:
    """Strangers can invite names that nobody has: Synapse lets them, and the bridge makes no users for them."""
    world = place.world
    stranger = await world.client(world.guests.stranger)
    await stranger.create_room([place.ghost("nobody"), place.ghost(LONE)])
    await place.idle()
    shown = await ctl_json(world, "cleanup")
    assert not (shown["rooms"] or shown["users"] or shown["unclear"] or shown["unasked"])
