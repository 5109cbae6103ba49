"""BERT's family as one plain module: whatever the model's own code looks like, the exported graph looks alike.

Hugging Face's modules are used as they are (their weights are not copied), but joined here, on flat [B*T, H] states:
each linear layer becomes one Gemm, which is what makes the graphs fast, at int8 most of all. That the result is the
same as the model's own forward is checked for every import.

B items, T tokens, H hidden, M positions.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from models.errors import OfflineError

_MASKED_SCORE: Final = -10_000.0
Activation = Callable[[Tensor], Tensor]


class ImportRefused(OfflineError):
    """The model cannot be imported; the message says what is missing or not supported."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One post-LN transformer layer's modules."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: Activation
    down: nn.Linear
    norm: nn.LayerNorm


@dataclass(frozen=True, slots=True)
class EncoderParts:
    """An encoder's modules and tables.

    Attributes:
        words: the token table.
        positions: float32 [M, H or E], row t being token t's.
        types: float32 [types, H or E], or None.
        norm: after the embeddings.
        projection: from the embeddings' width to H, or None.
        layers: in order.
        heads: attention heads.
        relative: float32 [2M - 1, heads], added to the scores by distance (column key - query + M - 1), or None.
    """

    words: nn.Embedding
    positions: Tensor
    types: Tensor | None
    norm: nn.LayerNorm
    projection: nn.Linear | None
    layers: tuple[LayerParts, ...]
    heads: int
    relative: Tensor | None = None


def encoder_parts(model: Any) -> EncoderParts:
    """Take a Hugging Face base model apart.

    Args:
        model: what `AutoModel` gives, without a task's head.
    Raises: ImportRefused: its family is not supported.
    """
    kind = str(model.config.model_type)
    if kind not in _FAMILIES or getattr(model.config, "is_decoder", False):
        known = ", ".join(sorted(_FAMILIES))
        raise ImportRefused(f"a model of type {kind!r} is not of BERT's family (supported: {known})")
    return _FAMILIES[kind](model)


class FlatEncoder(nn.Module):
    """The encoder of `EncoderParts`, for single texts or with token types."""

    def __init__(self, parts: EncoderParts, *, max_tokens: int, token_types: bool) -> None:
        """Join the parts.

        Args:
            parts: of one model.
            max_tokens: at most M; later positions are not exported.
            token_types: whether `forward` gets them; else every token is of type 0.
        """
        super().__init__()
        # subtle: a table with a padding index of its own cannot be traced without a warning
        table = parts.words.weight.detach()
        self.words = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
        self.norm, self.projection = parts.norm, parts.projection
        self.layers = nn.ModuleList(_FlatLayer(layer, parts.heads) for layer in parts.layers)
        positions = parts.positions[:max_tokens].detach()
        if parts.types is not None and not token_types:
            positions = positions + parts.types[0].detach()
        self.register_buffer("positions", positions)
        self.register_buffer("types", parts.types.detach() if token_types and parts.types is not None else None)
        self.register_buffer("relative", _near(parts.relative, max_tokens))
        self.max_tokens = max_tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """float32 [B, T, H] of int64 [B, T] each."""
        rows = self.words(input_ids) + self._tensor("positions")[: input_ids.shape[1]]
        if token_type_ids is not None and self.types is not None:
            rows = rows + nn.functional.embedding(token_type_ids, self._tensor("types"))
        states = self.norm(rows)
        if self.projection is not None:
            states = self.projection(states)
        bias = (1 - attention_mask.to(torch.float32))[:, None, None, :] * _MASKED_SCORE
        if self.relative is not None:
            bias = bias + self._relative_bias(input_ids.shape[1])
        flat = states.reshape(-1, states.shape[-1])
        for layer in self.layers:
            flat = layer(flat, bias, attention_mask)
        hidden: Tensor = flat.reshape(attention_mask.shape[0], attention_mask.shape[1], -1)
        return hidden

    def _relative_bias(self, tokens: int) -> Tensor:
        """float32 [1, heads, T, T]."""
        place = torch.arange(self.max_tokens)[:tokens]
        distance = place[None, :] - place[:, None] + (self.max_tokens - 1)
        return nn.functional.embedding(distance, self._tensor("relative")).permute(2, 0, 1)[None]

    def _tensor(self, name: str) -> Tensor:
        value = self.get_buffer(name)
        assert isinstance(value, Tensor)
        return value


