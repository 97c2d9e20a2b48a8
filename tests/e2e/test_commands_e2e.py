"""Every command that a room takes, as people with matrix-nio use it on a real Synapse: with wrong arguments, without
permission, twice, and as it is meant. One bridge for all; the last test asks whether every command was seen to work.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from nio import RoomGetStateResponse

from letta_bridge.commands.groups import TABLE
from letta_bridge.commands.table import Command, Need
from letta_bridge.ids import RoomID
from letta_bridge.testing.fake_letta import FakeLetta
from letta_bridge.testing.person import Message
from tests.conftest import RealSynapse

from .command_kit import Stage, follow, links, resolve
from .nio_person import NioPerson
from .world import World, a_bridge, guests_of, settings_for, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

COMMANDS = [command for command in TABLE.commands if not command.only_ctl]
EVERY = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name.replace(" ", "-"))
SEND = r"/v1/(agents|conversations)/[^/]+/messages"
WRONG = "--no-such-option"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(synapse: RealSynapse, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A bridge with the agents Scout and Ada, its people, and the chief's management room."""
    guests, tag = await guests_of(synapse.server), secrets.token_hex(4)
    names = ("chief", "deputy", "alice")
    accounts = [await synapse.server.register(f"{name}_{tag}") for name in names]
    levels = {synapse.domain: "user", guests.stranger.user_id: "none"}
    levels |= {account.user_id: "admin" for account in accounts[:2]}
    async with FakeLetta() as letta:
        letta.add_agent("Scout")
        letta.add_agent("Ada")
        settings = settings_for(letta.url, synapse.domain, guests, permissions=json.dumps(levels))
        bridge = a_bridge(tmp_path_factory.mktemp("bridge"), synapse, settings)
        async with bridge:
            world = World(synapse=synapse.server, bridge=bridge, guests=guests, letta=letta)
            try:
                people = [await world.client(account) for account in (*accounts, guests.stranger)]
                chief = people[0]
                await chief.wait(lambda: chief.client.invited_rooms, "an invitation to a management room")
                room = RoomID(next(iter(chief.client.invited_rooms)))
                await chief.join(room)
                yield Stage(world, *people, room=room)
            finally:
                await world.close_clients()


def agent(stage: Stage, name: str) -> str:
    """The id of the one agent of this name in Letta."""
    (found,) = [agent.id for agent in stage.world.letta.agents.values() if agent.name == name]
    return found


def example(command: Command) -> str:
    """A use of the command that can be right."""
    return command.examples[0] if command.examples else command.name


# -- where commands are given


async def test_the_management_room_that_the_bot_makes(stage: Stage) -> None:
    welcome = await stage.here.said("this is your management room")
    assert "`help`" in welcome.body
    assert "<code>help</code>" in (welcome.html or "")
    answer = await stage.chief.client.room_get_state(stage.room)
    assert isinstance(answer, RoomGetStateResponse)
    state = {(event["type"], event["state_key"]): event["content"] for event in answer.events}
    assert ("m.room.encryption", "") not in state
    assert state["m.room.name", ""] == {"name": "Letta Bridge"}
    assert state["m.room.join_rules", ""]["join_rule"] == "invite"
    assert state["m.room.guest_access", ""]["guest_access"] == "forbidden"
    assert state["m.room.history_visibility", ""]["history_visibility"] in ("shared", "invited", "joined")
    assert state["dev.letta_bridge.management", ""] == {"version": 1, "admin": stage.chief.user_id}
    power = state["m.room.power_levels", ""]
    creator = next(event["sender"] for event in answer.events if event["type"] == "m.room.create")
    assert creator == stage.world.bot
    assert power["users"][stage.chief.user_id] == 50
    assert power["events"]["m.room.encryption"] > 50, "nobody but the bot could shut the bot out"
    await stage.deputy.wait(lambda: stage.deputy.client.invited_rooms, "the other administrator's invitation")
    assert stage.room not in stage.deputy.client.invited_rooms, "each has their own"
    assert not stage.alice.client.invited_rooms and not stage.mallory.client.invited_rooms


