"""What the general commands say and do."""

from __future__ import annotations

import re
from typing import Any

from letta_bridge.testing.fake_homeserver import Person

from .command_kit import asked, bot_room
from .world import World, notices, settled, until


async def started(world: World, *names: str, **overrides: Any) -> tuple[Person, str]:
    for name in names or ("Ada",):
        world.letta.add_agent(name)
    admin = await world.hs.person("admin")
    await world.start(management__rooms=False, **overrides)
    await world.mirrored()
    return admin, await bot_room(world, admin)


async def test_agents_are_found_paged_and_linked(sqlite_world: World) -> None:
    admin, room = await started(sqlite_world, *(f"Agent {number:02}" for number in range(54)), "Odd [one](x)")
    answer = await asked(admin, room, "agents")
    assert answer.startswith("55 agents:")
    assert answer.count("matrix.to/#/@letta_") == 50
    assert "Page 1 of 2; `agents --page 2` shows the next." in answer
    assert (await asked(admin, room, "agents --page 2")).count("matrix.to/#/@letta_") == 5
    assert "There is no page 3" in await asked(admin, room, "agents --page 3")
    assert "One agent:" in await asked(admin, room, "agents ODD [one]")
    assert "None of the 55 agents has that" in await asked(admin, room, "agents nobody")


async def test_an_agent_in_full_for_its_owner_and_less_for_others(world: World) -> None:
    admin, room = await started(world, "Ada", "Adam")
    alice = await world.hs.person("alice")
    hers = await bot_room(world, alice)
    answer = await asked(admin, room, "agent Ada")
    for part in (
        "Letta id",
        "Matrix id",
        "state: active",
        "model:",
        "tags:",
        "owner: nobody",
        "waiting: 0",
        "last turn",
    ):
        assert part in answer
    less = await asked(alice, hers, "agent ada")
    assert "Letta id" in less
    assert "waiting" not in less
    ada = next(row for row in await world.bridge.agents.all() if row.name == "Ada")  # type: ignore[union-attr]
    for name in (ada.agent_id, ada.mxid, f"https://matrix.to/#/{ada.mxid}", f"#{ada.mxid[1:]}"):
        assert answer.splitlines()[0] in await asked(admin, room, f"agent {name}")
    assert "2 agents fit `Ad`" in await asked(admin, room, "agent Ad")
    assert "Did you mean `Ada`" in await asked(admin, room, "agent Aida")


async def test_open_is_one_chat_per_person_and_agent(world: World) -> None:
    admin, room = await started(world)
    alice = await world.hs.person("alice")
    hers = await bot_room(world, alice)
    assert "You are invited to a [direct chat]" in await asked(alice, hers, "open ada")
    direct = await alice.wait_invite()
    assert (await alice.get_state(hers, "m.room.create")) is not None
    assert "There is a [direct chat]" in await asked(alice, hers, "open ada")
    await alice.join(direct)
    await alice.send(direct, "hello")
    await alice.wait_message(direct, sender=next(world.puppet(agent) for agent in world.letta.agents), timeout=15)
    assert "Only administrators can open a chat for somebody else" in await asked(
        alice, hers, f"open ada --user {admin.mxid}"
    )
    assert f"{alice.mxid}" not in await asked(alice, hers, "open ada")
    assert "There is a" in await asked(admin, room, f"open ada --user {alice.mxid}")
    assert "may not talk to" in await asked(admin, room, "open ada --user @eve:elsewhere.test")


async def test_status_is_complete(world: World) -> None:
    admin, room = await started(world)
    answer = await asked(admin, room, "status")
    for part in (
        "is ready",
        "Letta 0.16",
        "database",
        "homeserver, from here",
        "homeserver, to here",
        "agents: 1 active",
    ):
        assert part in answer, answer
    for part in ("agents: 1 active", "rooms: 1 portal", "1 direct", "to be decided", "jobs: 0", "dead letters: 0"):
        assert part in answer, answer
    await asked(admin, room, "pause all a loop was seen")
    answer = await asked(admin, room, "status")
    assert f"**Paused**: everything (a loop was seen), by {admin.mxid}" in answer
    assert "`resume all` ends it" in answer
    answer = await asked(admin, room, "agents")
    assert answer.startswith("All agents are paused.")
    answer = await asked(admin, room, "agent Ada")
    assert "state: active, paused" in answer
    assert f"everything is paused by {admin.mxid}" in answer
    await asked(admin, room, "resume all")
    await asked(admin, room, "pause Ada")
    assert " · paused" in await asked(admin, room, "agents")
    await world.letta.stop()
    await asked(admin, room, "ping")
    answer = await asked(admin, room, "status")
    assert "Letta does not work" in answer
    assert "Letta does not say its version" in answer


