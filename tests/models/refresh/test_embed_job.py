"""The whole job of an embedder on toy data: a recipe in, a served embedder out, nothing when something is wrong."""

import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from models.errors import AliasKept, DataInvalid, GateFailed, OfflineError, RecipeInvalid, TeacherInvalid
from models.evaluate.embedding import vectors_of
from models.recipe.embed import EmbedRecipe
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.cards import Target, put_on_card
from models.refresh.embed_training import check_start, embed_teacher, load_embedder, unit_vectors
from models.refresh.jobs import refresh
from models.refresh.progress import Reporter
from models.refresh.same_version import without_card
from models.report.frontier import Comparison, Point
from models.report.frontier_section import PICTURE, frontier_of
from models.report.seeds import seeds_told
from service.bundle.load import Bundle
from service.errors import SpaceMismatch
from service.runtime.student import Student
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

WORDS = "card lost stolen money sent where is my the refund wait late transfer failed again good bad film".split()  # noqa: SIM905
MakeRecipe = Callable[..., Path]
Change = Callable[[dict], None]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data(folder: Path) -> None:
    """Texts of two to eight words; pairs scored by how many words they share; texts labelled by their first word."""
    folder.mkdir(exist_ok=True)
    chance = random.Random(0)
    texts = [" ".join(chance.sample(WORDS, chance.randint(2, 8))) for _ in range(400)]
    write_lines(
        folder / "texts.jsonl", [{"text": text, "source": "odd" if at % 4 else "even"} for at, text in enumerate(texts)]
    )
    for name in ("dev", "test"):
        rows = []
        for _ in range(60):
            shared = chance.randint(0, 5)
            words = chance.sample(WORDS, 10)
            rows.append({"text": " ".join(words[:5]), "text_pair": " ".join(words[5 - shared : 10 - shared])})
            rows[-1]["score"] = shared
        write_lines(folder / f"{name}.jsonl", rows)
    for name, count in (("near_fit", 60), ("near_test", 30)):
        starts = [chance.choice(["lost card", "bad film"]) for _ in range(count)]
        rows = [{"text": f"{start} {' '.join(chance.sample(WORDS, 3))}", "label": start} for start in starts]
        write_lines(folder / f"{name}.jsonl", rows)


def document_of(folder: Path, teacher: Path) -> dict:
    return {
        "schema": 1,
        "name": "toy-embed",
        "task": "embed",
        "data": {
            "texts": [str(folder / "texts.jsonl")],
            "dev": str(folder / "dev.jsonl"),
            "test": str(folder / "test.jsonl"),
            "gate": {"cut": 0.2},
            "joined": 0.1,
            "join_at_most": 3,
            "neighbours": {"fit": str(folder / "near_fit.jsonl"), "test": str(folder / "near_test.jsonl")},
            "licence": "made here",
        },
        "teacher": {"from": str(teacher)},
        "student": {
            "layers": 2,
            "hidden": 16,
            "heads": 1,
            "attention_width": 8,
            "feed_forward": 24,
            "teacher_layers": [0, 1],
            "max_tokens": 24,
        },
        "distil": {
            "objectives": [{"cosine": {}}, {"similarities": {}}],
            "prefixes": [{"dimensions": 8, "weight": 0.5}, {"dimensions": 4, "weight": 0.3}],
            "epochs": 8,
            "batch_items": 16,
            "learning_rate": 0.003,
        },
        "compress": [{"int8": "static", "rows": 64}],
        "gates": {"cosine": 0.8, "overlap": 0.3, "retention": 0.7, "bytes": 1_000_000},
        "publish": {"alias": "canary"},
    }


def write_recipe(folder: Path, teacher: Path, change: Change = lambda document: None) -> Path:
    write_data(folder / "data")
    document = document_of(folder / "data", teacher)
    change(document)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


class Job:
    """A refresh of one recipe in one place."""

    def __init__(self, recipe: Path, place: Path) -> None:
        self.recipe, self.store, self.runs = recipe, place / "store", place / "runs"

    def run(self, *, seeds: int = 1, resume: bool = False):
        cache = StepCache(self.runs, resume=resume)
        said = io.StringIO()
        recipe = read_recipe(self.recipe)
        published = refresh(recipe, store=self.store, cache=cache, seeds=seeds, reporter=Reporter(said))
        return published, cache, said.getvalue()

    def rewrite(self, change: Change) -> None:
        """Change the recipe where it lies."""
        document = yaml.safe_load(self.recipe.read_text())
        change(document)
        self.recipe.write_text(yaml.safe_dump(document), encoding="utf-8")

    def open(self, version: int = 1) -> Bundle:
        return Store(self.store).open("toy-embed", version)

    def made(self) -> set[str]:
        """The steps of which something was begun."""
        return {entry.name for entry in self.runs.iterdir()} if self.runs.exists() else set()


