"""What a job reports: every item exactly once; and what the threads do with a job that breaks."""

import queue

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.bundle.load import load_bundle
from service.engine.slot import Job, Report, ThreadSlots, run_job, run_to_end
from service.errors import DeadlineExceeded, RunFailed
from service.runtime.heads import ExitPolicy
from service.runtime.student import Outcome, Student

PATIENCE_S = 20.0


@pytest.fixture
def run(early, encoded):
    """`run(runner, items, deadlines, now)`: the reports, and each item's result."""

    def run_it(runner, items, deadlines=None, now=0.0):
        moments = None if deadlines is None else np.array(deadlines)
        job = Job(runner, encoded(*items), early, deadlines=moments, onward=(1, 1))
        reports = list(run_job(job, clock=lambda: now))
        rows = [row for report in reports for row in report.rows]
        results = [result for report in reports for result in report.results]
        assert sorted(rows) == list(range(len(items)))
        assert [report.going == 0 for report in reports] == [False] * (len(reports) - 1) + [True]
        return reports, {items[row]: result for row, result in zip(rows, results, strict=True)}

    return run_it


def test_one_report_a_stage(run, runner):
    reports, results = run(runner, [2, 3, 4])
    assert [report.stepped.stage for report in reports] == [0, 1]
    assert {item: result.exit_index for item, result in results.items()} == {2: 0, 3: 1, 4: 0}


def test_too_few_survivors_are_handed_back(early, encoded, runner):
    job = Job(runner, encoded(2, 3, 5), early, onward=(1, 3))
    (report,) = run_job(job, clock=lambda: 0.0)
    assert (report.rows, report.going, report.back.rows.tolist(), report.back.stage) == ([0], 0, [1, 2], 1)
    assert runner.runs == [(0, (2, 3, 5))]


def test_survivors_of_two_batches_go_on_together(early, encoded, runner):
    backs = []
    for items in ((2, 3), (5, 7)):
        (report,) = run_job(Job(runner, encoded(*items), early, onward=(1, 9)), clock=lambda: 0.0)
        backs.append(report.back)
    (report,) = run_job(Job(runner, passes=backs, onward=(1, 1)), clock=lambda: 0.0)
    assert runner.runs[-1] == (1, (3, 5, 7))
    assert (report.rows, [result.raw[0] for result in report.results]) == ([0, 1, 2], [3, 5, 7])


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
    reports, _ = run(runner, [3, 5, 7, 9])
    assert runner.runs[0] == (0, (3, 5, 7, 9))
    assert (1, (7, 9)) in runner.runs
    assert (0, (3,)) in runner.runs
    assert [report.failed_at for report in reports if report.failed_at is not None] == [0]


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


def test_what_stops_a_job_is_posted():
    posted = []

    def reports():
        yield Report(going=1)
        raise SystemExit(3)

    run_to_end(reports(), lambda *post: posted.append(post))
    assert [type(error) for _, error in posted] == [type(None), SystemExit]


def test_a_thread_outlives_a_job_that_kills_it():
    slots, posted = ThreadSlots(1), queue.SimpleQueue()

    def killing():
        raise SystemExit
        yield Report()

    def harmless():
        yield Report(going=0)

    for job in (killing(), harmless()):
        slots.start(job, lambda *post: posted.put(post))
    assert isinstance(posted.get(timeout=PATIENCE_S)[1], SystemExit)
    assert posted.get(timeout=PATIENCE_S)[0].going == 0
    slots.close()


def test_a_text_that_was_read_keeps_nothing_of_its_batch(joined_bundle):
    student = Student(load_bundle(joined_bundle), precision="fp32")
    texts = student.encoder.encode(["good", "this film is great and not very slow", ""])
    (report,) = run_job(Job(student.apart, texts, ExitPolicy(())), clock=lambda: 0.0)
    states = [result.raw for result in report.results]
    assert [len(state) for state in states] == [text.kept for text in texts]
    assert [state.base for state in states] == [None] * 3
    for text, state in zip(texts, states, strict=True):
        np.testing.assert_array_equal(state, student.apart.read([text])[0])


@pytest.fixture
def joined_bundle(tmp_path, build_bundle):
    return build_bundle(tmp_path / "split" / "1", task="rank", pairs="separate", joined=True, name="split")


def test_slots_that_were_never_needed_close():
    ThreadSlots(2).close()
