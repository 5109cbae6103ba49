"""What the benchmarks share: pinned servers, sides measured in turn, bounds of ratios, tables and JSON.

The server has one core, the generator another; a side that is not being measured is stopped (SIGSTOP), so that it takes
nothing from the one that is. Each point of a report says what it wanted and what was found.
"""

import datetime
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loadtest.arrivals import Moments
from loadtest.errors import LoadtestError, TargetFailed
from loadtest.mixture import Load
from loadtest.play import Played, Stage, play
from loadtest.report import machine, write_json
from loadtest.shots import Assigned, Cycle, Judge, Shot
from loadtest.stats import RatioBound, ratio_bound
from loadtest.texts import read_texts
from loadtest.wire import Origin, origin_of, request_bytes

_PACKAGES = ("understudy", "onnxruntime", "openvino", "numpy", "tokenizers", "uvicorn", "uvloop")


# of an open loop; a burst of arrivals needs as many at once
LEAST_CONNECTIONS = 64

# Requests


def data_file(relative: str) -> Path:
    """A data set's file below UNDERSTUDY_DATA. Raises: TargetFailed: it is not set."""
    root = os.environ.get("UNDERSTUDY_DATA")
    if not root:
        raise TargetFailed("UNDERSTUDY_DATA must name the folder of the data sets")
    return Path(root) / relative


def shuffled(path: Path, *, seed: int = 0) -> list[str]:
    """A file's texts in random order."""
    texts = [text.text for text in read_texts(path)]
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]


def chunks(texts: Sequence[str], size: int) -> list[Any]:
    """Inputs of requests: single texts for size 1, else lists of so many; what is left over at the end is dropped."""
    if size == 1:
        return list(texts)
    return [list(texts[i : i + size]) for i in range(0, len(texts) - size + 1, size)]


@dataclass(frozen=True, slots=True)
class Bodies:
    """How requests are made of inputs: `{field: inputs, **extra}` posted to `path`."""

    path: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    field: str = "inputs"

    def shots(self, url: str, inputs: Sequence[Any], *, kind: int = 0, judge: Judge | None = None) -> list[Shot]:
        """A request for each of the inputs."""
        origin = origin_of(url)
        return [
            Shot(
                request_bytes(origin, self.path, orjson.dumps(dict(self.extra) | {self.field: each})),
                kind,
                len(each) if isinstance(each, list) else 1,
                judge,
            )
            for each in inputs
        ]


# Runs


def closed(
    url: str, shots: list[Shot], *, clients: int, seconds: float, warm_up_s: float = 1.0, check: bool = True
) -> Played:
    """A closed loop.

    Args:
        url: the server's.
        shots: sent in turn.
        clients: requests under way at any time.
        seconds, warm_up_s: measured, after what is not.
        check: whether a run of which the generator was the limit is refused.
    Raises: TargetFailed: an answer was no success, or the generator was the limit.
    """
    played = play(Load(None, Cycle(shots)), Stage(origin_of(url), seconds, warm_up_s=warm_up_s, clients=clients))
    bad = played.sample.status[~played.sample.ok]
    if len(bad):
        raise TargetFailed(f"{url}: {len(bad)} answers were no success, the first {bad[0]}")
    if check and played.invalid:
        raise TargetFailed(f"{url}: {played.invalid}")
    return played


def rate_of(played: Played) -> float:
    """Texts a second answered."""
    return float(played.sample.items[played.sample.ok].sum()) / played.seconds


def opened(
    load: Load,
    origin: Origin,
    *,
    seconds: float,
    warm_up_s: float,
    connections: tuple[int, ...],
    max_lag_ms: float = 5.0,
) -> Played:
    """An open loop over connections that are open before it begins, each kind of request its own so many.

    Whether it is valid stands in the result.
    """
    return play(load, Stage(origin, seconds, warm_up_s=warm_up_s, max_lag_ms=max_lag_ms, opened=connections))


def connections_for(rate: float, patience_s: float) -> int:
    """So many that none is waited for while every answer of an open loop comes within `patience_s`."""
    return max(LEAST_CONNECTIONS, math.ceil(rate * patience_s))


def merged(loads: Sequence[tuple[Moments, list[Shot]]]) -> Load:
    """Several open loops at once; give the shots different kinds to tell them apart."""
    moments = np.concatenate([each for each, _ in loads])
    source = np.concatenate([np.full(len(each), place) for place, (each, _) in enumerate(loads)])
    order = np.argsort(moments, kind="stable")
    return Load(moments[order], Assigned(source[order], [shots for _, shots in loads]))


def in_turn(sides: Mapping[str, Callable[[], float]], *, pairs: int, say: bool = True) -> dict[str, list[float]]:
    """Measure the sides A B A B …, so many rounds. Returns: by side, one figure a round."""
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(pairs):
        for name, measure in sides.items():
            figures[name].append(measure())
        if say:
            told = ", ".join(f"{name} {figures[name][-1]:.6g}" for name in sides)
            print(f"  pair {round_number + 1}/{pairs}: {told}", flush=True)
    return figures


# Reports


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the table: what it is, what it wants, what was found (in words), and whether that is enough."""

    name: str
    wanted: str
    found: str
    met: bool | None = None


@dataclass(slots=True)
class Report:
    """A benchmark's result while it is made."""

    name: str
    points: list[Point] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, wanted: str, found: str, met: bool | None = None) -> None:
        """Note a point and show it."""
        self.points.append(Point(name, wanted, found, met))
        print(f"{name}: {found}", flush=True)

    def ratio(
        self, name: str, figures: Mapping[str, Sequence[float]], sides: tuple[str, str], least: float | None
    ) -> RatioBound:
        """Note the ratio of two sides, of which the lower bound must be at least so much (None: whatever it is)."""
        bound = ratio_bound(figures[sides[0]], figures[sides[1]])
        self.figures[name] = {"bound": asdict(bound), "sides": {side: list(figures[side]) for side in sides}}
        middles = " against ".join(f"{float(np.median(figures[side])):.4g}" for side in sides)
        wanted, met = ("", None) if least is None else (f">= {least:g}", bound.low >= least)
        self.add(name, wanted, f"{bound.ratio:.3f}, at least {bound.low:.3f} ({middles})", met)
        return bound

    def finish(self, out: Path) -> int:
        """Print every point, write the JSON. Returns: the exit status, 1 where a point was missed."""
        words = {None: "", True: "met", False: "MISSED"}
        print(f"\n{machine()}; {versions_line()}")
        for point in self.points:
            wanted = f"  (wanted: {point.wanted})" if point.wanted else ""
            print(f"{words[point.met]:6}  {point.name}: {point.found}{wanted}")
        document = {
            "schema": 1,
            "benchmark": self.name,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "points": [asdict(point) for point in self.points],
            "figures": self.figures,
        }
        write_json(out / f"{self.name}.json", document)
        print(f"written: {out / self.name}.json")
        return int(any(point.met is False for point in self.points))


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, where installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def versions_line() -> str:
    """The same in a line."""
    return ", ".join(f"{name} {version}" for name, version in versions().items() if name != "understudy")


def has_amx() -> bool:
    """Whether the processor has AMX tiles for int8."""
    listing = Path("/proc/cpuinfo")
    return listing.exists() and " amx_int8" in listing.read_text(encoding="utf-8")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user can mend ends as one line and exit status 2. Raises: SystemExit."""
    try:
        yield
    except LoadtestError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from error