def made_now(cache: StepCache) -> list[str]:
    return [receipt.step for receipt in cache.receipts if not receipt.cached]


@pytest.fixture
def make_recipe(tmp_path: Path, encoder_directory: Path) -> MakeRecipe:
    """`make_recipe(change)`: data and recipe, the recipe's document changed first."""
    return lambda change=lambda document: None: write_recipe(tmp_path, encoder_directory, change)


@pytest.fixture
def job(make_recipe: MakeRecipe, tmp_path: Path) -> Job:
    return Job(make_recipe(), tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, encoder_directory: Path):
    """A job that has run with two seeds, and what it said; read only (copy it to go on)."""
    folder = tmp_path_factory.mktemp("finished")
    job = Job(write_recipe(folder, encoder_directory), folder)
    published, _, said = job.run(seeds=2)
    assert (published.name, published.version, published.alias, published.new) == ("toy-embed", 1, "canary", True)
    return job, said


@pytest.fixture
def again(finished: tuple[Job, str], tmp_path: Path) -> Job:
    """The finished job in a place of its own, where a test may go on with it; its data stay where they are."""
    done, _ = finished
    shutil.copytree(done.runs, tmp_path / "runs")
    shutil.copytree(done.store, tmp_path / "store")
    shutil.copyfile(done.recipe, tmp_path / "recipe.yaml")
    return Job(tmp_path / "recipe.yaml", tmp_path)


@pytest.fixture(scope="module")
def student(finished: tuple[Job, str]) -> Student:
    return Student(finished[0].open())


def test_a_recipe_becomes_an_embedder_with_its_papers(finished: tuple[Job, str]) -> None:
    job, said = finished
    manifest = job.open().manifest
    assert (manifest.task, manifest.embedding_dimensions, manifest.max_tokens) == ("embed", 16, 24)
    assert set(manifest.precisions) == {"fp32", "int8"}
    assert manifest.space_id is not None
    assert re.fullmatch(r"toy-embed-[0-9a-f]{16}", manifest.space_id)
    assert [leave.depth for leave in manifest.exits] == [1.0]
    quality = manifest.quality
    assert quality is not None
    assert (quality.split, quality.rows, list(quality.by_precision)) == ("test", 60, ["int8", "fp32"])
    metrics = quality.by_precision["int8"][0].metrics
    assert set(metrics) == {
        "spearman",
        "retention",
        "spearman_first_8",
        "spearman_first_4",
        "spearman_int8",
        "spearman_binary",
        "cosine_teacher",
    }
    assert metrics["retention"] == pytest.approx(metrics["spearman"] / quality.teacher["spearman"])
    roles = [source.role for source in manifest.provenance.data]
    assert roles == ["train", "dev", "test", "neighbours, fit", "neighbours, test"]
    assert str(job.recipe.parent) not in json.dumps([source.name for source in manifest.provenance.data])
    for words in ("data: train ", "compress: ", "gate: bytes", "gate: company, int8", "gate: retention on dev, fp32"):
        assert words in said
    assert "FAILED" not in said


def test_other_seeds_stand_in_the_card(finished: tuple[Job, str]) -> None:
    job, _ = finished
    card = (job.open().path / "card.md").read_text()
    section = card.split("## Other seeds")[1].split("##")[0]
    assert len(re.findall(r"^\| [01] \|", section, re.MULTILINE)) == 2
    assert "--seeds 2" in card
    assert "nan" not in card


