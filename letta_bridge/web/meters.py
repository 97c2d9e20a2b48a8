"""The counters and histograms: what the parts report, counted without any label that could grow without end."""

import time
from collections import Counter as Tally
from collections.abc import Iterable
from dataclasses import dataclass

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .. import __version__
from ..ids import TurnID
from ..matrix.homeserver import CALLS
from ..sight import Sight

PREFIX = "letta_bridge_"
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CALLS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TURNS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3600.0)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

_TRANSACTIONS = {
    200: "stored",
    401: "unauthorized",
    403: "unauthorized",
    413: "too_large",
    500: "failed",
    503: "refused",
}
_ARRIVALS = {"new": "new", "skipped": "echo", "dead": "malformed"}
_DECISIONS = ("ignore", "answer", "edit", "withdraw", "stop", "command", "notice", "state", "dead")
LANES = ("room", "agent", "send", "mirror", "command", "job", "management", "alarms", "history")
"""The kinds of lanes: how their names begin."""
_PHASES = ("queued", "accepted", "first_shown", "total")
_ENDS = ("done", "dead", "cancelled")
_LETTA_CALLS = (
    "health",
    "list_agents",
    "get_agent",
    "create_agent",
    "rename_agent",
    "delete_agent",
    "history",
    "models",
    "fingerprint",
    "read_marker",
    "write_marker",
    "open_conversation",
    "refresh_memory",
    "send",
    "stream",
    "resume",
    "find",
    "cancel",
    "deny_approval",
)
_MOST_TURNS = 10_000
"""Turns under way whose times are kept; those of more are counted, not timed."""

# a second series for each one, which nobody asks for
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Described:
    """What a metric is, for the page that lists them."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


class _Series:
    """A counter with one label, whose series are looked up and shown as 0 from the start."""

    def __init__(self, counter: Counter, values: Iterable[str]) -> None:
        self._counter = counter
        self._known = {value: counter.labels(value) for value in dict.fromkeys(values)}

    def count(self, value: str, amount: int = 1) -> None:
        """Add; a value that is not foreseen is counted as ``other``."""
        series = self._known.get(value)
        if series is None:
            series = self._known["other"] = self._counter.labels("other")
        series.inc(amount)


class _Times:
    """When a turn was queued and last handed to Letta, on this process's clock."""

    __slots__ = ("begun", "born", "shown")

    def __init__(self, born: float) -> None:
        self.born = born
        self.begun: float | None = None
        self.shown = False


