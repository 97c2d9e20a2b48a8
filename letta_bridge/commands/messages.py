"""Messages: ``open``, ``export``, ``catchup``."""

import asyncio
import re
from datetime import UTC, datetime

from ..db import journal
from ..db.agents import AgentRow
from ..db.database import Connection
from ..ids import MXID, RoomID
from ..routing.permissions import Level
from . import allow
from .call import CTL, Call
from .direct import open_direct
from .parse import shown
from .show import count, name_of, room_link
from .table import Arg, Command, CommandError, Need, Option, Reply
from .targets import target

GROUP = "Messages"
_MOST = 100_000
"""Lines of one export."""
_SPAN = re.compile(r"([0-9]{1,6})\s*([smhdw])", re.I)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def since(text: str, now: float) -> float:
    """A time in seconds since 1970: ``7d``, ``12h``, a date, or a date with a time (in UTC where it says no zone).

    Raises:
        CommandError: it is none of these.
    """
    if match := _SPAN.fullmatch(text.strip()):
        return now - int(match[1]) * _UNITS[match[2].lower()]
    try:
        when = datetime.fromisoformat(text.strip())
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise CommandError(f"{shown(text)} is no time; write `7d`, `12h`, or a date such as `2026-01-31`.") from error


async def _open(call: Call) -> Reply:
    row: AgentRow = call.args["agent"]
    desk = call.desk
    given: str | None = call.args["user"]
    if given is None and call.who == CTL:
        raise CommandError("On the command line say for whom: `open <agent> --user @alice:example.org`.")
    who = MXID(given or call.who)
    if who != call.who and not call.admin:
        raise CommandError("Only administrators can open a chat for somebody else.")
    if desk.directory.is_ours(who):
        raise CommandError(f"{who} is one of the bridge's own users.")
    if (await allow.with_agent(desk, who, row)).level < Level.USER:
        raise CommandError(f"{who} may not talk to {name_of(row)} ({await allow.with_agent(desk, who, row)}).")
    if row.state not in ("new", "active") or not row.registered:
        raise CommandError(f"{name_of(row)} is {row.state}, so nobody would answer there.")
    room_id, made = await open_direct(desk, row, who)
    link = room_link(room_id, "direct chat", desk.homeserver.domain)
    said = f"{'You are' if who == call.who else f'{who} is'} invited to a" if made else "There is a"
    return Reply(f"{said} {link} with {name_of(row)}.", data={"room": room_id, "made": made, "user": who})


async def _export(call: Call) -> Reply:
    desk = call.desk
    now = float(await desk.db.fetchval(f"SELECT {desk.db.now}"))
    begin = since(call.args["since"], now) if call.args["since"] else 0.0
    name, wish = "messages", journal.Wish(since=begin)
    if call.args["what"]:
        chosen = await target(call, call.args["what"])
        agent = None if chosen.agent is None else chosen.agent.agent_id
        wish = journal.Wish(chosen.room_id, agent, begin)
        name = re.sub(r"[^A-Za-z0-9]+", "-", agent or chosen.room_id).strip("-")[:60]
    found, more = await journal.entries(desk.db, wish, _MOST)
    if not found:
        return Reply("There are no such messages.", data=[])
    data = await asyncio.to_thread(lambda: "".join(journal.lines(found)).encode("utf-8", "replace"))
    text = f"{count(len(found), 'message')}. Texts are kept for 30 days; older ones are without."
    if more:
        last = datetime.fromtimestamp(found[-1]["at"], UTC).isoformat(timespec="milliseconds")
        text += f" There are more: go on with `--since {last}`."
    return Reply(text, data={"messages": len(found), "more": more}, file=(f"{name}.jsonl", data))


async def _catchup(call: Call) -> Reply:
    desk = call.desk
    one: RoomID | None = call.args["room"]
    rooms = [one] if one is not None else await desk.inbox.active_rooms()

    async def work(conn: Connection) -> None:
        for room_id in rooms:
            await desk.rooms.mark_gap(conn, room_id, True)
            await desk.lanes.announce(conn, f"room:{room_id}")

    await desk.db.write(work)
    for room_id in rooms:
        desk.lanes.wake(f"room:{room_id}")
    return Reply(
        f"{count(len(rooms), 'room')} will be read back; what was missed there is handled as if it came now.",
        data={"rooms": len(rooms)},
    )


COMMANDS = (
    Command(
        "open",
        "opens a direct chat with an agent, or finds the one that there is",
        Need.USER,
        _open,
        GROUP,
        args=(Arg("agent", "agent", "which agent"),),
        options=(Option("user", "for whom, if not for you (administrators)", "user"),),
        details="The agent invites you. Used again, it names the same room for as long as you are in it.",
        examples=("open Scout",),
        changes=True,
    ),
    Command(
        "export",
        "gives the message log as a file of JSON lines",
        Need.ADMIN,
        _export,
        GROUP,
        args=(Arg("what", "text", "an agent or a room; without it, everything", required=False, rest=True),),
        options=(Option("since", "from when on: `7d`, `12h`, or a date"),),
        details="Each line has `at` (when the bridge got it or sent it, in seconds since 1970: what was read back, as "
        "after a restore, was got then), `direction` (`in`, `out`), `room`, `sender`, `event`, `agent`, `state`, `why` "
        "and `body`; what came in also has `sent_at`, when its sender's homeserver says that it was written. At most "
        f"{_MOST:,} lines at a time, fewer where they are large. In a room it comes as a file, on the command "
        "line to standard output.",
        examples=("export Scout --since 7d", "export"),
        private=True,
    ),
    Command(
        "catchup",
        "reads rooms back for messages that were missed",
        Need.ADMIN,
        _catchup,
        GROUP,
        args=(Arg("room", "room", "only this room", required=False),),
        details="The bridge does so by itself after a time away. Nothing is answered twice by it.",
        examples=("catchup", "catchup here"),
        changes=True,
    ),
)
