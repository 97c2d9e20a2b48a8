"""``pause`` and ``resume``: messages are taken in and wait until the agent, the room or everything is resumed."""

from ..db.database import Connection
from ..db.pauses import EVERYTHING, Pause
from ..db.turns import agent_lane
from ..delivery.paused import told_prefix
from ..ids import AgentID
from ..routing.permissions import Level
from . import lookup
from .call import CTL, Call
from .show import ago, escape, name_of, span
from .table import Arg, Command, CommandError, Need, Reply
from .targets import HERE, Target, handle, target

_ALL = Target(EVERYTHING, "everything")
_FEW = 50


async def _pause(call: Call) -> Reply:
    where = await _where(call)
    reason = " ".join((call.args.get("reason") or "").split())
    desk = call.desk

    async def work(conn: Connection) -> list[str] | None:
        if not await desk.pauses.set(conn, where.subject, call.who, reason):
            return None
        return await _wake(call, conn, where)  # who waits already is told why it takes longer

    lanes = await desk.db.write(work)
    if lanes is None:
        known = next((pause for pause in await desk.pauses.all() if pause.subject == where.subject), None)
        since = "" if known is None else f", for {span(known.age)}, by {known.by}{_because(known.reason)}"
        return Reply(f"{_capital(where.shown)} is paused already{since}. {await _how_to_end(call, where)}")
    _wake_here(call, lanes)
    return Reply(
        f"Paused: {where.shown}{_because(reason)}. Messages are kept and answered afterwards; each room is told so "
        f"once. What is being answered now is finished; `!stop` in its room ends that. "
        f"{await _how_to_end(call, where)}",
        data={"paused": where.subject, "reason": reason},
    )


async def _resume(call: Call) -> Reply:
    where = await _where(call)
    desk = call.desk
    pauses = {pause.subject: pause for pause in await desk.pauses.all()}
    if (pause := pauses.get(where.subject)) is not None and not _may_end(call, pause):
        raise CommandError(
            f"{_capital(where.shown)} was paused by {_who(pause, where)}{_because(pause.reason)}; only administrators "
            "can resume it."
        )

    async def work(conn: Connection) -> list[str] | None:
        if not await desk.pauses.end(conn, where.subject):
            return None
        await desk.told.untell_all(conn, told_prefix(where.subject))
        return await _wake(call, conn, where)

    lanes = await desk.db.write(work)
    left = [pause for subject, pause in pauses.items() if subject != where.subject and _holds(pause, where)]
    data = {"resumed": where.subject, "still_paused": [pause.subject for pause in left]}
    if lanes is None:
        return Reply(f"{_capital(where.shown)} was not paused.{await _still(call, left)}", data=data)
    _wake_here(call, lanes)
    return Reply(f"Resumed: {where.shown}. What waited is answered now.{await _still(call, left)}", data=data)


async def _where(call: Call) -> Target:
    """What is to be paused or resumed, if who asks may."""
    text = (call.args.get("target") or "").strip()
    if text.casefold() == EVERYTHING:
        if call.level < Level.ADMIN:
            raise CommandError(
                f"Only administrators of the bridge may `{call.command.name} all`. "
                f"({call.desk.permissions.explain(call.who)}.)"
            )
        return _ALL
    if not text:
        if call.management or not call.room_id:
            raise CommandError(
                f"Say what: `{call.command.name} <agent>`, `{call.command.name} <room>` (its id or alias) or "
                f"`{call.command.name} all`."
            )
        text = HERE
    found = await target(call, text)
    await found.demand(call)
    return found


async def _wake(call: Call, conn: Connection, where: Target) -> list[str]:
    """Within the transaction: have the other processes look at the lanes that it is about; these lanes."""
    desk = call.desk
    if where.agent is not None:
        lanes = [agent_lane(AgentID(where.agent.agent_id))]
    else:
        lanes = await desk.turns.waiting_lanes(conn, where.room_id or None)
    for payload in lanes if len(lanes) <= _FEW else ["*"]:
        await desk.lanes.announce(conn, payload)
    return lanes