async def test_the_space_is_no_direct_chat_while_there_are_no_agents(sqlite_world: World) -> None:
    admin = await sqlite_world.hs.person("admin")
    bridge = await sqlite_world.start(management__rooms=False, mirror__invite=[admin.mxid])
    await until(lambda: bridge.desk.directory.space_room, why="no space")
    room = await bot_room(sqlite_world, admin)
    assert "1 direct" in await asked(admin, room, "status"), "the one that this is asked in"
    assert " · space · " in await asked(admin, room, "rooms")


async def test_rooms_and_users(sqlite_world: World) -> None:
    world = sqlite_world
    admin, room = await started(world)
    alice = await world.hs.person("alice")
    agent = next(iter(world.letta.agents))
    direct = await world.dm(alice, agent, "hello")
    await alice.wait_message(direct, sender=world.puppet(agent), timeout=15)
    answer = await asked(admin, room, "rooms")
    assert "portal · Ada" in answer
    assert f"direct · Ada · {alice.mxid}" in answer
    answer = await asked(admin, room, "rooms --kind portal")
    assert answer.startswith("1 room:")
    assert "Did you mean `direct`" in await asked(admin, room, "rooms --kind direkt")
    answer = await asked(admin, room, "permissions grant @bob:test.local owner Ada")
    assert "`owner` is none of `user`, `admin`, `none`" in answer
    assert "Did you mean" not in answer, "it would shut Bob out"
    users = await asked(admin, room, "users")
    assert re.search(rf"`{alice.mxid}`: user, 1 room, last message \d+ m?s ago", users)
    assert f"`{admin.mxid}`: admin, 1 room, last message never" in users


async def test_export_in_a_room_is_a_file(world: World) -> None:
    admin, room = await started(world)
    agent = next(iter(world.letta.agents))
    direct = await world.dm(admin, agent)
    await admin.send(direct, "good morning")
    await admin.wait_message(direct, sender=world.puppet(agent), timeout=15)
    await admin.send(room, "export Ada")
    event = await admin.wait_for(room, lambda timeline: next((e for e in timeline if _is_file(e)), None), 15)
    assert event["content"]["body"].endswith(".jsonl")
    assert event["content"]["url"].startswith("mxc://")
    assert event["content"]["info"]["size"] > 100
    assert "2 messages" in notices(admin, room)[-1].body
    assert "no such messages" in await asked(admin, room, "export here --since 0s")


def _is_file(event: dict[str, Any]) -> bool:
    return bool(event["content"].get("msgtype") == "m.file")


async def test_catchup_reads_rooms_back(sqlite_world: World) -> None:
    admin, room = await started(sqlite_world)
    answer = await asked(admin, room, "catchup")
    assert re.match(r"\d+ rooms will be read back", answer)
    assert "1 room will be read back" in await asked(admin, room, "catchup here")
    bridge = sqlite_world.bridge
    assert bridge is not None

    async def no_gaps() -> bool:
        return not await bridge.rooms.gaps()

    await until(no_gaps)
    await settled(sqlite_world)
    assert "Pong" in await asked(admin, room, "ping")


