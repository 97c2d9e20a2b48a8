"""A person with matrix-nio and a real Synapse that behaves like Tuwunel: the shortest whole way, and a failed push."""

from __future__ import annotations

import pytest

from letta_bridge.testing.fake_homeserver import PushFault
from letta_bridge.testing.fake_tuwunel import TuwunelProxy

from ..e2e.test_person_e2e import test_first_text_of_a_dm_with_a_puppet_nobody_has_seen_is_answered
from ..e2e.world import World

__all__ = ["test_first_text_of_a_dm_with_a_puppet_nobody_has_seen_is_answered"]

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]


async def test_a_push_that_fails_before_a_restart_of_the_bridge_is_answered_without_another_word(
    world: World, proxy: TuwunelProxy
) -> None:
    alice = await world.person("alice")
    agent = world.letta.add_agent("Sleeper")
    room, _ = await world.dm(alice, agent, "before")
    await proxy.tuwunel.delivered()
    world.bridge.kill()
    failed = len(proxy.tuwunel.log)
    asked = await alice.say(room, "are you there?")
    await proxy.tuwunel.attempts(failed + 1)
    assert proxy.tuwunel.log[-1].status == 0
    await world.bridge.start()
    await alice.wait_message(room, world.puppet(agent), "are you there?", after=asked)
    await proxy.tuwunel.delivered()
    proxy.tuwunel.fail_push(PushFault(status=502))  # taken, and tried again all the same
    await world.ask(alice, room, agent, "and now?", "and now?")
    await proxy.tuwunel.delivered()
    assert world.bodies(agent) == ["before", "are you there?", "and now?"]
    assert len(alice.messages(room, world.puppet(agent))) == 3
    assert proxy.user_queries and not any("/users/" in path for _, path, _ in proxy.calls)
