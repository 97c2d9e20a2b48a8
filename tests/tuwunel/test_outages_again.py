"""The outages of tests/e2e once more, with a Synapse that behaves like Tuwunel. They count the rooms of all tests."""

from __future__ import annotations

import pytest

from ..e2e.test_outages_e2e import (
    test_answer_whose_confirmation_is_lost_comes_once_though_synapse_restarts,
    test_bridge_killed_while_it_sets_up_agents_makes_nothing_twice,
    test_messages_sent_while_the_bridge_is_down_are_answered_once,
)

__all__ = [
    "test_answer_whose_confirmation_is_lost_comes_once_though_synapse_restarts",
    "test_bridge_killed_while_it_sets_up_agents_makes_nothing_twice",
    "test_messages_sent_while_the_bridge_is_down_are_answered_once",
]

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.asyncio(loop_scope="session")]
