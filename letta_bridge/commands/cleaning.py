"""``cleanup`` and ``reset``: both show what they would do, and do it when the line that they show is typed."""

import hashlib
import json
from collections import Counter
from typing import Any

from ..jobs.cleanup import KIND as CLEANUP
from ..jobs.reset import KIND as RESET
from ..jobs.reset import STAY, counts
from ..mirror.unused import WHY, Findings, NotNowError, Search
from . import confirm
from .begin import begin
from .call import Call
from .show import bullets, count, cut
from .table import Command, CommandError, Need, Option, Reply

_GROUP = "Data"
_PLAN = "cleanup_plan"
_SECONDS = 22.0
_LISTED = 15


# -- cleanup


async def _cleanup(call: Call) -> Reply:
    given, deactivate = call.args["confirm"], bool(call.args["deactivate"])
    if given is None:
        return await _show_findings(call, deactivate)
    plan = json.loads(await call.desk.settings.get(_PLAN) or "{}")
    if await call.desk.jobs.by_key(f"{CLEANUP}|{call.key}") is None and not (
        plan and await confirm.confirmed(call, given, plan["digest"])
    ):
        raise CommandError(confirm.REFUSED)
    args = {key: plan.get(key, []) for key in ("rooms", "users", "deleted")}
    return await begin(call, CLEANUP, {**args, "deactivate": deactivate}, text="Cleaning up.")


async def _show_findings(call: Call, deactivate: bool) -> Reply:
    try:
        found = await Search(call.desk).run(_SECONDS)
    except NotNowError as error:
        raise CommandError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from error
    accounts = found.deleted if deactivate else []
    data: dict[str, Any] = {
        "rooms": [{"room": room.room_id, "why": room.why, "people": room.people} for room in found.rooms],
        "users": found.users,
        "deleted": found.deleted,
        "used": found.used,
        "unclear": found.unclear,
        "unasked": found.unasked,
    }
    if not found.rooms and not found.users and not accounts:
        text = f"There is nothing to clean up: all {count(found.used, 'room')} are in use."
        return Reply("\n\n".join([text, *_doubts(found)]), data=data)
    nonce = await confirm.ask(call, await _keep(call, found))
    text = "\n\n".join([*_told(found, accounts, deactivate), *_doubts(found), confirm.how(call, nonce)])
    return Reply(text, data={**data, "confirm": nonce})


async def _keep(call: Call, found: Findings) -> str:
    """Write down what is shown, so that exactly that is done; what identifies it."""
    plan: dict[str, Any] = {
        "rooms": [[room.room_id, room.seen_by] for room in found.rooms],
        "users": found.users,
        "deleted": found.deleted,
    }
    digest = hashlib.sha256(json.dumps(plan).encode("utf-8", "replace")).hexdigest()[:24]
    await call.desk.settings.set(_PLAN, json.dumps({**plan, "digest": digest}))
    return digest


def _told(found: Findings, accounts: list[Any], deactivate: bool) -> list[str]:
    said = []
    if found.rooms:
        kinds = Counter(room.why for room in found.rooms)
        said.append(f"**The bridge does not use {count(len(found.rooms), 'room')} that it is in:**")
        said.append(bullets(f"{number:,}: {WHY[why]}" for why, number in kinds.most_common()))
        lines = [f"`{room.room_id}`{_people(room.people)}" for room in found.rooms]
        said.append(cut(lines, _LISTED, "`ctl cleanup --json` lists all"))
        said.append(
            "Its users would leave them, and names that lead there would be given back. Who else is there stays, and "
            "is told."
        )
    if found.users:
        what = "would end for good" if deactivate else "would leave every room and show no name any more"
        said.append(f"**{count(len(found.users), 'user')} without an agent** {what}:")
        said.append(cut([f"`{mxid}`" for mxid in found.users], _LISTED, "`ctl cleanup --json` lists all"))
    if accounts:
        said.append(
            f"**{count(len(accounts), 'account')}** of users that show nothing any more would end for good, where "
            "that can be."
        )
    return said


def _people(number: int) -> str:
    return f", with {count(number, 'person', 'people')}" if number else ""


