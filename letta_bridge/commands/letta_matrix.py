"""``import-letta-matrix``: adopts what Letta-Matrix has set up; shows first what it would do."""

import asyncio
from pathlib import Path
from typing import Any

from ..ids import RoomID
from ..jobs import adopt
from ..jobs.adopt_file import Mappings, MappingsError, OldAgent, old_users, read
from .begin import begin
from .call import Call
from .show import bullets, count
from .table import Arg, Command, CommandError, Need, Option, Reply

_AT_ONCE = 8
_LETTA_MATRIX_AGENTS = "@agent_*"


async def _import(call: Call) -> Reply:
    if call.args["apply"] and call.args["dry-run"]:
        raise CommandError("Either `--dry-run` or `--apply`.")
    try:
        found = await asyncio.to_thread(read, Path(call.args["file"]))
    except MappingsError as error:
        raise CommandError(f"{error}.") from error
    out = _leave_out(call, found)
    if call.args["apply"]:
        if not found.agents:
            raise CommandError("There is nothing to adopt in that file; without `--apply` it says why.")
        args = {"agents": [old.plain() for old in found.agents], "leave_out": out}
        return await begin(call, adopt.KIND, args, text=f"Adopting {count(len(found.agents), 'agent')}.")
    return await _preview(call, found, out)


def _leave_out(call: Call, found: Mappings) -> list[str]:
    """Ids and patterns of accounts that are no people."""
    domains = {call.desk.homeserver.domain, *(user.partition(":")[2] for user in found.users)}
    given = [part.strip() for part in (call.args["except"] or "").split(",") if part.strip()]
    return [*sorted(old_users(found.users, domains)), _LETTA_MATRIX_AGENTS, *given]


async def _preview(call: Call, found: Mappings, out: list[str]) -> Reply:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(old: OldAgent) -> dict[str, Any]:
        async with gate:
            return await _would(call, old, out)

    plans = await asyncio.gather(*(one(old) for old in found.agents))
    adopted = [plan for plan in plans if not plan["skipped"]]
    skipped = [f"`{plan['agent']}`: {plan['skipped']}" for plan in plans if plan["skipped"]] + found.skipped
    by_hand = [plan["by_hand"] for plan in adopted if plan["by_hand"]]
    said = [f"**{count(len(adopted), 'agent')} would be adopted** (nothing was done yet):"]
    said.append(bullets(_line(plan) for plan in adopted) or "None.")
    if by_hand:
        said.append(
            "**To be done by hand** where not anybody may join, before or afterwards, by somebody who may use the "
            "bridge:\n\n" + bullets(by_hand)
        )
    if skipped:
        said.append("**Left out:**\n\n" + bullets(skipped))
    if mute := sorted({who for plan in adopted for who in plan["may_not_talk"]}):
        said.append(
            "**Invited, but not allowed to talk to agents** (`permissions` in the configuration):\n\n" + bullets(mute)
        )
    if adopted:
        said.append(
            "Stop Letta-Matrix first, or both answer. Then use the same line with `--apply`. Passwords in the file are "
            "not used; delete it afterwards."
        )
    return Reply("\n\n".join(said), data={"agents": plans, "left_out": found.skipped, "applied": False})


async def _would(call: Call, old: OldAgent, out: list[str]) -> dict[str, Any]:
    """What would be done about one agent."""
    desk = call.desk
    plan: dict[str, Any] = {"agent": old.agent_id, "name": old.name, "room": old.room_id, "by_hand": ""}
    plan["skipped"] = await adopt.standing(desk, old)
    if plan["skipped"]:
        return plan
    row = await desk.agents.get(old.agent_id)  # type: ignore[arg-type]
    portal = row.portal_room if row is not None else None
    told = bool(old.room_id) and await desk.told.was_told(f"adopted|{old.room_id}")
    room = adopt.OldRoom("closed") if told else await adopt.look_at(desk, RoomID(old.room_id))
    people = adopt.wanted(desk, [*old.people, *room.people], out)
    before = await desk.rooms.invited_once(portal) if portal else set()
    plan["portal"] = portal
    plan["invite"] = [who for who in people if who not in before]
    plan["pointer"] = _pointer(old, told, room)
    plan["may_not_talk"] = [who for who in plan["invite"] if not desk.permissions.level(who)]
    if plan["pointer"] == "try":
        plan["by_hand"] = adopt.by_hand(desk, old)
    return plan


def _pointer(old: OldAgent, told: bool, room: adopt.OldRoom) -> str:
    if not old.room_id:
        return "none"
    if told:
        return "done"
    return "yes" if room.door in ("in", "invited", "open") else "try"


def _line(plan: dict[str, Any]) -> str:
    room = "has a room" if plan["portal"] else "gets a room"
    invited = f"invites {', '.join(plan['invite'])}" if plan["invite"] else "invites nobody"
    pointer = {
        "yes": f"points to it in {plan['room']}",
        "done": "its old room was told before",
        "try": f"points to it in {plan['room']} if anybody may join that",
        "none": "it had no room before",
    }[plan["pointer"]]
    return f"`{plan['agent']}`: {room}; {invited}; {pointer}"


COMMANDS = (
    Command(
        "import-letta-matrix",
        "adopts the agents of Letta-Matrix and invites its people to their new rooms",
        Need.ADMIN,
        _import,
        "Data",
        (Arg("file", "text", "its `agent_user_mappings.json`, on the bridge's machine"),),
        (
            Option("dry-run", "only show what would be done; that is what happens without `--apply` too", switch=True),
            Option("apply", "do it", switch=True),
            Option("except", "accounts that are not invited, separated by commas; `*` stands for anything"),
        ),
        details=(
            "Every agent of the file that Letta has is shown by this bridge, the people of its old room are invited to "
            "its new one, and the old room is told where that is, if the bot can get in. What cannot be done is listed "
            "with what to do about it; the command can be used again at any time and does nothing twice. "
            "docs/migrating-from-letta-matrix.md has the whole way."
        ),
        examples=(
            "import-letta-matrix agent_user_mappings.json",
            "import-letta-matrix agent_user_mappings.json --apply",
        ),
        changes=True,
        only_ctl=True,
    ),
)
