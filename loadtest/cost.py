"""What the generator costs: its processor time a request, and its own peak, against a responder that does nothing."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loadtest.errors import TargetFailed
from loadtest.mixture import Load
from loadtest.play import Stage, play
from loadtest.shots import Shots
from loadtest.wire import Origin

CLIENTS = 32
END_S = 10


@dataclass(frozen=True, slots=True)
class GeneratorCost:
    """cpu_us: microseconds of processor time a request. peak_per_s: requests a second against the responder."""

    cpu_us: float
    peak_per_s: float


@contextmanager
def responder(core: int | None = None) -> Iterator[Origin]:
    """A responder in a process of its own. Raises: TargetFailed: it does not start."""
    command = [sys.executable, "-m", "loadtest.responder", *([] if core is None else [str(core)])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise TargetFailed("the responder did not start")
        yield Origin("http", "127.0.0.1", int(port), "")
    finally:
        process.stdin.close()
        process.wait(END_S)
        process.stdout.close()


def generator_cost(shots: Shots, *, seconds: float = 1.0, core: int | None = None) -> GeneratorCost:
    """Send these requests to a responder as fast as it goes."""
    with responder(core) as origin:
        played = play(Load(None, shots), Stage(origin, seconds, warm_up_s=0.2, clients=CLIENTS))
    rate = len(played.sample) / seconds
    return GeneratorCost(played.cpu_share / rate * 1e6, rate)
