"""``room create``: a room with several agents."""

from collections.abc import Mapping
from typing import Any

from ..ids import MXID, RoomID
from ..mirror.names import LONGEST_NAME
from . import lookup, parse
from .begin import begin, several
from .call import CTL, Call
from .show import escape, name_of, room_link
from .table import Arg, Command, CommandError, Need, Option, Reply

_JOBS = 200


async def _room_create(call: Call) -> Reply:
    name = call.args["name"].strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise CommandError(f"A room needs a name: one line of at most {LONGEST_NAME} characters.")
    rows = await call.desk.agents.all()
    agents = [lookup.choose(rows, text) for text in _several(call.args["agents"])]
    for agent in agents:
        if agent.state == "archived":
            raise CommandError(f"{name_of(agent)} is archived, so it cannot join.")
    domain = call.desk.homeserver.domain
    asker = [] if call.who == CTL else [MXID(call.who)]
    people = [*asker, *(lookup.user(text, domain) for text in _several(call.args["invite"]))]
    if ours := [who for who in people if call.desk.directory.is_ours(who)]:
        raise CommandError(f"{ours[0]} is one of the bridge's own users; name agents behind the room's name.")
    args = {
        "name": name,
        "shown": escape(name),
        "agents": list(dict.fromkeys(agent.agent_id for agent in agents)),
        "invite": list(dict.fromkeys(people)),
        "for": people[0] if people else "",
    }
    await _not_twice(call, args)
    return await begin(call, "room", args, text=f"Making the room {escape(name)}.")


async def _not_twice(call: Call, args: dict[str, Any]) -> None:
    """One line that is sent twice makes one room, also with other people: those are invited to the one there is.

    Raises:
        CommandError: who asks has such a room; says where it is.
    """
    desk = call.desk
    if call.args["another"] or await desk.jobs.by_key(f"room|{call.key}") is not None:
        return
    again = "To have another one like it, add `--another`."
    people = " `invite` brings more people in."
    for job in await desk.jobs.newest(_JOBS):
        if job.kind != "room" or job.asked_by != call.who or not _alike(job.args, args):
            continue
        if job.state == "open":
            raise CommandError(f"That room is being made already (job {job.job_id}). {again}")
        room = RoomID((job.done.get("room") or {}).get("room", ""))
        here = await desk.rooms.membership(room, MXID(args["for"] or desk.homeserver.bot_mxid))
        if job.state == "done" and here in ("join", "invite"):
            link = room_link(room, args["shown"] or "the room", desk.homeserver.domain)
            raise CommandError(f"You have made that room already: {link}.{people} {again}")


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rooms have the same name and the same agents."""
    return one.get("name") == other["name"] and set(one.get("agents", ())) == set(other["agents"])


def _several(text: str | None) -> list[str]:
    """A list: by commas where there are any, else word by word; what is in quotes is one."""
    if text and "," in text and '"' not in text:
        return list(several(text))
    return [word.text.strip(",") for word in parse.of_text(text or "").words if word.text.strip(",")]


COMMANDS = (
    Command(
        "room create",
        "makes a room with several agents and invites you",
        Need.ADMIN,
        _room_create,
        "Agents and rooms",
        (
            Arg("name", "text", "the room's name; in quotes if it has blanks"),
            Arg("agents", "text", "agents, separated by blanks or commas", required=False, rest=True),
        ),
        (
            Option("invite", "further people, separated by commas"),
            Option("another", "also if you have made a room of this name with these agents already", switch=True),
        ),
        details=(
            "Everybody who is invited first (you, or the first of `--invite` on the command line) may do everything "
            "there. Mention an agent to talk to it."
        ),
        examples=('room create "Night watch" Ada Basil', "room create Lab Ada --invite @bob:example.org"),
        changes=True,
    ),
)
