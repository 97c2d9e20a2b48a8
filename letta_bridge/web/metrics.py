"""The metrics of one bridge, served to Prometheus on an address of their own.

Counters grow where the work is done. What only the tables know is read when somebody asks, at most every few seconds
and never for longer than a moment; when the database does not answer, those series are missing instead of wrong.
"""

import asyncio
import logging
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ..alarms import NEIGHBOURS
from ..db.database import DATABASE_ERRORS, Database
from ..db.depths import Depths, depths
from ..lanes import Lanes
from .health import Health, end_in_silence
from .meters import LANES, PREFIX, Described, Meters

log = logging.getLogger(__name__)

_DEPTHS_LAST = 5.0
"""Seconds for which what the tables said is believed."""
_DEPTHS_SECONDS = 2.0
"""What the tables may take to say it."""
_LAG_EVERY = 0.25
_LAG_WINDOW = 60.0


class MetricsServer:
    """Counts and serves. A metrics port that cannot be had is said in the log and keeps no message waiting.

    Args:
        host: the address to listen on.
        port: the port; 0 takes a free one.
        replica: the name of this process among its replicas.
    """

    def __init__(self, host: str, port: int, replica: str) -> None:
        self._host = host
        self._port = port
        self.registry = CollectorRegistry()
        self.meters = Meters(self.registry, replica)
        self._moment = Moment()
        self.registry.register(self._moment)
        self._process = ProcessCollector(registry=self.registry)
        self._lag = LoopLag(self.meters)
        self._runner: web.AppRunner | None = None
        self._parts: tuple[Lanes, Health] | None = None
        self._tables: Tables | None = None

    def catalogue(self) -> list[Described]:
        """Every metric that is served, in the order of its name."""
        moment = [Described(PREFIX + name, "gauge", labels, text) for name, (text, labels) in _GAUGES.items()]
        process = [
            Described(f"{one.name}_total" if one.type == "counter" else one.name, one.type, (), one.documentation)
            for one in self._process.collect()
        ]
        return sorted((*self.meters.described, *moment, *process), key=lambda one: one.name)

    @property
    def port(self) -> int:
        """The port listened on; 0 while nobody listens."""
        return int(self._runner.addresses[0][1]) if self._runner is not None and self._runner.addresses else 0

    async def start(self, db: Database, lanes: Lanes, health: Health) -> None:
        """Begin to serve what these know."""
        self._tables = Tables(db)
        self._parts = lanes, health
        self._lag.start()
        app = web.Application()
        app.router.add_get("/metrics", self._scrape)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            extra = {"action": "metrics_failed", "address": f"{self._host}:{self._port}", "why": error.strerror}
            log.error("metrics cannot be served", extra=extra)

    async def stop(self) -> None:
        """Serve no more."""
        self._lag.stop()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _scrape(self, request: web.Request) -> web.Response:
        assert self._parts is not None and self._tables is not None
        lanes, health = self._parts
        report, tables = await asyncio.gather(health.report(), self._tables.look())
        self._moment.take(lanes.census(), report, tables, self._lag.worst())
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = await asyncio.to_thread(encode, self.registry)
        return web.Response(body=body, headers={"Content-Type": content_type})


class Tables:
    """What the tables hold, asked for rarely."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._task: asyncio.Task[Depths] | None = None
        self._known: Depths | None = None
        self._known_at = float("-inf")
        self._asked_at = 0.0

    async def look(self) -> Depths | None:
        """A look that is at most a few seconds old; None when the database does not answer in time."""
        if time.monotonic() - self._known_at >= _DEPTHS_LAST:
            self._known = await self._ask()
            self._known_at = time.monotonic()
        return self._known

    async def _ask(self) -> Depths | None:
        """A question that hangs is not asked again: as long as it hangs, there is no answer."""
        if self._task is None or self._task.done():
            self._asked_at = time.monotonic()
            self._task = asyncio.create_task(depths(self._db), name="metrics")
            self._task.add_done_callback(end_in_silence)
        left = self._asked_at + _DEPTHS_SECONDS - time.monotonic()
        done, _ = await asyncio.wait({self._task}, timeout=max(0.0, left))
        try:
            return self._task.result() if done else None
        except DATABASE_ERRORS:  # health says it
            return None


class LoopLag:
    """Measures how late the event loop comes, four times a second."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._seen: deque[float] = deque(maxlen=round(_LAG_WINDOW / _LAG_EVERY))
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Begin to measure."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + _LAG_EVERY
        self._timer = loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        lag = max(0.0, asyncio.get_running_loop().time() - self._due)
        self._seen.append(lag)
        self._meters.lag.observe(lag)
        self.start()

    def stop(self) -> None:
        """End it."""
        if self._timer is not None:
            self._timer.cancel()

    def worst(self) -> float:
        """The longest lag of the last minute, in seconds."""
        return max(self._seen, default=0.0)


_GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "inbox_open": ("Events that wait for a decision.", ()),
    "inbox_oldest_seconds": ("Age of the oldest event that waits for a decision.", ()),
    "turns_open": ("Turns that are not over.", ("state",)),
    "turn_oldest_seconds": ("Age of the oldest turn that is queued or running.", ()),
    "outbox_pending": ("Events that wait to be sent.", ()),
    "outbox_oldest_seconds": ("Age of the oldest event that waits to be sent.", ()),
    "dead_letters": ("Dead letters in the tables.", ("stage",)),
    "agents": ("Agents by the state of their mirror.", ("state",)),
    "agents_failing": ("Agents that could not be provisioned and are tried again.", ()),
    "lanes_held": ("Lanes (rooms, agents, sendings, the mirror) that this process holds.", ("kind",)),
    "lanes_running": ("Lanes at work in this process.", ("kind",)),
    "loop_lag_max_seconds": ("The longest delay of the event loop in the last minute.", ()),
    "ready": ("1 when the bridge can do its work, else 0: the same as /_matrix/mau/ready.", ()),
    "degraded": ("1 when Letta is away or refuses the key, else 0.", ()),
    "check": ("1 when a part works, 0 when it does not, missing when that is not known.", ("check",)),
    "alarm": ("1 while something is wrong that admins are told of, else 0.", ("topic",)),
}
Values = Iterable[tuple[tuple[str, ...], float]]


class Moment(Collector):
    """The gauges of one scrape, taken on the event loop and handed out on another thread."""

    def __init__(self) -> None:
        self._families: list[GaugeMetricFamily] = []
        self._alarms_seen: set[str] = set(NEIGHBOURS)

    def take(
        self,
        lanes: tuple[Tally[str], Tally[str]],
        health: Mapping[str, object],
        tables: Depths | None,
        lag: float,
    ) -> None:
        """Keep what is so now."""
        names = ("lanes_held", "lanes_running")
        families = [
            _family(name, [((kind,), float(of[kind])) for kind in LANES]) for name, of in zip(names, lanes, strict=True)
        ]
        families += [_family(name, [((), float(bool(health[name])))]) for name in ("ready", "degraded")]
        families.append(_family("check", _checks(health["checks"])))
        families.append(_family("alarm", self._alarms(health["alarms"])))
        families.append(_family("loop_lag_max_seconds", [((), lag)]))
        self._families = families + ([] if tables is None else _of_tables(tables))

    def _alarms(self, topics: object) -> Values:
        """Those that are up, and as 0 those that were; of a topic with an id behind a colon only its kind."""
        assert isinstance(topics, list)
        up = {str(topic).partition(":")[0] for topic in topics}
        self._alarms_seen |= up
        return [((topic,), float(topic in up)) for topic in sorted(self._alarms_seen)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The gauges of the last :meth:`take`."""
        return self._families

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Their names, for the registry."""
        return [_family(name, ()) for name in _GAUGES]


def _family(name: str, values: Values) -> GaugeMetricFamily:
    text, labels = _GAUGES[name]
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _by(counts: Mapping[str, int]) -> Values:
    return [((name,), float(count)) for name, count in sorted(counts.items())]


def _checks(checks: object) -> Values:
    assert isinstance(checks, Mapping)
    return [((name,), float(state["ok"])) for name, state in checks.items() if state["ok"] is not None]


def _of_tables(tables: Depths) -> list[GaugeMetricFamily]:
    plain = {
        "inbox_open": tables.inbox_open,
        "inbox_oldest_seconds": tables.inbox_age,
        "turn_oldest_seconds": tables.turn_age,
        "outbox_pending": tables.outbox_pending,
        "outbox_oldest_seconds": tables.outbox_age,
        "agents_failing": tables.agents_failing,
    }
    labelled = {"turns_open": tables.turns, "dead_letters": tables.dead, "agents": tables.agents}
    families = [_family(name, [((), float(value))]) for name, value in plain.items()]
    return families + [_family(name, _by(counts)) for name, counts in labelled.items()]
