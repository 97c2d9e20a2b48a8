"""The appservice's side of ``letta-bridge smoke``: the bridge's own endpoint, with a memory instead of the database.

What the homeserver has for the bridge itself, people's messages in rooms of agents, is not taken from it: such a
transaction is refused, and the homeserver keeps it until the bridge runs. Only what a smoke test made is accepted.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ..config import AppserviceConfig
from ..db.inbox import Arrival
from ..ids import MXID, PREFIX, RoomID
from ..matrix.intake import Intake

MARK = PREFIX + ".smoke"
"""Key in the content of whatever a smoke test writes: by it a later one knows what was left to be delivered."""

REASON = "smoke test of letta-bridge"
"""Why its users come and go, in their membership events."""

_ROOM_SECONDS = 15.0
_EDU_KEYS = ("ephemeral", "de.sorunome.msc2409.ephemeral")


@dataclass(frozen=True, slots=True)
class Pushed:
    """One accepted transaction. ``header`` and ``query`` say where the hs_token stood."""

    txn_id: str
    keys: frozenset[str]
    events: int
    edus: int
    header: bool
    query: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as it was pushed, and when (``time.monotonic``)."""

    event: Mapping[str, Any]
    at: float


class HeldBackError(Exception):
    """A transaction is for the bridge: refused, so that the homeserver keeps it."""


class Listener:
    """Listens in the place of the bridge that is not running.

    Args:
        config: where to listen, and the hs_token.
        domain: of our users.
        bot: the bot's user id.
    """

    def __init__(self, config: AppserviceConfig, domain: str, bot: MXID) -> None:
        self._config = config
        self._domain = domain
        self._bot = bot
        self._prefix = f"@{config.puppet_prefix}smoke_"
        self._rooms: set[RoomID] = set()
        self._room_comes: asyncio.Event | None = None
        self._change = asyncio.Event()
        self.accepted = False
        """The homeserver pinged with the right hs_token."""
        self.refused = False
        """Something came with another hs_token, or none."""
        self.held_back = 0
        """Transactions left to the bridge."""
        self.asked: set[str] = set()
        """Users and aliases that the homeserver asked about."""
        self.events: dict[str, Seen] = {}
        self.edus: list[Mapping[str, Any]] = []
        self.pushed: list[Pushed] = []
        # "nobody is ours": nothing is an echo, and every event comes here whole
        self._intake = Intake(
            hs_token=config.hs_token,
            record=self._record,
            wake=lambda room: None,
            user_exists=_nobody,
            is_ours=lambda mxid: False,
            health=_not_ready,
            body_limit=config.body_limit_mib * 1024 * 1024,
        )
        self._intake.app.middlewares.append(self._watch)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen while the block runs. Raises OSError when that cannot be."""
        runner = web.AppRunner(self._intake.app, access_log=None, keepalive_timeout=330, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._config.host, self._config.port).start()
            yield
        finally:
            self._intake.refuse()
            await runner.cleanup()

    # -- what the test tells

    def expect_room(self) -> None:
        """A room is being created: its first events may come before its id is known, and wait for that."""
        self._room_comes = asyncio.Event()

    def room_is(self, room_id: RoomID | None) -> None:
        """The room that was created; None when none was."""
        if room_id is not None:
            self._rooms.add(room_id)
        if self._room_comes is not None:
            self._room_comes.set()
            self._room_comes = None

    # -- what the test asks

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until the condition holds; False when it did not within the time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._change.clear()
                    await self._change.wait()
        except TimeoutError:
            return False
        return True

    def typed(self, room_id: RoomID, user: MXID) -> bool:
        """Whether a notice came that ``user`` is typing."""
        return any(
            edu.get("type") == "m.typing"
            and edu.get("room_id") == room_id
            and user in _mapping(edu.get("content")).get("user_ids", ())
            for edu in self.edus
        )

    def read(self, room_id: RoomID, user: MXID) -> bool:
        """Whether a read receipt of ``user`` came."""
        return any(
            edu.get("type") == "m.receipt"
            and edu.get("room_id") == room_id
            and any(user in _mapping(_mapping(kinds).get("m.read")) for kinds in _mapping(edu.get("content")).values())
            for edu in self.edus
        )

    # -- what the homeserver does

    async def _record(self, arrivals: Sequence[Arrival]) -> set[RoomID]:
        """The Intake's store: a memory. Raises where the database would have had something to keep."""
        events = [json.loads(one.body) if one.body else {} for one in arrivals]
        if not self._all_of_smoke(events) and self._room_comes is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROOM_SECONDS):
                    await self._room_comes.wait()
        if not self._all_of_smoke(events):
            self.held_back += 1
            self._change.set()
            raise HeldBackError
        for event in events:
            self.events.setdefault(str(event.get("event_id")), Seen(event, time.monotonic()))
        return set()

    def _all_of_smoke(self, events: Sequence[Mapping[str, Any]]) -> bool:
        return all([self._of_smoke(event) for event in events])  # each one: an early room may be made known late

    def _of_smoke(self, event: Mapping[str, Any]) -> bool:
        """Whether this or an earlier smoke test made the event, so that the bridge misses nothing without it."""
        if event.get("room_id") in self._rooms:
            return True
        content = _mapping(event.get("content"))
        tester = any(self._is_tester(event.get(key)) for key in ("sender", "state_key"))
        marked = MARK in content or content.get("reason") == REASON
        if not tester and not (marked and event.get("sender") == self._bot):
            return False
        if event.get("type") == "m.room.create":
            self._rooms.add(RoomID(str(event.get("room_id"))))
        return True

    def _is_tester(self, user: object) -> bool:
        return isinstance(user, str) and user.startswith(self._prefix) and user.endswith(f":{self._domain}")

    @web.middleware
    async def _watch(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Note what the Intake did with a request, and how the homeserver made it."""
        try:
            response = await handler(request)
        except Exception as error:  # the Intake's refusal, on its way to becoming an answer
            status = getattr(getattr(error, "response", None), "status", 0)
            self.refused = self.refused or status in (401, 403)
            self._change.set()
            raise
        if request.path.endswith("/ping"):
            self.accepted = self.accepted or response.status == 200
        elif "/users/" in request.path or "/rooms/" in request.path:
            self.asked.add(request.match_info.get("user") or request.match_info.get("alias") or "")
        elif request.method == "PUT" and response.status == 200:
            self._note(request, await request.read())
        self._change.set()
        return response

    def _note(self, request: web.Request, raw: bytes) -> None:
        try:
            body = _mapping(json.loads(raw))
        except (ValueError, RecursionError):
            body = {}
        edus = next((value for key in _EDU_KEYS if isinstance(value := body.get(key), list)), [])
        self.edus += [edu for edu in edus if isinstance(edu, Mapping)]
        events = body.get("events")
        self.pushed.append(
            Pushed(
                request.match_info["txn"],
                frozenset(map(str, body)),
                len(events) if isinstance(events, list) else 0,
                len(edus),
                "Authorization" in request.headers,
                "access_token" in request.query,
            )
        )


async def _not_ready() -> Mapping[str, Any]:
    return {"ready": False}


async def _nobody(_: MXID) -> bool:
    return False


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
