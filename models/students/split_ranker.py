"""The split ranker: lower layers read query and passage apart, upper layers join them, and between the two a text is
a few int8 numbers a token, which may be kept.

    ids ── lower layers ── compression ── state ┐
                                                ├─ joined layers ── score
    ids ── lower layers ── compression ── state ┘

Both texts take the same lower layers; token types tell one from the other. In the joined layers the query's tokens
alone are updated: they attend to themselves and to the passage's states, in one softmax. So a passage costs nothing
above its states but two small products a layer, whose keys and values are never written down: a passage's key is a
linear map of its state, which is moved to the side of the query (q·Ws = (Wᵀq)·s), and so is its value.

Sources: MacAvaney et al. 2020 (PreTTR), arXiv:2004.14255, for states that are computed apart, compressed and stored;
Gao et al. 2020 (MORES), arXiv:2004.13313, for joined layers that update the query alone; van den Oord et al. 2017,
arXiv:1711.00937, section 3.2, for the gradient past the rounding.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.students.encoder import EncoderConfig, EncoderStudent, Layer, mask_bias
from models.teachers.tokens import Padded

# B pairs, Q tokens of the query, T tokens of the passage, H hidden, S width of a state, A width of the attention of
# N heads, each W wide

LEVELS = 127
"""A state's numbers are whole multiples of 1/127 in [-1, 1]; what is stored is the multiple, int8."""

READS_LEVELS = "query_expansion.weight"
"""The one weight that multiplies stored levels, by its name in the graph."""


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """The shape. `lower`: the layers that read one text, without exits; `max_tokens` is of each text.

    `state_width` is S. The joined layers are as wide as the lower ones; `joined_attention_width` is that of all their
    heads together.
    """

    lower: EncoderConfig
    state_width: int
    joined_layers: int
    joined_heads: int
    joined_attention_width: int
    joined_feed_forward: int
    head_width: int

    @property
    def joined(self) -> EncoderConfig:
        """The shape of one joined layer."""
        lower = self.lower
        return EncoderConfig(
            vocabulary=1,
            width=1,
            layers=self.joined_layers,
            hidden=lower.hidden,
            heads=self.joined_heads,
            feed_forward=self.joined_feed_forward,
            exits=(),
            max_tokens=lower.max_tokens,
            activation=lower.activation,
            dropout=lower.dropout,
            attention_width=self.joined_attention_width,
        )


@dataclass(frozen=True, slots=True)
class Passage:
    """Keys and values of the passage as maps of its state, of one joined layer.

    `key` float [N, W, S] and `key_bias` float [N, W, 1]; `value` float [N, S, W] and `value_bias` float [N, 1, W].
    """

    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor


class ScoreHead(nn.Module):
    """The query's first token and the mean of its tokens, one inner layer, one number."""

    def __init__(self, config: SplitConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * config.lower.hidden, config.head_width)
        self.dropout = nn.Dropout(config.lower.dropout)
        self.score = nn.Linear(config.head_width, 1)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """float [B] of float [B, Q, H] and the mask int64 [B, Q]."""
        shares = mask.to(hidden.dtype)
        mean = ((shares / shares.sum(1, keepdim=True))[:, None, :] @ hidden)[:, 0]
        inner = torch.relu(self.inner(self.dropout(torch.cat([hidden[:, 0], mean], dim=-1))))
        score: Tensor = self.score(self.dropout(inner))[:, 0]
        return score


