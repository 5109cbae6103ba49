"""An answer depends on the item alone: in every company and under any padding, on every backend and precision here.

B items, E exits, C labels (or D embedding numbers).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from service.bundle.load import Bundle, load_bundle
from service.errors import SettingsInvalid
from service.runtime.encode import Encoded, Text, pad
from service.runtime.heads import ExitPolicy, softmax
from service.runtime.session import BACKENDS
from service.runtime.student import Student
from service.store.store import Store

TOLERANCE = {"fp32": 1e-4, "int8": 1e-3}
STRANGERS = ("?!,.-'" * 4, "", "zzzz qqqq 0000 " * 9, "a", "good")
BATCHES = (2, 7, 33, 64)


@dataclass(frozen=True)
class Sample:
    """A loaded student, its items, and what it says of each alone: float [B, E, C]."""

    student: Student
    encoded: list[Encoded]
    alone: np.ndarray

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.student.precision]


def scores(student: Student, batch: Sequence[Encoded], *, length: int | None = None) -> np.ndarray:
    """float [B, E, C]: probabilities, or the embedding's numbers as they are."""
    raws = student.all_exits(batch, length=length)
    if student.manifest.task == "embed":
        return np.stack(raws, axis=1)
    exits = student.manifest.exits
    return np.stack([softmax(raw, temperature=e.temperature) for raw, e in zip(raws, exits, strict=True)], axis=1)


@pytest.fixture(scope="module")
def bundles(
    published: Store,
    published_cascade: Store,
    published_over_tokens: Store,
    build_bundle: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Bundle]:
    """A transformer with three exits, a bag of n-grams alone and before that transformer, an LSTM, filters, a toy with
    two exits, a toy that takes pairs, and an embedder."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "tiny": published.open("tiny", 1),
        "ngram": published_cascade.open("ngram", 1),
        "cascade": published_cascade.open("cascade", 1),
        "bilstm": published_over_tokens.open("bilstm", 1),
        "cnn": published_over_tokens.open("cnn", 1),
        "toy": load_bundle(build_bundle(folder / "toy")),
        "pairs": load_bundle(build_bundle(folder / "pairs", pairs="joint")),
        "embed": load_bundle(build_bundle(folder / "embed", task="embed")),
    }


@pytest.fixture(scope="module", params=["tiny", "ngram", "cascade", "bilstm", "cnn", "toy", "pairs", "embed"])
def bundle(bundles: dict[str, Bundle], request: pytest.FixtureRequest) -> Bundle:
    return bundles[request.param]


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    try:
        BACKENDS[name].require()
    except SettingsInvalid as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(scope="module", params=["fp32", "int8"])
def sample(bundle: Bundle, backend: str, request: pytest.FixtureRequest, texts: list[str]) -> Sample:
    student = Student(bundle, backend=backend, precision=request.param)
    encoded = student.encoder.encode([shaped(bundle, text) for text in texts])
    return Sample(student, encoded, np.concatenate([scores(student, [item]) for item in encoded]))


def shaped(bundle: Bundle, text: str) -> Text:
    return text if bundle.manifest.pairs == "none" else (text, "is it good?")


def assert_alike(company: np.ndarray, alone: np.ndarray, tolerance: float) -> None:
    """Numbers within the tolerance; the largest is the same one, but where the two largest tie."""
    assert np.abs(company - alone).max() <= tolerance
    ranked = np.sort(alone, axis=-1)
    tied = ranked[..., -1] - ranked[..., -2] <= tolerance
    assert ((company.argmax(-1) == alone.argmax(-1)) | tied).all()


@pytest.mark.parametrize("size", BATCHES)
def test_in_batches_of_any_size(sample: Sample, size: int) -> None:
    order = np.random.default_rng(size).permutation(len(sample.encoded))
    for at in range(0, len(order), size):
        batch = order[at : at + size]
        found = scores(sample.student, [sample.encoded[i] for i in batch])
        assert_alike(found, sample.alone[batch], sample.tolerance)


def test_padded_to_any_length(sample: Sample) -> None:
    for length in range(8, sample.student.manifest.max_tokens + 1, 3):
        fits = [i for i, item in enumerate(sample.encoded) if item.kept <= length][:16]
        found = scores(sample.student, [sample.encoded[i] for i in fits], length=length)
        assert_alike(found, sample.alone[fits], sample.tolerance)


def test_among_strangers_of_any_kind(sample: Sample, bundle: Bundle) -> None:
    strangers = sample.student.encoder.encode([shaped(bundle, text) for text in STRANGERS])
    for place in (0, 17, 63):
        found = scores(sample.student, [*strangers, sample.encoded[place], *strangers])[len(strangers)]
        assert_alike(found[None], sample.alone[place : place + 1], sample.tolerance)


def test_with_exits_taken_the_survivors_answer_as_if_alone(sample: Sample) -> None:
    """Everybody leaves where the policy says; who goes on does so in a smaller batch."""
    student, exits = sample.student, sample.student.manifest.exits
    if len(exits) == 1:
        pytest.skip("one exit: nobody leaves early")
    sure = sample.alone[:, :-1].max(axis=-1)
    threshold = _clear_of(sure, sample.tolerance)
    policy = ExitPolicy((threshold,) * (len(exits) - 1))
    outcome = student.run_padded(pad(sample.encoded, pad_id=student.pad_id), policy)
    met = np.concatenate([sure >= threshold, np.ones((len(sure), 1), dtype=bool)], axis=1)
    assert outcome.exit_index.tolist() == met.argmax(axis=1).tolist()
    assert 0 < (outcome.exit_index == 0).sum() < len(sure)
    found = [
        softmax(raw, temperature=exits[at].temperature) for raw, at in zip(outcome.raw, outcome.exit_index, strict=True)
    ]
    alone = sample.alone[np.arange(len(sure)), outcome.exit_index]
    assert_alike(np.stack(found), alone, sample.tolerance)


def _clear_of(confidences: np.ndarray, tolerance: float) -> float:
    """A threshold that some meet at the first exit and some do not, and that no confidence ties with."""
    low, high = np.quantile(confidences[:, 0], (0.1, 0.9))
    ranked = np.sort(confidences.ravel())
    middle = ranked[(ranked >= low) & (ranked <= high)]
    widest = int(np.diff(middle).argmax())
    assert middle[widest + 1] - middle[widest] > 2 * tolerance
    return float(middle[widest : widest + 2].mean())
