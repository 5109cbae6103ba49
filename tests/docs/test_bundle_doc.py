"""docs/bundle.md is the format's specification: every field is in it, and its examples are what it says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from service import errors
from service.bundle import consistency, load, manifest, strict_json
from service.bundle.golden import GoldenDocument, GoldenSampleDocument, parse_golden
from service.bundle.manifest import parse_manifest
from service.runtime.heads import confidence, policy_for, softmax
from service.store.aliases import MAX_ALIASES_BYTES, AliasEntry, AliasFile, parse_aliases

DOCUMENT = Path(__file__).parents[2] / "docs" / "bundle.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^#{2,3} ", TEXT, flags=re.MULTILINE)[1:]}
MODELS = [
    model
    for model in vars(manifest).values()
    if isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == manifest.__name__
    if not model.__name__.startswith("_")
]


def example(name: str) -> bytes:
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```json\n(.*?)```", TEXT, flags=re.DOTALL)
    assert found is not None
    return found[1].encode()


def rows(section: str) -> dict[str, list[str]]:
    """The cells of a section's table, by the field in its first column."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("` "): row[1:] for row in cells}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_has_a_row_and_every_row_is_a_field(model: type[BaseModel]) -> None:
    assert list(rows(model.__name__)) == list(model.model_fields)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_row_says_required_exactly_where_the_field_is(model: type[BaseModel]) -> None:
    for name, cells in rows(model.__name__).items():
        field = model.model_fields[name]
        # a writer need not name the version it writes, a reader must find it
        assert (cells[1] == "required") == (field.is_required() or name == "format"), name
        if not field.is_required() and cells[1].startswith("`"):
            default = field.default
            assert json.loads(cells[1].strip("`")) == (list(default) if isinstance(default, tuple) else default), name
        if cells[1] == "null":
            assert field.default is None, name


@pytest.mark.parametrize(
    ("section", "models"),
    [("4. golden.json", (GoldenDocument, GoldenSampleDocument)), ("aliases.json", (AliasFile, AliasEntry))],
)
def test_the_other_files_have_their_fields_in_their_tables(section: str, models: tuple[type[BaseModel], ...]) -> None:
    documented = [field.split(".")[-1] for field in rows(section)]
    assert documented == _fields(*models)


def _fields(outer: type[BaseModel], inner: type[BaseModel]) -> list[str]:
    """The fields of a file: those of its object, with the fields of its entries after the first that holds them."""
    names: list[str] = []
    for name, field in outer.model_fields.items():
        names.append(field.alias or name)
        if inner.__name__ in str(field.annotation):
            names += list(inner.model_fields)
    return names


@pytest.mark.parametrize("model", [*MODELS, GoldenDocument, AliasFile], ids=lambda model: model.__name__)
def test_every_field_name_occurs(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert f"`{field.alias or name}`" in TEXT


def test_the_example_files_are_read() -> None:
    student = parse_manifest(example("manifest.json"))
    assert parse_golden(example("golden.json"), manifest=student).samples[0].text == "what a lovely day"
    assert parse_aliases(example("aliases.json"), student="mood").aliases["canary"] == AliasEntry(
        version=4, weight=0.05
    )


def test_the_example_is_served_as_told() -> None:
    student = parse_manifest(example("manifest.json"))
    policy = policy_for(student, backend="onnxruntime", precision="int8", exit=0.02)
    assert policy.risk_applied == 0.01
    assert policy.thresholds == (0.97,)
    temperature = student.exits[0].temperature
    scores = softmax(np.array([[-2.0, 6.0], [1.0, 6.0]]), temperature=temperature)
    assert confidence(scores, policy.confidence).round(4).tolist() == [0.982, 0.9241]
    shown = softmax(np.array([[-2.0, 6.0]]), temperature=student.exits[0].answer_temperature)
    assert shown.max().round(4) == 0.8808
    for told in ("0.9820", "0.9241", "[0.0180, 0.9820]", "0.8808"):
        assert told in TEXT


def test_the_example_promises_are_the_tests_they_claim_to_be() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for point in parse_manifest(example("manifest.json")).certificates[0].points:
        p_value = float(scipy_stats.binom.cdf(point.errors, point.rows, point.risk))
        assert point.p_value == pytest.approx(p_value, abs=5e-5)


def test_every_refusal_is_in_the_table() -> None:
    kinds = [*errors.BundleError.__subclasses__(), *errors.StoreError.__subclasses__()]
    for kind in kinds:
        assert f"`{kind.__name__}`" in SECTIONS["6. What a reader refuses"]


def test_the_bounds_are_the_readers() -> None:
    assert (load.MAX_MANIFEST_BYTES, load.MAX_GOLDEN_BYTES) == (16 * 2**20, 64 * 2**20)
    assert (load.MAX_FILE_BYTES, load.MAX_BUNDLE_BYTES, MAX_ALIASES_BYTES) == (2 * 2**30, 8 * 2**30, 2**20)
    assert "16 MiB, the golden file 64 MiB, any file 2 GiB" in TEXT
    assert manifest.NAME.pattern in TEXT
    assert "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}" in consistency.PLAIN_PATH.pattern
    assert strict_json.__doc__
