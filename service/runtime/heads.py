"""From raw exit outputs to answers, and the rule by which items leave early. Pure numpy. B items, C labels.

Confidences are taken in float64 from the float32 logits, by these functions alone, offline and online: a
certified threshold then means the same number everywhere.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.bundle.manifest import Confidence, Manifest
from service.errors import RunFailed

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
ExitSetting = Literal["default", "never"] | float


@dataclass(frozen=True, slots=True)
class ExitPolicy:
    """When items may leave before the last exit.

    Attributes:
        thresholds: one for each exit but the last, in pipeline order; None: nobody leaves there.
        confidence: the rule whose value is compared with them.
        risk_requested: what the request (or the student's default) asked for; None: full depth.
        risk_applied: the certified point in use; None: full depth.
    """

    thresholds: tuple[float | None, ...]
    confidence: Confidence = "max_probability"
    risk_requested: float | None = None
    risk_applied: float | None = None

    @property
    def is_off(self) -> bool:
        """Whether nobody leaves before the last exit."""
        return all(threshold is None for threshold in self.thresholds)


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its probability."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class LabelAnswer:
    """The likeliest label, and the `top_k` likeliest in falling order where they were asked for."""

    label: str
    score: float
    labels: tuple[LabelScore, ...] = ()


def _powers(logits: npt.NDArray[np.floating], temperature: float) -> Doubles:
    """e to the scaled logits, each row's largest being e ** 0 = 1."""
    scaled = logits.astype(np.float64)
    scaled -= np.maximum.reduce(scaled, axis=-1, keepdims=True)
    scaled /= temperature
    return np.exp(scaled, out=scaled)


def softmax(logits: npt.NDArray[np.floating], *, temperature: float = 1.0) -> Doubles:
    """Probabilities over the last axis; safe for logits of any finite size.

    Args:
        logits: [..., C], raw.
        temperature: > 0; divides the logits.
    Returns: float64 of the same shape; NaN where a row holds NaN or only infinities.

    >>> softmax(np.array([[1000.0, 1000.0]])).tolist()
    [[0.5, 0.5]]
    """
    with np.errstate(invalid="ignore"):
        powers = _powers(logits, temperature)
        powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def confidence(scores: Doubles, rule: Confidence) -> Doubles:
    """How sure each row of probabilities is, in [0, 1].

    Args:
        scores: [B, C], after the softmax.
        rule: `max_probability` p1; `margin` p1 - p2; `entropy` 1 - H(p) / ln C.
    Returns: float64 [B].

    >>> p = np.array([[0.75, 0.25]])
    >>> [round(float(confidence(p, rule)[0]), 3) for rule in ("max_probability", "margin", "entropy")]
    [0.75, 0.5, 0.189]
    """
    if rule == "max_probability":
        return np.asarray(scores.max(axis=-1))
    if rule == "margin":
        top = np.partition(scores, -2, axis=-1)
        return np.asarray(top[..., -1] - top[..., -2])
    # subtle: p ln p is taken as 0 at p = 0, its limit; the outer clip hides rounding below 0
    logs = np.log(np.where(scores > 0, scores, 1.0))
    return np.asarray(np.clip(1.0 + (scores * logs).sum(axis=-1) / np.log(scores.shape[-1]), 0.0, 1.0))


def certainty(logits: Floats, *, temperature: float, rule: Confidence) -> Doubles:
    """`confidence(softmax(logits, temperature), rule)`, to the last bit, in less time for the usual rule.

    Args:
        logits: [B, C], raw.
        temperature: > 0.
        rule: as for `confidence`.
    Returns: float64 [B].
    """
    if rule != "max_probability":
        return confidence(softmax(logits, temperature=temperature), rule)
    # subtle: the largest power is exactly 1, so that the largest probability is 1 over the sum
    with np.errstate(invalid="ignore"):
        return np.asarray(1.0 / np.add.reduce(_powers(logits, temperature), axis=-1))


def leaving(scores: Doubles, policy: ExitPolicy, exit_index: int) -> Flags:
    """Which items leave at an exit before the last.

    Args:
        scores: [B, C], softmax of that exit's logits at that exit's temperature.
        policy: the thresholds.
        exit_index: which exit, from 0.
    Returns: bool [B]; False for rows with NaN, which the last exit then reports.
    """
    threshold = policy.thresholds[exit_index]
    if threshold is None:
        return np.zeros(len(scores), dtype=np.bool_)
    return np.asarray(confidence(scores, policy.confidence) >= threshold)


def never(manifest: Manifest) -> ExitPolicy:
    """The policy under which every item goes to full depth."""
    return ExitPolicy(thresholds=(None,) * (len(manifest.exits) - 1))


def policy_for(manifest: Manifest, *, backend: str, precision: str, exit: ExitSetting = "default") -> ExitPolicy:
    """The exit policy that serves a request.

    Args:
        manifest: the student's.
        backend, precision: what computes; only their own certificate counts.
        exit: "default" (the student's default risk), "never", or the risk the caller accepts.
    Returns: the largest certified point not above the risk; full depth where there is none.
    """
    risk = {"default": manifest.default_risk, "never": None}[exit] if isinstance(exit, str) else exit
    certificate = manifest.certificate(backend=backend, precision=precision)
    inner = len(manifest.exits) - 1
    # embed and rank risks are per request and not certified by this form of certificate
    if risk is None or certificate is None or manifest.task != "classify":
        return ExitPolicy(thresholds=(None,) * inner, risk_requested=risk)
    points = [point for point in certificate.points if point.risk <= risk]
    if not points:
        return ExitPolicy((None,) * inner, certificate.confidence, risk_requested=risk)
    best = max(points, key=lambda point: point.risk)
    return ExitPolicy(best.thresholds, certificate.confidence, risk_requested=risk, risk_applied=best.risk)


@dataclass(frozen=True, slots=True)
class Likeliest:
    """Of each row of logits: the place of the largest, and its probability."""

    places: list[int]
    probabilities: list[float]


def likeliest(logits: Floats, *, temperature: float) -> Likeliest:
    """What `label_answer` finds of each row, for a batch in little more time than for one.

    Args:
        logits: float32 [B, C], finite.
        temperature: > 0.

    >>> found = likeliest(np.array([[0, 9], [5, 5]], np.float32), temperature=1.0)
    >>> found.places, [round(p, 4) for p in found.probabilities]
    ([1, 0], [0.9999, 0.5])
    """
    places: list[int] = logits.argmax(axis=-1).tolist()
    # subtle: as in `certainty`, the largest power is exactly 1
    sums = np.add.reduce(_powers(logits, temperature), axis=-1)
    return Likeliest(places, (1.0 / sums).tolist())


def label_answer(raw: Floats, *, temperature: float, labels: tuple[str, ...], top_k: int = 0) -> LabelAnswer:
    """The answer of a classify item.

    Args:
        raw: float32 [C], the logits of the exit it left at.
        temperature: of that exit's scores (`answer_temperature`).
        labels: C names.
        top_k: how many labels to list; 0 lists none, more than C lists all.
    Raises:
        RunFailed: the logits are not finite.
    """
    values = raw.tolist()
    # subtle: the sum is not finite if any is not, and float32 numbers do not overflow a float64
    if not math.isfinite(sum(values)):
        raise RunFailed("the student computed no finite scores for this input")
    # subtle: not `argmax`, which lets other threads have the interpreter lock and then waits to get it back
    highest = max(values)
    best = values.index(highest)
    if not top_k:
        # subtle: as in `certainty`, the largest power is exactly 1
        powers = raw.astype(np.float64)
        powers -= highest
        powers /= temperature
        return LabelAnswer(labels[best], 1.0 / float(np.add.reduce(np.exp(powers, out=powers))))
    scores = softmax(raw, temperature=temperature)
    # subtle: a stable sort of the raw logits, so that ties and saturated scores keep the order of `argmax`
    order = np.argsort(-raw, kind="stable")[:top_k]
    listed = tuple(LabelScore(labels[i], float(scores[i])) for i in order)
    return LabelAnswer(labels[best], float(scores[best]), listed)


def sigmoid(raw: npt.NDArray[np.floating], *, temperature: float = 1.0) -> Doubles:
    """What a pair scorer's raw numbers are shown as, each in [0, 1]; rises with them.

    Args:
        raw: any shape.
        temperature: > 0; divides them.
    Returns: float64 of the same shape; safe for numbers of any finite size.

    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    scaled = raw.astype(np.float64) / temperature
    powers = np.exp(-np.abs(scaled))
    return np.asarray(np.where(scaled >= 0, 1.0, powers) / (1.0 + powers))


def unit_rows(raw: Floats) -> Floats:
    """Embeddings scaled to length 1, each row by itself; a zero row stays zero.

    Args:
        raw: float32 [B, D], finite.
    Returns: float32 [B, D].
    """
    rows = raw.astype(np.float64)
    lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return np.asarray(rows / np.maximum(lengths, np.finfo(np.float64).tiny), dtype=np.float32)


def cosines(query: Floats, passages: Floats) -> Doubles:
    """How near each passage is to the query, in [-1, 1]; a row's does not depend on the other rows.

    Args:
        query: float32 [D], of length 1.
        passages: float32 [B, D], of length 1 each.
    Returns: float64 [B].
    """
    # subtle: not a matrix product, whose sums depend on how many rows there are
    products = passages.astype(np.float64) * query.astype(np.float64)
    return np.asarray(np.clip(products.sum(axis=1), -1.0, 1.0))


def embedding_answer(raw: Floats, *, dimensions: int | None = None, normalize: bool = True) -> Floats:
    """The answer of an embed item.

    Args:
        raw: float32 [D].
        dimensions: keep only the first so many; None keeps all.
        normalize: scale to length 1 (after the cut); a zero vector stays zero.
    Returns: float32 [dimensions].
    Raises:
        RunFailed: the vector is not finite.
    """
    if not np.isfinite(raw).all():
        raise RunFailed("the student computed no finite embedding for this input")
    cut = raw[:dimensions].astype(np.float64)
    if normalize:
        cut /= max(float(np.linalg.norm(cut)), np.finfo(np.float64).tiny)
    return cut.astype(np.float32)


def int8_embedding(unit: Floats) -> npt.NDArray[np.int8]:
    """round(127 x an embedding of length 1), int8 [D].

    >>> int8_embedding(np.array([1.0, -0.5, 0.0], np.float32)).tolist()
    [127, -64, 0]
    """
    return np.rint(unit.astype(np.float64) * 127.0).astype(np.int8)


def binary_embedding(vector: Floats) -> npt.NDArray[np.uint8]:
    """Sign bits (1: above 0), eight to a byte, the first in the highest bit; the last byte is filled up with 0.

    >>> binary_embedding(np.array([0.3, -0.1, 0.0, 0.2, -1, -1, -1, 0.5, 0.1], np.float32)).tolist()
    [145, 128]
    """
    return np.packbits(vector > 0)
