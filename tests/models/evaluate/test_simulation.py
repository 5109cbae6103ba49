"""The promise holds in simulation, and the simulation catches stopping rules that break it."""

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from models.evaluate.exits import Counts, certified_steps, certify, fixed_sequence, p_values, tally
from models.evaluate.populations import Scenario, few_rows, jump, jumps, scenarios, smooth, wave, whole
from models.evaluate.simulation import Outcome, command, simulate, table

RUNS = 1_000


def one_step_too_far(errors: Counts, rows: int, risk: float, level: float) -> Counts:
    """The off-by-one: takes the first step that failed."""
    return np.minimum(fixed_sequence(errors, rows, risk, level) + 1, errors.shape[-1] - 1)


def last_that_passes(errors: Counts, rows: int, risk: float, level: float) -> Counts:
    """Goes on after a failure and takes the boldest step that passes on its own."""
    passed = p_values(errors, rows, risk) <= level
    return np.where(passed.any(axis=-1), errors.shape[-1] - 1 - passed[..., ::-1].argmax(axis=-1), -1)


def empirical(errors: Counts, rows: int, risk: float, level: float) -> Counts:
    """No test at all: follows the path while the share of errors is within the risk."""
    return np.logical_and.accumulate(errors <= risk * rows, axis=-1).sum(axis=-1) - 1


def undivided(errors: Counts, rows: int, risk: float, level: float) -> Counts:
    """Forgets that delta is shared by four promises."""
    return fixed_sequence(errors, rows, risk, 0.05)


@pytest.mark.parametrize("scenario", [jump(), jumps(), wave(), smooth(), few_rows()], ids=lambda s: s.name)
def test_the_promise_is_kept(scenario: Scenario) -> None:
    outcome = simulate(scenario, runs=RUNS)
    assert outcome.runs == RUNS
    assert outcome.kept
    assert outcome.broken / RUNS <= 0.05 + 3 * (0.05 * 0.95 / RUNS) ** 0.5


def test_the_promise_is_kept_by_the_whole_procedure() -> None:
    assert simulate(whole(), runs=100).kept


def test_the_hard_scenario_leaves_nothing_over() -> None:
    """Promises are broken in nearly delta of the runs: a rule that is a little too bold has no room to hide."""
    assert simulate(jump(), runs=4 * RUNS).broken / (4 * RUNS) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("rule", "scenario"),
    [
        (one_step_too_far, jump()),
        (one_step_too_far, jumps()),
        (last_that_passes, wave()),
        (empirical, jump()),
        (undivided, jumps()),
    ],
    ids=["one step too far", "one step too far, four promises", "on after a failure", "no test", "delta not divided"],
)
def test_a_wrong_rule_is_caught(rule: object, scenario: Scenario) -> None:
    assert not simulate(scenario, runs=RUNS, rule=rule).kept  # type: ignore[arg-type]


def test_one_step_too_far_fails_nearly_every_time_at_the_jump() -> None:
    assert simulate(jump(), runs=RUNS, rule=one_step_too_far).broken >= 0.94 * RUNS


@pytest.mark.parametrize(("scenario", "risks"), [(jump(), (0.01,)), (jumps(), (0.005, 0.01, 0.02, 0.05))])
def test_the_true_risk_jumps_to_just_above_each_promise(scenario: Scenario, risks: tuple[float, ...]) -> None:
    assert scenario.path is not None
    levels = sorted(set((tally(scenario.path, scenario.population).errors / scenario.population.rows).tolist()))
    assert levels == pytest.approx([0.0, *(risk + 1e-5 for risk in risks)])
    assert all(level > risk for level, risk in zip(levels[1:], risks, strict=True))


def test_runs_are_certified_as_students_are() -> None:
    """The vectorised runs and `certify` offer the same points on the same rows."""
    scenario = smooth()
    assert scenario.path is not None
    draws = np.random.default_rng(0).integers(scenario.population.rows, size=(5, scenario.rows))
    errors = tally(scenario.path, scenario.population.take(draws)).errors
    for run, drawn in enumerate(draws):
        rows = scenario.population.take(drawn)
        points = certify(scenario.path, rows, depths=scenario.depths, risks=scenario.risks)
        for point in points:
            place = [risk for risk, _ in scenario.risks.levels()].index(point.risk)
            thresholds = scenario.path.thresholds[certified_steps(errors, scenario.rows, scenario.risks)[run, place]]
            assert point.thresholds == tuple(None if t > 1 else t for t in thresholds)


def test_tight_promises_are_not_offered_without_rows() -> None:
    assert simulate(few_rows(), runs=50).offered == 1.0


def test_the_same_seed_gives_the_same_runs() -> None:
    assert simulate(wave(), runs=300, seed=5) == simulate(wave(), runs=300, seed=5)


def test_there_is_a_scenario_of_every_kind() -> None:
    assert len({scenario.name for scenario in scenarios()}) == 6


def test_the_table_says_when_a_promise_was_broken() -> None:
    fine = Outcome("a", 100, 0.05, 1000, 40, 1.0, 1, 0.9)
    broken = Outcome("b", 100, 0.05, 1000, 90, 1.0, 1, 1e-6)
    lines = table([fine, broken]).splitlines()
    assert lines[2].endswith("| yes |")
    assert lines[3].endswith("| NO |")


def test_the_command_prints_a_line_for_each_scenario() -> None:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--runs", "20"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2 + len(scenarios())
