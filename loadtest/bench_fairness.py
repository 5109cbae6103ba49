"""Two students on one core: what a flood on one does to the other's p99.

Each student's share is half of the core. The quiet one is sent half of its share; the other, in every second run, twice
its share, which is its whole peak, with a deadline, so that what is too much is refused. Each has connections of its
own, open before the run: the quiet one's clients never wait for the flood's.
`python -m loadtest.bench_fairness --store models/store` (needs UNDERSTUDY_DATA).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import typer

from loadtest.arrivals import poisson
from loadtest.bench import (
    Bodies,
    Report,
    closed,
    connections_for,
    data_file,
    in_turn,
    merged,
    one_line_errors,
    opened,
    shuffled,
)
from loadtest.bench_options import ENGINE, OUT, STORE, OutOption, PairsOption, SecondsOption, StoreOption, WarmUpOption
from loadtest.errors import TargetFailed
from loadtest.servers import Server, take_cores, understudy
from loadtest.shots import Shot
from loadtest.stats import percentile
from loadtest.summary import percentiles_of
from loadtest.wire import origin_of

DATA = {"intent": "classify/banking77/test.jsonl", "sentiment": "classify/sst2/test.jsonl"}
CLIENTS = 32
# the longest that answers are waited for, in choosing how many connections each student's clients have
PATIENCE_S = 0.3


def main(
    store: StoreOption = STORE,
    pairs: PairsOption = 10,
    seconds: SecondsOption = 10.0,
    warm_up: WarmUpOption = 2.0,
    out: OutOption = OUT,
    quiet: Annotated[str, typer.Option(help="The student whose p99 is watched.")] = "intent",
    flooded: Annotated[str, typer.Option(help="The student that is flooded.")] = "sentiment",
    deadline_ms: Annotated[float, typer.Option(help="Deadline of the flood's requests.")] = 200.0,
) -> None:
    """Measure the quiet student's p99 with and without the flood, in turn."""
    with one_line_errors():
        cores, report = take_cores(), Report("bench_fairness")
        with understudy(store, core=cores.server, options=ENGINE) as server:
            server.wait_ready()
            shots = {model: _shots(server, model, place) for place, model in enumerate((quiet, flooded))}
            peaks = {model: _peak(server, shots[model], seconds, warm_up) for model in shots}
            report.figures["peaks_per_s"] = peaks
            rates = {quiet: 0.25 * peaks[quiet], flooded: peaks[flooded]}
            told = ", ".join(f"{model} {rate:.0f}/s" for model, rate in rates.items())
            report.add("rates", "", told)
            shots[flooded] = _shots(server, flooded, 1, {"deadline_ms": deadline_ms})
            connections = tuple(connections_for(rates[model], PATIENCE_S) for model in (quiet, flooded))
            runs = [0]
            served: dict[str, list[float]] = {"flooded": [], "alone": []}

            def p99_ms(models: tuple[str, ...]) -> float:
                runs[0] += 1
                moments = [poisson(rates[m], warm_up + seconds, seed=100 * runs[0] + i) for i, m in enumerate(models)]
                load = merged([(each, shots[model]) for each, model in zip(moments, models, strict=True)])
                played = opened(
                    load, origin_of(server.url), seconds=seconds, warm_up_s=warm_up, connections=connections
                )
                if played.invalid:
                    print(f"  INVALID: {played.invalid}")
                watched = played.sample.where(played.sample.kind == 0)
                served["flooded" if len(models) > 1 else "alone"].append(percentiles_of(watched.total_ms).p99)
                return percentile(watched.felt_ms, 0.99)

            sides = {"flooded": lambda: p99_ms((quiet, flooded)), "alone": lambda: p99_ms((quiet,))}
            figures = in_turn(sides, pairs=pairs)
        if any(value == float("inf") for values in figures.values() for value in values):
            raise TargetFailed("requests were lost")
        name = f"p99 of {quiet} under a flood on {flooded} against alone, ms"
        bound = report.ratio(name, figures, ("flooded", "alone"), None)
        report.ratio("the same by the server's own clock", served, ("flooded", "alone"), None)
        report.add(f"{name}: upper bound", "<= 3", f"{bound.high:.2f}", bound.high <= 3.0)
        raise SystemExit(report.finish(out))


def _shots(server: Server, model: str, kind: int, extra: Mapping[str, float] = MappingProxyType({})) -> list[Shot]:
    return Bodies("/v1/classify", {"model": model, **extra}).shots(
        server.url, shuffled(data_file(DATA[model])), kind=kind
    )


def _peak(server: Server, shots: list[Shot], seconds: float, warm_up: float) -> float:
    return len(closed(server.url, shots, clients=CLIENTS, seconds=seconds, warm_up_s=warm_up).sample) / seconds


if __name__ == "__main__":
    typer.run(main)
