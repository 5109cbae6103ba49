"""When requests are meant to be sent: moments fixed before the run, whatever the server does. Pure.

N requests; moments are float64 [N], seconds from the start, in order.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import ScenarioInvalid

Moments = NDArray[np.float64]

MOST_REQUESTS = 50_000_000


def poisson(rate_per_s: float, duration_s: float, *, seed: int) -> Moments:
    """Arrivals of many independent clients: gaps are exponential, counts Poisson."""
    return _unit_poisson(rate_per_s * duration_s, seed=seed) / rate_per_s


def constant(rate_per_s: float, duration_s: float) -> Moments:
    """Arrivals at equal gaps.

    >>> constant(4.0, 1.0).tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    return np.arange(_counted(rate_per_s * duration_s), dtype=np.float64) / rate_per_s


def bursts(
    rate_per_s: float, duration_s: float, *, on_s: float, off_s: float, idle_rate_per_s: float = 0.0, seed: int
) -> Moments:
    """Poisson arrivals whose rate goes up and down: `on_s` seconds at one rate, `off_s` at another, and so on.

    Made by stretching a Poisson process of rate 1: its k-th arrival comes when the expected number of arrivals is its
    moment.
    """
    cycles = math.ceil(duration_s / (on_s + off_s))
    edges = np.cumsum(np.tile([on_s, off_s], cycles))
    edges = np.concatenate([[0.0], edges])
    expected = np.concatenate([[0.0], np.cumsum(np.tile([on_s * rate_per_s, off_s * idle_rate_per_s], cycles))])
    units = _unit_poisson(float(expected[-1]), seed=seed)
    moments: Moments = np.interp(units, expected, edges)
    return moments[moments < duration_s]


def recorded(moments: Sequence[float], duration_s: float, *, speed: float) -> Moments:
    """A recording played at a speed: 2.0 sends twice as fast. The first recorded moment is the start."""
    played = (np.asarray(moments, dtype=np.float64) - moments[0]) / speed
    return played[played < duration_s]


def _unit_poisson(expected: float, *, seed: int) -> Moments:
    """A Poisson process of rate 1 on [0, expected)."""
    rng = np.random.default_rng(seed)
    count = _counted(expected + 6 * math.sqrt(expected) + 10)
    moments = np.cumsum(rng.exponential(size=count))
    while moments[-1] < expected:
        moments = np.concatenate([moments, moments[-1] + np.cumsum(rng.exponential(size=count))])
    return moments[moments < expected]


def _counted(requests: float) -> int:
    if requests > MOST_REQUESTS:
        raise ScenarioInvalid(f"{requests:.3g} requests in one run, more than {MOST_REQUESTS:.3g}")
    return math.ceil(requests - 1e-9)
