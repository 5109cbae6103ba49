"""The encoder student: token embeddings, post-LN transformer layers, a head at each exit, cut into stages there.

Written plainly, so that the exported graphs hold standard operators only: inside a stage the states are flat
[B*T, H], so that every linear layer is one Gemm; attention is spelled out; the mask is an addend.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

# B items, T tokens, H hidden, A width of the attention, E width of the token table, C labels, F local features

_MASKED_SCORE = -10_000.0
_MASKED_STATE = -100.0
_NORM_EPS = 1e-12
_REFERENCE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The student's shape. `exits` are layer numbers, rising, the last being `layers`; 0 is after the embeddings.

    `token_width` is the width of the token table (then projected to `hidden`); None: `hidden` itself.
    `local_features` are channels of a convolution over three tokens that the exit at 0 sees besides the pooled
    states; 0: none. `head_width` is the width of each exit's one inner layer. `width` is that of an exit's output: C
    labels of `logits`, D dimensions of an `embedding`, 1 for a `score`. `attention_width` is that of all heads of a
    layer together; None: `hidden`. `pairs`: an item is two texts as one sequence, which token types tell apart.
    """

    vocabulary: int
    width: int
    layers: int
    hidden: int
    heads: int
    feed_forward: int
    exits: tuple[int, ...]
    max_tokens: int
    token_width: int | None = None
    local_features: int = 0
    head_width: int = 256
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = 0.0
    output: Literal["logits", "embedding", "score"] = "logits"
    attention_width: int | None = None
    pairs: bool = False


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a pass gives: `exits` float [B, C] of each exit; `hidden` float [B, T, H] after the embeddings and each
    layer, `attention` float [B, heads, T, T] of each layer before dropout."""

    exits: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


class Embeddings(nn.Module):
    """Token and position rows, normalised. The row of token type 0 is folded into the positions; `second` float [H],
    with pairs, is what that of type 1 has besides."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.token_width or config.hidden
        self.tokens = nn.Embedding(config.vocabulary, width)
        self.projection = nn.Linear(width, config.hidden) if width != config.hidden else None
        self.positions = nn.Parameter(torch.zeros(config.max_tokens, config.hidden))
        self.second = nn.Parameter(torch.zeros(config.hidden)) if config.pairs else None
        self.norm = nn.LayerNorm(config.hidden, eps=_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """float [B*T, H] of int64 [B, T]; the types are looked at with pairs alone."""
        rows = self.tokens(input_ids)
        if self.projection is not None:
            rows = self.projection(rows)
        rows = rows + self.positions[: input_ids.shape[1]]
        if self.second is not None and token_type_ids is not None:
            rows = rows + token_type_ids[:, :, None].to(rows.dtype) * self.second
        states = self.norm(rows)
        flat: Tensor = self.dropout(states).reshape(-1, states.shape[-1])
        return flat


class Layer(nn.Module):
    """One post-LN transformer layer on flat states."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden, attended = config.hidden, config.attention_width or config.hidden
        self.heads, self.width = config.heads, attended // config.heads
        self.query, self.key = nn.Linear(hidden, attended), nn.Linear(hidden, attended)
        self.value, self.output = nn.Linear(hidden, attended), nn.Linear(attended, hidden)
        self.attention_norm, self.norm = nn.LayerNorm(hidden, eps=_NORM_EPS), nn.LayerNorm(hidden, eps=_NORM_EPS)
        self.up, self.down = nn.Linear(hidden, config.feed_forward), nn.Linear(config.feed_forward, hidden)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.GELU()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, flat: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """States and attention.

        Args:
            flat: float [B*T, H].
            bias: float [B, 1, 1, T], 0 on tokens and very negative on padding.
        Returns: float [B*T, H], and the attention weights float [B, heads, T, T].
        """
        query, key, value = (self._split(part(flat), bias) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) * (1 / math.sqrt(self.width)) + bias
        attention = torch.softmax(scores, dim=-1)
        mixed = (self.dropout(attention) @ value).transpose(1, 2).reshape(-1, self.heads * self.width)
        flat = self.attention_norm(flat + self.dropout(self.output(mixed)))
        inner = self.down(self.activation(self.up(flat)))
        return self.norm(flat + self.dropout(inner)), attention

    def _split(self, flat: Tensor, bias: Tensor) -> Tensor:
        """float [B, heads, T, A / heads] of [B*T, A]."""
        return flat.reshape(bias.shape[0], bias.shape[-1], self.heads, self.width).transpose(1, 2)


class LocalFeatures(nn.Module):
    """A convolution over each token and its two neighbours, and the largest value of each channel."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.features = nn.Linear(3 * config.hidden, config.local_features)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """float [B, F] of float [B, T, H] and the mask float [B, T]."""
        inside = nn.functional.pad(hidden * mask[:, :, None], (0, 0, 1, 1))
        around = torch.cat([inside[:, :-2], inside[:, 1:-1], inside[:, 2:]], dim=-1)
        flat = torch.relu(self.features(around.reshape(-1, around.shape[-1])))
        return (flat.reshape(mask.shape[0], mask.shape[1], -1) * mask[:, :, None]).amax(dim=1)


class LogitsHead(nn.Module):
    """Mean and maximum over the tokens (and local features, where it has them), one inner layer, logits."""

    def __init__(self, config: EncoderConfig, *, local: bool) -> None:
        super().__init__()
        self.local = LocalFeatures(config) if local else None
        width = 2 * config.hidden + (config.local_features if local else 0)
        self.inner = nn.Linear(width, config.head_width)
        self.dropout = nn.Dropout(config.dropout)
        self.logits = nn.Linear(config.head_width, config.width)

    def forward(self, flat: Tensor, attention_mask: Tensor) -> Tensor:
        """float [B, C] of flat states float [B*T, H] and the mask int64 [B, T]."""
        mask = attention_mask.to(flat.dtype)
        hidden = flat.reshape(mask.shape[0], mask.shape[1], -1)
        mean = _mean(hidden, mask)
        largest = torch.where(attention_mask[:, :, None] > 0, hidden, _MASKED_STATE).amax(dim=1)
        seen = [mean, largest] if self.local is None else [mean, largest, self.local(hidden, mask)]
        inner = torch.relu(self.inner(self.dropout(torch.cat(seen, dim=-1))))
        logits: Tensor = self.logits(self.dropout(inner))
        return logits

    def multiply_adds(self, tokens: int) -> int:
        """For one text of `tokens` tokens."""
        local = 0 if self.local is None else tokens * self.local.features.weight.numel()
        return local + self.inner.weight.numel() + self.logits.weight.numel()


class EmbeddingHead(nn.Module):
    """Mean over the tokens, then one linear map to the embedding's dimensions."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Linear(config.hidden, config.width)

    def forward(self, flat: Tensor, attention_mask: Tensor) -> Tensor:
        """float [B, D], not normalised, of flat states float [B*T, H] and the mask int64 [B, T]."""
        mask = attention_mask.to(flat.dtype)
        embedding: Tensor = self.embedding(_mean(flat.reshape(mask.shape[0], mask.shape[1], -1), mask))
        return embedding

    def multiply_adds(self, tokens: int) -> int:
        """For one text, however many tokens it has."""
        return self.embedding.weight.numel()


ExitHead = LogitsHead | EmbeddingHead


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """float [B, H], the mean over the tokens of float [B, T, H] with the mask float [B, T]."""
    return ((mask / mask.sum(1, keepdim=True))[:, None, :] @ hidden)[:, 0]


class EncoderStudent(nn.Module):
    """The whole student. `stages` cuts it at its exits; cut or whole, it computes the same."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.exits = nn.ModuleList(_head(config, leave) for leave in config.exits)
        self.apply(_initialise)

    def exit_head(self, index: int) -> ExitHead:
        """The head of the exit at `index`."""
        head = self.exits[index]
        assert isinstance(head, LogitsHead | EmbeddingHead)
        return head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Outputs:
        """Run all layers.

        Args:
            input_ids: int64 [B, T], T at most `max_tokens`.
            attention_mask: int64 [B, T], 1 on tokens, 0 on padding.
            token_type_ids: int64 [B, T], 1 on the second text's tokens; needed with pairs.
        """
        shape = (*input_ids.shape, self.config.hidden)
        flat, bias = self.embeddings(input_ids, token_type_ids), mask_bias(attention_mask)
        states, attentions = [flat], []
        for layer in self.layers:
            flat, attention = layer(flat, bias)
            states.append(flat)
            attentions.append(attention)
        exits = [head(states[leave], attention_mask) for leave, head in zip(self.config.exits, self.exits, strict=True)]
        return Outputs(tuple(exits), tuple(state.reshape(shape) for state in states), tuple(attentions))

    def stages(self) -> "list[StageModule]":
        """The student cut at its exits, one module an exit; parameters are shared with the student."""
        begins = (0, *self.config.exits[:-1])
        return [StageModule(self, index, begin) for index, begin in enumerate(begins)]

    def depths(self, *, tokens: int = _REFERENCE_TOKENS) -> tuple[float, ...]:
        """Of each exit, the share of the full student's multiply-adds for a text of `tokens` tokens."""
        done = 0
        at_exits: list[int] = []
        for stage in self.stages():
            done += stage.multiply_adds(tokens)
            at_exits.append(done)
        return tuple(count / done for count in at_exits)


class StageModule(nn.Module):
    """From one exit (or the ids) to the next: what is exported as one graph.

    `input_names` are those of forward's arguments, `output_names` of its outputs: `hidden` and the exit's, in the
    last stage the exit's alone.
    """

    def __init__(self, student: EncoderStudent, index: int, begin: int) -> None:
        super().__init__()
        config = student.config
        end = config.exits[index]
        self.config = config
        self.stage_id = f"{index:02d}"
        self.is_first, self.is_last = index == 0, index == len(config.exits) - 1
        types = ("token_type_ids",) if self.is_first and config.pairs else ()
        self.input_names = ("input_ids" if self.is_first else "hidden", "attention_mask", *types)
        self.output_names = (config.output,) if self.is_last else ("hidden", config.output)
        self.embeddings = student.embeddings if self.is_first else None
        self.layers = nn.ModuleList(student.layers[at] for at in range(begin, end))
        self.exit = student.exit_head(index)

    def forward(
        self, source: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """One stage.

        Args:
            source: int64 [B, T] ids in the first stage, else float32 [B, T, H].
            attention_mask: int64 [B, T].
            token_type_ids: int64 [B, T], in the first stage of pairs.
        Returns: (hidden float32 [B, T, H], the exit's output float32 [B, C]), in the last stage that output alone.
        """
        if self.embeddings is not None:
            flat = self.embeddings(source, token_type_ids)
        else:
            flat = source.reshape(-1, self.config.hidden)
        if len(self.layers):
            bias = mask_bias(attention_mask)
            for layer in self.layers:
                flat, _ = layer(flat, bias)
        answer = self.exit(flat, attention_mask)
        if self.config.output == "score":
            answer = answer[:, 0]
        if self.is_last:
            return (answer,)
        return flat.reshape(attention_mask.shape[0], attention_mask.shape[1], self.config.hidden), answer

    def multiply_adds(self, tokens: int) -> int:
        """Multiply-adds for one text of `tokens` tokens; look-ups and norms count as none."""
        config = self.config
        attended = config.attention_width or config.hidden
        layer = 4 * config.hidden * attended + 2 * config.hidden * config.feed_forward + 2 * tokens * attended
        total = len(self.layers) * layer * tokens
        if self.embeddings is not None and self.embeddings.projection is not None:
            total += tokens * self.embeddings.projection.weight.numel()
        return total + self.exit.multiply_adds(tokens)


def _head(config: EncoderConfig, leave: int) -> ExitHead:
    if config.output == "embedding":
        return EmbeddingHead(config)
    return LogitsHead(config, local=config.local_features > 0 and leave == 0)


def mask_bias(attention_mask: Tensor) -> Tensor:
    """float32 [B, 1, 1, T]: 0 on tokens, so negative on padding that its attention is exactly 0."""
    return (1 - attention_mask.to(torch.float32))[:, None, None, :] * _MASKED_SCORE


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.05)
