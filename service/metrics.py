"""Every Prometheus series of the service, named and bucketed here and nowhere else.

Label values come from configuration and the store (students, versions, stages, exits, routes), never from what a
request says: a model name that is not served counts as `unknown`. Series of parts that do not exist yet (brownout,
caches, canaries, drift) are not offered.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
UNKNOWN = "unknown"

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
RUN_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The series of one app, in a registry of its own, so that two apps may live in one process.

    Owner: event loop.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._make_request_series()
        self._make_engine_series()
        self._make_student_series()

    def _make_request_series(self) -> None:
        self.requests = self._counter(
            "understudy_requests_total", "Requests answered (status 499: the client left).",
            ("endpoint", "model", "version", "status"),
        )  # fmt: skip
        self.request_seconds = self._histogram(
            "understudy_request_seconds", "Seconds from a request's first byte to its answer.",
            ("endpoint", "model"), SECONDS,
        )  # fmt: skip
        self.inflight_requests = Gauge(
            "understudy_inflight_requests", "Inference requests under way.", registry=self.registry
        )

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
        self.queue_items = Gauge("understudy_queue_items", "Items waiting.", ("model", "stage"), registry=self.registry)
        self.failed_items = self._counter(
            "understudy_failed_items_total", "Items whose graph run failed, each alone.", ("model",)
        )
        self.shed = self._counter(
            "understudy_shed_total", "Items not run: refused, expired, or left by their client.", ("model", "reason")
        )

    def _make_student_series(self) -> None:
        self.student_info = Gauge(
            "understudy_student_info", "1 for each student version in service.",
            ("model", "version", "task", "backend", "precision"), registry=self.registry,
        )  # fmt: skip
        self.bundle_refused = self._counter(
            "understudy_bundle_refused_total", "Versions and alias files refused, by the name of the error.",
            ("model", "error"),
        )  # fmt: skip

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_text, labels, buckets=buckets, registry=self.registry)

    def exposition(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)
