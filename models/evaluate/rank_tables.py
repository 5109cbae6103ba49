"""Measurements of rankers as Markdown tables, for the terminal and the report card."""

from collections.abc import Sequence

from models.evaluate.metrics import Interval
from models.evaluate.ranking import MEASURES, RankQuality
from models.evaluate.tables import markdown, percent


def rankers_table(qualities: Sequence[RankQuality]) -> str:
    """One line a ranker; the last columns compare its order with the teacher's, where there is one."""
    alike = any(quality.agreement is not None for quality in qualities)
    head = ["ranker", *MEASURES, *(["same best as the teacher", "of the three best"] if alike else [])]
    return markdown(head, [_row(quality, alike=alike) for quality in qualities])


def _row(quality: RankQuality, *, alike: bool) -> list[str]:
    shared = ["–", "–"]
    if quality.agreement is not None:
        shared = [percent(quality.agreement.best, digits=1), percent(quality.agreement.best_3, digits=1)]
    return [quality.ranker, *(spanned(quality.measures[name]) for name in MEASURES), *(shared if alike else [])]


def spanned(interval: Interval) -> str:
    """A value with its interval."""
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"
