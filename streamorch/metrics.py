"""What is counted, and how Prometheus reads it: of all workers, the dead among them, whichever worker is asked.

Every label has a fixed set of values: what a client made up is `other`. So each series has its place in the numbers
of a worker (`tally.py`), and to count is to add there. prometheus_client writes what is told, and counts nothing: its
own counters across processes take four times as long, and leave files behind.
"""

import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from math import prod
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from streamorch import __version__, tally
from streamorch.exchange import Request
from streamorch.mediamtx import LISTS
from streamorch.problems import TABLE
from streamorch.repositories import Database
from streamorch.repositories.gauges import NodeState
from streamorch.repositories.reconciliation import Change

OTHER = "other"
_NONE = "none"

_ACTIONS = ("publish", "read", "playback", "api", "metrics", "pprof", OTHER)
_PROTOCOLS = (*LISTS, "hls", _NONE, OTHER)
_GRANTED = "granted"  # what needs no claim
_OUTCOMES = ("claimed", "replay", "valid", _GRANTED, *TABLE, OTHER)
_HOOKS = {"/webhook/ready": "ready", "/webhook/not-ready": "not-ready"}
_IGNORED = "ignored"  # a source that is nobody's claim
_HOOK_OUTCOMES = (
    *("active", "replay", "not-found", "revoked", "expired", "disabled", "stopped"),
    *("ended", "interrupted", "late", "unknown", _IGNORED),
    *("unauthorized", "invalid-request", "database-unavailable", OTHER),
)
_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", OTHER)
_STATUSES = (*sorted({200, 201, 204, 304} | {kind.status for kind in TABLE.values()}), OTHER)
_DRIFTS = (
    *("active", "reopened", "never_started", "disconnected", "superseded", "revoked", "expired", "disabled"),
    *("stopped", "server_restarted", "server_lost", "unclaimed", OTHER),
)
_TICKS = ("ok", "refused", "silent", "unauthorized", "lost-lead", "database-unavailable", "failed")
_KICKS = ("gone", "still-connected", "no-answer")
_STATES = ("pending", "active")

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_START_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0, 20.0)


class Family(NamedTuple):
    """A metric: its name as PromQL has it (of a histogram without `_bucket`), what it is, its labels."""

    name: str
    kind: str
    about: str
    labels: tuple[str, ...]


class _Series:
    """The places of a family's series, by the values of their labels.

    A counter has one number. A histogram has one for each of its `bounds`, one for what is above the last, and the sum.
    """

    def __init__(
        self,
        family: Family,
        base: int,
        values: Sequence[Sequence[object]],
        bounds: Sequence[float] | None,
        *,
        is_sparse: bool,
    ):
        self.family = family
        self.bounds = bounds or ()
        self.is_sparse = is_sparse
        self.size = size = len(bounds) + 2 if bounds else 1
        self._values = values
        self._places = {combined: base + size * number for number, combined in enumerate(product(*values))}

    def place(self, *values: object) -> int:
        """Where the numbers of this series begin."""
        found = self._places.get(values)
        if found is not None:
            return found
        known = zip(values, self._values, strict=True)
        return self._places[tuple(value if value in ours else OTHER for value, ours in known)]

    def told(self, counts: Sequence[float]) -> Iterator[tuple[list[str], Sequence[float]]]:
        """The labels of each series with its numbers; of a sparse family those alone that have ever counted."""
        for values, place in self._places.items():
            numbers = counts[place : place + self.size]
            if not self.is_sparse or any(numbers):
                yield [str(value) for value in values], numbers


