"""The connection on which PostgreSQL tells of other replicas' commits, and how its loss is noticed."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

import asyncpg

_CONNECT_SECONDS = 10.0
_PROBE_EVERY = 15.0
_PROBE_SECONDS = 5.0
_UNACKNOWLEDGED_MS = 20_000
"""After which the kernel gives up a connection whose packets nobody acknowledges; its own default is a quarter of an
hour, during which whatever waits on it would wait."""


async def end_when_cut_off(conn: Any) -> None:
    """Let the kernel break this connection of asyncpg soon after the server, or the way to it, is gone for good."""
    sock = conn._transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = {"TCP_USER_TIMEOUT": _UNACKNOWLEDGED_MS, "TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Listener:
    """``LISTEN`` on a channel, on a connection outside of the pool.

    Args:
        url: the database.
        channel: the channel's name; an identifier that needs no quotes.
        heard: called with the text of every notification.
        lost: called when the connection breaks; what was announced until the next :meth:`ensure` is not heard.
    """

    def __init__(self, url: str, channel: str, heard: Callable[[str], None], lost: Callable[[], None]) -> None:
        self._url = url
        self._channel = channel
        self._heard = heard
        self._lost = lost
        self._conn: Any = None
        self._probed_at = 0.0

    @property
    def hears(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._conn is not None

    async def ensure(self) -> bool:
        """Listen if that is not so; a connection that seems to stand is asked now and then whether it really does.

        Returns:
            Whether it had to connect: what was announced before may have been missed.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError: the database cannot be
                reached now.
        """
        if self._conn is not None and await self._answers(self._conn):
            return False
        conn = await asyncpg.connect(self._url, timeout=_CONNECT_SECONDS, command_timeout=_CONNECT_SECONDS)
        try:
            await end_when_cut_off(conn)
            await conn.add_listener(self._channel, self._notified)
        except BaseException:
            conn.terminate()
            raise
        conn.add_termination_listener(self._ended)
        self._conn, self._probed_at = conn, time.monotonic()
        return True

    async def close(self) -> None:
        """Listen no more."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(Exception):  # closing; the server drops it anyway
                await conn.close(timeout=2)

    async def _answers(self, conn: Any) -> bool:
        """A connection that was cut silently says nothing: neither that it is cut, nor what it should tell."""
        if time.monotonic() - self._probed_at < _PROBE_EVERY:
            return True
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await conn.execute("SELECT 1")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            conn.terminate()
            self._ended(conn)
            return False
        self._probed_at = time.monotonic()
        return True

    def _ended(self, conn: Any) -> None:
        if conn is self._conn:
            self._conn = None
            self._lost()

    def _notified(self, _conn: object, _pid: int, _channel: str, payload: object) -> None:
        self._heard(str(payload))
