"""The engine's reports become metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine.item import ServedStudent
from service.engine.observer import Dropped
from service.metrics import UNKNOWN, Distribution, Metrics


@dataclass(frozen=True, slots=True)
class _StageSeries:
    """What one stage's runs are counted in, looked up once."""

    seconds: Distribution
    items: Distribution
    tokens: Distribution
    padding: Distribution


class Observer:
    """Counts what the engine tells, a batch at a time. Owner: event loop."""

    def __init__(self, metrics: Metrics, *, on_failed: Callable[[ServedStudent], None] = lambda _: None) -> None:
        """Count nothing yet; `on_failed` is told of every item that failed alone."""
        self._metrics = metrics
        self._on_failed = on_failed
        self._waiting: dict[tuple[str, str], dict[int, int]] = {}
        self._stages: dict[tuple[str, str, str], _StageSeries] = {}

    def queue_items(self, student: ServedStudent, stage: str, items: int) -> None:
        """So many items wait for the stage now; versions of one student are added up."""
        by_version = self._waiting.setdefault((student.name, stage), {})
        by_version[student.version] = items
        if items == 0:
            del by_version[student.version]
        self._metrics.queue_items.labels(student.name, stage).set(sum(by_version.values()))

    def queued(self, student: ServedStudent, seconds: Sequence[float]) -> None:
        """Items begin; each waited so long since its admission."""
        self._metrics.queue_seconds.labels(student.name).observe_many(seconds)

    def batch(
        self, student: ServedStudent, stage: str, *, items: int, padded_tokens: int, real_tokens: int, seconds: float
    ) -> None:
        """A stage ran once; `seconds` inside the graph."""
        key = (student.name, stage, str(getattr(student.student, "backend", UNKNOWN)))
        series = self._stages.get(key) or self._stage(key)
        series.seconds.observe(seconds)
        series.items.observe(items)
        series.tokens.observe(padded_tokens)
        series.padding.observe(1 - real_tokens / padded_tokens)

    def _stage(self, key: tuple[str, str, str]) -> _StageSeries:
        metrics, (name, stage, backend) = self._metrics, key
        series = self._stages[key] = _StageSeries(
            metrics.stage_seconds.labels(name, stage, backend),
            metrics.batch_items.labels(name, stage),
            metrics.batch_tokens.labels(name, stage),
            metrics.padding_ratio.labels(name),
        )
        return series

    def exit(self, student: ServedStudent, exit_id: str, depth: float, items: int) -> None:
        """So many items were answered at this exit."""
        self._metrics.exits.labels(student.name, str(student.version), exit_id).inc(items)
        self._metrics.depth.labels(student.name).observe(depth, items)

    def failed(self, student: ServedStudent) -> None:
        """An item failed alone."""
        self._metrics.failed_items.labels(student.name).inc()
        self._on_failed(student)

    def dropped(self, student: ServedStudent, reason: Dropped, items: int) -> None:
        """So many items were refused, expired or left by their client."""
        self._metrics.shed.labels(student.name, reason).inc(items)
