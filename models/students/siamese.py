"""The siamese student: one encoder reads each text of a pair alone, to one vector; a small head joins two vectors.

    ids ── encoder ── pooled ── vector u ┐
                                         ├─ [u, v, |u - v|, u * v] ── inner layer ── logits
    ids ── encoder ── pooled ── vector v ┘

Both texts take the same encoder; token types tell one from the other. A text costs the same whatever it is paired with,
and nothing but its vector is needed of it afterwards.

In training a pair comes as one sequence, [CLS] first [SEP] second [SEP], so that labels, variants and batches are those
of students that read it so; `apart` takes it to pieces, which are what a service makes of the two texts.

Sources: Reimers & Gurevych 2019 (Sentence-BERT), arXiv:1908.10084, section 3, for the encoder shared by both texts;
Conneau et al. 2017 (InferSent), arXiv:1705.02364, section 3.1, for what the head sees of two vectors.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.errors import RecipeInvalid
from models.students.encoder import EncoderConfig, EncoderStudent, Outputs, mask_bias
from models.teachers.fit import fast_matmul
from models.teachers.tokens import Padded, plain_tokenizer

# B pairs, T tokens of a pair as one sequence, L tokens of the longest text alone, N texts, H hidden, D width of a
# vector, C labels

_MASKED_STATE = -100.0


@dataclass(frozen=True, slots=True)
class SiameseConfig:
    """The shape. `encoder`: reads one text, without exits; `max_tokens` is of each text. `width` is C.

    `vector_width` is D where the mean and the largest of the states are mapped to fewer numbers; None: they are the
    vector themselves, 2 H.
    """

    encoder: EncoderConfig
    width: int
    head_width: int
    vector_width: int | None = None

    @property
    def vector(self) -> int:
        """D."""
        return self.vector_width or 2 * self.encoder.hidden


def apart(pairs: Padded, *, max_tokens: int) -> Padded:
    """Pairs as one sequence to 2 B texts alone, the first ones before the second ones.

    Args:
        pairs: int64 [B, T], [CLS] first [SEP] second [SEP], padded on the right, types of 1 from the second text on.
        max_tokens: a longer text is cut at its end, before the last token.
    Returns: int64 [2 B, L]; a second text begins with the [CLS] of its pair and has types of 1 everywhere.
    """
    second = pairs.token_type_ids * pairs.attention_mask
    firsts = (pairs.attention_mask - second).sum(1)
    lengths = torch.cat([firsts, second.sum(1) + 1])
    kept = lengths.clamp(max=max_tokens)
    # where a token stands in its pair, less where it stands in its text; the first one of a pair begins both
    shift = torch.cat([torch.zeros_like(firsts), firsts - 1])
    places = torch.arange(int(kept.max()))[None, :]
    mask = (places < kept[:, None]).long()
    ends = places == kept[:, None] - 1
    at = torch.where(ends, lengths[:, None] - 1, places)
    at = torch.where(places == 0, 0, at + shift[:, None]) * mask
    ids = torch.cat([pairs.input_ids, pairs.input_ids]).gather(1, at) * mask
    types = torch.cat([torch.zeros_like(firsts), torch.ones_like(firsts)])[:, None] * mask
    return Padded(ids, mask, types)


def check_apart(tokenizer_json: bytes) -> None:
    """Raises: RecipeInvalid: a pair as one sequence is not its first text and then the second one without [CLS]."""
    tokenizer = plain_tokenizer(tokenizer_json)
    joint, first, second = tokenizer.encode("a", "b"), tokenizer.encode("a"), tokenizer.encode("b")
    begin = len(first.ids)
    fits = joint.ids == first.ids + second.ids[1:] and joint.ids[:1] == second.ids[:1]
    if not fits or joint.type_ids != [0] * begin + [1] * (len(joint.ids) - begin):
        raise RecipeInvalid(
            "student.architecture: siamese needs a tokenizer that writes a pair as [CLS] first [SEP] second [SEP] with "
            "types of 0 and 1, and the teacher's does not"
        )


class SiameseStudent(nn.Module):
    """The whole student. `stages` cuts it between the texts apart and joined; cut or whole, it computes the same."""

    def __init__(self, config: SiameseConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.encoder.hidden
        self.encoder = EncoderStudent(config.encoder)
        self.vector = None if config.vector_width is None else nn.Linear(2 * hidden, config.vector_width)
        self.inner = nn.Linear(4 * config.vector, config.head_width)
        self.dropout = nn.Dropout(config.encoder.dropout)
        self.logits = nn.Linear(config.head_width, config.width)
        for part in (self.vector, self.inner, self.logits):
            if part is not None:
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)

    def states(self, text: Padded) -> Tensor:
        """float [N*L, H], the encoder's last states of texts alone, int64 [N, L]."""
        flat: Tensor = self.encoder.embeddings(text.input_ids, text.token_type_ids)
        bias = mask_bias(text.attention_mask)
        for layer in self.encoder.layers:
            flat, _ = layer(flat, bias)
        return flat

    def vectors(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """float [N, D] of what `states` gives, and the mask int64 [N, L]."""
        pooled: Tensor = self.dropout(_pooled(states, attention_mask))
        if self.vector is not None:
            pooled = self.vector(pooled)
        return pooled

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """float [B, C], the logits of pairs of vectors, float [B, D] each."""
        seen = torch.cat([first, second, (first - second).abs(), first * second], dim=-1)
        logits: Tensor = self.logits(self.dropout(torch.relu(self.inner(seen))))
        return logits

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Outputs:
        """The one exit's logits.

        Args:
            input_ids, attention_mask, token_type_ids: int64 [B, T], pairs as `apart` takes them.
        """
        texts = apart(Padded(input_ids, attention_mask, token_type_ids), max_tokens=self.config.encoder.max_tokens)
        states = self.states(texts)
        # subtle: vectors of texts that say the same differ by less than bfloat16 tells apart
        with fast_matmul(False):
            first, second = self.vectors(states.float(), texts.attention_mask).chunk(2)
            return Outputs((self.join(first, second),), (), ())

    def stages(self) -> tuple["ReadStage", "JoinStage"]:
        """What is exported: the part that reads one text, and the part that joins two; parameters are shared."""
        return ReadStage(self), JoinStage(self)

    def depths(self) -> tuple[float, ...]:
        """Of the one exit."""
        return (1.0,)


def _pooled(flat: Tensor, attention_mask: Tensor) -> Tensor:
    """float [N, 2 H]: the mean and the largest over the tokens of float [N*L, H], with the mask int64 [N, L]."""
    mask = attention_mask.to(flat.dtype)
    hidden = flat.reshape(mask.shape[0], mask.shape[1], -1)
    mean = ((mask / mask.sum(1, keepdim=True))[:, None, :] @ hidden)[:, 0]
    largest = torch.where(attention_mask[:, :, None] > 0, hidden, _MASKED_STATE).amax(dim=1)
    return torch.cat([mean, largest], dim=-1)


class ReadStage(nn.Module):
    """One text to its vector: what is exported as the first graph."""

    stage_id = "00"
    scope: Literal["item"] = "item"
    cacheable = True
    input_names = ("input_ids", "attention_mask", "token_type_ids")
    output_names = ("vector",)

    def __init__(self, student: SiameseStudent) -> None:
        super().__init__()
        self.student, self.config = student, student.config.encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor]:
        """(float32 [N, D],) of int64 [N, L]."""
        states = self.student.states(Padded(input_ids, attention_mask, token_type_ids))
        return (self.student.vectors(states, attention_mask),)


class JoinStage(nn.Module):
    """Two texts' vectors to logits: what is exported as the second graph."""

    stage_id = "01"
    scope: Literal["pair"] = "pair"
    cacheable = False
    input_names = ("first", "second")
    output_names = ("logits",)

    def __init__(self, student: SiameseStudent) -> None:
        super().__init__()
        self.student, self.vector_width = student, student.config.vector
        self.sources = {side: f"{side}:{ReadStage.stage_id}.vector" for side in self.input_names}

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor]:
        """(float32 [B, C],) of float32 [B, D] each."""
        return (self.student.join(first, second),)
