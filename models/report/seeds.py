"""The same recipe with other seeds: mean and spread, so that one lucky run is not mistaken for the recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

from models.evaluate.quality import StudentQuality

_COMMAND: Final = "understudy refresh models/recipes/{name}.yaml --seeds {seeds} --store STORE"


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


def refresh_command(name: str, *, seeds: int) -> str:
    """What makes a version with so many seeds: a line of its own on the card of every task, read by `seeds_told`.

    Args:
        name: of the recipe, which is that of the student.
        seeds: how many, the published one among them.
    """
    return _COMMAND.format(name=name, seeds=seeds)


def seeds_told(card: str, name: str) -> int:
    """How many seeds a card of the student `name` tells of; 1, its own, where the card does not say.

    >>> seeds_told("## How it was made\\n\\n" + refresh_command("intent", seeds=3), "intent")
    3
    >>> seeds_told("# intent\\n", "intent")
    1
    """
    before, after = _COMMAND.format(name=name, seeds="\n").split("\n")
    lines = [line for line in card.splitlines() if line.startswith(before) and line.endswith(after)]
    numbers = [line.removeprefix(before).removesuffix(after) for line in lines]
    return max([1, *(int(number) for number in numbers if number.isdecimal())])


def counted(seeds: int) -> str:
    """In words.

    >>> counted(1), counted(3)
    ('1 seed', '3 seeds')
    """
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


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