def test_what_is_published_computes_what_was_trained(finished: tuple[Job, str]) -> None:
    """The fp32 graph against the torch student of the cached step, but for the rounded token table."""
    job, _ = finished
    student = Student(job.open(), precision="fp32")
    space = student.manifest.space_id
    assert space is not None
    trained = load_embedder(job.runs / "embedder" / space.removeprefix("toy-embed-"))
    assert json.loads(trained.trimmed.tokenizer_json) == json.loads(student.bundle.tokenizer_path.read_bytes())
    import torch

    item = student.encoder.encode(["where is my lost card"])[0]
    ids = torch.tensor(item.input_ids[None], dtype=torch.int64)
    with torch.no_grad():
        wanted = trained.student(ids, torch.ones_like(ids)).exits[-1].numpy()
    found = student.all_exits([item])[-1]
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_the_students_space_is_the_teachers_turned(finished: tuple[Job, str], student: Student) -> None:
    job, _ = finished
    recipe = read_recipe(job.recipe)
    assert isinstance(recipe, EmbedRecipe)
    assert student.manifest.space_id is not None
    trained = load_embedder(job.runs / "embedder" / student.manifest.space_id.removeprefix("toy-embed-"))
    texts = ["my money is late", "a stolen card again", "good film"]
    theirs = unit_vectors(embed_teacher(recipe), texts)
    ours = vectors_of(student, texts)
    assert (ours * (theirs @ trained.turned.T)).sum(1).min() > 0.8
    assert np.abs((ours * theirs).sum(1)).max() < 0.8


ODD_TEXTS = [
    "",
    " ",
    "card",
    "card " * 10_000,
    "x" * 10_000,
    "😀 👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "где моя карта カードはどこ أين بطاقتي card",
    "\x00\x01\x1f\x7f\u200b\u202e\ufeff",
    "a\u0301\u0302\u0303" * 200,
    "[CLS] [SEP] [PAD] [MASK]",
]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text[:12]))
def test_any_text_has_a_vector_that_no_company_changes(finished: tuple[Job, str], text: str, precision: str) -> None:
    student = Student(finished[0].open(), precision=precision)
    alone = vectors_of(student, [text])[0]
    assert np.isfinite(alone).all()
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-5)
    company = vectors_of(student, ["my lost card", text, "film " * 40, ""])[1]
    np.testing.assert_allclose(company, alone, atol=1e-4 if precision == "fp32" else 1e-3)


def test_a_text_longer_than_the_student_reads_is_its_beginning(student: Student) -> None:
    cut, whole = vectors_of(student, ["card " * 22, "card " * 22 + "money film refund"])
    np.testing.assert_allclose(cut, whole, atol=1e-4)


def test_a_second_run_makes_nothing_again(again: Job) -> None:
    published, cache, said = again.run(seeds=2)
    assert (published.version, published.new) == (1, False)
    assert made_now(cache) == []
    assert "toy-embed@1 has these bytes already" in said


def test_more_seeds_of_a_published_version_change_its_card_only(again: Job, tmp_path: Path) -> None:
    """Published with one seed and compared, then refreshed with two: the same version, whose card tells of two."""
    again.store = tmp_path / "other-store"
    published, cache, _ = again.run(seeds=1)
    assert (published.version, published.new) == (1, True)
    assert made_now(cache) == ["version"], "students are those of the run of two"
    target = Target(again.open(), "toy-embed@1", by_recipe=False)
    found = Comparison("embed", "Spearman", "the dev pairs", "a processor", (Point("toy-embed@1"),), ("On dev.",))
    put_on_card(target, found, picture=b"a picture", command="understudy compare")
    before = again.open()
    card = (before.path / "card.md").read_text()
    assert seeds_told(card, "toy-embed") == 1
    published, _, said = again.run(seeds=2)
    assert (published.version, published.new) == (1, False)
    assert "publish: toy-embed@1: its card now tells of 2 seeds" in said
    after = again.open()
    assert without_card(after.manifest) == without_card(before.manifest)
    Student(after).check_golden()
    told = (after.path / "card.md").read_text()
    assert "## Other seeds" in told
    assert seeds_told(told, "toy-embed") == 2
    assert frontier_of(told) == frontier_of(card)
    assert frontier_of(card) is not None
    assert (after.path / PICTURE).read_bytes() == b"a picture"
    assert PICTURE in after.manifest.files
    written = after.manifest
    for seeds in (1, 2):
        _, _, said = again.run(seeds=seeds)
        assert "its card" not in said
        assert again.open().manifest == written