def _may_end(call: Call, pause: Pause) -> bool:
    """Whether who asks may end it: what an administrator of the bridge paused, only another one resumes."""
    by_admin = pause.by == CTL or call.desk.permissions.level(pause.by) >= Level.ADMIN
    return call.level >= Level.ADMIN or pause.by == call.who or not by_admin


def _wake_here(call: Call, lanes: list[str]) -> None:
    for lane in lanes:
        call.desk.lanes.wake(lane)


def _holds(pause: Pause, where: Target) -> bool:
    """Whether another pause holds up what was resumed, or a part of it."""
    return pause.subject == EVERYTHING or where.subject == EVERYTHING


async def _still(call: Call, left: list[Pause]) -> str:
    if not left:
        return ""
    lines = [f"- {await named(call, pause.subject)}{_because(pause.reason)}" for pause in left]
    return "\n\nStill paused:\n\n" + "\n".join(lines)


async def named(call: Call, subject: str) -> str:
    """What is paused, for people."""
    kind, _, name = subject.partition(":")
    if kind == "agent":
        agent = await call.desk.agents.get(AgentID(name))
        return name_of(agent) if agent is not None else f"`{name}`"
    return f"the room `{name}`" if kind == "room" else "everything (`resume all`)"


async def paused(call: Call, pause: Pause) -> str:
    """A pause in one line: what, why, by whom, since when, and what ends it."""
    kind, _, name = pause.subject.partition(":")
    what, ends = await named(call, pause.subject), EVERYTHING if kind == EVERYTHING else name
    if kind == EVERYTHING:
        what = "everything"
    elif kind == "agent" and (agent := await call.desk.agents.get(AgentID(name))) is not None:
        ends = lookup.handle(await call.desk.agents.all(), agent)
    return f"{what}{_because(pause.reason)}, by {escape(pause.by)} {ago(pause.age)}; `resume {ends}` ends it."


def _because(reason: str) -> str:
    return f" ({escape(reason)})" if reason else ""


def _who(pause: Pause, where: Target) -> str:
    """The administrator who paused it; also as its owner, which is what rooms were told."""
    if pause.by == CTL:
        return "an administrator on the bridge's machine"
    owner = where.agent is not None and where.agent.owner == pause.by
    return f"{escape(pause.by)}, {'its owner and ' if owner else ''}an administrator of the bridge"


async def ending(call: Call, where: Target) -> str:
    """What is typed to end a pause."""
    return f"resume {await handle(call, where) if where.subject != EVERYTHING else EVERYTHING}"


async def _how_to_end(call: Call, where: Target) -> str:
    return f"`{await ending(call, where)}` ends it."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_DETAILS = (
    "Messages to what is paused are taken in and kept, also over restarts, and answered after `resume`; each room is "
    "told once. A pause of a room holds up every agent there, and no agent elsewhere. Owners may pause their agents, "
    "administrators everything. What an administrator paused only administrators resume. A name of several words needs "
    "quotation marks here."
)
_TARGET = Arg(
    "target", "text", "an agent, a room (its id, alias, or `here`), or `all`; nothing: the room you write in", False
)
COMMANDS = (
    Command(
        "pause",
        "stops an agent, a room or everything for the time being; messages wait",
        Need.OWNER,
        _pause,
        "Running",
        args=(_TARGET, Arg("reason", "text", "why; whoever writes meanwhile reads it", False, rest=True)),
        details=_DETAILS,
        examples=("pause Scout its model is being changed", "pause all"),
        changes=True,
    ),
    Command(
        "resume",
        "ends a pause; what waited is answered",
        Need.OWNER,
        _resume,
        "Running",
        args=(_TARGET,),
        details=_DETAILS,
        examples=("resume Scout", "resume all"),
        changes=True,
    ),
)
