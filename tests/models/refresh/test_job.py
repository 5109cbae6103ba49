"""The whole job on toy data: a recipe in, a certified student out, and nothing published when something is wrong."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from models.errors import DataInvalid, GateFailed, RecipeInvalid
from models.evaluate.variants import BackendRefused
from models.recipe.read import read_recipe
from models.refresh.cache import StepCache
from models.refresh.job import refresh
from models.refresh.progress import Reporter
from models.report.seeds import seeds_told
from service.runtime.student import Student
from service.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

MakeRecipe = Callable[..., Path]


class Job:
    """A refresh of one recipe in one place."""

    def __init__(self, recipe: Path, place: Path) -> None:
        self.recipe, self.store, self.runs = recipe, place / "store", place / "runs"

    def run(self, *, seeds: int = 1, resume: bool = False):
        cache = StepCache(self.runs, resume=resume)
        said = io.StringIO()
        published = refresh(
            read_recipe(self.recipe), store=self.store, cache=cache, seeds=seeds, reporter=Reporter(said)
        )
        return published, cache, said.getvalue()


@pytest.fixture
def job(make_recipe: MakeRecipe, tmp_path: Path) -> Job:
    return Job(make_recipe(), tmp_path)


def test_a_recipe_becomes_a_served_student(job: Job):
    published, cache, said = job.run(seeds=2)
    assert (published.name, published.version, published.alias) == ("toy-intent", 1, "canary")
    bundle = Store(job.store).open("toy-intent", 1)
    manifest = bundle.manifest
    assert set(manifest.precisions) == {"fp32", "int8"}
    assert {(c.backend, c.precision) for c in manifest.certificates} == {
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    }
    assert manifest.quality is not None
    assert manifest.quality.rows == 200
    assert str(job.recipe.parent) not in str(manifest.provenance.recipe["name"])
    card = (bundle.path / "card.md").read_text()
    assert "Other seeds" in card
    assert seeds_told(card, "toy-intent") == 2
    assert "gate: bytes" in said
    assert "dev rows right, in float32" in said
    assert "baseline: TF-IDF + logistic regression: 100.00% of" in said
    assert "| baseline: TF-IDF + logistic regression |" in card
    student = Student(bundle)
    outcome = student.run(student.encoder.encode(["where is my lost card"]), student.policy("default"))[0]
    assert manifest.labels[outcome.raw.argmax()] == "lost_card"

    Store(job.store).set_alias("toy-intent", "production", 1)
    again, cache, _ = job.run(seeds=2)
    assert (again.version, again.new) == (1, False)
    assert [receipt.step for receipt in cache.receipts if not receipt.cached] == []


def test_a_recipe_may_train_for_int8(make_recipe: MakeRecipe, tmp_path: Path):
    qat = {"int8": "qat", "rows": 64, "qat_epochs": 0.5}
    job = Job(make_recipe(compress=[qat], publish={"alias": "canary", "precisions": ["int8"]}), tmp_path)
    published, _, said = job.run()
    assert set(Store(job.store).open("toy-intent", published.version).manifest.precisions) == {"int8"}
    assert "compress: int8 trained" in said


def test_a_recipe_may_certify_on_several_backends(make_recipe: MakeRecipe, tmp_path: Path, louder: str):
    exits = {"risks": [0.05, 0.1], "default_risk": 0.1, "backends": ["onnxruntime", louder]}
    job = Job(make_recipe(exits=exits), tmp_path)
    published, _, said = job.run()
    bundle = Store(job.store).open("toy-intent", published.version)
    found = [(c.backend, c.precision) for c in bundle.manifest.certificates]
    assert found == [(backend, precision) for backend in ("onnxruntime", louder) for precision in ("fp32", "int8")]
    quality = bundle.manifest.quality
    assert quality is not None
    assert list(quality.by_precision) == ["int8", "fp32", "int8 on louder", "fp32 on louder"]
    assert "gate: retention, full depth, int8 on louder" in said
    assert "gate: company, fp32 on louder" in said
    card = (bundle.path / "card.md").read_text()
    assert "### int8 on louder" in card
    assert "| int8 on louder, risk 0.1 |" in card
    assert Student(bundle, backend=louder).policy().risk_applied == 0.1
    roles = [source.role for source in bundle.manifest.provenance.data]
    assert roles == ["train", "test", "dev rows", "calibration rows", "gate rows"]


@pytest.mark.parametrize("backend", ["abacus", "auto"])
def test_a_backend_that_cannot_certify_is_refused_before_anything_is_done(
    make_recipe: MakeRecipe, tmp_path: Path, backend: str
):
    job = Job(make_recipe(exits={"risks": [0.1], "default_risk": 0.1, "backends": ["onnxruntime", backend]}), tmp_path)
    with pytest.raises(BackendRefused, match=f"exits.backends: .*{backend}"):
        job.run()
    assert list(job.runs.iterdir()) == []


def test_a_failed_gate_publishes_nothing(make_recipe: MakeRecipe, tmp_path: Path):
    job = Job(make_recipe(gates={"retention": 0.5, "bytes": 10}), tmp_path)
    with pytest.raises(GateFailed, match="nothing was published: bytes"):
        job.run()
    assert not job.store.exists() or Store(job.store).students() == []


def test_test_rows_that_are_the_training_rows_are_refused(make_recipe: MakeRecipe, tmp_path: Path):
    path = make_recipe()
    (tmp_path / "data" / "test.jsonl").write_bytes((tmp_path / "data" / "train.jsonl").read_bytes())
    with pytest.raises(RecipeInvalid, match="train file too"):
        Job(path, tmp_path).run()


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (
            {"layers": 3, "teacher_layers": [0, 1, 2], "exits": [3]},
            r"student\.teacher_layers: the teacher has no layer 2",
        ),
        ({"heads": 4, "attention_width": 32}, r"student\.heads: 4 of width 8 from the teacher's 2 of width 8"),
        ({"feed_forward": 4096}, r"student\.feed_forward: more than the teacher's \d+"),
        ({"max_tokens": 512}, r"student\.max_tokens: 512 is over the teacher's \d+ positions"),
    ],
)
def test_a_student_that_does_not_fit_its_teacher_is_refused_before_that_is_trained(job: Job, student: dict, said: str):
    wanted = {"layers": 1, "teacher_layers": [0], "hidden": 16, "heads": 2, "feed_forward": 16, "max_tokens": 16}
    wanted |= {"embeddings": "teacher", "initialise": "teacher-layers", "exits": [1], **student}
    changed = yaml.safe_load(job.recipe.read_text()) | {"student": wanted}
    job.recipe.write_text(yaml.safe_dump(changed))
    with pytest.raises(RecipeInvalid, match=said):
        job.run()
    assert not (job.runs / "teacher").exists()
    assert not job.store.exists()


def test_one_label_is_refused(make_recipe: MakeRecipe, tmp_path: Path):
    path = make_recipe()
    rows = [json.dumps({"text": f"my card {number}", "label": "only"}) for number in range(200)]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataInvalid, match="label"):
        Job(path, tmp_path).run()


def test_pairs_are_refused_before_anything_is_trained_where_the_student_takes_none(
    make_recipe: MakeRecipe, tmp_path: Path
):
    path = make_recipe(student={"architecture": "ngram", "max_tokens": 16})
    for split in ("train", "test"):
        file = tmp_path / "data" / f"{split}.jsonl"
        rows = [{**json.loads(line), "text_pair": "my money"} for line in file.read_text().splitlines()]
        file.write_text("\n".join(json.dumps(row) for row in rows))
    job = Job(path, tmp_path)
    with pytest.raises(RecipeInvalid, match=r"train.jsonl:\d+: text_pair: student.architecture ngram"):
        job.run()
    assert list(job.runs.iterdir()) == []


def test_a_draft_that_was_killed_half_way_is_made_again(job: Job):
    job.run()
    (draft,) = (job.runs / "draft").iterdir()
    (draft / "done.json").unlink()
    published, cache, _ = job.run(resume=True)
    assert published.version == 1
    assert [receipt.step for receipt in cache.receipts if not receipt.cached] == ["draft"]


def command(job: Job, *more: str) -> list[str]:
    place = ["--store", str(job.store), "--runs", str(job.runs)]
    return [sys.executable, "-m", "service.cli", "refresh", str(job.recipe), *place, *more]


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


def quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_refresh_shows_nothing_and_resumes(job: Job, number: signal.Signals):
    status = interrupted_at(job, "compress:", number)
    assert status == (130 if number is signal.SIGINT else -signal.SIGKILL)
    assert not job.store.exists() or Store(job.store).students() == []
    done = subprocess.run(command(job, "--resume"), capture_output=True, text=True, env=quiet(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"published toy-intent@1 as toy-intent@canary in {job.store}\n"
    assert "teacher:" in done.stderr
    assert "(cached)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "students.layers=2"], "students"),
        (["--set", "student.layers=many"], "student.layers"),
        (["--set", "data.train=/nowhere.jsonl"], "/nowhere.jsonl"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_status_2(job: Job, arguments: list[str], says: str):
    done = subprocess.run(command(job, *arguments), capture_output=True, text=True, env=quiet(), check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert says in done.stderr


def test_a_dry_run_makes_nothing(job: Job):
    done = subprocess.run(command(job, "--dry-run"), capture_output=True, text=True, env=quiet(), check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing was made" in done.stderr
    assert not job.store.exists()
    assert [entry.name for entry in job.runs.iterdir()] == [".lock"]