# -- every command: wrong


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wrong(stage: Stage) -> dict[str, Message]:
    """What is answered to wrong uses of every command, by what was written."""
    lines = [line for command in COMMANDS for line in wrong_uses(command)]
    return dict(zip(lines, await stage.here.all(lines, 100), strict=True))


def wrong_uses(command: Command) -> list[str]:
    """An option that there is not, too many arguments, too few."""
    lines = [f"{command.name} {WRONG}"]
    if not (command.args and command.args[-1].rest):
        lines.append(" ".join([command.name, *("zzz" for _ in command.args), "zzz", "zzz"]))
    if any(arg.required for arg in command.args):
        lines.append(command.name)
    return lines


@EVERY
async def test_wrong_arguments(wrong: dict[str, Message], command: Command) -> None:
    for line in wrong_uses(command):
        answer = wrong[line]
        assert answer.msgtype == "m.notice"
        if line.endswith("zzz") and command.args:
            assert re.search(r"There is no|is too much|is no |is none of|None of", answer.body), answer.body
            continue
        usage = "There is no command `zzz`." if line == "help zzz zzz zzz" else f"Usage: `{command.usage}`"
        assert usage in answer.body
        assert f"`help {command.name}` says more" in answer.body or "zzz" in line
        assert "<code>" in (answer.html or ""), "it is rendered"
        if line == command.name:
            assert f"`{command.name}` needs" in answer.body
        elif line.endswith(WRONG):
            assert "There is no option `--no-such-option`." in answer.body


# -- every command: without permission


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def as_alice(stage: Stage) -> dict[str, Message]:
    """What somebody is answered who may only talk to agents."""
    talk = await stage.dm(stage.alice)
    lines = [example(command) for command in COMMANDS]
    return dict(zip(lines, await talk.all(lines, 60), strict=True))


@EVERY
async def test_somebody_who_may_only_talk_to_agents(
    stage: Stage, as_alice: dict[str, Message], command: Command
) -> None:
    answer = as_alice[example(command)].body
    if command.need is Need.ADMIN:
        assert f"Only administrators of the bridge may use `{command.name}`" in answer
        assert f'`permissions: "{stage.alice.user_id}": admin`' in answer, "what would allow it"
    elif command.need is Need.OWNER:
        assert "Only the owner of an agent and administrators may" in answer
        assert f"permissions grant {stage.alice.user_id} admin @letta_" in answer, "what would allow it"
    else:
        assert "may not" not in answer and "Only" not in answer
        stage.worked.add(command.name)


async def test_somebody_who_may_nothing_is_told_so_and_nothing_else(stage: Stage) -> None:
    """Whatever they try, and wherever they are; and the bot follows no invitation of theirs."""
    world = stage.world
    scout = world.puppet(agent(stage, "Scout"))
    room = await stage.chief.create_room([stage.mallory.user_id, world.bot, scout])
    await stage.mallory.wait_invite(room)
    await stage.mallory.join(room)
    await stage.chief.wait_joined(room, world.bot, scout)
    for command in COMMANDS:
        await stage.mallory.say(room, f"!letta {example(command)}")
    await stage.talk(stage.chief, room, "!letta ").ask("ping", "Pong")
    said = [m.body for m in stage.mallory.messages(room) if m.sender in (world.bot, scout) and "Pong" not in m.body]
    assert said and all("You are not allowed" in text for text in said)
    assert not any(re.search("Ada|deputy|agent-", text) for text in said)

    own = await stage.mallory.create_dm(world.bot, "help")
    await stage.here.ask("ping", "Pong")
    assert world.bot not in stage.mallory.client.rooms[own].users or all(
        "You are not allowed" in message.body for message in stage.mallory.messages(own, world.bot)
    )


