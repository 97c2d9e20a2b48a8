"""Whatever happens, in whatever order: nothing is made twice, nothing is taken away on uncertain evidence, and when all
is quiet the mirror equals Letta.

A failure prints its story; :func:`test_told_again` is the place to play it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from letta_bridge.mirror.settings import MirrorSettings
from letta_bridge.testing.fake_homeserver import FakeHomeserver
from letta_bridge.testing.fake_letta import FakeLetta

from ..integration.mirror_world import DOMAIN, open_database
from .model import Model
from .places import PEOPLE, FakePlace
from .rig import Rig
from .story import Act, random_story, weighted

_LONGEST = 14
acts = st.builds(Act, st.sampled_from(weighted()), st.integers(0, 9), st.integers(0, 9), st.booleans())


@contextlib.asynccontextmanager
async def a_model(folder: Path, uri: str, flavour: Any = "synapse", version: str | None = None) -> AsyncIterator[Model]:
    """A mirror between two imitations, with four agents already there."""
    async with (
        FakeLetta() as letta,
        FakeHomeserver(flavour=flavour, domain=DOMAIN) as fake,
        open_database(folder, uri) as db,
    ):
        place = await FakePlace.new(fake)
        people = tuple(place.person(name) for name in PEOPLE)
        rig = Rig(place, letta, db, MirrorSettings(invite=people, room_version=version, concurrency=4))
        try:
            model = Model(rig)
            for name in ("Ada", "Bob", "Bob", ""):
                model.stage.add(name)
            yield model
        finally:
            await rig.close()


async def _play(story: list[Act], uri: str = "sqlite:bridge.db", **more: Any) -> None:
    with TemporaryDirectory() as folder:
        async with a_model(Path(folder), uri, **more) as model:
            await model.tell([Act("pass"), *story])


def _told(story: list[Act]) -> str:
    return "[" + ", ".join(map(str, story)) + "]"


@settings(max_examples=40, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(st.lists(acts, min_size=1, max_size=_LONGEST), st.sampled_from([None, "11"]))
@pytest.mark.timeout(180)
def test_any_story(story: list[Act], version: str | None) -> None:
    note(_told(story))
    asyncio.run(_play(story, version=version))


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("flavour", ["synapse", "tuwunel"])
def test_many_long_stories(flavour: str) -> None:
    for _ in range(100):
        seed = random.randrange(1 << 32)
        story = random_story(seed, 40)
        print(f"seed {seed}: {_told(story)}")
        asyncio.run(_play(story, flavour=flavour, version="11" if seed % 2 else None))


@pytest.mark.parametrize("seed", [11, 12, 13])
async def test_on_tuwunel(tmp_path: Path, seed: int) -> None:
    async with a_model(tmp_path, "sqlite:bridge.db", flavour="tuwunel") as model:
        await model.tell(random_story(seed, 15))


@pytest.mark.postgres
@pytest.mark.parametrize("seed", [21, 22, 23, 0])
async def test_on_postgres(tmp_path: Path, postgres_url: str, seed: int) -> None:
    seed = seed or random.randrange(1 << 32)
    story = random_story(seed, 15)
    print(f"seed {seed}: {_told(story)}")
    async with a_model(tmp_path, postgres_url) as model:
        await model.tell(story)


TOLD: dict[str, list[Act]] = {
    "an admin says yes to another Letta while somebody was missing for longer than a day": [
        Act("remove", 5, 7),
        Act("remove_many", 8, 7),
        Act("day_alone", 5, 4, False),
        Act("other_letta", 0, 3),
    ],
    "a room whose making was never heard of, of an agent that went meanwhile": [
        Act("matrix_fault", 7, 8),
        Act("add", 8, 6),
        Act("remove", 9, 9),
    ],
    "an agent that is back, and hidden, when it would be archived": [
        Act("hide", 2, 4, False),
        Act("remove", 8, 2),
        Act("bring_back", 5, 3),
        Act("day", 7, 9),
    ],
    "all agents are gone, one of which was found hidden a moment before": [
        Act("remove", 9, 1),
        Act("hide", 5, 8, False),
        Act("day", 8, 1, False),
        Act("hide", 9, 5),
        Act("remove_many", 4, 9),
    ],
    "agents that went while everything was frozen, for longer than the grace": [
        Act("add_many", 4, 1),
        Act("other_letta", 8, 0),
        Act("add_many", 7, 5),
        Act("letta_short", 7, 8),
        Act("add", 4, 2),
        Act("confirm", 2, 7),
        Act("empty", 8, 7, False),
        Act("describe", 2, 1),
    ],
    "what was found to be another Letta does not say any more who it is": [
        Act("other_letta", 4, 9),
        Act("confirm", 5, 6),
        Act("add_many", 5, 3),
        Act("our_letta", 0, 3, False),
        Act("add", 6, 3),
        Act("letta_fault", 2, 5),
    ],
}


@pytest.mark.parametrize("story", TOLD.values(), ids=list(TOLD))
async def test_told_again(tmp_path: Path, story: list[Act]) -> None:
    """Stories in which something was wrong once."""
    async with a_model(tmp_path, "sqlite:bridge.db") as model:
        await model.tell([Act("pass"), *story])
