"""What a load test says: tables for a person, JSON for a program."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from loadtest.errors import OutputFailed
from loadtest.run import RunResult, ScenarioResult
from loadtest.sla import Verdict
from loadtest.summary import Percentiles, Summary


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the others to the right.

    >>> print(table(["a", "n"], [["x", "10"]]))
    a   n
    x  10
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def number(value: float) -> str:
    """Four figures; a dash for what is not known."""
    return "-" if value != value else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """A row a clause."""
    rows = [
        [v.clause, f"{'>=' if v.least else '<='} {v.wanted:g}", number(v.found), "met" if v.met else "MISSED"]
        for v in verdicts
    ]
    return table(["clause", "wanted", "found", "verdict"], rows)


def times_table(summary: Summary) -> str:
    """Percentiles of all that was timed, in milliseconds."""
    rows: list[tuple[str, Percentiles]] = [
        ("latency", summary.latency_ms),
        ("queue (server)", summary.queue_ms),
        ("run (server)", summary.run_ms),
        ("total (server)", summary.total_ms),
        ("refusals", summary.refused_ms),
        ("generator late", summary.lag_ms),
    ]
    told = [[name, *map(number, asdict(times).values())] for name, times in rows if times.most == times.most]
    return table(["ms", "p50", "p90", "p99", "p99.9", "most"], told)


def run_lines(run: RunResult) -> list[str]:
    """One run for a person."""
    summary, counts = run.summary, run.summary.counts
    ends = ", ".join(f"{name} {count:,}" for name, count in asdict(counts).items() if count or name in ("sent", "ok"))
    lines = [f"offered {number(summary.offered_per_s)}/s, answered {number(summary.ok_per_s)}/s: {ends}"]
    if summary.items_per_s != summary.ok_per_s:
        lines.append(f"texts answered: {number(summary.items_per_s)}/s")
    if summary.accuracy == summary.accuracy:
        lines.append(f"accuracy {summary.accuracy:.4f}")
    played = run.played
    if played.limited:
        lines.append(f"{played.limited:,} requests waited for one of the {played.opened} connections")
    lines += ["", times_table(summary)]
    if len(run.kinds) > 1:
        lines += ["", kinds_table(run.kinds)]
    if run.verdicts:
        lines += ["", verdict_table(run.verdicts)]
    return [*lines, *(["", f"INVALID: {played.invalid}"] if played.invalid else [])]


def kinds_table(kinds: Mapping[str, Summary]) -> str:
    """A row a kind of request."""
    rows = [
        [name, number(s.offered_per_s), number(s.ok_per_s), number(s.latency_ms.p50), number(s.latency_ms.p99)]
        for name, s in kinds.items()
    ]
    return table(["kind", "offered/s", "answered/s", "p50 ms", "p99 ms"], rows)


def sweep_table(runs: Sequence[RunResult]) -> str:
    """A row a rate."""
    rows = [
        [
            number(run.rate_per_s or run.summary.offered_per_s),
            number(run.summary.ok_per_s),
            *(number(value) for value in (run.summary.latency_ms.p50, run.summary.latency_ms.p99)),
            *(number(value) for value in (run.summary.queue_ms.p50, run.summary.run_ms.p50)),
            f"{run.summary.error_rate:.4f}",
            "INVALID" if run.played.invalid else "holds" if run.holds else "MISSED",
        ]
        for run in runs
    ]
    return table(["rate/s", "answered/s", "p50 ms", "p99 ms", "queue p50", "run p50", "errors", "SLA"], rows)


def scenario_lines(result: ScenarioResult) -> list[str]:
    """The whole test for a person."""
    scenario = result.scenario
    lines = [f"{scenario.name}: {scenario.duration_s:g} s after {scenario.warm_up_s:g} s of warm-up, {scenario.target}"]
    if result.cost is not None:
        lines.append(
            f"generator: {result.cost.cpu_us:.0f} us a request, at most {result.cost.peak_per_s:,.0f}/s by itself"
        )
    lines.append("")
    lines += run_lines(result.runs[0]) if len(result.runs) == 1 else [sweep_table(result.runs)]
    if result.found is not None:
        beyond = "" if result.found.fails_at == float("inf") else f" (missed at {number(result.found.fails_at)}/s)"
        lines += ["", f"highest rate that keeps the SLA: {number(result.found.highest)}/s{beyond}"]
    return lines


def document(result: ScenarioResult) -> dict[str, Any]:
    """The whole test for a program; header values, which may be keys, stay out."""
    scenario = result.scenario.model_dump(mode="json", by_alias=True, exclude_none=True)
    scenario["headers"] = sorted(scenario.get("headers", {}))
    return {
        "schema": 1,
        "scenario": scenario,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "generator": None if result.cost is None else asdict(result.cost),
        "holds": result.holds,
        "search": None if result.found is None else asdict(result.found),
        "runs": [_run_document(run) for run in result.runs],
    }


def _run_document(run: RunResult) -> dict[str, Any]:
    played = run.played
    return {
        "rate_per_s": run.rate_per_s,
        "holds": run.holds,
        "invalid": played.invalid,
        "summary": _summary_document(run.summary),
        "kinds": {name: _summary_document(summary) for name, summary in run.kinds.items()},
        "verdicts": [asdict(verdict) | {"met": verdict.met} for verdict in run.verdicts],
        "client": {
            "cpu_share": played.cpu_share,
            "connections_opened": played.opened,
            "waited_for_connection": played.limited,
            "retried": played.retried,
        },
    }


def _summary_document(summary: Summary) -> dict[str, Any]:
    return asdict(summary) | {"error_rate": summary.error_rate, "failure_rate": summary.failure_rate}


def machine() -> str:
    """The processor and how many cores there are."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def write_json(path: Path, value: Any) -> None:
    """Write a result; figures that are not known or infinite become null. Raises: OutputFailed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    except OSError as error:
        raise OutputFailed(f"{path}: cannot be written: {error.strerror}") from error