class Metrics:
    """What one worker counts. Each method that counts is one short hold of the worker's own lock."""

    def __init__(self, slot: tally.Slot, routes: Iterable[str], database: Database):
        self._slot = slot
        self._counts = slot.counts
        self._lock = slot.lock
        self._database = database
        self._size = 0
        self._all: list[_Series] = []
        self._gauges: list[Family] = []

        self._decisions = self._counter(
            "streamorch_auth_decisions_total",
            "Answers to POST /auth. `outcome` is the slug of the problem, or what was granted.",
            {"action": _ACTIONS, "outcome": _OUTCOMES, "protocol": _PROTOCOLS},
            is_sparse=True,
        )
        self._auth_seconds = self._histogram(
            "streamorch_auth_seconds",
            "How long an answer to POST /auth took.",
            {"action": _ACTIONS},
            _SECONDS,
            is_sparse=True,
        )
        self._hooks = self._counter(
            "streamorch_hooks_total",
            "Hooks of media servers, by what they came to.",
            {"kind": tuple(_HOOKS.values()), "outcome": _HOOK_OUTCOMES},
        )
        self._start_seconds = self._histogram(
            "streamorch_start_seconds",
            "From the claim of a publisher to its start hook, by the clock of the database.",
            {},
            _START_SECONDS,
        )
        shown = (*sorted(set(routes)), OTHER)
        self._requests = self._counter(
            "streamorch_http_requests_total",
            "Answers, by route and status.",
            {"method": _METHODS, "route": shown, "status": _STATUSES},
            is_sparse=True,
        )
        self._request_seconds = self._histogram(
            "streamorch_http_request_seconds",
            "How long an answer took, of every route but /auth.",
            {"route": shown},
            _SECONDS,
            is_sparse=True,
        )
        self._kicks = self._counter(
            "streamorch_kicks_total",
            "Attempts to close the connection of a publisher.",
            {"protocol": (*LISTS, OTHER), "result": _KICKS},
        )
        self._ticks = self._counter(
            "streamorch_reconcile_ticks_total", "Rounds of the reconciler that leads.", {"result": _TICKS}
        )
        self._tick_seconds = self._histogram(
            "streamorch_reconcile_seconds", "How long a round of the reconciler took.", {}, _SECONDS
        )
        self._drift = self._counter(
            "streamorch_drift_total",
            "What the reconciler found to be other than the table had it.",
            {"kind": _DRIFTS},
        )
        self._starts = self._counter("streamorch_worker_starts_total", "Workers that have started.", {})
        self._pool_requests = self._counter("streamorch_pool_requests_total", "Connections asked of the pool.", {})
        self._pool_waits = self._counter("streamorch_pool_waits_total", "Of these, those that had to wait.", {})
        self._pool_wait_seconds = self._counter(
            "streamorch_pool_wait_seconds_total", "How long they waited, all together.", {}
        )
        self._pool_errors = self._counter(
            "streamorch_pool_errors_total", "Connections that the pool did not have in time.", {}
        )

        self._leader = self._gauge("streamorch_leader", "1 when a worker of this instance leads and reconciles.")
        self._workers = self._gauge("streamorch_workers", "Workers of this instance.")
        self._pool_size = self._gauge("streamorch_pool_size", "Connections to the database, of all workers.")
        self._pool_max = self._gauge("streamorch_pool_max_size", "How many there may be.")
        self._pool_available = self._gauge("streamorch_pool_available", "Those that are idle.")
        self._pool_waiting = self._gauge("streamorch_pool_waiting", "Requests that wait for one.")
        self._database_up = self._gauge("streamorch_database_up", "1 when the database answered this scrape.")
        self._media_up = self._gauge("streamorch_media_server_up", "1 when its Control API answers.", "node")
        self._tick_age = self._gauge(
            "streamorch_reconcile_age_seconds", "Since the last round that saw the whole media server.", "node"
        )
        self._hook_age = self._gauge("streamorch_hook_age_seconds", "Since the last hook.", "node")
        self._streams = self._gauge("streamorch_streams", "Open streams.", "node", "state")
        self._stalled = self._gauge("streamorch_stalled_streams", "Active streams without media.", "node")
        self._viewers = self._gauge("streamorch_viewers", "Viewers of active streams.", "node")
        self._unclaimed = self._gauge("streamorch_unclaimed_publishers", "Live publishers that nobody claimed.", "node")
        self._kicks_due = self._gauge("streamorch_kicks_pending", "Connections that are still to be closed.", "node")
        self._build = self._gauge("streamorch_build_info", "Always 1.", "version", "python")
        if self._size > tally.COUNTS:
            raise RuntimeError("more routes than the memory of the workers has places for")
        self._add(self._starts.place())

    @property
    def families(self) -> list[Family]:
        """Everything that may be told."""
        return [series.family for series in self._all] + self._gauges

    # --- counting -----------------------------------------------------------------------------------------------

    def answered(self, request: Request, route: str, status: int) -> None:
        """A request has its answer. `route` as Flask has it."""
        seconds = time.perf_counter() - request.started
        if route == "/auth" and request.method == "POST":
            self._decided(request, status, seconds)
            return
        counts = self._counts
        place = self._requests.place(request.method, route, status)
        timed = self._request_seconds.place(route)
        with self._lock:
            counts[place] += 1
            counts[timed + bisect_left(_SECONDS, seconds)] += 1
            counts[timed + _SUM] += seconds
        if (hook := _HOOKS.get(route)) and request.method == "POST":
            self._hooked(request, hook)

    def _decided(self, request: Request, status: int, seconds: float) -> None:
        action: object = getattr(request.about, "action", OTHER)
        protocol: object = getattr(request.about, "protocol", OTHER) or _NONE
        place = self._requests.place("POST", "/auth", status)
        decided = self._decisions.place(action, request.problem or request.outcome or _GRANTED, protocol)
        timed = self._auth_seconds.place(action)
        counts = self._counts
        with self._lock:
            counts[place] += 1
            counts[decided] += 1
            counts[timed + bisect_left(_SECONDS, seconds)] += 1
            counts[timed + _SUM] += seconds

    def _hooked(self, request: Request, kind: str) -> None:
        self._add(self._hooks.place(kind, request.outcome or request.problem or _IGNORED))
        if request.claim_seconds is not None:
            self._observe(self._start_seconds, request.claim_seconds)

    def kicked(self, protocol: str, result: str) -> None:
        """It was tried to close a connection: 'gone', 'still-connected', 'no-answer'."""
        self._add(self._kicks.place(protocol, result))

    def ticked(self, result: str, seconds: float) -> None:
        """The reconciler has made a round: what the Control API gave, or why it broke off."""
        self._add(self._ticks.place(result))
        self._observe(self._tick_seconds, seconds)

    def drifted(self, changes: Iterable[Change], *, count: int, unclaimed: int) -> None:
        """What a round found; of `count` changes the first are told one by one."""
        told = [change.what for change in changes]
        for what in told + ["unclaimed"] * unclaimed:
            self._add(self._drift.place(what))
        if count > len(told):
            self._add(self._drift.place(OTHER), count - len(told))

    def leads(self, until: float) -> None:
        """This worker leads until then (monotonic), 0 when it does not: true also of one that stands still."""
        self._slot.gauges[_LEADS_UNTIL] = until

    def _add(self, place: int, amount: float = 1) -> None:
        with self._lock:
            self._counts[place] += amount

    def _observe(self, histogram: _Series, seconds: float) -> None:
        place = histogram.place()
        with self._lock:
            self._counts[place + bisect_left(histogram.bounds, seconds)] += 1
            self._counts[place + len(histogram.bounds) + 1] += seconds

    def tell_pool(self) -> None:
        """Write down how the pool of this worker is. (The thread that reconciles, or waits for the lead, does it.)"""
        found = self._database.pool_state()
        # The pool counts by itself from its start, which is that of the worker.
        self._counts[self._pool_requests.place()] = found.requests
        self._counts[self._pool_waits.place()] = found.waits
        self._counts[self._pool_wait_seconds.place()] = found.wait_seconds
        self._counts[self._pool_errors.place()] = found.errors
        self._slot.gauges[_POOL] = found.size
        self._slot.gauges[_POOL + 1] = found.max_size
        self._slot.gauges[_POOL + 2] = found.available
        self._slot.gauges[_POOL + 3] = found.waiting

    # --- telling ------------------------------------------------------------------------------------------------

    def exposition(self, nodes: Sequence[NodeState] | None, *, accept: str) -> tuple[bytes, str]:
        """The metrics in the form that the scraper accepts, and its Content-Type; `nodes` None: no database."""
        self.tell_pool()
        registry = CollectorRegistry()
        registry.register(_Told(lambda: self._collected(nodes)))
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # an escaping or a version that is none (prometheus-client 0.26)
            encode, content_type = choose_encoder("")
        return encode(registry), content_type

    def _collected(self, nodes: Sequence[NodeState] | None) -> Iterator[Metric]:
        counts, gauges = self._slot.memory.told(self._size)
        for series in self._all:
            yield _family_of(series, counts)
        now = time.monotonic()
        yield _gauge(self._leader, [((), float(any(worker[_LEADS_UNTIL] > now for worker in gauges)))])
        yield _gauge(self._workers, [((), len(gauges))])
        for number, family in enumerate((self._pool_size, self._pool_max, self._pool_available, self._pool_waiting)):
            yield _gauge(family, [((), sum(worker[_POOL + number] for worker in gauges))])
        yield _gauge(self._build, [((__version__, platform.python_version()), 1)])
        yield _gauge(self._database_up, [((), float(nodes is not None))])
        for family, value in self._by_node():
            told = [((of.node,), found) for of in nodes or () if (found := value(of)) is not None]
            yield _gauge(family, told)
        states = [(of.node, state, getattr(of, state)) for of in nodes or () for state in _STATES]
        yield _gauge(self._streams, [((name, state), count) for name, state, count in states])

    def _by_node(self) -> Iterator[tuple[Family, Callable[[NodeState], float | None]]]:
        yield self._media_up, lambda of: of.api == "ok"
        yield self._tick_age, lambda of: of.tick_age
        yield self._hook_age, lambda of: of.hook_age
        yield self._stalled, lambda of: of.stalled
        yield self._viewers, lambda of: of.viewers
        yield self._unclaimed, lambda of: of.unclaimed
        yield self._kicks_due, lambda of: of.kicks

    # --- declaring ----------------------------------------------------------------------------------------------

    def _counter(
        self, name: str, about: str, labels: Mapping[str, Sequence[object]], *, is_sparse: bool = False
    ) -> _Series:
        return self._placed(Family(name, "counter", about, tuple(labels)), labels, None, is_sparse)

    def _histogram(
        self,
        name: str,
        about: str,
        labels: Mapping[str, Sequence[object]],
        bounds: Sequence[float],
        *,
        is_sparse: bool = False,
    ) -> _Series:
        return self._placed(Family(name, "histogram", about, tuple(labels)), labels, bounds, is_sparse)

    def _placed(
        self,
        family: Family,
        labels: Mapping[str, Sequence[object]],
        bounds: Sequence[float] | None,
        is_sparse: bool,
    ) -> _Series:
        series = _Series(family, self._size, tuple(labels.values()), bounds, is_sparse=is_sparse)
        self._size += series.size * prod(len(values) for values in labels.values())
        self._all.append(series)
        return series

    def _gauge(self, name: str, about: str, *labels: str) -> Family:
        family = Family(name, "gauge", about, labels)
        self._gauges.append(family)
        return family


# Places among the gauges of a worker.
_LEADS_UNTIL = 0
_POOL = 1
# The last number of a histogram that has _SECONDS.
_SUM = len(_SECONDS) + 1


class _Told(Collector):
    """What prometheus_client asks for the metrics of one scrape."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]):
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _family_of(series: _Series, counts: Sequence[float]) -> Metric:
    name, kind, about, labels = series.family
    if kind == "counter":
        counter = CounterMetricFamily(name.removesuffix("_total"), about, labels=labels)
        for values, (number,) in series.told(counts):
            counter.add_metric(values, number)
        return counter
    histogram = HistogramMetricFamily(name, about, labels=labels)
    bounds = [*map(str, series.bounds), "+Inf"]
    for values, numbers in series.told(counts):
        histogram.add_metric(values, list(zip(bounds, accumulate(numbers[:-1]), strict=True)), numbers[-1])
    return histogram


def _gauge(family: Family, told: Iterable[tuple[Sequence[str], float]]) -> Metric:
    gauge = GaugeMetricFamily(family.name, family.about, labels=family.labels)
    for values, number in told:
        gauge.add_metric(values, number)
    return gauge
