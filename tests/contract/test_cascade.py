"""A bag of n-grams before an encoder: the online half answers what torch computes, with exits, through the engine."""

import numpy as np
import pytest
import torch

from models.students.cascade import CascadeStudent
from service.engine.engine import Engine, EngineLimits
from service.engine.item import ServedStudent
from service.runtime.encode import pad
from service.runtime.heads import ExitPolicy, softmax
from service.runtime.student import Student
from service.store.store import Store


@pytest.fixture(scope="module", params=["fp32", "int8"])
def served(published_cascade: Store, request: pytest.FixtureRequest) -> Student:
    return Student(published_cascade.open("cascade", 1), precision=request.param)


def test_every_exit_is_torchs_but_for_rounding(served: Student, cascade: CascadeStudent, texts: list[str]):
    encoded = served.encoder.encode(texts)
    feeds = pad(encoded, pad_id=0)
    with torch.no_grad():
        wanted = cascade(torch.as_tensor(feeds["input_ids"]), torch.as_tensor(feeds["attention_mask"])).exits
    for got, want in zip(served.all_exits(encoded), wanted, strict=True):
        most = 0.05 if served.precision == "fp32" else 0.4
        assert np.abs(got - want.numpy()).max() < most * want.abs().max()


def policy(served: Student, texts: list[str]) -> ExitPolicy:
    """Half leave at the bag, some at each later exit."""
    raws = served.all_exits(served.encoder.encode(texts))
    sure = [np.median(softmax(raw, temperature=1.0).max(axis=1)) for raw in raws]
    return ExitPolicy(tuple(float(level) for level in sure[:-1]))


async def test_the_engine_answers_as_the_pass_does_and_items_leave_at_every_exit(served: Student, texts: list[str]):
    encoded, leaving = served.encoder.encode(texts), policy(served, texts)
    outcomes = served.run(encoded, leaving)
    assert {outcome.exit_index for outcome in outcomes} == {0, 1, 2, 3}
    engine = Engine(EngineLimits(max_queue_items=1000, token_budget=256, slots=1))
    try:
        results = await engine.submit(ServedStudent("cascade", 1, served), encoded, policy=leaving)
    finally:
        await engine.close()
    assert [result.outcome.exit_index for result in results] == [outcome.exit_index for outcome in outcomes]
    for result, outcome in zip(results, outcomes, strict=True):
        np.testing.assert_allclose(result.outcome.raw, outcome.raw, atol=1e-3)


def test_who_leaves_at_the_bag_is_answered_by_it_alone(served: Student, texts: list[str]):
    alone = [served.run([item], policy(served, texts))[0] for item in served.encoder.encode(texts)]
    bag = served.all_exits(served.encoder.encode(texts))[0]
    for outcome, raw in zip(alone, bag, strict=True):
        if outcome.exit_index == 0:
            np.testing.assert_allclose(outcome.raw, raw, atol=1e-3)