def test_another_student_is_of_another_space_and_leaves_the_alias_where_it_is(again: Job) -> None:
    """An hour of training is not lost for it, what is in service still compares, and how to move it is said."""
    again.rewrite(lambda document: document.update(seed=5))
    move = f"understudy models alias toy-embed@2 canary --allow-new-space --store {again.store}"
    for _ in range(2):
        with pytest.raises(AliasKept) as kept:
            again.run()
        assert str(kept.value).startswith("toy-embed@2 is published, but toy-embed@canary stays at version 1")
        assert str(kept.value).endswith(move)
    store = Store(again.store)
    assert store.versions("toy-embed") == [1, 2]
    assert store.aliases("toy-embed").aliases["canary"].version == 1
    done = understudy(again)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.splitlines()[-1] == f"understudy: {kept.value}"
    assert "embedder: " in done.stderr, "what each step cost is told all the same"
    subprocess.run([sys.executable, "-m", "service.cli", *shlex.split(move)[1:]], check=True, env=quiet())
    published, cache, _ = again.run()
    assert (published.version, published.alias, published.new) == (2, "canary", False)
    assert "vectors" not in made_now(cache)
    first, second = (again.open(version).manifest.space_id for version in (1, 2))
    assert first != second


def test_an_alias_whose_version_cannot_be_read_is_told_of_as_such(again: Job) -> None:
    (again.store / "toy-embed" / "1" / "manifest.json").write_text("{")
    again.rewrite(lambda document: document.update(seed=5))
    with pytest.raises(SpaceMismatch, match="from embedding space 'unreadable, version 1'"):
        again.run()
    assert Store(again.store).versions("toy-embed") == [1]


def test_what_a_version_says_of_itself_is_of_its_own_recipe(again: Job) -> None:
    """A changed gate or description trains nothing, yet the manifest and card name the recipe as it now is."""
    again.rewrite(lambda document: document.update(description="Of cards.", gates={**document["gates"], "cosine": 0.7}))
    published, cache, _ = again.run(seeds=2)
    assert made_now(cache) == ["gates", "version"]
    bundle = again.open(published.version)
    assert published.version == 2
    assert bundle.manifest.provenance.recipe_sha256 == read_recipe(again.recipe).digest()
    assert bundle.manifest.provenance.recipe["gates"]["cosine"] == 0.7
    card = (bundle.path / "card.md").read_text()
    assert "Of cards." in card
    assert read_recipe(again.recipe).digest() in card


def test_other_rows_of_the_comparison_are_measured(job: Job, finished: tuple[Job, str], tmp_path: Path) -> None:
    """Rows that only the test step looks at change no training, but the version."""
    done, _ = finished
    shutil.copytree(done.runs, tmp_path / "runs")
    near = tmp_path / "data" / "near_test.jsonl"
    near.write_text("".join(near.read_text().splitlines(keepends=True)[:20]))
    _, cache, _ = job.run(seeds=2)
    assert made_now(cache) == ["version"]
    assert "20 test rows" in (job.open().path / "card.md").read_text()


def test_a_trimmed_vocabulary_is_packed_measured_and_said(again: Job) -> None:
    """The student that was trained stays; its tokenizer, graphs and golden texts are those of fewer tokens."""
    vocabulary = {"vocabulary": "trimmed", "min_count": 100_000}
    again.rewrite(lambda document: document.update(compress=[vocabulary, *document["compress"]]))
    again.rewrite(lambda document: document.update(gates={"cosine": 0.0, "overlap": 0.0, "retention": 0.0}))
    again.rewrite(lambda document: document["publish"].update(alias="next"))
    published, cache, said = again.run()
    assert "embedder" not in made_now(cache)
    before, after = again.open(1), again.open(published.version)
    sizes = [len(json.loads(bundle.tokenizer_path.read_text())["model"]["vocab"]) for bundle in (before, after)]
    assert sizes[1] < sizes[0]
    line = f"vocabulary, tokens used 100000 times or more, {sizes[0]} -> {sizes[1]}"
    assert f"compress: {line}" in said
    assert line in (after.path / "card.md").read_text()
    assert after.manifest.provenance.recipe["compress"][0] == vocabulary
    assert after.manifest.space_id == f"{before.manifest.space_id}-t100000"
    for precision in ("fp32", "int8"):
        student = Student(after, precision=precision)
        student.check_golden()
        (rare,) = student.all_exits(student.encoder.encode(["猫 qqq zebra"]))
        assert np.isfinite(rare).all()


