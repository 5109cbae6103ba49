"""Which differences between an activation's channels move into the weights before both are rounded, by measured error.

The product stays the same: each input channel is divided by a number that its row of the weights is multiplied with.
Too little, and one large channel takes the levels of all others; too much, and one large row takes those of a weight.

K channels, N outputs, n sampled rows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from models.compress.ranges import LEVELS, Observed, Range

Floats = npt.NDArray[np.float32]

Smoothing = Callable[[Floats, Floats], Floats]
"""From the peaks of the channels and of their weights, both float32 [K] and > 0, to the divisors, float32 [K]."""

Rounding = Callable[[Floats], Floats]
"""A weight, float32 [K, N], as its levels give it back."""


def evened(alpha: float) -> Smoothing:
    """SmoothQuant: peaks of channels against peaks of weights, evened out by `alpha`, 0 to 1."""

    def divisors(channels: Floats, weights: Floats) -> Floats:
        factors = channels**alpha / weights ** (1 - alpha)
        return np.asarray(factors / np.exp(np.log(factors).mean()), np.float32)

    return divisors


def capped(times: float) -> Smoothing:
    """Only channels with a peak of more than `times` the median peak are divided, down to that."""

    def divisors(channels: Floats, weights: Floats) -> Floats:
        most = max(float(np.median(channels)), 1e-5) * times
        return np.asarray(np.maximum(1, channels / most), np.float32)

    return divisors


def least_error(
    smoothings: Sequence[Smoothing],
    seen: Observed,
    weights: Sequence[Floats],
    *,
    percentile: float,
    rounding: Rounding,
) -> Floats | None:
    """The divisors with the least squared error of the rounded products on the sample; None: nothing to choose from.

    Args:
        smoothings: the candidates.
        seen: the input.
        weights: what multiplies it, each float32 [K, N]; the errors of all, relative to their outputs, count alike.
        percentile: of the range that the input will get.
        rounding: of weights.
    """
    if len(smoothings) == 0:
        return None
    peaks = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), 1e-5)
    channels = np.maximum(seen.channels, 1e-5)
    candidates = [smoothing(channels, peaks) for smoothing in smoothings]
    exact = [seen.sample @ weight for weight in weights]

    def error(divisors: Floats) -> float:
        scaled = seen.scaled(divisors)
        rows = _rounded(scaled.sample, scaled.clipped(percentile))
        made = (rows @ rounding(weight * divisors[:, None]) for weight in weights)
        return sum(
            float(((a - b) ** 2).sum() / max(b.var(axis=0).sum(), 1e-30)) for a, b in zip(made, exact, strict=True)
        )

    return candidates[0] if len(candidates) == 1 else min(candidates, key=error)


def _rounded(values: Floats, span: Range) -> Floats:
    """The values as their levels give them back."""
    levels = np.clip(np.rint(values / np.float32(span.scale)) + span.zero_point, 0, LEVELS)
    return np.asarray((levels - span.zero_point) * np.float32(span.scale), np.float32)
