"""What a run of a stage costs, as a function of its shape. n items, T tokens of the longest."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from service.bundle.load import Bundle
from service.bundle.manifest import Manifest, Stage, Tensor
from service.bundle.sources import side_of
from service.runtime.joined import SHORT_TEXT
from service.runtime.session import input_tensors

Sample = tuple[int, int, float]
MEASURE_S: Final = 0.3
_ITEMS: Final = (1, 4, 16)
_TOKENS: Final = (8, 16, 32, 64, 128, 256)
# a shape's first run may plan it; of the others the fastest is taken, since a run is only ever disturbed upwards
_REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of one stage run: `base_s + token_s * n * T + square_s * n * T * T`."""

    base_s: float
    token_s: float
    square_s: float = 0.0

    def seconds(self, items: int, longest: int) -> float:
        """Predicted seconds of one run.

        Args:
            items: n, how many items are in the batch.
            longest: T, the tokens each is padded to.

        >>> StageCost(base_s=1.0, token_s=0.5).seconds(2, 3)
        4.0
        """
        return self.base_s + (self.token_s + self.square_s * longest) * items * longest


class Measurable(Protocol):
    """What is needed of a student to measure it; `runtime.student.Student` is one."""

    @property
    def bundle(self) -> Bundle:
        """Whose golden texts are run."""
        ...

    @property
    def manifest(self) -> Manifest:
        """Its stages and limits."""
        ...

    def run_stage(self, stage_index: int, feeds: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """Run one stage's graph. Raises: RunFailed."""
        ...


def fit(samples: Sequence[Sample]) -> StageCost:
    """The costs that explain measured runs best: non-negative least squares of the relative errors.

    Args:
        samples: (n, T, seconds) of at least one run, each of more than 0 seconds.

    >>> cost = fit([(1, 8, 3e-4), (4, 8, 6e-4), (4, 32, 1.8e-3)])
    >>> round(cost.base_s * 1e6), round(cost.token_s * 1e6, 1), round(cost.square_s * 1e6, 1)
    (200, 12.5, 0.0)
    """
    items, tokens, seconds = (np.array(column, dtype=np.float64) for column in zip(*samples, strict=True))
    # subtle: each row over its seconds, so that a run of 50 us counts as much as one of 50 ms
    terms = np.stack([np.ones_like(items), items * tokens, items * tokens**2], axis=1) / seconds[:, None]
    best, least = np.zeros(3), float(len(seconds))
    for count in (1, 2, 3):
        for used in itertools.combinations(range(3), count):
            weights = _least_squares(terms[:, used])
            error = float(((terms[:, used] @ weights - 1) ** 2).sum())
            # what fits as well with fewer terms is taken
            if (weights >= 0).all() and error < least * (1 - 1e-9) - 1e-15:
                best, least = np.zeros(3), error
                best[list(used)] = weights
    return StageCost(*(float(weight) for weight in best))


def _least_squares(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights of the terms that come nearest to 1 in every row."""
    # columns differ by orders of magnitude
    scale = np.abs(terms).max(axis=0)
    weights, *_ = np.linalg.lstsq(terms / scale, np.ones(len(terms)), rcond=None)
    return np.asarray(weights / scale)


def measure(
    student: Measurable, *, limit_s: float = MEASURE_S, clock: Callable[[], float] = time.perf_counter
) -> tuple[StageCost, ...]:
    """Measure every stage at a few shapes.

    Args:
        student: loaded; nothing else should run on its threads meanwhile, or the costs come out too high.
        limit_s: seconds for all stages together; shapes that would go beyond are left out, the smallest never is.
        clock: monotonic seconds.
    Returns: one cost for each stage, in order.
    Raises:
        RunFailed: a graph failed.
    """
    manifest = student.manifest
    shapes = _shapes(manifest.max_tokens)
    costs = []
    ends = clock()
    for index, stage in enumerate(manifest.stages):
        # what a stage left unused goes to those after it
        ends += limit_s / len(manifest.stages)
        feeds = _Feeds(student, input_tensors(manifest, stage), stage)
        costs.append(fit(_measured(partial(student.run_stage, index), feeds, shapes, ends, clock)))
    return tuple(costs)


def _shapes(max_tokens: int) -> list[tuple[int, int]]:
    lengths = sorted({min(length, max_tokens) for length in _TOKENS})
    return sorted(itertools.product(_ITEMS, lengths), key=lambda shape: (shape[0] * shape[1], shape))


def _measured(
    run: Callable[[Mapping[str, npt.NDArray[Any]]], object],
    feeds: "_Feeds",
    shapes: Sequence[tuple[int, int]],
    ends: float,
    clock: Callable[[], float],
) -> list[Sample]:
    """The fastest of a few runs of each shape, as many shapes by rising size as there is time for."""
    samples: list[Sample] = []
    runs = []
    for items, tokens in shapes:
        rounds_s = _REPEATS * sum(seconds for *_, seconds in samples)
        if samples and clock() + rounds_s + (2 + _REPEATS) * _expected(samples, items, tokens) > ends:
            break
        again = partial(run, feeds.of(items, tokens))
        again()
        samples.append((items, tokens, _timed(again, clock)))
        runs.append(again)
    # subtle: the shapes take turns, as they do in service: a backend that prepares anew for every other shape takes
    # several times as long for a small batch (OpenVINO: base 0.6 ms) as when one is run again and again (0.1 ms)
    rounds = [[_timed(again, clock) for again in runs] for _ in range(_REPEATS)]
    fastest = [min(times) for times in zip(*rounds, strict=True)]
    return [(items, tokens, seconds) for (items, tokens, _), seconds in zip(samples, fastest, strict=True)]


def _expected(samples: Sequence[Sample], items: int, tokens: int) -> float:
    """Seconds of the next shape, from the last one."""
    last_items, last_tokens, seconds = samples[-1]
    return seconds * items * tokens / (last_items * last_tokens)


def _timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return max(clock() - began, 1e-9)


class _Feeds:
    """Batches for one stage: ids of a golden text, all of them attended to, and states that look like states."""

    def __init__(self, student: Measurable, tensors: Mapping[str, Tensor], stage: Stage) -> None:
        self._ids = max((sample.input_ids for sample in student.bundle.golden.samples), key=len)
        self._tensors = tensors
        self._sources = stage.inputs
        self._random = np.random.default_rng(0)

    def of(self, items: int, tokens: int) -> dict[str, npt.NDArray[Any]]:
        """Every input of the stage for a full batch."""
        return {name: self._values(name, tensor, items, tokens) for name, tensor in self._tensors.items()}

    def _values(self, name: str, tensor: Tensor, items: int, tokens: int) -> npt.NDArray[Any]:
        source = side_of(self._sources[name])[1]
        named = {"B": items, "T": tokens, "Q": min(tokens, SHORT_TEXT)}
        sizes = [named[dim] if isinstance(dim, str) else dim for dim in tensor.dims]
        if source == "input_ids":
            return np.broadcast_to(np.resize(np.array(self._ids, dtype=np.int64), tokens), sizes).copy()
        if tensor.dtype == "int64":
            return np.full(sizes, int(source == "attention_mask"), dtype=np.int64)
        if tensor.dtype == "int8":
            return self._random.integers(-127, 128, size=sizes, dtype=np.int8)
        return self._random.standard_normal(sizes, dtype=np.float32)
