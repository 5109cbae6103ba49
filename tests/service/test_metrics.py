"""Metrics: every promised series exists, each app has its own, and what is exposed is what prometheus_client would."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service import metrics as module
from service.metrics import ITEMS, SECONDS, SHARES, Distribution, Metrics

SERVICE = Path(module.__file__).parent
PROMISED = {
    "understudy_requests_total": {"endpoint", "model", "version", "status"},
    "understudy_request_seconds": {"endpoint", "model"},
    "understudy_queue_seconds": {"model"},
    "understudy_stage_seconds": {"model", "stage", "backend"},
    "understudy_batch_items": {"model", "stage"},
    "understudy_batch_tokens": {"model", "stage"},
    "understudy_padding_ratio": {"model"},
    "understudy_exits_total": {"model", "version", "exit"},
    "understudy_depth": {"model"},
    "understudy_queue_items": {"model", "stage"},
    "understudy_inflight_requests": set(),
    "understudy_failed_items_total": {"model"},
    "understudy_shed_total": {"model", "reason"},
    "understudy_student_info": {"model", "version", "task", "backend", "precision"},
    "understudy_student_memory_bytes": {"model", "version"},
    "understudy_bundle_refused_total": {"model", "error"},
    "understudy_cache_hits_total": {"model"},
    "understudy_cache_misses_total": {"model"},
    "understudy_cache_bytes": {"model"},
    "understudy_quota_refused_total": {"key"},
    "understudy_loop_lag_seconds": set(),
}


def test_the_series_are_the_promised_ones_and_no_others() -> None:
    metrics = Metrics()
    names = re.findall(r"^# TYPE (understudy_\w+)", metrics.exposition().decode(), re.MULTILINE)
    labels = {f"understudy_{name}": set(one.names) for name, one in vars(metrics).items() if hasattr(one, "names")}
    found = {name: labels.get(name, labels.get(name.removesuffix("_total"), set())) for name in names}
    assert found == PROMISED
    assert len(names) == len(set(names))


def test_two_apps_do_not_share_counts() -> None:
    first, second = Metrics(), Metrics()
    first.requests.labels("/v1/classify", "toy", "1", "200").inc()
    assert b'endpoint="/v1/classify"' in first.exposition()
    assert b'endpoint="/v1/classify"' not in second.exposition()


def test_prometheus_can_read_it() -> None:
    metrics = Metrics()
    metrics.depth.labels("toy").observe(0.25)
    metrics.queue_items.labels("toy", "00").set(3)
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    assert families["understudy_queue_items"].samples[0].value == 3
    below = [s.value for s in families["understudy_depth"].samples if s.labels.get("le") == "0.3"]
    assert below == [1]


def test_the_process_is_measured() -> None:
    assert b"process_resident_memory_bytes" in Metrics().exposition()


class TestLabels:
    def test_the_same_labels_are_the_same_series(self) -> None:
        metrics = Metrics()
        assert metrics.exits.labels("toy", "1", "full") is metrics.exits.labels("toy", "1", "full")
        assert metrics.exits.labels("toy", "1", "full") is not metrics.exits.labels("toy", "2", "full")

    def test_what_is_no_text_is_written_as_one(self) -> None:
        metrics = Metrics()
        metrics.exits.labels("toy", 1, "full").inc()  # type: ignore[arg-type]
        assert metrics.exits.labels("toy", "1", "full").value == 1
        assert b'understudy_exits_total{exit="full",model="toy",version="1"} 1.0' in metrics.exposition()

    def test_too_few(self) -> None:
        with pytest.raises(ValueError, match="1 label values"):
            Metrics().exits.labels("toy")

    def test_removed(self) -> None:
        metrics = Metrics()
        metrics.student_info.labels("toy", "1", "classify", "onnxruntime", "int8").set(1)
        for _ in range(2):
            metrics.student_info.remove("toy", "1", "classify", "onnxruntime", "int8")
        assert b"onnxruntime" not in metrics.exposition()


NUMBERS = st.floats(0, 20, allow_nan=False) | st.sampled_from([*SECONDS, *ITEMS, *SHARES])
LABELS = st.sampled_from(["toy", "a b", 'quo"te', "back\\slash", "new\nline", "é", ""])
# name of the series, how many labels, and how prometheus_client makes it
SERIES: list[tuple[str, tuple[str, ...], Callable[..., Any], dict[str, Any]]] = [
    ("requests", ("endpoint", "model", "version", "status"), prometheus_client.Counter, {}),
    ("queue_items", ("model", "stage"), prometheus_client.Gauge, {}),
    ("queue_seconds", ("model",), prometheus_client.Histogram, {"buckets": SECONDS}),
    ("batch_items", ("model", "stage"), prometheus_client.Histogram, {"buckets": ITEMS}),
    ("padding_ratio", ("model",), prometheus_client.Histogram, {"buckets": SHARES}),
]


def _apply(series: Any, values: tuple[str, ...], number: float) -> None:
    child = series.labels(*values)
    (child.observe if hasattr(child, "observe") else child.inc)(number)


def _block(exposition: bytes, name: str) -> list[str]:
    # prometheus_client's own text of its own series has lines of when each was made, where they are on
    lines = exposition.decode().split("\n")
    return [line for line in lines if re.match(rf"(# (HELP|TYPE) )?{name}(_|[{{ ])", line) and "_created" not in line]


@given(st.lists(st.tuples(st.integers(0, len(SERIES) - 1), st.lists(LABELS, min_size=4, max_size=4), NUMBERS)))
def test_what_is_exposed_is_what_prometheus_client_would(events: list[tuple[int, list[str], float]]) -> None:
    ours, theirs = Metrics(), prometheus_client.CollectorRegistry()
    text = ours.exposition().decode()
    reference = []
    for attribute, names, kind, more in SERIES:
        name = f"understudy_{attribute}{'_total' if kind is prometheus_client.Counter else ''}"
        told = re.search(rf"^# HELP {name} (.*)$", text, re.MULTILINE)
        assert told is not None
        reference.append(kind(name, told[1], names, registry=theirs, **more))
    for index, labels, number in events:
        attribute, names, _, _ = SERIES[index]
        _apply(getattr(ours, attribute), tuple(labels[: len(names)]), number)
        _apply(reference[index], tuple(labels[: len(names)]), number)
    exposed, expected = ours.exposition(), prometheus_client.generate_latest(theirs)
    for attribute, *_ in SERIES:
        assert _block(exposed, f"understudy_{attribute}") == _block(expected, f"understudy_{attribute}")


@given(st.lists(NUMBERS), st.integers(1, 5))
def test_many_at_once_are_as_many_one_by_one(numbers: list[float], times: int) -> None:
    singly, together, repeated = (Distribution(SECONDS) for _ in range(3))
    for number in numbers:
        repeated.observe(number, times)
        for _ in range(times):
            singly.observe(number)
        together.observe_many([number] * times)
    assert singly.counts == together.counts == repeated.counts
    assert singly.total == together.total == pytest.approx(repeated.total)


# every expression that gives a label its value, by file: from configuration, the store and the code, never a request
LABEL_SOURCES = {
    "api/access.py": {"account.key.name"},
    "api/conversation.py": {"endpoint", "model", "version", "str(status)"},
    "api/families.py": {"*"},
    # `path`: of a native route, by which it was found
    "api/gate.py": {"path", "student.name", "student.version_label", "str(Overloaded.status)"},
    "api/observer.py": {"student.name", "name", "stage", "backend", "str(student.version)", "exit_id", "reason"},
    "api/passages.py": {"student.name", "model"},
    "api/students.py": {"name", "code", "*"},
    "metrics.py": {""},
}


def _label_arguments(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "labels":
            found |= {ast.unparse(argument) for argument in node.args} or {""}
    return found


def test_no_label_takes_its_value_from_somewhere_new() -> None:
    """A new source of labels is to be looked at: can a request choose it? If not, it is listed here."""
    for file in sorted(SERVICE.rglob("*.py")):
        known = LABEL_SOURCES.get(str(file.relative_to(SERVICE)), set())
        new = {source for source in _label_arguments(file) if source not in known and not _of_a_version(source)}
        assert not new, f"{file}: labels from {new}"


def _of_a_version(source: str) -> bool:
    """Names and versions of what is loaded from the store."""
    return re.fullmatch(r"(str\()?\*?(served|before|family|student|version|one)[\w.\[\]]*\)?", source) is not None
