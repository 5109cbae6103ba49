"""The BiLSTM student: token rows, one LSTM in each direction, pooled over the tokens, an inner layer, logits.

Padding must not change an answer, and the backward direction begins where the padding is. So the LSTM reads one more
number of each token, large on padding, whose fixed weight closes the input gate there: a state that begins at zero
stays zero until the first real token. Nothing else is needed of a runtime; with lengths as an input of the operator,
ONNX Runtime took three times the time for a batch, and OpenVINO computed something else.

Source: Tang et al. 2019, arXiv:1903.12136, section 3.1, there with the last states instead of a maximum or mean.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from models.students.encoder import Outputs

# B items, T tokens, V vocabulary, E width of the token table, H states of a direction, P pooled numbers, C labels

_PADDING: Final = 20_000.0
"""What is read on padding."""

_CLOSING: Final = -0.5
"""Its weight for the input gate; no larger than trained weights, beside which it may be rounded."""

_EMPTY_STATE = -2.0
_FORGET_BIAS = 1.0


@dataclass(frozen=True, slots=True)
class BilstmConfig:
    """The student's shape. `width` is C, `token_width` is E, `states` is H; `pooling` is what the head sees of all
    states: the largest of each, their mean, or both."""

    vocabulary: int
    width: int
    token_width: int
    states: int
    head_width: int
    max_tokens: int
    pooling: Literal["max", "mean", "both"] = "max"
    dropout: float = 0.0

    @property
    def pooled(self) -> int:
        """P."""
        return 2 * self.states * (2 if self.pooling == "both" else 1)


class BilstmStudent(nn.Module):
    """The student as torch trains it; `stages` gives what is exported. Both compute the same."""

    def __init__(self, config: BilstmConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.token_width)
        self.lstm = nn.LSTM(config.token_width, config.states, bidirectional=True)
        self.inner = nn.Linear(config.pooled, config.head_width)
        self.logits = nn.Linear(config.head_width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        gates = torch.zeros(4 * config.states, 1)
        gates[: config.states] = _CLOSING
        self.register_buffer("closing", gates, persistent=False)
        self.closing: Tensor
        _initialise(self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        """The one exit's logits.

        Args:
            input_ids, attention_mask: int64 [B, T], padded on the right.
        """
        read = read_of(self.dropout(self.tokens(input_ids)), attention_mask)
        return Outputs((self.head(self._states(read), attention_mask),), (), ())

    def _states(self, read: Tensor) -> Tensor:
        """float [T, 2, B, H] of float [T, B, E + 1]."""
        tokens, items, _ = read.shape
        begin = read.new_zeros(2, items, self.config.states)
        states = torch.lstm(read, (begin, begin), self.weights(), True, 1, 0.0, self.training, True, False)[0]
        return states.reshape(tokens, items, 2, self.config.states).transpose(1, 2)

    def weights(self) -> list[Tensor]:
        """Of either direction: of the input float [4H, E + 1], of the states float [4H, H], two biases float [4H];
        gates in the order input, forget, cell, output."""
        found: list[Tensor] = []
        for end in ("", "_reverse"):
            named = {name: getattr(self.lstm, f"{name}_l0{end}") for name in _NAMES}
            found += [torch.cat([named["weight_ih"], self.closing], dim=1), *(named[name] for name in _NAMES[1:])]
        return found

    def head(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """float [B, C] of float [T, 2, B, H] and the mask int64 [B, T]."""
        mask = attention_mask.T[:, None, :, None]
        parts: list[Tensor] = []
        if self.config.pooling != "mean":
            parts.append(torch.where(mask > 0, states, _EMPTY_STATE).amax(dim=0))
        if self.config.pooling != "max":
            share = mask.to(states.dtype)
            parts.append((states * share).sum(0) / share.sum(0).clamp(min=1.0))
        pooled = torch.cat(parts).transpose(0, 1).reshape(-1, self.config.pooled)
        logits: Tensor = self.logits(self.dropout(torch.relu(self.inner(self.dropout(pooled)))))
        return logits

    def stages(self) -> "list[BilstmStage]":
        """The one graph."""
        return [BilstmStage(self)]

    def depths(self) -> tuple[float, ...]:
        """Of the one exit."""
        return (1.0,)


_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def read_of(rows: Tensor, attention_mask: Tensor) -> Tensor:
    """What the LSTM reads, float [T, B, E + 1]: the rows float [B, T, E], and what closes the gate on padding."""
    padding = (1 - attention_mask.to(rows.dtype)) * _PADDING
    return torch.cat([rows, padding[:, :, None]], dim=-1).transpose(0, 1)


class BilstmStage(nn.Module):
    """The student as one graph with ONNX's own LSTM. Its weights are those the student has when this is made."""

    stage_id = "00"
    input_names = ("input_ids", "attention_mask")
    output_names = ("logits",)

    def __init__(self, student: BilstmStudent) -> None:
        super().__init__()
        self.config, self.student = student.config, student
        whole = [weight.detach() for weight in student.weights()]
        by_name = [torch.stack([forward, backward]) for forward, backward in zip(whole[:4], whole[4:], strict=True)]
        of_input, of_states, *biases = (_reordered(weight, _TO_ONNX) for weight in by_name)
        for name, weight in (("of_input", of_input), ("of_states", of_states), ("bias", torch.cat(biases, dim=1))):
            self.register_buffer(name, weight)
        self.of_input: Tensor
        self.of_states: Tensor
        self.bias: Tensor

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """(float [B, C],) of int64 [B, T]."""
        read = read_of(self.student.tokens(input_ids), attention_mask)
        states: Tensor = OnnxLstm.apply(read, self.of_input, self.of_states, self.bias)  # type: ignore[no-untyped-call]
        return (self.student.head(states, attention_mask),)


