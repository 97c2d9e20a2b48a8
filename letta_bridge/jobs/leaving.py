"""How our users get out of a room for good: what jobs that clean up have in common."""

from collections.abc import Iterable, Sequence

from ..db.database import Connection
from ..delivery.outgoing import ReplyTarget, Voice, notice
from ..ids import MXID, RoomID
from ..matrix.homeserver import HomeserverError
from .steps import Work


async def leave_all(work: Work, room_id: RoomID, users: Sequence[MXID], reason: str) -> list[str]:
    """Let our users leave a room and forget it; what the homeserver refused, in words.

    Raises:
        HomeserverError: not now.
    """
    refused = []
    for mxid in users:
        intent = work.desk.homeserver.intent(mxid)
        try:
            await intent.leave(room_id, reason)
            await intent.forget(room_id)
        except HomeserverError as error:
            if error.passing or error.unknown_device:
                raise
            refused.append(f"{mxid}: {error}")

    async def note(conn: Connection) -> None:
        for mxid in users:
            await work.desk.rooms.set_membership(conn, room_id, mxid, "leave")
        await work.desk.rooms.mark_known(conn, room_id, False)

    await work.desk.lanes.write(work.fence, note)
    return refused


async def drop_aliases(work: Work, room_id: RoomID, aliases: Iterable[str]) -> None:
    """Let those names that lead to this room lead nowhere. Raises HomeserverError: not now."""
    bot = work.desk.homeserver.bot
    for alias in aliases:
        if await bot.resolve_alias(alias) == room_id:
            try:
                await bot.delete_alias(alias)
            except HomeserverError as error:
                if error.passing:
                    raise


async def tell(work: Work, room_id: RoomID, speaker: MXID, text: str) -> None:
    """Say something in a room before leaving it, at once and not through the outbox; a refusal is no matter.

    Raises:
        HomeserverError: not now.
    """
    out = notice(Voice(speaker, room_id), text, ReplyTarget(), source=work.job.key, kind="leaving")
    try:
        await work.desk.homeserver.intent(speaker).send(room_id, out.type, out.content, out.txn_id)
    except HomeserverError as error:
        if error.passing or error.unknown_device:
            raise
