"""docs/http.md names every route, field, error code and series, and its JSON is what the service would send."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from service import errors
from service.api.app import create_app
from service.api.schemas import ClassifyAnswer, ClassifyBody, EmbedBody, Problem, RankAnswer, RankBody
from service.errors import BundleError, ServiceError
from service.metrics import Metrics
from service.settings import Settings, load_settings

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "http.md").read_text()


def _below(base: type[Exception]) -> set[str]:
    found = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, base)}
    return {str(vars(kind)["code"]) for kind in found - {base, errors.CallerError, errors.Unavailable}}


@pytest.mark.parametrize("code", sorted(_below(ServiceError) | _below(BundleError)))
def test_every_error_code(code: str) -> None:
    assert f"`{code}`" in TEXT


def test_every_series() -> None:
    series = re.findall(r"^# TYPE (understudy_\w+)", Metrics().exposition().decode(), re.MULTILINE)
    missing = {name for name in series if f"`{name}`" not in TEXT and not name.endswith("_created")}
    assert not missing


def test_every_route(tmp_path: Path) -> None:
    paths = create_app(load_settings(store=tmp_path)).openapi()["paths"]
    pages = "".join((DOCS / page).read_text() for page in ("http.md", "surfaces.md", "operations.md"))
    assert not {path for path in paths if path not in pages}


@pytest.mark.parametrize("field", sorted({*ClassifyBody.model_fields, *EmbedBody.model_fields, *RankBody.model_fields}))
def test_every_field(field: str) -> None:
    assert re.search(rf"^\| `{field}`", TEXT, re.MULTILINE)


def test_the_settings_it_names_are_settings() -> None:
    named = set(re.findall(r"the settings? `(\w+)`", TEXT))
    assert named <= set(Settings.model_fields)


def test_the_json_in_it_has_the_documented_shape() -> None:
    documents: list[dict[str, Any]] = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
    answer, ranking, error, unready = documents
    ClassifyAnswer.model_validate(answer)
    RankAnswer.model_validate(ranking)
    Problem.model_validate(error)
    Problem.model_validate({name: value for name, value in unready.items() if name not in ("served", "waiting_for")})
