"""What a compression pass cost and gained, in numbers: of one that changes graphs, and of one that trains.

N rows, C labels or dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A pass over a student: its files' sizes and how its raw outputs moved on the given rows.

    Attributes:
        name: which pass, with its settings.
        bytes_before, bytes_after: of all graphs together.
        rows: how many rows were compared.
        max_difference, mean_difference: of the absolute differences between raw outputs (logits or embeddings).
        flips: rows whose label changed; None where the outputs are not logits.
        mean_cosine: between the rows' raw outputs before and after.
        correlation: between all rows' scores before and after; None where a row has more than one number.
    """

    name: str
    bytes_before: int
    bytes_after: int
    rows: int
    max_difference: float
    mean_difference: float
    flips: int | None
    mean_cosine: float
    correlation: float | None = None

    @property
    def likeness(self) -> float:
        """The correlation of scores, else the mean cosine; 1: alike."""
        return self.mean_cosine if self.correlation is None else self.correlation

    def line(self) -> str:
        """The receipt in one line for people."""
        likeness = "mean cosine" if self.correlation is None else "correlation"
        flips = "" if self.flips is None else f"{self.flips} labels changed, "
        return (
            f"{self.name}: {self.bytes_before:,} -> {self.bytes_after:,} bytes; on {self.rows} rows: "
            f"mean |difference| {self.mean_difference:.4f}, largest {self.max_difference:.4f}, "
            f"{flips}{likeness} {self.likeness:.4f}"
        )


def make_receipt(
    name: str,
    *,
    before: Sequence[Path],
    after: Sequence[Path],
    outputs_before: Floats,
    outputs_after: Floats,
    labels: bool = True,
) -> Receipt:
    """Compare a student before and after a pass.

    Args:
        name: which pass, with its settings.
        before, after: the graph files.
        outputs_before, outputs_after: float32 [N, C], raw outputs of the last exit on the same rows.
        labels: whether the outputs are logits.
    Raises: ValueError: no rows, or shapes differ.
    """
    return compared(
        name,
        bytes_before=sum(path.stat().st_size for path in before),
        bytes_after=sum(path.stat().st_size for path in after),
        outputs_before=outputs_before,
        outputs_after=outputs_after,
        labels=labels,
    )


def compared(
    name: str,
    *,
    bytes_before: int,
    bytes_after: int,
    outputs_before: Floats,
    outputs_after: Floats,
    labels: bool,
) -> Receipt:
    """The same where the sizes are known: see `make_receipt`."""
    if outputs_before.shape != outputs_after.shape or not outputs_before.size:
        raise ValueError(f"cannot compare outputs of shapes {outputs_before.shape} and {outputs_after.shape}")
    differences = np.abs(outputs_before.astype(np.float64) - outputs_after)
    return Receipt(
        name=name,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        rows=len(outputs_before),
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        flips=int((outputs_before.argmax(axis=1) != outputs_after.argmax(axis=1)).sum()) if labels else None,
        mean_cosine=float(_cosines(outputs_before, outputs_after).mean()),
        correlation=_correlation(outputs_before, outputs_after) if outputs_before.shape[1] == 1 else None,
    )


def _correlation(left: Floats, right: Floats) -> float:
    """Pearson's, of columns of N numbers; a column that does not vary counts as alike."""
    centred = [side.astype(np.float64).T - side.mean(dtype=np.float64) for side in (left, right)]
    norms = np.linalg.norm(centred[0]) * np.linalg.norm(centred[1])
    return float((centred[0] * centred[1]).sum() / norms) if norms > 0 else 1.0


def _cosines(left: Floats, right: Floats) -> npt.NDArray[np.float64]:
    """float64 [N]; rows of zeros count as alike."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norms > 0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30), 1.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """A student at one moment of a pass that trains: `accuracy` and `agreement` with the teacher on the dev rows, 0 to
    1, at full depth."""

    accuracy: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Footing:
    """A student's float32 graphs: their bytes together, and processor time of a text in microseconds, on one thread at
    full depth, in batches and alone."""

    bytes: int
    batch_us: float
    single_us: float


@dataclass(frozen=True, slots=True)
class TrainedReceipt:
    """A pass that changes the student itself and then trains on.

    Attributes:
        name: which pass, with its settings.
        before, after: the float32 student before the pass and after all of it, timed side by side.
        batch_items: of the batched times.
        rows: dev rows of the three measurements.
        whole, changed, recovered: before the pass, after it, and after the training.
    """

    name: str
    before: Footing
    after: Footing
    batch_items: int
    rows: int
    whole: Measured
    changed: Measured
    recovered: Measured

    def line(self) -> str:
        """The receipt in one line for people."""
        moments = (self.whole, self.changed, self.recovered)
        accuracies = ", ".join(f"{each.accuracy:.2%}" for each in moments)
        agreements = ", ".join(f"{each.agreement:.2%}" for each in moments)
        return (
            f"{self.name}: {self.before.bytes:,} -> {self.after.bytes:,} bytes in float32; "
            f"{self.before.batch_us:.0f} -> {self.after.batch_us:.0f} microseconds a text at batch {self.batch_items}, "
            f"{self.before.single_us:.0f} -> {self.after.single_us:.0f} alone; on {self.rows} dev rows before, after "
            f"and recovered: {accuracies} right, {agreements} as the teacher"
        )
