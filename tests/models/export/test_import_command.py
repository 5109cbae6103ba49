"""`understudy import`, from the command line to the store."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import transformers
import typer
from typer.testing import CliRunner

from models.errors import DataInvalid, OfflineError
from models.export.families import ImportRefused
from models.export.import_command import ImportTask, command
from service.runtime.student import Student
from service.store.store import Store

TEXTS = [f"this film is {word} and {other}" for word in ("great", "bad", "slow") for other in ("fast", "plain", "okay")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def test_an_encoder_is_published_as_an_embedder_with_both_precisions(save_model, data: Path, tmp_path: Path, capsys):
    store = tmp_path / "store"
    command(str(save_model()), ImportTask.embed, "tiny", store, calibration=[data])
    bundle = Store(store).open("tiny", 1)
    manifest = bundle.manifest
    assert Store(store).resolve("tiny").version == 1
    assert (manifest.task, manifest.max_tokens, manifest.embedding_dimensions) == ("embed", 32, 16)
    assert set(manifest.precisions) == {"fp32", "int8"}
    assert manifest.default_precision == "int8"
    assert manifest.space_id is not None
    assert [(source.role, source.name, source.rows) for source in manifest.provenance.data] == [
        ("calibration", "rows.jsonl", 9)
    ]
    assert str(tmp_path) not in (bundle.path / "manifest.json").read_text()
    fp32, int8 = (Student(bundle, precision=precision) for precision in ("fp32", "int8"))
    batch = fp32.encoder.encode(TEXTS)
    before, after = fp32.all_exits(batch)[0], int8.all_exits(batch)[0]
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert cosines.min() > 0.99
    output = capsys.readouterr().out
    assert "published tiny@1 as production: embed, 32 tokens, fp32 and int8" in output
    assert "mean cosine" in output


def test_without_rows_there_is_fp32_only_and_it_says_so(save_model, tmp_path: Path, capsys):
    command(str(save_model()), ImportTask.embed, "tiny", tmp_path / "store", alias="canary")
    store = Store(tmp_path / "store")
    assert set(store.open("tiny", 1).manifest.precisions) == {"fp32"}
    assert store.resolve("tiny@canary").version == 1
    assert "int8 was not made: its scales are static and need rows (--calibration DATA)" in capsys.readouterr().out


@pytest.fixture
def classifier(save_model, vocabulary) -> Path:
    labels = {0: "no", 1: "yes"}
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        id2label=labels,
        label2id={"no": 0, "yes": 1},
    )
    return save_model(config, kind="AutoModelForSequenceClassification")


def test_a_pair_classifier(classifier: Path, tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"text": text, "text_pair": other} for text, other in itertools.pairwise(TEXTS)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command(str(classifier), ImportTask.classify, "pairs", tmp_path / "store", calibration=[pairs], pairs=True)
    bundle = Store(tmp_path / "store").open("pairs", 1)
    assert (bundle.manifest.pairs, bundle.manifest.labels) == ("joint", ("no", "yes"))
    assert all(sample.text_pair is not None for sample in bundle.golden.samples)
    student = Student(bundle)
    (logits,) = student.all_exits(student.encoder.encode([("it is good", "is it good")]))
    assert logits.shape == (1, 2)


def test_pairs_need_rows_of_pairs(classifier: Path, data: Path, tmp_path: Path):
    with pytest.raises(ImportRefused, match="--pairs needs rows with text_pair"):
        command(str(classifier), ImportTask.classify, "pairs", tmp_path / "store", calibration=[data], pairs=True)


@pytest.mark.parametrize("name", ["Tiny", "", "a/b", "-x"])
def test_a_bad_name_is_refused_before_anything_is_loaded(name: str, tmp_path: Path):
    with pytest.raises(ImportRefused, match="--name"):
        command("nowhere", ImportTask.embed, name, tmp_path / "store")


def test_only_classifiers_read_pairs(tmp_path: Path):
    with pytest.raises(ImportRefused, match="--pairs"):
        command("nowhere", ImportTask.embed, "x", tmp_path / "store", pairs=True)


@pytest.mark.parametrize(
    ("content", "why"), [("not json\n", r"rows\.jsonl:1"), ('{"text": "one"}\n', "at least two rows are needed")]
)
def test_bad_rows_are_refused(content: str, why: str, save_model, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises((DataInvalid, ImportRefused), match=why):
        command(str(save_model()), ImportTask.embed, "tiny", tmp_path / "store", calibration=[path])
    assert not (tmp_path / "store").exists()


def test_several_files_of_rows_share_the_scales_evenly(save_model, data: Path, tmp_path: Path):
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"text": f"it is number {i}"}) + "\n" for i in range(2000)))
    command(str(save_model()), ImportTask.embed, "tiny", tmp_path / "store", calibration=[data, more])
    bundle = Store(tmp_path / "store").open("tiny", 1)
    assert [(one.name, one.rows) for one in bundle.manifest.provenance.data] == [("rows.jsonl", 9), ("more.jsonl", 512)]


def test_a_refused_model_leaves_no_store_and_one_line(tmp_path: Path):
    with pytest.raises(OfflineError) as caught:
        command(str(tmp_path / "nowhere"), ImportTask.embed, "tiny", tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    assert not (tmp_path / "store").exists()


def test_its_options_on_the_command_line(save_model, tmp_path: Path):
    app = typer.Typer()
    app.command()(command)
    arguments = [
        str(save_model()),
        "--task",
        "embed",
        "--name",
        "tiny",
        "--store",
        str(tmp_path / "s"),
        "--max-tokens",
        "9",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert Store(tmp_path / "s").open("tiny", 1).manifest.max_tokens == 9
    assert CliRunner().invoke(app, [*arguments, "--task", "guess"]).exit_code == 2
