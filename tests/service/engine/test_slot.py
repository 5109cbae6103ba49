"""What a slot's thread reports: every item of the job exactly once."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.slot import Job, run_job
from service.errors import DeadlineExceeded, RunFailed
from service.runtime.student import Outcome


@pytest.fixture
def run(early, encoded):
    """`run(runner, items, deadlines, now)`: the reports, and each item's result."""

    def run_it(runner, items, deadlines=None, now=0.0):
        reports = []
        moments = np.full(len(items), np.inf) if deadlines is None else np.array(deadlines)
        job = Job(runner, tuple(encoded(*items)), (early,) * len(items), moments)
        run_job(job, clock=lambda: now, report=reports.append)
        answers = [answer for report in reports for answer in report.answers]
        assert sorted(answer.row for answer in answers) == list(range(len(items)))
        return reports, {items[answer.row]: answer.result for answer in answers}

    return run_it


def test_one_report_a_stage(run, runner):
    reports, results = run(runner, [2, 3, 4])
    assert [report.stepped.stage for report in reports] == [0, 1]
    assert {item: result.exit_index for item, result in results.items()} == {2: 0, 3: 1, 4: 0}


def test_the_late_leave_before_the_next_stage(run, runner):
    _, results = run(runner, [2, 3, 5], deadlines=[1.0, 1.0, 9.0], now=1.0)
    assert isinstance(results[2], Outcome)
    assert isinstance(results[3], DeadlineExceeded)
    assert isinstance(results[5], Outcome)
    assert runner.runs == [(0, (2, 3, 5)), (1, (5,))]


def test_when_all_are_late_the_next_stage_does_not_run(run, runner):
    run(runner, [3, 5], deadlines=[1.0, 1.0], now=1.0)
    assert runner.runs == [(0, (3, 5))]


def test_bisection_runs_each_half_on_from_where_it_broke(run, runner):
    runner.poison = {5: RunFailed("broken")}
    run(runner, [3, 5, 7, 9])
    assert runner.runs[0] == (0, (3, 5, 7, 9))
    assert (1, (7, 9)) in runner.runs
    assert (0, (3,)) in runner.runs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.lists(st.integers(1, 30), unique=True, min_size=1, max_size=12),
    poison=st.sets(st.integers(1, 30)),
    not_a_number=st.sets(st.integers(1, 30)),
)
def test_whatever_breaks_breaks_alone(run, make_runner, items, poison, not_a_number):
    runner = make_runner()
    runner.poison = {item: ValueError("poison") for item in poison}
    runner.not_a_number = not_a_number
    _, results = run(runner, items)
    for item, result in results.items():
        assert isinstance(result, RunFailed) == (item in poison | not_a_number)
