"""``reset``: everything that the bridge made in Matrix and wrote into its database is given up, nothing else.

Letta is not touched, nor is the homeserver. The job itself stands in the database that is emptied: its last step takes
that away too, in one transaction, and whatever interrupts it before is found by the next start.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from .. import management
from ..commands.desk import Desk
from ..commands.show import count
from ..db import resetting
from ..db.database import Connection
from ..db.jobs import JobRow
from ..ids import MXID, RoomID
from ..matrix.homeserver import HomeserverError
from ..mirror.directory import LANE as MIRROR_LANE
from ..mirror.unused import aliases_in
from .leaving import drop_aliases, leave_all, tell
from .steps import JobKind, NotYetError, Step, Work

KIND = "reset"
_REASON = "the bridge is reset"
_POLL, _POLLS = 0.1, 50
_LAST_WORD = (
    "The bridge is reset: it has left its rooms, and forgets everything now. Letta was not touched. This room is not "
    "used any more. "
)
_ANEW = "The bridge begins anew at once: new rooms, new invitations."
_STAYS = "The bridge does nothing more: it can be uninstalled."
STAY = "stay"


async def _quiet(work: Work) -> Any:
    """Nothing new is made from now on: no turn begins, no other job goes on, the mirror rests."""
    desk, job = work.desk, work.job

    async def stop(conn: Connection) -> None:
        await resetting.freeze(conn, desk.db, job.job_id, job.asked_by)
        await desk.lanes.announce(conn, MIRROR_LANE)

    await desk.lanes.write(work.fence, stop)
    desk.lanes.wake(MIRROR_LANE)
    for _ in range(_POLLS):
        if await desk.settings.get(resetting.QUIET) == str(job.job_id):
            return {}
        await asyncio.sleep(_POLL)
    raise NotYetError("the mirror finishes what it is doing")


async def _go_on(work: Work) -> None:
    """It could not be finished: the bridge works on with what is left, and the mirror repairs it."""

    async def work_on(conn: Connection) -> None:
        await resetting.thaw(conn)
        await work.desk.lanes.announce(conn, MIRROR_LANE)

    await work.desk.lanes.write(work.fence, work_on)
    work.desk.lanes.wake(MIRROR_LANE)


async def our_users(desk: Desk) -> list[MXID]:
    """Every user of ours that anything is known of, without the bot."""
    rows = await desk.db.fetch(
        "SELECT user_id FROM member UNION SELECT mxid AS user_id FROM agent WHERE registered = 1"
    )
    users = {MXID(row["user_id"]) for row in rows if desk.directory.is_ours(row["user_id"])}
    return sorted(users - {desk.homeserver.bot_mxid})


async def _users(work: Work) -> Any:
    """The agents' users leave every room and show nothing any more."""
    done: dict[str, Any] = {"users": 0, "refused": []}
    for mxid in await our_users(work.desk):
        intent = work.desk.homeserver.intent(mxid)
        try:
            for room_id in await intent.joined_rooms():
                done["refused"] += await leave_all(work, room_id, [mxid], _REASON)
            await intent.clear_profile()
            done["users"] += 1
        except HomeserverError as error:
            if error.passing:
                raise
            done["refused"].append(f"{mxid}: {error}")
    return done


async def _aliases(work: Work) -> Any:
    """No name of ours leads anywhere any more."""
    desk, bot = work.desk, work.desk.homeserver.bot
    prefix, domain = desk.config.appservice.puppet_prefix, desk.homeserver.domain
    admins = {*await desk.management.all(), *(MXID(who) for who in desk.permissions.entries if who.startswith("@"))}
    names = [f"{prefix}space", *(management.alias_localpart(prefix, admin) for admin in sorted(admins))]
    names += [row.mxid[1:].partition(":")[0] for row in await desk.agents.all()]
    for name in names:
        try:
            await bot.delete_alias(f"#{name}:{domain}")
        except HomeserverError as error:
            if error.passing:
                raise
    return {"aliases": len(names)}


async def _rooms(work: Work) -> Any:
    """The bot leaves every room but those in which it has still to speak."""
    desk, bot = work.desk, work.desk.homeserver.bot
    last = await _last_rooms(work)
    rooms = [room_id for room_id in await bot.joined_rooms() if room_id not in last]
    refused: list[str] = []
    for room_id in rooms:
        try:
            await drop_aliases(work, room_id, aliases_in(desk, await bot.state(room_id)))
        except HomeserverError as error:
            if error.passing:
                raise
        refused += await leave_all(work, room_id, [bot.mxid], _REASON)
    return {"rooms": len(rooms), "refused": refused}


async def _last_rooms(work: Work) -> set[RoomID]:
    rooms = await work.desk.management.rooms()
    return rooms | ({work.job.room_id} if work.job.room_id else set())


async def _empty(work: Work) -> Any:
    """The last word, and then nothing is left of anything, this job included."""
    desk, bot = work.desk, work.desk.homeserver.bot
    inside = set(await bot.joined_rooms())
    for room_id in sorted(await _last_rooms(work) & inside):
        await tell(work, room_id, bot.mxid, _LAST_WORD + (_STAYS if work.args[STAY] else _ANEW))
        await leave_all(work, room_id, [bot.mxid], _REASON)

    async def throw_away(conn: Connection) -> None:
        await resetting.throw_away(conn, desk.db)
        if work.args[STAY]:
            await resetting.put(conn, resetting.FROZEN, STAY)
            return
        for lane in (MIRROR_LANE, management.LANE):
            await desk.lanes.announce(conn, lane)

    await desk.lanes.write(work.fence, throw_away)
    for lane in () if work.args[STAY] else (MIRROR_LANE, management.LANE):
        desk.lanes.wake(lane)
    return {}


async def counts(desk: Desk) -> dict[str, int]:
    """What a reset would throw away."""
    rooms: Iterable[RoomID] = await desk.homeserver.bot.joined_rooms()
    heard = await desk.db.fetch("SELECT DISTINCT room_id, user_id FROM member WHERE membership = 'join'")
    ours = {row["room_id"] for row in heard if desk.directory.is_ours(row["user_id"])}
    return {"rooms": len(ours | set(rooms)), "users": len(await our_users(desk)), **await resetting.counts(desk.db)}


async def _ending(_: Desk, job: JobRow) -> str:
    """Told only where the job outlives its last step, which it does not."""
    return f"The bridge was reset ({count(int(job.done['rooms']['rooms']), 'room')})."


RESET = JobKind(
    KIND,
    lambda _: "Resetting the bridge",
    lambda _: (
        Step("quiet", "everything else stops", _quiet, _go_on),
        Step("users", "the agents' users leave their rooms", _users, stays=True),
        Step("aliases", "the rooms' names are given back", _aliases, stays=True),
        Step("rooms", "the bot leaves its rooms", _rooms, stays=True),
        Step("empty", "the management rooms, and the bridge's own data", _empty, stays=True),
    ),
    _ending,
)
