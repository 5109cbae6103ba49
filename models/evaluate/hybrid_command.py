"""`python -m models.evaluate.hybrid_command STUDENT CORPUS QUERIES QRELS`: retrieval by words, by embeddings, by both.

Every document of the corpus is ranked for every query: by BM25, by the cosine of an embed student's vectors, and by the
two orders fused. Nothing is tuned on the queries.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.data.corpus import read_corpus, read_qrels, read_queries
from models.data.rank_sets import Ranking
from models.errors import DataInvalid
from models.evaluate.opening import one_line_errors, open_bundle, write_json
from models.evaluate.rank_tables import rankers_table
from models.evaluate.rankers import bm25_order, embedder_order, fused
from models.evaluate.ranking import rank_quality
from models.evaluate.variants import Variant, require_backends
from models.recipe.parts import FIRST_BACKEND


def command(
    student: Annotated[str, typer.Argument(help="An embed student: NAME, NAME@VERSION, NAME@ALIAS, or its folder.")],
    corpus: Annotated[Path, typer.Argument(help="Documents: JSONL with id, text and maybe title.")],
    queries: Annotated[Path, typer.Argument(help="Queries: JSONL with id and text.")],
    qrels: Annotated[Path, typer.Argument(help="Which documents answer which query, tab-separated.")],
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE")] = Path("models/store"),
    backend: Annotated[str, typer.Option()] = FIRST_BACKEND,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure retrieval over a whole corpus."""
    with one_line_errors():
        require_backends([backend], where="--backend")
        bundle = open_bundle(student, store=store)
        if bundle.manifest.task != "embed":
            raise DataInvalid(f"{bundle.manifest.name}: a student of task {bundle.manifest.task}, not embed")
        rankings = whole_corpus(corpus, queries, qrels)
        words = bm25_order(rankings)
        dense = embedder_order(Variant(backend, bundle.manifest.default_precision).load(bundle), rankings)
        found = [rank_quality(rankings, each) for each in (words, dense, fused(words, dense))]
        typer.echo(f"{len(rankings):,} queries, {len(rankings[0].passages):,} documents\n\n{rankers_table(found)}")
        write_json(json_out, [asdict(each) for each in found])


def whole_corpus(corpus: Path, queries: Path, qrels: Path) -> tuple[Ranking, ...]:
    """Every query that has an answer, with all documents as its candidates. Raises: DataInvalid."""
    documents = read_corpus(corpus).documents
    asked = read_queries(queries)
    judged = read_qrels(qrels, queries=asked, corpus=documents)
    shown = tuple(f"{each.title}. {each.text}" if each.title else each.text for each in documents.values())
    rankings = tuple(
        Ranking(
            asked[name].text,
            shown,
            tuple(grades.get(each, 0.0) for each in documents),
            file=asked[name].file,
            line=asked[name].line,
        )
        for name, grades in judged.items()
    )
    answered = tuple(each for each in rankings if each.answered)
    if not answered:
        raise DataInvalid(f"{qrels}: no query has a relevant document, so there is nothing to measure")
    return answered


if __name__ == "__main__":
    typer.run(command)
