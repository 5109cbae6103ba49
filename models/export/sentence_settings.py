"""What a sentence-transformers directory adds to its encoder: pooling, dense layers, normalisation, a length limit.

Read by hand from its JSON files, both the old names and those of version 5 and later; the library is not needed.

B items, T tokens, H hidden, D dimensions.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.export.families import ImportRefused

Pooling = Literal["mean", "cls", "max"]
_OLD_POOLINGS: Final[dict[str, str]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_LOWEST: Final = -1e9


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """How token states become one embedding.

    Attributes:
        encoder_dir: where the encoder's own files are.
        pooling: over the tokens.
        dense: layers after the pooling, in order.
        normalised: whether the embedding has length 1.
        max_tokens: the directory's own limit, or None.
    """

    encoder_dir: Path
    pooling: Pooling = "mean"
    dense: tuple[nn.Module, ...] = ()
    normalised: bool = False
    max_tokens: int | None = None


class SentenceHead(nn.Module):
    """Pooling, dense layers, normalisation."""

    def __init__(self, settings: SentenceSettings) -> None:
        super().__init__()
        self.pooling, self.normalised = settings.pooling, settings.normalised
        self.dense = nn.ModuleList(settings.dense)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [B, D] of float32 [B, T, H] and int64 [B, T]."""
        embedding = _pooled(hidden, attention_mask, self.pooling)
        for layer in self.dense:
            embedding = layer(embedding)
        return nn.functional.normalize(embedding, dim=-1) if self.normalised else embedding


def read_sentence_settings(directory: Path) -> SentenceSettings:
    """Read a model's directory. Without `modules.json`: a plain encoder, mean pooling, not normalised.

    Raises: ImportRefused: a file is missing or not JSON, or a module or pooling is not supported.
    """
    modules_file = directory / "modules.json"
    if not modules_file.is_file():
        return SentenceSettings(directory)
    settings = SentenceSettings(directory)
    for entry in _json(modules_file):
        kind, place = str(entry.get("type", "")).rpartition(".")[2], directory / str(entry.get("path", ""))
        settings = _with_module(settings, kind, place)
    return settings


def _with_module(settings: SentenceSettings, kind: str, place: Path) -> SentenceSettings:
    found = {name: getattr(settings, name) for name in SentenceSettings.__slots__}
    if kind == "Transformer":
        found |= {"encoder_dir": place, "max_tokens": length_limit(place)}
    elif kind == "Pooling":
        found["pooling"] = _pooling(place / "config.json")
    elif kind == "Dense":
        found["dense"] = (*settings.dense, _dense(place))
    elif kind == "Normalize":
        found["normalised"] = True
    elif kind != "Dropout":
        raise ImportRefused(f"{place}: sentence-transformers modules of type {kind!r} are not supported")
    return SentenceSettings(**found)


def length_limit(place: Path) -> int | None:
    """The limit that sentence-transformers keeps beside an encoder, or None."""
    file = place / "sentence_bert_config.json"
    limit = _json(file).get("max_seq_length") if file.is_file() else None
    return None if limit is None else int(limit)


def _pooling(file: Path) -> Pooling:
    config = _json(file)
    modes = config.get("pooling_mode", [name for key, name in _OLD_POOLINGS.items() if config.get(key)])
    names = [modes] if isinstance(modes, str) else list(modes)
    if names not in (["mean"], ["cls"], ["max"]):
        raise ImportRefused(
            f"{file}: pooling {' + '.join(map(str, names)) or 'none'} is not supported: mean, cls or max"
        )
    mode: Pooling = names[0]
    return mode


def _dense(place: Path) -> nn.Module:
    config = _json(place / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.linear.Identity")).rpartition(".")[2]
    if activation not in ("Identity", "Tanh", "ReLU", "GELU"):
        raise ImportRefused(f"{place / 'config.json'}: activation {activation!r} is not supported")
    weights = place / "model.safetensors"
    if not weights.is_file():
        raise ImportRefused(f"{weights}: missing")
    layer = nn.Linear(int(config["in_features"]), int(config["out_features"]), bias=bool(config.get("bias", True)))
    layer.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in load_file(weights).items()})
    return nn.Sequential(layer, getattr(nn, activation)())


def _pooled(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """float32 [B, H]."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return torch.where(attention_mask[:, :, None] > 0, hidden, _LOWEST).amax(dim=1)
    mask = attention_mask.to(hidden.dtype)
    return ((mask / mask.sum(1, keepdim=True))[:, None, :] @ hidden)[:, 0]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ImportRefused(f"{file}: missing") from error
    except ValueError as error:
        raise ImportRefused(f"{file}: not JSON") from error
