"""The highest rate that keeps the service level, by bisection. Pure: the runs are a function's."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Where to look. precision: relative width at which it ends. repeats: runs of a rate, of which most must hold."""

    low: float
    high: float
    precision: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the search found.

    Attributes:
        highest: the highest rate that held; 0.0 where not even the lowest did.
        fails_at: the lowest rate that did not; infinity where all held.
        tried: every rate tried, in order, and whether it held.
    """

    highest: float
    fails_at: float
    tried: tuple[tuple[float, bool], ...]


def highest_rate(holds: Callable[[float], bool], wanted: Range) -> Found:
    """Try both ends, then halve the range between a rate that holds and one that does not (in proportion).

    Args:
        holds: one run at a rate: whether the service level was kept.
        wanted: where to look.

    >>> round(highest_rate(lambda rate: rate < 700, Range(100, 1600, 0.5, 1)).highest)
    566
    """
    tried: list[tuple[float, bool]] = []

    def most(rate: float) -> bool:
        held = _most(holds, rate, wanted.repeats)
        tried.append((rate, held))
        return held

    if not most(wanted.low):
        return Found(0.0, wanted.low, tuple(tried))
    if most(wanted.high):
        return Found(wanted.high, math.inf, tuple(tried))
    low, high = wanted.low, wanted.high
    while high / low > 1 + wanted.precision:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if most(middle) else (low, middle)
    return Found(low, high, tuple(tried))


def _most(holds: Callable[[float], bool], rate: float, repeats: int) -> bool:
    """Whether more than half of the runs hold; stops as soon as that is known."""
    needed, held, failed = repeats // 2 + 1, 0, 0
    while held < needed and failed <= repeats - needed:
        if holds(rate):
            held += 1
        else:
            failed += 1
    return held >= needed
