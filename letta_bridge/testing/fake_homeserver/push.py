"""What both pushers share: the log, holding, the HTTP request to the appservice, and waiting for quiet."""

import asyncio
import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp

from .appservice import AppService
from .errors import MatrixError
from .events import JSON, Event
from .homeserver import Homeserver
from .rooms import Room

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Transaction:
    """One attempt to push. ``status`` is None while it runs and 0 when the connection failed or timed out."""

    txn_id: str
    body: JSON
    started: float
    attempt: int
    status: int | None = None
    duration: float | None = None
    event_ids: list[str] = field(default_factory=list)

    @property
    def events(self) -> list[JSON]:
        """The pushed events."""
        return list(self.body.get("events", ()))

    @property
    def ephemeral(self) -> list[JSON]:
        """The pushed typing and receipt notifications."""
        return list(self.body.get("ephemeral", ()))


@dataclass(slots=True)
class PushSettings:
    """Times of the pushing side in seconds; tests shorten them."""

    timeout: float = 60.0
    backoff_scale: float = 1.0
    netburst_keep: int = 50


class BasePusher:
    """Owns the HTTP session towards the appservice and one background task."""

    def __init__(self, hs: Homeserver, appservice: AppService, settings: PushSettings) -> None:
        self.hs = hs
        self.appservice = appservice
        self.settings = settings
        self.log: list[Transaction] = []
        self.crashes: list[Exception] = []
        self.on_log: Callable[[], None] = hs.notify
        self._session: aiohttp.ClientSession | None = None
        self._wake = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # ---- life

    async def start(self) -> None:
        """Begin pushing."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
            # aiohttp repeats a PUT by itself when the connection breaks; a homeserver's failed attempt is a failure
            self._session._retry_connection = False
        self._up.set()
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._guarded(), name="fake-homeserver-pusher")

    async def stop(self) -> None:
        """Stop for good or until the next start; what is queued stays queued."""
        self._up.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    def hold(self) -> None:
        """Send nothing from now on; the transaction in flight goes on."""
        self._open.clear()

    def release(self) -> None:
        """Send again."""
        self._open.set()
        self._wake.set()

    async def _guarded(self) -> None:
        try:
            await self._run()
        except Exception as bug:  # the boundary: a bug of the fake, raised when it closes
            logger.exception("the fake pusher failed")
            self.crashes.append(bug)
            self.on_log()

    async def _run(self) -> None:
        raise NotImplementedError

    async def _gate(self) -> None:
        await self._open.wait()
        await self._up.wait()

    @property
    def idle(self) -> bool:
        """Whether everything queued was delivered."""
        raise NotImplementedError

    # ---- the two questions that a homeserver asks

    async def ask(self, kind: str, name: str) -> bool:
        """``GET /_matrix/app/v1/{users,rooms}/{name}``: whether the appservice said yes."""
        if self._session is None or not self.appservice.url:
            return False
        url = f"{self.appservice.url}/_matrix/app/v1/{kind}/{quote(name, safe='')}"
        try:
            async with self._session.get(url, headers=self._headers(), timeout=self._timeout()) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def ping(self, transaction_id: str | None) -> int:
        """Call the appservice's ping; the duration in ms. Raises MatrixError as the homeserver words failures."""
        if not self.appservice.url:
            raise MatrixError(400, "M_URL_NOT_SET", "The application service does not have a URL set")
        url = f"{self.appservice.url}/_matrix/app/v1/ping"
        body = {} if transaction_id is None else {"transaction_id": transaction_id}
        begun = time.monotonic()
        assert self._session is not None
        try:
            async with self._session.post(
                url, json=body, headers=self._headers(), params=self._params(), timeout=self._timeout()
            ) as answer:
                text = await answer.text(errors="replace")
                status = answer.status
        except TimeoutError as timeout:
            raise MatrixError(504, "M_CONNECTION_TIMEOUT", "Timed out calling the application service") from timeout
        except aiohttp.ClientError as broken:
            raise MatrixError(502, "M_CONNECTION_FAILED", "Could not call the application service") from broken
        if not 200 <= status < 300:
            refusal = MatrixError(502, "M_BAD_STATUS", f"Ping returned unexpected status {status}")
            refusal.extra = {"status": status, "body": text}
            raise refusal
        self.retry_now()
        return int((time.monotonic() - begun) * 1000)

    def retry_now(self) -> None:
        """Retry what failed, at once (a successful ping does this)."""
        raise NotImplementedError

    # ---- one request

    def push_event(self, event: Event, room: Room) -> None:
        """Queue an event."""
        raise NotImplementedError

    def push_edu(self, edu: JSON) -> None:
        """Queue a notification that has no id."""
        raise NotImplementedError

    def restart(self, reset_txn_counter: bool) -> None:
        """What a restart of the homeserver's process does to the queue."""
        raise NotImplementedError

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.appservice.hs_token}"}

    def _params(self) -> dict[str, str]:
        return {}

    def _timeout(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=self.settings.timeout, sock_connect=5)

    async def put(self, txn_id: str, body: JSON, attempt: int) -> bool:
        """PUT one transaction and log it; whether the appservice took it (any 2xx)."""
        entry = Transaction(txn_id, body, time.monotonic(), attempt)
        entry.event_ids = [event["event_id"] for event in entry.events]
        self.log.append(entry)
        url = f"{self.appservice.url}/_matrix/app/v1/transactions/{quote(txn_id, safe='')}"
        headers = {"Content-Type": "application/json", **self._headers()}
        data = io.BytesIO(json.dumps(body).encode())
        status = 0
        try:
            assert self._session is not None
            async with self._session.put(
                url, data=data, headers=headers, params=self._params(), timeout=self._timeout()
            ) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, ValueError):
            status = 0
        finally:
            entry.status = status
            entry.duration = time.monotonic() - entry.started
            self.on_log()
        return 200 <= status < 300

    async def put_raw(
        self, txn_id: str, body: bytes, headers: dict[str, str], params: dict[str, str]
    ) -> tuple[int, str]:
        """PUT any bytes as a transaction, outside the queue; status and text of the answer."""
        assert self._session is not None
        url = f"{self.appservice.url}/_matrix/app/v1/transactions/{quote(txn_id, safe='')}"
        headers = {"Content-Type": "application/json", **headers}
        async with self._session.put(
            url, data=io.BytesIO(body), headers=headers, params=params, timeout=self._timeout()
        ) as answer:
            return answer.status, await answer.text(errors="replace")

    def device_counts(self, rooms: list[Room]) -> dict[str, Any]:
        """MSC3202: one-time-key counts of the namespace users in these rooms. No keys are ever held: all empty."""
        users = {self.appservice.sender}
        for room in rooms:
            users.update(filter(self.appservice.owns_user, room.members()))
        accounts = self.hs.accounts.users
        return {
            user: dict.fromkeys(accounts[user].devices)
            for user in sorted(users)
            if user in accounts and accounts[user].devices
        }
