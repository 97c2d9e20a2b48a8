"""Carries one command out, wherever it was asked: from what was written to its reply."""

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..db.agents import AgentRow
from ..db.meanings import Meanings
from ..db.rebinding import Rebinding
from ..errors import ABOUT_LETTA
from ..ids import AgentID, RoomID
from ..letta.errors import LettaError
from ..matrix.homeserver import HomeserverError
from ..mirror.trouble import MirrorError
from ..routing.permissions import Level
from . import allow, lookup, parse
from .call import Call
from .desk import Desk
from .help import about
from .readers import why_not_private
from .table import Command, CommandError, Need, Reply, Table
from .words import homeserver_words

if TYPE_CHECKING:
    from ..jobs.engine import Engine

log = logging.getLogger(__name__)

SECONDS = 30.0
"""What a command may take; what takes longer is a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What somebody asks. See :class:`~letta_bridge.commands.call.Call` for what the fields mean."""

    line: parse.Line
    who: str
    level: Level
    via: Literal["room", "ctl"]
    key: str
    room_id: RoomID
    thread_root: str = ""
    management: bool = True
    bot_here: bool = True
    cwd: Path = Path("/")
    """The folder in which the command line was used: where names of files begin."""


class Carrier:
    """Parses, asks for permission, and runs.

    Args:
        desk: what commands work with.
        engine: begins their jobs.
        table: every command.
        seconds: what one may take.
    """

    def __init__(self, desk: Desk, engine: "Engine", table: Table, seconds: float = SECONDS) -> None:
        self.desk = desk
        self.engine = engine
        self.table = table
        self._seconds = seconds

    async def carry_out(self, asked: Asked) -> Reply:
        """The reply. Whatever is wrong with the command, or fails in Letta or the homeserver, is told in it.

        Raises:
            Exception: it broke in a way nobody thought of, or the database failed.
        """
        command: Command | None = None
        try:
            command, rest = parse.find(self.table, asked.line)
            async with asyncio.timeout(None if command.only_ctl else self._seconds) as limit:
                reply = await self._run(command, rest, asked)
        except CommandError as error:
            reply = Reply(str(error), ok=False)
        except LettaError as error:
            reply = Reply(
                f"That did not work: {ABOUT_LETTA[error.kind]}. Try again later; `status` tells more.", ok=False
            )
        except HomeserverError as error:
            reply = Reply(f"That did not work: {homeserver_words(error)}.", ok=False)
        except MirrorError as error:
            reply = Reply(f"That did not work: {error}.", ok=False)
        except TimeoutError:
            if not limit.expired():
                raise
            what = " It may have been done in part: look before you repeat it." if command and command.changes else ""
            reply = Reply(f"That took longer than {self._seconds:.0f} s and was given up.{what}", ok=False)
        if command is not None and command.changes:
            extra = {"action": "command", "command": command.name, "who": asked.who, "via": asked.via, "ok": reply.ok}
            log.info("a command was carried out", extra=extra)
        return reply

    async def _run(self, command: Command, rest: parse.Line, asked: Asked) -> Reply:
        self._place(command, asked)
        try:
            given = parse.read(command, rest, self.table)
            if given.help:
                return Reply(about(command), data={"command": command.name, "usage": command.usage})
            if command.need is Need.ADMIN:  # before anything is asked for somebody who may not use it
                await self._permit(command, asked, {})
            meant = await self._meant(command, asked)
            given = replace(given, values={**given.values, **meant})
            values = await lookup.look_up(self.desk, given, asked.room_id, asked.who)
            if command.only_ctl and values.get("file"):
                values["file"] = str(asked.cwd / values["file"])
        except CommandError:
            if command.need is Need.ADMIN:  # how it is used helps nobody who may not use it
                await self._permit(command, asked, {})
            raise
        await self._permit(command, asked, values)
        await self._only_admins_read(command, asked)
        agents = {name: value.agent_id for name, value in values.items() if isinstance(value, AgentRow)}
        if agents and not meant and _may_come_again(command, asked):
            await Meanings(self.desk.db).keep(asked.key, agents)
        return await command.run(self.call(asked, command, values))

    async def _meant(self, command: Command, asked: Asked) -> dict[str, AgentID]:
        """The agents that the command meant when it was carried out before a crash: what it did may have changed their
        names. One that was rebound since is meant with its new id.
        """
        if not _may_come_again(command, asked):
            return {}
        meant, rebinding = await Meanings(self.desk.db).of(asked.key), Rebinding(self.desk.db)
        for name, agent_id in meant.items():
            if await self.desk.agents.get(agent_id) is None:
                meant[name] = await rebinding.successor(agent_id) or agent_id
        return meant

    def call(self, asked: Asked, command: Command, values: dict[str, Any]) -> Call:
        """What the command gets."""
        return Call(
            desk=self.desk,
            engine=self.engine,
            table=self.table,
            command=command,
            who=asked.who,
            level=asked.level,
            via=asked.via,
            key=asked.key,
            room_id=asked.room_id,
            thread_root=asked.thread_root,
            management=asked.management,
            args=values,
            bot_here=asked.bot_here,
        )

    def _place(self, command: Command, asked: Asked) -> None:
        if command.only_ctl and asked.via != "ctl":
            raise CommandError(
                f"`{command.name}` is for the bridge's machine: `letta-bridge ctl {command.usage}` there."
            )
        if command.private and not asked.management:
            raise CommandError(
                f"What `{command.name}` shows is not for everybody here. Use it in a direct chat with the bot "
                f"({self.desk.homeserver.bot_mxid}) or in a management room."
            )

    async def _permit(self, command: Command, asked: Asked, values: dict[str, Any]) -> None:
        refused = await allow.refusal(self.desk, command, asked.who, asked.level, values)
        if refused is not None:
            raise CommandError(refused)

    async def _only_admins_read(self, command: Command, asked: Asked) -> None:
        """What is private is not told where somebody reads it who is no administrator."""
        if not command.private or asked.via == "ctl":
            return
        if why := await why_not_private(self.desk, asked.room_id, asked.who):
            raise CommandError(
                f"What `{command.name}` shows is for administrators, and {why}. Use it in a direct chat with the bot "
                f"({self.desk.homeserver.bot_mxid})."
            )


def _may_come_again(command: Command, asked: Asked) -> bool:
    """Whether the same command may be carried out once more, after a crash."""
    return command.changes and asked.via == "room"
