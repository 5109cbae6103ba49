"""Latency under load: Poisson arrivals at 70% of the peak, then at 150% with deadlines.

`python -m loadtest.bench_latency --store models/store` (needs UNDERSTUDY_DATA). The peak is a closed loop's. As a
control, the same bodies go to a plain echo route at 70% of the echo's own peak: what it shows is the machine's and the
generator's part.
"""

from typing import Annotated

import numpy as np
import typer

from loadtest.arrivals import poisson
from loadtest.bench import (
    Bodies,
    Report,
    chunks,
    closed,
    connections_for,
    data_file,
    merged,
    one_line_errors,
    opened,
    shuffled,
)
from loadtest.bench_options import ENGINE, OUT, STORE, OutOption, SecondsOption, StoreOption, WarmUpOption
from loadtest.play import Played
from loadtest.report import number
from loadtest.servers import Server, echo, take_cores, understudy
from loadtest.shots import Shot
from loadtest.stats import percentile
from loadtest.summary import summarise, within
from loadtest.wire import origin_of

CLIENTS = 64
DATA = {"intent": "classify/banking77/test.jsonl", "sentiment": "classify/sst2/test.jsonl"}
LEAST_REQUESTS = 10_000
# the longest that answers are waited for, in choosing how many connections there are
PATIENCE_S = 0.2


def main(
    store: StoreOption = STORE,
    seconds: SecondsOption = 10.0,
    warm_up: WarmUpOption = 2.0,
    out: OutOption = OUT,
    model: Annotated[str, typer.Option(help="The student: intent or sentiment.")] = "sentiment",
    items: Annotated[int, typer.Option(min=1, help="Texts in a request.")] = 1,
    deadline_ms: Annotated[float, typer.Option(help="Deadline of the requests at 150%.")] = 100.0,
    requests: Annotated[int, typer.Option(help="At least so many in each open loop.")] = LEAST_REQUESTS,
) -> None:
    """Find the peak and the unloaded p50, then load it in proportion."""
    with one_line_errors():
        cores, report = take_cores(), Report("bench_latency")
        texts = shuffled(data_file(DATA[model]))
        inputs = chunks(texts, items)
        with understudy(store, core=cores.server, options=ENGINE) as server, echo(core=cores.server) as plain:
            servers = [server.wait_ready(), plain.wait_ready()]
            with plain.alone(servers):
                _control(report, plain, Bodies("/v1/classify").shots(plain.url, texts), seconds, warm_up)
            plain.pause()
            shots = Bodies("/v1/classify", {"model": model}).shots(server.url, inputs)
            busy = closed(server.url, shots, clients=CLIENTS, seconds=seconds, warm_up_s=warm_up)
            calm = closed(server.url, shots, clients=1, seconds=min(seconds, 5.0), warm_up_s=warm_up / 2)
            peak, p50_ms = len(busy.sample) / seconds, percentile(calm.sample.latency_ms, 0.5)
            report.figures |= {"peak_per_s": peak, "unloaded_p50_ms": p50_ms}
            report.add(f"{model}: peak", "", f"{peak:.0f} requests/s; unloaded p50 {p50_ms:.3f} ms")
            rate = 0.7 * peak
            waited_s = server.waited_s()
            loaded = _open(server, shots, rate, max(requests / rate, seconds), warm_up)
            _at_70(report, loaded, p50_ms, rate)
            share = (server.waited_s() - waited_s) / (loaded.seconds + warm_up)
            report.add("of that time the server's core did other things", "", f"{share:.1%}")
            hasty = Bodies("/v1/classify", {"model": model, "deadline_ms": deadline_ms}).shots(server.url, inputs)
            flooded = _open(server, hasty, 1.5 * peak, max(requests / (1.5 * peak), seconds), warm_up)
            _at_150(report, flooded, peak, deadline_ms)
        raise SystemExit(report.finish(out))


def _control(report: Report, plain: Server, shots: list[Shot], seconds: float, warm_up: float) -> None:
    """What a route that does nothing shows in the same place."""
    busy = closed(plain.url, shots, clients=CLIENTS, seconds=min(seconds, 5.0), warm_up_s=warm_up / 2)
    rate = 0.7 * len(busy.sample) / busy.seconds
    summary = summarise(_open(plain, shots, rate, seconds, warm_up).sample, seconds)
    report.figures["control_p99_ms"] = summary.latency_ms.p99
    found = f"p99 {summary.latency_ms.p99:.2f} ms, p50 {summary.latency_ms.p50:.2f} ms at {rate:.0f}/s"
    report.add("control: an echo route at 70% of its peak", "", found)


def _open(server: Server, shots: list[Shot], rate: float, seconds: float, warm_up: float) -> Played:
    load = merged([(poisson(rate, warm_up + seconds, seed=1), shots)])
    connections = (connections_for(rate, PATIENCE_S),)
    return opened(load, origin_of(server.url), seconds=seconds, warm_up_s=warm_up, connections=connections)


def _at_70(report: Report, played: Played, p50_ms: float, rate: float) -> None:
    summary = summarise(played.sample, played.seconds)
    bound, p99 = max(6 * p50_ms, 10.0), summary.latency_ms.p99
    invalid = f"; INVALID: {played.invalid}" if played.invalid else ""
    found = (
        f"p99 {p99:.2f} ms (by the server's clock {summary.total_ms.p99:.2f}), p50 {summary.latency_ms.p50:.2f} ms "
        f"over {summary.counts.sent:,} requests at {rate:.0f}/s, "
        f"{summary.counts.sent - summary.counts.ok} not answered{invalid}"
    )
    met = p99 <= bound and not played.invalid and summary.counts.ok == summary.counts.sent
    report.add("p99 at 70% of the peak", f"<= {bound:.1f} ms", found, met)


def _at_150(report: Report, played: Played, peak: float, deadline_ms: float) -> None:
    sample, summary = played.sample, summarise(played.sample, played.seconds)
    counts = summary.counts
    good = within(sample, deadline_ms + 10.0) / played.seconds
    invalid = f"; INVALID: {played.invalid}" if played.invalid else ""
    found = f"{good:.0f}/s in time of {summary.offered_per_s:.0f}/s offered, peak {peak:.0f}/s{invalid}"
    report.add("goodput at 150%", ">= 90% of the peak", found, good >= 0.9 * peak and not played.invalid)
    refusals = f"{counts.shed:,} refused; p50 {number(summary.refused_ms.p50)}, p99 {number(summary.refused_ms.p99)} ms"
    report.add("refusals (429) at 150%", "p99 < 10 ms", refusals, not summary.refused_ms.p99 >= 10.0)
    late = int((sample.ok & (sample.latency_ms > deadline_ms + 10.0)).sum())
    ends = f"{counts.lost} lost, {counts.failed + counts.unready} failed, {counts.late} 504, {late} answered late"
    none = counts.lost + counts.failed + counts.unready + counts.late + late == 0
    report.add("every answer in time or refused at 150%", "none else", ends, none)
    report.figures["latency_ms_at_150"] = np.percentile(sample.latency_ms, [50, 90, 99]).tolist() if len(sample) else []


if __name__ == "__main__":
    typer.run(main)
