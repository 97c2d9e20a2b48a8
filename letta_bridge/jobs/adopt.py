"""``import-letta-matrix``: the agents that Letta-Matrix showed are shown by this bridge, and its people follow them.

Nothing is done with the old accounts or their passwords. Into an old room the bot comes only by an invitation, or where
anybody may join; there it says once where the agent has gone, and leaves again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from ..commands.desk import Desk
from ..commands.show import bullets, count, portal_link
from ..db.agents import AgentRow
from ..db.jobs import JobRow
from ..delivery.outgoing import ReplyTarget, Voice, notice
from ..ids import MXID, AgentID, RoomID
from ..letta.errors import Kind, LettaError
from ..matrix.homeserver import HomeserverError
from ..mirror.maker import State, find
from .adopt_file import OldAgent, is_user
from .leaving import leave_all
from .steps import JobKind, NotYetError, Step, Work
from .summon import invite

KIND = "import-letta-matrix"
_CHUNKS = 10
_LEAST = 5
_POINTED = "adopted|"
_LISTED = 30

Door = Literal["in", "invited", "open", "closed", "unknown"]
"""How the bot stands to an old room."""


@dataclass(frozen=True, slots=True)
class OldRoom:
    """An old room as the bot sees it: whether it can get in, and who is there, where it can see that."""

    door: Door
    people: tuple[MXID, ...] = ()
    shared: bool = False
    """Agents' users of this bridge are in it too: the bot stays."""


async def look_at(desk: Desk, room_id: RoomID) -> OldRoom:
    """How the bot stands to an old room; changes nothing."""
    bot = desk.homeserver.bot
    if not room_id:
        return OldRoom("closed")
    try:
        state = await bot.state(room_id)
    except HomeserverError as error:
        if error.passing:
            return OldRoom("unknown")
        if await desk.rooms.membership(room_id, bot.mxid) == "invite":
            return OldRoom("invited")
        return OldRoom("closed")
    membership = find(state, "m.room.member", bot.mxid).get("membership")
    if membership == "join":
        return OldRoom("in", *_inside(desk, state))
    if membership == "invite":
        return OldRoom("invited")
    if find(state, "m.room.join_rules").get("join_rule") == "public" and membership != "ban":
        return OldRoom("open")
    return OldRoom("closed")


def _inside(desk: Desk, state: State) -> tuple[tuple[MXID, ...], bool]:
    """The people in a room, and whether agents of this bridge are too."""
    joined = [
        MXID(str(event["state_key"]))
        for event in state
        if event.get("type") == "m.room.member"
        and isinstance(event.get("content"), Mapping)
        and event["content"].get("membership") == "join"
        and is_user(event.get("state_key"))
    ]
    ours = [mxid for mxid in joined if desk.directory.is_ours(mxid)]
    others = tuple(sorted(mxid for mxid in joined if mxid not in ours))
    return others, any(mxid != desk.homeserver.bot_mxid for mxid in ours)


async def standing(desk: Desk, old: OldAgent) -> str:
    """Why an agent of the file is not adopted; empty when it is.

    Raises:
        LettaError: Letta does not say whether it exists.
    """
    row = await desk.agents.get(AgentID(old.agent_id))
    if row is not None and row.dismissed:
        return f"it was despawned here; `recall {old.agent_id}` brings it back"
    try:
        agent = await desk.backend.get_agent(AgentID(old.agent_id))
    except LettaError as error:
        if error.kind in (Kind.AGENT_GONE, Kind.REJECTED):
            return "Letta has no such agent"
        raise
    if agent.companion:
        return "it is another agent's companion, which is not shown"
    if not desk.config.letta.wants(agent.id, agent.name, agent.tags):
        return "the configuration leaves it out (letta.include, letta.exclude)"
    return ""


def wanted(desk: Desk, people: Sequence[str], leave_out: Sequence[str]) -> list[MXID]:
    """Those who are people: neither ours nor an account of Letta-Matrix, nor one that was said to be left out."""
    return [
        MXID(who)
        for who in dict.fromkeys(people)
        if not desk.directory.is_ours(MXID(who)) and not any(fnmatchcase(who, pattern) for pattern in leave_out)
    ]


# -- the job


def _step(start: int, end: int) -> Step:
    async def run(work: Work) -> Any:
        done: dict[str, Any] = {"adopted": 0, "invited": 0, "pointed": 0, "todo": [], "skipped": []}
        for entry in work.args["agents"][start:end]:
            old = OldAgent(**{**entry, "people": tuple(entry["people"])})
            await _adopt(work, old, done)
        return done

    return Step(f"agents-{start}", f"agents {start + 1} to {end}", run, stays=True)


