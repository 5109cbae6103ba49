"""The cascade: a bag of n-grams answers what is easy, an encoder with exits of its own the rest; one pipeline."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.students.encoder import EncoderConfig, EncoderStudent, Outputs, StageModule
from models.students.ngram import NgramConfig, NgramStage, NgramStudent

_REFERENCE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class CascadeConfig:
    """Both parts' shapes; they read the same ids and have the same labels."""

    ngram: NgramConfig
    encoder: EncoderConfig


class CascadeStudent(nn.Module):
    """Both parts side by side. The encoder learns nothing from the bag and the other way round."""

    def __init__(self, config: CascadeConfig) -> None:
        super().__init__()
        self.config = config
        self.ngram = NgramStudent(config.ngram)
        self.encoder = EncoderStudent(config.encoder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        """The bag's exit, then the encoder's; states and attention are the encoder's.

        Args:
            input_ids, attention_mask: int64 [B, T], padded on the right.
        """
        first = self.ngram(input_ids, attention_mask)
        rest = self.encoder(input_ids, attention_mask)
        return Outputs((*first.exits, *rest.exits), rest.hidden, rest.attention)

    def stages(self) -> "list[NgramStage | StageModule]":
        """The bag, then the encoder's stages, the first of which reads the ids again."""
        rest = self.encoder.stages()
        for number, stage in enumerate(rest, start=1):
            stage.stage_id = f"{number:02d}"
        return [*self.ngram.stages(), *rest]

    def depths(self, *, tokens: int = _REFERENCE_TOKENS) -> tuple[float, ...]:
        """Of each exit, the share of all multiply-adds for a text of `tokens` tokens."""
        counts = torch.tensor([stage.multiply_adds(tokens) for stage in self.stages()], dtype=torch.float64)
        return tuple((counts.cumsum(0) / counts.sum()).tolist())
