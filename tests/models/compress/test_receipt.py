"""Receipts of compression passes."""

from pathlib import Path

import numpy as np
import pytest

from models.compress.receipt import Footing, Measured, TrainedReceipt, make_receipt


@pytest.fixture
def files(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    big, small = tmp_path / "big", tmp_path / "small"
    big.write_bytes(b"x" * 100)
    small.write_bytes(b"x" * 30)
    return [big], [small]


def test_it_counts_bytes_differences_and_changed_labels(files):
    before = np.array([[1, 0], [0, 1], [2, 2.5]], np.float32)
    after = np.array([[1, 0], [0.6, 0.5], [2, 2.5]], np.float32)
    receipt = make_receipt("int8", before=files[0], after=files[1], outputs_before=before, outputs_after=after)
    assert (receipt.bytes_before, receipt.bytes_after, receipt.rows, receipt.flips) == (100, 30, 3, 1)
    assert receipt.max_difference == pytest.approx(0.6)
    assert receipt.mean_difference == pytest.approx(1.1 / 6)
    assert "100 -> 30 bytes" in receipt.line()
    assert "1 labels changed" in receipt.line()


def test_embeddings_have_no_labels(files):
    rows = np.eye(3, dtype=np.float32)
    receipt = make_receipt(
        "int8", before=files[0], after=files[1], outputs_before=rows, outputs_after=rows, labels=False
    )
    assert receipt.flips is None
    assert receipt.mean_cosine == 1
    assert "labels" not in receipt.line()


def test_rows_of_zeros_count_as_alike(files):
    zeros = np.zeros((2, 3), np.float32)
    receipt = make_receipt("x", before=files[0], after=files[1], outputs_before=zeros, outputs_after=zeros)
    assert receipt.mean_cosine == 1


@pytest.mark.parametrize("shape", [(0, 2), (3, 3)])
def test_what_cannot_be_compared_is_an_error(files, shape):
    with pytest.raises(ValueError, match="cannot compare"):
        make_receipt(
            "x",
            before=files[0],
            after=files[1],
            outputs_before=np.zeros(shape, np.float32),
            outputs_after=np.zeros((0, 2), np.float32),
        )


def test_scores_are_correlated_over_all_rows(files):
    before = np.array([[1.0], [2.0], [4.0]], np.float32)
    receipt = make_receipt(
        "int8", before=files[0], after=files[1], outputs_before=before, outputs_after=before * 2 - 3, labels=False
    )
    assert receipt.likeness == receipt.correlation == pytest.approx(1)
    assert "correlation 1.0000" in receipt.line()
    flat = np.ones((3, 1), np.float32)
    same = make_receipt("int8", before=files[0], after=files[1], outputs_before=flat, outputs_after=flat, labels=False)
    assert same.likeness == 1


def test_a_pass_that_trains_says_size_speed_and_quality_before_and_after():
    receipt = TrainedReceipt(
        name="prune",
        before=Footing(7_000, 120.4, 410.0),
        after=Footing(4_000, 70.6, 300.0),
        batch_items=32,
        rows=512,
        whole=Measured(0.93, 0.96),
        changed=Measured(0.81, 0.84),
        recovered=Measured(0.925, 0.95),
    )
    assert receipt.line() == (
        "prune: 7,000 -> 4,000 bytes in float32; 120 -> 71 microseconds a text at batch 32, 410 -> 300 alone; "
        "on 512 dev rows before, after and recovered: 93.00%, 81.00%, 92.50% right, 96.00%, 84.00%, 95.00% as the "
        "teacher"
    )
