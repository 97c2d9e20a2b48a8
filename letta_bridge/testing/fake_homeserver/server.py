"""FakeHomeserver: the fake behind a port, its faults, its logs, and the people who live on it."""

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from aiohttp import web

from . import routes_rooms, routes_users
from .administration import purge_room
from .appservice import AppService, example_registration
from .client_api import ClientApi, Request
from .faults import Fault, Faults
from .flavour import FLAVOURS, FlavourName
from .homeserver import Homeserver
from .person import Person
from .push import BasePusher, PushSettings, Transaction
from .push_faults import PushFault
from .synapse_push import SynapsePusher
from .tuwunel_push import HomeserverSource, TuwunelPusher


class FakeHomeserver:
    """One homeserver on 127.0.0.1 that talks to one appservice; see the package for how to use it.

    ``registration`` is the parsed registration file (default: ``example_registration``). ``appservice_url``
    replaces its ``url`` and may be assigned later, when the appservice knows its port. Closing raises what
    crashed inside the fake itself, so that a bug of the fake never passes for a homeserver's answer.
    """

    def __init__(
        self,
        registration: Mapping[str, Any] | None = None,
        *,
        flavour: FlavourName = "synapse",
        domain: str = "test.local",
        appservice_url: str | None = None,
        backoff_scale: float = 1.0,
        push_timeout: float | None = None,
        netburst_keep: int = 50,
    ) -> None:
        self.domain = domain
        self.flavour = FLAVOURS[flavour]
        tuwunel = flavour == "tuwunel"
        self.appservice = AppService(registration or example_registration(domain), domain, unanchored=tuwunel)
        if appservice_url is not None:
            self.appservice.url = appservice_url
        self.hs = Homeserver(domain, self.appservice, self.flavour)
        default_timeout = 35.0 if tuwunel else 60.0
        self.push_settings = PushSettings(push_timeout or default_timeout, backoff_scale, netburst_keep)
        self.pusher: BasePusher = (
            TuwunelPusher(HomeserverSource(self.hs), self.appservice, self.push_settings, self.hs.notify)
            if tuwunel
            else SynapsePusher(self.hs, self.appservice, self.push_settings)
        )
        self.hs.pusher = self.pusher
        self.faults = Faults()
        self.api = ClientApi(self.hs, self.pusher, self.faults, routes_users.ROUTES + routes_rooms.ROUTES)
        self.people: dict[str, Person] = {}
        self.up = False
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self.hs.listeners.append(self._wake_waiters)

    # ---- life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        self.hs.cancel_timers()
        self.pusher.close()
        if error is None and self.api.crashes:
            raise self.api.crashes[0]

    async def start(self) -> None:
        """Listen: on a free port the first time, on the same port later. Pushing goes on where it stopped."""
        if self.up:
            return
        self._runner = web.AppRunner(self.api.application(), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        await self.pusher.start()
        self.up = True

    async def stop(self) -> None:
        """Be unreachable: connections are cut, nothing is pushed, people cannot act. All memory is kept."""
        self.up = False
        await self.pusher.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self, *, reset_txn_counter: bool = False) -> None:
        """Restart the homeserver's process on the same port.

        Lost: who types, queued EDUs, and on Synapse the transaction ids of sends without a device.
        ``reset_txn_counter`` lets Synapse count its transactions from 1 again, as after a restored database.
        """
        await self.stop()
        self.hs.cancel_timers()
        self.hs.transactions.restart()
        self.pusher.restart(reset_txn_counter)
        await self.start()

    @property
    def url(self) -> str:
        """The base URL. Known after the first start."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def appservice_url(self) -> str:
        """Where transactions are pushed to."""
        return self.appservice.url

    @appservice_url.setter
    def appservice_url(self, url: str) -> None:
        self.appservice.url = url

    # ---- people

    async def person(self, name: str, *, displayname: str | None = None, auto_join: bool = False) -> Person:
        """A person who acts and observes: ``alice`` on this server, or a full id such as ``@eve:evil.example``.

        The same name gives the same person. ``auto_join`` accepts every invite at once.
        """
        user_id = name if name.startswith("@") else f"@{name}:{self.domain}"
        if user_id not in self.people:
            requester = self.hs.accounts.add_person(user_id, displayname)
            self.hs.known_domains.add(user_id.split(":", 1)[1])
            self.people[user_id] = Person(self, requester)
        person = self.people[user_id]
        person.auto_join = person.auto_join or auto_join
        return person

    # ---- faults

    def fail_next(
        self,
        path_regex: str,
        *,
        status: int = 500,
        errcode: str = "M_UNKNOWN",
        retry_after_ms: int | None = None,
        times: int | None = 1,
        method: str | None = None,
        after_processing: bool | Literal["disconnect"] = False,
    ) -> Fault:
        """Let the next ``times`` requests (None: all) whose decoded path matches fail.

        ``after_processing=True`` does what was asked and then answers with the failure;
        ``"disconnect"`` does it and cuts the connection instead of answering.
        """
        if retry_after_ms is not None and errcode == "M_UNKNOWN":
            errcode = "M_LIMIT_EXCEEDED"
        fault = Fault(re.compile(path_regex), times, method, 0.0, status, errcode, retry_after_ms, after_processing)
        self.faults.failing.append(fault)
        return fault

    def delay(self, path_regex: str, seconds: float, *, times: int | None = None, method: str | None = None) -> Fault:
        """Delay requests whose path matches, before they are processed; until ``cancel()`` or ``times``."""
        fault = Fault(re.compile(path_regex), times, method, seconds)
        self.faults.slow.append(fault)
        return fault

    def hold_push(self) -> None:
        """Push nothing until ``release_push``; what happens meanwhile queues up."""
        self.pusher.hold()

    def release_push(self) -> None:
        """Push again."""
        self.pusher.release()

    async def push_raw(
        self, body: bytes, *, token: str | None = None, query_token: str | None = None, txn_id: str | None = None
    ) -> tuple[int, str]:
        """PUT any bytes as a transaction, beside the queue; status and text of the appservice's answer.

        ``token`` is the header's (default: the right one; ``""`` sends none), ``query_token`` goes into the URL.
        """
        token = self.appservice.hs_token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        params = {"access_token": query_token} if query_token is not None else {}
        return await self.pusher.put_raw(txn_id or f"raw-{secrets.token_hex(6)}", body, headers, params)

    def fail_push(self, fault: PushFault) -> PushFault:
        """Let the next attempt to push meet a fault (``skip`` others first); it strikes once."""
        return self.pusher.faults.arm(fault)

    async def push_again(self, transaction: Transaction, *, txn_id: str | None = None) -> bool:
        """Push a transaction of the log once more, under its own or another id; whether it was taken."""
        return await self.pusher.put(txn_id or transaction.txn_id, transaction.body, transaction.attempt + 1)

    # ---- administration

    def purge_room(self, room_id: str, *, told: bool = True) -> None:
        """Delete a room as the server's admin: everybody is out, its aliases lead nowhere, nobody knows its id.

        ``told``: whether Synapse pushes the departures before they are deleted with the room; nothing promises it.
        """
        purge_room(self.hs, room_id, told)

    # ---- observing

    @property
    def requests(self) -> list[Request]:
        """Every request of the appservice and of other HTTP clients, oldest first. May be cleared."""
        return self.api.requests

    @property
    def transactions(self) -> list[Transaction]:
        """Every attempt to push, oldest first."""
        return self.pusher.log

    def count(self, path_regex: str, *, method: str | None = None) -> int:
        """How many requests were made whose path matches."""
        pattern = re.compile(path_regex)
        return sum(1 for r in self.requests if pattern.search(r.path) and method in (None, r.method))

    async def wait_until(self, condition: Callable[[], bool], timeout: float = 5.0, what: str = "condition") -> None:
        """Return when the condition holds; it is looked at after every change. AssertionError after ``timeout``."""
        deadline = asyncio.get_running_loop().time() + timeout
        while not condition():
            if self.api.crashes:
                raise self.api.crashes[0]
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise AssertionError(f"{what} did not come true within {timeout} s")
            await self.changed(left)

    async def wait_pushed(self, timeout: float = 5.0) -> None:
        """Return when everything queued was taken by the appservice. AssertionError after ``timeout``."""
        await self.wait_until(lambda: self.pusher.idle, timeout, "delivery of all events")

    async def changed(self, timeout: float) -> None:
        """Return at the next change of anything here, or after ``timeout`` seconds."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait({waiter}, timeout=timeout)
        finally:
            self._waiters.discard(waiter)
            waiter.cancel()

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        for person in self.people.values():
            person.accept_invites()
