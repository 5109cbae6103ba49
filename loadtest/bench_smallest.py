"""Single-text classify of the cheapest student against a plain FastAPI echo route: same bodies, same core, 32 clients.

`python -m loadtest.bench_smallest --store models/store` (needs UNDERSTUDY_DATA, or `--texts`).
"""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench import Bodies, Report, closed, data_file, in_turn, one_line_errors, rate_of, shuffled
from loadtest.bench_options import OUT, STORE, OutOption, PairsOption, SecondsOption, StoreOption, WarmUpOption
from loadtest.servers import Server, echo, take_cores, understudy

CLIENTS = 32


def main(
    store: StoreOption = STORE,
    pairs: PairsOption = 10,
    seconds: SecondsOption = 5.0,
    warm_up: WarmUpOption = 1.0,
    out: OutOption = OUT,
    model: Annotated[str, typer.Option(help="The cheapest student.")] = "intent",
    texts: Annotated[Path | None, typer.Option(help="Default: BANKING77's test texts.")] = None,
) -> None:
    """Measure both sides in turn."""
    with one_line_errors():
        cores, report = take_cores(), Report("bench_smallest")
        inputs = shuffled(texts or data_file("classify/banking77/test.jsonl"))
        with understudy(store, core=cores.server) as ours, echo(core=cores.server) as plain:
            servers = [ours.wait_ready(), plain.wait_ready()]

            def rate(server: Server) -> float:
                shots = Bodies("/v1/classify", {"model": model}).shots(server.url, inputs)
                with server.alone(servers):
                    return rate_of(closed(server.url, shots, clients=CLIENTS, seconds=seconds, warm_up_s=warm_up))

            figures = in_turn({"ours": lambda: rate(ours), "echo": lambda: rate(plain)}, pairs=pairs)
        report.ratio(f"{model}, single texts, requests/s against an echo route", figures, ("ours", "echo"), 1.0)
        raise SystemExit(report.finish(out))


if __name__ == "__main__":
    typer.run(main)
