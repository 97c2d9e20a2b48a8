"""A text that is shown while it grows never stays so: whatever becomes of its turn, its event gets an end."""

from __future__ import annotations

import re

import aiohttp
import pytest

from letta_bridge import errors
from letta_bridge.testing.fake_letta import Behaviour

from .command_kit import asked, bot_room
from .growing_kit import QUESTION, assert_ended, half_failed, half_said, said
from .world import World, settled, until


def looks(world: World) -> list[str]:
    """Requests that ask Letta about runs, or to stream one again."""
    return [path for _, path in world.letta.requests if "/v1/runs" in path or path.endswith("/stream")]


async def followed_again(world: World) -> None:
    """Restart the bridge; it follows the run, and shows nothing new of it."""
    before = len(looks(world))
    await world.restart(conversation__first_event_s=60.0)
    await until(lambda: len(looks(world)) > before + 2, why="the run is not followed again")


EITHER_LETTA = pytest.mark.parametrize("sqlite_world", [{}, {"redis": True}], indirect=True, ids=["plain", "redis"])
"""Without Redis a run can only be asked about; with it, its stream is read again from its beginning."""


@EITHER_LETTA
@pytest.mark.parametrize("ended", [True, False], ids=["the run ended meanwhile", "the run goes on"])
async def test_answer_whose_stream_broke_off_after_it_was_shown(sqlite_world: World, ended: bool) -> None:
    """The same process, the first attempt: the end comes from Letta's record or from the run's own stream."""
    world = sqlite_world
    alice, room, agent, thought, shown = await half_said(world, how="disconnect", after_events=2)
    looked = world.letta.hold_next(r"/v1/runs", method="GET")
    turn = world.letta.turns(agent)[-1]
    try:
        thought.more.set()
        await looked.entered()
        if ended:
            thought.finish()
            await until(lambda: turn.outcome == "end_turn", why="the run does not end")
    finally:
        looked.release()
    if not ended:
        await until(lambda: len(looks(world)) > 1, why="the run is not followed")
        thought.finish()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile("and more and its end$"))
    assert said(world, alice, room, agent) == [(shown.event_id, "half a thought and more and its end")]


@EITHER_LETTA
async def test_stop_after_a_restart_closes_what_the_process_before_showed(sqlite_world: World) -> None:
    """The run is joined again, and nothing of it has been shown anew when somebody says stop."""
    world = sqlite_world
    alice, room, agent, _, shown = await half_said(world)
    await followed_again(world)
    await alice.send(room, "!stop")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(r"\(stopped\)"))
    assert_ended(said(world, alice, room, agent), shown)


@EITHER_LETTA
async def test_stop_after_a_restart_leaves_all_that_was_shown(sqlite_world: World) -> None:
    """Live edits are not stored; the room knows them."""
    world = sqlite_world
    alice, room, agent, thought, shown = await half_said(world)
    puppet = world.puppet(agent)
    thought.more.set()
    await alice.wait_message(room, sender=puppet, text=re.compile("and more …$"))
    await followed_again(world)
    await alice.send(room, "!stop")
    await alice.wait_message(room, sender=puppet, text=re.compile(r"\(stopped\)"))
    assert said(world, alice, room, agent) == [(shown.event_id, "half a thought and more\n\n*(stopped)*")]


@pytest.mark.parametrize("how", ["stop", "redaction"])
async def test_taken_back_while_letta_is_away_after_half_an_answer(world: World, how: str) -> None:
    """The model failed in the middle, then Letta went away: the message waits to be handed over again."""
    alice, room, agent, thought, shown = await half_said(world, Behaviour(error_after=1))
    await half_failed(world, thought)
    question = next(m for m in alice.messages(room) if m.body == QUESTION)
    if how == "stop":
        await alice.send(room, "!stop")
    else:
        await alice.redact(room, question.event_id)
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(r"\(stopped\)"))
    assert_ended(said(world, alice, room, agent), shown)


