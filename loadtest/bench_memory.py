"""Memory: resident bytes at peak load with mixed lengths over ten minutes, and over 20 load/unload cycles.

`python -m loadtest.bench_memory --store models/store` (needs UNDERSTUDY_DATA). The cycles move an alias to and fro in a
copy of the store.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from loadtest.bench import Bodies, Report, chunks, closed, data_file, one_line_errors, shuffled
from loadtest.bench_options import OUT, STORE, OutOption, SecondsOption, StoreOption, WarmUpOption
from loadtest.errors import TargetFailed
from loadtest.servers import Server, ask, take_cores, understudy
from loadtest.shots import Shot
from loadtest.stats import slope_bound

CLIENTS = 32
DAY_S = 86_400.0
MOST = 0.05
SAMPLE_S = 0.5
MOVE_S = 60.0
DATA = {"intent": "classify/banking77/test.jsonl", "sentiment": "classify/sst2/test.jsonl"}


def main(
    store: StoreOption = STORE,
    seconds: SecondsOption = 600.0,
    warm_up: WarmUpOption = 60.0,
    out: OutOption = OUT,
    cycles: Annotated[int, typer.Option(min=0, help="Load/unload cycles.")] = 20,
    model: Annotated[str, typer.Option(help="The student that is loaded and unloaded.")] = "sentiment",
) -> None:
    """Measure the slope, then the cycles."""
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        cores, report = take_cores(), Report("bench_memory")
        copy = Path(folder) / "store"
        shutil.copytree(store, copy)
        _second_version(copy / model)
        with understudy(copy, core=cores.server) as server:
            server.wait_ready()
            _slope(report, server, seconds, warm_up)
            if cycles:
                _cycles(report, server, copy, model, cycles)
        raise SystemExit(report.finish(out))


def _second_version(student: Path) -> None:
    """The newest version once more, under the next number."""
    newest = max(int(entry.name) for entry in student.iterdir() if entry.name.isdigit())
    shutil.copytree(student / str(newest), student / str(newest + 1))


def mixed_shots(server: Server) -> list[Shot]:
    """Requests of both students: single texts, lists of 2 to 64, texts of one to a few hundred words."""
    rng, shots = np.random.default_rng(0), []
    for model, file in DATA.items():
        texts = shuffled(data_file(file))
        long = [" ".join(texts[i] for i in rng.integers(len(texts), size=int(rng.integers(2, 20)))) for _ in range(200)]
        bodies = Bodies("/v1/classify", {"model": model})
        for size in (1, 2, 7, 32, 64):
            few = [texts[i] for i in rng.integers(len(texts), size=size * 40)]
            shots += bodies.shots(server.url, chunks(few, size)) + bodies.shots(server.url, chunks(long, size)[:20])
    return [shots[i] for i in rng.permutation(len(shots))]


def _slope(report: Report, server: Server, seconds: float, warm_up: float) -> None:
    shots, stop = mixed_shots(server), threading.Event()
    seen: list[tuple[float, float]] = []

    def watch() -> None:
        while not stop.wait(SAMPLE_S):
            seen.append((time.monotonic(), float(server.resident_bytes())))

    watcher, begin = threading.Thread(target=watch), time.monotonic()
    watcher.start()
    try:
        played = closed(server.url, shots, clients=CLIENTS, seconds=seconds, warm_up_s=warm_up)
    finally:
        stop.set()
        watcher.join()
    kept = np.array([(at - begin - warm_up, held) for at, held in seen if at - begin >= warm_up])
    bound = slope_bound(kept[:, 0], kept[:, 1])
    share = bound.high * DAY_S / bound.start
    report.figures["resident_bytes"] = [[round(at, 1), int(held)] for at, held in kept[:: max(1, len(kept) // 600)]]
    found = (
        f"{share:+.2%} a day at most ({bound.slope * DAY_S / bound.start:+.2%} fitted) of {bound.start / 1e6:.1f} MB, "
        f"{len(played.sample):,} requests"
    )
    report.add(f"resident memory over {seconds:g} s at peak", f"<= {MOST:.0%} a day", found, share <= MOST)


def _cycles(report: Report, server: Server, store: Path, model: str, cycles: int) -> None:
    numbers = sorted(int(entry.name) for entry in (store / model).iterdir() if entry.name.isdigit())[-2:]
    held = []
    for cycle in range(cycles + 1):
        for version in reversed(numbers):
            _move(server, store, model, version)
        held.append(server.resident_bytes())
        print(f"  cycle {cycle}: {held[-1] / 1e6:.1f} MB", flush=True)
    # the first cycle fills what is kept for later ones: allocators' arenas, caches of code and shapes
    grown = held[-1] / held[0] - 1
    report.figures["resident_bytes_by_cycle"] = held
    found = f"{grown:+.2%} ({held[0] / 1e6:.1f} MB, then {held[-1] / 1e6:.1f} MB)"
    report.add(f"resident memory after {cycles} load/unload cycles", f"within {MOST:.0%}", found, grown <= MOST)


def _move(server: Server, store: Path, model: str, version: int) -> None:
    """Point production at a version, and wait until it is what answers and the other is gone."""
    command = [sys.executable, "-m", "service.cli", "models", "alias", f"{model}@{version}", "production"]
    subprocess.run([*command, "--store", str(store)], check=True, stdout=subprocess.DEVNULL)
    aliases = json.loads((store / model / "aliases.json").read_text(encoding="utf-8"))["aliases"]
    wanted = {int(entry["version"]) for entry in aliases.values()}
    until = time.monotonic() + MOVE_S
    while True:
        answered = ask(f"{server.url}/v1/classify", {"model": model, "inputs": "a quiet film"})["version"]
        if answered == version and _served(server, model) == wanted:
            return
        if time.monotonic() > until:
            raise TargetFailed(f"{model}@{version} was not served within {MOVE_S:g} s")
        time.sleep(0.05)


def _served(server: Server, model: str) -> set[int]:
    """The versions that are loaded."""
    return {int(entry["version"]) for entry in ask(f"{server.url}/v1/models/{model}")["versions"]}


if __name__ == "__main__":
    typer.run(main)