@pytest.mark.full
async def test_wrong_uses_tell_no_more_than_the_refusal_does(stage: Stage) -> None:
    """How a command of administrators is used is no business of others."""
    talk = await stage.dm(stage.alice)
    lines = [f"{command.name} {WRONG}" for command in COMMANDS if command.need is Need.ADMIN]
    for answer in await talk.all(lines):
        assert "Only administrators of the bridge may use" in answer.body


# -- every command, as it is meant, and then once more


async def test_what_only_looks(stage: Stage) -> None:
    here = stage.here
    for line, words in (
        ("help", "I understand:"),
        ("help summon", "--persona"),
        ("ping", "Letta: "),
        ("version", "letta-bridge "),
        ("status", "is ready"),
        ("doctor", "in order"),
        ("doctor --all", "homeserver"),
        ("agents", "Scout"),
        ("agents sco", "Scout"),
        ("agent Scout", "state: active"),
        ("rooms", "management"),
        ("rooms --kind management", "2 rooms"),
        ("users", stage.deputy.user_id),
        ("jobs", "No job is open"),
        ("dead", "no dead letters"),
        ("guard", "Nothing is frozen"),
        ("permissions", "In the configuration"),
        (f"permissions {stage.alice.user_id}", "user"),
    ):
        for _ in range(2):
            await here.ask(line, words, works=line not in ("jobs", "dead", "guard"))
    listed = await here.ask("agents")
    for target in links(listed):
        assert await resolve(stage.chief, target)
    assert stage.world.puppet(agent(stage, "Scout")) in links(listed)


async def test_an_agents_whole_life(stage: Stage) -> None:
    """Summoned, talked to, renamed, despawned, recalled, deleted; and each of it twice."""
    world, chief, here = stage.world, stage.chief, stage.here
    report = await here.job('summon Ivo --persona "I am Ivo." --description "Knows it all"', "is there: ")
    portal = await follow(chief, report)
    ivo = agent(stage, "Ivo")
    assert portal == await world.portal_of(chief, ivo)
    assert report.edits and report.body.count("✅") >= 5
    assert chief.client.rooms[portal].topic == "Knows it all"
    await world.ask(chief, portal, ivo, "are you there?", "are you there?")
    again = await here.ask("summon Ivo", "There is already an agent called Ivo")
    assert await resolve(chief, next(link for link in links(again) if link[0] == "#")) == portal
    assert len([a for a in world.letta.agents.values() if a.name == "Ivo"]) == 1, "no second agent"

    for _ in range(2):
        await here.ask("rename Ivo Ivo the Great", "called Ivo the Great", works=True)
        await chief.wait(lambda: chief.client.rooms[portal].name == "Ivo the Great", "the room's new name")

    gone = await here.job('despawn "Ivo the Great"', "brings it back")
    assert f"`recall {ivo}`" in gone.body
    assert await follow(chief, gone) == portal, "the link leads to the archived room"
    await chief.wait(lambda: chief.client.rooms[portal].name != "Ivo the Great", "the archived room's name")
    assert chief.client.rooms[portal].name.startswith("Ivo the Great"), "it is told what this was"
    assert not getattr(await chief.client.get_profile(world.puppet(ivo)), "displayname", None)
    space = (await chief.client.room_resolve_alias(world.space_alias)).room_id
    assert portal not in await children(chief, space)
    assert agent(stage, "Ivo the Great") == ivo, "it stays in Letta"
    assert chief.messages(portal), "and the room stays readable"
    await here.ask(f"despawn {ivo}", "is despawned already")

    back = await here.job('recall "Ivo the Great"', "is back")
    assert await follow(chief, back) == portal, "the same room"
    await chief.wait(lambda: chief.client.rooms[portal].name == "Ivo the Great", "the name to be back")
    await world.ask(chief, portal, ivo, "and now?", "and now?")
    await here.ask(f"recall {ivo}", "was not despawned")

    line = await here.confirmed(f"despawn {ivo} --delete-agent", "would be deleted in Letta for ever")
    await here.ask(line.rpartition(" ")[0], "That is not what has to be typed")
    assert agent(stage, "Ivo the Great") == ivo
    await here.job(line, "deleted in Letta")
    assert ivo not in world.letta.agents
    await here.ask(line, "is deleted in Letta already")


