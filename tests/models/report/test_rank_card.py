"""The card of a ranker: every figure with its interval, each test by itself, and what the manifest keeps of it."""

from pathlib import Path

import numpy as np
import pytest

from models.data.rank_sets import Ranking
from models.evaluate.ranking import RankComparison, Scored, compare_rankers
from models.report.card import GateResult
from models.report.rank_card import (
    RankCard,
    rank_quality_for_manifest,
    render_rank_card,
    seed_results,
    write_rank_card,
)
from service.bundle.load import load_manifest
from service.bundle.manifest import Manifest

GOOD, BAD = np.array([2, 1, 0], np.float32), np.array([0, 1, 2], np.float32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, build_bundle) -> Manifest:
    return load_manifest(build_bundle(tmp_path_factory.mktemp("toy"), task="rank", pairs="joint"))


def comparison(split: str) -> RankComparison:
    lists = [Ranking("q", ("a", "b", "c"), (1.0, 0.0, 0.0)) for _ in range(12)]
    return compare_rankers(
        split,
        lists,
        students=[Scored("int8", (*(GOOD,) * 9, *(BAD,) * 3)), Scored("fp32", (*(GOOD,) * 10, *(BAD,) * 2))],
        teacher=Scored("teacher", (GOOD,) * 12),
        baselines=[Scored("given", (BAD,) * 12)],
    )


@pytest.fixture(scope="module")
def card(manifest: Manifest) -> RankCard:
    tests = (comparison("first"), comparison("second"))
    return RankCard(
        manifest=manifest,
        tests=tests,
        gates=(GateResult("bytes", "<= 2", "1", True),),
        data_notes=("a note",),
        receipts=("a receipt",),
        commands=("a command",),
        seeds=(*seed_results(0, tests), *seed_results(1, tests)),
        costs=("a cost",),
    )


def test_everything_measured_is_in_it(card: RankCard) -> None:
    text = render_rank_card(card, plots=("card/quality.png",))
    for said in (
        "### first: 12 queries, 12 with a relevant passage",
        "### second",
        "| int8 | 0.8750 (",
        "| int8, given | 1.7500 (",
        "- second: nDCG@10 0.8750 (int8), 0.8750 of the teacher's (95% interval",
        "standard deviation 0.0000",
        "a note",
        "a receipt",
        "a command",
        "a cost",
        "![quality](card/quality.png)",
    ):
        assert said in text
    assert "## Other seeds" in text


def test_one_seed_has_no_spread(card: RankCard, manifest: Manifest) -> None:
    assert "Other seeds" not in render_rank_card(RankCard(manifest, card.tests, seeds=card.seeds[:2]))


def test_it_is_written_with_its_picture(card: RankCard, tmp_path: Path) -> None:
    assert write_rank_card(card, tmp_path) == ("card.md", "card/quality.png")
    assert (tmp_path / "card" / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_the_manifest_keeps_each_test_and_precision(card: RankCard) -> None:
    quality = rank_quality_for_manifest(card.tests)
    assert (quality.split, quality.rows) == ("first, second", 24)
    assert quality.teacher["second.ndcg@10"] == 1.0
    assert set(quality.by_precision) == {"int8", "fp32"}
    assert quality.by_precision["int8"][0].metrics["first.ndcg@10_retention"] == pytest.approx(0.875)
