"""Lanes: what must happen strictly in order, by one owner at a time.

A lane is named ``room:<id>`` (dispatch), ``agent:<id>`` (turns), ``send:<id>`` (outbox of a room) or ``mirror``. It is
claimed with an epoch by one conditional upsert, and every write made on its behalf is fenced by that epoch: an owner
that was frozen and replaced writes nothing any more. The statements are the same on SQLite and PostgreSQL; on SQLite
the process lock makes this process the only possible owner.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import asyncpg

from . import faults
from .db.database import Connection, Database, DatabaseInUseError

log = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[["Fence"], Awaitable[float | None]]
"""Does all work of a lane that can be done now; returns the seconds after which to come back, or None."""

_SWEEP = 15.0
_ERROR_PAUSE = 1.0
_LONGEST_ERROR_PAUSE = 30.0
_FLUSH = 5.0
"""Seconds that the last lanes get at a stop, once the others have ended."""
_CHANNEL = "letta_bridge"


def _uptime() -> float:
    """A clock that nobody sets and that runs on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _prefix(lane: str) -> str:
    return lane.partition(":")[0]


async def _end(task: "asyncio.Task[None] | None") -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class FencedError(Exception):
    """Another owner has the lane: stop working on it, send nothing more."""


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write on behalf of a lane, as long as nobody claimed it after us."""

    lane: str
    owner: str
    epoch: int


class _Entry:
    """A lane with work or a timer in this process."""

    __slots__ = ("again", "failures", "task", "timer")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.again = False
        self.failures = 0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def working(self) -> "asyncio.Task[None] | None":
        """The task at work. One that was cancelled before its first step never tells that it ended."""
        return None if self.task is None or self.task.done() else self.task


class Lanes:
    """Runs the handler of every lane that was woken, one task per lane.

    Args:
        db: the database.
        owner: stable name of this replica; after a restart it has its lanes back at once.
        lease: seconds without a beat after which others may take this replica's lanes (PostgreSQL).
        beat: seconds between beats (PostgreSQL).
    """

    def __init__(self, db: Database, owner: str, *, lease: float = 6.0, beat: float = 2.0) -> None:
        self._db = db
        self._owner = owner
        self._lease = lease
        self._beat = beat
        self._incarnation = secrets.token_hex(8)
        self._handlers: dict[str, Handler] = {}
        self._last: set[str] = set()
        self._sweeps: list[Callable[[], Awaitable[Iterable[str]]]] = []
        self._signals: dict[str, Callable[[str], None]] = {}
        self._entries: dict[str, _Entry] = {}
        self._held: dict[str, int] = {}
        self._closing = False
        self._closed = False
        self._beats: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._listener: asyncpg.Connection | None = None
        self._sweep_soon = asyncio.Event()
        self._last_beat = 0.0

    def handle(self, prefix: str, handler: Handler, *, last: bool = False) -> None:
        """Let ``handler`` do the work of lanes whose name starts with ``prefix`` and a colon (or equals it).

        ``last``: when the others stop, these go on until what the others left for them is done.
        """
        self._handlers[prefix] = handler
        if last:
            self._last.add(prefix)

    @property
    def closing(self) -> bool:
        """No new work is to be begun: a handler returns after what it is doing."""
        return self._closing

    def sweep_with(self, source: Callable[[], Awaitable[Iterable[str]]]) -> None:
        """Ask ``source`` for lanes with open work: at start, and regularly as the net under lost wakes."""
        self._sweeps.append(source)

    def on_signal(self, name: str, receive: Callable[[str], None]) -> None:
        """Call ``receive`` with the text of each :meth:`announce` of ``name``, on whichever replica it was made."""
        self._signals[name] = receive

    # -- starting and stopping

    async def start(self) -> None:
        """Register this replica, take back its lanes, and wake every lane with open work.

        Raises:
            DatabaseInUseError: another live process runs under this replica's id.
        """
        if not self._db.postgres:  # the process lock says that nobody else is there
            await self._db.write(lambda conn: conn.execute("DELETE FROM replica"))
        await self._beat_once(first=True)
        if self._db.postgres:
            await self._listen()
            self._beats = asyncio.create_task(self._beating())
        await self.sweep()
        self._sweeper = asyncio.create_task(self._sweeping())

    async def stop(self, drain: float) -> None:
        """Stop taking work, let what runs come to its end for up to ``drain`` seconds, give the lanes back."""
        self._closing = True
        faults.reach("drain.begun")
        for entry in self._entries.values():
            if entry.timer:
                entry.timer.cancel()
        await _end(self._sweeper)
        await self._drain(drain, [name for name in self._entries if _prefix(name) not in self._last])
        await self._drain(_FLUSH, [name for name in self._entries if _prefix(name) in self._last])
        self._closed = True
        faults.reach("drain.ended")
        await _end(self._beats)
        if self._listener is not None:
            with contextlib.suppress(Exception):  # closing; the server drops it anyway
                await self._listener.close(timeout=2)

        async def release(conn: Connection) -> None:
            # not those of a live process that runs under our id and because of which we are not started
            await conn.execute(
                "UPDATE lane SET owner = NULL WHERE owner = $1 "
                "AND EXISTS (SELECT 1 FROM replica WHERE id = $1 AND incarnation = $2)",
                self._owner,
                self._incarnation,
            )
            await conn.execute("DELETE FROM replica WHERE id = $1 AND incarnation = $2", self._owner, self._incarnation)
            await self._db.notify(conn, "*")

        await self._db.write(release)

    async def _drain(self, seconds: float, lanes: list[str]) -> None:
        """Let the tasks of these lanes end by themselves for a while, then cancel what is left."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while tasks := [e.working for name in lanes if (e := self._entries.get(name)) is not None and e.working]:
            done, _ = await asyncio.wait(tasks, timeout=max(0.0, deadline - loop.time()))
            if not done:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    # -- waking

    def wake(self, lane: str) -> None:
        """Have the lane's work done soon; never lost: a wake during the work lets it run once more."""
        if self._stopped(lane):
            return
        entry = self._entries.setdefault(lane, _Entry())
        if entry.timer:
            entry.timer.cancel()
            entry.timer = None
        if entry.working:
            entry.again = True
            return
        entry.task = asyncio.create_task(self._run(lane, entry), name=lane)

    def _stopped(self, lane: str) -> bool:
        return self._closed or (self._closing and _prefix(lane) not in self._last)

    async def announce(self, conn: Connection, payload: str) -> None:
        """Within a transaction: let the other replicas wake a lane, or get a signal (``!name text``), at commit."""
        await self._db.notify(conn, payload)

    def signal(self, name: str, text: str) -> None:
        """Deliver a signal in this process; pair it with :meth:`announce` of ``!name text`` for the others."""
        if receive := self._signals.get(name):
            receive(text)

    async def sweep(self) -> None:
        """Wake every lane that has open work."""
        for source in self._sweeps:
            for lane in await source():
                entry = self._entries.get(lane)
                if entry is None or (entry.working is None and entry.timer is None):
                    self.wake(lane)

    async def write(self, fence: Fence, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction if the fence still holds.

        Raises:
            FencedError: it does not; nothing was written.
        """

        async def fenced(conn: Connection) -> T:
            # FOR SHARE: a claim cannot slip in between this check and the commit
            share = "FOR SHARE" if self._db.postgres else ""
            row = await conn.fetchrow(
                f"SELECT 1 FROM lane WHERE lane = $1 AND owner = $2 AND epoch = $3 {share}",
                fence.lane,
                fence.owner,
                fence.epoch,
            )
            if row is None:
                raise FencedError(fence.lane)
            return await work(conn)

        return await self._db.write(fenced)

    # -- one lane

    async def _run(self, lane: str, entry: _Entry) -> None:
        delay: float | None = None
        try:
            while not self._stopped(lane):
                entry.again = False
                delay = await self._work(lane, entry)
                if not entry.again:
                    break
        finally:  # also when cancelled: the sweep must find the lane free to be woken
            entry.task = None
        if self._stopped(lane):
            return
        if delay is None:
            if self._entries.get(lane) is entry and entry.timer is None:
                del self._entries[lane]
            return
        entry.timer = asyncio.get_running_loop().call_later(max(delay, 0.0), self.wake, lane)

    async def _work(self, lane: str, entry: _Entry) -> float | None:
        """One round of the lane's handler: the boundary at which its unexpected errors are reported."""
        try:
            epoch = self._held.get(lane)
            if epoch is None:
                epoch = await self._claim(lane)
            if epoch is None:
                return None  # somebody alive owns it and was told too
            delay = await self._handlers[_prefix(lane)](Fence(lane, self._owner, epoch))
            entry.failures = 0
            return delay
        except FencedError:
            self._held.pop(lane, None)
            log.warning("lane lost to another replica", extra={"action": "lane_fenced", "lane": lane})
            return None
        except Exception:  # a lane never dies of one bad round
            log.exception("lane failed, will try again", extra={"action": "lane_error", "lane": lane})
            entry.failures += 1
            return float(min(_LONGEST_ERROR_PAUSE, _ERROR_PAUSE * 2 ** min(entry.failures - 1, 10)))

    async def _claim(self, lane: str) -> int | None:
        async def claim(conn: Connection) -> int | None:
            row = await conn.fetchrow(
                # whoever was frozen while another process took its id claims nothing any more
                "INSERT INTO lane AS l (lane, owner, epoch) "
                "SELECT $1, $2, 1 WHERE EXISTS (SELECT 1 FROM replica WHERE id = $2 AND incarnation = $4) "
                "ON CONFLICT (lane) DO UPDATE SET owner = $2, epoch = l.epoch + 1 "
                "WHERE l.owner IS NULL OR l.owner = $2 OR NOT EXISTS "
                f"(SELECT 1 FROM replica r WHERE r.id = l.owner AND r.beat > {self._db.now} - $3) "
                "RETURNING epoch",
                lane,
                self._owner,
                self._lease,
                self._incarnation,
            )
            return None if row is None else int(row["epoch"])

        epoch = await self._db.write(claim)
        if epoch is not None:
            self._held[lane] = epoch
            faults.reach("lane.claimed")
        return epoch

    # -- heartbeat, take-over and the net

    async def _beat_once(self, *, first: bool = False) -> None:
        async def beat(conn: Connection) -> bool:
            row = await conn.fetchrow(
                f"INSERT INTO replica AS r (id, incarnation, beat) VALUES ($1, $2, {self._db.now}) "
                f"ON CONFLICT (id) DO UPDATE SET incarnation = $2, beat = {self._db.now} "
                f"WHERE r.incarnation = $2 OR r.beat < {self._db.now} - $3 RETURNING id",
                self._owner,
                self._incarnation,
                self._lease,
            )
            return row is not None

        deadline = _uptime() + self._lease + self._beat
        while not await self._db.write(beat):
            # after kill -9 our own last beat looks alive for the length of a lease: wait it out, then it is a twin
            if not first or _uptime() > deadline:
                raise DatabaseInUseError(
                    f"another letta-bridge runs as replica {self._owner!r} on {self._db.describe()}; "
                    "give each process its own database.replica_id"
                )
            await asyncio.sleep(min(0.5, self._lease / 4))
        self._last_beat = _uptime()

    async def _beating(self) -> None:
        while True:
            await asyncio.sleep(self._beat)
            if _uptime() - self._last_beat > 0.8 * self._lease:
                self._let_go()
            try:
                # a beat that hangs (the database is gone) must not keep us from letting go in time
                async with asyncio.timeout(max(0.1, 0.8 * self._lease - (_uptime() - self._last_beat))):
                    await self._beat_once()
                await self.sweep()
            except Exception:  # the beat is retried for ever; missing it fences us
                log.exception("heartbeat failed", extra={"action": "beat_failed"})

    def _let_go(self) -> None:
        """We were frozen or cut off for most of a lease: others may own our lanes. Stop before beating again."""
        log.error("heartbeat late, giving up the lanes", extra={"action": "self_fenced"})
        self._held.clear()
        for entry in self._entries.values():
            if entry.working:
                entry.working.cancel()

    async def _sweeping(self) -> None:
        while True:
            deaf = self._db.postgres and self._listener is None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._beat if deaf else _SWEEP):
                    await self._sweep_soon.wait()
            self._sweep_soon.clear()
            try:
                if self._db.postgres and self._listener is None:
                    await self._listen()
                await self.sweep()
            except Exception:  # the net itself must not tear
                log.exception("sweep failed", extra={"action": "sweep_failed"})

    async def _listen(self) -> None:
        settings = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
        conn = await asyncpg.connect(self._db.url, timeout=10, server_settings=settings)
        conn.add_termination_listener(self._listener_lost)
        await conn.add_listener(_CHANNEL, self._notified)
        self._listener = conn

    def _listener_lost(self, _: object) -> None:
        if self._listener is not None and not self._closing:
            log.warning("notification connection lost", extra={"action": "listen_lost"})
        self._listener = None
        self._sweep_soon.set()

    def _notified(self, _conn: object, _pid: int, _channel: str, payload: object) -> None:
        text = str(payload)
        if text.startswith("!"):
            name, _, rest = text[1:].partition(" ")
            self.signal(name, rest)
        elif text == "*":
            self._sweep_soon.set()
        else:
            for lane in text.split("\n"):
                if _prefix(lane) in self._handlers:
                    self.wake(lane)
