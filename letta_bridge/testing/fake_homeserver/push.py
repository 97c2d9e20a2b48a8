"""What both pushers share: the log, holding, the HTTP request to the appservice, and waiting for quiet."""

import asyncio
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import aiohttp

from .appservice import AppService
from .errors import MatrixError
from .events import JSON, Event
from .push_faults import PushFault, PushFaults, paced
from .rooms import Room

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Transaction:
    """One attempt to push. ``status`` is None while it runs and 0 when the connection failed or timed out.

    ``rows`` is what was queued for it: more than what it carries when events were purged meanwhile.
    """

    txn_id: str
    body: JSON
    started: float
    attempt: int
    status: int | None = None
    duration: float | None = None
    rows: int = 0
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
    idle_timeout: float | None = None
    """How long a kept connection may be idle before it is not used again; None: as the homeserver does."""


class BasePusher:
    """Owns the HTTP session towards the appservice and one background task."""

    def __init__(self, appservice: AppService, settings: PushSettings, on_log: Callable[[], None]) -> None:
        self.appservice = appservice
        self.settings = settings
        self.faults = PushFaults()
        self.log: list[Transaction] = []
        self.crashes: list[Exception] = []
        self.on_log = on_log
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
            self._session = aiohttp.ClientSession(connector=self._connector())
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

    def close(self) -> None:
        """Let go of what is kept over a stop. Nothing can be queued afterwards."""

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
        if self._session is None or self._session.closed:  # it was asked while the homeserver went down
            raise MatrixError(502, "M_CONNECTION_FAILED", "Could not call the application service")
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

    def _connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector()

    async def put(self, txn_id: str, body: JSON, attempt: int, rows: int = 0) -> bool:
        """PUT one transaction and log it; whether the appservice took it (any 2xx)."""
        fault = self.faults.next()
        txn_id = fault.txn_id or txn_id
        entry = Transaction(txn_id, body, time.monotonic(), attempt, rows=rows)
        entry.event_ids = [event["event_id"] for event in entry.events]
        self.log.append(entry)
        status = 0
        try:
            status = await self._attempt(txn_id, body, fault)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            status = 0
        finally:
            entry.status = status
            entry.duration = time.monotonic() - entry.started
            self.on_log()
        return 200 <= status < 300

    async def _attempt(self, txn_id: str, body: JSON, fault: PushFault) -> int:
        """One request, with what is to go wrong with it; the status that the homeserver believes in."""
        if fault.lost:
            return 0
        shaped = body if fault.change is None else fault.change(body)
        data = shaped if isinstance(shaped, bytes) else json.dumps(shaped).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **self._headers()}
        params = self._params()
        if fault.header_token is not None:
            headers["Authorization"] = f"Bearer {fault.header_token}"
        if fault.query_token is not None:
            params["access_token"] = fault.query_token
        headers = {key: value for key, value in headers.items() if value != "Bearer "}
        params = {key: value for key, value in params.items() if value}
        asking = asyncio.create_task(self._ask_to_take(txn_id, paced(data, fault), headers, params))
        try:
            if fault.cut:
                arrived = asyncio.create_task(fault.arrived.wait())
                await asyncio.wait({asking, arrived}, return_when=asyncio.FIRST_COMPLETED)
                arrived.cancel()
                return 0
            status = await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(fault.after)
        return status if fault.status is None else fault.status

    async def _ask_to_take(
        self, txn_id: str, data: AsyncIterator[bytes], headers: dict[str, str], params: dict[str, str]
    ) -> int:
        assert self._session is not None
        url = f"{self.appservice.url}/_matrix/app/v1/transactions/{quote(txn_id, safe='')}"
        async with self._session.put(url, data=data, headers=headers, params=params, timeout=self._timeout()) as answer:
            await answer.read()
            return answer.status

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
