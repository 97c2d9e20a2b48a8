"""Summons on several replicas while the mirror's passes run on one of them: each agent comes into being once."""

from __future__ import annotations

import pytest

from ..integration.life_kit import children, live_portals, portals, puppets
from ..integration.world import BOT, DOMAIN, until
from .harness import ReplicaWorld

pytestmark = pytest.mark.postgres

MANY = 10


async def test_jobs_and_passes_on_different_replicas_meet_in_one_agent_each(world: ReplicaWorld) -> None:
    admin = await world.hs.person("admin", auto_join=True)
    admins = {DOMAIN: "user", f"@admin:{DOMAIN}": "admin"}
    await world.start("one", "two", letta__poll_interval=0.2, permissions=admins, management__rooms=False)
    room = await admin.create_dm(BOT)
    await admin.wait_joined(room, BOT)
    for number in range(MANY):
        await admin.send(room, f"!letta summon Agent {number}")

    def done() -> bool:
        bodies = [m.body for m in admin.messages(room) if m.sender == BOT]
        return sum("open its room" in body or "It was not done" in body for body in bodies) == MANY

    await until(done, 40, why="not every summon ended")
    assert not [m.body for m in admin.messages(room) if "It was not done" in m.body]
    hs = world.hs
    assert len(world.letta.agents) == len(puppets(hs)) == len(portals(hs)) == len(live_portals(hs)) == MANY
    await until(lambda: len(children(hs)) == MANY, 20, why="not every room is in the space")
    rows = await world.sql("SELECT origin, owner, state FROM agent")
    assert {tuple(row) for row in rows} == {("summoned", f"@admin:{DOMAIN}", "active")}
