"""Resampled calibrations: sizes, sums, and what a pool that cannot certify gives."""

import numpy as np
import pytest

from models.evaluate.exits import Risks
from models.evaluate.resplits import ExitSettings, Resampling, resplits

RISKS = Risks((0.02, 0.1), 0.05)


def logits(rows: int, seed: int) -> list[np.ndarray]:
    """Two exits, three labels; the first is full depth with noise, more where full depth is unsure."""
    draw = np.random.default_rng(seed)
    full = draw.normal(0, 3, (rows, 3))
    return [(full + draw.normal(0, 0.7, full.shape)).astype(np.float32), full.astype(np.float32)]


def test_averages_describe_the_test_rows() -> None:
    settings = ExitSettings((0.1, 1.0), RISKS, layers=(0, 4))
    found = resplits(logits(900, 1), logits(400, 2), settings=settings, resampling=Resampling(200, 700, runs=20))
    assert [summary.risk for summary in found] == [0.02, 0.1]
    for summary in found:
        assert (summary.runs, summary.rows_a, summary.rows_b, summary.test_rows) == (20, 200, 700, 400)
        assert sum(summary.exit_shares) == pytest.approx(1.0)
        assert summary.mean_depth == pytest.approx(0.1 * summary.exit_shares[0] + summary.exit_shares[1])
        assert summary.mean_layers == pytest.approx(4 * summary.exit_shares[1])
        assert list(summary.disagreement) == sorted(summary.disagreement)
        assert summary.offered == 1.0
        assert summary.above_risk <= 0.2
        assert summary.refuted <= summary.above_risk
    assert found[1].exit_shares[0] > found[0].exit_shares[0] > 0.1


def test_a_pool_too_small_for_a_risk_counts_as_full_depth() -> None:
    settings = ExitSettings((0.1, 1.0), RISKS)
    tight, loose = resplits(logits(100, 1), logits(50, 2), settings=settings, resampling=Resampling(20, 80, runs=5))
    assert tight.offered == 0.0
    assert tight.exit_shares == (0.0, 1.0)
    assert tight.mean_depth == 1.0
    assert tight.mean_layers is None
    assert loose.offered == 1.0


def test_a_pool_smaller_than_the_stated_size_is_drawn_from_with_replacement() -> None:
    settings = ExitSettings((0.1, 1.0), RISKS)
    (tight, _) = resplits(logits(100, 1), logits(50, 2), settings=settings, resampling=Resampling(100, 500, runs=5))
    assert (tight.rows_a, tight.rows_b) == (100, 500)
    assert tight.offered == 1.0


def test_the_same_seed_gives_the_same_description() -> None:
    settings, pool, test = ExitSettings((0.1, 1.0), RISKS), logits(300, 1), logits(100, 2)
    first, again, other = (
        resplits(pool, test, settings=settings, resampling=Resampling(60, 240, runs=3, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