async def children(person: NioPerson, space: str) -> set[str]:
    """The rooms of a space, as the homeserver has them now."""
    answer = await person.client.room_get_state(space)
    if not isinstance(answer, RoomGetStateResponse):
        return set()
    return {e["state_key"] for e in answer.events if e["type"] == "m.space.child" and e["content"].get("via")}


async def test_a_summon_that_cannot_be(stage: Stage) -> None:
    here = stage.here
    before = len(stage.world.letta.agents)
    await here.ask("summon Zoe --model no/such", "Letta offers no model")
    await here.ask("summon Zoe --template nobody", "There are no templates")
    await here.ask(f"summon Zoe --owner {stage.world.bot}", "has to be a person")
    await here.ask("summon " + "Z" * 300, "That name has 300 characters")
    await here.ask("sumon Zoe", "Did you mean `summon`?")
    assert len(stage.world.letta.agents) == before


async def test_a_room_with_several_agents(stage: Stage) -> None:
    world, chief, here = stage.world, stage.chief, stage.here
    line = f'room create "Night watch" Scout Ada --invite {stage.alice.user_id}'
    report = await here.job(line, "with 2 agents")
    room = await follow(chief, report)
    await chief.wait_joined(room, world.puppet(agent(stage, "Scout")), world.puppet(agent(stage, "Ada")))
    await stage.alice.wait_invite(room)
    assert chief.client.rooms[room].name == "Night watch"
    again = await here.ask(line, "have made that room already")
    assert await resolve(chief, links(again)[-1]) == room
    assert len([r for r in chief.client.invited_rooms.values() if r.name == "Night watch"]) == 0, "no second room"


async def test_history_is_imported_once(stage: Stage) -> None:
    world, chief, here = stage.world, stage.chief, stage.here
    elder = world.letta.add_agent("Elder")
    world.letta.seed_history(elder, [("user", "What is new?"), ("assistant", "Nothing.")])
    await here.ask("sync", "1 new", works=True)
    await here.ask("sync", "nothing has changed")
    await here.ask(f"invite {chief.user_id} Elder", "Invited", works=True)
    room = await world.portal(chief, elder)
    await chief.wait_message(room, world.puppet(elder), "Nothing.")
    for _ in range(2):
        report = await here.job("import Elder 10")
        assert await follow(chief, report) == room
    assert sum(message.body == "Nothing." for message in chief.messages(room)) == 1


async def test_invitations(stage: Stage) -> None:
    here, alice = stage.here, stage.alice
    line = f"invite {alice.user_id} Scout"
    await here.ask(line, "Invited", works=True)
    room = await stage.world.portal_of(stage.chief, agent(stage, "Scout"))
    await alice.wait_invite(room)
    await here.ask(line, "is invited")
    await alice.join(room)
    await here.ask(line, "is in the room of Scout already")
    await here.ask(f"invite {stage.mallory.user_id} Scout", "Only the configuration can change that")
    await here.ask(f"invite {stage.world.bot} Scout", "the bridge's own user")


async def test_a_direct_chat_is_opened_once(stage: Stage) -> None:
    alice = stage.alice
    talk = await stage.dm(alice)
    first = await talk.ask("open Ada", "You are invited", works=True)
    room = await follow(alice, first)
    second = await talk.ask("open Ada", "There is a")
    assert await follow(alice, second) == room
    await stage.world.ask(alice, room, agent(stage, "Ada"), "hello", "hello")
    await talk.ask(f"open Ada --user {stage.chief.user_id}", "Only administrators can open a chat for somebody else")