_TO_ONNX, _FROM_ONNX = (0, 3, 1, 2), (0, 2, 3, 1)
"""Gates: torch has input, forget, cell, output; ONNX has input, output, forget, cell."""


def _reordered(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """The gates of float [2, 4H, ...] in another order."""
    gates = weight.chunk(4, dim=1)
    return torch.cat([gates[at] for at in order], dim=1)


class OnnxLstm(torch.autograd.Function):
    """ONNX's operator LSTM in both directions, as torch computes it; exported as that one node.

    Torch's own export adds initial states and turns the result round, which here the pooling does at no cost.
    """

    @staticmethod
    def forward(_: Any, read: Tensor, of_input: Tensor, of_states: Tensor, bias: Tensor) -> Tensor:
        """float [T, 2, B, H] of float [T, B, E + 1], [2, 4H, E + 1], [2, 4H, H] and [2, 8H]."""
        width = of_states.shape[-1]
        begin = read.new_zeros(2, read.shape[1], width)
        biases = bias.chunk(2, dim=1)
        parts = [_reordered(weight, _FROM_ONNX) for weight in (of_input, of_states, *biases)]
        weights = [part[direction].contiguous() for direction in (0, 1) for part in parts]
        states = torch.lstm(read, (begin, begin), weights, True, 1, 0.0, False, True, False)[0]
        return states.reshape(*read.shape[:2], 2, width).transpose(1, 2)

    @staticmethod
    def symbolic(graph: Any, read: Any, of_input: Any, of_states: Any, bias: Any) -> Any:
        """The node."""
        width = of_states.type().sizes()[-1]
        return graph.op("LSTM", read, of_input, of_states, bias, hidden_size_i=width, direction_s="bidirectional")


def _initialise(student: BilstmStudent) -> None:
    for part in (student.inner, student.logits):
        nn.init.xavier_uniform_(part.weight)
        nn.init.zeros_(part.bias)
    nn.init.normal_(student.tokens.weight, std=0.05)
    states = student.config.states
    with torch.no_grad():
        for end in ("", "_reverse"):
            first, second = (getattr(student.lstm, f"{name}_l0{end}") for name in ("bias_ih", "bias_hh"))
            first.zero_()
            second.zero_()
            # subtle: a state that is forgotten at first is hardly trained
            first[states : 2 * states] = _FORGET_BIAS
