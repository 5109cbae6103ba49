"""An LSTM and filters over token rows: the online half answers what torch computes, through pass and engine."""

import numpy as np
import pytest
import torch

from models.students.bilstm import BilstmStudent
from models.students.cnn import CnnStudent
from service.engine.engine import Engine, EngineLimits
from service.engine.item import ServedStudent
from service.runtime.encode import pad
from service.runtime.student import Student
from service.store.store import Store


@pytest.fixture(scope="module", params=["bilstm", "cnn"])
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=["fp32", "int8"])
def served(published_over_tokens: Store, architecture: str, request: pytest.FixtureRequest) -> Student:
    return Student(published_over_tokens.open(architecture, 1), precision=request.param)


def test_the_answer_is_torchs_but_for_rounding(
    served: Student, architecture: str, over_tokens: dict[str, BilstmStudent | CnnStudent], texts: list[str]
):
    encoded = served.encoder.encode([*texts, "", "a"])
    feeds = pad(encoded, pad_id=0)
    with torch.no_grad():
        ids, mask = torch.as_tensor(feeds["input_ids"]), torch.as_tensor(feeds["attention_mask"])
        wanted = over_tokens[architecture](ids, mask).exits[0]
    (found,) = served.all_exits(encoded)
    most = 0.05 if served.precision == "fp32" else 0.1
    assert np.abs(found - wanted.numpy()).max() < most * wanted.abs().max()


async def test_the_engine_answers_as_the_pass_does(served: Student, architecture: str, texts: list[str]):
    encoded, policy = served.encoder.encode(texts), served.policy("default")
    outcomes = served.run(encoded, policy)
    engine = Engine(EngineLimits(max_queue_items=1000, token_budget=256, slots=1))
    try:
        results = await engine.submit(ServedStudent(architecture, 1, served), encoded, policy=policy)
    finally:
        await engine.close()
    for result, outcome in zip(results, outcomes, strict=True):
        np.testing.assert_allclose(result.outcome.raw, outcome.raw, atol=1e-3)
