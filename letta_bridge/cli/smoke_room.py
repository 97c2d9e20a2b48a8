"""Steps of ``letta-bridge smoke`` in the test's room: making it, talking in it, hearing of it, leaving it."""

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mautrix.api import Method, Path

from ..ids import AgentID, EventID
from ..matrix.homeserver import HomeserverError, Intent
from ..mirror.maker import RoomExistsError, RoomMaker, find
from ..mirror.picture import make_picture
from .checks_homeserver import REGISTERED
from .exitcodes import Exit
from .smoke_listener import MARK, REASON
from .smoke_probes import asks_about_users, outside_the_room, repeated_ids, second_invitation, upload_ways
from .smoke_report import FailedError, SkippedError
from .smoke_run import STEP_SECONDS, Run, Step

ROOM_NAME = "Letta Bridge smoke test"
EMPTY_STATE = MARK + "_empty"
_LONGEST_EDU_WAIT = 5.0
_FULL_TEST = "for the whole test stop the bridge for a minute, run this again, and start the bridge"


def _text(body: str, **more: Any) -> dict[str, Any]:
    return {"msgtype": "m.notice", "body": body, MARK: True, **more}


# -- the room


async def _room(run: Run) -> str:
    """As the bridge makes an agent's room, with everything in one request."""
    maker = RoomMaker(run.homeserver, run.config.mirror.room_version, time.monotonic)
    body = {
        "preset": "private_chat",
        "room_alias_name": run.localpart,
        "name": ROOM_NAME,
        "creation_content": {MARK: True},
        "initial_state": [{"type": EMPTY_STATE, "state_key": "", "content": {}}],
        "power_level_content_override": await maker.power({run.user: 50}),
    }
    run.room_asked = True
    if run.listener:
        run.listener.expect_room()
    try:
        run.room_id, _ = await maker.make(body, [run.user], [])
    except RoomExistsError:
        text = f"{run.alias} is said to be in use, though its name was made up a moment ago"
        raise FailedError(text, "see the homeserver's log") from None
    except HomeserverError as error:
        run.room_refused = not error.passing
        raise
    finally:
        if run.listener:
            run.listener.room_is(run.room_id)
    wanted = await maker.version()
    found = find(await run.bot.state(run.room), "m.room.create").get("room_version")
    if found != wanted:
        raise FailedError(f"the room has version {found}, not {wanted}", "set mirror.room_version to one it supports")
    return f"{run.room_id}, version {found}"


async def _levels(run: Run) -> str:
    state = await run.bot.state(run.room)
    users = _mapping(find(state, "m.room.power_levels").get("users"))
    if users.get(run.user) != 50:
        text = f"the test user has the power level {users.get(run.user, 'of everybody')}, not 50"
        raise FailedError(text, "the homeserver ignores power_level_content_override; see its log")
    kept = any(event.get("type") == EMPTY_STATE for event in state)
    run.report.observe(
        "empty state given at a room's creation", "kept" if kept else "dropped", synapse="kept", tuwunel="dropped"
    )
    return f"the test user has 50, the bot {users.get(run.bot.mxid, 'all power as the creator')}"


async def _alias(run: Run) -> str:
    if await run.bot.resolve_alias(run.alias) != run.room_id:
        text = f"{run.alias} does not lead to the room that was created with it"
        raise FailedError(text, REGISTERED, Exit.NAMESPACES)
    return run.alias


async def _join(run: Run) -> str:
    how = "invited with the room's creation"
    if await run.bot.membership(run.room, run.user) != "invite":
        how = "invited afterwards, because the invitation of the creation did not come about"
        await run.bot.invite(run.room, run.user, REASON)
    await run.puppet.join(run.room)
    if (membership := await run.bot.membership(run.room, run.user)) != "join":
        raise FailedError(f"after joining, the membership is {membership}", "see the homeserver's log")
    await second_invitation(run)
    return how


# -- talking and hearing


