"""Trimming the vocabulary of a trained student: its table loses the rows of tokens that texts hardly use.

A dropped token's words fall into smaller pieces, which the student has seen in other words; so most texts stay as they
are, and the others come out a little longer. A word with a letter beyond ASCII that no kept token has becomes unknown.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.compress.receipt import Receipt, compared
from models.students.encoder import EncoderStudent
from models.students.vocabulary import Text, Trimmed, trim_tokenizer
from models.teachers.tokens import batches_in_order_of_length, tokenise

# N texts, D dimensions or labels

_BATCH_ITEMS = 64
_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class TrimmedStudent:
    """A student with a smaller table, its tokenizer, and what that cost on some texts.

    The receipt's bytes are those of the table in int8 rows and of the tokenizer.
    """

    student: EncoderStudent
    trimmed: Trimmed
    receipt: Receipt


def trim_vocabulary(
    student: EncoderStudent, trimmed: Trimmed, texts: Sequence[Text], *, min_count: int, probe: Sequence[Text]
) -> TrimmedStudent:
    """A copy of the student without the tokens that occur fewer than `min_count` times in `texts`.

    Args:
        student: trained.
        trimmed: its tokenizer.
        texts: those it was trained on.
        min_count: occurrences below which a token is dropped; special tokens stay, and single characters that are
            ASCII or in a kept token.
        probe: N texts on which both students are compared.
    Raises: RecipeInvalid: the tokenizer is not a WordPiece one.
    """
    again = trim_tokenizer(trimmed.tokenizer_json, texts, min_count=min_count)
    smaller = copy.deepcopy(student)
    rows = student.embeddings.tokens.weight.detach()[torch.from_numpy(again.kept_ids)]
    smaller.embeddings.tokens = nn.Embedding(len(rows), rows.shape[1], _weight=rows.clone())
    smaller.config = replace(student.config, vocabulary=len(rows))
    kept = Trimmed(again.tokenizer_json, trimmed.kept_ids[again.kept_ids])
    before, after = len(trimmed.kept_ids), len(again.kept_ids)
    receipt = compared(
        f"vocabulary, tokens used {min_count} times or more, {before:,} -> {after:,}",
        bytes_before=_bytes(student, trimmed),
        bytes_after=_bytes(smaller, kept),
        outputs_before=_outputs(student, trimmed, probe),
        outputs_after=_outputs(smaller, kept, probe),
        labels=student.config.output == "logits",
    )
    return TrimmedStudent(smaller.eval(), kept, receipt)


def _bytes(student: EncoderStudent, trimmed: Trimmed) -> int:
    table = student.embeddings.tokens.weight
    return table.numel() + len(table) * _SCALE_BYTES + len(trimmed.tokenizer_json)


def _outputs(student: EncoderStudent, trimmed: Trimmed, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
    """The last exit's output of each text, float32 [N, D]."""
    tokens = tokenise(trimmed.tokenizer_json, texts, max_tokens=student.config.max_tokens)
    found = np.zeros((len(texts), student.config.width), np.float32)
    student.eval()
    with torch.inference_mode():
        for rows in batches_in_order_of_length(tokens.lengths, batch_items=_BATCH_ITEMS):
            batch = tokens.padded(rows)
            found[rows] = student(batch.input_ids, batch.attention_mask, batch.token_type_ids).exits[-1].numpy()
    return found
