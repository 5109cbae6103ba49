"""Batches of which nobody may leave early are run through all stages at once, where the student can."""

import asyncio
from dataclasses import replace

import pytest

from service.engine.engine import TURN_S
from service.engine.forecast import RUN_S, Forecast
from service.errors import RunFailed
from service.runtime.cost import StageCost
from service.runtime.plan import ALL_STAGES

COSTS = (StageCost(1e-4, 1e-6), StageCost(2e-4, 3e-6))


@pytest.fixture
def both(served, whole):
    """A student that can."""
    return replace(served, full_depth=whole)


def exits(results) -> list[int]:
    return [result.outcome.exit_index for result in results]


async def test_one_run_answers_all(make_engine, runner, whole, both, encoded, full_depth, observer):
    engine = make_engine()
    results = await engine.submit(both, encoded(2, 3, 4), policy=full_depth)
    assert exits(results) == [1, 1, 1]
    assert [result.outcome.raw.tolist() for result in results] == [[100, 0], [0, 0], [100, 0]]
    assert (whole.runs, runner.runs) == ([(0, (2, 3, 4))], [])
    assert [event[2] for event in observer.events if event[0] == "batch"] == [ALL_STAGES]
    assert await engine.drain(20)
    assert "requests=0 queued=0 in_flight=0 busy_slots=0" in repr(engine)


async def test_who_may_leave_goes_stage_by_stage(make_engine, runner, whole, both, encoded, early):
    assert exits(await make_engine().submit(both, encoded(2, 3), policy=early)) == [0, 1]
    assert (whole.runs, runner.runs) == ([], [(0, (2, 3)), (1, (3,))])


async def test_and_so_does_a_batch_with_company_that_may(make_engine, runner, whole, both, encoded, early, full_depth):
    engine = make_engine()
    for policies in ((early, full_depth), (full_depth, early)):
        await asyncio.gather(*(engine.submit(both, encoded(2), policy=policy) for policy in policies))
    assert (whole.runs, runner.runs) == ([], [(0, (2, 2)), (1, (2,))] * 2)


async def test_a_run_of_all_stages_takes_no_longer_than_a_run_may(
    make_engine, runner, whole, both, encoded, full_depth
):
    (text,) = encoded(2)
    token_s = 2e-3 / text.kept
    slow = replace(both, costs=(StageCost(1e-3, token_s), StageCost(1e-3, 2 * token_s)))
    engine = make_engine(batch_s=0.021)
    assert exits(await engine.submit(slow, encoded(2, 3, 4, 5, 6), policy=full_depth)) == [1] * 5
    # 2 ms and some, and 6 ms an item: three of the five that a stage's run could take
    assert (whole.runs, runner.runs) == ([(0, (2, 3, 4)), (0, (5, 6))], [])


async def test_but_for_a_single_item(make_engine, runner, whole, both, encoded, full_depth):
    slow = replace(both, costs=(StageCost(0.012, 1e-9), StageCost(0.012, 1e-9)))
    assert exits(await make_engine(batch_s=0.02).submit(slow, encoded(2, 3), policy=full_depth)) == [1, 1]
    assert (whole.runs, runner.runs) == ([(0, (2,)), (0, (3,))], [])


async def test_nor_than_a_turn_while_others_have_work(
    make_engine, runner, whole, both, make_runner, encoded, full_depth
):
    engine, other = make_engine(), replace(both, name="other", student=make_runner(), full_depth=None, costs=COSTS)
    slow = replace(both, costs=(StageCost(0.6 * TURN_S, 0.0), StageCost(0.6 * TURN_S, 0.0)))
    await asyncio.gather(
        engine.submit(slow, encoded(2), policy=full_depth), engine.submit(other, encoded(2), policy=full_depth)
    )
    assert (whole.runs, [stage for stage, _ in runner.runs]) == ([], [0, 1])


async def test_what_breaks_it_fails_alone(make_engine, whole, both, encoded, full_depth):
    whole.poison[3] = ValueError("no")
    results = await make_engine().submit(both, encoded(2, 3, 4, 5), policy=full_depth)
    assert [isinstance(result.outcome, RunFailed) for result in results] == [False, True, False, False]
    assert whole.runs[0] == (0, (2, 3, 4, 5))


async def test_cancelled_while_it_runs(make_engine, whole, both, encoded, full_depth):
    engine = make_engine()
    whole.hold()
    asked = asyncio.create_task(engine.submit(both, encoded(2, 3), policy=full_depth))
    await whole.begun()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    whole.let_go()
    assert await engine.drain(20)
    assert "requests=0 queued=0 in_flight=0 busy_slots=0" in repr(engine)


def test_what_it_takes_is_shared_among_the_stages():
    forecast, known = Forecast(COSTS, stages=2), Forecast(COSTS, stages=2)
    predicted = [known.seconds(stage, 8, 16) - RUN_S for stage in range(2)]
    assert forecast.through(8, 16) == pytest.approx(sum(predicted) + 2 * RUN_S)
    for _ in range(200):
        forecast.ran_through(items=8, longest=16, seconds=2 * sum(predicted))
        for stage, seconds in enumerate(predicted):
            known.ran(stage, items=8, longest=16, stayed=8 * (1 - stage), seconds=2 * seconds)
    for stage in range(2):
        assert forecast.seconds(stage, 8, 16) == pytest.approx(known.seconds(stage, 8, 16))
    assert forecast.survive == known.survive
    # one run, not two
    assert forecast.token_s < known.token_s


def test_stages_that_seemed_to_cost_nothing():
    forecast = Forecast((StageCost(0.0, 0.0),) * 2, stages=2)
    forecast.ran_through(items=8, longest=16, seconds=1e-3)
    assert forecast.through(8, 16) == pytest.approx(2 * RUN_S)
