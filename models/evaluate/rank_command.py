"""What `understudy evaluate` does with a ranker: quality and speed on a file of queries with their passages."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from models.data.rank_sets import listed_rankings
from models.errors import DataInvalid
from models.evaluate.rank_tables import rankers_table
from models.evaluate.rankers import bm25_order, given_order, student_scores
from models.evaluate.ranking import RankQuality, rank_quality
from models.evaluate.variants import Variant
from service.bundle.load import Bundle


@dataclass(frozen=True, slots=True)
class RankerMeasured:
    """One variant of a ranker on a file: its quality, and how many pairs it scores a second, tokenizing included."""

    quality: RankQuality
    pairs: int
    pairs_per_s: float


def measure_rankings(bundle: Bundle, data: Path, wanted: Sequence[Variant]) -> list[RankerMeasured]:
    """Measure a ranker's variants, and print them beside the order of the file and BM25's.

    Raises: DataInvalid: the file is no list of rankings, or no query of it has a relevant passage.
    """
    rankings = listed_rankings(data, held_out=True)
    if not any(ranking.answered for ranking in rankings):
        raise DataInvalid(f"{data}: no query has a relevant passage, so there is nothing to measure")
    measured = []
    for variant in wanted:
        student = variant.load(bundle)
        begun = time.perf_counter()
        scored = student_scores(student, rankings, name=variant.name)
        seconds = time.perf_counter() - begun
        pairs = sum(len(scores) for scores in scored.scores)
        measured.append(RankerMeasured(rank_quality(rankings, scored), pairs, pairs / seconds))
    beside = [rank_quality(rankings, each) for each in (given_order(rankings), bm25_order(rankings))]
    first = measured[0].quality
    typer.echo(f"{bundle.manifest.name}: {first.queries:,} queries, {first.answered:,} with a relevant passage\n")
    typer.echo(rankers_table([*(each.quality for each in measured), *beside]) + "\n")
    for each in measured:
        typer.echo(f"{each.quality.ranker}: {each.pairs:,} pairs, {each.pairs_per_s:,.0f} a second on one core")
    return measured
