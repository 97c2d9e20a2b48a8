"""Every command of the table: with wrong arguments, without permission, twice; in a room and on the command line.

Whoever adds a command gets these tests with it. All of them share one running bridge.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from letta_bridge.commands.groups import TABLE
from letta_bridge.commands.table import Command, Need
from letta_bridge.testing.fake_homeserver import Person

from .command_kit import asked, bot_room, short_folder, through
from .world import BOT, DOMAIN, World, a_world, notices, settled

pytestmark = pytest.mark.asyncio(loop_scope="session")
EVERY = pytest.mark.parametrize("command", TABLE.commands, ids=lambda command: command.name.replace(" ", "-"))
BROKEN = "Something went wrong"
WRONG = "--no-such-option"


@dataclass
class Stage:
    """A bridge with the agent Scout, an admin, a person who may talk to agents, and one who may do nothing."""

    world: World
    admin: Person
    alice: Person
    mallory: Person
    admin_room: str
    alice_room: str
    together: str
    socket: Path

    async def ctl(self, *words: str) -> dict[str, object]:
        """The reply on the command line."""
        lines = await through(self.socket, *words)
        reply = lines[-1]["reply"]
        assert isinstance(reply, dict)
        return reply


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    with short_folder() as folder:
        async with a_world(tmp_path_factory.mktemp("table"), "sqlite:bridge.db") as world:
            scout = world.letta.add_agent("Scout")
            admin, alice = await world.hs.person("admin"), await world.hs.person("alice", auto_join=True)
            mallory = await world.hs.person("mallory", auto_join=True)
            levels = {admin.mxid: "admin", alice.mxid: "user", f"@bob:{DOMAIN}": "user"}
            socket = folder / "ctl.sock"
            await world.start(permissions=levels, management__socket=str(socket), management__rooms=False)
            await world.mirrored()
            together = await admin.create_room(invite=[mallory.mxid, world.puppet(scout), BOT])
            for one in (mallory.mxid, world.puppet(scout), BOT):
                await admin.wait_joined(together, one)
            rooms = await bot_room(world, admin), await bot_room(world, alice)
            yield Stage(world, admin, alice, mallory, *rooms, together, socket)


def line(command: Command) -> str:
    """A use of the command that can be right, as its own examples show it."""
    return command.examples[0] if command.examples else command.name


@EVERY
async def test_it_is_described(command: Command) -> None:
    assert command.summary
    assert not command.summary.endswith(".")
    assert command.examples or not (command.args or command.options), "help shows how it is used"
    assert all(TABLE.find(example.split()) for example in command.examples)
    assert all(arg.required for arg, after in zip(command.args, command.args[1:], strict=False) if after.required)
    assert not any(arg.rest for arg in command.args[:-1])


@EVERY
async def test_wrong_arguments_are_answered_with_the_usage(stage: Stage, command: Command) -> None:
    answer = await asked(stage.admin, stage.admin_room, f"{command.name} {WRONG}")
    if command.only_ctl:
        assert "letta-bridge ctl" in answer
    else:
        assert "There is no option `--no-such-option`." in answer
        assert f"Usage: `{command.usage}`" in answer
    reply = await stage.ctl(*command.name.split(), WRONG)
    assert not reply["ok"]
    assert "There is no option" in str(reply["text"])
    if any(arg.required for arg in command.args):
        reply = await stage.ctl(*command.name.split())
        assert not reply["ok"]
        assert f"`{command.name}` needs" in str(reply["text"])
    if not (command.args and command.args[-1].rest):
        reply = await stage.ctl(*command.name.split(), *("x" for _ in command.args), "x", "x", "x")
        assert not reply["ok"]
    assert command.name in str((await stage.ctl(*command.name.split(), "--help"))["text"])


@EVERY
async def test_who_may_nothing_is_told_nothing(stage: Stage, command: Command) -> None:
    before = len(notices(stage.mallory, stage.together))
    await stage.mallory.send(stage.together, f"!letta {line(command)}")
    await settled(stage.world)
    said = [notice.body for notice in notices(stage.mallory, stage.together)[before:]]
    assert all("You are not allowed" in text for text in said)
    waiting = await stage.world.bridge.desk.commands.open_lanes()  # type: ignore[union-attr]
    assert f"command:{stage.together}" not in waiting


@EVERY
async def test_a_person_who_is_no_admin(stage: Stage, command: Command) -> None:
    answer = await asked(stage.alice, stage.alice_room, line(command))
    assert BROKEN not in answer
    if command.only_ctl:
        assert "letta-bridge ctl" in answer
    elif command.need is Need.ADMIN:
        assert f"Only administrators of the bridge may use `{command.name}`" in answer
        assert "permissions" in answer, "and it says what would allow it"


@EVERY
async def test_twice_in_a_room(stage: Stage, command: Command) -> None:
    for _ in range(2):
        assert BROKEN not in await asked(stage.admin, stage.admin_room, line(command))


@EVERY
async def test_twice_on_the_command_line(stage: Stage, command: Command, tmp_path: Path) -> None:
    words = [word.strip('"') for word in line(command).split()]
    for _ in range(2):
        lines = await through(stage.socket, *words, cwd=str(tmp_path))
        reply = lines[-1]["reply"]
        assert BROKEN not in reply["text"]
        assert set(reply) <= {"text", "data", "ok", "file"}
