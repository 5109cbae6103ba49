"""The classify job on pairs of texts: two files of them, one sequence each, served as pairs."""

import io
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from models.errors import OfflineError, RecipeInvalid
from models.recipe.classify import ClassifyRecipe, classify_recipe
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.certify import Wish, certify
from models.refresh.job import refresh, start
from models.refresh.progress import Reporter
from models.refresh.same_rows import same_splits
from models.refresh.training import make_teacher, make_transfer_texts
from service.bundle.load import Bundle
from service.runtime.student import Student
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

WORDS = ["card", "money", "sent", "where", "is", "my", "the", "late", "again", "good", "bad", "film", "wait"]


def write_pairs(path: Path, count: int, *, seed: int, labels: tuple[str, str] = ("no", "yes")) -> str:
    """Pairs whose second text says `refund` where the label is the second one, and `transfer` elsewhere."""
    chance = random.Random(seed)
    lines: dict[str, dict[str, str]] = {}
    while len(lines) < count:
        label = chance.randrange(2)
        first, second = (chance.sample(WORDS, 3 + seed % 3) for _ in range(2))
        row = {"text": " ".join(first), "text_pair": " ".join([*second, ("transfer", "refund")[label]])}
        lines[json.dumps(row)] = {**row, "label": labels[label]}
    path.write_text("".join(json.dumps(row) + "\n" for row in lines.values()))
    return str(path)


def write_into(folder: Path, recipe_in) -> Path:
    second = write_pairs(folder / "second.jsonl", 300, seed=1, labels=("different", "same"))
    tests = [write_pairs(folder / f"test{seed}.jsonl", 100, seed=seed) for seed in (2, 3)]
    third = write_pairs(folder / "test4.jsonl", 60, seed=4, labels=("different", "same"))
    return recipe_in(
        folder,
        data={
            "train": [
                {"file": write_pairs(folder / "first.jsonl", 600, seed=0)},
                {"file": second, "labels": {"different": "no", "same": "yes"}, "licence": "another"},
            ],
            "test": [
                *({"file": file} for file in tests),
                {"file": third, "labels": {"different": "no", "same": "yes"}},
            ],
            "dev": {"cut": 0.1},
            "calibration": {"cut": 0.25},
            "gate": {"cut": 0.1},
            "parts": "first-text",
        },
        distil={"objectives": [{"soft_labels": {}}], "augment": {"rows": 2}, "epochs": 6, "learning_rate": 0.01},
    )


@pytest.fixture
def recipe(recipe_in, tmp_path: Path) -> Path:
    return write_into(tmp_path, recipe_in)


