"""Pushing as Tuwunel 1.9 does: ids by content, 48 rows, no timer after a failure, both tokens, EDUs last."""

import base64
import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import aiohttp

from .appservice import AppService
from .events import JSON, Event, pushed_event
from .homeserver import Homeserver
from .push import BasePusher, PushSettings
from .rooms import Room
from .tuwunel_rows import Row, Rows

_BATCH = 48
_IDLE_SECONDS = 300.0


class Source(Protocol):
    """Where bodies come from, at the moment of sending."""

    def current(self, event_id: str) -> JSON | None:
        """The event as it is pushed now: pruned if it was redacted; None when it is there no more."""

    def devices(self, user_id: str) -> list[str]:
        """The user's devices, for the counts of one-time keys."""


class HomeserverSource:
    """The events of FakeHomeserver."""

    def __init__(self, hs: Homeserver) -> None:
        self._hs = hs

    def current(self, event_id: str) -> JSON | None:
        """See Source."""
        event = self._hs.events.get(event_id)
        return None if event is None else pushed_event(event, self._hs.flavour)

    def devices(self, user_id: str) -> list[str]:
        """See Source."""
        user = self._hs.accounts.users.get(user_id)
        return list(user.devices) if user is not None else []


class TuwunelPusher(BasePusher):
    """See the module's line. A failed transaction waits for a new row, a ping, or a restart.

    Args:
        rows: the queue; by default an empty one in memory.
    """

    def __init__(
        self,
        source: Source,
        appservice: AppService,
        settings: PushSettings,
        on_log: Callable[[], None],
        rows: Rows | None = None,
    ) -> None:
        super().__init__(appservice, settings, on_log)
        self.source = source
        self.rows = Rows() if rows is None else rows
        self._retrying = False
        self._again = False
        self._attempts: dict[str, int] = {}
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether everything queued was delivered."""
        return not len(self.rows) and not self._busy

    def close(self) -> None:
        """See BasePusher."""
        self.rows.close()

    # ---- queueing

    def push_event(self, event: Event, room: Room) -> None:
        """Queue an event of FakeHomeserver."""
        self.queue_event(event.event_id, self.rows.room(room.room_id))

    def queue_event(self, event_id: str, room_no: int) -> None:
        """Queue an event of the room with this number."""
        self.rows.add("pdu", event_id, room_no)
        self._new_row()

    def push_edu(self, edu: JSON) -> None:
        """Queue a typing notification or a public receipt; presence is never pushed."""
        if self.appservice.ephemeral and edu.get("type") in ("m.typing", "m.receipt"):
            self.rows.add("edu", edu)
            self._new_row()

    def push_to_device(self, message: JSON) -> None:
        """Queue a to-device message for one of the appservice's users: whatever the registration says."""
        self.rows.add("to_device", message)
        self._new_row()

    def push_device_list(self, user_id: str) -> None:
        """Queue the news that a user's devices changed (MSC3202)."""
        if self.appservice.key_counts:
            self.rows.add("device_list", user_id)
            self._new_row()

    def _new_row(self) -> None:
        self._retrying = False
        self._wake.set()

    def retry_now(self) -> None:
        """A ping: retry now, or once more when the transaction in flight fails."""
        self._again = self._busy
        self._retrying = False
        self._wake.set()

    def restart(self, reset_txn_counter: bool = False) -> None:
        """Active rows are sent again; rows beyond ``netburst_keep`` are dropped. Ids have no counter."""
        self.rows.keep(self.settings.netburst_keep)
        self._retrying = False
        self._wake.set()

    # ---- sending

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            limit = 1  # from idle, the first row goes alone
            while not self._retrying and len(self.rows):
                await self._gate()
                self._busy = True
                try:
                    await self._send(limit)
                finally:
                    self._busy = False
                    self.on_log()
                limit = _BATCH

    async def _send(self, limit: int) -> None:
        batch = self.rows.active() or self.rows.take(limit)
        txn_id = transaction_id(batch)
        attempt = self._attempts[txn_id] = self._attempts.get(txn_id, 0) + 1
        if await self.put(txn_id, self._body(batch), attempt, len(batch)):
            self.rows.done(batch)
            self._attempts.pop(txn_id, None)
        else:
            self._retrying = not self._again  # what was queued meanwhile does not trigger a retry
        self._again = False

    def _body(self, batch: list[Row]) -> JSON:
        current = (self.source.current(row.payload) for row in batch if row.kind == "pdu")
        events = [event for event in current if event is not None]
        to_device = [row.payload for row in batch if row.kind == "to_device"]
        changed = [row.payload for row in batch if row.kind == "device_list"]
        body: JSON = {
            "ephemeral": [row.payload for row in batch if row.kind == "edu"],
            "de.sorunome.msc2409.to_device": to_device,
            "org.matrix.msc3202.device_lists": {"changed": changed} if changed else {},
        }
        if self.appservice.key_counts:
            owned = filter(self.appservice.owns_user, (event["sender"] for event in events))
            body |= self._keys({self.appservice.sender, *owned, *(message["to_user_id"] for message in to_device)})
        return {"events": events, **{key: value for key, value in body.items() if value}}

    def _keys(self, users: Iterable[str]) -> JSON:
        """Nobody here ever has keys: the counts of all devices are empty."""
        devices = {user: names for user in sorted(users) if (names := self.source.devices(user))}
        prefix = "org.matrix.msc3202.device"
        return {
            f"{prefix}_one_time_keys_count": {u: {d: {} for d in ds} for u, ds in devices.items()},
            f"{prefix}_unused_fallback_key_types": {u: {d: [] for d in ds} for u, ds in devices.items()},
        }

    def _params(self) -> dict[str, str]:
        return {"access_token": self.appservice.hs_token}

    def _connector(self) -> aiohttp.TCPConnector:
        idle = _IDLE_SECONDS if self.settings.idle_timeout is None else self.settings.idle_timeout
        return aiohttp.TCPConnector(keepalive_timeout=idle)

    # ---- questions about keys

    async def ask_keys(self, kind: str, body: JSON) -> tuple[int, JSON, float]:
        """MSC3984 ``query`` or MSC3983 ``claim``, which people wait for: status, answer, and seconds it took."""
        msc = {"query": "msc3984", "claim": "msc3983"}[kind]
        url = f"{self.appservice.url}/_matrix/app/unstable/org.matrix.{msc}/keys/{kind}"
        begun = time.monotonic()
        assert self._session is not None
        async with self._session.post(
            url, json=body, headers=self._headers(), params=self._params(), timeout=self._timeout()
        ) as answer:
            return answer.status, await answer.json(), time.monotonic() - begun


def transaction_id(rows: Iterable[Row]) -> str:
    """Tuwunel's id of a transaction: a hash of what it carries."""
    digest = hashlib.sha256(b"\xff".join(row.identity() for row in rows)).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
