"""``set-management-room``: where an administrator is told things, when it is not the room that the bridge made."""

from ..alarms import LANE as ALARM_LANE
from ..db.database import Connection
from ..ids import MXID
from ..routing.permissions import Level
from .call import CTL, Call
from .readers import why_open
from .show import bullets, escape, name_of
from .table import Command, CommandError, Need, Reply

_NO_PREFIX = "commands need no `!letta`"


async def _set(call: Call) -> Reply:
    desk, room_id = call.desk, call.room_id
    if not room_id or call.who == CTL:
        raise CommandError(
            "Write this in the room that is to be your management room: a direct chat with the bot, or an unencrypted "
            "room with it and no agents."
        )
    room = await desk.rooms.info(room_id)
    bot = desk.homeserver.bot_mxid
    joined = [member.mxid for member in room.joined]
    if bot not in joined:
        raise CommandError(f"The bot ({bot}) is not in this room. Invite it, or use a direct chat with it.")
    if agents := await desk.agents.in_room(room_id):
        raise CommandError(
            f"Agents are in this room ({', '.join(name_of(agent) for agent in agents[:5])}), and messages to them "
            f"would be mixed up with commands. Use a direct chat with the bot ({bot})."
        )
    if room.encrypted:
        raise CommandError(
            "This room is encrypted, and I cannot read encrypted messages. Make a room without encryption, invite the "
            f"bot ({bot}), and write `set-management-room` there."
        )
    if why := await why_open(desk, room_id):
        raise CommandError(
            f"That is not possible here: {why}. Use a direct chat with the bot ({bot}), or a room by invitation."
        )
    who = MXID(call.who)
    before = (await desk.management.all()).get(who)
    if before == room_id:
        return Reply("This is your management room already.", data={"room_id": room_id})

    async def work(conn: Connection) -> None:
        await desk.management.set(conn, who, room_id)
        await desk.lanes.announce(conn, ALARM_LANE)

    await desk.db.write(work)
    desk.lanes.wake(ALARM_LANE)
    others = [mxid for mxid in joined if mxid != who and not desk.directory.is_ours(mxid)]
    prefix = "begin commands with `!letta` or mention me, because others are here" if others else _NO_PREFIX
    parts = [f"From now on this is your management room: I tell you here what goes wrong; {prefix}."]
    if before:
        parts.append("The room before it is your management room no more; you may leave it.")
    people = [
        mxid for mxid in joined if not desk.directory.is_ours(mxid) and desk.permissions.level(mxid) < Level.ADMIN
    ]
    if people:
        parts.append(
            "These people read along and are no administrators, so what is private is not shown here while they are in "
            f"it:\n\n{bullets(map(escape, people[:20]))}"
        )
    return Reply("\n\n".join(parts), data={"room_id": room_id, "before": before or None})


COMMANDS = (
    Command(
        "set-management-room",
        "makes the room where you write it your management room",
        Need.ADMIN,
        _set,
        "Bridge",
        details=(
            "The bridge makes a management room for every administrator whom the configuration names by the full "
            "Matrix id (`management.rooms`). This chooses another one, also after you have left that, or for "
            "administrators who have none; several may share one. It must not be encrypted, and no agents may be in it."
        ),
        examples=("set-management-room",),
        changes=True,
    ),
)
