"""FakeTuwunel: Tuwunel's sender with a queue that a test fills by hand, and the one route that belongs to it."""

import asyncio
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from ..fake_homeserver.appservice import AppService
from ..fake_homeserver.errors import MatrixError, forbidden
from ..fake_homeserver.events import JSON, new_event_id
from ..fake_homeserver.push import PushSettings, Transaction
from ..fake_homeserver.push_faults import PushFault
from ..fake_homeserver.tuwunel_push import TuwunelPusher
from ..fake_homeserver.tuwunel_rows import Rows
from .events import EventStore


class FakeTuwunel:
    """``async with FakeTuwunel(registration, path) as tuwunel``; see the package.

    Args:
        registration: the parsed registration file.
        path: a file for rows and events, which then outlive this object; None: in memory.
        settings: times of the pushing side; the default timeout is 35 seconds.
    """

    def __init__(
        self,
        registration: Mapping[str, Any],
        path: Path | None = None,
        *,
        domain: str = "test.local",
        settings: PushSettings | None = None,
    ) -> None:
        self.appservice = AppService(registration, domain, unanchored=True)
        self.settings = settings or PushSettings(timeout=35.0)
        self._changed = asyncio.Event()
        rows = Rows(path)
        self.events = EventStore(rows.db)
        self.pusher = TuwunelPusher(self.events, self.appservice, self.settings, self._notify, rows)
        self._runner: web.AppRunner | None = None
        self._port = 0

    # ---- life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        self.pusher.close()
        if error is None and self.pusher.crashes:
            raise self.pusher.crashes[0]

    async def start(self) -> None:
        """Push, and answer pings at ``url``."""
        app = web.Application()
        app.router.add_post("/_matrix/client/v1/appservice/{id}/ping", self.answer_ping)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        await self.pusher.start()

    async def stop(self) -> None:
        """Push nothing and answer nothing; rows are kept."""
        await self.pusher.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self) -> None:
        """End the process and start it: active rows go first, rows beyond ``settings.netburst_keep`` are dropped."""
        await self.stop()
        self.pusher.restart()
        await self.start()

    @property
    def url(self) -> str:
        """Where the appservice's ping goes. Known after the first start."""
        return f"http://127.0.0.1:{self._port}"

    # ---- rows

    def room(self, room_id: str | None = None) -> int:
        """A room's number: a new room, or the one of this id."""
        return self.pusher.rows.room(room_id or f"!{secrets.token_hex(9)}:{self.appservice.domain}")

    def event(self, room_no: int, event: JSON) -> str:
        """Queue an event; its id. What is missing of id, room and time is added."""
        event = {
            "event_id": new_event_id(),
            "room_id": self.pusher.rows.room_id(room_no),
            "origin_server_ts": int(time.time() * 1000),
            "unsigned": {},
            **event,
        }
        if self.events.put(event):
            self.pusher.queue_event(event["event_id"], room_no)
        return str(event["event_id"])

    def edu(self, edu: JSON) -> None:
        """Queue a notification without an id."""
        self.pusher.push_edu(edu)

    def to_device(self, message: JSON) -> None:
        """Queue a to-device message; it names ``to_user_id`` and ``to_device_id``."""
        self.pusher.push_to_device(message)

    def device_list(self, user_id: str) -> None:
        """Queue the news that a user's devices changed."""
        self.pusher.push_device_list(user_id)

    def redact(self, event_id: str) -> None:
        """What is sent of it from now on is pruned."""
        self.events.redact(event_id)

    def purge(self, event_id: str) -> None:
        """Nothing is sent of it from now on."""
        self.events.purge(event_id)

    # ---- pings

    async def ping(self, transaction_id: str | None = None) -> int:
        """Call the appservice's ping, and on success try again what failed; milliseconds. MatrixError if it fails."""
        return await self.pusher.ping(transaction_id)

    async def answer_ping(self, request: web.Request) -> web.Response:
        """``POST /_matrix/client/v1/appservice/{id}/ping``."""
        try:
            return web.json_response({"duration_ms": await self._ping_of(request)})
        except MatrixError as refusal:
            return web.json_response(refusal.body(), status=refusal.status)

    async def _ping_of(self, request: web.Request) -> int:
        header = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if (header or request.query.get("access_token")) != self.appservice.as_token:
            raise MatrixError(401, "M_UNKNOWN_TOKEN", "Unknown access token.")
        if request.match_info["id"] != self.appservice.id:
            raise forbidden("Appservices can only ping themselves (wrong appservice ID).")
        body = await request.json() if request.can_read_body else {}
        return await self.ping(body.get("transaction_id"))

    # ---- faults and looking

    def fail_push(self, fault: PushFault) -> PushFault:
        """Let the next attempt to push meet a fault (``skip`` others first); it strikes once."""
        return self.pusher.faults.arm(fault)

    async def push_again(self, transaction: Transaction) -> bool:
        """Push a finished transaction once more; whether it was taken."""
        return await self.pusher.put(transaction.txn_id, transaction.body, transaction.attempt + 1)

    @property
    def log(self) -> list[Transaction]:
        """Every attempt to push, oldest first."""
        return self.pusher.log

    async def delivered(self, timeout: float = 10.0) -> None:
        """Return when nothing waits any more. TimeoutError when that is late."""
        async with asyncio.timeout(timeout):
            while not self.pusher.idle:
                await self._changed.wait()

    async def attempts(self, count: int, timeout: float = 10.0) -> None:
        """Return when so many attempts have ended. TimeoutError when that is late."""
        async with asyncio.timeout(timeout):
            while sum(entry.status is not None for entry in self.log) < count:
                await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
