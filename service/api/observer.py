"""The engine's reports become metrics."""

from service.engine.item import ServedStudent
from service.engine.observer import Dropped
from service.metrics import Metrics


class Observer:
    """Counts what the engine tells. Owner: event loop."""

    def __init__(self, metrics: Metrics, *, backend: str) -> None:
        self._metrics = metrics
        self._backend = backend
        self._waiting: dict[tuple[str, str], dict[int, int]] = {}

    def queue_items(self, student: ServedStudent, stage: str, items: int) -> None:
        """So many items wait for the stage now; versions of one student are added up."""
        by_version = self._waiting.setdefault((student.name, stage), {})
        by_version[student.version] = items
        if items == 0:
            del by_version[student.version]
        self._metrics.queue_items.labels(student.name, stage).set(sum(by_version.values()))

    def queued(self, student: ServedStudent, seconds: float) -> None:
        """An item's batch starts; it waited so long."""
        self._metrics.queue_seconds.labels(student.name).observe(seconds)

    def batch(
        self, student: ServedStudent, stage: str, *, items: int, padded_tokens: int, real_tokens: int, seconds: float
    ) -> None:
        """A stage ran once; `seconds` inside the graph."""
        metrics, name = self._metrics, student.name
        metrics.stage_seconds.labels(name, stage, self._backend).observe(seconds)
        metrics.batch_items.labels(name, stage).observe(items)
        metrics.batch_tokens.labels(name, stage).observe(padded_tokens)
        metrics.padding_ratio.labels(name).observe(1 - real_tokens / padded_tokens)

    def exit(self, student: ServedStudent, exit_id: str, depth: float) -> None:
        """An item was answered at this exit."""
        self._metrics.exits.labels(student.name, student.version, exit_id).inc()
        self._metrics.depth.labels(student.name).observe(depth)

    def failed(self, student: ServedStudent) -> None:
        """An item failed alone."""
        self._metrics.failed_items.labels(student.name).inc()

    def dropped(self, student: ServedStudent, reason: Dropped, items: int) -> None:
        """So many items were refused, expired or left by their client."""
        self._metrics.shed.labels(student.name, reason).inc(items)