def test_one_precision_and_no_neighbours(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def change(document: dict) -> None:
        del document["data"]["neighbours"]
        document["compress"] = []
        document["publish"] = {"alias": "canary", "precisions": ["fp32"], "default_precision": "fp32"}
        document["distil"] |= {"prefixes": [], "rotate": False, "average": "none", "epochs": 4}
        document["student"] |= {"vocabulary": "full", "token_width": 8}

    job = Job(make_recipe(change), tmp_path)
    job.run()
    bundle = job.open()
    assert set(bundle.manifest.precisions) == {"fp32"}
    assert "Labels by the ten nearest" not in (bundle.path / "card.md").read_text()
    space = bundle.manifest.space_id
    assert space is not None
    trained = load_embedder(job.runs / "embedder" / space.removeprefix("toy-embed-"))
    np.testing.assert_array_equal(trained.turned, np.eye(16))


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        ({"bytes": 10}, "bytes: "),
        ({"cosine": 1.0}, "cosine to the teacher, int8: "),
        ({"overlap": 1.0}, "neighbours shared with the teacher, int8: "),
    ],
)
def test_a_failing_gate_publishes_nothing(again: Job, gates: dict, says: str) -> None:
    shutil.rmtree(again.store)
    again.rewrite(lambda document: document["gates"].update(gates))
    with pytest.raises(GateFailed, match=f"nothing was published: {says}"):
        again.run()
    assert not again.store.exists() or Store(again.store).students() == []


def test_a_failing_gate_is_status_3_and_a_verdict_for_each_gate(again: Job) -> None:
    shutil.rmtree(again.store)
    done = understudy(again, "--set", "gates.retention=1.0", "--set", "gates.bytes=10")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "gate: bytes: " in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "nothing was published: bytes: " in last
    assert not again.store.exists() or Store(again.store).students() == []


def held_out_twice(document: dict) -> None:
    document["data"]["test"] = document["data"]["dev"]


def learned_and_tested(document: dict) -> None:
    document["data"]["texts"].append(document["data"]["test"])


def compared_and_learned(document: dict) -> None:
    document["data"]["neighbours"]["test"] = document["data"]["texts"][0]
    text = Path(document["data"]["texts"][0])
    write_lines(text, [{**json.loads(line), "label": "a"} for line in text.read_text().splitlines()])


def no_such_layer(document: dict) -> None:
    document["student"]["teacher_layers"] = [0, 7]


def more_heads(document: dict) -> None:
    document["student"] |= {"heads": 4, "attention_width": 32}


def other_heads(document: dict) -> None:
    document["student"] |= {"heads": 4, "attention_width": 16}


def wider(document: dict) -> None:
    document["student"] |= {"hidden": 32, "heads": 4, "attention_width": 32}


def more_neurons(document: dict) -> None:
    document["student"]["feed_forward"] = 64


def longer_texts(document: dict) -> None:
    document["student"]["max_tokens"] = 512


def whole_prefix(document: dict) -> None:
    document["distil"]["prefixes"] = [{"dimensions": 16}]


def endless_prefix(document: dict) -> None:
    document["distil"] |= {"prefixes": [{"dimensions": 9999}], "rotate": False}


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (held_out_twice, RecipeInvalid, r"data/dev.jsonl is both dev and test"),
        (learned_and_tested, RecipeInvalid, r"data/test.jsonl is both train and test"),
        (compared_and_learned, RecipeInvalid, r"data/texts.jsonl is both train and neighbours, test"),
        (no_such_layer, RecipeInvalid, r"student.teacher_layers: the teacher has no layer 7"),
        (more_heads, RecipeInvalid, r"student.heads: 4 of width 8 from the teacher's 2 of width 8"),
        (other_heads, RecipeInvalid, r"student.heads: 4 of width 4 from the teacher's 2 of width 8"),
        (wider, RecipeInvalid, r"student.hidden: 32 with the teacher's embeddings of width 16"),
        (more_neurons, RecipeInvalid, r"student.feed_forward: more than the teacher's 32"),
        (longer_texts, RecipeInvalid, r"student.max_tokens: the teacher has 32 positions"),
        (whole_prefix, RecipeInvalid, r"distil.prefixes: 16 is not below the embedding's 16 dimensions"),
        (endless_prefix, RecipeInvalid, r"distil.prefixes: 9999 is not below the embedding's 16 dimensions"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    make_recipe: MakeRecipe, tmp_path: Path, change: Change, kind: type[OfflineError], says: str
) -> None:
    job = Job(make_recipe(change), tmp_path)
    with pytest.raises(kind, match=says) as caught:
        job.run()
    assert "\n" not in str(caught.value)
    assert job.made() == set()


