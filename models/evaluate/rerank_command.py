"""`python -m models.evaluate.rerank_command STUDENT TEACHER CORPUS QUERIES`: re-ranking against the teacher's time.

The candidates are those of a BM25 over the corpus. The teacher is a bundle: the fine-tuned cross-encoder of a refresh's
runs folder, `understudy import RUNS/rank-teacher/DIGEST/teacher --task rank --name NAME-teacher --max-tokens N`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.data.corpus import read_corpus, read_queries
from models.data.lexical import Lexical
from models.evaluate.opening import one_line_errors, open_bundle, write_json
from models.evaluate.rerank_speed import Asked, RerankReport, rerank_speed
from models.evaluate.speed import machine_name, pinned
from models.evaluate.tables import markdown
from models.evaluate.variants import Variant, require_backends
from models.recipe.parts import FIRST_BACKEND
from service.runtime.memory import keep_freed


def command(
    student: Annotated[
        str, typer.Argument(help="It reads texts apart: NAME, NAME@VERSION, NAME@ALIAS, or its folder.")
    ],
    teacher: Annotated[str, typer.Argument(help="The teacher as a bundle: in the store, or its folder.")],
    corpus: Annotated[Path, typer.Argument(help="Documents: JSONL with id, text and maybe title.")],
    queries: Annotated[Path, typer.Argument(help="Queries: JSONL with id and text.")],
    store: Annotated[Path, typer.Option(envvar="UNDERSTUDY_STORE")] = Path("models/store"),
    candidates: Annotated[int, typer.Option(min=1, help="Of each query.")] = 100,
    most_queries: Annotated[int, typer.Option(min=1, help="Every k-th query is run, about so many.")] = 10,
    backend: Annotated[str, typer.Option(help="The student's.")] = FIRST_BACKEND,
    teacher_backend: Annotated[str, typer.Option(help="The teacher's.")] = FIRST_BACKEND,
    core: Annotated[int | None, typer.Option(help="Which core; default: the last allowed.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the timings here too.")] = None,
) -> None:
    """Time re-ranking: the same queries and candidates, one pinned thread on each side in turn."""
    with one_line_errors():
        require_backends([backend], where="--backend")
        require_backends([teacher_backend], where="--teacher-backend")
        ours, theirs = open_bundle(student, store=store), open_bundle(teacher, store=store)
        asked = asked_of(corpus, queries, candidates=candidates, most_queries=most_queries)
        keep_freed()  # as the service does; else page faults are half of what large batches take
        with pinned(core) as used:
            served = Variant(backend, ours.manifest.default_precision).load(ours)
            names = sorted(theirs.manifest.precisions, key=lambda name: name != "fp32")
            teachers = [Variant(teacher_backend, name).load(theirs) for name in names]
            report = rerank_speed(served, teachers, asked)
        typer.echo(
            f"{machine_name((backend,))}; core {used}; median of {len(report.sides[0].seconds)} interleaved repeats"
        )
        typer.echo(table_of(report))
        typer.echo(
            f"{report.sides[0].passages:,} candidates of {report.tokens_a_passage:.0f} tokens; "
            f"a kept passage takes {report.bytes_a_passage:,.0f} bytes, {report.bytes_a_token:.0f} a token"
        )
        write_json(json_out, asdict(report))


def asked_of(corpus: Path, queries: Path, *, candidates: int, most_queries: int) -> list[Asked]:
    """Queries spread evenly over the file, each with its best documents by BM25. Raises: DataInvalid."""
    documents = [
        f"{each.title}. {each.text}" if each.title else each.text for each in read_corpus(corpus).documents.values()
    ]
    texts = [query.text for query in read_queries(queries).values()]
    chosen = texts[:: max(1, len(texts) // most_queries)][:most_queries]
    index = Lexical(documents)
    return [Asked(text, tuple(documents[at] for at in index.best(text, candidates))) for text in chosen]


def table_of(report: RerankReport) -> str:
    """Milliseconds a query, and times as fast as each teacher."""
    teachers = [side.contender for side in report.sides if side.contender.startswith("teacher")]
    rows = [
        [side.contender, f"{side.ms_a_query:.2f}", *(f"{report.ratio(side.contender, name):.1f}" for name in teachers)]
        for side in report.sides
    ]
    return markdown(["", "ms a query", *(f"x {name}" for name in teachers)], rows)


if __name__ == "__main__":
    typer.run(command)
