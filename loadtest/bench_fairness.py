"""Two students on one core: what a flood on one does to the other's p99.

Each student's share is half of the core. The quiet one is sent half of its share; the other, in every second run, twice
its share, which is its whole peak. `python -m loadtest.bench_fairness --store models/store` (needs UNDERSTUDY_DATA).
"""

from typing import Annotated

import typer

from loadtest.arrivals import poisson
from loadtest.bench import Bodies, Report, closed, data_file, in_turn, merged, one_line_errors, opened, shuffled
from loadtest.bench_options import OUT, STORE, OutOption, PairsOption, SecondsOption, StoreOption, WarmUpOption
from loadtest.errors import TargetFailed
from loadtest.servers import Server, take_cores, understudy
from loadtest.shots import Shot
from loadtest.stats import percentile
from loadtest.wire import origin_of

DATA = {"intent": "classify/banking77/test.jsonl", "sentiment": "classify/sst2/test.jsonl"}
CLIENTS = 32


def main(
    store: StoreOption = STORE,
    pairs: PairsOption = 10,
    seconds: SecondsOption = 10.0,
    warm_up: WarmUpOption = 2.0,
    out: OutOption = OUT,
    quiet: Annotated[str, typer.Option(help="The student whose p99 is watched.")] = "intent",
    flooded: Annotated[str, typer.Option(help="The student that is flooded.")] = "sentiment",
) -> None:
    """Measure the quiet student's p99 with and without the flood, in turn."""
    with one_line_errors():
        cores, report = take_cores(), Report("bench_fairness")
        with understudy(store, core=cores.server) as server:
            server.wait_ready()
            shots = {model: _shots(server, model, place) for place, model in enumerate((quiet, flooded))}
            peaks = {model: _peak(server, shots[model], seconds, warm_up) for model in shots}
            report.figures["peaks_per_s"] = peaks
            rates = {quiet: 0.25 * peaks[quiet], flooded: peaks[flooded]}
            told = ", ".join(f"{model} {rate:.0f}/s" for model, rate in rates.items())
            report.add("rates", "", told)
            runs = [0]

            def p99_ms(models: tuple[str, ...]) -> float:
                runs[0] += 1
                moments = [poisson(rates[m], warm_up + seconds, seed=100 * runs[0] + i) for i, m in enumerate(models)]
                load = merged([(each, shots[model]) for each, model in zip(moments, models, strict=True)])
                played = opened(load, origin_of(server.url), seconds=seconds, warm_up_s=warm_up)
                if played.invalid:
                    print(f"  INVALID: {played.invalid}")
                return percentile(played.sample.where(played.sample.kind == 0).felt_ms, 0.99)

            sides = {"flooded": lambda: p99_ms((quiet, flooded)), "alone": lambda: p99_ms((quiet,))}
            figures = in_turn(sides, pairs=pairs)
        if any(value == float("inf") for values in figures.values() for value in values):
            raise TargetFailed("requests were lost")
        name = f"p99 of {quiet} under a flood on {flooded} against alone, ms"
        bound = report.ratio(name, figures, ("flooded", "alone"), None)
        report.add(f"{name}: upper bound", "<= 3", f"{bound.high:.2f}", bound.high <= 3.0)
        raise SystemExit(report.finish(out))


def _shots(server: Server, model: str, kind: int) -> list[Shot]:
    return Bodies("/v1/classify", {"model": model}).shots(server.url, shuffled(data_file(DATA[model])), kind=kind)


def _peak(server: Server, shots: list[Shot], seconds: float, warm_up: float) -> float:
    return len(closed(server.url, shots, clients=CLIENTS, seconds=seconds, warm_up_s=warm_up).sample) / seconds


if __name__ == "__main__":
    typer.run(main)