async def test_doctor_says_what_to_do(sqlite_world: World) -> None:
    admin, room = await started(sqlite_world)
    bridge = sqlite_world.bridge
    assert bridge is not None
    answer = await asked(admin, room, "doctor --all")
    assert "✅ homeserver" in answer
    assert "✅ Letta" in answer
    await bridge.db.write(lambda conn: bridge.desk.alarms.raise_(conn, "test", "The moon is down."))
    row = (await bridge.agents.all())[0]
    await bridge.agents.update(row.agent_id, error="it does not fit")
    await _kill_a_letter(sqlite_world, admin, age=90000)
    answer = await asked(admin, room, "doctor")
    assert "The moon is down." in answer
    assert "Ada cannot be mirrored: it does not fit" in answer
    assert "1 dead letter older than a day" in answer
    assert "✅" not in answer
    await bridge.db.write(lambda conn: bridge.desk.alarms.raise_(conn, "test", "The moon is down.\n\nLook up."))
    for command in ("doctor", "status"):
        assert "The moon is down. Look up. (for" in await asked(admin, room, command), "one line of a list"
    for agent in list(sqlite_world.letta.agents):
        sqlite_world.letta.remove_agent(agent)
    answer = await asked(admin, room, "doctor")
    assert "Letta lists none, and the bridge's database knows 1" in answer
    assert "create one" not in answer, "that would be in the wrong Letta"


async def _kill_a_letter(world: World, person: Person, age: float = 0.0) -> str:
    """A message that came in and could not be decided; returns the room."""
    agent = next(iter(world.letta.agents))
    bridge = world.bridge
    assert bridge is not None
    room = await world.dm(person, agent)
    await settled(world)
    event = await person.send(room, "good morning")
    await settled(world)
    await bridge.db.write(
        lambda conn: conn.execute(
            "UPDATE inbox SET state = 'dead', decision = 'it broke', received_at = received_at - CAST($2 AS "
            "DOUBLE PRECISION) WHERE event_id = $1",
            event,
            age,
        )
    )
    return room


async def test_dead_letters_that_came_in(world: World) -> None:
    admin, room = await started(world)
    alice = await world.hs.person("alice")
    agent = next(iter(world.letta.agents))
    chat = await world.dm(alice, agent)
    await settled(world)
    await world.restart(permissions={admin.mxid: "admin"})
    event = await alice.send(chat, "good morning")  # nobody answers her now
    await alice.wait_message(chat, sender=world.puppet(agent))
    bridge = await world.restart(permissions={admin.mxid: "admin", alice.mxid: "user"})
    await bridge.db.write(
        lambda conn: conn.execute("UPDATE inbox SET state = 'dead', decision = 'it broke' WHERE event_id = $1", event)
    )
    answer = await asked(admin, room, "dead")
    number = re.search(r"`(i\d+)`", answer)
    assert number is not None
    assert f"from {alice.mxid} in `{chat}`: it broke" in answer
    assert "good morning" not in answer
    assert f"Tried again: `{number[1]}`" in await asked(admin, room, f"retry {number[1]}")
    await until(lambda: any(m.msgtype == "m.text" and m.sender == world.puppet(agent) for m in alice.messages(chat)))
    assert "There is no dead letter" in await asked(admin, room, f"retry {number[1]}")


async def test_dead_turns_are_queued_again_only_where_that_is_certain(world: World) -> None:
    admin, room = await started(world)
    agent = next(iter(world.letta.agents))
    bridge = world.bridge
    assert bridge is not None
    await asked(admin, room, "pause Ada")
    chat = await world.dm(admin, agent)
    await admin.send(chat, "first")
    await settled(world)
    turn = await bridge.db.fetchval("SELECT MAX(turn_id) FROM turn")
    await bridge.db.write(lambda conn: bridge.turns.close(conn, turn, "dead", "the model does not exist"))
    await bridge.db.write(lambda conn: conn.execute("UPDATE turn SET accepted_at = 1.0 WHERE turn_id = $1", turn))
    await asked(admin, room, "resume Ada")
    answer = await asked(admin, room, f"retry t{turn}")
    assert "the agent may have read it" in answer
    await bridge.db.write(lambda conn: conn.execute("UPDATE turn SET accepted_at = NULL WHERE turn_id = $1", turn))
    assert "the model does not exist" in await asked(admin, room, "dead")
    assert f"Tried again: `t{turn}`" in await asked(admin, room, "retry all")
    await admin.wait_message(chat, sender=world.puppet(agent), timeout=15)


