"""Label issues as a step: planted rows are listed with file and line, left out on request; held-out rows are safe."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.data.cuts import Splits, prepare
from models.errors import RecipeInvalid
from models.recipe.classify import ClassifyRecipe, classify_recipe
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.job import start
from models.refresh.jobs import check
from models.refresh.progress import Reporter

MakeRecipe = Callable[..., Path]


def planted(train: Path, *, every: int = 60) -> dict[int, str]:
    """Give every so many-th row of a file another label; returns the right label by line."""
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    labels = sorted({row["label"] for row in rows})
    right = {}
    for at in range(0, len(rows), every):
        right[at + 1] = rows[at]["label"]
        rows[at]["label"] = labels[(labels.index(rows[at]["label"]) + 1) % 3]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return right


class Place:
    """A recipe with planted labels, and a runs folder."""

    def __init__(self, recipe: Path) -> None:
        self._recipe, self.runs = recipe, recipe.parent / "runs"
        self.train = recipe.parent / "data" / "train.jsonl"
        self.right = planted(self.train)

    def recipe(self, **settings: Any) -> ClassifyRecipe:
        overrides = (f"data.label_issues={json.dumps(settings)}",) if settings else ()
        return classify_recipe(read_recipe(self._recipe, overrides=overrides))

    def start(self, **settings: Any) -> tuple[Splits, StepCache, str]:
        cache, said = StepCache(self.runs), io.StringIO()
        splits = start(self.recipe(**settings), cache, Reporter(said)).splits
        return splits, cache, said.getvalue()

    def listed(self) -> list[dict[str, Any]]:
        (folder,) = (self.runs / "label-issues").iterdir()
        return [json.loads(line) for line in (folder / "issues.jsonl").read_text().splitlines()]


@pytest.fixture
def place(make_recipe: MakeRecipe) -> Place:
    return Place(make_recipe())


def are_nearly(found: set[int], place: Place) -> bool:
    """Whether lines are those planted in train, but for a few that the method is not confident of."""
    planted = {row.line for row in prepare(place.recipe()).train} & place.right.keys()
    return found <= planted and len(found) > 0.6 * len(planted) > 4


def test_planted_labels_are_listed_by_file_and_line(place: Place):
    before = prepare(place.recipe())
    splits, _, said = place.start(action="report")
    listed = place.listed()
    assert are_nearly({row["line"] for row in listed}, place)
    assert {row["file"] for row in listed} == {str(place.train)}
    assert all(row["suggested"] == place.right[row["line"]] != row["label"] for row in listed)
    assert set(listed[0]) == {
        "file",
        "line",
        "text",
        "label",
        "suggested",
        "label_probability",
        "suggested_probability",
    }
    assert (splits.train, splits.digests) == (before.train, before.digests)
    assert f"{len(listed)} of the {len(splits.train)} train rows that were judged" in splits.notes[-1]
    assert "none dropped" in splits.notes[-1]
    assert str(place.train.parent) not in splits.notes[-1]
    assert "issues.jsonl" in said


def test_rows_are_dropped_from_train_alone(place: Place):
    before = prepare(place.recipe())
    splits, _, _ = place.start(action="drop")
    gone = {row.line for row in before.train} - {row.line for row in splits.train}
    assert are_nearly(gone, place)
    assert gone == {row["line"] for row in place.listed()}
    assert f"{len(gone)} of the {len(before.train)} train rows dropped" in splits.notes[-1]
    for split in ("dev", "calibration", "gate", "test", "unlabelled", "labels"):
        assert getattr(splits, split) == getattr(before, split)
    assert {name for name in splits.digests if splits.digests[name] != before.digests[name]} == {"train"}


def test_reporting_first_and_dropping_then_judges_once(place: Place):
    _, cache, _ = place.start(action="report")
    assert [receipt.cached for receipt in cache.receipts] == [False]
    _, cache, _ = place.start(action="drop")
    assert [receipt.cached for receipt in cache.receipts] == [True]
    _, cache, _ = place.start(action="drop", folds=3)
    assert [receipt.cached for receipt in cache.receipts] == [False]


def test_a_label_of_two_rows_is_said_and_stays(place: Place):
    with place.train.open("a") as file:
        for at in range(12):
            file.write(json.dumps({"text": f"pin forgotten {at}", "label": "pin"}) + "\n")
    splits, _, _ = place.start(action="drop", folds=20)
    assert "1 labels with fewer than 20 distinct texts not judged" in splits.notes[-1]
    assert sum(row.label == "pin" for row in splits.train) == sum(
        row.label == "pin" for row in prepare(place.recipe()).train
    )


def test_a_dry_run_judges_nothing(place: Place):
    check(place.recipe(action="drop"), StepCache(place.runs), Reporter(io.StringIO()))
    assert list(place.runs.iterdir()) == []


def test_without_the_key_nothing_is_judged_and_the_digest_is_what_it_was(place: Place):
    splits, cache, _ = place.start()
    assert splits == prepare(place.recipe())
    assert cache.receipts == []
    assert "label_issues" not in place.recipe().model_dump()["data"]
    assert place.recipe().digest() != place.recipe(action="report").digest()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"action": "fix"}, "data.label_issues.action: Input should be 'report' or 'drop'"),
        ({"folds": 1}, "data.label_issues.folds: Input should be greater than or equal to 2"),
        ({"fold": 3}, "data.label_issues.fold: unknown key"),
    ],
)
def test_wrong_settings_are_refused(place: Place, settings: dict[str, Any], says: str):
    with pytest.raises(RecipeInvalid) as refused:
        place.recipe(**settings)
    assert says in str(refused.value)