async def test_question_below_half_an_answer_gets_an_answer_of_its_own(world: World) -> None:
    """An end of the text above would not be taken for an answer to what was asked below it."""
    alice, room, agent, thought, shown = await half_said(world, Behaviour(error_after=1))
    await half_failed(world, thought)
    await alice.send(room, "and what of this?")
    await settled(world)
    world.letta.script(agent, Behaviour(text="the whole thought"), Behaviour(text="of this, too"))
    await world.letta.start()
    await until(lambda: "of this, too" in [text for _, text in said(world, alice, room, agent)], 20)
    (event_id, first), (_, second) = said(world, alice, room, agent)
    assert (event_id, first, second) == (shown.event_id, "the whole thought", "of this, too")


async def test_stopped_while_paused_after_half_an_answer(world: World) -> None:
    """What is paused waits; an end that is asked for does not."""
    admin = await world.hs.person("admin")
    alice, room, agent, thought, shown = await half_said(world, Behaviour(error_after=1))
    await half_failed(world, thought)
    bot = await bot_room(world, admin)
    assert "Paused" in await asked(admin, bot, "pause Scout")
    await alice.send(room, "!stop")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(r"\(stopped\)"))
    assert_ended(said(world, alice, room, agent), shown)


@pytest.mark.parametrize("paused", [False, True], ids=["waiting", "paused"])
async def test_despawned_after_half_an_answer(world: World, paused: bool) -> None:
    """Nothing else comes to the agent's lane for a long time."""
    admin = await world.hs.person("admin")
    alice, room, agent, thought, shown = await half_said(world, Behaviour(error_after=1))
    await half_failed(world, thought)
    bot = await bot_room(world, admin)
    if paused:
        assert "Paused" in await asked(admin, bot, "pause Scout")
    await asked(admin, bot, "despawn Scout")
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(r"\(stopped\)"))
    assert_ended(said(world, alice, room, agent), shown)


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (Behaviour(text=""), errors.SAID_NOTHING),
        (Behaviour(tool=("archive", {}), approve=True), errors.ASKS_APPROVAL.format(tool="archive")),
    ],
    ids=["says nothing", "asks for approval"],
)
async def test_second_try_that_has_no_words(sqlite_world: World, then: Behaviour, told: str) -> None:
    """The model failed in the middle of a text; when it is asked again it ends without any."""
    world = sqlite_world
    alice, room, agent, thought, shown = await half_said(world, Behaviour(error_after=1))
    world.letta.script(agent, then)
    thought.more.set()
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(re.escape(told)))
    assert_ended(said(world, alice, room, agent), shown)


@EITHER_LETTA
async def test_run_that_is_cancelled_in_letta_after_a_restart(sqlite_world: World) -> None:
    """What the run had said until then is known only from what the process before showed of it."""
    world = sqlite_world
    alice, room, agent, thought, shown = await half_said(world)
    await followed_again(world)
    async with aiohttp.ClientSession(world.letta.url) as client:
        run_id = world.letta.turns(agent)[-1].run_id
        await client.post(f"/v1/agents/{agent}/messages/cancel", json={"run_ids": [run_id]})
    thought.more.set()  # a model is heard to have been stopped only when it says something
    told = errors.STOPPED_EARLY.format(reason=errors.CANCELLED_IN_LETTA)
    await alice.wait_message(room, sender=world.puppet(agent), text=re.compile(re.escape(told)))
    assert_ended(said(world, alice, room, agent), shown)


async def test_live_edit_that_the_homeserver_takes_after_the_final(sqlite_world: World) -> None:
    """It was given up, and lands on the whole answer: that is shown again."""
    world = sqlite_world
    world.pace["edit_patience"] = 0.2
    alice, room, agent, thought, shown = await half_said(world)
    puppet = world.puppet(agent)
    late = world.hs.delay(r"/send/m\.room\.message/", 2.5, times=1, method="PUT")
    thought.more.set()
    await until(lambda: late.hits, why="no edit under way")
    thought.finish()
    await alice.wait_message(room, sender=puppet, text=re.compile("and its end$"))
    await alice.wait_message(room, sender=puppet, text=re.compile("and more …$"))
    await alice.wait_message(room, sender=puppet, text=re.compile("and its end$"))
    assert said(world, alice, room, agent) == [(shown.event_id, "half a thought and more and its end")]
