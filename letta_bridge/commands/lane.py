"""The commands of one room, one after the other: the ``command:`` lanes."""

import hashlib
import logging

from ..db.commands import CommandRow
from ..db.database import Connection
from ..db.meanings import Meanings
from ..db.outbox import Outgoing
from ..delivery.outgoing import ReplyTarget, Voice, message, txn_id
from ..ids import CONTENT_KEY, JobID, RoomID
from ..lanes import Fence, FencedError
from ..matrix.homeserver import HomeserverError
from ..matrix.splitter import split
from . import allow, parse
from .carry import Asked, Carrier
from .table import CommandError, Reply
from .words import homeserver_words

log = logging.getLogger(__name__)

_TRIES = 3
_FIRST_PAUSE = 0.5
_PART_BYTES = 16 * 1024
KIND = "notice:command"


def command_lane(room_id: RoomID) -> str:
    """The lane in which the commands of a room are carried out."""
    return f"command:{room_id}"


def reference(event_id: str) -> str:
    """A short name of an event, under which the log has it."""
    return hashlib.sha256(event_id.encode("utf-8", "replace")).hexdigest()[:8]


class CommandLane:
    """Handler of ``command:`` lanes. A slow command holds up no message of its room, only its later commands."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._desk = carrier.desk

    async def handle(self, fence: Fence) -> float | None:
        """Carry out everything that the room of the lane has waiting."""
        room_id = RoomID(fence.lane.partition(":")[2])
        while not self._desk.lanes.closing:
            row = await self._desk.commands.head(room_id)
            if row is None:
                return None
            pause = await self._one(fence, row)
            if pause:
                return pause
        return None

    async def _one(self, fence: Fence, row: CommandRow) -> float:
        """Carry one out and answer it in one commit; seconds to wait if it broke and is tried again."""
        voice, bot_speaks = await self._voice(row.room_id)
        try:
            reply = await self._reply(row, bot_speaks)
            outs = [] if voice is None else await self._outs(row, voice, reply)
        except FencedError:
            raise
        except Exception:  # the boundary of a command: whatever broke, the next one of the room can be carried out
            extra = {"action": "command_failed", "reference": reference(row.event_id), "attempt": row.attempts + 1}
            log.exception("a command broke", extra=extra)
            if row.attempts + 1 < _TRIES:
                await self._desk.lanes.write(fence, lambda conn: self._desk.commands.failed(conn, row.seq))
                return float(_FIRST_PAUSE * 2**row.attempts)
            broken = f"Something went wrong inside the bridge; see the log (reference {reference(row.event_id)})."
            outs = [] if voice is None else self._texts(row, voice, broken)
        await self._finish(fence, row, outs)
        return 0.0

    async def _reply(self, row: CommandRow, bot_here: bool) -> Reply:
        desk = self._desk
        text = parse.without_address(row.text, desk.homeserver.bot_mxid, desk.config.appservice.bot_displayname)
        try:
            line = parse.of_text(text)
        except CommandError as error:
            return Reply(str(error), ok=False)
        asked = Asked(
            line=line,
            who=row.sender,
            level=await allow.level_of(desk, row.sender),
            via="room",
            key=row.event_id,
            room_id=row.room_id,
            thread_root=row.thread_root,
            management=row.management,
            bot_here=bot_here,
        )
        return await self._carrier.carry_out(asked)

    async def _finish(self, fence: Fence, row: CommandRow, outs: list[Outgoing]) -> None:
        async def work(conn: Connection) -> None:
            await Meanings(self._desk.db).forget(conn, row.event_id)
            if not await self._desk.commands.is_open(conn, row.seq):
                return  # withdrawn while it was carried out: nobody waits for the answer
            for out in outs:
                await self._desk.outbox.add(conn, out)
            if outs:
                await self._desk.lanes.announce(conn, f"send:{row.room_id}")
            await self._desk.commands.finish(conn, row.seq)

        await self._desk.lanes.write(fence, work)
        self._desk.lanes.wake(f"send:{row.room_id}")

    # -- how it is said

    async def _voice(self, room_id: RoomID) -> tuple[Voice | None, bool]:
        """Who answers: the bot if it is there, else an agent's user; and whether it is the bot."""
        bot = self._desk.homeserver.bot_mxid
        if await self._desk.rooms.membership(room_id, bot) == "join":
            return Voice(bot, room_id), True
        puppets = await self._desk.agents.in_room(room_id)
        return (Voice(puppets[0].mxid, room_id, puppets[0].agent_id) if puppets else None), False

    async def _outs(self, row: CommandRow, voice: Voice, reply: Reply) -> list[Outgoing]:
        text, outs = reply.text, []
        if reply.job is not None:
            job = await self._desk.jobs.get(JobID(reply.job))
            if job is not None and job.room_id == row.room_id:
                return []  # its report is the answer
            text += f"\n\n`jobs {reply.job}` shows how far it is."
        text = text if row.management else parse.prefixed(text, self._carrier.table)
        if reply.file is not None:
            try:
                outs.append(await self._file(row, voice, *reply.file))
            except HomeserverError as error:
                text += f"\n\nThe file could not be put here: {homeserver_words(error)}."
        return self._texts(row, voice, text) + outs

    def _texts(self, row: CommandRow, voice: Voice, text: str) -> list[Outgoing]:
        target = ReplyTarget(row.thread_root, "" if row.management else row.event_id)
        outs = []
        for part, piece in enumerate(split(text, _PART_BYTES)):
            outs.append(message(voice, piece, target, source=row.event_id, kind=KIND, part=part, msgtype="m.notice"))
            target = target.continued()
        return outs

    async def _file(self, row: CommandRow, voice: Voice, name: str, data: bytes) -> Outgoing:
        """Upload it and make the event that shows it."""
        kind = "application/x-ndjson" if name.endswith(".jsonl") else "application/octet-stream"
        mxc = await self._desk.homeserver.intent(voice.sender).upload(data, kind, name)
        txn = txn_id(voice.sender, row.room_id, row.event_id, "notice:file", 0)
        content = {
            "msgtype": "m.file",
            "body": name,
            "filename": name,
            "url": mxc,
            "info": {"mimetype": kind, "size": len(data)},
            "m.mentions": {},
            CONTENT_KEY: {"version": 1, "txn": txn},
        }
        if relation := ReplyTarget(row.thread_root).relation():
            content["m.relates_to"] = relation
        return Outgoing(txn, row.room_id, voice.sender, "m.room.message", content)