async def _send(run: Run) -> str:
    run.sent_at = time.monotonic()
    content = _text("Smoke test: the test user speaks.")
    run.sent = await run.puppet.send(run.room, "m.room.message", content, run.txn("first"))
    return "naming the device" if run.device_made else "without a device"


async def _again(run: Run) -> str:
    content = _text("Smoke test: the test user speaks.")
    again = await run.puppet.send(run.room, "m.room.message", content, run.txn("first"))
    if again != run.sent:
        text = "the same transaction id made a second message"
        raise FailedError(text, "after a crash, answers could appear twice; see whether a proxy changes requests")
    await repeated_ids(run, _text("Smoke test: transaction ids."))
    return "the same event id, nothing was sent twice"


async def _receive(run: Run) -> str:
    listener = run.listener
    if listener is None:
        why = "receiving is left to the running bridge; its ping and its /_matrix/mau/ready say that it works"
        raise SkippedError(why if run.checkup.running else "nobody of ours listens", _FULL_TEST)
    if await listener.until(lambda: run.sent in listener.events, run.wait):
        run.receiving = True
        took = round((listener.events[run.sent].at - run.sent_at) * 1000)
        return f"{took} ms after it was sent"
    run.broken.add("receive")
    if listener.held_back:
        why = "the homeserver has messages for the bridge to deliver first, which are left to the bridge"
        remedy = "run the bridge until it has taken them (a minute), stop it, and run this again"
        raise SkippedError(why, remedy)
    if listener.refused:
        text = "the homeserver delivers with another hs_token than the configuration's"
        raise FailedError(text, REGISTERED, Exit.REGISTRATION)
    text = f"what was sent did not come back within {run.wait:g} seconds, though the homeserver's ping came through"
    remedy = (
        "see the homeserver's log. Synapse with workers: only notify_appservices_from_worker delivers. After an "
        "outage Synapse pauses for up to 8 minutes: try again. Does the registration's users namespace match?"
    )
    raise FailedError(text, remedy, Exit.PING)


async def _bot_speaks(run: Run) -> str:
    began = time.monotonic()
    content = _text("Smoke test: the bot speaks.")
    run.by_bot = await run.bot.send(run.room, "m.room.message", content, run.txn("bot"))
    return await _arrival(run, run.by_bot, began)


async def _arrival(run: Run, event_id: EventID, began: float) -> str:
    listener = run.listener
    if listener is None or not run.receiving:
        return "sent; its arrival was not waited for"
    if not await listener.until(lambda: event_id in listener.events, run.wait):
        text = f"it did not come back within {run.wait:g} seconds, as the first message did"
        raise FailedError(text, "the homeserver's deliveries have stopped; see its log", Exit.PING)
    return f"arrived {round((listener.events[event_id].at - began) * 1000)} ms after it was sent"


async def _typing(run: Run) -> str:
    await run.puppet.typing(run.room, 20)
    told = await _notice(run, "typing", lambda listener: listener.typed(run.room, run.user))
    await run.puppet.typing(run.room, 0)
    return told


async def _receipt(run: Run) -> str:
    await run.puppet.read_receipt(run.room, run.by_bot)
    return await _notice(run, "read receipts", lambda listener: listener.read(run.room, run.user))


async def _notice(run: Run, kind: str, came: Any) -> str:
    """Whether the bridge is told of it too, which it can do without."""
    listener = run.listener
    if listener is None or not run.receiving or not run.config.appservice.ephemeral:
        return "accepted"
    arrived = await listener.until(lambda: came(listener), min(run.wait, _LONGEST_EDU_WAIT))
    seen = "delivered" if arrived else "not delivered"
    run.report.observe(f"{kind} of the bridge's own users", seen, synapse="delivered", tuwunel="delivered")
    return f"accepted, and {seen} to the bridge" + ("" if arrived else ", which does not need it")


# -- media, changes, reading


