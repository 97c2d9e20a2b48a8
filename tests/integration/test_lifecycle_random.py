"""Any sequence of what can happen in Letta: nobody goes on uncertain evidence, nothing is made twice, and in the end
the mirror equals Letta.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from letta_bridge.ids import AgentID
from letta_bridge.letta.backend import Agent
from letta_bridge.letta.errors import Kind, LettaError

from .mirror_world import World, agent, agent_id, new_world, open_database

OURS = "our database"
OTHERS = "another database"
NUMBERS = range(1, 9)

STEPS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(NUMBERS)),
    st.tuples(st.just("delete"), st.sampled_from(NUMBERS)),
    st.tuples(st.just("rename"), st.sampled_from(NUMBERS)),
    st.tuples(st.just("hide"), st.sampled_from(NUMBERS)),
    st.tuples(
        st.sampled_from(
            ("another", "empty", "partial", "down", "nameless", "restart", "day", "confirm", "delete most")
        ),
        st.just(0),
    ),
)


class Story:
    """What really is in Letta, what it shows, and what the mirror may know."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.there: dict[AgentID, Agent] = {agent_id(n): agent(n) for n in NUMBERS}
        self.hidden: set[AgentID] = set()
        self.seen_gone: set[AgentID] = set()
        """Whom a complete list of our Letta did not have."""
        self.names = 0

    async def step(self, what: str, number: int) -> None:
        name, world = agent_id(number), self.world
        if what == "add":
            self.there.setdefault(name, agent(number))
            self.hidden.discard(name)
        elif what == "delete":
            self.there.pop(name, None)
            self.hidden.discard(name)
        elif what == "rename" and name in self.there:
            self.names += 1
            self.there[name] = dataclasses.replace(self.there[name], name=f"Name {self.names}")
        elif what == "hide" and name in self.there:
            self.hidden.add(name)
        elif what == "delete most":
            self.there = dict(list(self.there.items())[:1])
            self.hidden &= self.there.keys()
        elif what == "restart":
            await world.restart()
        elif what == "day":
            await world.db.write(lambda conn: conn.execute("UPDATE agent SET missing_since = missing_since - 90000"))
            world.clock.now += 90000
        elif what == "confirm":
            await self.confirm()
        await self.look(what)
        await self.check()

    async def look(self, what: str = "") -> None:
        """A pass, with Letta as it is or as ``what`` makes it seem."""
        letta = self.world.letta
        shown = [one for one in self.there.values() if one.id not in self.hidden]
        letta.error, letta.complete, letta.fingerprint_ = None, True, OURS
        letta.hidden = [self.there[name] for name in sorted(self.hidden)]
        if what == "another":
            shown, letta.fingerprint_, letta.hidden = [agent(90), agent(91)], OTHERS, []
        elif what == "partial":
            shown, letta.complete = shown[: len(shown) // 2], False
        elif what == "down":
            letta.error = LettaError(Kind.UNREACHABLE, "down")
        elif what == "nameless":
            letta.fingerprint_ = LettaError(Kind.UNREACHABLE, "down")
        elif what == "empty":
            shown, letta.hidden = [], []
        letta.set(shown)
        if what not in ("another", "partial", "down", "nameless"):
            listed = {one.id for one in shown} | {one.id for one in letta.hidden}
            self.seen_gone |= {agent_id(n) for n in NUMBERS} - listed
        await self.world.run_pass()

    async def confirm(self) -> None:
        for text in await self.world.alarms():
            for word in re.findall(r"`!letta guard confirm (\w{4})`", text):
                if "another Letta" not in text:  # nobody in this story wants another one
                    await self.world.db.write(
                        lambda conn, word=word: self.world.directory.guard.confirm(conn, word)  # type: ignore[misc]
                    )

    async def check(self) -> None:
        rows = await self.world.agents.all()
        assert {row.agent_id for row in rows} <= {agent_id(n) for n in NUMBERS}, "nobody of another Letta"
        for row in rows:
            assert row.state in ("new", "active") or row.agent_id in self.seen_gone
        for number in NUMBERS:
            assert len(self.world.portals(number)) <= 1
        assert len(self.world.spaces()) == 1

    async def end(self) -> None:
        """Letta is well again, administrators say what was meant, and two days go by."""
        self.hidden.clear()
        self.world.clock.now += 7200
        for _ in range(4):
            await self.look()
            await self.confirm()
        for _ in range(2):
            await self.step("day", 0)
        await self.world.settle()
        rows = {row.agent_id: row for row in await self.world.agents.all()}
        for name, one in self.there.items():
            assert (rows[name].state, rows[name].name) == ("active", one.name)
        for name, row in rows.items():
            assert (row.state == "archived") == (name not in self.there)
        self.world.check_complete(number for number in NUMBERS if agent_id(number) in self.there)
        assert await self.world.alarms() == []
        await self.check()


async def tell(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_database(Path(folder), "sqlite:bridge.db") as database, new_world(database) as world:
            story = Story(world)
            await story.look()
            await world.settle()
            for what, number in steps:
                await story.step(what, number)
            await story.end()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, max_size=12))
def test_whatever_happens(steps: list[tuple[str, int]]) -> None:
    asyncio.run(tell(steps))
