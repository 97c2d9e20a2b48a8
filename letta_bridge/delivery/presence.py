"""Typing notices and read receipts: hints that may be lost, sent directly and never waited for."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any

from .. import faults
from ..ids import MXID, EventID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError

log = logging.getLogger(__name__)

_READ_AFTER = 0.3
"""Seconds until a receipt goes out: one for all that is read meanwhile, and an instant answer need not wait for it."""
_READ_AGAIN = 3.0
"""Seconds until the next one of the same room: in a burst, every message's own would cost the homeserver too much."""
_AFTER = 1.0
_SHOWN_FOR = 30.0
_REFRESH = 20.0
_CALL_SECONDS = 5.0


class Presence:
    """What puppets show beside their messages.

    Typing starts one second after Letta accepted (an instant answer needs none), is refreshed while the run lives,
    and is ended explicitly: Tuwunel keeps it for at least fifteen seconds otherwise.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        self._due: dict[tuple[MXID, RoomID], float] = {}
        self._shown: set[tuple[MXID, RoomID]] = set()
        self._read: dict[tuple[MXID, RoomID], EventID] = {}
        self._just_read: set[tuple[MXID, RoomID]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def read(self, puppet: MXID, room_id: RoomID, event_id: EventID) -> None:
        """The puppet has read up to ``event_id``: shown a moment later, together with what it reads until then."""
        known = (puppet, room_id) in self._read
        self._read[(puppet, room_id)] = event_id
        if not known:
            delay = _READ_AGAIN if (puppet, room_id) in self._just_read else _READ_AFTER
            asyncio.get_running_loop().call_later(delay, self._send_receipt, puppet, room_id)

    def _send_receipt(self, puppet: MXID, room_id: RoomID) -> None:
        event_id = self._read.pop((puppet, room_id), None)
        if event_id is not None:  # else it went out when everything was closed
            self._just_read.add((puppet, room_id))
            asyncio.get_running_loop().call_later(_READ_AGAIN, self._just_read.discard, (puppet, room_id))
            self._spawn(self._receipt(puppet, room_id, event_id))

    async def _receipt(self, puppet: MXID, room_id: RoomID, event_id: EventID) -> None:
        faults.reach("receipt.before")
        await self._homeserver.intent(puppet).read_receipt(room_id, event_id)
        faults.reach("receipt.after")

    def expect_typing(self, puppet: MXID, room_id: RoomID) -> None:
        """Start the clock of the typing notice."""
        self._due.setdefault((puppet, room_id), time.monotonic() + _AFTER)

    def due(self, puppet: MXID, room_id: RoomID) -> float | None:
        """Seconds until the notice has to be shown or refreshed; None when none is expected."""
        due = self._due.get((puppet, room_id))
        return None if due is None else max(0.0, due - time.monotonic())

    def refresh(self, puppet: MXID, room_id: RoomID) -> None:
        """Show the notice if it is due."""
        if self.due(puppet, room_id) == 0.0:
            self._due[(puppet, room_id)] = time.monotonic() + _REFRESH
            self._shown.add((puppet, room_id))
            self._spawn(self._homeserver.intent(puppet).typing(room_id, _SHOWN_FOR))

    def stop_typing(self, puppet: MXID, room_id: RoomID) -> None:
        """End the notice, if one was shown."""
        self._due.pop((puppet, room_id), None)
        if (puppet, room_id) in self._shown:
            self._shown.discard((puppet, room_id))
            self.end_typing(puppet, room_id)

    def end_typing(self, puppet: MXID, room_id: RoomID) -> None:
        """End a notice that another process may have left behind."""
        self._spawn(self._homeserver.intent(puppet).typing(room_id, 0))

    def _spawn(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._quietly(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, call: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CALL_SECONDS):
                try:
                    await call
                except HomeserverError as error:
                    log.debug("hint not sent", extra={"action": "hint_lost", "why": str(error)})

    async def close(self) -> None:
        """End every notice that is shown, send the receipts that wait, and wait for what is under way."""
        for puppet, room_id in list(self._read):
            self._send_receipt(puppet, room_id)
        for puppet, room_id in list(self._shown):
            self.stop_typing(puppet, room_id)
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
