"""A loaded toy student and texts for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.evaluate.variants import BackendRefused, require_backends
from service.bundle.load import load_bundle
from service.runtime.student import Student

CLEAR = ("bad", "awful", "slow", "okay", "usual", "good", "great", "lovely")
VAGUE = ("the", "film", "was", "very", "not", "card", "where", "is", "it", "my")


def toy_texts(count: int, *, seed: int = 0) -> tuple[str, ...]:
    """Texts of 1 to 12 words; some are clear at the first exit and some are not."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 13, size=count)
    return tuple(" ".join(draw.choice((*CLEAR, *VAGUE), size=length)) for length in lengths)


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory, build_bundle: Callable[..., Path]) -> Path:
    """The toy classifier; tests only read it."""
    return build_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="session")
def student(toy_bundle: Path) -> Student:
    """The toy classifier, loaded in its default precision."""
    return Student(load_bundle(toy_bundle))


@pytest.fixture
def texts() -> tuple[str, ...]:
    """200 texts."""
    return toy_texts(200)


@pytest.fixture
def openvino() -> str:
    """The name of a second backend; skips where it is not installed."""
    try:
        require_backends(["openvino"], where="test")
    except BackendRefused as error:
        pytest.skip(str(error))
    return "openvino"