async def _adopt(work: Work, old: OldAgent, done: dict[str, Any]) -> None:
    desk, agent_id = work.desk, AgentID(old.agent_id)
    if why := await standing(desk, old):
        done["skipped"].append(f"{old.agent_id}: {why}")
        return
    row = await desk.agents.get(agent_id)
    if row is None or row.origin == "letta":
        agent = await desk.backend.get_agent(agent_id)
        row = await desk.directory.staged.write_down(work.fence, agent, origin="adopted")
    row = await desk.directory.staged.rest(work.fence, agent_id)
    if row.portal_room is None:
        raise NotYetError("an agent has no room yet")
    done["adopted"] += 1
    room = await _enter(work, old, done)
    before = await desk.rooms.invited_once(row.portal_room)
    for person in wanted(desk, [*old.people, *room.people], work.args["leave_out"]):
        if person in before or await _is_there(work, row, person):
            continue
        if refused := await invite(work, row.portal_room, person):
            done["todo"].append(f"{person} could not be invited to the new room of {old.agent_id} ({refused})")
        else:
            done["invited"] += 1
    if room.door == "in":
        await _point(work, old, row, room, done)


async def _is_there(work: Work, row: AgentRow, person: MXID) -> bool:
    assert row.portal_room is not None
    return await work.desk.rooms.membership(row.portal_room, person) in ("join", "invite", "ban", "leave")


async def _enter(work: Work, old: OldAgent, done: dict[str, Any]) -> OldRoom:
    """Into the old room, where that can be; nothing once it was told there."""
    desk, room_id = work.desk, RoomID(old.room_id)
    if not room_id or await desk.told.was_told(_POINTED + room_id):
        return OldRoom("closed")
    room = await look_at(desk, room_id)
    if room.door in ("invited", "open", "closed"):
        try:
            await desk.homeserver.bot.join(room_id)
            room = await look_at(desk, room_id)
        except HomeserverError as error:
            if error.passing:
                raise
    if room.door == "unknown":
        raise NotYetError("the homeserver does not say what became of an old room")
    if room.door != "in":
        done["todo"].append(by_hand(desk, old))
    return room


def by_hand(desk: Desk, old: OldAgent) -> str:
    """What a person can do about an old room into which the bot does not come."""
    bot = desk.homeserver.bot_mxid
    return f"invite {bot} to the old room {old.room_id} of {old.agent_id}, then use this command again"


async def _point(work: Work, old: OldAgent, row: AgentRow, room: OldRoom, done: dict[str, Any]) -> None:
    """Say in the old room where the agent is now, once, and leave it unless agents of this bridge are there."""
    desk, room_id, bot = work.desk, RoomID(old.room_id), work.desk.homeserver.bot
    text = (
        f"{portal_link(row, 'This agent has another room now')}, and you are invited to it. Whatever answers here is "
        "not the new bridge."
    )
    out = notice(Voice(bot.mxid, room_id), text, ReplyTarget(), source=f"adopted|{room_id}", kind="pointer")
    try:
        await bot.send(room_id, out.type, out.content, out.txn_id)
    except HomeserverError as error:
        if error.passing or error.unknown_device:
            raise
        done["todo"].append(f"the bot may not write in the old room {room_id} of {old.agent_id}; tell people yourself")
    else:
        done["pointed"] += 1
    await desk.lanes.write(work.fence, lambda conn: desk.told.first_time(conn, _POINTED + room_id))
    if not room.shared:
        await leave_all(work, room_id, [bot.mxid], "said where the agent is")


def _steps(job: JobRow) -> Sequence[Step]:
    agents = len(job.args["agents"])
    size = max(_LEAST, -(-agents // _CHUNKS))
    return [_step(start, min(start + size, agents)) for start in range(0, agents, size)]


async def _ending(_: Desk, job: JobRow) -> str:
    results = list(job.done.values())

    def total(name: str) -> int:
        return sum(int(result[name]) for result in results)

    said = [
        f"{count(total('adopted'), 'agent')} adopted, {count(total('invited'), 'invitation')} sent, "
        f"{count(total('pointed'), 'old room')} told where the agent is."
    ]
    for name, title in (("todo", "To be done by hand:"), ("skipped", "Left out:")):
        lines = [line for result in results for line in result[name]]
        if lines:
            more = [f"… and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
            said.append(f"{title}\n\n" + bullets([*lines[:_LISTED], *more]))
    return "\n\n".join(said)


ADOPT = JobKind(
    KIND, lambda job: f"Adopting {count(len(job.args['agents']), 'agent')} of Letta-Matrix", _steps, _ending
)
