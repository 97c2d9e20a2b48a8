"""A restore while Letta still works on an answer that the lost bridge had begun to show."""

from __future__ import annotations

import pytest

from letta_bridge import errors
from letta_bridge.db.letters import Letters
from letta_bridge.db.overview import last_words
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_letta import Behaviour

from .test_backup_since import heard, lose_all, notices, quiet, saved, talk
from .world import World, until


def _shown(world: World, person: Person, room: str, agent: str) -> list[str]:
    return [m.body for m in person.messages(room) if m.sender == world.puppet(agent) and m.msgtype == "m.text"]


@pytest.mark.parametrize("where", ["dm", "portal"])
async def test_a_run_that_still_goes_on_is_followed_to_its_end(world: World, where: str) -> None:
    agent, alice, room = await talk(world)
    if where == "portal":
        room = await world.portal(agent)
        await world.bridge.homeserver.bot.invite(room, alice.mxid)  # type: ignore[union-attr,arg-type]
        await alice.join(room)
    await quiet(world)
    path = await saved(world)
    words = " ".join(f"word{number}" for number in range(40))
    world.letta.script(agent, Behaviour(text=words, delay=0.1))
    await alice.send(room, "slow")
    await until(lambda: any(text.startswith("word0") for text in _shown(world, alice, room, agent)), 20.0)
    await lose_all(world, path)
    assert world.letta.turns(agent)[-1].outcome == "running"
    await world.start()
    await until(lambda: any("word39" in text for text in _shown(world, alice, room, agent)), 30.0, why="not shown")
    await quiet(world)
    assert sum("word39" in text for text in _shown(world, alice, room, agent)) == 1
    assert notices(alice, room) == []
    assert sum(text == "slow" for text in heard(world, agent)) == 1


async def test_an_answer_of_which_letta_knows_nothing_is_told_as_lost_in_the_restore(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice, room = await talk(world)
    path = await saved(world)
    world.letta.script(agent, Behaviour(text="word0 word1 " * 40, delay=0.1, error_after=30))
    await alice.send(room, "slow")
    await until(lambda: any(text.startswith("word0") for text in _shown(world, alice, room, agent)), 20.0)
    await lose_all(world, path)
    await until(lambda: world.letta.turns(agent)[-1].outcome != "running", 20.0)  # and nothing of it is kept
    await world.start()
    await until(lambda: notices(alice, room), 20.0)
    await quiet(world)
    assert [notice.body for notice in notices(alice, room)] == [errors.LOST_IN_RESTORE]
    assert world.bridge is not None
    assert set(await last_words(world.bridge.db)) == {alice.mxid}
    assert [letter.who for letter in await Letters(world.bridge.db).all(10)] == [alice.mxid]
