"""Trimming the vocabulary of a trained student."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.compress.vocabulary import TrimmedStudent, trim_vocabulary
from models.export.bundle import BundleParts, write_draft
from models.export.golden_texts import GOLDEN_TEXTS
from models.export.stages import export_stages
from models.students.encoder import EncoderConfig, EncoderStudent
from models.students.vocabulary import Trimmed, untrimmed
from models.teachers.tokens import plain_tokenizer, tokenise
from service.bundle.manifest import Exit, Provenance
from service.runtime.student import Student

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


def test_ids_are_those_of_the_teacher_when_trimmed_again(student: EncoderStudent, whole: Trimmed):
    once = trim_vocabulary(student, whole, [COMMON, RARE], min_count=1, probe=[COMMON])
    twice = trim_vocabulary(once.student, once.trimmed, [COMMON], min_count=1, probe=[COMMON])
    assert len(twice.trimmed.kept_ids) <= len(once.trimmed.kept_ids) < len(whole.kept_ids)
    rows = student.embeddings.tokens.weight[torch.from_numpy(twice.trimmed.kept_ids)]
    torch.testing.assert_close(twice.student.embeddings.tokens.weight, rows)
    old, new = (vocabulary_of(each) for each in (whole, twice.trimmed))
    assert [old[token] for token in sorted(new, key=new.__getitem__)] == twice.trimmed.kept_ids.tolist()


def vocabulary_of(trimmed: Trimmed) -> dict[str, int]:
    return json.loads(trimmed.tokenizer_json)["model"]["vocab"]


@pytest.fixture
def bare(student: EncoderStudent, whole: Trimmed) -> TrimmedStudent:
    """No token is used so often: what is left is what is never dropped."""
    return trim_vocabulary(student, whole, [COMMON, RARE], min_count=1_000_000, probe=[COMMON, RARE])


def test_letters_and_special_tokens_are_left_at_least(bare: TrimmedStudent):
    left = set(vocabulary_of(bare.trimmed))
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##z"} <= left
    assert all(len(token.removeprefix("##")) == 1 for token in left if not token.startswith("["))


def test_special_tokens_keep_their_places_and_rows(student: EncoderStudent, whole: Trimmed, bare: TrimmedStudent):
    document = json.loads(bare.trimmed.tokenizer_json)
    ids = document["model"]["vocab"]
    assert {added["content"]: added["id"] for added in document["added_tokens"]} == {
        token: ids[token] for token in ids if token.startswith("[")
    }
    old, new = (plain_tokenizer(each.tokenizer_json) for each in (whole, bare.trimmed))
    for texts in ([""], ["", ""]):
        given, found = old.encode(*texts), new.encode(*texts)
        assert (found.tokens, found.type_ids) == (given.tokens, given.type_ids)
        assert [bare.trimmed.kept_ids[token] for token in found.ids] == given.ids
    assert ids["[PAD]"] == 0
    torch.testing.assert_close(bare.student.embeddings.tokens.weight[0], student.embeddings.tokens.weight[0])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("card", ["c", "##a", "##r", "##d"]),
        ("猫", ["[UNK]"]),
        ("déjà", ["d", "##e", "##j", "##a"]),
        ("где card", ["[UNK]", "c", "##a", "##r", "##d"]),
        ("[MASK]", ["[MASK]"]),
    ],
)
def test_a_word_is_spelled_or_unknown(bare: TrimmedStudent, text: str, pieces: list[str]):
    assert plain_tokenizer(bare.trimmed.tokenizer_json).encode(text).tokens == ["[CLS]", *pieces, "[SEP]"]
    assert np.isfinite(vector(bare.student, bare.trimmed, text)).all()


@pytest.mark.parametrize("least", [1, 2, 1_000_000])
def test_a_trimmed_student_is_packed_with_golden_texts_of_its_own(
    student: EncoderStudent, whole: Trimmed, tmp_path: Path, least: int
):
    """Texts in any script, and empty ones, go through the smaller table as torch and the service read them."""
    made = trim_vocabulary(student, whole, [COMMON] * 3 + [RARE], min_count=least, probe=[COMMON])
    (exported,) = export_stages(made.student.stages(), tmp_path / "graphs")
    parts = BundleParts(
        name="near",
        task="embed",
        max_tokens=32,
        tokenizer_json=made.trimmed.tokenizer_json,
        stages=(exported.stage,),
        exits=(Exit(id="full", stage="00", output="embedding", depth=1.0),),
        graphs={"fp32": {"00": exported.path}},
        default_precision="fp32",
        provenance=Provenance(made_by="test", created="2025-01-01T00:00:00Z"),
        space_id="near-1",
        embedding_dimensions=8,
    )
    served = Student(write_draft(tmp_path / "bundle", parts))
    served.check_golden()
    top = len(made.trimmed.kept_ids)
    for item, text in zip(served.encoder.encode(GOLDEN_TEXTS), GOLDEN_TEXTS, strict=True):
        assert 0 <= item.input_ids.min() <= item.input_ids.max() < top
        np.testing.assert_allclose(
            served.all_exits([item])[0][0], vector(made.student, made.trimmed, text), rtol=1e-4, atol=1e-4
        )
