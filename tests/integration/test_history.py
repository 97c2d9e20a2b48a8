"""An agent's earlier conversation in its room: when the room is new, and by command."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from letta_bridge.ids import MXID, AgentID, EventID, RoomID
from letta_bridge.jobs import engine as engine_module
from letta_bridge.matrix import envelope
from letta_bridge.mirror import history as history_module
from letta_bridge.testing.fake_homeserver import Person, Rendered, routes_rooms
from letta_bridge.testing.fake_homeserver.errors import bad

from .life_kit import ask, carried_out
from .world import BOT, DOMAIN, World, settled, until

SPOKEN = [
    ("user", "What is new?"),
    ("assistant", "Nothing at all."),
    ("user", "Sure?"),
    ("assistant", "**Quite** sure."),
]
WHEN = datetime(2025, 5, 3, 14, 2, 0, tzinfo=UTC)
MARK = "dev.letta_bridge.message"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses shorter than in life."""
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(engine_module, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(history_module, "_POLL", 0.01)


def everything(world: World, room: str) -> list[dict[str, Any]]:
    """The messages of a room as the homeserver has them, whoever may see them."""
    events = sorted(world.hs.hs.events.values(), key=lambda event: event.stream)
    return [
        {"sender": event.sender, "content": event.content, "ts": event.origin_server_ts, "id": event.event_id}
        for event in events
        if event.room_id == room and event.type == "m.room.message"
    ]


def imported(world: World, room: str) -> list[dict[str, Any]]:
    return [event for event in everything(world, room) if event["content"].get(MARK, {}).get("imported")]


def bodies(world: World, room: str) -> list[str]:
    return [str(event["content"].get("body")) for event in imported(world, room)]


async def due(world: World) -> bool:
    assert world.bridge is not None
    return any(row.history == "due" for row in await world.bridge.agents.all())


async def shown(world: World, agent: str) -> str:
    """Wait until nothing is due any more and everything is sent; the portal."""
    await world.mirrored()
    await until(lambda: _not(due(world)), why="history is still due")
    room = await world.portal(agent)
    await sent(world, room)
    return room


async def _not(what: Any) -> bool:
    return not await what


async def sent(world: World, room: str) -> None:
    bridge = world.bridge
    assert bridge is not None

    async def quiet() -> bool:
        return await bridge.outbox.head(RoomID(room)) is None

    await until(quiet, why="the room has something to send")


async def test_a_new_room_begins_with_what_was_said(world: World) -> None:
    agent, alice = world.letta.add_agent("Ada"), await world.hs.person("alice")
    world.letta.seed_history(agent, SPOKEN, at=WHEN)
    await world.start()
    room = await shown(world, agent)
    events = imported(world, room)
    puppet = world.puppet(agent)
    assert [event["sender"] for event in events] == [BOT, BOT, puppet, BOT, puppet, BOT]
    assert bodies(world, room) == [
        "Earlier conversation (4 lines):",
        "**Somebody** wrote in Letta:\n\n> What is new?",
        "Nothing at all.",
        "**Somebody** wrote in Letta:\n\n> Sure?",
        "**Quite** sure.",
        "From here on, what is said here.",
    ]
    first = int(WHEN.timestamp() * 1000)
    assert [event["ts"] for event in events[:-1]] == [first, first, first + 1, first + 2, first + 3]
    assert events[-1]["ts"] > first + 100_000
    assert all(event["content"]["msgtype"] == "m.notice" for event in events)
    assert all(event["content"]["m.mentions"] == {} for event in events)
    assert "answers" not in events[1]["content"][MARK]
    assert world.letta.turns(agent) == [], "it answers its own past"
    await alice.send(await world.dm(alice, agent), "hello")
    await until(lambda: world.letta.turns(agent))
    assert len(imported(world, room)) == 6


async def test_a_room_made_in_place_of_a_deleted_one_begins_with_them_too(world: World) -> None:
    agent = world.letta.add_agent("Ada")
    world.letta.seed_history(agent, SPOKEN, at=WHEN)
    await world.start()
    old = await shown(world, agent)
    before = bodies(world, old)
    world.hs.purge_room(old)

    async def moved() -> bool:
        assert world.bridge is not None
        row = await world.bridge.agents.get(AgentID(agent))
        return row is not None and row.portal_room not in (None, old)

    await until(moved, timeout=20.0, why="not replaced")
    room = await shown(world, agent)
    assert len(before) == 6 and bodies(world, room) == before


async def test_an_agent_without_a_past_costs_the_homeserver_nothing(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Ada", agent_type="memgpt_agent")
    await world.start()
    room = await shown(world, agent)
    assert everything(world, room) == []
    asked = [path for _, path in world.letta.requests if path.endswith("/conversations/default/messages")]
    assert len(asked) <= 2, "a page, and that there is no other"


async def test_nothing_is_shown_where_that_is_switched_off(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Ada")
    world.letta.seed_history(agent, SPOKEN)
    await world.start(mirror__history=0)
    await world.mirrored()
    assert everything(world, await world.portal(agent)) == []
    job, text = await carried_out(world, "import Ada 2")
    assert job.state == "done", text
    room = await world.portal(agent)
    await sent(world, room)
    assert bodies(world, room)[1:3] == ["**Somebody** wrote in Letta:\n\n> Sure?", "**Quite** sure."]


async def test_what_was_said_in_the_room_is_not_shown_again(world: World) -> None:
    agent, alice = world.letta.add_agent("Ada"), await world.hs.person("alice", auto_join=True)
    world.letta.seed_history(agent, SPOKEN, at=WHEN)
    await world.start(mirror__invite=[alice.mxid])
    room = await shown(world, agent)
    await alice.wait_joined(room, alice.mxid)
    await alice.send(room, "in this room")
    await alice.wait_message(room, sender=world.puppet(agent))
    await world.letta.outside_turn(agent, "from elsewhere")
    await settled(world)
    job, text = await carried_out(world, "import Ada 100")
    await sent(world, room)
    assert job.done["lines"]["lines"] == 2, text
    assert "2 lines shown in [its room]" in text
    assert [body.split("\n")[-1] for body in bodies(world, room)[6:]] == [
        "Earlier conversation (2 lines):",
        "> from elsewhere",
        "echo: from elsewhere",
        "From here on, what is said here.",
    ]
    for _ in range(2):
        job, text = await carried_out(world, "import Ada 100")
        assert "nothing to show" in text
    assert len(imported(world, room)) == 10


async def test_a_database_that_forgot_what_it_showed_shows_it_once(world: World) -> None:
    agent = world.letta.add_agent("Ada")
    world.letta.seed_history(agent, SPOKEN, at=WHEN)
    bridge = await world.start()
    room = await shown(world, agent)
    await bridge.db.write(lambda conn: conn.execute("DELETE FROM outbox"))
    job, _ = await carried_out(world, "import Ada")
    assert job.done["lines"]["lines"] == 0
    assert len(imported(world, room)) == 6


async def test_a_stop_in_the_middle_repeats_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "_SLICE", 3)
    agent = world.letta.add_agent("Ada")
    lines = [(("user", "assistant")[number % 2], f"line {number}") for number in range(20)]
    world.letta.seed_history(agent, lines, at=WHEN)
    await world.start()
    await world.mirrored()
    room = await world.portal(agent)
    for wanted in (3, 9):
        await until(lambda wanted=wanted: len(imported(world, room)) >= wanted)
        await world.restart()
    await shown(world, agent)
    texts = [body.split("> ")[-1] for body in bodies(world, room)]
    assert texts == [
        "Earlier conversation (20 lines):",
        *(text for _, text in lines),
        "From here on, what is said here.",
    ]


def sealed(room: str, event: str, person: Person, text: str) -> str:
    return envelope.seal(
        envelope.Message(
            sender=envelope.Person(MXID(person.mxid), "Alice *the* Great"),
            room=envelope.Room(RoomID(room), "Old room", "portal", 2),
            time=WHEN,
            event_id=EventID(event),
            body=text,
        )
    )


async def test_people_who_are_known_are_named_and_what_they_took_back_stays_so(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = world.letta.add_agent("Ada"), await world.hs.person("alice", auto_join=True)
    await world.start()
    await shown(world, agent)
    old = await alice.create_room(invite=[world.puppet(agent)])
    await alice.wait_joined(old, world.puppet(agent))
    kept, taken = await alice.send(old, "stays"), await alice.send(old, "secret")
    await alice.redact(old, taken)
    await settled(world)
    world.letta.seed_history(
        agent,
        [
            ("user", sealed(old, kept, alice, "stays\n\n@room <b>two</b>")),
            ("user", sealed(old, taken, alice, "secret")),
            ("user", sealed("!gone:" + DOMAIN, "$lost", alice, "of a room that is gone")),
            ("assistant", "noted"),
        ],
        at=WHEN,
    )
    job, text = await carried_out(world, "import Ada")
    room = await world.portal(agent)
    await sent(world, room)
    assert job.done["lines"]["lines"] == 3, text
    said = imported(world, room)[1]["content"]
    assert said["m.mentions"] == {}
    assert f'<a href="https://matrix.to/#/{alice.mxid}"' in said["formatted_body"]
    assert "Alice *the* Great" in said["formatted_body"]
    assert "<b>" not in said["formatted_body"]
    assert not [body for body in bodies(world, room) if "secret" in body]
    assert bodies(world, room)[-2] == "noted"


async def test_a_conversation_that_cannot_be_read_is_told_once(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = world.letta.add_agent("Ada"), await world.hs.person("alice", auto_join=True)
    world.letta.seed_history(agent, SPOKEN, at=WHEN)
    fault = world.letta.fail_next("/conversations/default/messages$", 422, times=1000, method="GET")
    await world.start(mirror__invite=[alice.mxid])
    room = await shown(world, agent)
    (told,) = everything(world, room)
    assert told["sender"] == world.puppet(agent)
    assert "cannot be shown here: Letta refused the request. `!letta import` tries it again" in told["content"]["body"]
    await world.restart()
    await world.mirrored()
    assert len(everything(world, room)) == 1
    assert "cannot be shown: Letta refused the request" in (await ask(world, "agent Ada")).text
    fault.times = 0
    job, text = await carried_out(world, "import Ada")
    assert job.done["lines"]["lines"] == 4, text
    bridge = world.bridge
    assert bridge is not None
    assert await bridge.desk.settings.get(history_module.FAILED + agent) is None


async def test_while_letta_is_away_it_waits(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Ada")
    world.letta.seed_history(agent, SPOKEN, at=WHEN)
    world.letta.fail_next("/conversations/default/messages$", 503, times=2, method="GET")
    monkeypatch.setattr(history_module, "_FIRST_REST", 0.05)
    await world.start()
    room = await shown(world, agent)
    assert len(imported(world, room)) == 6


@pytest.mark.parametrize("how", ["ignores", "refuses"])
async def test_where_times_are_not_kept_they_are_written(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def no_time(call: Any) -> None:
        if how == "refuses" and "ts" in call.http.query:
            raise bad("ts is not for you", "M_INVALID_PARAM")

    monkeypatch.setattr(routes_rooms, "_time", no_time)
    world = sqlite_world
    agent = world.letta.add_agent("Ada")
    world.letta.seed_history(agent, SPOKEN, at=WHEN)
    await world.start()
    room = await shown(world, agent)
    assert bodies(world, room)[1:3] == [
        "**Somebody** wrote in Letta (2025-05-03 14:02 UTC):\n\n> What is new?",
        "*2025-05-03 14:02 UTC*\n\nNothing at all.",
    ]


async def test_an_answer_does_not_wait_for_the_whole_past(sqlite_world: World) -> None:
    world = sqlite_world
    agent, alice = world.letta.add_agent("Ada"), await world.hs.person("alice", auto_join=True)
    await world.start(mirror__invite=[alice.mxid])
    room = await shown(world, agent)
    await alice.wait_joined(room, alice.mxid)
    world.letta.seed_history(agent, [("assistant", f"line {number}") for number in range(120)], at=WHEN)
    world.hs.delay(r"/send/", 0.02)
    begun = await ask(world, "import Ada 120")
    await until(lambda: len(imported(world, room)) > 5)
    await alice.send(room, "now")
    answer: Rendered = await alice.wait_message(room, sender=world.puppet(agent), text=lambda body: "echo" in body)
    assert begun.ok
    await until(lambda: len(imported(world, room)) == 122, timeout=20)
    order = [event["id"] for event in everything(world, room)]
    assert order.index(answer.event_id) < order.index(imported(world, room)[-1]["id"]) - 20


@pytest.mark.parametrize(
    ("line", "who", "said"),
    [
        ("import Ada 0", "@admin", "From 1 to 500"),
        ("import Ada 501", "@admin", "From 1 to 500"),
        ("import Ada many", "@admin", "many"),
        ("import Nobody", "@admin", "There is no agent"),
        ("import", "@admin", "Usage"),
        ("import Ada", "@alice", "Only the owner"),
    ],
)
async def test_wrong_uses_say_why(sqlite_world: World, line: str, who: str, said: str) -> None:
    world = sqlite_world
    world.letta.add_agent("Ada")
    await world.start()
    await world.mirrored()
    reply = await ask(world, line, who=f"{who}:{DOMAIN}")
    assert not reply.ok
    assert said in reply.text


async def test_twice_is_one_job(sqlite_world: World) -> None:
    world = sqlite_world
    agent = world.letta.add_agent("Ada")
    await world.start()
    await shown(world, agent)
    first = await ask(world, "import Ada", key="$same")
    assert (await ask(world, "import Ada", key="$same")).job == first.job
