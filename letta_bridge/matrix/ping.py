"""Pinging ourselves through the homeserver: at the start, and regularly.

It proves that both directions work, resets Synapse's back-off, and on Tuwunel is the only thing that sends a failed
transaction again while nothing else happens.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable

from .homeserver import Homeserver, HomeserverError
from .intake import Intake

log = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_ROUND = 15.0
"""Seconds that a ping may take all the way round; whatever takes longer does not work."""
_HINTS = {
    "M_UNKNOWN_TOKEN": "the homeserver does not know as_token: is the registration loaded, and is it this one?",
    "M_FORBIDDEN": "the homeserver refuses as_token or the id: is the registration loaded, and is it this one?",
    "M_NOT_FOUND": "the homeserver is too old for appservice pings, or does not know this appservice",
    "M_URL_NOT_SET": "the registration has no url",
    "M_CONNECTION_FAILED": "the homeserver cannot connect to appservice.url: address, port, firewall, network?",
    "M_CONNECTION_TIMEOUT": "the homeserver's connection to appservice.url timed out",
    "M_BAD_STATUS": "the bridge refused the homeserver's ping: does hs_token differ between config and registration? "
    "Or a proxy in between did: does it find the bridge?",
}


class Pinger:
    """Keeps ``ok``: whether the last ping went all the way round.

    Args:
        after: called after every successful ping.
        tell: told of every ping: None when it went all the way round, else what went wrong.
    """

    def __init__(
        self,
        homeserver: Homeserver,
        intake: Intake,
        appservice_id: str,
        interval: float,
        after: Callable[[], Awaitable[None]],
        tell: Callable[[HomeserverError | None], None],
    ) -> None:
        self._homeserver = homeserver
        self._intake = intake
        self._id = appservice_id
        self._interval = interval
        self._after = after
        self._tell = tell
        self._said: str | None = None
        self._registered = False
        self.ok = False

    async def run(self) -> None:
        """Ping for ever; every change is logged once."""
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._once()
            except HomeserverError as error:
                self._failed(error)
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)
                continue
            self._succeeded()
            pause = _FIRST_PAUSE
            try:
                await self._after()
            except Exception:  # whatever is wrong with that, pinging goes on: Tuwunel depends on it
                log.exception("note after a ping failed", extra={"action": "ping_after_failed"})
            await asyncio.sleep(self._interval)

    async def _once(self) -> None:
        txn_id = secrets.token_hex(8)
        arrived = self._intake.expect_ping(txn_id)
        try:
            await self._ask(txn_id)
            # with several replicas behind one address another one may have got it: the homeserver's word is enough
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), 0.1)
        finally:
            self._intake.forget_ping(txn_id)

    async def _ask(self, txn_id: str) -> None:
        try:
            async with asyncio.timeout(_ROUND):
                await self._ask_once(txn_id)
        except TimeoutError:
            raise HomeserverError(0, "", f"no answer to a ping within {_ROUND:.0f} s") from None

    async def _ask_once(self, txn_id: str) -> None:
        try:
            await self._homeserver.bot.ping(self._id, txn_id)
        except HomeserverError as error:
            if not error.forbidden or self._registered:
                raise
            self._registered = True  # the very first start: Synapse does not know the bot's user yet
            await self._homeserver.bot.register()
            await self._homeserver.bot.ping(self._id, txn_id)

    def _failed(self, error: HomeserverError) -> None:
        what = f"{error.status} {error.errcode}"
        if self._said != what:
            where = f"no answer from {self._homeserver.url}; it is tried again for ever" if not error.status else ""
            hint = where or _HINTS.get(error.errcode, "")
            extra = {"action": "ping_failed", "why": str(error), "hint": hint}
            log.error("the way through the homeserver and back does not work", extra=extra)
        self._said = what
        self.ok = False
        self._tell(error)

    def _succeeded(self) -> None:
        if not self.ok:
            log.info("the homeserver reaches the bridge and the bridge the homeserver", extra={"action": "ping_ok"})
        self._said = None
        self.ok = True
        self._tell(None)
