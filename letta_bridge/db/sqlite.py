"""SQLite's side of the database: whole pieces of work at once on the connection's own thread.

aiosqlite hands every single statement to a thread and back, which costs far more than the statements themselves. Here a
piece of work (an async function that uses nothing but its connection) goes over as a whole and runs there without ever
waiting; what waits for anything else is refused, so that no transaction can be held open over a network call. Writes
that queue up meanwhile share one transaction and one sync.
"""

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_MOST_TOGETHER = 64
_PARAMETER = re.compile(r"\$(\d+)")


@lru_cache(maxsize=1024)
def _native(query: str) -> str:
    return _PARAMETER.sub(r"?\1", query)


class ThreadConnection:
    """The connection that a piece of work sees: on the thread of the connection, done when it returns."""

    __slots__ = ("_conn",)

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn

    async def execute(self, query: str, *args: Any) -> Any:
        return self._conn.execute(_native(query), args)

    async def executemany(self, query: str, args: Sequence[Sequence[Any]]) -> Any:
        return self._conn.executemany(_native(query), args)

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        return self._conn.execute(_native(query), args).fetchall()

    async def fetchrow(self, query: str, *args: Any) -> Any:
        # all rows are fetched: a statement that is not stepped to its end keeps its transaction from committing
        rows = self._conn.execute(_native(query), args).fetchall()
        return rows[0] if rows else None

    async def fetchval(self, query: str, *args: Any) -> Any:
        row = await self.fetchrow(query, *args)
        return None if row is None else row[0]


def drive(work: Awaitable[T]) -> T:
    """Run a piece of work to its end at once.

    Raises:
        RuntimeError: it waits for something else than its connection.
    """
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    close = getattr(steps, "close", None)
    if close is not None:
        close()
    raise RuntimeError("database work must wait for nothing but its connection")


class _Waiting:
    """A piece of work in the queue, and what became of it."""

    __slots__ = ("error", "future", "result", "work")

    def __init__(self, work: Callable[[ThreadConnection], Awaitable[Any]], future: "asyncio.Future[Any]") -> None:
        self.work = work
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.future.done():  # its caller is gone
            return
        if self.error is None:
            self.future.set_result(self.result)
        elif isinstance(self.error, asyncio.CancelledError):
            self.future.cancel()
        else:
            self.future.set_exception(self.error)
            self.future.exception()  # if nobody waits any more: never "exception was never retrieved"


class RunOnThread(Protocol):
    """Runs a function with the connection on the connection's thread."""

    async def __call__(self, function: Callable[[sqlite3.Connection], T], /) -> T: ...


class GroupCommit:
    """Runs queued pieces of work, each whole or not at all, several in one synced transaction.

    Args:
        run: how to get onto the thread.
    """

    def __init__(self, run: RunOnThread) -> None:
        self._run = run
        self._queue: list[_Waiting] = []
        self._flusher: asyncio.Task[None] | None = None

    async def write(self, work: Callable[[ThreadConnection], Awaitable[T]]) -> T:
        """The result of ``work`` once it is committed and synced. A cancelled caller tears nothing."""
        waiting = _Waiting(work, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        result: T = await waiting.future
        return result

    async def idle(self) -> None:
        """Wait until everything that was queued is done."""
        while self._flusher is not None and not self._flusher.done():
            await asyncio.wait([self._flusher])

    async def _flush(self) -> None:
        while self._queue:
            batch, self._queue = self._queue[:_MOST_TOGETHER], self._queue[_MOST_TOGETHER:]
            try:
                await self._run(lambda conn, batch=batch: _together(conn, batch))  # type: ignore[misc]
            except BaseException as error:  # noqa: BLE001 - the thread or the connection is gone: told to all who wait
                for waiting in batch:
                    waiting.error = waiting.error or error
            for waiting in batch:
                waiting.settle()


def _together(conn: sqlite3.Connection, batch: Sequence[_Waiting]) -> None:
    """One transaction for all of them; when it fails as a whole, each gets one of its own.

    One that cannot begin has failed for all: waiting for a lock once more for each would take as many times as long.
    """
    if len(batch) > 1:
        try:
            conn.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            for waiting in batch:
                waiting.error = error
            return
        if _try_together(conn, batch):
            return
    for waiting in batch:
        waiting.result, waiting.error = None, None
        _alone(conn, waiting)


def _try_together(conn: sqlite3.Connection, batch: Sequence[_Waiting]) -> bool:
    """Within the transaction that has begun."""
    thread = ThreadConnection(conn)
    try:
        for waiting in batch:
            conn.execute("SAVEPOINT one")
            try:
                waiting.result, waiting.error = drive(waiting.work(thread)), None
            except BaseException as error:  # noqa: BLE001 - handed to its caller
                waiting.error = error
                conn.execute("ROLLBACK TO one")  # fails when SQLite gave up the whole transaction (a full disk)
            conn.execute("RELEASE one")
        conn.execute("COMMIT")
    except sqlite3.Error:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        return False
    return True


def _alone(conn: sqlite3.Connection, waiting: _Waiting) -> None:
    try:
        conn.execute("BEGIN IMMEDIATE")
        waiting.result = drive(waiting.work(ThreadConnection(conn)))
        conn.execute("COMMIT")
    except BaseException as error:  # noqa: BLE001 - handed to its caller
        waiting.error = error
        if conn.in_transaction:
            conn.execute("ROLLBACK")