@pytest.fixture
def teacher_with(tmp_path: Path, encoder_directory: Path) -> Callable[[str, float], Path]:
    """`teacher_with(word, value)`: the encoder, the word's embedding filled with a value."""

    def made(word: str, value: float) -> Path:
        folder = shutil.copytree(encoder_directory, tmp_path / "teacher")
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        weights = load_file(folder / "model.safetensors")
        weights["embeddings.word_embeddings.weight"][vocabulary[word]] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return made


def test_a_teacher_that_gives_nan_is_refused_by_the_text(job: Job, teacher_with) -> None:
    job.rewrite(lambda document: document["teacher"].update({"from": str(teacher_with("stolen", float("nan")))}))
    with pytest.raises(TeacherInvalid, match=r"not finite, or zero, for the text '[a-z ]*stolen[a-z ]*'$"):
        job.run()
    assert "draft" not in job.made()
    assert not any((job.runs / "vectors").glob("*/done.json"))


def test_a_vector_without_direction_is_refused(encoder_directory: Path, make_recipe: MakeRecipe) -> None:
    recipe = read_recipe(make_recipe())
    assert isinstance(recipe, EmbedRecipe)
    teacher = embed_teacher(recipe)
    last = teacher.network.encoder.encoder.layer[-1].output.LayerNorm
    last.weight.data.zero_()
    last.bias.data.zero_()
    with pytest.raises(TeacherInvalid, match=r"for the text 'card'"):
        unit_vectors(teacher, ["card", "film"])


def test_a_sequence_classifier_gives_no_embedding(job: Job, classifier_directory: Path) -> None:
    job.rewrite(lambda document: document["teacher"].update({"from": str(classifier_directory)}))
    with pytest.raises(TeacherInvalid, match="gives no pooled embedding"):
        job.run()


def test_the_shape_check_leaves_the_teacher_as_it_is(make_recipe: MakeRecipe) -> None:
    recipe = read_recipe(make_recipe())
    assert isinstance(recipe, EmbedRecipe)
    teacher = embed_teacher(recipe)
    before = teacher.digest()
    check_start(recipe, teacher)
    assert teacher.digest() == before


def test_texts_that_are_all_held_out_are_refused(job: Job, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "data" / "dev.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "data" / "texts.jsonl", [{"text": row["text"]} for row in rows])
    with pytest.raises(DataInvalid, match=r"data.texts: 0 texts in train after the cut; at least 32"):
        job.run()


def command(job: Job, *more: str) -> list[str]:
    place = ["--store", str(job.store), "--runs", str(job.runs)]
    return [sys.executable, "-m", "service.cli", "refresh", str(job.recipe), *place, *more]


def quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def understudy(job: Job, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(job, *more), capture_output=True, text=True, env=quiet(), check=False)


def interrupted_at(job: Job, words: str, number: signal.Signals) -> int:
    """Start the verb, send it the signal as soon as it says `words`, and wait for its end."""
    process = subprocess.Popen(
        command(job),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=quiet(),
        # subtle: what a shell starts in the background ignores SIGINT, and so would its children
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            process.send_signal(number)
            break
    process.communicate()
    return process.returncode


@pytest.mark.parametrize(("words", "number"), [("  vectors:", signal.SIGINT), ("compress:", signal.SIGKILL)])
def test_an_interrupted_refresh_shows_nothing_and_resumes(job: Job, words: str, number: signal.Signals) -> None:
    status = interrupted_at(job, words, number)
    assert status == (130 if number is signal.SIGINT else -signal.SIGKILL)
    assert not job.store.exists() or Store(job.store).students() == []
    done = understudy(job, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"published toy-embed@1 as toy-embed@canary in {job.store}\n"
    assert "embedder: " in done.stderr


def test_a_full_disk_is_one_line(job: Job) -> None:
    """Every file the process writes is cut at 4 KiB, as on a disk without room."""
    limited = [sys.executable, "-c", LIMIT, *command(job)[1:]]
    done = subprocess.run(limited, capture_output=True, text=True, env=quiet(), check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"understudy: {job.runs}")
    assert not job.store.exists() or Store(job.store).students() == []
    again = understudy(job, "--resume")
    assert again.returncode == 0, again.stderr


LIMIT = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
sys.argv = sys.argv[2:]
runpy.run_module("service.cli", run_name="__main__")
"""


def test_a_dry_run_makes_nothing(job: Job) -> None:
    done = understudy(job, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "data: train " in done.stderr
    assert "nothing was made" in done.stderr
    assert not job.store.exists()
    assert job.made() == {".lock"}