class _FlatLayer(nn.Module):
    def __init__(self, parts: LayerParts, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = parts.query, parts.key, parts.value, parts.output
        self.attention_norm, self.norm = parts.attention_norm, parts.norm
        self.up, self.down = parts.up, parts.down
        self.activation = parts.activation
        self.heads, self.width = heads, parts.query.out_features // heads

    def forward(self, flat: Tensor, bias: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [B*T, H] of the same."""
        query, key, value = (self._split(part(flat), attention_mask) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) * (1 / math.sqrt(self.width)) + bias
        mixed = (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).reshape(-1, self.heads * self.width)
        flat = self.attention_norm(flat + self.output(mixed))
        states: Tensor = self.norm(flat + self.down(self.activation(self.up(flat))))
        return states

    def _split(self, flat: Tensor, attention_mask: Tensor) -> Tensor:
        shape = (attention_mask.shape[0], attention_mask.shape[1], self.heads, self.width)
        return flat.reshape(shape).transpose(1, 2)


def _near(relative: Tensor | None, max_tokens: int) -> Tensor | None:
    """The middle of the table: distances below `max_tokens`."""
    if relative is None:
        return None
    middle = (len(relative) - 1) // 2
    return relative[middle - max_tokens + 1 : middle + max_tokens].detach()


def _bert(model: Any) -> EncoderParts:
    embeddings = model.embeddings
    return EncoderParts(
        words=embeddings.word_embeddings,
        positions=embeddings.position_embeddings.weight[_first_position(model) :],
        types=embeddings.token_type_embeddings.weight,
        norm=embeddings.LayerNorm,
        projection=getattr(model, "embeddings_project", None),
        layers=tuple(_bert_layer(layer) for layer in model.encoder.layer),
        heads=model.config.num_attention_heads,
    )


def _bert_layer(layer: Any) -> LayerParts:
    inner = layer.attention.self
    return LayerParts(
        query=inner.query,
        key=inner.key,
        value=inner.value,
        output=layer.attention.output.dense,
        attention_norm=layer.attention.output.LayerNorm,
        up=layer.intermediate.dense,
        activation=layer.intermediate.intermediate_act_fn,
        down=layer.output.dense,
        norm=layer.output.LayerNorm,
    )


def _first_position(model: Any) -> int:
    """The row of the first token: RoBERTa's kind counts from behind the padding's."""
    counts_from_padding = model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return int(model.embeddings.padding_idx) + 1 if counts_from_padding else 0


def _distilbert(model: Any) -> EncoderParts:
    embeddings = model.embeddings
    return EncoderParts(
        words=embeddings.word_embeddings,
        positions=embeddings.position_embeddings.weight,
        types=None,
        norm=embeddings.LayerNorm,
        projection=None,
        layers=tuple(_distilbert_layer(layer) for layer in model.transformer.layer),
        heads=model.config.n_heads,
    )


def _distilbert_layer(layer: Any) -> LayerParts:
    inner = layer.attention
    return LayerParts(
        query=inner.q_lin,
        key=inner.k_lin,
        value=inner.v_lin,
        output=inner.out_lin,
        attention_norm=layer.sa_layer_norm,
        up=layer.ffn.lin1,
        activation=layer.ffn.activation,
        down=layer.ffn.lin2,
        norm=layer.output_layer_norm,
    )


def _mpnet(model: Any) -> EncoderParts:
    embeddings = model.embeddings
    positions = embeddings.position_embeddings.weight[_first_position(model) :]
    distances = torch.arange(-len(positions) + 1, len(positions))
    buckets = model.encoder.relative_position_bucket(distances, num_buckets=model.config.relative_attention_num_buckets)
    return EncoderParts(
        words=embeddings.word_embeddings,
        positions=positions,
        types=None,
        norm=embeddings.LayerNorm,
        projection=None,
        layers=tuple(_mpnet_layer(layer) for layer in model.encoder.layer),
        heads=model.config.num_attention_heads,
        relative=model.encoder.relative_attention_bias.weight[buckets],
    )


def _mpnet_layer(layer: Any) -> LayerParts:
    inner = layer.attention.attn
    return LayerParts(
        query=inner.q,
        key=inner.k,
        value=inner.v,
        output=inner.o,
        attention_norm=layer.attention.LayerNorm,
        up=layer.intermediate.dense,
        activation=layer.intermediate.intermediate_act_fn,
        down=layer.output.dense,
        norm=layer.output.LayerNorm,
    )


_FAMILIES: Final[Mapping[str, Callable[[Any], EncoderParts]]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "camembert": _bert,
    "electra": _bert,
    "distilbert": _distilbert,
    "mpnet": _mpnet,
}