def _doubts(found: Findings) -> list[str]:
    said = []
    if found.unclear:
        said.append(f"{count(len(found.unclear), 'room')} could not be read, and are left alone.")
    if found.unasked:
        said.append(
            f"{count(found.unasked, 'user or room', 'users or rooms')} could not be looked at in time; use the command "
            "again afterwards."
        )
    return said


# -- reset


async def _reset(call: Call) -> Reply:
    given, phrase = call.args["confirm"], call.desk.homeserver.domain
    if given is not None:
        begun = await call.desk.jobs.by_key(f"{RESET}|{call.key}") is not None
        if not begun and not await confirm.confirmed(call, given, RESET):
            raise CommandError(confirm.REFUSED)
        stay = bool(call.args["stay-empty"])
        after = "does nothing more" if stay else "begins anew by itself"
        text = f"The bridge is being reset. When it has forgotten everything, it {after}."
        return await begin(call, RESET, {STAY: stay}, text=text)
    after = "does nothing more" if call.args["stay-empty"] else "begins anew: new rooms, new invitations"
    found = await counts(call.desk)
    nonce = await confirm.ask(call, RESET, phrase)
    lines = [
        f"{count(found['rooms'], 'room')} that its users would leave: every agent's, the space, direct chats, groups, "
        "management rooms. Nobody else is put out.",
        f"{count(found['users'], 'user')} that would show no name any more, until the mirror makes them anew",
        f"{count(found['messages'], 'message')} that it remembers, {found['waiting']:,} of them still to be answered "
        "(they would not be)",
        f"{count(found['conversations'], 'conversation')} of rooms with agents that it would not find again; they "
        "stay in Letta",
        f"{count(found['permissions'], 'permission')} given by command, {count(found['owners'], 'owner')} of agents, "
        f"{count(found['pauses'], 'pause')}, {count(found['jobs'], 'job')} with what became of them",
    ]
    text = (
        f"**Everything that the bridge made in Matrix and remembers would be given up:**\n\n{bullets(lines)}\n\n"
        f"Letta, the agents in it and the homeserver would not be touched. Afterwards the bridge {after}."
        f"\n\n{confirm.how(call, nonce, phrase)}"
    )
    return Reply(text, data={**found, "confirm": f"{nonce} {phrase}"})


COMMANDS = (
    Command(
        "cleanup",
        "finds rooms that the bridge does not use and users without an agent, and takes its users out",
        Need.ADMIN,
        _cleanup,
        _GROUP,
        (),
        (
            Option("deactivate", "end the accounts of users without an agent, for good", switch=True),
            confirm.CONFIRM,
        ),
        details=(
            "Not used are: second and former rooms of agents, rooms of agents that neither Letta nor the bridge knows, "
            "second spaces, and rooms where only the bridge's own users are left. It first shows what it has found, "
            "and does exactly that when the line shown is typed; each room is looked at once more before it is left. "
            "People are never put out of a room. While Letta's list of agents is not complete, or not believed, "
            "nothing is called unused.\n\n"
            "`--deactivate` also ends the Matrix accounts of users without an agent, and those of agents that were "
            "despawned and that Letta does not have any more. An ended account can never come back. Synapse does it, "
            "Tuwunel does not let the bridge."
        ),
        examples=("cleanup",),
        changes=True,
        private=True,
    ),
    Command(
        "reset",
        "gives up everything that the bridge made in Matrix and remembers; never Letta, never the homeserver",
        Need.ADMIN,
        _reset,
        _GROUP,
        (),
        (
            Option("stay-empty", "do not begin anew afterwards: for uninstalling", switch=True),
            confirm.CONFIRM,
        ),
        details=(
            "It first shows what would be given up, and does it when the line shown is typed, which ends with the "
            "homeserver's domain. The bridge's users leave all rooms, the rooms' names are given back, profiles are "
            "cleared, and the database is emptied; then the mirror begins anew, unless `--stay-empty` says otherwise "
            "(a bridge that was left empty begins with a new database only). `backup` first if in doubt: a reset "
            "cannot be taken back. It goes on after a restart."
        ),
        examples=("reset",),
        changes=True,
        private=True,
    ),
)
