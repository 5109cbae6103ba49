"""The shipped students: whole, reproducible on this machine, made by the committed recipes, and small."""

import re
from pathlib import Path

import pytest
import yaml

from service.bundle.load import Bundle
from service.runtime.student import Student
from service.store.store import Store

ROOT = Path(__file__).parents[2]
SHIPPED = Store(ROOT / "models" / "store")
STORE_BYTES = 40_000_000
TEACHER_BYTES = 90_900_000


def bundles() -> list[Bundle]:
    return [SHIPPED.open(name, version) for name in SHIPPED.students() for version in SHIPPED.versions(name)]


@pytest.mark.parametrize("name", ["embed", "intent", "paraphrase", "rank", "sentiment", "topic"])
def test_the_student_is_in_production(name: str):
    assert SHIPPED.resolve(name).alias == "production"


@pytest.mark.parametrize("bundle", bundles(), ids=lambda bundle: f"{bundle.manifest.name}@{bundle.path.name}")
class TestShipped:
    def test_every_precision_reproduces_its_golden_samples(self, bundle: Bundle):
        for precision in bundle.manifest.precisions:
            Student(bundle, precision=precision).check_golden()

    def test_it_was_made_by_the_committed_recipe(self, bundle: Bundle):
        recipe = ROOT / "models" / "recipes" / f"{bundle.manifest.name}.yaml"
        assert bundle.manifest.provenance.recipe == yaml.safe_load(recipe.read_text(encoding="utf-8"))

    def test_its_default_exits_are_certified_where_it_has_any(self, bundle: Bundle):
        if len(bundle.manifest.exits) == 1:
            assert bundle.manifest.default_risk is None
            return
        certificate = bundle.manifest.certificate(backend="onnxruntime", precision=bundle.manifest.default_precision)
        assert certificate is not None
        assert bundle.manifest.default_risk in {point.risk for point in certificate.points}

    def test_all_its_precisions_are_a_small_share_of_the_teacher(self, bundle: Bundle):
        size = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
        assert size <= TEACHER_BYTES / 7.5

    def test_it_names_no_path_of_a_machine(self, bundle: Bundle):
        text = (bundle.path / "manifest.json").read_text(encoding="utf-8") + (bundle.path / "card.md").read_text()
        # a path that begins with a slash; ${UNDERSTUDY_DATA}/... and relative ones do not
        assert re.search(r"(?<![\w}:/.)])/\w+/", text) is None


def test_the_store_is_small():
    assert sum(file.stat().st_size for file in SHIPPED.root.rglob("*") if file.is_file()) <= STORE_BYTES
