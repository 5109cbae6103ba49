"""Trimming the vocabulary of a trained student."""

import numpy as np
import pytest
import torch

from models.compress.vocabulary import trim_vocabulary
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.vocabulary import Trimmed, untrimmed
from models.teachers.tokens import tokenise

COMMON, RARE = "the card is late", "the electroencephalograph"


@pytest.fixture
def whole(tokenizer_json: bytes) -> Trimmed:
    return untrimmed(tokenizer_json)


@pytest.fixture
def student(whole: Trimmed) -> EncoderStudent:
    torch.manual_seed(0)
    shape = EncoderConfig(
        vocabulary=len(whole.kept_ids), width=8, layers=1, hidden=16, heads=2, feed_forward=16, exits=(1,),
        max_tokens=32, output="embedding",
    )  # fmt: skip
    return EncoderStudent(shape).eval()


def vector(student: EncoderStudent, trimmed: Trimmed, text: str) -> np.ndarray:
    batch = tokenise(trimmed.tokenizer_json, [text], max_tokens=32).padded([0])
    with torch.no_grad():
        return student(batch.input_ids, batch.attention_mask).exits[0].numpy()[0]


def test_texts_of_kept_tokens_stay_as_they_are(student: EncoderStudent, whole: Trimmed):
    made = trim_vocabulary(student, whole, [COMMON] * 3 + [RARE], min_count=2, probe=[COMMON])
    assert len(made.trimmed.kept_ids) < len(whole.kept_ids)
    assert len(made.student.embeddings.tokens.weight) == len(made.trimmed.kept_ids)
    assert made.student.config.vocabulary == len(made.trimmed.kept_ids)
    np.testing.assert_allclose(
        vector(made.student, made.trimmed, COMMON), vector(student, whole, COMMON), rtol=1e-5, atol=1e-6
    )
    assert made.receipt.max_difference < 1e-5
    assert made.receipt.bytes_after < made.receipt.bytes_before


def test_the_student_that_was_given_stays_whole(student: EncoderStudent, whole: Trimmed):
    before = student.embeddings.tokens.weight.detach().clone()
    trim_vocabulary(student, whole, [COMMON], min_count=1, probe=[COMMON])
    torch.testing.assert_close(student.embeddings.tokens.weight.detach(), before)


def test_rows_are_those_of_the_same_tokens(student: EncoderStudent, whole: Trimmed):
    made = trim_vocabulary(student, whole, [COMMON], min_count=1, probe=[COMMON])
    torch.testing.assert_close(
        made.student.embeddings.tokens.weight, student.embeddings.tokens.weight[torch.from_numpy(made.trimmed.kept_ids)]
    )


def test_a_receipt_says_what_moved(student: EncoderStudent, whole: Trimmed, tokenizer_json: bytes):
    dropped = trim_vocabulary(student, whole, [COMMON], min_count=1, probe=["late late zzz late"])
    assert "vocabulary, tokens used 1 times or more" in dropped.receipt.line()
    assert dropped.receipt.rows == 1
