"""The scenarios of tests/e2e once more, with a Synapse that behaves like Tuwunel."""

from __future__ import annotations

import pytest

from ..e2e.test_person_e2e import (
    test_bot_helps_and_lists_agents_with_links,
    test_new_agent_gets_puppet_picture_portal_and_its_place_in_the_space,
    test_portal_is_the_main_conversation_and_a_dm_has_its_own,
    test_rooms_of_both_versions,
    test_whoever_declines_is_not_invited_again,
)
from ..e2e.test_rooms_e2e import (
    test_in_a_group_only_agents_that_are_meant_answer,
    test_invitation_of_an_agent_that_does_not_exist_is_answered_with_the_reason,
    test_kicked_puppet_comes_back_when_invited_again,
    test_stranger_is_told_why_the_invitation_is_refused,
)
from ..e2e.test_turns_e2e import (
    test_edit_of_an_answered_message_is_refused_once,
    test_long_answer_is_shown_while_it_is_written_and_ends_complete,
    test_messages_sent_meanwhile_go_together_as_they_are_then,
    test_stop_ends_the_answer_and_the_next_message_is_answered,
    test_stop_reaction_on_the_answer_stops_it,
)

__all__ = [
    "test_bot_helps_and_lists_agents_with_links",
    "test_edit_of_an_answered_message_is_refused_once",
    "test_in_a_group_only_agents_that_are_meant_answer",
    "test_invitation_of_an_agent_that_does_not_exist_is_answered_with_the_reason",
    "test_kicked_puppet_comes_back_when_invited_again",
    "test_long_answer_is_shown_while_it_is_written_and_ends_complete",
    "test_messages_sent_meanwhile_go_together_as_they_are_then",
    "test_new_agent_gets_puppet_picture_portal_and_its_place_in_the_space",
    "test_portal_is_the_main_conversation_and_a_dm_has_its_own",
    "test_rooms_of_both_versions",
    "test_stop_ends_the_answer_and_the_next_message_is_answered",
    "test_stop_reaction_on_the_answer_stops_it",
    "test_stranger_is_told_why_the_invitation_is_refused",
    "test_whoever_declines_is_not_invited_again",
]

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.asyncio(loop_scope="session")]