class Meters(Sight):
    """Counts. A report costs a few additions: every series that a message touches is looked up once, here.

    Args:
        registry: what the metrics are in; one for each bridge.
        replica: the name of this process among its replicas.
    """

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry = registry
        self.described: list[Described] = []
        """Every metric that is made here."""
        self._turns: dict[TurnID, _Times] = {}
        self._make_intake()
        self._make_lanes()
        self._make_turns()
        self._make_services()
        self.lag = self._histogram("loop_lag_seconds", "How late the event loop comes, four times a second.", _LAG)
        self._written = self._histogram(
            "database_write_seconds", "Time of a transaction, waiting for its turn included.", _FAST
        )
        build = self._gauge("build_info", "Always 1; the labels say what runs.", ("version", "replica"))
        build.labels(__version__, replica).set(1)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        self.described.append(Described(PREFIX + name, "counter", labels, text))
        return Counter(PREFIX + name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        self.described.append(Described(PREFIX + name, "gauge", labels, text))
        return Gauge(PREFIX + name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        self.described.append(Described(PREFIX + name, "histogram", labels, text))
        return Histogram(PREFIX + name, text, labels, registry=self._registry, buckets=buckets)

    def _counters(self, name: str, text: str, label: str, values: Iterable[str]) -> _Series:
        return _Series(self._counter(name, text, (label,)), values)

    def _make_intake(self) -> None:
        self._transactions = self._counters(
            "intake_transactions_total",
            "Transactions of the homeserver, by what they were answered.",
            "result",
            _TRANSACTIONS.values(),
        )
        self._intake = self._histogram("intake_seconds", "Time until a transaction was answered.", _FAST)
        self._arrived = self._counters(
            "intake_events_total",
            "Events in stored transactions, repeated ones included: to be decided (new), the bridge's own words "
            "(echo), unreadable (malformed).",
            "kind",
            _ARRIVALS.values(),
        )
        self._decided = self._counters(
            "events_decided_total", "Events of which it was decided what becomes of them.", "action", _DECISIONS
        )

    def _make_lanes(self) -> None:
        self._claims = self._counters("lane_claims_total", "Lanes claimed by this process.", "kind", LANES)
        self._fenced = self._counters("lane_fenced_total", "Lanes lost to another replica.", "kind", LANES)
        self._lane_errors = self._counters(
            "lane_errors_total", "Rounds of a lane that ended in an unexpected error.", "kind", LANES
        )
        self._self_fenced = self._counter("self_fenced_total", "Times all lanes were given up for a late heartbeat.")

    def _make_turns(self) -> None:
        self._ends = self._counters(
            "turns_total", "Turns that ended: answered (done), given up (dead), stopped (cancelled).", "end", _ENDS
        )
        phases = self._histogram(
            "turn_seconds",
            "Time of a turn by phase: queued (until first handed to Letta), accepted (from there until Letta named its "
            "run), first_shown (from queueing until the room saw something of it), total (until all stood there).",
            _TURNS,
            ("phase",),
        )
        self._phases = {phase: phases.labels(phase) for phase in _PHASES}
        self._sent = self._counters(
            "outbox_sent_total",
            "Events that the homeserver confirmed, live edits not included.",
            "kind",
            ("answer", "edit", "notice"),
        )
        self._edits = self._counters(
            "live_edits_total",
            "Live edits of growing answers, sent or left out because the homeserver was slow.",
            "result",
            ("sent", "shed"),
        )
        self._retries = self._counters(
            "retries_total", "Tries that failed and are made again.", "stage", ("dispatch", "turn", "send")
        )
        self._buried = self._counters(
            "buried_total",
            "Events that became dead letters: could not be dispatched, or could not be sent.",
            "stage",
            ("inbox", "outbox"),
        )

    def _make_services(self) -> None:
        self._hs_requests = self._counter(
            "homeserver_requests_total",
            "Requests to the homeserver; the status none means no answer.",
            ("call", "status"),
        )
        self._hs_series: dict[tuple[str, int], Counter] = {}
        seconds = self._histogram(
            "homeserver_request_seconds", "Time until the homeserver answered.", _CALLS, ("call",)
        )
        self._hs_seconds = {call: seconds.labels(call) for call in sorted(CALLS)}
        self._letta_calls = self._counter(
            "letta_calls_total",
            "Calls to Letta; the result is ok or the kind of trouble. send ends when the run is named, stream with it.",
            ("call", "result"),
        )
        self._letta_series: dict[tuple[str, str], Counter] = {}
        seconds = self._histogram(
            "letta_call_seconds", "Time of a call to Letta (stream: of the whole run).", _TURNS, ("call",)
        )
        self._letta_seconds = {call: seconds.labels(call) for call in _LETTA_CALLS}

    # -- what the parts report

    def transaction(self, status: int, seconds: float) -> None:
        self._transactions.count(_TRANSACTIONS.get(status, ""))
        self._intake.observe(seconds)

    def arrived(self, states: Iterable[str]) -> None:
        for state, count in Tally(states).items():
            self._arrived.count(_ARRIVALS.get(state, ""), count)

    def decided(self, action: str) -> None:
        self._decided.count(action)

    def claimed(self, lane: str) -> None:
        self._claims.count(_kind(lane))

    def fenced(self, lane: str) -> None:
        self._fenced.count(_kind(lane))

    def lane_failed(self, lane: str) -> None:
        self._lane_errors.count(_kind(lane))

    def self_fenced(self) -> None:
        self._self_fenced.inc()

    def retried(self, stage: str) -> None:
        self._retries.count(stage)

    def buried(self, stage: str) -> None:
        self._buried.count(stage)

    def turn_taken(self, turn_id: TurnID, age: float) -> None:
        if turn_id not in self._turns:
            if len(self._turns) >= _MOST_TURNS:
                del self._turns[next(iter(self._turns))]
            self._turns[turn_id] = _Times(time.monotonic() - age)

    def turn_begun(self, turn_id: TurnID, tries: int) -> None:
        if times := self._turns.get(turn_id):
            times.begun = time.monotonic()
            if not tries:
                self._phases["queued"].observe(times.begun - times.born)

    def turn_accepted(self, turn_id: TurnID) -> None:
        times = self._turns.get(turn_id)
        if times is not None and times.begun is not None:
            self._phases["accepted"].observe(time.monotonic() - times.begun)
            times.begun = None

    def turn_ended(self, turn_id: TurnID, end: str) -> None:
        self._ends.count(end)
        if times := self._turns.pop(turn_id, None):
            self._phases["total"].observe(time.monotonic() - times.born)

    def sent(self, kind: str, turn_id: TurnID | None) -> None:
        self._sent.count(kind)
        times = None if turn_id is None else self._turns.get(turn_id)
        if times is not None and not times.shown:
            times.shown = True
            self._phases["first_shown"].observe(time.monotonic() - times.born)

    def live_edit(self, result: str) -> None:
        self._edits.count(result)

    def homeserver(self, call: str, status: int, seconds: float) -> None:
        series = self._hs_series.get((call, status))
        if series is None:
            series = self._hs_series[call, status] = self._hs_requests.labels(call, str(status) if status else "none")
        series.inc()
        self._hs_seconds[call].observe(seconds)

    def letta(self, call: str, result: str, seconds: float) -> None:
        series = self._letta_series.get((call, result))
        if series is None:
            series = self._letta_series[call, result] = self._letta_calls.labels(call, result)
        series.inc()
        self._letta_seconds[call].observe(seconds)

    def written(self, seconds: float) -> None:
        self._written.observe(seconds)


def _kind(lane: str) -> str:
    return lane.partition(":")[0]
