"""Loaded toy students."""

from collections.abc import Callable
from pathlib import Path

import pytest

from service.bundle.load import Bundle, load_bundle
from service.runtime.student import Student


@pytest.fixture
def bundle(classify_bundle: Path) -> Bundle:
    return load_bundle(classify_bundle)


@pytest.fixture
def student(bundle: Bundle) -> Student:
    return Student(bundle, precision="fp32")


@pytest.fixture
def make_student(tmp_path: Path, build_bundle: Callable[..., Path]) -> Callable[..., Student]:
    """`make_student(**fields of ToySpec)`: a student of a bundle of its own."""

    def make(*, precision: str = "fp32", **fields: object) -> Student:
        return Student(load_bundle(build_bundle(tmp_path / "own", **fields)), precision=precision)

    return make
