"""Is the promise kept? The calibration procedure on simulated scores of known true risk.

`python -m models.evaluate.simulation` prints the table that stands in `docs/guarantee.md`. In every run rows are
drawn, the exits are certified by the code that certifies real students, and the run counts as broken when any
offered point's true risk is above its promise. At most a share delta of the runs may be broken.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import binom

from models.evaluate.exits import (
    Counts,
    Path,
    StoppingRule,
    certified_steps,
    certify,
    choose_path,
    exit_taken,
    fixed_sequence,
    tally,
)
from models.evaluate.populations import Scenario, scenarios

RUNS = 10_000
SAMPLING_LEVEL = 0.01
"""A scenario fails when so many broken runs had at most this chance if the true share were delta."""

_CHUNK = 250
_STEPS_IN_WHOLE = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one scenario gave: of `runs` runs, `broken` had an offered point whose true risk is above its promise.

    offered: mean number of points offered in a run, of `promised`.
    p_value: P(so many broken runs or more) if promises were broken in exactly a share `delta` of the runs.
    """

    scenario: str
    rows: int
    delta: float
    runs: int
    broken: int
    offered: float
    promised: int
    p_value: float

    @property
    def kept(self) -> bool:
        """Broken in at most a share delta of the runs, up to sampling error."""
        return self.p_value > SAMPLING_LEVEL


def simulate(scenario: Scenario, *, runs: int = RUNS, seed: int = 0, rule: StoppingRule = fixed_sequence) -> Outcome:
    """Run the procedure `runs` times on fresh draws.

    Args:
        rule: the stopping rule under test; only where the scenario's path is fixed. Tests pass wrong ones.
    """
    rng = np.random.default_rng(seed)
    if scenario.path is None:
        results = [_one_whole(scenario, rng) for _ in range(runs)]
        broken, offered = np.array([r[0] for r in results]), np.array([r[1] for r in results])
    else:
        chunks = list(_chunks(scenario, scenario.path, runs=runs, rng=rng, rule=rule))
        broken, offered = (np.concatenate(part) for part in zip(*chunks, strict=True))
    count = int(broken.sum())
    return Outcome(
        scenario=scenario.name,
        rows=scenario.rows,
        delta=scenario.risks.delta,
        runs=runs,
        broken=count,
        offered=float(offered.mean()),
        promised=len(scenario.risks.values),
        p_value=float(binom.sf(count - 1, runs, scenario.risks.delta)),
    )


def _chunks(
    scenario: Scenario, path: Path, *, runs: int, rng: np.random.Generator, rule: StoppingRule
) -> Iterator[tuple[NDArray[np.bool_], Counts]]:
    """Per chunk of runs: which are broken, and how many points each offers."""
    population = scenario.population
    true_risk = tally(path, population).errors / population.rows
    for begin in range(0, runs, _CHUNK):
        draws = rng.integers(population.rows, size=(min(_CHUNK, runs - begin), scenario.rows))
        errors = tally(path, population.take(draws)).errors
        steps = certified_steps(errors, scenario.rows, scenario.risks, rule=rule)
        promised = np.array([risk for risk, _ in scenario.risks.levels()])
        above = (steps >= 0) & (true_risk[steps] > promised)
        yield np.asarray(above.any(axis=-1)), np.asarray((steps >= 0).sum(axis=-1))


def _one_whole(scenario: Scenario, rng: np.random.Generator) -> tuple[bool, int]:
    population, depths = scenario.population, scenario.depths
    split_a = population.take(rng.integers(population.rows, size=scenario.rows_a))
    path = choose_path(split_a, depths=depths, risks=scenario.risks.values, max_steps=_STEPS_IN_WHOLE)
    split_b = population.take(rng.integers(population.rows, size=scenario.rows))
    points = certify(path, split_b, depths=depths, risks=scenario.risks)
    broken = any(_true_risk(scenario, point.thresholds) > point.risk for point in points)
    return broken, len(points)


def _true_risk(scenario: Scenario, thresholds: tuple[float | None, ...]) -> float:
    """Share of the population whose answer differs; counted apart from `tally`, exit by exit."""
    population = scenario.population
    taken = exit_taken(population, thresholds)
    answered = population.labels[np.arange(population.rows), taken]
    return float((answered != population.labels[:, -1]).mean())


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    head = "| scenario | rows | δ | runs | broken | share | points offered | P(≥ broken) at δ | kept |\n"
    lines = [
        f"| {o.scenario} | {o.rows:,} | {o.delta:g} | {o.runs:,} | {o.broken:,} | {o.broken / o.runs:.4f} "
        f"| {o.offered:.2f} of {o.promised} | {o.p_value:.3f} | {'yes' if o.kept else 'NO'} |\n"
        for o in outcomes
    ]
    return head + "|---|---:|---:|---:|---:|---:|---:|---:|---|\n" + "".join(lines)


def command(
    runs: Annotated[int, typer.Option(min=1, help="Runs of each scenario.")] = RUNS,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
) -> None:
    """Simulate the calibration of the exits; exit status 3 when a promise is broken too often."""
    outcomes = [simulate(scenario, runs=runs, seed=seed) for scenario in scenarios()]
    typer.echo(table(outcomes), nl=False)
    if not all(outcome.kept for outcome in outcomes):
        raise typer.Exit(3)


if __name__ == "__main__":
    typer.run(command)