async def test_pause_and_resume(stage: Stage) -> None:
    """A message waits, and who wrote it is told so once; it is answered afterwards."""
    world, alice, here = stage.world, stage.alice, stage.here
    ada = agent(stage, "Ada")
    room, _ = await world.dm(alice, ada, "before")
    for target in ("Ada", "all"):
        await here.ask(f"pause {target} its model is changed", "Paused: ", works=True)
        await here.ask(f"pause {target}", "is paused already")
        await here.ask("status", "**Paused**")
        asked = await alice.say(room, f"while {target} pauses")
        await alice.wait_message(room, None, "its model is changed", after=asked)
        await here.ask(f"resume {target}", "Resumed: ", works=True)
        await alice.wait_message(room, world.puppet(ada), f"while {target} pauses", after=asked)
        await here.ask(f"resume {target}", "was not paused")


async def test_permissions_are_given_and_taken_back(stage: Stage) -> None:
    """The owner of an agent does it; another person feels it."""
    world, alice, here = stage.world, stage.alice, stage.here
    await here.job(f"summon Pia --owner {alice.user_id}", "is there")
    pia, own = agent(stage, "Pia"), await stage.dm(alice)
    bob = await world.person("bob")
    chat = await stage.dm(bob)
    await chat.ask("pause Pia", "Only the owner of an agent")
    for _ in range(2):
        await own.ask(f"permissions grant {bob.user_id} admin Pia", "may do what owners may", works=True)
    await chat.ask("pause Pia", "Paused: Pia")
    await chat.ask("resume Pia", "Resumed: Pia")
    await chat.ask("permissions", "with Pia: admin")
    await own.ask(f"permissions revoke {bob.user_id} Pia", "Taken back", works=True)
    await own.ask(f"permissions revoke {bob.user_id} Pia", "Nothing was given")
    await chat.ask("pause Pia", "Only the owner of an agent")
    await own.ask(f"permissions grant {bob.user_id} none Pia", "may not use")
    room = await bob.create_dm(world.puppet(pia), "let me in")
    await bob.wait(lambda: world.puppet(pia) in {**bob.client.rooms[room].users}, "the agent")
    await chat.ask("agent Pia", "You may not use Pia")
    assert "let me in" not in world.bodies(pia)
    await own.ask("permissions grant * user Pia", "only administrators of the bridge may give")


