"""Every Prometheus series of the service, named and bucketed here and nowhere else.

Label values come from configuration and the store (students, versions, stages, exits, routes, keys), never from what a
request says: a model name that is not served counts as `unknown`. Series of parts that do not exist yet (brownout,
canaries, drift) are not offered.

The values are plain numbers of the event loop's: there are a dozen counts to a request, and prometheus_client's own
values, which any thread may count, cost many times as much. What is exposed is the same.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = CONTENT_TYPE_LATEST
UNKNOWN = "unknown"

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
RUN_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Value:
    """One number of a counter or a gauge. Owner: event loop."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        """Count up."""
        self.value += amount

    def set(self, value: float) -> None:
        """What it is now; for gauges."""
        self.value = value


class Distribution:
    """One histogram. Owner: event loop."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Start at nothing; `bounds` are the buckets' upper ones, rising, without infinity."""
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or so many that are the same."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def observe_many(self, values: Iterable[float]) -> None:
        """Count each of them."""
        for value in values:
            self.counts[bisect_left(self._bounds, value)] += 1
            self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound, and how many values are not above it."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


C = TypeVar("C", Value, Distribution)


class Series(Generic[C]):
    """All that goes by one name: something counted for each combination of labels. Owner: event loop."""

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        make: Callable[[], C],
        write: Callable[[dict[tuple[str, ...], C]], Metric],
    ) -> None:
        """Count nothing yet.

        Args:
            names: of the labels.
            make: a new value.
            write: all values, by their labels', as Prometheus knows them.
        """
        self.names = names
        self._make: Callable[[], C] = make
        self._write: Callable[[dict[tuple[str, ...], C]], Metric] = write
        self._children: dict[tuple[str, ...], C] = {}

    def labels(self, *values: str) -> C:
        """What is counted under these labels; may be kept. Raises: ValueError: there are not as many as names."""
        return self._children.get(values) or self._child(tuple(map(str, values)))

    def _child(self, values: tuple[str, ...]) -> C:
        if len(values) != len(self.names):
            raise ValueError(f"{len(values)} label values for {self.names}")
        return self._children.setdefault(values, self._make())

    def remove(self, *values: str) -> None:
        """Count these no longer; they need not be there."""
        self._children.pop(values, None)

    def collect(self) -> Metric:
        """All of it, for Prometheus."""
        return self._write(self._children)


class _AllSeries(Collector):
    def __init__(self) -> None:
        self.all: list[Series[Value] | Series[Distribution]] = []

    def collect(self) -> Iterator[Metric]:
        for series in self.all:
            yield series.collect()


class Metrics:
    """The series of one app, in a registry of its own, so that two apps may live in one process.

    Owner: event loop.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._series = _AllSeries()
        self.registry.register(self._series)
        self._make_request_series()
        self._make_engine_series()
        self._make_student_series()
        self._make_other_series()

    def _make_request_series(self) -> None:
        self.requests = self._counter(
            "understudy_requests_total", "Requests answered (status 499: the client left).",
            ("endpoint", "model", "version", "status"),
        )  # fmt: skip
        self.request_seconds = self._histogram(
            "understudy_request_seconds", "Seconds from when a request's headers had come to its answer.",
            ("endpoint", "model"), SECONDS,
        )  # fmt: skip
        self.inflight_requests = self._gauge("understudy_inflight_requests", "Inference requests under way.").labels()

    def _make_engine_series(self) -> None:
        self.queue_seconds = self._histogram(
            "understudy_queue_seconds", "Seconds an item waited for a slot.", ("model",), SECONDS
        )
        self.stage_seconds = self._histogram(
            "understudy_stage_seconds", "Seconds one run of a stage's graph took.",
            ("model", "stage", "backend"), RUN_SECONDS,
        )  # fmt: skip
        self.batch_items = self._histogram(
            "understudy_batch_items", "Items in one run of a stage.", ("model", "stage"), ITEMS
        )
        self.batch_tokens = self._histogram(
            "understudy_batch_tokens", "Padded tokens in one run of a stage.", ("model", "stage"), TOKENS
        )
        self.padding_ratio = self._histogram(
            "understudy_padding_ratio", "Share of a run's tokens that is padding.", ("model",), SHARES
        )
        self.exits = self._counter(
            "understudy_exits_total", "Items answered at each exit.", ("model", "version", "exit")
        )
        self.depth = self._histogram(
            "understudy_depth", "Share of the full student's compute an item used.", ("model",), SHARES
        )
        self.queue_items = self._gauge("understudy_queue_items", "Items waiting.", ("model", "stage"))
        self.failed_items = self._counter(
            "understudy_failed_items_total", "Items whose graph run failed, each alone.", ("model",)
        )
        self.shed = self._counter(
            "understudy_shed_total", "Items not run: refused, expired, or left by their client.", ("model", "reason")
        )

    def _make_student_series(self) -> None:
        self.student_info = self._gauge(
            "understudy_student_info", "1 for each student version in service.",
            ("model", "version", "task", "backend", "precision"),
        )  # fmt: skip
        self.student_memory_bytes = self._gauge(
            "understudy_student_memory_bytes", "Memory that a student version takes.", ("model", "version")
        )
        self.bundle_refused = self._counter(
            "understudy_bundle_refused_total", "Versions and alias files refused, by the name of the error.",
            ("model", "error"),
        )  # fmt: skip

    def _make_other_series(self) -> None:
        self.cache_hits = self._counter("understudy_cache_hits_total", "Passages found in the cache.", ("model",))
        self.cache_misses = self._counter("understudy_cache_misses_total", "Passages not in the cache.", ("model",))
        self.cache_bytes = self._gauge("understudy_cache_bytes", "Memory that cached passages take.", ("model",))
        self.quota_refused = self._counter(
            "understudy_quota_refused_total", "Requests refused for a key's quota.", ("key",)
        )
        self.loop_lag_seconds = self._histogram(
            "understudy_loop_lag_seconds", "Seconds by which the event loop was late for its own clock.", (), SECONDS
        ).labels()

    def _counter(self, name: str, help_text: str, names: tuple[str, ...]) -> Series[Value]:
        def write(values: dict[tuple[str, ...], Value]) -> Metric:
            family = CounterMetricFamily(name, help_text, labels=names)
            for labels, one in values.items():
                family.add_metric(labels, one.value)
            return family

        return self._added(Series(names, make=Value, write=write))

    def _gauge(self, name: str, help_text: str, names: tuple[str, ...] = ()) -> Series[Value]:
        def write(values: dict[tuple[str, ...], Value]) -> Metric:
            family = GaugeMetricFamily(name, help_text, labels=names)
            for labels, one in values.items():
                family.add_metric(labels, one.value)
            return family

        return self._added(Series(names, make=Value, write=write))

    def _histogram(
        self, name: str, help_text: str, names: tuple[str, ...], bounds: tuple[float, ...]
    ) -> Series[Distribution]:
        def write(values: dict[tuple[str, ...], Distribution]) -> Metric:
            family = HistogramMetricFamily(name, help_text, labels=names)
            for labels, one in values.items():
                family.add_metric(labels, buckets=one.buckets(), sum_value=one.total)
            return family

        return self._added(Series(names, make=lambda: Distribution(bounds), write=write))

    def _added(self, series: Series[C]) -> Series[C]:
        self._series.all.append(series)
        return series

    def exposition(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)