class SplitRanker(nn.Module):
    """The whole student. `stages` cuts it between the texts apart and joined; cut or whole, it computes the same."""

    def __init__(self, config: SplitConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.lower.hidden, config.state_width
        self.lower = EncoderStudent(config.lower)
        self.compression = nn.Linear(hidden, width)
        self.query_expansion, self.passage_expansion = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.joined = nn.ModuleList(Layer(config.joined) for _ in range(config.joined_layers))
        self.head = ScoreHead(config)
        for part in (self.compression, self.query_expansion, self.passage_expansion, self.joined, self.head):
            part.apply(_initialise)

    def states(self, text: Padded) -> Tensor:
        """float32 [B, T, S], whole multiples of 1/127; gradients flow as if nothing were rounded.

        Args:
            text: queries, with types of 0, or passages, with types of 1.
        """
        hidden = self.lower(text.input_ids, text.attention_mask, text.token_type_ids).hidden[-1]
        # subtle: in float32, since bfloat16 has no room for 255 levels
        smooth = torch.tanh(self.compression(hidden).float())
        return smooth + (torch.round(smooth * LEVELS) / LEVELS - smooth).detach()

    def join(self, first: Tensor, first_mask: Tensor, second: Tensor, second_mask: Tensor) -> Tensor:
        """float [B], raw scores of the states float [B, Q, S] and [B, T, S], each with its mask, int64."""
        passages = [passage_of(layer, self.passage_expansion, scale=1.0) for layer in self.layers]
        return _joined(
            self.layers,
            passages,
            self.query_expansion(first),
            first_mask,
            second,
            second_mask,
            head=self.head,
        )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The joined layers."""
        return tuple(layer for layer in self.joined if isinstance(layer, Layer))

    def forward(self, query: Padded, passage: Padded) -> Tensor:
        """float [B], raw scores of B queries and as many passages."""
        return self.join(self.states(query), query.attention_mask, self.states(passage), passage.attention_mask)

    def stages(self) -> tuple["ApartStage", "JoinedStage"]:
        """What is exported: the parts that read one text, and those that join two. Parameters are shared or folded."""
        return ApartStage(self), JoinedStage(self)


def passage_of(layer: Layer, expansion: nn.Linear, *, scale: float) -> Passage:
    """The maps of a joined layer from `scale` times a state to keys and values, with the expansion folded into them.

    Gradients flow to both.
    """
    shape = (layer.heads, layer.width, -1)
    key, value = (part.weight @ expansion.weight / scale for part in (layer.key, layer.value))
    biases = (part.weight @ expansion.bias + part.bias for part in (layer.key, layer.value))
    key_bias, value_bias = (bias.reshape(shape) for bias in biases)
    return Passage(key.reshape(shape), key_bias, value.reshape(shape).transpose(1, 2), value_bias.transpose(1, 2))


def _joined(
    layers: tuple[Layer, ...],
    passages: list[Passage],
    hidden: Tensor,
    first_mask: Tensor,
    second: Tensor,
    second_mask: Tensor,
    *,
    head: ScoreHead,
) -> Tensor:
    """float [B] of the query's states after their expansion, float [B, Q, H], and the passage's, float [B, T, S]."""
    shape = hidden.shape
    bias = mask_bias(torch.cat([first_mask, second_mask], dim=1))[:, 0]
    flat = hidden.reshape(-1, shape[-1])
    for layer, passage in zip(layers, passages, strict=True):
        flat = _join(layer, passage, flat, second, bias, tokens=first_mask.shape[1])
    scores: Tensor = head(flat.reshape(shape), first_mask)
    return scores


def _join(layer: Layer, passage: Passage, flat: Tensor, second: Tensor, bias: Tensor, *, tokens: int) -> Tensor:
    """One joined layer.

    Args:
        layer: whose parameters are used.
        passage: its maps of the passage's states.
        flat: float [B*Q, H], the query's tokens.
        second: float [B, T, S], the passage's states.
        bias: float [B, 1, Q+T], 0 on tokens and very negative on padding.
        tokens: Q.
    Returns: float [B*Q, H].
    """
    heads, width, items = layer.heads, layer.width, second.shape[0]

    def split(values: Tensor) -> Tensor:
        """float [N, B*Q, W] of [B*Q, A]."""
        return values.reshape(-1, heads, width).transpose(0, 1)

    def by_item(values: Tensor) -> Tensor:
        """float [B, N*Q, ...] of [N, B*Q, ...]: all the rows that ask one passage, together."""
        wide = values.shape[-1]
        return values.reshape(heads, -1, tokens, wide).transpose(0, 1).reshape(items, -1, wide)

    def own(values: Tensor) -> Tensor:
        """float [B, N, Q, W] of [B*Q, A]."""
        return values.reshape(-1, tokens, heads, width).transpose(1, 2)

    query = layer.query(flat) * (1 / math.sqrt(width))
    asked = split(query)
    among = (own(query) @ own(layer.key(flat)).transpose(-1, -2)).reshape(items, -1, tokens)
    across = by_item(asked @ passage.key) @ second.transpose(-1, -2) + by_item(asked @ passage.key_bias)
    attention = layer.dropout(torch.softmax(torch.cat([among, across], dim=-1) + bias, dim=-1))
    kept, given = attention[:, :, :tokens], attention[:, :, tokens:]
    mine = kept.reshape(-1, heads, tokens, tokens) @ own(layer.value(flat))
    taken = _by_head(given @ second, heads, tokens) @ passage.value
    weight = _by_head(given.sum(-1, keepdim=True), heads, tokens)
    theirs = taken + weight * passage.value_bias
    mixed = mine.transpose(1, 2).reshape(-1, heads * width) + theirs.transpose(0, 1).reshape(-1, heads * width)
    flat = layer.attention_norm(flat + layer.dropout(layer.output(mixed)))
    inner = layer.down(layer.activation(layer.up(flat)))
    after: Tensor = layer.norm(flat + layer.dropout(inner))
    return after


def _by_head(values: Tensor, heads: int, tokens: int) -> Tensor:
    """float [N, B*Q, ...] of [B, N*Q, ...]."""
    width = values.shape[-1]
    rows: Tensor = values.reshape(-1, heads, tokens, width).transpose(0, 1).reshape(heads, -1, width)
    return rows


class ApartStage(nn.Module):
    """One text to its state, int8: what is exported as the first graph, and what may be kept."""

    stage_id = "00"
    scope: Literal["item"] = "item"
    cacheable = True
    input_names = ("input_ids", "attention_mask", "token_type_ids")
    output_names = ("state",)

    def __init__(self, ranker: SplitRanker) -> None:
        super().__init__()
        self.config = ranker.config.lower
        self.lower, self.compression = ranker.lower, ranker.compression

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor]:
        """(int8 [B, T, S],) of int64 [B, T]."""
        flat, bias = self.lower.embeddings(input_ids, token_type_ids), mask_bias(attention_mask)
        for layer in self.lower.layers:
            flat, _ = layer(flat, bias)
        levels = torch.round(torch.tanh(self.compression(flat)) * LEVELS).to(torch.int8)
        return (levels.reshape(*input_ids.shape, levels.shape[-1]),)


class JoinedStage(nn.Module):
    """Two texts' states to a score: what is exported as the second graph.

    The expansion of the passage is folded into the keys and values, and the 1/127 of the levels into whatever reads
    them.
    """

    stage_id = "01"
    scope: Literal["pair"] = "pair"
    cacheable = False
    input_names = ("first", "first_mask", "second", "second_mask")
    output_names = ("score",)

    def __init__(self, ranker: SplitRanker) -> None:
        super().__init__()
        self.state_width = ranker.config.state_width
        self.sources = {
            f"{side}{suffix}": f"{side}:{source}"
            for side in ("first", "second")
            for suffix, source in (("", f"{ApartStage.stage_id}.state"), ("_mask", "attention_mask"))
        }
        self.layers, self.head = ranker.joined, ranker.head
        self.query_expansion = nn.Linear(self.state_width, ranker.config.lower.hidden)
        with torch.no_grad():
            self.query_expansion.weight.copy_(ranker.query_expansion.weight / LEVELS)
            self.query_expansion.bias.copy_(ranker.query_expansion.bias)
            for at, layer in enumerate(ranker.layers):
                found = passage_of(layer, ranker.passage_expansion, scale=LEVELS)
                for name in Passage.__dataclass_fields__:
                    self.register_buffer(f"{name}_{at}", getattr(found, name).contiguous())

    def forward(self, first: Tensor, first_mask: Tensor, second: Tensor, second_mask: Tensor) -> tuple[Tensor]:
        """(float32 [B],) of int8 [B, Q, S] and [B, T, S] and their masks, int64."""
        layers = tuple(layer for layer in self.layers if isinstance(layer, Layer))
        passages = [
            Passage(*(self.get_buffer(f"{name}_{at}") for name in Passage.__dataclass_fields__))
            for at in range(len(layers))
        ]
        flat = self.query_expansion(first.to(torch.float32).reshape(-1, self.state_width))
        hidden = flat.reshape(*first_mask.shape, -1)
        levels = second.to(torch.float32)
        return (_joined(layers, passages, hidden, first_mask, levels, second_mask, head=self.head),)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
