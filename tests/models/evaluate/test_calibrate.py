"""From rows to a certificate on real graphs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.evaluate.calibrate import (
    REFERENCE,
    Promise,
    certify_student,
    gold_indices,
    keys_digest,
    temperatures_of,
)
from models.evaluate.exits import Risks, exit_taken
from models.evaluate.scores import exit_logits, exit_rows
from service.bundle.load import load_bundle
from service.bundle.manifest import Certificate
from service.runtime.encode import Encoded
from service.runtime.student import Student

PROMISE = Promise(
    confidence="max_probability",
    risks=Risks((0.02, 0.05, 0.2), delta=0.05, favoured=0.05),
    population="toy texts",
    population_digest="0" * 64,
    input_policy="truncate end",
)


def words(count: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    some = ("bad", "good", "okay", "usual", "great", "film", "card", "it", "was", "not")
    return [" ".join(draw.choice(some, size=int(draw.integers(1, 6)))) for _ in range(count)]


def test_the_rows_digest_does_not_depend_on_their_order() -> None:
    assert keys_digest(["b", "a"]) == keys_digest(["a", "b"]) != keys_digest(["a", "c"])


def test_gold_labels_become_indices() -> None:
    assert gold_indices(["b", None, "a"], ["a", "b"]).tolist() == [1, -1, 0]
    with pytest.raises(KeyError):
        gold_indices(["c"], ["a", "b"])


def certificate_of(student: Student, split_b: list[Encoded]) -> Certificate:
    split_a = student.encoder.encode(words(300, 1))
    return certify_student(
        student, split_a=split_a, split_b=split_b, temperatures=temperatures_of(student, split_a).exits, promise=PROMISE
    )


def test_a_certificate_says_what_it_stands_on(student: Student) -> None:
    certificate = certificate_of(student, student.encoder.encode(words(900, 2)))
    assert (certificate.backend, certificate.precision) == (student.backend, student.precision)
    assert certificate.reference == REFERENCE
    assert certificate.population == "toy texts"
    assert [point.risk for point in certificate.points] == [0.02, 0.05, 0.2]
    assert {point.rows for point in certificate.points} == {900}
    assert all(point.errors <= point.risk * point.rows for point in certificate.points)


def test_without_enough_rows_nothing_is_offered(student: Student) -> None:
    assert certificate_of(student, student.encoder.encode(words(10, 2))).points == ()


def test_the_served_student_keeps_the_certificate_on_other_rows(
    tmp_path: Path, build_bundle: Callable[..., Path]
) -> None:
    """Certify one precision, write it into the manifest, serve it: the disagreement is within the promise."""
    plain = Student(load_bundle(build_bundle(tmp_path / "plain", certified=False)), precision="int8")
    split_a = plain.encoder.encode(words(300, 1))
    found = temperatures_of(plain, split_a, gold=[None] * 300)
    assert found.exits[-1] == 1.0
    assert set(found.scores) == {None}
    temperatures = found.exits
    certificate = certify_student(
        plain, split_a=split_a, split_b=plain.encoder.encode(words(900, 2)), temperatures=temperatures, promise=PROMISE
    )

    def certified(manifest: dict) -> None:
        manifest["certificates"] = [certificate.model_dump(mode="json")]
        for leave, temperature in zip(manifest["exits"], temperatures, strict=True):
            leave["temperature"] = temperature

    served = Student(
        load_bundle(build_bundle(tmp_path / "served", certified=False, change=certified)), precision="int8"
    )
    encoded = served.encoder.encode(words(2000, 3))
    policy = served.policy(0.05)
    assert policy.risk_applied == 0.05
    outcomes = served.run(encoded, policy)
    full = exit_logits(served, encoded)[-1].argmax(axis=1)
    differ = np.mean([outcome.raw.argmax() != label for outcome, label in zip(outcomes, full, strict=True)])
    assert differ <= 0.05
    rows = exit_rows(exit_logits(served, encoded), temperatures=temperatures, rule="max_probability")
    assert exit_taken(rows, policy.thresholds).tolist() == [outcome.exit_index for outcome in outcomes]


def test_gold_labels_set_the_last_temperature(student: Student) -> None:
    encoded = student.encoder.encode(words(200, 4))
    wrong_half = [i % 3 for i in range(200)]
    assert temperatures_of(student, encoded, gold=wrong_half).exits[-1] > 1.5


def test_gold_labels_set_the_scores_of_inner_exits_and_not_who_leaves(student: Student) -> None:
    encoded = student.encoder.encode(words(200, 4))
    wrong_half = [i % 3 for i in range(200)]
    found, without = temperatures_of(student, encoded, gold=wrong_half), temperatures_of(student, encoded)
    assert found.exits[:-1] == without.exits[:-1]
    assert found.scores[-1] is None
    for confidence, score in zip(found.exits[:-1], found.scores[:-1], strict=True):
        assert score is not None
        assert score > confidence
