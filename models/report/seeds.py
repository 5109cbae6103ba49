"""The same recipe with other seeds: mean and spread, so that one lucky run is not mistaken for the recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from models.evaluate.quality import StudentQuality


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One seed's student on the test split, default precision.

    retention: full depth's accuracy ÷ the teacher's, with its 95% paired bootstrap interval. risk: the default
    operating point, with its share of disagreeing rows, of rows that leave at the first exit, and layers run; None
    where nothing is certified.
    """

    seed: int
    rows: int
    teacher_accuracy: float
    accuracy: float
    retention: tuple[float, float, float]
    risk: float | None
    disagreement: float | None
    first_exit: float | None
    mean_layers: float | None


def seed_result(seed: int, quality: StudentQuality, *, risk: float | None) -> SeedResult:
    """The result of one seed. Raises: ValueError: the rows have no labels, or the teacher's answers are missing."""
    full = quality.full_depth
    if full.retention is None or full.accuracy is None or quality.teacher_accuracy is None:
        raise ValueError("a seed is judged on labelled rows with the teacher's answers")
    served = None if risk is None else quality.at(risk)
    return SeedResult(
        seed=seed,
        rows=quality.rows,
        teacher_accuracy=quality.teacher_accuracy,
        accuracy=full.accuracy,
        retention=(full.retention.value, full.retention.low, full.retention.high),
        risk=None if served is None else served.risk,
        disagreement=None if served is None else 1 - served.agreement,
        first_exit=None if served is None else served.exit_shares[0],
        mean_layers=None if served is None else served.mean_layers,
    )


def seeds_table(results: Sequence[SeedResult]) -> str:
    """A markdown table, one row a seed, and the mean and standard deviation over them."""
    lines = [
        "| seed | accuracy | retention (95% interval) | differs from full depth | leave at exit 1 | layers run |",
        "|---|---|---|---|---|---|",
        *(_row(result) for result in results),
    ]
    kept = [result.retention[0] for result in results]
    spread = f"{stdev(kept):.4f}" if len(kept) > 1 else "not known from one seed"
    lines += ["", f"Retention over {len(kept)} seeds: mean {fmean(kept):.4f}, standard deviation {spread}."]
    return "\n".join(lines)


def _row(result: SeedResult) -> str:
    value, low, high = result.retention
    served = ["-", "-", "-"]
    if result.disagreement is not None and result.first_exit is not None:
        layers = "-" if result.mean_layers is None else f"{result.mean_layers:.2f}"
        served = [f"{result.disagreement:.2%}", f"{result.first_exit:.1%}", layers]
    cells = [str(result.seed), f"{result.accuracy:.2%}", f"{value:.4f} ({low:.4f} to {high:.4f})", *served]
    return f"| {' | '.join(cells)} |"
