"""One run of a load against a target, on an event loop of its own, and what the generator itself took."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop

from loadtest.client import Pool, Pools
from loadtest.generator import ClosedLoop, OpenLoop, cpu_seconds, undisturbed
from loadtest.mixture import Load
from loadtest.record import Sample
from loadtest.stats import percentile
from loadtest.wire import Origin

BUSY_SHARE = 0.95
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stage:
    """Where and how a load is played.

    Attributes:
        origin: the target.
        seconds: measured; warm_up_s: before that, thrown away.
        clients: of a closed loop.
        most_connections, timeout_s: the client's bounds.
        opened: of an open loop, by kind of request: so many connections of its own, opened before the first request,
            and never more. Empty: all kinds share connections that are opened as they are needed.
        max_lag_ms: the 99th percentile of the generator's lateness beyond which a run says nothing.
    """

    origin: Origin
    seconds: float
    warm_up_s: float = 2.0
    clients: int = 32
    most_connections: int = 1024
    timeout_s: float = 10.0
    max_lag_ms: float = 5.0
    opened: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Played:
    """A run.

    Attributes:
        sample: without the warm-up. seconds: measured.
        cpu_share: of one core, that the generator used (waiting for the next moment of an open loop counts).
        opened, limited, retried: connections opened; requests that waited at the bound; requests sent twice.
        invalid: why the run says nothing; empty where it does.
    """

    sample: Sample
    seconds: float
    cpu_share: float
    opened: int
    limited: int
    retried: int
    invalid: str


def on_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on a fresh, fast event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def play(load: Load, stage: Stage) -> Played:
    """Run a load once. Raises: TargetFailed: the target cannot be connected to."""
    return on_loop(_play(load, stage))


async def _play(load: Load, stage: Stage) -> Played:
    bounds = stage.opened or (stage.most_connections,)
    pools = [Pool(stage.origin, most=most, timeout_s=stage.timeout_s) for most in bounds]
    sender = Pools(pools) if stage.opened else pools[0]
    try:
        for pool, first in zip(pools, stage.opened or (stage.clients if load.moments is None else 1,), strict=True):
            await pool.open(first)
        with undisturbed():
            cpu, wall = cpu_seconds(), time.perf_counter()
            if load.moments is None:
                closed = ClosedLoop(stage.clients, load.shots, sender, clock=time.perf_counter)
                recorder = await closed.run(stage.warm_up_s + stage.seconds)
            else:
                recorder = await OpenLoop(load.moments, load.shots, sender, clock=time.perf_counter).run()
            share = (cpu_seconds() - cpu) / (time.perf_counter() - wall)
    finally:
        for pool in pools:
            await pool.close()
    sample = measured(recorder.sample(), stage, closed=load.moments is None)
    why = invalid(sample, share, stage, closed=load.moments is None)
    opened, limited, retried = (sum(getattr(pool, name) for pool in pools) for name in ("opened", "limited", "retried"))
    return Played(sample, stage.seconds, share, opened, limited, retried, why)


def measured(sample: Sample, stage: Stage, *, closed: bool) -> Sample:
    """Without the warm-up: of an open loop what was meant to be sent after it, of a closed one what ended in time."""
    if not closed:
        return sample.where(sample.intended >= stage.warm_up_s)
    return sample.where((sample.done >= stage.warm_up_s) & (sample.done < stage.warm_up_s + stage.seconds))


def invalid(sample: Sample, cpu_share: float, stage: Stage, *, closed: bool) -> str:
    """Why the generator, not the server, made the figures; empty where it did not."""
    if not len(sample):
        return "nothing was sent in the measured time"
    if closed:
        return f"the generator was busy {cpu_share:.0%} of the time" if cpu_share > BUSY_SHARE else ""
    lag_ms = percentile(sample.lag * 1e3, 0.99)
    if lag_ms > stage.max_lag_ms:
        return f"the generator could not keep up: 1% of the requests left {lag_ms:.1f} ms late or more"
    return ""