@pytest.fixture(scope="module")
def made(recipe_in, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml, its files and store/, in which version 1 is certified on ONNX Runtime; read only."""
    folder = tmp_path_factory.mktemp("made")
    said, cache = Reporter(io.StringIO()), StepCache(folder / "runs")
    refresh(read_recipe(write_into(folder, recipe_in)), store=folder / "store", cache=cache, reporter=said)
    return folder


def opened(made: Path, version: int = 1) -> Bundle:
    return Store(made / "store").open("toy-intent", version)


def test_pairs_become_a_student_of_pairs(made: Path):
    bundle = opened(made)
    manifest = bundle.manifest
    assert manifest.pairs == "joint"
    assert manifest.labels == ("no", "yes")
    roles = [source.role for source in manifest.provenance.data]
    assert roles[:5] == ["train 1", "train 2", "test 1", "test 2", "test 3"]
    assert manifest.stages[0].inputs["token_type_ids"] == "token_type_ids"
    assert "token_type_ids" not in manifest.stages[1].inputs
    assert "pairs of texts as one sequence" in manifest.certificates[0].input_policy
    student = Student(bundle)
    pairs = [("where is my card", "the late refund"), ("the late refund", "where is my transfer")]
    answers = [outcome.raw.argmax() for outcome in student.run(student.encoder.encode(pairs), student.policy("never"))]
    assert [manifest.labels[answer] for answer in answers] == ["yes", "no"]


def test_a_student_of_pairs_may_train_for_int8_and_still_tells_the_second_text(recipe_in, tmp_path: Path):
    qat = {"int8": "qat", "rows": 64, "qat_epochs": 0.5}
    path, output = write_into(tmp_path, recipe_in), io.StringIO()
    changes = {"compress": [qat], "publish": {"alias": "canary", "precisions": ["int8"]}}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    cache = StepCache(tmp_path / "runs")
    published = refresh(read_recipe(path), store=tmp_path / "store", cache=cache, reporter=Reporter(output))
    student = Student(Store(tmp_path / "store").open("toy-intent", published.version))
    assert "compress: int8 trained" in output.getvalue()
    pairs = [("where is my card", "the late refund"), ("the late refund", "where is my transfer")]
    answers = [outcome.raw.argmax() for outcome in student.run(student.encoder.encode(pairs), student.policy("never"))]
    assert answers == [1, 0]


def test_a_student_of_pairs_may_learn_from_new_pairs_and_a_pool(recipe_in, tmp_path: Path):
    path = write_into(tmp_path, recipe_in)
    document = yaml.safe_load(path.read_text())
    (tmp_path / "pool.jsonl").write_text('{"text": "where is the late refund"}\n{"text": "wait my film transfer"}\n')
    document["data"]["unlabelled"] = [str(tmp_path / "pool.jsonl")]
    document["distil"]["augment"] = {"rows": 1, "partners": 2}
    document["distil"]["epochs"] = 1
    path.write_text(yaml.safe_dump(document))
    run = start(read_recipe(path), StepCache(tmp_path / "runs"), Reporter(io.StringIO()))
    texts, gold = make_transfer_texts(run, make_teacher(run), lambda teacher: {})
    known = {(row.text, row.text_pair) for row in run.splits.train}
    new = [text for text, label in zip(texts, gold, strict=True) if label < 0]
    assert all(isinstance(text, tuple) for text in texts)
    assert not known & set(new)
    assert any("wait my film transfer" in pair for pair in new)
    assert len(new) > 2 * len(known)


def test_a_pool_beside_pairs_is_refused_where_nothing_pairs_its_texts(recipe: Path, tmp_path: Path):
    (tmp_path / "pool.jsonl").write_text('{"text": "where is the late refund"}\n')
    document = yaml.safe_load(recipe.read_text())
    document["data"]["unlabelled"] = [str(tmp_path / "pool.jsonl")]
    recipe.write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeInvalid, match=r"with pairs, data\.unlabelled needs distil\.augment\.partners"):
        start(read_recipe(recipe), StepCache(tmp_path / "runs"), Reporter(io.StringIO()))


def test_the_card_measures_each_test_file_and_says_how(made: Path):
    card = (opened(made).path / "card.md").read_text()
    table = card[card.index("## By test file") :]
    for number, rows in ((2, 100), (3, 100), (4, 60)):
        assert f"| {made.name}/test{number}.jsonl | {rows} | teacher |" in table
        assert f"| {made.name}/test{number}.jsonl | {rows} | full depth |" in table
        assert f"| {made.name}/test{number}.jsonl | {rows} | risk 0.1 |" in table
    measured = [line for line in card.splitlines() if line.startswith("understudy evaluate")]
    # the third file's labels have other names, which the command would refuse
    assert measured == [f"understudy evaluate toy-intent {made}/test{number}.jsonl" for number in (2, 3)]


def test_a_student_of_several_files_is_certified_for_another_backend(made: Path, tmp_path: Path, louder: str):
    store = shutil.copytree(made / "store", tmp_path / "store")
    published = certify(Wish("toy-intent@1", louder, store), Reporter(io.StringIO()))
    after = Store(store).open("toy-intent", published.version)
    assert published.version == 2
    assert after.manifest.certificates[-1].backend == louder
    assert after.manifest.certificates[-1].population_digest == opened(made).manifest.certificates[0].population_digest
    assert Student(after, backend=louder).policy().risk_applied is not None


def changed(made: Path, tmp_path: Path, change: Callable[[dict], None]) -> ClassifyRecipe:
    document = yaml.safe_load((made / "recipe.yaml").read_text())
    change(document["data"])
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(document))
    return classify_recipe(read_recipe(tmp_path / "other.yaml"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data["test"].pop(), r"data\.test 3: the version was made from made\d+/test4\.jsonl too"),
        (lambda data: data.update(test=data["test"][0]["file"]), r"data\.test: .*, the version was made from no such"),
        (lambda data: data["train"].reverse(), r"data\.train 1: .*/second\.jsonl: its sha256 is "),
        (lambda data: data.update(parts="none"), r"data\.parts: none, the version was made with first-text"),
        (lambda data: data.update(dev=[data["test"].pop()]), r"data\.dev: .*/test4\.jsonl, .* with a cut of 0\.1"),
    ],
    ids=["one file less", "one file of several", "another order", "cut otherwise", "dev of its own"],
)
def test_other_files_than_a_version_was_made_from_are_refused(made: Path, tmp_path: Path, change, says: str):
    with pytest.raises(OfflineError, match=says):
        same_splits(changed(made, tmp_path, change), opened(made).manifest)


def test_dev_files_are_told_by_their_bytes_not_their_places(made: Path, tmp_path: Path):
    """A provenance holds them as they were written, `${NAME}` and all."""
    manifest = opened(made).manifest
    written = manifest.provenance.recipe
    data = {**written["data"], "dev": [{"file": "${SOMEWHERE}/dev1.jsonl"}, {"file": "${SOMEWHERE}/dev2.jsonl"}]}
    provenance = manifest.provenance.model_copy(update={"recipe": {**written, "data": data}})
    dev = [{"file": write_pairs(tmp_path / f"dev{seed}.jsonl", 30, seed=seed)} for seed in (5, 6)]
    recipe = changed(made, tmp_path, lambda data: data.update(dev=dev))
    # what it says is of the next check: this version has no dev file
    with pytest.raises(OfflineError, match=r"data\.dev 1: .*/dev5\.jsonl: .* made from no such file"):
        same_splits(recipe, manifest.model_copy(update={"provenance": provenance}))


def test_the_files_may_lie_elsewhere(made: Path, tmp_path: Path):
    for file in made.glob("*.jsonl"):
        shutil.copy(file, tmp_path / file.name)
    document = (made / "recipe.yaml").read_text().replace(str(made), str(tmp_path))
    (tmp_path / "moved.yaml").write_text(document)
    splits = same_splits(classify_recipe(read_recipe(tmp_path / "moved.yaml")), opened(made).manifest)
    assert len(splits.test) == 260


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"student": {"architecture": "ngram", "max_tokens": 16}}, "student.architecture ngram takes single texts"),
        ({"student": {"local_features": 8, "max_tokens": 16}}, "student.local_features is for single texts"),
    ],
)
def test_what_cannot_take_pairs_is_refused(recipe: Path, tmp_path: Path, changes: dict, says: str):
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **changes}))
    with pytest.raises(RecipeInvalid, match=says) as caught:
        start(read_recipe(recipe), StepCache(tmp_path / "runs"), Reporter(io.StringIO()))
    assert re.search(r"first\.jsonl:\d+: text_pair: ", str(caught.value))
