"""``cleanup``: our users leave rooms that the bridge does not use, and users without an agent disappear."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..commands.desk import Desk
from ..commands.show import bullets, count
from ..db.jobs import JobRow
from ..ids import MXID, RoomID
from ..letta.errors import LettaError
from ..matrix.homeserver import HomeserverError
from ..mirror.target import in_force
from ..mirror.unused import CLEARED, ENDED, Known, NotNowError, Search, Unused
from .leaving import drop_aliases, leave_all, tell
from .steps import JobKind, NotYetError, Step, Work

KIND = "cleanup"
_CHUNKS = 10
_LEAST = 25
_GONE = "This room is not used by the bridge any more, so its users leave it. Nobody else has to."
_REASON = "not used any more"


def _chunks(rooms: int) -> list[tuple[int, int]]:
    """From and to of each step's rooms: few steps, none very long."""
    size = max(_LEAST, -(-rooms // _CHUNKS))
    return [(start, min(start + size, rooms)) for start in range(0, rooms, size)]


def _rooms_step(start: int, end: int) -> Step:
    async def run(work: Work) -> Any:
        search = Search(work.desk)
        known = await _known(search)
        children = await _children(work, known)
        done: dict[str, Any] = {"left": 0, "kept": 0, "refused": []}
        for room_id, seen_by in work.args["rooms"][start:end]:
            unused = await _again(search, known, RoomID(room_id), MXID(seen_by))
            if unused is None:
                done["kept"] += 1
                continue
            done["refused"] += await _give_up(work, known, children, unused)
            done["left"] += 1
        return done

    return Step(f"rooms-{start}", f"rooms {start + 1} to {end}", run, stays=True)


async def _known(search: Search) -> Known:
    try:
        return await search.known()
    except NotNowError as error:
        raise NotYetError(str(error)) from error


async def _again(search: Search, known: Known, room_id: RoomID, seen_by: MXID) -> Unused | None:
    """The room as it is now: what was found may be hours old, or a try before this one has left it already."""
    try:
        return await search.judge(known, room_id, seen_by)
    except HomeserverError as error:
        if error.passing:
            raise
        return None


async def _children(work: Work, known: Known) -> Mapping[str, Mapping[str, Any]]:
    if known.space is None:
        return {}
    try:
        state = await work.desk.homeserver.bot.state(known.space)
    except HomeserverError as error:
        if error.passing:
            raise
        return {}
    return {event["state_key"]: event["content"] for event in state if event.get("type") == "m.space.child"}


async def _give_up(work: Work, known: Known, children: Mapping[str, Mapping[str, Any]], unused: Unused) -> list[str]:
    """Leave one room. The bot goes last, so that a try after this one still finds it."""
    room_id = unused.room_id
    if unused.people:
        await tell(work, room_id, unused.seen_by, _GONE)
    await drop_aliases(work, room_id, unused.aliases)
    if known.space is not None and in_force(children.get(room_id, {})):
        try:
            await work.desk.homeserver.bot.set_state(known.space, "m.space.child", room_id, {})
        except HomeserverError as error:
            if error.passing:
                raise
    users = [*(mxid for mxid in unused.ours if mxid != unused.seen_by), unused.seen_by]
    return [f"{room_id}, {why}" for why in await leave_all(work, room_id, users, _REASON)]


async def _users(work: Work) -> Any:
    """Users without an agent leave everything and show nothing; where that is asked for, their accounts end."""
    desk, search = work.desk, Search(work.desk)
    known = await _known(search)
    done: dict[str, Any] = {"cleared": 0, "ended": 0, "refused": []}
    for mxid in map(MXID, work.args["users"]):
        if not await _lonely(search, known, mxid):
            continue
        intent = desk.homeserver.intent(mxid)
        try:
            for room_id in await intent.joined_rooms():
                done["refused"] += await leave_all(work, room_id, [mxid], _REASON)
            await intent.clear_profile()
        except HomeserverError as error:
            if error.passing:
                raise
            done["refused"].append(f"{mxid}: {error}")
        else:
            done["cleared"] += 1
            await desk.told.tell(CLEARED + mxid)
    if work.args["deactivate"]:
        for mxid in map(MXID, [*work.args["users"], *work.args["deleted"]]):
            row = await desk.agents.by_mxid(mxid)
            if (row is not None and row.state == "archived" and row.dismissed) or await _lonely(search, known, mxid):
                done["ended"] += await desk.homeserver.intent(mxid).deactivate()
                await desk.told.tell(ENDED + mxid)
    return done


async def _lonely(search: Search, known: Known, mxid: MXID) -> bool:
    try:
        return await search.is_lonely(known, mxid)
    except LettaError as error:
        raise NotYetError("Letta does not say whether an agent exists") from error


def _steps(job: JobRow) -> Sequence[Step]:
    steps = [_rooms_step(start, end) for start, end in _chunks(len(job.args["rooms"]))]
    if job.args["users"] or (job.args["deleted"] and job.args["deactivate"]):
        steps.append(Step("users", "users without an agent", _users, stays=True))
    return steps


async def _ending(_: Desk, job: JobRow) -> str:
    rooms = [result for name, result in job.done.items() if name.startswith("rooms-")]
    users = job.done.get("users") or {"cleared": 0, "ended": 0, "refused": []}
    said = []
    if rooms or not users["cleared"] + users["ended"]:
        said.append(f"The bridge has left {count(sum(result['left'] for result in rooms), 'room')}.")
    if kept := sum(result["kept"] for result in rooms):
        said.append(f"{count(kept, 'room')} had been left before, or turned out to be used, and stay as they are.")
    if users["cleared"]:
        said.append(f"{count(users['cleared'], 'user')} without an agent left everything and show no name any more.")
    if users["ended"]:
        said.append(f"{count(users['ended'], 'account')} ended for good.")
    refused = [why for result in [*rooms, users] for why in result["refused"]]
    if refused:
        more = [f"… and {len(refused) - 10} more"] if len(refused) > 10 else []
        said.append("The homeserver refused:\n\n" + bullets([*refused[:10], *more]))
    return "\n\n".join(said)


CLEANUP = JobKind(KIND, lambda _: "Cleaning up", _steps, _ending)
