"""The verb: students that are made, made anew, stored or broken, on one frontier; and what it refuses at once."""

import io
import json
import re
import runpy
import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from models.errors import DataInvalid, OfflineError, RecipeInvalid
from models.evaluate.variants import BackendRefused
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.command import WorkFailed
from models.refresh.compare_command import command
from models.refresh.comparing import Costing, Field, compare, unique_names
from models.refresh.grounds import ground_of
from models.refresh.job import refresh
from models.refresh.progress import Reporter
from models.report.frontier import Comparison, frontier
from service.bundle.load import load_bundle
from service.cli import LazyVerb
from service.errors import StoreError
from service.runtime.student import Student
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

BAG = {
    "architecture": "ngram",
    "max_tokens": 16,
    "orders": 2,
    "buckets": 97,
    "width": 8,
    "hidden": 16,
    "dropout": 0.0,
    "feature_dropout": 0.0,
}
QUICK = ("--repeats", 1, "--most-rows", 20, "--single-rows", 5)
COSTING = Costing(most_rows=20, single_rows=5, repeats=1)


def run(arguments: Sequence[object]) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def variant(source: Path, path: Path, **changes: Any) -> Path:
    """The recipe of `source` with top-level keys replaced, written to `path`."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(source.read_text()), **changes}), encoding="utf-8")
    return path


def measured(recipe: Path, runs: Path, **further: Any) -> Comparison:
    field = Field(recipes=((recipe.name, read_recipe(recipe)),), **{"store": runs, **further})
    return compare(field, COSTING, StepCache(runs), Reporter(io.StringIO()))


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, refreshed: Path, classifier_directory: Path
) -> tuple[Path, Result]:
    """A folder with runs/ and out/, and what the verb answered: a student made before, another, a third that fails."""
    folder = tmp_path_factory.mktemp("compare")
    shutil.copytree(refreshed / "runs", folder / "runs")
    original = refreshed / "recipe.yaml"
    recipes = [
        original,
        variant(original, folder / "bag.yaml", name="toy-bag", student=BAG),
        variant(original, folder / "broken.yaml", name="toy-broken", teacher={"from": str(classifier_directory)}),
    ]
    stored = ("--student", "toy-intent@1", "--teacher", "toy-intent@1", "--store", refreshed / "store")
    carded = ("--card", "toy-intent@1")
    result = run([*recipes, *stored, *carded, "--runs", folder / "runs", "--out", folder / "out", *QUICK])
    return folder, result


def points_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out" / "compare.json").read_text(encoding="utf-8"))["points"]


def test_every_student_is_a_row_in_each_of_its_settings(compared: tuple[Path, Result]) -> None:
    folder, result = compared
    points = points_of(folder)
    students = [(each["name"], each["setting"]) for each in points if not each["reference"]]
    risks = [setting for name, setting in students if name == "toy-intent"]
    assert risks[0] == "full depth"
    assert set(risks[1:]) <= {"risk 0.05", "risk 0.1"}
    assert len(risks) > 1
    assert [setting for name, setting in students if name == "toy-bag"] == ["full depth"]
    assert [setting for name, setting in students if name == "toy-intent@1"] == risks
    assert [each["name"] for each in points if each["reference"]] == ["teacher", "TF-IDF + logistic regression"]
    assert "# classify: 4 students compared" in result.stdout


def test_a_student_that_was_published_reaches_what_its_draft_does(compared: tuple[Path, Result]) -> None:
    points = points_of(compared[0])
    draft, stored = ([each for each in points if each["name"] == name] for name in ("toy-intent", "toy-intent@1"))
    for ours, theirs in zip(draft, stored, strict=True):
        for key in ("setting", "quality", "macro_f1", "retention", "bundle_bytes", "parameters", "layers"):
            assert ours[key] == theirs[key], key
    assert draft[0]["retention"]["value"] > 0.9
    assert draft[0]["layers"] == 1


def test_every_cost_is_measured(compared: tuple[Path, Result]) -> None:
    for each in points_of(compared[0]):
        if each["failed"] or each["name"].startswith("TF-IDF"):
            continue
        assert each["us_per_text"] > 0, each["name"]
        assert each["us_alone"] > 0
        assert each["ms_whole"] > 0
        assert each["bundle_bytes"] > 0
        assert each["parameters"] > 0


def test_what_cannot_be_made_is_a_row_and_the_exit_status(compared: tuple[Path, Result]) -> None:
    folder, result = compared
    assert result.exit_code == 2
    broken = next(each for each in points_of(folder) if each["name"] == "toy-broken")
    assert "label" in broken["failed"]
    assert broken["marks"] == []
    assert "Not made:\n\n- toy-broken: " in result.stdout


def test_the_files_say_how_it_was_measured(compared: tuple[Path, Result]) -> None:
    folder, _ = compared
    page = (folder / "out" / "compare.md").read_text(encoding="utf-8")
    for said in ("dev split", "never on test", "operating points were chosen on these dev rows too", "Worth shipping"):
        assert said in page
    assert "may have learnt" not in page
    assert str(folder) not in page
    assert "![accuracy against processor time](compare.png)" in page
    assert (folder / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert any("frontier" in each["marks"] for each in points_of(folder))


def test_nothing_is_published_judged_or_made_again(compared: tuple[Path, Result], refreshed: Path) -> None:
    folder, _ = compared
    before = {step: set((refreshed / "runs" / step).iterdir()) for step in ("student", "gates", "version")}
    after = {step: set((folder / "runs" / step).iterdir()) for step in before}
    added = {step: len(after[step]) - len(before[step]) for step in before}
    assert added == {"student": 1, "gates": 0, "version": 0}


def test_no_card_is_written_where_a_student_is_missing(compared: tuple[Path, Result], refreshed: Path) -> None:
    assert "no card was written" in compared[1].output
    assert "## Frontier" not in (refreshed / "store" / "toy-intent" / "1" / "card.md").read_text(encoding="utf-8")


def test_the_card_of_a_published_version_gets_the_comparison_and_it_stays_published(
    compared: tuple[Path, Result], refreshed: Path, tmp_path: Path
) -> None:
    runs, store, recipe = compared[0] / "runs", tmp_path / "store", refreshed / "recipe.yaml"
    shutil.copytree(refreshed / "store", store)
    options = ("--card", "toy-intent@1", "--store", store, "--runs", runs, "--out", tmp_path / "out")
    result = run([recipe, *options, *QUICK])
    assert result.exit_code == 0, result.output
    bundle = Store(store).open("toy-intent", 1)
    card = (bundle.path / "card.md").read_text(encoding="utf-8")
    said = "understudy compare recipe.yaml --card toy-intent@1 --most-rows 20 --single-rows 5 --repeats 1"
    assert f"This version, `toy-intent` in the table, by itself: accuracy on {said_rows(tmp_path)}" in card
    assert said in card
    assert str(tmp_path) not in card
    assert card.index("## Frontier") < card.index("## Gates")
    assert (bundle.path / "card" / "frontier.png").read_bytes() == (tmp_path / "out" / "compare.png").read_bytes()
    Student(bundle).check_golden()
    again = refresh(read_recipe(recipe), store=store, cache=StepCache(runs), reporter=Reporter(io.StringIO()))
    assert (again.version, again.new) == (1, False)


def said_rows(folder: Path) -> str:
    return json.loads((folder / "out" / "compare.json").read_text(encoding="utf-8"))["split"]


def test_a_card_of_a_version_that_is_not_compared_is_refused_at_once(refreshed: Path, tmp_path: Path) -> None:
    other = variant(refreshed / "recipe.yaml", tmp_path / "other.yaml", seed=7)
    options = ("--card", "toy-intent@1", "--store", refreshed / "store")
    result = run([other, *options, "--runs", tmp_path / "runs", "--out", tmp_path / "out"])
    assert isinstance(result.exception, DataInvalid)
    assert "--card toy-intent@1: it is not compared" in str(result.exception)
    assert not (tmp_path / "runs").exists()


def test_an_embedder_is_compared_by_correlation(tmp_path: Path, encoder_directory: Path) -> None:
    write = runpy.run_path(str(Path(__file__).with_name("test_embed_job.py")))["write_recipe"]
    found = measured(write(tmp_path, encoder_directory), tmp_path / "runs")
    student, teacher = found.points
    assert (found.measure, found.split) == ("Spearman correlation", "60 dev pairs")
    assert student.retention is not None
    assert student.retention.value == pytest.approx(student.value / teacher.value)
    assert (student.macro_f1, teacher.reference, teacher.us_per_text) == (None, True, None)
    assert frontier(found.points) == (0,)


def test_a_ranker_is_compared_by_ndcg_beside_its_baselines(tmp_path: Path, encoder_directory: Path) -> None:
    write = runpy.run_path(str(Path(__file__).with_name("test_rank_job.py")))["write_recipe"]
    found = measured(write(tmp_path, encoder_directory), tmp_path / "runs")
    assert [each.name for each in found.points] == ["toy-rank", "teacher", "given", "bm25"]
    assert found.measure == "nDCG@10"
    assert found.points[0].value > found.points[2].value
    assert found.points[0].retention is not None


def test_a_stored_ranker_that_keeps_passages_is_timed_with_them_and_nothing_is_made(
    tmp_path: Path, encoder_directory: Path, build_bundle: Callable[..., Path]
) -> None:
    write = runpy.run_path(str(Path(__file__).with_name("test_rank_job.py")))["write_recipe"]
    store = tmp_path / "store"
    build_bundle(store / "split" / "1", task="rank", pairs="separate", joined=True, name="split")
    further = {"store": store, "students": ("split@1",), "stored_only": True}
    found = measured(write(tmp_path, encoder_directory), tmp_path / "runs", **further)
    assert [each.name for each in found.points] == ["split@1", "given", "bm25"]
    split = found.points[0]
    assert split.us_known is not None
    assert split.us_known > 0
    assert split.retention is None
    assert any("Known passages" in note for note in found.notes)
    assert not [path.name for path in (tmp_path / "runs").iterdir() if "student" in path.name or "teacher" in path.name]


def test_a_stored_embedder_is_compared_and_nothing_is_made(
    tmp_path: Path, encoder_directory: Path, build_bundle: Callable[..., Path]
) -> None:
    write = runpy.run_path(str(Path(__file__).with_name("test_embed_job.py")))["write_recipe"]
    recipe = write(tmp_path, encoder_directory)
    with pytest.raises(DataInvalid, match="--stored-only: there is nothing to compare"):
        measured(recipe, tmp_path / "runs", stored_only=True)
    build_bundle(tmp_path / "store" / "toy-embed" / "1", task="embed")
    further = {"store": tmp_path / "store", "students": ("toy-embed@1",), "stored_only": True}
    found = measured(recipe, tmp_path / "runs", **further)
    (point,) = found.points
    assert point.runs
    assert point.us_alone is not None


def test_pairs_are_judged_and_run_as_pairs(
    make_recipe: Callable[..., Path], build_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    write = runpy.run_path(str(Path(__file__).with_name("test_pairs_job.py")))["write_pairs"]
    files = {role: write(tmp_path / f"{role}.jsonl", 300, seed=seed) for seed, role in enumerate(("train", "test"))}
    recipe = make_recipe(
        data={**files, "dev": {"cut": 0.1}, "calibration": {"cut": 0.25}, "gate": {"cut": 0.1}, "parts": "first-text"}
    )
    ground = ground_of(read_recipe(recipe), StepCache(tmp_path / "runs"), Reporter(io.StringIO()))
    assert (ground.paired, ground.labels, len(ground.texts[0])) == (True, ("no", "yes"), 2)
    bundle = load_bundle(build_bundle(tmp_path / "pairs", labels=ground.labels, pairs="joint"))
    judged = ground.judge(None)
    assert judged.teacher is None
    assert 0 <= judged.students(Student(bundle))[0].quality.value <= 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"dev": {"cut": 0.2}}}, "their dev splits hold different rows"),
        ({"task": "embed"}, "one is of task classify, the other of task embed"),
    ],
)
def test_recipes_must_stand_on_the_same_rows(
    refreshed: Path, tmp_path: Path, changes: dict, says: str, encoder_directory: Path
) -> None:
    original = refreshed / "recipe.yaml"
    if "task" in changes:
        other = runpy.run_path(str(Path(__file__).with_name("test_embed_job.py")))["write_recipe"](
            tmp_path, encoder_directory
        )
    else:
        document = yaml.safe_load(original.read_text())
        other = variant(original, tmp_path / "other.yaml", name="other", data={**document["data"], **changes["data"]})
    result = run([original, other, "--runs", tmp_path / "runs", "--out", tmp_path / "out"])
    assert isinstance(result.exception, RecipeInvalid)
    assert says in str(result.exception)
    assert re.search("toy-intent and other|recipe.yaml and recipe.yaml", str(result.exception))


def test_recipes_must_have_the_same_labels(refreshed: Path, make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    other = make_recipe(name="other")
    for file in (tmp_path / "data").iterdir():
        file.write_text(file.read_text().replace('"refund"', '"repayment"'))
    result = run([refreshed / "recipe.yaml", other, "--runs", tmp_path / "runs", "--out", tmp_path / "out"])
    assert isinstance(result.exception, RecipeInvalid)
    assert "toy-intent and other: their labels differ: only one of them has 're" in str(result.exception)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"task": "embed", "name": "toy-other"}, "its task is embed, not classify"),
        ({"name": "toy-other"}, "its labels are not those of the recipes"),
        (
            {"name": "toy-other", "labels": ("lost_card", "refund", "transfer"), "pairs": "joint"},
            "it takes pairs, and the dev rows are single texts",
        ),
    ],
)
def test_a_student_must_fit_the_recipes(
    refreshed: Path, tmp_path: Path, build_bundle: Callable[..., Path], spec: dict, says: str
) -> None:
    build_bundle(tmp_path / "store" / spec["name"] / "1", **spec)
    with pytest.raises(DataInvalid, match=f"student toy-other@1: {says}"):
        measured(refreshed / "recipe.yaml", tmp_path / "runs", store=tmp_path / "store", students=("toy-other@1",))


def test_a_student_that_may_know_the_dev_rows_is_named(
    compared: tuple[Path, Result], refreshed: Path, tmp_path: Path, build_bundle: Callable[..., Path]
) -> None:
    bundle = build_bundle(tmp_path / "stranger", name="stranger", labels=("lost_card", "refund", "transfer"))
    found = measured(refreshed / "recipe.yaml", compared[0] / "runs", students=(str(bundle),))
    assert "stranger in stranger: its provenance does not name these dev rows: it may have learnt from them." in (
        found.notes
    )
    stranger = next(each for each in found.points if each.name == "stranger in stranger")
    assert stranger.retention is None


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (("--set", "seed=1"), RecipeInvalid, "must be FILE:KEY.KEY=VALUE, FILE one of recipe"),
        (("--set", "other:seed=1"), RecipeInvalid, "must be FILE:KEY.KEY=VALUE, FILE one of recipe"),
        (("--backend", "abacus"), BackendRefused, "--backend"),
        (("--student", "nobody"), StoreError, "nobody"),
        (("--teacher", "nobody"), StoreError, "nobody"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    refreshed: Path, tmp_path: Path, options: tuple[str, str], error: type[Exception], says: str
) -> None:
    arguments = ["--runs", tmp_path / "runs", "--out", tmp_path / "out", "--store", refreshed / "store", *options]
    result = run([refreshed / "recipe.yaml", *arguments])
    assert isinstance(result.exception, error)
    assert says in str(result.exception)
    assert not (tmp_path / "runs" / "teacher").exists()


def test_an_override_is_for_its_own_recipe(refreshed: Path, tmp_path: Path) -> None:
    other = variant(refreshed / "recipe.yaml", tmp_path / "other.yaml", name="other")
    override = ("--set", "other:data.dev.cut=0.2")
    result = run([refreshed / "recipe.yaml", other, *override, "--runs", tmp_path / "runs", "--out", tmp_path / "out"])
    assert isinstance(result.exception, OfflineError)
    assert "recipes toy-intent and other: their dev splits hold different rows" in str(result.exception)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(refreshed: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    result = run([refreshed / "recipe.yaml", "--runs", tmp_path / "runs", "--out", tmp_path / "out"])
    assert isinstance(result.exception, WorkFailed)
    assert "--out" in str(result.exception)
    assert not (tmp_path / "runs").exists()


def test_recipes_of_one_name_are_told_apart(refreshed: Path) -> None:
    recipe = read_recipe(refreshed / "recipe.yaml")
    other = recipe.model_copy(update={"name": "other"})
    assert unique_names([("a.yaml", recipe), ("b.yaml", other)]) == ("toy-intent", "other")
    named = unique_names([("a.yaml", recipe), ("b.yaml", recipe), ("b.yaml", recipe)])
    assert named == ("toy-intent (a.yaml)", "toy-intent (b.yaml) 1", "toy-intent (b.yaml) 2")


def test_where_nothing_can_be_made_the_page_says_so(
    refreshed: Path, tmp_path: Path, classifier_directory: Path
) -> None:
    teacher = {"from": str(classifier_directory)}
    broken = variant(refreshed / "recipe.yaml", tmp_path / "broken.yaml", name="toy-broken", teacher=teacher)
    result = run([broken, "--runs", tmp_path / "runs", "--out", tmp_path / "out"])
    assert result.exit_code == 2
    assert "nothing was timed" in result.stdout
    assert "Worth shipping, cheapest first: none." in result.stdout
    assert (tmp_path / "out" / "compare.png").is_file()


def test_the_verb_is_declared() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target = project["entry-points"]["understudy.commands"]["compare"]
    assert LazyVerb(target, "").function() is command
