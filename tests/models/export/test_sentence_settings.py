"""sentence-transformers directories, read by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.export.families import ImportRefused
from models.export.sentence_settings import SentenceHead, SentenceSettings, read_sentence_settings

TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
HIDDEN = torch.tensor([[[1.0, -4.0], [3.0, 2.0], [9.0, 9.0]]])
MASK = torch.tensor([[1, 1, 0]])


def _write(directory: Path, modules: list[dict[str, str]], **files: object) -> Path:
    for file, content in ({"modules.json": modules} | files).items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(json.dumps(content))
    return directory


def test_a_plain_directory_is_pooled_by_the_mean(tmp_path: Path):
    assert read_sentence_settings(tmp_path) == SentenceSettings(tmp_path)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "max", "embedding_dimension": 2}, "max"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_old_and_new_names_of_the_pooling(tmp_path: Path, config, pooling):
    settings = read_sentence_settings(_write(tmp_path, [TRANSFORMER, POOLING], **{"1_Pooling/config.json": config}))
    assert settings.pooling == pooling
    assert not settings.normalised


@pytest.mark.parametrize(
    "config",
    [{"pooling_mode_lasttoken": True}, {"pooling_mode": ["mean", "max"]}, {"pooling_mode": "weightedmean"}, {}],
)
def test_other_poolings_are_refused(tmp_path: Path, config):
    _write(tmp_path, [TRANSFORMER, POOLING], **{"1_Pooling/config.json": config})
    with pytest.raises(ImportRefused, match=r"1_Pooling/config\.json: pooling .* is not supported"):
        read_sentence_settings(tmp_path)


def test_limit_encoder_folder_and_normalisation(tmp_path: Path):
    modules = [
        {"path": "0_Transformer", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"path": "2_Normalize", "type": "sentence_transformers.base.modules.normalize.Normalize"},
    ]
    _write(tmp_path, modules, **{"0_Transformer/sentence_bert_config.json": {"max_seq_length": 77}})
    settings = read_sentence_settings(tmp_path)
    assert (settings.encoder_dir, settings.max_tokens) == (tmp_path / "0_Transformer", 77)
    assert settings.normalised


def test_another_module_is_refused_by_name(tmp_path: Path):
    _write(tmp_path, [TRANSFORMER, {"path": "1_LSTM", "type": "sentence_transformers.models.LSTM"}])
    with pytest.raises(ImportRefused, match="modules of type 'LSTM' are not supported"):
        read_sentence_settings(tmp_path)


@pytest.mark.parametrize(("content", "why"), [(None, "missing"), ("{", "not JSON")])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: str | None, why: str):
    _write(tmp_path, [TRANSFORMER, POOLING])
    if content is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(content)
    with pytest.raises(ImportRefused, match=rf"1_Pooling/config\.json: {why}"):
        read_sentence_settings(tmp_path)


def _dense(directory: Path, **changes: object) -> None:
    config = {
        "in_features": 2,
        "out_features": 1,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    _write(
        directory,
        [TRANSFORMER, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}],
        **{"2_Dense/config.json": config | changes},
    )


def test_dense_layers_are_applied(tmp_path: Path):
    _dense(tmp_path)
    weights = {"linear.weight": torch.tensor([[1.0, 2.0]]), "linear.bias": torch.tensor([-0.5])}
    save_file(weights, tmp_path / "2_Dense" / "model.safetensors")
    head = SentenceHead(read_sentence_settings(tmp_path))
    # the mean of the two tokens is (2, -1)
    assert head(HIDDEN, MASK).item() == pytest.approx(math.tanh(-0.5))


def test_dense_layers_without_weights_or_of_another_kind_are_refused(tmp_path: Path):
    _dense(tmp_path)
    with pytest.raises(ImportRefused, match=r"model\.safetensors: missing"):
        read_sentence_settings(tmp_path)
    _dense(tmp_path, activation_function="torch.nn.modules.activation.SELU")
    with pytest.raises(ImportRefused, match="activation 'SELU' is not supported"):
        read_sentence_settings(tmp_path)


@pytest.mark.parametrize(("pooling", "wanted"), [("mean", [2, -1]), ("cls", [1, -4]), ("max", [3, 2])])
def test_padding_is_never_pooled(pooling, wanted):
    head = SentenceHead(SentenceSettings(Path(), pooling=pooling))
    assert head(HIDDEN, MASK)[0].tolist() == pytest.approx(wanted)


def test_normalised_embeddings_have_length_one():
    head = SentenceHead(SentenceSettings(Path(), normalised=True))
    assert float(head(HIDDEN, MASK).norm()) == pytest.approx(1)
