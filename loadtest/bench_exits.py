"""Early exits inside dynamic batches: 16 clients, 32 texts a request, test texts in random order.

`python -m loadtest.bench_exits --store models/store` (needs UNDERSTUDY_DATA, and the offline half for the unsplit
student, which is published in a copy of the store).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.bench import Bodies, Report, chunks, closed, data_file, in_turn, one_line_errors, rate_of, shuffled
from loadtest.bench_options import OUT, STORE, OutOption, PairsOption, SecondsOption, StoreOption, WarmUpOption
from loadtest.errors import TargetFailed
from loadtest.servers import Server, ask, take_cores, understudy
from loadtest.stats import at_least, upper_share

CLIENTS, ITEMS = 16, 32
DATA = {"intent": "classify/banking77/test.jsonl", "sentiment": "classify/sst2/test.jsonl"}
LEAST = {"intent": 2.2, "sentiment": 1.5}
RUN_ON = {"UNDERSTUDY_REBATCH": "false"}
WHOLE = "-unsplit"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    risk: float
    pairs: int
    seconds: float
    warm_up: float
    backend: str


def main(
    store: StoreOption = STORE,
    pairs: PairsOption = 10,
    seconds: SecondsOption = 5.0,
    warm_up: WarmUpOption = 1.0,
    out: OutOption = OUT,
    models: Annotated[str, typer.Option(help="Students, comma-separated: intent, sentiment.")] = "intent,sentiment",
    risk: Annotated[float, typer.Option(help="The operating point.")] = 0.01,
    backend: Annotated[str, typer.Option(help="Of the server.")] = "onnxruntime",
) -> None:
    """Measure exits against full depth, the unsplit graph, and running on without re-batching."""
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        cores, report = take_cores(), Report("bench_exits")
        copy = Path(folder) / "store"
        shutil.copytree(store, copy)
        for model in models.split(","):
            _publish_whole(model, copy)
        options = ["--backend", backend]
        ours = understudy(copy, core=cores.server, options=options)
        run_on = understudy(copy, core=cores.server, name="run-on", options=options, environment=RUN_ON)
        with ours, run_on:
            servers = [ours.wait_ready(), run_on.wait_ready()]
            for model in models.split(","):
                _measure(report, servers, model, Plan(risk, pairs, seconds, warm_up, backend))
        raise SystemExit(report.finish(out))


def _publish_whole(model: str, store: Path) -> None:
    """The student as one graph. Raises: TargetFailed: the offline half could not make it."""
    command = [sys.executable, "-m", "models.evaluate.unsplit_command", model, "--store", str(store)]
    done = subprocess.run([*command, "--name", model + WHOLE], check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise TargetFailed(f"{model}: the unsplit student could not be made")


def can_run_on() -> bool:
    """Whether the server knows the switch that turns re-batching off."""
    command = [sys.executable, "-m", "service.cli", "serve", "--check"]
    told = subprocess.run(command, check=False, capture_output=True, text=True, env=dict(os.environ) | RUN_ON)
    return "rebatch" in told.stdout


def _measure(report: Report, servers: list[Server], model: str, plan: Plan) -> None:
    ours, run_on = servers
    texts = shuffled(data_file(DATA[model]))
    risk: dict[str, Any] = {"model": model, "exit": {"risk": plan.risk}}
    never: dict[str, Any] = {"model": model, "exit": "never"}

    def side(server: Server, extra: Mapping[str, Any]) -> Callable[[], float]:
        shots = Bodies("/v1/classify", extra).shots(server.url, chunks(texts, ITEMS))

        def measure() -> float:
            with server.alone(servers):
                return rate_of(closed(server.url, shots, clients=CLIENTS, seconds=plan.seconds, warm_up_s=plan.warm_up))

        return measure

    sides = {"risk": side(ours, risk), "never": side(ours, never), "unsplit": side(ours, {"model": model + WHOLE})}
    if can_run_on():
        sides["run on"] = side(run_on, risk)
    figures = in_turn(sides, pairs=plan.pairs)
    report.ratio(f"{model}: risk {plan.risk:g} against never, texts/s", figures, ("risk", "never"), LEAST[model])
    report.ratio(f"{model}: never against the unsplit graph, texts/s", figures, ("never", "unsplit"), 0.95)
    _rebatching(report, model, figures, plan)
    _agreement(report, ours, model, texts, plan.risk)


def _rebatching(report: Report, model: str, figures: Mapping[str, list[float]], plan: Plan) -> None:
    name = f"{model}: re-batching against running on, texts/s"
    if "run on" not in figures:
        report.add(name, "", "not measured: this server has no switch for it")
        return
    # "never slower elsewhere" is one-sided the other way: the upper bound must not be below 1
    bound = report.ratio(name, figures, ("risk", "run on"), 1.15 if plan.backend == "openvino" else None)
    if plan.backend != "openvino":
        report.add(f"{name}: not slower", ">= 1 within the bounds", f"at most {bound.high:.3f}", bound.high >= 1.0)


def _agreement(report: Report, server: Server, model: str, texts: list[str], risk: float) -> None:
    """Ask every text both ways; hold the disagreements against the promise, and print the saving in theory."""
    early = _answers(server, {"model": model, "exit": {"risk": risk}}, texts)
    full = _answers(server, {"model": model, "exit": "never"}, texts)
    rows, errors = len(texts), sum(a["label"] != b["label"] for a, b in zip(early, full, strict=True))
    p_value = at_least(errors, rows, risk)
    bound = upper_share(errors, rows)
    found = f"{errors} of {rows} differ ({errors / rows:.4f}; upper bound {bound:.4f}), p = {p_value:.3f}"
    report.add(f"{model}: disagreement at risk {risk:g}", "p >= 0.05 against the promise", found, p_value >= 0.05)
    depth = sum(answer["depth"] for answer in early) / rows
    report.add(
        f"{model}: saving in theory", "", f"mean depth {depth:.3f}: {1 / depth:.2f} times the texts/s of the graphs"
    )


def _answers(server: Server, extra: Mapping[str, Any], texts: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for start in range(0, len(texts), 256):
        body = dict(extra) | {"inputs": texts[start : start + 256]}
        found += ask(f"{server.url}/v1/classify", body)["results"]
    return found


if __name__ == "__main__":
    typer.run(main)
