"""FakeHomeserver answers like a real Synapse: one script of calls runs against both, the transcripts are equal.

Compared are status, errcode and the whole body, with ids and times replaced by placeholders; not the wording of
errors. What Tuwunel does differently cannot be compared here: no Tuwunel package can be installed.
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from ruamel.yaml import YAML

from letta_bridge.testing.fake_homeserver import FakeHomeserver

from . import honesty_accounts as accounts
from . import honesty_rooms as rooms
from .honesty_kit import Inbox, Script

pytestmark = [pytest.mark.e2e, pytest.mark.full]

SCRIPTS = [
    accounts.who_is_who,
    accounts.devices_and_profiles,
    accounts.deactivation,
    accounts.the_rest_of_the_server,
    accounts.creating("11"),
    accounts.creating("12"),
    accounts.membership("11"),
    accounts.membership("12"),
    accounts.no_such_room,
    accounts.restricted_rooms,
    accounts.dedupe(False),
    accounts.dedupe(True),
    accounts.transaction_ids_over_a_restart,
    rooms.what_may_be_sent,
    rooms.relations,
    rooms.power,
    rooms.aliases,
    rooms.rooms_given_up,
    rooms.names_that_nobody_has,
    rooms.history("shared"),
    rooms.history("invited"),
    rooms.history("joined"),
    rooms.notifications,
    rooms.spaces,
    rooms.what_is_pushed,
]


async def _transcript(
    script: Callable[[Script], Awaitable[None]],
    server: Any,
    as_token: str,
    inbox: Inbox,
    people: Callable[[str], Awaitable[str]],
) -> list[str]:
    tag = secrets.token_hex(4)
    tokens = {name: await people(f"{name}{tag}") for name in ("alice", "bob", "carol")}
    async with aiohttp.ClientSession() as http:
        run = Script(server.url, server.domain, as_token, http, inbox, tokens, tag, server.restart)
        await run.register("bot", "letta_g", "letta_h")
        await run.call("bot", "PUT", "profile", run.user("bot"), "displayname", body={"displayname": "Bot"})
        await script(run)
    return run.lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
async def test_the_fake_answers_like_synapse(script: Callable[[Script], Awaitable[None]], synapse: Any) -> None:
    registration = YAML(typ="safe").load(synapse.registration.read_text())

    async def real_person(name: str) -> str:
        return str((await synapse.server.register(name)).access_token)

    inbox = Inbox()
    await inbox.start(synapse.appservice_port)
    try:
        real = await _transcript(script, synapse.server, registration["as_token"], inbox, real_person)
    finally:
        await inbox.stop()
    async with FakeHomeserver(registration, domain=synapse.domain) as hs:

        async def fake_person(name: str) -> str:
            return (await hs.person(name)).access_token

        inbox = Inbox()
        hs.appservice_url = f"http://127.0.0.1:{await inbox.start(0)}"
        try:
            fake = await _transcript(script, hs, registration["as_token"], inbox, fake_person)
        finally:
            await inbox.stop()
    assert fake == real
