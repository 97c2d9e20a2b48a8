"""What ``letta-bridge smoke`` takes away again, whatever happened before, and what has to stay."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from mautrix.api import Method, Path

from ..ids import RoomID
from ..matrix.homeserver import HomeserverError
from .checkup import Status
from .exitcodes import Exit
from .smoke_listener import REASON
from .smoke_report import Line
from .smoke_room import ROOM_NAME, forget
from .smoke_run import Run

CLEANUP_SECONDS = 14.0
_EACH_SECONDS = 5.0
_LAST_SECONDS = 2.0
_LOOKS = 4

Action = Callable[[Run], Awaitable[None]]


async def clean_up(run: Run) -> None:
    """Take away what was made, each thing for itself: what fails does not keep the rest. Reports one line."""
    if not run.registered and not run.room_asked:
        return
    began = time.monotonic()
    done: list[str] = []
    failed: list[str] = []
    try:
        async with asyncio.timeout(CLEANUP_SECONDS):
            for what, action in await _due(run, failed):
                await _try(run, what, action, done, failed)
    except TimeoutError:
        failed.append("the rest, for which there was no time")
    ms = round((time.monotonic() - began) * 1000)
    text = "; ".join([*done, *(f"NOT: {what}" for what in failed)])
    if failed:
        where = f" in {run.room_id}" if run.room_id else ""
        remedy = f"take {run.user}, {run.alias} and what they left{where} away by hand, or leave them: they do nothing"
        run.report.add(Line("clean up", Status.FAIL, text, ms, remedy, Exit.SMOKE))
    else:
        run.report.add(Line("clean up", Status.OK, text, ms))


async def _due(run: Run, failed: list[str]) -> list[tuple[str, Action]]:
    """What there is to be done, in its order."""
    due: list[tuple[str, Action]] = []
    if run.room_asked and run.room_id is None:
        run.room_id = await _lost_room(run, failed)
    if run.room_id is not None:
        due = [
            ("alias deleted", _delete_alias),
            ("room renamed", _rename),
            ("room left by the test user", _puppet_leaves),
            ("room left by the bot", _bot_leaves),
        ]
        run.report.left_behind.insert(0, f"the room {run.room_id}, empty and forgotten")
    if run.registered:
        if run.device_made:
            due.append(("device deleted", _delete_device))
        due += [("name taken away", _clear_name), ("test user deactivated", _deactivate)]
    return due


async def _lost_room(run: Run, failed: list[str]) -> RoomID | None:
    """The room whose creation was asked for and never confirmed: its alias knows, perhaps only in a moment."""
    try:
        async with asyncio.timeout(_EACH_SECONDS):
            room_id = await run.bot.resolve_alias(run.alias)
            for _ in range(0 if run.room_refused else _LOOKS):
                if room_id is not None:
                    break
                await asyncio.sleep(_LAST_SECONDS / _LOOKS)
                room_id = await run.bot.resolve_alias(run.alias)
            return room_id
    except (HomeserverError, TimeoutError):
        failed.append("finding out whether the room was created")
        return None


async def _try(run: Run, what: str, action: Action, done: list[str], failed: list[str]) -> None:
    try:
        async with asyncio.timeout(_EACH_SECONDS):
            await action(run)
    except HomeserverError as error:
        failed.append(f"{what} ({error.status or 'no answer'} {error.errcode})".replace(" )", ")"))
    except TimeoutError:
        failed.append(f"{what} (no answer)")
    except _StaysError as stays:
        run.report.left_behind.append(str(stays))
    else:
        done.append(what)


class _StaysError(Exception):
    """Something cannot be taken away, and that was to be expected."""


async def _delete_alias(run: Run) -> None:
    try:
        await run.bot.patiently(Method.DELETE, Path.v3.directory.room[run.alias])
    except HomeserverError as error:
        if error.status != 404:
            raise


async def _rename(run: Run) -> None:
    await run.bot.set_state(run.room, "m.room.name", "", {"name": f"{ROOM_NAME} (over, can be deleted)"})


async def _puppet_leaves(run: Run) -> None:
    if not run.puppet_left:
        await run.puppet.leave(run.room, REASON)
        await forget(run.puppet, run)


async def _bot_leaves(run: Run) -> None:
    """Last of all, and only forgotten when the homeserver has delivered that: nothing is left for the bridge then."""
    await run.bot.leave(run.room, REASON)
    listener = run.listener
    if listener is not None and run.receiving:
        bot = run.bot.mxid
        await listener.until(
            lambda: any(
                seen.event.get("state_key") == bot and seen.event.get("content", {}).get("membership") == "leave"
                for seen in listener.events.values()
            ),
            _LAST_SECONDS,
        )
    await forget(run.bot, run)


async def _delete_device(run: Run) -> None:
    run.puppet.forget_device()
    await run.puppet.patiently(Method.DELETE, Path.v3.devices[run.device_id])


async def _clear_name(run: Run) -> None:
    run.puppet.forget_device()
    await run.puppet.set_displayname("")


async def _deactivate(run: Run) -> None:
    """Synapse lets appservices deactivate their users. On Tuwunel a password would be needed, and there is none."""
    try:
        await run.puppet.patiently(Method.POST, Path.v3.account.deactivate, {"erase": False})
    except HomeserverError as error:
        if error.passing and error.status != 401:
            raise
        why = f"the homeserver does not let the bridge deactivate it: {error.status} {error.errcode}".strip()
        raise _StaysError(f"the user {run.user}, without a name ({why})") from None
    run.report.left_behind.append(f"the user {run.user}, deactivated")
