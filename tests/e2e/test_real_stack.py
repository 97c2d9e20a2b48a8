"""The real servers that the other tests stand on, alone: without the bridge."""

import asyncpg
import pytest

from letta_bridge.testing.person import NotSeen, Person
from letta_bridge.testing.stack.loopback import request_json


@pytest.mark.e2e
async def test_two_people_see_what_the_other_does(synapse) -> None:
    alice, bob = await synapse.server.register("stack_alice"), await synapse.server.register("stack_bob")
    async with (
        Person(synapse.url, alice.user_id, alice.access_token) as a,
        Person(synapse.url, bob.user_id, bob.access_token) as b,
    ):
        room = await a.create_dm(b.user_id)
        assert await b.wait_invite(a.user_id) == room
        await b.join(room)
        await a.wait_member(room, b.user_id)

        event = await a.say(room, "one", html="<b>one</b>")
        seen = await b.wait_message(room, sender=a.user_id)
        assert (seen.body, seen.html, seen.event_id) == ("one", "<b>one</b>", event)

        await a.edit(room, event, "two")
        await b.wait(lambda: seen.body == "two" and seen.edits == 1, "the edit")

        answer = await b.say(room, "three", thread=event, reply_to=event)
        shown = await a.wait_message(room, after=event)
        assert (shown.event_id, shown.thread, shown.reply_to) == (answer, event, event)

        await a.react(room, answer, "👍")
        await b.wait(lambda: b.rooms[room].find(answer).reactions == {"👍": {a.user_id}}, "the reaction")
        await a.redact(room, event)
        await b.wait(lambda: seen.redacted, "the redaction")
        assert [message.body for message in b.messages(room)] == ["three"]
        with pytest.raises(NotSeen, match="three"):
            await b.wait_message(room, where=lambda m: m.body == "never", seconds=0.1)


@pytest.mark.e2e
async def test_the_homeserver_tells_clients_not_to_encrypt_and_guards_the_namespace(synapse) -> None:
    well_known = request_json(f"{synapse.url}/.well-known/matrix/client")
    assert well_known["io.element.e2ee"] == {"default": False}
    with pytest.raises(Exception, match="M_EXCLUSIVE"):
        await synapse.server.register("letta_intruder")


@pytest.mark.postgres
async def test_each_test_has_a_database_of_its_own(postgres_url: str, postgres_server) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("create table only_here (id int)")
    finally:
        await connection.close()
    names = await postgres_server.run_sql("select datname from pg_database where datname like 'test_%'")
    assert names.splitlines() == [postgres_url.rpartition("/")[2]]


@pytest.mark.letta
async def test_the_real_letta_answers_by_the_script(letta_server) -> None:
    agent = request_json(
        f"{letta_server.url}/v1/agents/",
        {"name": "stack", "model": letta_server.model_handle, "memory_blocks": [{"label": "persona", "value": "x"}]},
    )
    sent = {"messages": [{"role": "user", "content": "#say exactly this"}]}
    answer = request_json(f"{letta_server.url}/v1/agents/{agent['id']}/messages", sent)
    assert [m["content"] for m in answer["messages"] if m["message_type"] == "assistant_message"] == ["exactly this"]
    assert any(entry["path"].endswith("/chat/completions") for entry in await letta_server.model.requests())
