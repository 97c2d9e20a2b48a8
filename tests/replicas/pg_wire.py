"""The wire between a replica and PostgreSQL, which can go dead without either end being told."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class PgWire:
    """``async with PgWire(url) as wire``: ``wire.url`` leads to the same database, through this wire.

    A dead wire takes what is sent and passes nothing on, and takes new connections without answering; once it lives
    again everything arrives late. Connections on which somebody listens for notifications can be cut alone.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._alive = asyncio.Event()
        self._alive.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: set[asyncio.StreamWriter] = set()
        self._deaf: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        user = self._target.netloc.rpartition("@")[0]
        return urlunsplit(self._target._replace(netloc=f"{user}@127.0.0.1:{port}"))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Nothing passes from now on."""
        self._alive.clear()

    def cut_listeners(self) -> None:
        """Nothing passes any more on the connections that listen now."""
        self._deaf |= self._listening

    def mend(self) -> None:
        """It passes again, first what waits."""
        self._alive.set()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass_on(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._alive.wait()
            back, onward = await asyncio.open_connection(self._target.hostname, self._target.port)
            writers.append(onward)
            await asyncio.gather(self._pump(reader, onward, writer), self._pump(back, writer, writer))
        except OSError:
            pass  # an end broke off: so does the other
        finally:
            for one in writers:
                one.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        while data := await source.read(64 * 1024):
            await self._alive.wait()
            if b"LISTEN " in data:
                self._listening.add(client)
            if client not in self._deaf:
                sink.write(data)
                await sink.drain()
        sink.close()
