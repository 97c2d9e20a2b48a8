"""What may be believed of a list of agents, as a pure function of what a pass has before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letta_bridge.ids import AgentID
from letta_bridge.mirror.guard import Evidence, Frozen, Who, Why, judge

NOBODY: frozenset[AgentID] = frozenset()


def ids(*numbers: int) -> frozenset[AgentID]:
    return frozenset(AgentID(f"agent-{number}") for number in numbers)


def seen(
    known: frozenset[AgentID],
    listed: frozenset[AgentID],
    *,
    complete: bool = True,
    who: Who = Who.SAME,
    lately: frozenset[AgentID] = NOBODY,
) -> Evidence:
    return Evidence(complete, listed, known, known - listed - lately, lately, who)


def some(count: int) -> frozenset[AgentID]:
    return ids(*range(count))


FEW = [(3, 1), (3, 2), (10, 2), (15, 3), (20, 4), (1000, 200)]
MANY = [(4, 3), (10, 3), (11, 3), (20, 5), (1000, 201)]


@pytest.mark.parametrize(
    ("known", "gone", "frozen"), [*((*case, False) for case in FEW), *((*case, True) for case in MANY)]
)
def test_more_than_two_and_a_fifth_at_once_is_asked_about(known: int, gone: int, frozen: bool) -> None:
    verdict = judge(seen(some(known), some(known) - some(gone)))
    assert (verdict.why is Why.SHRUNK, verdict.remove) == (frozen, not frozen)
    assert verdict.add


@pytest.mark.parametrize("known", [1, 2, 5])
def test_everybody_gone_is_always_asked_about(known: int) -> None:
    assert judge(seen(some(known), NOBODY)).why is Why.EMPTY
    strangers = judge(seen(some(known), ids(900, 901)))
    assert (strangers.why, strangers.add, strangers.remove) == (Why.STRANGERS, False, False)


def test_what_goes_little_by_little_counts_together() -> None:
    known = some(10)
    assert judge(seen(known, known - ids(2), lately=ids(1))).remove
    assert judge(seen(known, known - ids(3), lately=ids(1, 2))).why is Why.SHRUNK
    # nobody more is gone now: there is nothing to ask about
    assert judge(seen(known, known, lately=ids(1, 2, 3))).why is None


@pytest.mark.parametrize(
    ("known", "listed", "another"), [(10, 0, True), (10, 4, True), (10, 5, False), (10, 10, False), (0, 7, False)]
)
def test_another_fingerprint_is_another_letta_unless_half_of_the_agents_are_there(
    known: int, listed: int, another: bool
) -> None:
    verdict = judge(seen(some(known), some(listed), who=Who.OTHER))
    assert (verdict.why is Why.ANOTHER, verdict.adopt) == (another, not another)
    if another:
        assert not verdict.add and not verdict.remove


def test_who_cannot_be_asked_takes_nobody_away() -> None:
    verdict = judge(seen(some(5), some(4), who=Who.UNKNOWN))
    assert (verdict.add, verdict.remove, verdict.why, verdict.adopt) == (True, False, None, False)
    assert not judge(seen(some(5), ids(77), who=Who.UNKNOWN)).add
    assert judge(seen(NOBODY, ids(77), who=Who.UNKNOWN)).add


def test_the_first_contact_is_believed() -> None:
    verdict = judge(seen(NOBODY, some(9), who=Who.UNTOLD))
    assert (verdict.add, verdict.adopt, verdict.why) == (True, True, None)


_SETS = st.frozensets(st.integers(0, 12).map(lambda number: AgentID(f"agent-{number}")))


@given(_SETS, _SETS, st.booleans(), st.sampled_from(list(Who)), _SETS)
def test_nobody_is_taken_away_on_uncertain_evidence(
    known: frozenset[AgentID], listed: frozenset[AgentID], complete: bool, who: Who, lately: frozenset[AgentID]
) -> None:
    evidence = seen(known, listed, complete=complete, who=who, lately=(lately & known) - listed)
    verdict = judge(evidence)
    if not complete:
        assert not verdict.remove and verdict.why is None and not verdict.adopt
    if verdict.why is not None:
        assert not verdict.remove
    if verdict.remove and evidence.gone:
        assert who is not Who.UNKNOWN and known & listed
        assert len(evidence.gone) <= max(2, 0.2 * len(known))
    if verdict.add and known:
        assert known & listed
    if who is Who.OTHER and (verdict.add or verdict.remove):
        assert 2 * len(known & listed) >= len(known)


def test_the_numbers_of_the_alarm_add_up() -> None:
    gone = tuple(AgentID(f"agent-{number}") for number in range(3))
    shrunk = Frozen("4f2a", Why.SHRUNK.value, gone, (AgentID("agent-9"),), 8, 4, None)
    assert "3 agents are gone" in shrunk.text
    assert "lists 4 of the 8 agents that are mirrored (1 was missing already)" in shrunk.text
    other = Frozen("4f2a", Why.ANOTHER.value, (), (), 4, 0, None)
    assert "it lists none of the 4 agents" in other.text


@pytest.mark.parametrize("why", list(Why))
def test_the_alarm_says_what_to_type(why: Why) -> None:
    frozen = Frozen("4f2a", why.value, (AgentID("agent-1"),), (), 12, 3, None)
    assert "`!letta guard confirm 4f2a`" in frozen.text and "`!letta guard`" in frozen.text
