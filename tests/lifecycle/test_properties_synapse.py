"""The same stories with a real Synapse: it, too, has every room once, and nobody is invited twice.

What fails here is the network between the two: requests and answers that are lost.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from ruamel.yaml import YAML

from letta_bridge.ids import MXID
from letta_bridge.matrix.homeserver import Homeserver
from letta_bridge.mirror.settings import MirrorSettings
from letta_bridge.testing.fake_letta import FakeLetta
from tests.conftest import RealSynapse

from ..e2e.honesty_kit import Inbox
from ..integration.mirror_world import open_database
from .model import Model
from .places import PEOPLE, SynapsePlace
from .rig import Rig
from .story import Act, random_story

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def place(synapse: RealSynapse) -> AsyncIterator[SynapsePlace]:
    """The session's Synapse, without a space."""
    registration = YAML(typ="safe").load(synapse.registration.read_text())
    inbox, tag, domain = Inbox(), secrets.token_hex(4), synapse.domain
    bot = MXID(f"@{registration['sender_localpart']}:{domain}")
    await inbox.start(synapse.appservice_port)
    homeserver = Homeserver(synapse.url, domain, registration["as_token"], bot)
    try:
        await homeserver.bot.register()
        await homeserver.bot.ping(registration["id"], tag)  # it may have found nobody here, and wait
        async with aiohttp.ClientSession() as http:
            made = SynapsePlace(synapse.url, domain, bot, registration["as_token"], http, inbox)
            people = {name: await synapse.server.register(f"{name}{tag}") for name in PEOPLE}
            await made.begin(people, await synapse.server.register(f"root{tag}", admin=True))
            yield made
    finally:
        await homeserver.close()
        await inbox.stop()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [31, 0, *(pytest.param(seed, marks=pytest.mark.full) for seed in (32, 33, 34))])
async def test_any_story(place: SynapsePlace, tmp_path: Path, seed: int) -> None:
    seed = seed or random.randrange(1 << 32)
    story = random_story(seed, 15, without=["add_many"])
    print(f"seed {seed}: [{', '.join(map(str, story))}]")
    people = tuple(place.person(name) for name in PEOPLE)
    settings = MirrorSettings(invite=people, room_version="11" if seed % 2 else None, concurrency=4)
    async with FakeLetta() as letta, open_database(tmp_path, "sqlite:bridge.db") as db:
        rig = Rig(place, letta, db, settings)
        try:
            model = Model(rig, tag=secrets.randbelow(1 << 32))
            for name in ("Ada", "Bob", "Bob"):
                model.stage.add(name)
            await model.tell([Act("pass"), *story])
        finally:
            await rig.close()
