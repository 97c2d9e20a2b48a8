"""Pushing as Synapse does: counted and persisted transactions, one in flight, back-off 2, 4, 8 … 512 s."""

import asyncio
from collections import deque
from dataclasses import dataclass

from .appservice import AppService
from .events import JSON, Event, pushed_event
from .homeserver import Homeserver
from .push import BasePusher, PushSettings
from .rooms import Room

_BATCH = 100
_LONGEST_EXPONENT = 9


@dataclass(slots=True)
class _Stored:
    """A persisted transaction: only ids, as in Synapse's table."""

    number: int
    events: list[Event]
    attempts: int = 0


class SynapsePusher(BasePusher):
    """See the module's line. ``next_number`` is the id of the next transaction."""

    def __init__(self, hs: Homeserver, appservice: AppService, settings: PushSettings) -> None:
        super().__init__(appservice, settings, hs.notify)
        self.hs = hs
        self.next_number = 1
        self._events: deque[tuple[Event, Room]] = deque()
        self._edus: deque[JSON] = deque()
        self._stored: deque[_Stored] = deque()
        self._down = False
        self._failures = 0
        self._retry = asyncio.Event()
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether everything queued was delivered."""
        return not (self._events or self._edus or self._stored or self._busy)

    def push_event(self, event: Event, room: Room) -> None:
        """Queue an event."""
        self._events.append((event, room))
        self._wake.set()

    def push_edu(self, edu: JSON) -> None:
        """Queue a notification. Typing of one room that is still queued is replaced by the newer state."""
        if not self.appservice.ephemeral:
            return
        if edu["type"] == "m.typing":
            same = [old for old in self._edus if (old["type"], old["room_id"]) == (edu["type"], edu["room_id"])]
            for old in same:
                self._edus.remove(old)
        self._edus.append(edu)
        self._wake.set()

    def retry_now(self) -> None:
        """Skip the rest of the back-off; without a failure there is nothing to do."""
        if self._down:
            self._retry.set()
            self._wake.set()

    def restart(self, reset_txn_counter: bool) -> None:
        """Queued notifications are lost, transactions stay; a down appservice waits its first back-off again."""
        self._edus.clear()
        self._failures = 0
        self._retry.clear()
        if reset_txn_counter:
            self.next_number = 1

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._gate()
            self._busy = True
            try:
                await self._drain()
            finally:
                self._busy = False
                self.on_log()

    async def _drain(self) -> None:
        while self._events or self._edus:
            events = [self._events.popleft() for _ in range(min(_BATCH, len(self._events)))]
            edus = [self._edus.popleft() for _ in range(min(_BATCH, len(self._edus)))]
            stored = _Stored(self.next_number, [event for event, _ in events])
            self.next_number += 1
            self._stored.append(stored)
            if self._down:
                continue
            await self._ask_for_users(stored.events)
            await self._gate()
            rooms = list({room.room_id: room for _, room in events}.values())
            if await self._send(stored, edus, rooms):
                self._stored.remove(stored)
            else:
                self._down = True
        if self._down:
            await self._recover()
        elif self._stored:  # left over from before a stop
            self._down = True
            self._retry.set()
            await self._recover()

    async def _ask_for_users(self, events: list[Event]) -> None:
        for event in events:
            name = event.state_key if event.type == "m.room.member" else None
            if name and self.appservice.owns_user(name) and name not in self.hs.accounts.users:
                await self.ask("users", name)

    async def _send(self, stored: _Stored, edus: list[JSON], rooms: list[Room]) -> bool:
        events = stored.events
        if stored.attempts:  # read again by their ids: what was purged meanwhile is not there
            events = [event for event in events if event.event_id in self.hs.events]
        stored.attempts += 1
        body: JSON = {"events": [pushed_event(event, self.hs.flavour) for event in events]}
        if self.appservice.ephemeral:
            body |= {
                "ephemeral": edus,
                "de.sorunome.msc2409.ephemeral": edus,
                "de.sorunome.msc2409.to_device": [],
            }
        if self.appservice.key_counts and (devices := self._device_counts(rooms)):
            counts: JSON = {user: {device: {} for device in names} for user, names in devices.items()}
            body["org.matrix.msc3202.device_one_time_key_counts"] = counts
            body["org.matrix.msc3202.device_one_time_keys_count"] = counts
            fallback: JSON = {user: {device: [] for device in names} for user, names in devices.items()}
            body["org.matrix.msc3202.device_unused_fallback_key_types"] = fallback
        return await self.put(str(stored.number), body, stored.attempts)

    async def _recover(self) -> None:
        """Back-off and retry the oldest until nothing is left. Retries carry events only."""
        while True:
            self._failures = min(self._failures + 1, _LONGEST_EXPONENT)
            await self._back_off(2**self._failures * self.settings.backoff_scale)
            while self._stored:
                await self._gate()
                if not await self._send(self._stored[0], [], []):
                    break
                self._stored.popleft()
                self._failures = 0
                self._persist_queued()
            else:
                self._down = False
                return

    async def _back_off(self, seconds: float) -> None:
        """Wait; meanwhile new events become transactions of their own behind the failed one."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not self._retry.is_set():
            self._persist_queued()
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                break
            self._wake.clear()
        self._retry.clear()

    def _persist_queued(self) -> None:
        while self._events or self._edus:
            events = [self._events.popleft()[0] for _ in range(min(_BATCH, len(self._events)))]
            self._edus.clear()
            self._stored.append(_Stored(self.next_number, events))
            self.next_number += 1

    def _device_counts(self, rooms: list[Room]) -> JSON:
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