async def test_dead_letters_that_were_to_go_out_go_behind_the_others(world: World) -> None:
    admin, room = await started(world)
    bridge = world.bridge
    assert bridge is not None
    await asked(admin, room, "version")

    async def sent() -> Any:
        return await bridge.db.fetchval("SELECT MIN(seq) FROM outbox WHERE room_id = $1 AND state = 'sent'", room)

    seq = await until(sent)
    await bridge.db.write(
        lambda conn: conn.execute("UPDATE outbox SET state = 'dead', error = 'too big' WHERE seq = $1", seq)
    )
    assert f"`o{seq}` to be sent" in await asked(admin, room, "dead")
    assert f"Tried again: `o{seq}`" in await asked(admin, room, f"retry o{seq}")

    async def again() -> bool:
        rows = await bridge.db.fetch("SELECT seq FROM outbox WHERE state IN ('dead', 'pending')")
        newest = await bridge.db.fetchval("SELECT MAX(seq) FROM outbox")
        return not rows and newest > seq

    await until(again)


async def test_drop_all_wants_to_be_confirmed_once_by_the_same_person(world: World) -> None:
    admin, room = await started(world)
    bridge = world.bridge
    assert bridge is not None
    await _kill_a_letter(world, admin)
    preview = await asked(admin, room, "drop all")
    assert "1 dead letter" in preview
    line = re.search(r"`!letta (drop all --confirm [0-9a-f]{4})`", preview)
    assert line is not None
    assert "Nothing was done" in await asked(admin, room, "drop all --confirm 0000x")
    assert await bridge.db.fetchval("SELECT COUNT(*) FROM inbox WHERE state = 'dead'") == 1
    assert "Cleared away: `i" in await asked(admin, room, line[1])
    assert await bridge.db.fetchval("SELECT COUNT(*) FROM inbox WHERE state = 'dead'") == 0
    await _kill_a_letter(world, admin)
    assert "Nothing was done" in await asked(admin, room, line[1]), "it counts once"
    number = await bridge.db.fetchval("SELECT seq FROM inbox WHERE state = 'dead'")
    assert f"Cleared away: `i{number}`" in await asked(admin, room, f"drop i{number}")


async def test_jobs_are_seen_by_admins_and_by_who_began_them(sqlite_world: World) -> None:
    admin, room = await started(sqlite_world)
    alice = await sqlite_world.hs.person("alice")
    hers = await bot_room(sqlite_world, alice)
    await asked(admin, room, "summon Bea")
    await until(lambda: any("job 1" in notice.body for notice in notices(admin, room)))
    bridge = sqlite_world.bridge
    assert bridge is not None

    async def over() -> bool:
        return not await bridge.desk.jobs.newest(10, only_open=True)

    await until(over, 20)
    assert "`1`" in await asked(admin, room, "jobs --all")
    assert "✅" in await asked(admin, room, "jobs 1")
    assert "There is no job 1" in await asked(alice, hers, "jobs 1")
    assert "is no number" in await asked(admin, room, "jobs one")


async def test_a_job_is_one_message_that_is_edited(world: World) -> None:
    admin, room = await started(world)
    before = len(notices(admin, room))
    await admin.send(room, "summon Bea")
    await until(lambda: any("[" in notice.body and "Bea" in notice.body for notice in notices(admin, room)), 20)
    assert "Pong" in await asked(admin, room, "ping")
    assert len(notices(admin, room)) == before + 2, "the report and the answer to ping"


async def test_a_job_where_the_bot_is_not(sqlite_world: World) -> None:
    """The report is the bot's; an agent's user says where to look."""
    world = sqlite_world
    admin, room = await started(world)
    agent = next(iter(world.letta.agents))
    chat = await world.dm(admin, agent)
    answer = await asked(admin, chat, "!letta summon Bea")
    assert "`!letta jobs 1` shows how far it is." in answer
    await until(lambda: any(one.name == "Bea" for one in world.letta.agents.values()), 20)
    await settled(world)
    assert "There are no dead letters" in await asked(admin, room, "dead")
    assert len(notices(admin, chat)) == 1
