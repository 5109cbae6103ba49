"""The engine equals the student's own pass, and batched equals alone, on real graphs."""

import asyncio

import numpy as np
import pytest

from service.bundle.load import load_bundle
from service.engine.item import ServedStudent
from service.runtime.student import Student

TEXTS = [
    "this film is great",
    "it was awful, very bad!",
    "where is it?",
    "",
    "my card is not usual but it is okay",
    "the the the the the the the the the good",
    "zebra 42",
    "how do i do this",
] * 4


@pytest.fixture(params=["fp32", "int8"])
def student(request, classify_bundle) -> Student:
    return Student(load_bundle(classify_bundle), precision=request.param)


def same(results, outcomes) -> None:
    assert [result.outcome.exit_index for result in results] == [outcome.exit_index for outcome in outcomes]
    for result, outcome in zip(results, outcomes, strict=True):
        np.testing.assert_allclose(result.outcome.raw, outcome.raw, atol=1e-5)


@pytest.mark.parametrize("setting", ["default", "never", 0.01])
@pytest.mark.parametrize("token_budget", [32, 4096])
async def test_the_engine_equals_the_student_batched_and_alone(make_engine, student, setting, token_budget):
    engine = make_engine(token_budget=token_budget, slots=2)
    encoded = student.encoder.encode(TEXTS)
    policy = student.policy(setting)
    results = await engine.submit(ServedStudent("toy", 1, student), encoded, policy=policy)
    same(results, student.run(encoded, policy))
    same(results, [student.run([item], policy)[0] for item in encoded])


async def test_requests_side_by_side_equal_requests_alone(make_engine, student):
    engine = make_engine(slots=2)
    encoded = student.encoder.encode(TEXTS)
    served = ServedStudent("toy", 1, student)
    policies = [student.policy(setting) for setting in ("default", "never", 0.01, 0.05)]
    given = [policies[i % 4] for i in range(len(encoded))]
    answered = await asyncio.gather(
        *(engine.submit(served, [item], policy=policy) for item, policy in zip(encoded, given, strict=True))
    )
    same([results[0] for results in answered], student.run(encoded, given))


async def test_embeddings_pass_through_the_engine(make_engine, embed_bundle):
    student = Student(load_bundle(embed_bundle))
    encoded = student.encoder.encode(TEXTS)
    results = await make_engine().submit(ServedStudent("toy-embed", 1, student), encoded, policy=student.policy())
    same(results, student.run(encoded, student.policy()))