async def test_two_administrators_share_a_management_room(stage: Stage) -> None:
    deputy, chief = stage.deputy, stage.chief
    await chief.invite(stage.room, deputy.user_id)
    await deputy.wait_invite(stage.room)
    await deputy.join(stage.room)
    stage.shared = True
    shared = stage.managing(deputy)
    said = await shared.ask("set-management-room", "From now on this is your management room", works=True)
    assert "begin commands with `!letta`" in said.body
    await shared.ask("set-management-room", "This is your management room already")
    await shared.ask("status", "is ready")
    encrypted = [{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]
    room = await chief.create_room([stage.world.bot], initial_state=encrypted)
    await chief.wait_joined(room, stage.world.bot)
    await chief.wait_message(room, stage.world.bot, "ncrypt")


async def test_commands_in_an_agents_room(stage: Stage) -> None:
    """With ``!letta`` alone; what is private is not shown there, and the agent hears none of it."""
    world, chief, scout = stage.world, stage.chief, agent(stage, "Scout")
    await stage.here.ask(f"invite {chief.user_id} Scout")
    room = await world.portal(chief, scout)
    there = stage.talk(chief, room, "!letta ")
    before = len(world.bodies(scout))
    await there.ask("ping", "Pong")
    await there.ask("agent here", "state: active")
    await there.ask("help", "Begin each with `!letta`")
    await there.ask("pause here", "Paused: this room")
    await there.ask("resume", "Resumed: this room")
    for command in COMMANDS:
        if command.private:
            await there.ask(command.name, "is not for everybody here")
    await there.ask("no-such", "There is no command")
    assert len(world.bodies(scout)) == before
    assert (await stage.here.ask("catchup", "will be read back", works=True)).body
    await there.ask("catchup here", "1 room will be read back")
    await there.ask("catchup here", "1 room will be read back")
    await world.ask(chief, room, scout, "Scout: now to you", "now to you")
    assert len(world.bodies(scout)) == before + 1, "nothing is answered twice"


async def test_the_message_log_is_a_file(stage: Stage) -> None:
    world, chief, here = stage.world, stage.chief, stage.here
    ada = agent(stage, "Ada")
    room, _ = await world.dm(chief, ada, "for the log")
    answer = await here.ask("export Ada --since 1h", "message", works=True)
    event = await chief.wait_message(
        stage.room, world.bot, lambda message: message.msgtype == "m.file", after=answer.event_id
    )
    data = (await chief.client.download(event.content["url"])).body
    assert event.content["info"]["size"] == len(data)
    lines = [json.loads(line) for line in data.decode().splitlines()]
    assert {"at", "direction", "room", "sender", "event", "agent", "state", "why", "body"} <= set(lines[0])
    mine = [line for line in lines if line["room"] == room]
    assert (mine[0]["direction"], mine[0]["sender"]) == ("in", chief.user_id)
    assert "for the log" in mine[0]["body"]
    assert ("out", world.puppet(ada)) in [(line["direction"], line["sender"]) for line in mine]
    await here.ask("export Ada --since yesterday-ish", "is no time")


async def test_dead_letters(stage: Stage) -> None:
    world, alice, here = stage.world, stage.alice, stage.here
    ada = agent(stage, "Ada")
    room, _ = await world.dm(alice, ada, "all is well")
    for text in ("first", "second", "third"):
        world.letta.fail_next(SEND, 422, method="POST")
        asked = await alice.say(room, text)
        await alice.wait_message(room, world.puppet(ada), "not delivered", after=asked)
    listed = await here.ask("dead", "3 dead letters", works=True)
    assert "first" not in listed.body, "no texts"
    numbers = re.findall(r"`(t\d+)`", listed.body)
    assert len(numbers) == 3
    asked = await alice.say(room, "#say in between")
    await alice.wait_message(room, world.puppet(ada), "in between", after=asked)
    await here.ask(f"retry {numbers[-1]}", "Tried again", works=True)
    await alice.wait_message(room, world.puppet(ada), "first", after=asked)
    await here.ask(f"retry {numbers[-1]}", "There is no dead letter")
    await here.ask(f"drop {numbers[0]}", "Cleared away", works=True)
    await here.ask(f"drop {numbers[0]}", "There is no dead letter")
    line = await here.confirmed("drop all", "1 dead letter")
    await here.ask("drop all --confirm 0000", "That is not what has to be typed")
    await here.ask(line, "Cleared away")
    await here.ask(line, "There are no dead letters")
    await here.ask("dead", "no dead letters")


async def test_the_guard_asks_before_many_agents_go(stage: Stage) -> None:
    world, here = stage.world, stage.here
    more = [world.letta.add_agent(f"Crowd {number}") for number in range(12)]
    added = await here.ask("sync", "12 new")
    taken = [world.letta.remove_agent(agent_id) for agent_id in more]
    await here.ask("sync", "holds something back")
    told = await here.said("⚠", after=added.event_id, seconds=30)
    assert "guard confirm" in told.body
    assert "12" in told.body
    shown = await here.ask("guard", "12 agents", works=True)
    match = re.search(r"guard confirm (\w+)", shown.body)
    assert match
    await here.ask("guard confirm 0000", "is not what is asked about now")
    await here.ask(f"guard confirm {match[1]}", "Confirmed.", works=True)
    await here.ask(f"guard confirm {match[1]}", "nothing has changed")
    await here.ask("agent Crowd 0", "missing")
    for agent_ in taken:
        world.letta.restore_agent(agent_)
    await here.ask("sync", "12 back")


async def test_rebind(stage: Stage) -> None:
    world, chief, here = stage.world, stage.chief, stage.here
    old = world.letta.add_agent("Twin")
    await here.ask("sync", "1 new")
    portal = await world.portal_of(chief, old)
    await here.ask(f"invite {chief.user_id} {old}")
    await chief.wait_invite(portal)
    await chief.join(portal)
    new = world.letta.add_agent("Twin anew")
    await here.ask(f"rebind {old} {new}", "is still in Letta")
    world.letta.remove_agent(old)
    await here.ask("sync --full", "Every room was looked at too")
    line = await here.confirmed(f"rebind {old} {new}", "would get the place of")
    report = await here.job(line)
    assert await follow(chief, report) == portal
    asked = await chief.say(portal, "who are you?")
    await chief.wait_message(portal, world.puppet(old), "who are you?", after=asked)
    assert world.bodies(new) == ["who are you?"]
    again = await here.ask(line)
    assert "(job " not in again.body and "To do it" not in again.body, again.body


async def test_a_new_space_is_not_made_while_there_is_one(stage: Stage) -> None:
    before = (await stage.chief.client.room_resolve_alias(stage.world.space_alias)).room_id
    await stage.here.ask("sync --new-space", "No other space was made")
    assert (await stage.chief.client.room_resolve_alias(stage.world.space_alias)).room_id == before


@pytest.mark.full
async def test_letta_away_is_told_once_and_its_return_once(stage: Stage) -> None:
    """What a minute would bring about is brought about by making the alarm older."""
    world, here = stage.world, stage.here
    before = await here.ask("ping")
    world.letta.kill()

    async def up() -> bool:
        stage.change("UPDATE alarm SET since = since - 61 WHERE cleared_at IS NULL")
        return here.count("⚠️ Letta cannot be reached.") > 0

    await until(up, "Letta's absence is not told", 40)
    await here.ask("ping", "Letta: ")
    await here.ask("status", "What is wrong now")
    await here.ask("doctor", "→")
    answer = await here.ask("summon Late --model no/such")
    assert answer.body
    await world.letta.start()

    async def back() -> bool:
        stage.change("UPDATE alarm SET cleared_at = cleared_at - 21 WHERE cleared_at IS NOT NULL")
        return here.count("Letta can be reached again") > 0

    await until(back, "Letta's return is not told", 40)
    assert [here.count("⚠️ Letta cannot be reached."), here.count("✅ Letta can be reached again")] == [1, 1]
    await stage.managing(stage.deputy).said("Letta can be reached again", after=before.event_id)


async def test_cleanup(stage: Stage) -> None:
    """A room in which only the bot is left, and whatever other bridges have left here."""
    talk = await stage.dm(stage.alice)
    await stage.alice.leave(talk.room)
    preview = await stage.here.ask("cleanup", seconds=60)
    while "nothing to clean up" not in preview.body:
        line = await stage.here.confirmed("cleanup", "To do it")
        await stage.here.ask("cleanup --confirm 0000", "That is not what has to be typed")
        await stage.here.job(line, seconds=120)
        preview = await stage.here.ask("cleanup", seconds=60)
    stage.worked.add("cleanup")


async def test_jobs_lists_what_was_done(stage: Stage) -> None:
    listed = await stage.here.ask("jobs --all", "Summoning Ivo", works=True)
    number = re.search(r"`(\d+)` Summoning Ivo", listed.body)
    assert number
    await stage.here.ask(f"jobs {number[1]}", "✅")
    await stage.here.ask("jobs 99999", "There is no job 99999")
    await (await stage.dm(stage.alice)).ask(f"jobs {number[1]}", "There is no job")


async def test_reset(stage: Stage) -> None:
    """The last: everything is given up and made anew; Letta's agents stay."""
    agents = set(stage.world.letta.agents)
    here = stage.here
    line = await here.confirmed("reset", "would be given up")
    await here.ask(f"reset --confirm 0000 {stage.world.domain}", "That is not what has to be typed")
    stage.chief.client.invited_rooms.clear()
    await here.person.say(here.room, here.prefix + line)
    await stage.chief.wait(
        lambda: any(r.name == "Letta Bridge" for r in stage.chief.client.invited_rooms.values()),
        "an invitation to a new management room",
        90,
    )
    assert set(stage.world.letta.agents) == agents
    stage.worked.add("reset")


async def test_every_command_was_seen_to_work(stage: Stage) -> None:
    assert {command.name for command in COMMANDS} - stage.worked == set()
