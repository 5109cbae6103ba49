"""Texts a second over HTTP against the in-process ceiling of the same core: perfect batches, tokenizing included.

`python -m loadtest.bench_efficiency --store models/store` (needs UNDERSTUDY_DATA).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench import Bodies, Report, chunks, closed, data_file, in_turn, one_line_errors, rate_of, shuffled
from loadtest.bench_options import OUT, STORE, OutOption, PairsOption, SecondsOption, StoreOption, WarmUpOption
from loadtest.servers import LineProcess, Server, ask, take_cores, understudy

CLIENTS, ITEMS = 16, 32
DATA = {"intent": "classify/banking77/test.jsonl", "sentiment": "classify/sst2/test.jsonl"}


def task_of(server: Server, model: str) -> str:
    """The student's task, as the server tells it."""
    return str(ask(f"{server.url}/v1/models/{model}")["task"])


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, and how the student runs on both sides."""

    store: Path
    exits: str
    backend: str
    pairs: int
    seconds: float
    warm_up: float

    @property
    def exit(self) -> object:
        """As requests say it."""
        return self.exits if self.exits in ("default", "never") else {"risk": float(self.exits)}


def ceiling(model: str, rows: Path, plan: Plan, *, core: int) -> LineProcess:
    """The student in a process of its own, ready to run perfect batches."""
    command = [sys.executable, "-m", "models.evaluate.ceiling", model, str(rows), "--store", str(plan.store)]
    return LineProcess([*command, "--exit", plan.exits, "--backend", plan.backend], core=core)


def main(
    store: StoreOption = STORE,
    pairs: PairsOption = 10,
    seconds: SecondsOption = 5.0,
    warm_up: WarmUpOption = 1.0,
    out: OutOption = OUT,
    models: Annotated[str, typer.Option(help="Students, comma-separated.")] = "intent,sentiment",
    exits: Annotated[str, typer.Option("--exit", help="On both sides: default, never or a risk.")] = "default",
    backend: Annotated[str, typer.Option(help="On both sides.")] = "onnxruntime",
) -> None:
    """Measure both sides of each student in turn."""
    with one_line_errors():
        cores, report = take_cores(), Report("bench_efficiency")
        plan = Plan(store, exits, backend, pairs, seconds, warm_up)
        with understudy(store, core=cores.server, options=["--backend", backend]) as ours:
            ours.wait_ready()
            for model in models.split(","):
                _measure(report, ours, model, plan, core=cores.server)
        raise SystemExit(report.finish(out))


def _measure(report: Report, ours: Server, model: str, plan: Plan, *, core: int) -> None:
    rows, task = data_file(DATA.get(model, DATA["intent"])), task_of(ours, model)
    shots = Bodies(f"/v1/{task}", {"model": model, "exit": plan.exit}).shots(ours.url, chunks(shuffled(rows), ITEMS))
    ours.pause()
    with ceiling(model, rows, plan, core=core) as process:
        print(f"{model}: ceiling on {process.first['ready']}, batches of {process.first['batch_items']}")

        def served() -> float:
            ours.resume()
            rate = rate_of(closed(ours.url, shots, clients=CLIENTS, seconds=plan.seconds, warm_up_s=plan.warm_up))
            ours.pause()
            return rate

        def in_process() -> float:
            process.ask(str(plan.warm_up / 2))
            done = process.ask(str(plan.seconds))
            return float(done["texts"] / done["seconds"])

        figures = in_turn({"served": served, "ceiling": in_process}, pairs=plan.pairs)
    ours.resume()
    report.ratio(f"{model}, texts/s over HTTP against in-process", figures, ("served", "ceiling"), 0.85)


if __name__ == "__main__":
    typer.run(main)
