"""Owners and despawned agents after a restore or a lost database: the rooms' own marks tell both."""

from __future__ import annotations

from pathlib import Path

import pytest

from letta_bridge.jobs import engine as engine_module
from letta_bridge.mirror.maker import PORTAL_STATE
from letta_bridge.mirror.rebuild import rebuild
from letta_bridge.testing.fake_homeserver import Person
from letta_bridge.testing.fake_homeserver.accounts import Requester
from letta_bridge.testing.fake_letta import Behaviour

from .life_kit import ADMIN, carried_out, content, summoned
from .test_backup_since import heard, lose_all, notices, quiet, saved
from .test_despawn import archived, row_of, with_ada
from .test_rebuild import _lost
from .world import BOT, DOMAIN, World, settled, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses shorter than in life."""
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 0.05)


def _dismissed(world: World, room: str | None) -> bool:
    return content(world.hs, str(room), PORTAL_STATE).get("dismissed") is True


async def _rows(world: World, *wanted: tuple[str, str, str, bool]) -> None:
    """Wait until the agents' rows say: id, owner, state, whether it was dismissed."""

    async def as_wanted() -> bool:
        rows = [await row_of(world, agent_id) for agent_id, *_ in wanted]
        return [(row.agent_id, row.owner, row.state, row.dismissed) for row in rows] == list(wanted)

    async def all_known() -> bool:
        assert world.bridge is not None
        return {row.agent_id for row in await world.bridge.agents.all()} >= {agent_id for agent_id, *_ in wanted}

    await until(all_known, 20.0, why="not known again")
    await until(as_wanted, 20.0, why="the rows say something else")


async def test_a_lost_database_leaves_owners_and_who_was_despawned(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    _, ada = await with_ada(world)
    basil = await summoned(world, "summon Basil")
    await carried_out(world, "despawn Basil")
    assert _dismissed(world, basil.portal_room) and not _dismissed(world, ada.portal_room)
    await world.hs.wait_pushed()
    await _lost(world, tmp_path, listed=True)
    await _rows(world, (ada.agent_id, ADMIN, "active", False), (basil.agent_id, ADMIN, "archived", True))
    await until(lambda: not world.hs.hs.accounts.users[basil.mxid].profile.get("displayname"), 20.0)
    await settled(world)
    archived(world, basil)
    assert (await row_of(world, ada.agent_id)).origin == "summoned"

    job, text = await carried_out(world, f"recall {basil.agent_id}")
    assert job.state == "done", text
    assert not _dismissed(world, basil.portal_room)
    await _lost(world, tmp_path, listed=True)
    await _rows(world, (ada.agent_id, ADMIN, "active", False), (basil.agent_id, ADMIN, "active", False))


async def test_a_restored_database_learns_owners_and_despawns_from_the_rooms(sqlite_world: World) -> None:
    world = sqlite_world
    await with_ada(world)
    ada = await summoned(world, "summon Cleo")
    path = await saved(world)
    basil = await summoned(world, "summon Basil")
    await carried_out(world, "despawn Cleo")
    await quiet(world)
    await lose_all(world, path)
    await world.start()
    await _rows(world, (ada.agent_id, ADMIN, "archived", True), (basil.agent_id, ADMIN, "active", False))
    await settled(world)
    archived(world, ada)


async def test_rebuild_writes_what_a_row_lacks_and_says_what_differs(sqlite_world: World) -> None:
    world = sqlite_world
    _, ada = await with_ada(world)
    bridge = world.bridge
    assert bridge is not None
    await bridge.agents.update(ada.agent_id, owner="", origin="letta")
    seen = await rebuild(bridge.desk, dry_run=True)
    assert seen.told == [ada.agent_id] and (await row_of(world, ada.agent_id)).owner == ""
    done = await rebuild(bridge.desk, dry_run=False)
    assert (done.told, done.conflicts) == ([ada.agent_id], [])
    row = await row_of(world, ada.agent_id)
    assert (row.owner, row.origin) == (ADMIN, "summoned")
    assert (await rebuild(bridge.desk, dry_run=False)).told == []
    await bridge.agents.update(ada.agent_id, owner=f"@bob:{DOMAIN}")
    (conflict,) = (await rebuild(bridge.desk, dry_run=False)).conflicts
    assert ADMIN in conflict and "@bob" in conflict
    assert (await row_of(world, ada.agent_id)).owner == f"@bob:{DOMAIN}"


async def test_only_the_bots_own_word_counts(sqlite_world: World) -> None:
    """Whoever was given the power to set the mark cannot make themselves the owner."""
    world = sqlite_world
    admin, ada = await with_ada(world)
    bridge = world.bridge
    assert bridge is not None
    room = world.hs.hs.rooms[str(ada.portal_room)]
    levels = room.content("m.room.power_levels")
    raised = {**levels, "users": {**levels["users"], ADMIN: 100}}
    world.hs.hs.append(room, Requester(BOT), "m.room.power_levels", raised, state_key="")
    await bridge.agents.update(ada.agent_id, owner="", origin="letta")
    mark = {**room.content(PORTAL_STATE), "owner": f"@mallory:{DOMAIN}", "dismissed": True}
    world.hs.hs.append(room, Requester(admin.mxid), PORTAL_STATE, mark, state_key="")
    await rebuild(bridge.desk, dry_run=False)
    await settled(world)
    row = await row_of(world, ada.agent_id)
    assert (row.owner, row.dismissed) == ("", False)


async def test_a_run_in_the_room_of_an_agent_summoned_since_is_followed(sqlite_world: World) -> None:
    """The backup knows neither agent nor room: its conversation is the agent's main one all the same."""
    world = sqlite_world
    admin: Person
    admin, _ = await with_ada(world)
    path = await saved(world)
    basil = await summoned(world, "summon Basil")
    room = str(basil.portal_room)
    await admin.wait_joined(room, ADMIN)
    words = " ".join(f"word{number}" for number in range(40))
    world.letta.script(basil.agent_id, Behaviour(text=words, delay=0.1))
    await admin.send(room, "slow")

    def shown() -> list[str]:
        return [m.body for m in admin.messages(room) if m.sender == basil.mxid and m.msgtype == "m.text"]

    await until(lambda: any(text.startswith("word0") for text in shown()), 20.0)
    before = len(notices(admin, room))
    await lose_all(world, path)
    assert world.letta.turns(basil.agent_id)[-1].outcome == "running"
    await world.start()
    await until(lambda: any("word39" in text for text in shown()), 30.0, why="not shown")
    await quiet(world)
    assert sum("word39" in text for text in shown()) == 1
    assert len(notices(admin, room)) == before
    assert heard(world, basil.agent_id) == ["slow"]
