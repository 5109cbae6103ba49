"""Pruning as a step of a refresh: a smaller student is published, with a receipt; a killed recovery goes on."""

import io
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from models.recipe.classify import classify_recipe
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.job import refresh, start
from models.refresh.packing import Transfer
from models.refresh.progress import Reporter
from models.refresh.pruning import Pruned, make_pruned
from models.refresh.training import make_student, make_teacher, make_transfer_texts
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.student import Student, load_student
from models.teachers.teacher import neighbours
from service.bundle.load import Bundle
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

HALF = "{prune: {heads: 0.5, feed_forward: 0.5, rows: 200, recovery: {epochs: 2, learning_rate: 0.005}}}"
INT8 = "{int8: static, rows: 64}"
QAT = "{int8: qat, rows: 64, qat_epochs: 0.2}"


@pytest.fixture
def runs(refreshed: Path, tmp_path: Path) -> Path:
    """A runs folder that holds the teacher and the student of the toy recipe already."""
    shutil.copytree(refreshed / "runs", tmp_path / "runs")
    return tmp_path / "runs"


class Job:
    """Refreshes of the toy recipe with other passes, in one runs folder."""

    def __init__(self, recipe: Path, runs: Path) -> None:
        self._recipe, self._runs, self.store = recipe, runs, Store(runs.parent / "store")

    def run(self, *overrides: str) -> tuple[Bundle, StepCache, str]:
        recipe = classify_recipe(read_recipe(self._recipe, overrides=overrides))
        cache, said = StepCache(self._runs), io.StringIO()
        published = refresh(recipe, store=self._runs.parent / "store", cache=cache, reporter=Reporter(said))
        return self.store.open(published.name, published.version), cache, said.getvalue()


@pytest.fixture
def job(refreshed: Path, runs: Path) -> Job:
    return Job(refreshed / "recipe.yaml", runs)


def widths(bundle: Bundle, precision: str) -> set[tuple[int, ...]]:
    """The shapes of the matrices of the last stage, rows and columns in order of size."""
    path = bundle.graph_path(precision, bundle.manifest.stages[-1].id)
    weights = (numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer)
    return {tuple(sorted(weight.shape)) for weight in weights if weight.ndim == 2}


def test_a_pruned_student_is_published_smaller_with_a_receipt(job: Job, runs: Path):
    bundle, cache, said = job.run(f"compress=[{HALF}, {INT8}]")
    made = [receipt.step for receipt in cache.receipts if not receipt.cached]
    assert made == ["pruned", "draft", "certify", "gates", "version"]
    (folder,) = (runs / "pruned").iterdir()
    config = load_student(folder).config
    assert isinstance(config, EncoderConfig)
    assert (config.heads, config.attention_width, config.feed_forward) == (1, 8, 8)
    assert (8, 16) in widths(bundle, "fp32")
    assert (16, 16) not in widths(bundle, "fp32")
    (line,) = [line for line in said.splitlines() if "compress: prune" in line]
    assert "heads a layer 2 -> 1" in line
    assert "feed_forward 16 -> 8" in line
    assert "microseconds a text at batch 32" in line
    assert "dev rows before, after and recovered: " in line
    assert line.partition("compress: ")[2] in (bundle.path / "card.md").read_text()
    assert bundle.manifest.certificates
    _, cache, again = job.run(f"compress=[{HALF}, {INT8}]")
    assert not [receipt.step for receipt in cache.receipts if not receipt.cached]
    assert line in again


def test_what_is_pruned_may_be_trained_for_int8(job: Job):
    bundle, cache, said = job.run(f"compress=[{HALF}, {QAT}]", "publish.precisions=[int8]")
    assert "pruned" in [receipt.step for receipt in cache.receipts if not receipt.cached]
    assert said.index("compress: prune") < said.index("compress: int8 trained")
    assert set(bundle.manifest.precisions) == {"int8"}


class Stopped(Exception):
    """What stops a training in the middle."""


class Stopper(Reporter):
    """Stops the recovery after so many steps."""

    def __init__(self, after: int) -> None:
        super().__init__(io.StringIO())
        self._after = after

    @contextmanager
    def step(self, name: str):
        with super().step(name) as progress:

            def told(done: int, whole: int, note: str) -> None:
                if name == "recovery" and done >= self._after:
                    raise Stopped
                progress(done, whole, note)

            yield told


@pytest.fixture
def prune(refreshed: Path) -> Callable[..., Pruned]:
    """A function that prunes the toy student in a runs folder, recovering for more steps than a checkpoint takes."""

    def made(runs: Path, reporter: Reporter, *, resume: bool = False) -> Pruned:
        long = HALF.replace("epochs: 2", "epochs: 36")
        recipe = read_recipe(refreshed / "recipe.yaml", overrides=(f"compress=[{long}, {INT8}]",))
        run = start(classify_recipe(recipe), StepCache(runs, resume=resume), reporter)
        teacher = make_teacher(run)
        texts, gold = make_transfer_texts(run, teacher, neighbours)
        trained = make_student(run, teacher, texts, gold)
        return make_pruned(run, teacher, trained, Transfer(texts, gold))

    return made


def weights(student: Student) -> dict[str, torch.Tensor]:
    assert isinstance(student, EncoderStudent)
    return dict(student.state_dict())


def test_a_recovery_that_was_killed_goes_on_and_ends_the_same(
    prune: Callable[..., Pruned], refreshed: Path, runs: Path, tmp_path: Path
):
    with pytest.raises(Stopped):
        prune(runs, Stopper(510))
    (folder,) = (runs / "pruned").iterdir()
    assert [entry.name for entry in folder.iterdir()] == ["checkpoint.safetensors"]
    said = io.StringIO()
    resumed = prune(runs, Reporter(said), resume=True)
    assert {entry.name for entry in folder.iterdir()} == {
        "config.json",
        "done.json",
        "kept_ids.npy",
        "receipts.json",
        "student.safetensors",
        "tokenizer.json",
    }
    shutil.copytree(refreshed / "runs", tmp_path / "straight")
    straight = prune(tmp_path / "straight", Reporter(io.StringIO()))
    for name, value in weights(resumed.trained.student).items():
        torch.testing.assert_close(value, weights(straight.trained.student)[name], rtol=0, atol=0)


def test_a_recipe_that_prunes_nothing_leaves_the_student_as_it_is(refreshed: Path, runs: Path):
    recipe = classify_recipe(read_recipe(refreshed / "recipe.yaml"))
    run = start(recipe, StepCache(runs), Reporter(io.StringIO()))
    teacher = make_teacher(run)
    texts, gold = make_transfer_texts(run, teacher, neighbours)
    trained = make_student(run, teacher, texts, gold)
    assert make_pruned(run, teacher, trained, Transfer(texts, gold)) == Pruned(trained, ())
    assert not (runs / "pruned").exists()
