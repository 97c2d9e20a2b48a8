"""Lanes: what must happen strictly in order, by one owner at a time.

A lane is named ``room:<id>`` (dispatch), ``agent:<id>`` (turns), ``send:<id>`` (outbox of a room) or ``mirror``. It is
claimed with an epoch by one conditional upsert, and every write made on its behalf is fenced by that epoch: an owner
that was frozen and replaced writes nothing any more. The statements are the same on SQLite and PostgreSQL; on SQLite
the process lock makes this process the only possible owner.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from . import faults
from .db.database import DATABASE_ERRORS, Connection, Database
from .db.listener import Listener
from .heartbeat import Heartbeat, alive_at
from .sight import BLIND, Sight

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
_SLACK, _FEW = 1.2, 8
"""How many times its share of the lanes, and how many more, a replica keeps before it gives some back."""


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
        sight: is told of claims, losses and errors.
    """

    def __init__(
        self, db: Database, owner: str, *, lease: float = 6.0, beat: float = 2.0, sight: Sight = BLIND
    ) -> None:
        self._sight = sight
        self._db = db
        self._owner = owner
        self._lease = lease
        self._beat = beat
        self._heart = Heartbeat(db, owner, lease, beat, self._let_go, self._beaten)
        self._handlers: dict[str, Handler] = {}
        self._last: set[str] = set()
        self._sweeps: list[Callable[[], Awaitable[Iterable[str]]]] = []
        self._signals: dict[str, Callable[[str], None]] = {}
        self._entries: dict[str, _Entry] = {}
        self._held: dict[str, int] = {}
        self._others: dict[str, float] = {}
        """Lanes that were refused to us because another live replica has them, and until when we believe that."""
        self._closing = False
        self._closed = False
        self._beats: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._sweep_soon = asyncio.Event()
        self._let_gone = False
        self._share: float = math.inf

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

    def census(self) -> tuple[Counter[str], Counter[str]]:
        """How many lanes this process holds, and how many are at work, by the first part of their names."""
        held = Counter(map(_prefix, self._held))
        return held, Counter(_prefix(lane) for lane, entry in self._entries.items() if entry.working)

    @property
    def alive(self) -> bool:
        """Whether this replica beat lately enough that nobody else may have its lanes (on SQLite nobody ever may)."""
        return self._heart.trusted_for > 0

    def check(self, fence: Fence) -> None:
        """Before an action that no transaction can fence, such as a call to Letta: do we still have the lane, as far
        as can be known without asking the database?

        Raises:
            FencedError: another replica may have it.
        """
        if not self.holds(fence):
            raise FencedError(fence.lane)

    def holds(self, fence: Fence) -> bool:
        """What :meth:`check` asks."""
        return self.alive and self._held.get(fence.lane) == fence.epoch

    async def alone(self) -> bool:
        """Whether no other live replica is there, who could go on with our work."""
        return await self._heart.population() < 2

    async def replicas(self) -> list[str]:
        """The names of all live replicas, this one included."""
        return await self._heart.living()

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
        await self._heart.start()
        if self._db.postgres:
            self._listener = Listener(self._db.url, _CHANNEL, self._notified, self._listener_lost)
            await self._listener.ensure()
            await self._db.write(lambda conn: self._db.notify(conn, "*"))  # the others' shares are smaller from now on
            self._beats = asyncio.create_task(self._heart.run())
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
        await self._give_back_idle()
        await self._drain(drain, [name for name in self._entries if _prefix(name) not in self._last])
        await self._drain(_FLUSH, [name for name in self._entries if _prefix(name) in self._last])
        self._closed = True
        faults.reach("drain.ended")
        await _end(self._beats)
        if self._listener is not None:
            await self._listener.close()

        async def release(conn: Connection) -> None:
            # not those of a live process that runs under our id and because of which we are not started
            await conn.execute(
                "UPDATE lane SET owner = NULL WHERE owner = $1 "
                "AND EXISTS (SELECT 1 FROM replica WHERE id = $1 AND incarnation = $2)",
                self._owner,
                self._heart.incarnation,
            )
            await self._heart.end(conn)
            await self._db.notify(conn, "*")

        await self._db.write(release)

    async def _give_back_idle(self) -> None:
        """At a stop: what nobody works on here need not wait for the end of what somebody does."""
        idle = [lane for lane in self._held if (entry := self._entries.get(lane)) is None or entry.working is None]
        try:
            await self._give_back(idle)
        except DATABASE_ERRORS:  # then it is given back with the rest
            log.warning("idle lanes not given back", exc_info=True, extra={"action": "give_back_failed"})

    async def _give_back(self, lanes: Iterable[str]) -> None:
        """Let other replicas have these lanes from now on (PostgreSQL), and know that they may."""
        if not self._db.postgres:
            return
        held = {lane: epoch for lane in lanes if (epoch := self._held.pop(lane, None)) is not None}

        async def work(conn: Connection) -> None:
            await conn.execute(
                "UPDATE lane AS l SET owner = NULL FROM unnest($1::text[], $2::bigint[]) AS g(lane, epoch) "
                "WHERE l.lane = g.lane AND l.epoch = g.epoch AND l.owner = $3",
                list(held),
                list(held.values()),
                self._owner,
            )
            if self._closing:  # nobody here will look after what came in meanwhile
                await self._db.notify(conn, "*")

        if held:
            await self._db.write(work)

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
        if self._stopped(lane) or self._others.get(lane, 0.0) > time.monotonic():
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
        """Wake every lane that has open work and that no other live replica has."""
        lanes: set[str] = set()
        for source in self._sweeps:
            lanes.update(await source())
        resting = [
            lane
            for lane in lanes
            if (entry := self._entries.get(lane)) is None or (entry.working is None and entry.timer is None)
        ]
        foreign = await self._foreign([lane for lane in resting if lane not in self._held])
        self._others = {lane: until for lane, until in self._others.items() if until > time.monotonic()}
        for lane in resting:
            if lane not in foreign:
                self._others.pop(lane, None)
                self.wake(lane)

    async def _foreign(self, lanes: list[str]) -> set[str]:
        """Which of these lanes other live replicas have: one question instead of a claim for each."""
        if not lanes or not self._db.postgres:
            return set()
        rows = await self._db.fetch(
            "SELECT l.lane FROM lane l JOIN replica r ON r.id = l.owner "
            f"WHERE l.lane = ANY($1::text[]) AND l.owner <> $2 AND {alive_at(self._db, '$3')}",
            lanes,
            self._owner,
            self._lease,
        )
        return {str(row["lane"]) for row in rows}

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
                if not entry.again and (self._closing or (delay is None and len(self._held) > self._share)):
                    await self._give_back_one(lane)
                if not entry.again:
                    break
        except asyncio.CancelledError:
            if entry.again:  # somebody woke it meanwhile
                asyncio.get_running_loop().call_soon(self.wake, lane)
            raise
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
            if epoch is None:  # somebody alive owns it and was told too; after a while we ask again
                self._others[lane] = time.monotonic() + self._beat
                return None
            delay = await self._handlers[_prefix(lane)](Fence(lane, self._owner, epoch))
            entry.failures = 0
            return delay
        except FencedError:
            self._held.pop(lane, None)
            self._sight.fenced(lane)
            log.warning("lane lost to another replica", extra={"action": "lane_fenced", "lane": lane})
            return None
        except Exception:  # a lane never dies of one bad round
            self._sight.lane_failed(lane)
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
                f"(SELECT 1 FROM replica r WHERE r.id = l.owner AND {alive_at(self._db, '$3')}) "
                "RETURNING epoch",
                lane,
                self._owner,
                self._lease,
                self._heart.incarnation,
            )
            return None if row is None else int(row["epoch"])

        epoch = await self._db.write(claim)
        if epoch is not None:
            self._held[lane] = epoch
            self._sight.claimed(lane)
            faults.reach("lane.claimed")
        return epoch

    # -- heartbeat, take-over and the net

    async def _give_back_one(self, lane: str) -> None:
        try:
            await self._give_back([lane])
        except DATABASE_ERRORS:  # it stays ours in the database, and is claimed again when there is work
            log.warning("a lane was not given back", exc_info=True, extra={"action": "give_back_failed"})

    def _let_go(self) -> None:
        """We were frozen or cut off for most of a lease: others may own our lanes. Stop before beating again."""
        if not self._let_gone:
            log.error("heartbeat late, giving up the lanes", extra={"action": "self_fenced"})
            self._sight.self_fenced()
        self._let_gone = True
        self._held.clear()
        for entry in self._entries.values():
            if entry.working:
                entry.working.cancel()

    def _beaten(self) -> None:
        self._let_gone = False
        self._sweep_soon.set()

    async def _sweeping(self) -> None:
        while True:
            deaf = self._listener is not None and not self._listener.hears
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._beat if deaf else _SWEEP):
                    await self._sweep_soon.wait()
            self._sweep_soon.clear()
            try:
                if self._listener is not None and not self._closing:
                    await self._listener.ensure()
            except Exception:  # work goes on without it, only later
                log.exception("no notifications", extra={"action": "listen_failed"})
            try:
                await self.sweep()
                await self._reckon()
            except Exception:  # the net itself must not tear
                log.exception("sweep failed", extra={"action": "sweep_failed"})

    async def _reckon(self) -> None:
        """How many lanes are our share while several replicas are there."""
        if not self._db.postgres:
            return
        replicas = await self._heart.population()
        if replicas < 2:
            self._share = math.inf
        else:
            lanes = await self._db.fetchval("SELECT COUNT(*) FROM lane WHERE owner IS NOT NULL")
            self._share = _SLACK * lanes / replicas + _FEW

    def _listener_lost(self) -> None:
        if not self._closing:
            log.warning("notification connection lost", extra={"action": "listen_lost"})
        self._sweep_soon.set()

    def _notified(self, text: str) -> None:
        if text.startswith("!"):
            name, _, rest = text[1:].partition(" ")
            self.signal(name, rest)
        elif text == "*":
            self._others.clear()
            self._sweep_soon.set()
        else:
            for lane in text.split("\n"):
                if _prefix(lane) in self._handlers:
                    self.wake(lane)