async def _upload(run: Run) -> str:
    picture = make_picture(AgentID(run.tag))
    mxc = await run.puppet.upload(picture, "image/png", "smoke.png")
    server, _, name = mxc.removeprefix("mxc://").partition("/")
    if not mxc.startswith("mxc://") or not name:
        raise FailedError(f"the upload was answered with {mxc[:80]!r}", "see the homeserver's log")
    url = f"{run.homeserver.url}/_matrix/client/v1/media/download/{quote(server, safe='')}/{quote(name, safe='')}"
    headers = {"Authorization": f"Bearer {run.config.appservice.as_token}"}
    async with run.checkup.session.get(url, headers=headers) as answer:
        back = await answer.content.read(1 << 20)
        status = answer.status
    await upload_ways(run)
    if status != 200:
        why = f"uploaded; but reading it back is answered {status}"
        raise SkippedError(why, "pictures of agents show, if people's clients can read them: look at one")
    if back != picture:
        raise FailedError("what was uploaded reads back as something else", "see the homeserver's log")
    run.report.left_behind.append(f"the picture {mxc} ({len(picture)} bytes)")
    return f"{len(picture)} bytes, and back"


async def _edit(run: Run) -> str:
    new = _text("Smoke test: the test user has changed this.")
    content = {**new, "m.new_content": new, "m.relates_to": {"rel_type": "m.replace", "event_id": run.sent}}
    began = time.monotonic()
    event_id = await run.puppet.send(run.room, "m.room.message", content, run.txn("edit"))
    return await _arrival(run, event_id, began)


async def _redaction(run: Run) -> str:
    """The way the bridge takes back what it said: it keeps its transaction id on every homeserver."""
    content = {"redacts": run.sent, "reason": REASON, MARK: True}
    await run.puppet.send(run.room, "m.room.redaction", content, run.txn("redaction"))
    left = _mapping((await run.bot.event(run.room, run.sent)).get("content"))
    if "body" in left:
        text = "the message is still readable after its redaction"
        raise FailedError(text, "the homeserver does not apply redactions that are sent as events; update it")
    return "the message is empty now"


async def _state(run: Run) -> str:
    state = await run.puppet.state(run.room)
    name = _mapping(await run.puppet.request(Method.GET, Path.v3.rooms[run.room].state["m.room.name"])).get("name")
    members = await run.puppet.joined_members(run.room)
    if find(state, "m.room.name").get("name") != ROOM_NAME or name != ROOM_NAME:
        raise FailedError(f"the room's name reads {name!r}, not {ROOM_NAME!r}", "see the homeserver's log")
    if {run.user, run.bot.mxid} - set(members):
        raise FailedError("bot and test user are not both listed as members", "see the homeserver's log")
    await asks_about_users(run)
    return f"{len(state)} events, {len(members)} members"


async def _leave(run: Run) -> str:
    await run.puppet.leave(run.room, REASON)
    run.puppet_left = True
    if (membership := await run.bot.membership(run.room, run.user)) != "leave":
        raise FailedError(f"after leaving, the membership is {membership}", "see the homeserver's log")
    await forget(run.puppet, run)
    await outside_the_room(run)
    return "left and forgotten by the test user"


async def forget(intent: Intent, run: Run) -> None:
    """Forget the room; whoever has forgotten it already is no error."""
    try:
        await intent.request(Method.POST, Path.v3.rooms[run.room].forget)
    except HomeserverError as error:
        if error.status != 404:
            raise


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


STEPS = (
    Step("room", _room, ("test user",), STEP_SECONDS + 5),
    Step("power levels", _levels, ("room",)),
    Step("alias", _alias, ("room",)),
    Step("join", _join, ("room",)),
    Step("send", _send, ("join",)),
    Step("same id again", _again, ("send",), STEP_SECONDS + 5),
    Step("receive", _receive, ("ping", "send"), 120.0),
    Step("bot's message", _bot_speaks, ("room", "send"), 120.0),
    Step("typing", _typing, ("join",)),
    Step("read receipt", _receipt, ("join", "bot's message")),
    Step("upload", _upload, ("test user",)),
    Step("edit", _edit, ("send",), 120.0),
    Step("redaction", _redaction, ("send",)),
    Step("state", _state, ("join",), STEP_SECONDS + 5),
    Step("leave", _leave, ("join",)),
)
