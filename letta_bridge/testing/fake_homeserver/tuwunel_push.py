"""Pushing as Tuwunel does: ids by content, 48 rows, no timer after a failure, both tokens, EDUs last."""

import base64
import hashlib
from dataclasses import dataclass

from .events import JSON, Event, canonical, pushed_event
from .push import BasePusher
from .rooms import Room

_ROWS = 48


@dataclass(slots=True)
class _Row:
    """A queued row. EDUs have the counter as their room number: they sort behind older rooms."""

    room_no: int
    position: int
    event: Event | None = None
    edu: JSON | None = None
    active: bool = False

    def identity(self) -> bytes:
        """The bytes that go into the transaction id: a typing notification has nothing unique."""
        if self.edu is not None:
            return canonical(self.edu)
        return self.room_no.to_bytes(8, "big") + self.position.to_bytes(8, "big")


class TuwunelPusher(BasePusher):
    """See the module's line. A failed transaction waits for a new row, a ping, or a restart."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._rows: list[_Row] = []
        self._counter = 0
        self._room_numbers: dict[str, int] = {}
        self._retrying = False
        self._again = False
        self._attempts: dict[str, int] = {}
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether everything queued was delivered."""
        return not self._rows and not self._busy

    def _next(self) -> int:
        self._counter += 1
        return self._counter

    def push_event(self, event: Event, room: Room) -> None:
        """Queue an event. Room numbers and counters come from one sequence."""
        if room.room_id not in self._room_numbers:
            self._room_numbers[room.room_id] = self._next()
        self._queue(_Row(self._room_numbers[room.room_id], self._next(), event=event))

    def push_edu(self, edu: JSON) -> None:
        """Queue a notification."""
        if self.appservice.ephemeral:
            self._queue(_Row(self._next(), 0, edu=edu))

    def _queue(self, row: _Row) -> None:
        self._rows.append(row)
        self._retrying = False
        self._wake.set()

    def retry_now(self) -> None:
        """A ping: retry now, or once more when the transaction in flight fails."""
        self._again = self._busy
        self._retrying = False
        self._wake.set()

    def restart(self, reset_txn_counter: bool) -> None:
        """Active rows are sent again; of the others only ``netburst_keep`` survive. Ids have no counter."""
        waiting = [row for row in self._rows if not row.active]
        dropped = waiting[max(0, self.settings.netburst_keep - (len(self._rows) - len(waiting))) :]
        gone = {id(row) for row in dropped}
        self._rows = [row for row in self._rows if id(row) not in gone]
        self._retrying = False
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            limit = 1  # from idle, the first row goes alone
            while self._rows and not self._retrying:
                await self._gate()
                self._busy = True
                try:
                    await self._send(limit)
                finally:
                    self._busy = False
                    self.on_log()
                limit = _ROWS

    async def _send(self, limit: int) -> None:
        batch = [row for row in self._rows if row.active]
        if not batch:
            order = self._rows if limit == 1 else sorted(self._rows, key=lambda row: (row.room_no, row.position))
            batch = order[:limit]
            for row in batch:
                row.active = True
        txn_id = self._identity(batch)
        self._attempts[txn_id] = self._attempts.get(txn_id, 0) + 1
        if await self.put(txn_id, self._body(batch), self._attempts[txn_id]):
            done = {id(row) for row in batch}
            self._rows = [row for row in self._rows if id(row) not in done]
            self._attempts.pop(txn_id, None)
        else:
            self._retrying = not self._again  # what was queued meanwhile does not trigger a retry
        self._again = False

    @staticmethod
    def _identity(batch: list[_Row]) -> str:
        digest = hashlib.sha256(b"\xff".join(row.identity() for row in batch)).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def _body(self, batch: list[_Row]) -> JSON:
        events = [row.event for row in batch if row.event is not None]
        body: JSON = {"events": [pushed_event(event, self.hs.flavour) for event in events]}
        if edus := [row.edu for row in batch if row.edu is not None]:
            body["ephemeral"] = edus
        if self.appservice.key_counts:
            senders = {self.appservice.sender, *(e.sender for e in events if self.appservice.owns_user(e.sender))}
            accounts = self.hs.accounts.users
            known = {user: accounts[user].devices for user in sorted(senders) if user in accounts}
            counts: JSON = {user: {device: {} for device in devices} for user, devices in known.items() if devices}
            if counts:
                body["org.matrix.msc3202.device_one_time_keys_count"] = counts
        return body

    def _params(self) -> dict[str, str]:
        return {"access_token": self.appservice.hs_token}
