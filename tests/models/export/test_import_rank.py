"""`understudy import --task rank`: cross-encoders score pairs, every other encoder ranks by its embeddings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from models.export.families import ImportRefused
from models.export.import_command import ImportTask, command
from models.export.sources import load_source
from service.runtime.student import Student
from service.store.store import Store

QUERY = "is it good"
PASSAGES = ["this film is great", "bad", "", "where is my card and how do i do it", "okay, very slow!"]


@pytest.fixture
def rankings(tmp_path: Path) -> Path:
    path = tmp_path / "rankings.jsonl"
    words = ("great", "bad", "slow", "fast", "plain", "okay")
    rows = [
        {"query": f"is it {word}", "passages": [{"text": f"the film was {other} and {word}"} for other in words]}
        for word in words
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _config(vocabulary: int, family: str = "bert", labels: int = 1, **more):
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
    if family == "distilbert":
        shape = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    if "roberta" in family:
        more |= {"pad_token_id": 1}
    size = {} if family == "distilbert" else {"hidden_size": 16}
    return transformers.AutoConfig.for_model(family, vocab_size=vocabulary, num_labels=labels, **size, **shape, **more)


def _wanted(directory: Path, student: Student) -> np.ndarray:
    """The scores of the pairs by the model's own code, each alone."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    scores = []
    for item in student.encoder.encode([(QUERY, passage) for passage in PASSAGES]):
        feeds = {"input_ids": torch.tensor(item.input_ids[None])}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            feeds["token_type_ids"] = torch.tensor(item.token_type_ids[None])
        with torch.no_grad():
            scores.append(float(model(**feeds).logits[0, 0]))
    return np.array(scores, dtype=np.float32)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_a_cross_encoder_scores_pairs_as_its_own_code_does(family, save_model, vocabulary, tmp_path):
    directory = save_model(_config(vocabulary, family), kind="AutoModelForSequenceClassification")
    command(str(directory), ImportTask.rank, "judge", tmp_path / "store")
    student = Student(Store(tmp_path / "store").open("judge", 1))
    manifest = student.manifest
    assert (manifest.task, manifest.pairs, manifest.exits[-1].output) == ("rank", "joint", "score")
    assert all(sample.text_pair is not None for sample in student.bundle.golden.samples)
    (found,) = student.all_exits(student.encoder.encode([(QUERY, passage) for passage in PASSAGES]))
    assert found.shape == (len(PASSAGES),)
    np.testing.assert_allclose(found, _wanted(directory, student), atol=1e-4)


def test_with_rankings_there_is_int8_and_it_keeps_the_scores(save_model, vocabulary, rankings, tmp_path, capsys):
    directory = save_model(_config(vocabulary), kind="AutoModelForSequenceClassification")
    command(str(directory), ImportTask.rank, "judge", tmp_path / "store", calibration=[rankings])
    bundle = Store(tmp_path / "store").open("judge", 1)
    assert bundle.manifest.default_precision == "int8"
    assert [(one.role, one.rows) for one in bundle.manifest.provenance.data] == [("calibration", 36)]
    fp32, int8 = (Student(bundle, precision=precision) for precision in ("fp32", "int8"))
    batch = fp32.encoder.encode([(QUERY, passage) for passage in PASSAGES])
    before, after = fp32.all_exits(batch)[0], int8.all_exits(batch)[0]
    np.testing.assert_allclose(after, before, atol=0.02)
    output = capsys.readouterr().out
    assert "published judge@1 as production: rank, 32 tokens, fp32 and int8" in output
    assert "largest 0.00" in output
    assert "correlation 0." in output


def test_an_encoder_ranks_by_its_embeddings(save_model, rankings, tmp_path):
    directory = save_model()
    command(str(directory), ImportTask.rank, "near", tmp_path / "store", calibration=[rankings])
    bundle = Store(tmp_path / "store").open("near", 1)
    manifest = bundle.manifest
    assert (manifest.task, manifest.pairs, manifest.exits[-1].output) == ("rank", "separate", "embedding")
    assert (manifest.embedding_dimensions, manifest.space_id) == (16, None)
    assert all(sample.text_pair is None for sample in bundle.golden.samples)
    # each query and each passage by itself, once
    assert manifest.provenance.data[0].rows == 6 + 36


def test_an_encoder_in_a_folder_of_its_own_is_found(save_model, tmp_path):
    save_model(folder="model/0_Transformer")
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    imported = load_source(str(tmp_path / "model"), task="rank")
    assert (imported.stage.output_names, imported.pairs) == (("embedding",), False)


def test_sentence_transformers_settings_of_a_bi_encoder_are_kept(save_model):
    directory = save_model()
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (directory / "modules.json").write_text(json.dumps(modules))
    imported = load_source(str(directory), task="rank")
    with torch.no_grad():
        (embedding,) = imported.stage(torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.int64))
    assert float(embedding.norm()) == pytest.approx(1, abs=1e-5)
    assert not imported.pairs


@pytest.mark.parametrize(
    ("setting", "notes"),
    [
        ({}, 0),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, 0),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, 1),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 1),
    ],
)
def test_what_the_models_own_code_does_with_the_score_is_noted(setting, notes, save_model, vocabulary):
    directory = save_model(_config(vocabulary, **setting), kind="AutoModelForSequenceClassification")
    imported = load_source(str(directory), task="rank")
    assert len(imported.notes) == notes


def test_an_activation_that_changes_more_is_refused(save_model, vocabulary):
    more = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.GELU"}}
    directory = save_model(_config(vocabulary, **more), kind="AutoModelForSequenceClassification")
    with pytest.raises(ImportRefused, match="activation 'GELU' is not supported"):
        load_source(str(directory), task="rank")


def test_a_ranker_of_pairs_has_one_label(save_model, vocabulary):
    directory = save_model(_config(vocabulary, labels=3), kind="AutoModelForSequenceClassification")
    with pytest.raises(ImportRefused, match="has one label, this model has 3"):
        load_source(str(directory), task="rank")


def test_the_limit_of_a_cross_encoder_directory_counts(save_model, vocabulary):
    directory = save_model(_config(vocabulary), kind="AutoModelForSequenceClassification")
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    assert load_source(str(directory), task="rank").max_tokens == 20


def test_rows_of_another_form_are_refused(save_model, vocabulary, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n{"text": "two"}\n')
    directory = save_model(_config(vocabulary), kind="AutoModelForSequenceClassification")
    with pytest.raises(Exception, match="field 'query': missing"):
        command(str(directory), ImportTask.rank, "judge", tmp_path / "store", calibration=[rows])
