"""Metrics: every promised series exists, each app has its own."""

import re

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics

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
    "understudy_bundle_refused_total": {"model", "error"},
}


def _own_series(metrics: Metrics) -> dict[str, set[str]]:
    names = re.findall(r"^# TYPE (understudy_\w+)", metrics.exposition().decode(), re.MULTILINE)
    labels = {
        collector._name: set(collector._labelnames)
        for collector in vars(metrics).values()
        if hasattr(collector, "_labelnames")
    }
    return {name: labels.get(name, labels.get(name.removesuffix("_total"), set())) for name in names}


def test_the_series_are_the_promised_ones_and_no_others() -> None:
    found = {name: labels for name, labels in _own_series(Metrics()).items() if not name.endswith("_created")}
    assert found == PROMISED


def test_two_apps_do_not_share_counts() -> None:
    first, second = Metrics(), Metrics()
    first.requests.labels("/v1/classify", "toy", "1", 200).inc()
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
