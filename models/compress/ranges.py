"""Which values an activation takes: measured by running the graph on real rows, clipped at a percentile.

B items, T tokens, K channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

SAMPLE_VALUES = 2_000_000
"""Values kept for each tensor to take percentiles of; the extremes are exact."""

LEVELS = 255
"""Steps of an unsigned 8-bit scale."""

Floats = npt.NDArray[np.float32]
Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Range:
    """The real values that the 256 levels of one activation span; always holds 0, which padding needs exactly.

    >>> Range(low=-1.0, high=2.984375).scale, Range(low=-1.0, high=2.984375).zero_point
    (0.015625, 64)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low <= 0.0 <= self.high):
            raise ValueError(f"a range must be finite and hold 0, not [{self.low}, {self.high}]")

    @property
    def scale(self) -> float:
        """Real value of one step, a float32."""
        return float(np.float32(max(self.high - self.low, 1e-8) / LEVELS))

    @property
    def zero_point(self) -> int:
        """The level that stands for 0.0."""
        return int(np.clip(np.rint(-self.low / self.scale), 0, LEVELS))


@dataclass(frozen=True, slots=True)
class Observed:
    """What one activation was seen to hold.

    Attributes:
        sample: float32 [n, K], rows drawn evenly from all that were seen (padding left out).
        low, high: the extremes of all of them.
        channels: float32 [K], the largest absolute value of each channel.
        per_item: the tensor has one row an item, not one a token (a head behind the pooling).
    """

    sample: Floats
    low: float
    high: float
    channels: Floats
    per_item: bool

    def scaled(self, divisors: Floats | None) -> "Observed":
        """What would have been seen with every channel divided by its own number; None changes nothing.

        Args:
            divisors: float32 [K], > 0.
        """
        if divisors is None:
            return self
        sample = self.sample / divisors
        return Observed(sample, float(sample.min()), float(sample.max()), self.channels / divisors, self.per_item)

    def clipped(self, percentile: float) -> Range:
        """The range that cuts off (100 - `percentile`)% of the values at either end.

        Args:
            percentile: of the values, 50 < percentile <= 100; 100 keeps the extremes.
        """
        if percentile >= 100:
            return Range(low=min(self.low, 0.0), high=max(self.high, 0.0))
        low, high = np.percentile(self.sample, (100 - percentile, percentile))
        return Range(low=min(float(low), 0.0), high=max(float(high), 0.0))


class Recorder:
    """Collects one tensor's values over many batches."""

    def __init__(self, *, share: float) -> None:
        """Begin. Args: share: of the rows to keep, evenly; the extremes are taken over all."""
        self.stride = max(1, round(1 / share))
        self.parts: list[Floats] = []
        self.low, self.high = 0.0, 0.0
        self.channels: Floats | None = None
        self.per_item = False

    @property
    def used(self) -> bool:
        """Whether anything was added."""
        return bool(self.parts)

    def add(self, values: Floats, mask: npt.NDArray[Any] | None) -> None:
        """Take one batch's values.

        Args:
            values: float32 [..., K].
            mask: [B, T], 1 on tokens; rows of padding are left out where `values` has one row a token.
        """
        rows = values.reshape(-1, values.shape[-1])
        if mask is not None and mask.size != mask.shape[0]:
            self.per_item = self.per_item or rows.shape[0] == mask.shape[0]
            if rows.shape[0] == mask.size:
                rows = rows[mask.reshape(-1) > 0]
        peaks = np.abs(rows).max(axis=0)
        self.channels = peaks if self.channels is None else np.maximum(self.channels, peaks)
        self.low, self.high = min(self.low, float(rows.min())), max(self.high, float(rows.max()))
        self.parts.append(rows[:: self.stride].copy())

    def finish(self) -> Observed:
        """Everything seen so far."""
        assert self.channels is not None
        return Observed(np.concatenate(self.parts), self.low, self.high, self.channels, self.per_item)


def observe(
    model: onnx.ModelProto, *, tensors: Sequence[str], feeds: Iterable[Feeds], sample_values: int = SAMPLE_VALUES
) -> dict[str, Observed]:
    """Run a graph on real rows and record the values of some of its inner float tensors.

    Args:
        model: a float32 graph.
        tensors: names of inputs or inner tensors to watch, [..., K].
        feeds: batches for the graph; `attention_mask` [B, T], where among them, says which tokens are padding.
        sample_values: at most so many are kept of the widest tensor.
    Returns: what was seen, by tensor.
    Raises: ValueError: there are no batches.
    """
    batches = list(feeds)
    if not batches:
        raise ValueError("calibration needs at least one batch of rows")
    inner = [name for name in dict.fromkeys(tensors) if name not in batches[0]]
    session = _session_with_outputs(model, inner)
    recorders = {name: Recorder(share=_share(model, batches, sample_values)) for name in dict.fromkeys(tensors)}
    wanted = {entry.name for entry in session.get_inputs()}
    for batch in batches:
        mask = batch.get("attention_mask")
        values = session.run(inner, {name: batch[name] for name in wanted}) if inner else []
        seen = dict(zip(inner, values, strict=True))
        for name, recorder in recorders.items():
            recorder.add(np.asarray(seen.get(name, batch.get(name)), np.float32), mask)
    return {name: recorder.finish() for name, recorder in recorders.items()}


def _share(model: onnx.ModelProto, batches: Sequence[Feeds], sample_values: int) -> float:
    """The share of values to keep, so that the widest tensor stays within `sample_values`."""
    tokens = sum(next(iter(batch.values())).shape[0] * next(iter(batch.values())).shape[1] for batch in batches)
    widest = max((max(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) == 2), default=1)
    return float(min(1.0, sample_values / (tokens * min(widest, 4096))))


def _session_with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnxruntime.InferenceSession:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {output.name for output in watched.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in present
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
